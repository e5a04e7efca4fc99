"""Fetches the wanted models. The WebUI runs this at every launch; by hand see `--help`."""

import sys
from pathlib import Path

# Not resolved: where the extension is linked from, the WebUI's settings are not.
extension = Path(__file__).absolute().parent
sys.path.insert(0, str(extension))

from lib_latent_upscale import first_launch  # noqa: E402

sys.exit(first_launch.main(extension, sys.argv[1:]))
