"""Makes the latents of this folder: python tests/data/make_pairs.py PICTURES CODECS

PICTURES: the folder png of Debian's package openclipart-png, 1:0.18+dfsg-19. CODECS: the folder of
taesd_encoder.safetensors.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from PIL import Image

from lib_latent_upscale.spaces import SD15
from lib_latent_upscale.training.shards import Pair, Source, write_shard
from lib_latent_upscale.training.vae import Vae, open_vae

HERE = Path(__file__).resolve().parent
SIDE, UNSEEN_SIDE = 256, 320
"""Of the large crops, in pixels."""
CROPS = 2
"""Of each picture, at 1 and 1.4 times the size at which it would just fill the crop."""


def main(pictures: Path, codecs: Path) -> None:
    vae = open_vae(codecs / "taesd_encoder.safetensors", SD15)
    rng = random.Random(0)
    names = json.loads((HERE / "pictures.json").read_text(encoding="utf-8"))
    for kind, side, count in (("trained", SIDE, CROPS), ("unseen", UNSEEN_SIDE, 1)):
        found = [one for name in names[kind] for one in crops(pictures, name, side, count, rng)]
        pairs = [pair(vae, *one) for one in found]
        write_shard(HERE / f"clipart-{kind}-sd15.safetensors", pairs, SD15, "taesd_encoder")


def crops(
    folder: Path, name: str, side: int, count: int, rng: random.Random
) -> list[tuple[str, Image.Image]]:
    """Square crops of a picture, each from a size of its own, on a plain ground."""
    picture = Image.open(folder / f"{name}.png").convert("RGBA")
    ground = Image.new("RGBA", picture.size, (*(rng.randrange(256) for _ in range(3)), 255))
    ground.alpha_composite(picture)
    found = []
    for index in range(count):
        scale = side * (1 + 0.4 * index) / min(picture.size)
        size = round(picture.width * scale), round(picture.height * scale)
        scaled = ground.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        left, top = ((extent - side) // 2 for extent in size)
        if index:
            left, top = rng.randint(0, size[0] - side), rng.randint(0, size[1] - side)
        found.append((name, scaled.crop((left, top, left + side, top + side))))
    return found


def pair(vae: Vae, name: str, crop: Image.Image) -> Pair:
    """The latents of a crop and of it at half its size, float16."""
    half = crop.resize((crop.width // 2, crop.height // 2), Image.Resampling.LANCZOS)
    large, small = (vae.encode(as_tensor(one))[0].half() for one in (crop, half))
    return Pair(large, small, Source(name, name.split("/")[0]))


def as_tensor(picture: Image.Image) -> torch.Tensor:
    """(1, 3, H, W) in -1..1."""
    content = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return content.view(1, picture.height, picture.width, 3).permute(0, 3, 1, 2) / 127.5 - 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
