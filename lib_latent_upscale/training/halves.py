"""Each half of `halfway` learnt by itself, before the whole is trained from end to end.

From end to end such a network is slow to learn what a latent shows. Its halves can be told: the
first has to give the codec's picture of the small latent, every pixel of it; the second has to make
the large latent of that picture, enlarged. The convolution that joins them is then what comes
nearest to reading the one's picture out, enlarging it and handing it on to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..architectures.halfway import Halfway
from ..architectures.layers.tokens import to_picture, to_tokens
from ..spaces import RAW
from . import codecs, initial, optimizers
from .criterion import Criterion
from .ema import Ema
from .errors import TrainingError
from .losses.pointwise import PSNR
from .optimizers import RateSchedule, set_rate
from .recipe_book import RECIPES
from .stream import Batch, PairStream
from .vae import Vae

_PATCH = codecs.FACTOR // 2
"""A feature's side, half of a latent pixel's, in the picture's pixels."""
_FLOOR = 1e-3
"""Of the first half's loss: 36 dB, which it does not come to."""
_RIDGE = 1e-3
"""Of the mean of the features' squares: keeps a fit from what little data cannot tell."""
_RECIPE = RECIPES["halfway"]
"""What the whole is trained by afterwards."""
_LEARNING_RATE = 1e-3
_WARM_UP = 50
_REPORTS = 8


