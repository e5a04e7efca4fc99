"""Make the weights that halfway's training begins from: TAESD's halves, joined.

    python -m lib_latent_upscale.training halfway --data pairs/ --vae taesd_encoder.safetensors \\
        --decoder taesd_decoder.safetensors --out start.safetensors

The network's blocks are those in the middle of the way through the picture: the decoder's first two
stages and the encoder's last, and where the least is to be computed some more, which do nothing at
first. The convolution that joins them is fitted by least squares, so that the whole does about what
decoding, bicubic enlargement and encoding do, which it never gets as good at: that is for the
training. Then: train --recipe halfway --set network.weights=start.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..architectures.halfway import Halfway, ResidualBlock
from ..architectures.layers.tokens import to_picture
from ..spaces import RAW
from ..weights import writing
from . import codecs, initial, whole
from .errors import TrainingError
from .shards import ShardReader
from .vae import TinyVae, open_vae

_BLOCKS = 3
"""Of each of TAESD's stages."""
_MORE = 3
"""Blocks more at the small latent's size: as many as 30 GFLOP for a latent of 64x64 allow."""
_COARSE, _FINE = 3, 8
"""The first block of the decoder's first stage, and of its second one."""
_DOUBLING = 7
_RIDGE = 1e-3
"""Of the mean of the features' squares: keeps the fit from what little data cannot tell."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `halfway`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = __doc__
    add = parser.add_argument
    add("--data", nargs="+", required=True, metavar="SHARDS", type=Path,
        help="shard files or folders of them, made by prepare")  # fmt: skip
    add("--vae", required=True, type=Path, metavar="FILE", help="TAESD's encoder of their space")
    add("--decoder", required=True, type=Path, metavar="FILE", help="TAESD's decoder")
    add("--out", required=True, type=Path, metavar="FILE",
        help="the .safetensors file to write")  # fmt: skip
    add("--pairs", type=int, default=64, help="pairs that the joint is fitted to (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """The command. Raises `TrainingError` for what the user can put right."""
    reader = ShardReader(options.data)
    space = reader.space
    vae = open_vae(options.vae, space, options.decoder)
    if not isinstance(vae, TinyVae) or vae.encoder is None or vae.decoder is None:
        raise TrainingError("halfway begins from TAESD's encoder and decoder, no other VAE's")
    chosen = tqdm(range(min(options.pairs, len(reader))), unit="pair")
    latents = (RAW.to(space.unet, reader.pair(index)[0][None]) for index in chosen)
    network = joined(vae.encoder, vae.decoder, latents)
    about = {"architecture": "halfway", "space": space.id, "input": "unet"}
    with whole.replacing(options.out) as part:
        writing.write(part, network.to_state_dict(), about)
    print(f"{options.out}: train --recipe halfway --set network.weights={options.out}")
    return 0


@torch.no_grad()
def joined(encoder: codecs.Encoder, decoder: codecs.Decoder, latents: Iterable[Tensor]) -> Halfway:
    """A network of a codec's halves; latents: small ones (1, C, h, w), in UNet scale."""
    first = decoder[1]
    assert isinstance(first, nn.Conv2d)
    network = Halfway(decoder.channels, first.out_channels, _BLOCKS + _MORE, _BLOCKS, _BLOCKS)
    network.eval()
    _copy(first, network.conv_first)
    _copy(decoder[_DOUBLING], network.unfold)
    _copy(encoder[-1], network.conv_last)
    for added in list(network.coarse)[_BLOCKS:]:
        assert isinstance(added, ResidualBlock)
        initial.zero(added.conv3)  # what comes in is not negative, and goes out as it is
    initial.zero(network.phase)
    for index in range(_BLOCKS):
        _copy_block(decoder[_COARSE + index], network.coarse[index])
        _copy_block(decoder[_FINE + index], network.fine[index])
        _copy_block(encoder[index - _BLOCKS - 1], network.folding[index])
    weight, bias = _least_squares(_examples(encoder, decoder, network, latents))
    network.fold.weight.copy_(weight)
    assert network.fold.bias is not None
    network.fold.bias.copy_(bias)
    return network


def _examples(
    encoder: codecs.Encoder, decoder: codecs.Decoder, network: Halfway, latents: Iterable[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the joint is given for a latent, and what it is to give: (1, dim, 2h, 2w) each."""
    for latent in latents:
        picture = F.interpolate(decoder(latent), scale_factor=2, mode="bicubic").clamp(0, 1)
        wanted = nn.Sequential(*list(encoder)[: -_BLOCKS - 1])(picture)
        yield to_picture(network.unfolded(latent)), wanted


def _least_squares(examples: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The weight and bias of the 3x3 convolution that comes nearest to the examples."""
    gram: Tensor | None = None
    product: Tensor | None = None
    for given, wanted in examples:
        places = F.unfold(given, 3, padding=1)[0].double().T
        places = torch.cat([places, places.new_ones(len(places), 1)], dim=1)
        targets = wanted[0].flatten(1).double().T
        gram = places.T @ places if gram is None else gram + places.T @ places
        product = places.T @ targets if product is None else product + places.T @ targets
    if gram is None or product is None:
        raise TrainingError("no pair to fit the joint to")
    ridge = _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    solution = torch.linalg.solve(gram + ridge, product).float()
    dim = solution.shape[1]
    return solution[:-1].T.reshape(dim, dim, 3, 3), solution[-1]


def _copy(given: nn.Module, to: nn.Conv2d) -> None:
    assert isinstance(given, nn.Conv2d)
    to.weight.copy_(given.weight)
    assert to.bias is not None
    to.bias.copy_(given.bias) if given.bias is not None else to.bias.zero_()


def _copy_block(given: nn.Module, to: nn.Module) -> None:
    assert isinstance(given, codecs.Block) and isinstance(to, ResidualBlock)
    for index, convolution in enumerate((to.conv1, to.conv2, to.conv3)):
        _copy(given.conv[2 * index], convolution)
