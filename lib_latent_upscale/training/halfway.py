"""Make the weights that halfway's training begins from: TAESD's halves, joined.

    python -m lib_latent_upscale.training halfway --data pairs/ --vae taesd_encoder.safetensors \\
        --decoder taesd_decoder.safetensors --out start.safetensors

The network's blocks are those in the middle of the way through the picture: the decoder's first two
stages and the encoder's last, and where the least is to be computed some more, which do nothing at
first. The convolution that joins them is fitted by least squares. Then each half learns by itself
to do what the whole codec's half does (`halves`), and they are joined anew; with --steps 0 0 they
stay as they were cut out. Then: train --recipe halfway --set network.weights=start.safetensors

With --begin, and --steps 0 0, weights from before networks resampled by neighbours become such that
the recipe goes on from; they compute what they did.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..architectures.halfway import Halfway, ResidualBlock
from ..architectures.layers.tokens import to_picture
from ..architectures.network import Shapes
from ..spaces import RAW
from ..weights import writing
from . import codecs, devices, halves, initial, trained, whole
from .criterion import Criterion
from .errors import TrainingError
from .options import add_computing, add_shards, check_above_zero, check_out
from .recipe_book import RECIPES
from .shards import ShardReader
from .stream import PairStream
from .vae import TinyVae, open_vae

_BLOCKS = 3
"""Of each of TAESD's stages."""
_MORE = 3
"""Blocks more at the small latent's size: as many as 30 GFLOP for a latent of 64x64 allow."""
_NEIGHBOURS = 4
"""That resampling looks at on each axis."""
_COARSE, _FINE = 3, 8
"""The first block of the decoder's first stage, and of its second one."""
_DOUBLING = 7
_CROP = 14
"""Side of the small latents that the halves learn from."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `halfway`."""
    add_shards(parser)
    add = parser.add_argument
    add("--vae", required=True, type=Path, metavar="FILE", help="TAESD's encoder of their space")
    add("--decoder", required=True, type=Path, metavar="FILE", help="TAESD's decoder")
    add("--out", required=True, type=Path, metavar="FILE",
        help="the .safetensors file to write")  # fmt: skip
    add("--begin", type=Path, metavar="FILE",
        help="weights, or a run's folder, to go on from, not from the codec's blocks")  # fmt: skip
    add("--pairs", type=int, default=64, help="pairs that the joint is fitted to (%(default)s)")
    add("--steps", type=int, nargs=2, default=[4000, 3000], metavar=("FIRST", "SECOND"),
        help="in which each half learns by itself (4000 3000)")  # fmt: skip
    add("--batch", type=int, default=8, help="squares of a step (%(default)s)")
    add("--seed", type=int, default=0, help="(%(default)s)")
    add_computing(parser)
    add("--threads", type=int, metavar="N", help="of the CPU; all if not given")


def run(options: argparse.Namespace) -> int:
    """The command. Raises `TrainingError` for what the user can put right."""
    check_out(options.out)
    check_above_zero(options, "pairs", "batch")
    if min(options.steps) < 0:
        raise TrainingError("--steps is two numbers, 0 or more")
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    device = devices.find(options.device)
    reader = ShardReader(options.data)
    space = reader.space
    vae = open_vae(options.vae, space, options.decoder, precision=options.precision)
    if not isinstance(vae, TinyVae) or vae.encoder is None or vae.decoder is None:
        raise TrainingError("halfway begins from TAESD's encoder and decoder, no other VAE's")
    if options.begin:
        network = with_neighbours(trained.halfway_of(options.begin, space)[1]).train()
    else:
        network = joined(vae.encoder, vae.decoder, reader.small_latents(options.pairs))
    if any(options.steps):
        vae.to(device)
        learn_halves(network.to(device), vae, reader, options)
    about = {"architecture": "halfway", "space": space.id, "input": "unet"}
    with whole.replacing(options.out) as part:
        writing.write(part, network.cpu().to_state_dict(), about)
    print(f"{options.out}: train --recipe halfway --set network.weights={options.out}")
    return 0