class Reading(nn.Module):
    """Halfway's first half with a convolution that reads the picture out of its features."""

    def __init__(self, network: Halfway) -> None:
        super().__init__()
        self.network = network
        colours = 3 * _PATCH**2
        self.readout = nn.Conv2d(network.fold.in_channels, colours, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """(N, C, h, w) in UNet scale -> its picture (N, 3, 8h, 8w), -1..1 but for errors."""
        return self.of_features(to_picture(self.network.unfolded(latent)))

    def of_features(self, features: Tensor) -> Tensor:
        """Features (N, dim, 2h, 2w) -> the picture."""
        return F.pixel_shuffle(self.readout(features), _PATCH)


class Writing(nn.Module):
    """Halfway's second half behind a convolution that takes a picture in."""

    def __init__(self, network: Halfway) -> None:
        super().__init__()
        self.network = network
        self.take = nn.Conv2d(3 * codecs.FACTOR**2, network.fold.out_channels, 3, padding=1)

    def forward(self, picture: Tensor) -> Tensor:
        """(N, 3, 8H, 8W) in -1..1 -> its latent (N, C, H, W) in UNet scale."""
        folded = self.network.folding(to_tokens(self.taken(picture)))
        return to_picture(self.network.conv_last(folded)).contiguous()

    def taken(self, picture: Tensor) -> Tensor:
        """What is to come out of `fold` for a picture: (N, dim, H, W)."""
        return self.take(F.pixel_unshuffle(picture, codecs.FACTOR))


def enlarged(picture: Tensor) -> Tensor:
    """Twice as wide and high, bicubic, and no more than a picture: -1..1."""
    return F.interpolate(picture.clamp(-1, 1), scale_factor=2, mode="bicubic").clamp(-1, 1)


def learn_reading(
    reading: Reading, vae: Vae, stream: PairStream, steps: int, bf16: bool = False
) -> None:
    """Trains the first half by the VAE's pictures of the stream's small latents."""
    unet, error = vae.space.unet, PSNR(_FLOOR)

    def loss(batch: Batch, _: int) -> Tensor:
        with torch.no_grad():
            wanted = vae.decode(batch.small).clamp(-1, 1)
        return error(_autocast(reading, RAW.to(unet, batch.small), bf16), wanted)

    _learn(reading, loss, stream, steps, "its picture")


def learn_writing(
    writing: Writing,
    vae: Vae,
    criterion: Criterion,
    stream: PairStream,
    steps: int,
    bf16: bool = False,
) -> None:
    """Trains the second half: of the small latents' pictures, enlarged, it makes the large ones.

    criterion: what latents in UNet scale are judged by.
    stream: of pairs of factor 2.
    """
    unet = vae.space.unet

    def loss(batch: Batch, step: int) -> Tensor:
        with torch.no_grad():
            picture = enlarged(vae.decode(batch.small))
        return criterion(_autocast(writing, picture, bf16), RAW.to(unet, batch.large), step)[0]

    _learn(writing, loss, stream, steps, "its latent")


@torch.no_grad()
def begin(reading: Reading, writing: Writing, vae: Vae, latents: Sequence[Tensor]) -> None:
    """Sets the halves' own convolutions by what their network, joined as it is, makes of latents.

    latents: small ones (1, C, h, w), in UNet scale.
    """
    network, raw = reading.network, [vae.space.unet.to(RAW, latent) for latent in latents]
    features = [to_picture(network.unfolded(latent)) for latent in latents]
    pictures = [vae.decode(latent).clamp(-1, 1) for latent in raw]
    folded = [to_picture(network.fold(to_tokens(one))) for one in features]
    patches = [F.pixel_unshuffle(picture, _PATCH) for picture in pictures]
    large = [F.pixel_unshuffle(enlarged(picture), codecs.FACTOR) for picture in pictures]
    fit(reading.readout, zip(features, patches))
    fit(writing.take, zip(large, folded))


@torch.no_grad()
def join(reading: Reading, writing: Writing, latents: Iterable[Tensor]) -> None:
    """Sets their network's `fold`, and its resampling to a plain one: it was of other features.

    latents: small ones (1, C, h, w), in UNet scale.
    """
    network = reading.network
    initial.plain_resampling(network)

    def examples() -> Iterator[tuple[Tensor, Tensor]]:
        for latent in latents:
            features = to_picture(network.unfolded(latent))
            yield features, writing.taken(enlarged(reading.of_features(features)))

    fit(network.fold, examples())


@torch.no_grad()
def fit(convolution: nn.Conv2d, examples: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Sets a 3x3 convolution to what gives the second of each example for the first, by least
    squares.

    examples: (1, inputs, H, W) and (1, outputs, H, W). Raises `TrainingError` if there is none.
    """
    gram: Tensor | None = None
    product: Tensor | None = None
    for given, wanted in examples:
        places = F.unfold(given, 3, padding=1)[0].cpu().double().T
        places = torch.cat([places, places.new_ones(len(places), 1)], dim=1)
        targets = wanted[0].flatten(1).cpu().double().T
        gram = places.T @ places if gram is None else gram + places.T @ places
        product = places.T @ targets if product is None else product + places.T @ targets
    if gram is None or product is None:
        raise TrainingError("no pair to fit the halves' joint to")
    ridge = _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    solution = torch.linalg.solve(gram + ridge, product).float()
    convolution.weight.copy_(solution[:-1].T.reshape(convolution.weight.shape))
    assert convolution.bias is not None
    convolution.bias.copy_(solution[-1])


def _learn(
    module: nn.Module,
    loss: Callable[[Batch, int], Tensor],
    stream: PairStream,
    steps: int,
    what: str,
) -> None:
    """Trains a module, which ends as the moving average of its weights; none for no steps."""
    if not steps:
        return
    device = next(module.parameters()).device
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
    optimizer = optimizers.build(
        _RECIPE.optimizer, module.parameters(), _LEARNING_RATE, _RECIPE.optimizer_options
    )
    schedule = RateSchedule("cosine", steps, warm_up=min(_WARM_UP, steps))
    average = Ema(module, 0.995)
    told, total = max(1, steps // _REPORTS), 0.0
    for step in tqdm(range(steps), desc=what, unit="step"):
        set_rate(optimizer, _LEARNING_RATE * schedule.factor(step))
        value = loss(stream.batch(step).to(device), step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 10.0)
        optimizer.step()
        average.update(module, step)
        total += float(value.detach())
        if (step + 1) % told == 0:
            tqdm.write(f"{what}, step {step + 1} of {steps}: loss {total / told:.4f}")
            total = 0.0
    module.load_state_dict(average.network.state_dict())


def _autocast(module: nn.Module, x: Tensor, bf16: bool) -> Tensor:
    """The module's result in float32; x: (N, C, H, W)."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        result: Tensor = module(x.contiguous(memory_format=torch.channels_last))
    return result.float()
