"""Makes the demo's two latents: the astronaut, encoded at 512 and at 256 pixels.

    pip install scikit-image
    python -m lib_latent_upscale.training.demo_latents --codecs DIR --out lib_latent_upscale/assets

The picture is ``skimage.data.astronaut()``, Eileen Collins by NASA, in the public domain. The large
latent is TAESD's of the picture itself, the small one TAESD's of the LANCZOS-resized picture; both
are SD1.5 latents in UNet scale, float16, under the key ``latent``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from .codecs import load_encoder

SIDES = (512, 256)
"""Sides of the encoded pictures in pixels."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; ``arguments`` are those of the command line unless given."""
    parser = argparse.ArgumentParser(
        prog="python -m lib_latent_upscale.training.demo_latents",
        description="Make the demo's latents, astronaut-512 and astronaut-256 (.safetensors).",
    )
    parser.add_argument("--codecs", type=Path, required=True, metavar="DIR",
        help="folder with taesd_encoder.safetensors "
        "(from github.com/madebyollin/taesd)")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
        help="folder to write the two files into")  # fmt: skip
    options = parser.parse_args(arguments)

    try:
        from skimage import data  # here, so that --help works without it
    except ImportError:
        raise SystemExit("this needs scikit-image: pip install scikit-image") from None

    encoder = load_encoder(options.codecs / "taesd_encoder.safetensors")
    picture = Image.fromarray(data.astronaut())
    options.out.mkdir(parents=True, exist_ok=True)
    for side in SIDES:
        sized = picture.resize(
            (side, side), Image.Resampling.LANCZOS
        )  # 512 px: the picture's own size
        pixels = torch.from_numpy(np.array(sized)).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            latent = encoder(pixels)
        path = options.out / f"astronaut-{side}.safetensors"
        metadata = {
            "space": "sd15",
            "scale": "unet",
            "picture": "astronaut (NASA, public domain)",
            "picture_size": f"{side}x{side}",
            "encoder": "TAESD (Ollin Boer Bohan, MIT, github.com/madebyollin/taesd)",
        }
        save_file({"latent": latent.half().contiguous()}, path, metadata)
        print(f"{path}: {tuple(latent.shape)}")


if __name__ == "__main__":
    main()