def with_neighbours(network: Halfway) -> Halfway:
    """A network that computes what the given one does and can learn to resample by neighbours; the
    given one if it can already."""
    if network.neighbours:
        return network
    weights = network.state_dict()
    built = Halfway.hyperparameters(Shapes({key: tuple(v.shape) for key, v in weights.items()}))
    able = Halfway(**{**built, "neighbours": _NEIGHBOURS})
    initial.plain_resampling(able)
    able.load_state_dict(weights, strict=False)  # which lack the layers for that only
    return able


def learn_halves(
    network: Halfway, vae: TinyVae, reader: ShardReader, options: argparse.Namespace
) -> None:
    """Trains the network's halves by themselves and joins them; its device is the VAE's."""
    recipe = RECIPES["halfway"]
    criterion = Criterion(
        recipe.terms, vae=vae, to_raw=partial(vae.space.unet.to, RAW),
        picture_side=recipe.picture_side, picture_squares=recipe.picture_squares,
    )  # fmt: skip
    stream = PairStream(
        reader, crop=_CROP, batch=options.batch, seed=options.seed, factor=2,
        weighting=recipe.weighting,
    )  # fmt: skip
    bf16 = options.precision == "bf16"
    first = halves.Reading(network).to(vae.device)
    second = halves.Writing(network).to(vae.device)
    latents = [latent.to(vae.device) for latent in reader.small_latents(options.pairs)]
    halves.begin(first, second, vae, latents)
    halves.learn_reading(first, vae, stream, options.steps[0], bf16)
    halves.learn_writing(second, vae, criterion, stream, options.steps[1], bf16)
    halves.join(first, second, latents)


@torch.no_grad()
def joined(encoder: codecs.Encoder, decoder: codecs.Decoder, latents: Iterable[Tensor]) -> Halfway:
    """A network of a codec's halves; latents: small ones (1, C, h, w), in UNet scale."""
    first = decoder[1]
    assert isinstance(first, nn.Conv2d)
    network = Halfway(
        decoder.channels, first.out_channels, _BLOCKS + _MORE, _BLOCKS, _BLOCKS, _NEIGHBOURS
    )
    network.eval()
    _copy(first, network.conv_first)
    _copy(decoder[_DOUBLING], network.unfold)
    _copy(encoder[-1], network.conv_last)
    for added in list(network.coarse)[_BLOCKS:]:
        assert isinstance(added, ResidualBlock)
        initial.zero(added.conv3)  # what comes in is not negative, and goes out as it is
    initial.plain_resampling(network)
    for index in range(_BLOCKS):
        _copy_block(decoder[_COARSE + index], network.coarse[index])
        _copy_block(decoder[_FINE + index], network.fine[index])
        _copy_block(encoder[index - _BLOCKS - 1], network.folding[index])
    halves.fit(network.fold, _examples(encoder, decoder, network, latents))
    return network


def _examples(
    encoder: codecs.Encoder, decoder: codecs.Decoder, network: Halfway, latents: Iterable[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the joint is given for a latent, and what it is to give: (1, dim, 2h, 2w) each."""
    for latent in latents:
        picture = F.interpolate(decoder(latent), scale_factor=2, mode="bicubic").clamp(0, 1)
        wanted = nn.Sequential(*list(encoder)[: -_BLOCKS - 1])(picture)
        yield to_picture(network.unfolded(latent)), wanted


def _copy(given: nn.Module, to: nn.Conv2d) -> None:
    assert isinstance(given, nn.Conv2d)
    to.weight.copy_(given.weight)
    assert to.bias is not None
    to.bias.copy_(given.bias) if given.bias is not None else to.bias.zero_()


def _copy_block(given: nn.Module, to: nn.Module) -> None:
    assert isinstance(given, codecs.Block) and isinstance(to, ResidualBlock)
    for index, convolution in enumerate((to.conv1, to.conv2, to.conv3)):
        _copy(given.conv[2 * index], convolution)
