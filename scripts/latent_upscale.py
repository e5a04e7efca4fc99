"""Puts the latent upscalers into the WebUI's hires dropdown."""

import sys

# "Reload UI" runs this file again, perhaps that of an updated extension: the library must be
# the one that lies beside it now, not the one imported before. (A list: other threads import, too.)
for name in [name for name in list(sys.modules) if name.partition(".")[0] == "lib_latent_upscale"]:
    del sys.modules[name]

from lib_latent_upscale import webui  # noqa: E402

webui.install()
