"""What a recipe is, and how options on the command line change one."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from ..spaces import RAW, LatentScale, LatentSpace
from .criterion import Term
from .discriminator import NAME as PUBLISHED_DISCRIMINATOR
from .errors import TrainingError
from .networks import NetworkSpec, tuples
from .optimizers import Schedule

Precision = Literal["bf16", "fp32"]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. shared/docs/training.md has the published ones.

    space: the latent space that the published network is for; any other goes, too.
    factor: of the pairs, None for whatever factors they have.
    scale: what the network is given and gives: "raw" latents, those in the space's "unet" scale,
        or raw ones times a number.
    batch: rows of each process and each of the `accumulation` passes of a step.
    processes: how many the published training had.
    crop: side of the small latents, in latent pixels.
    ema: decay of the average of the weights that is kept beside them; 0 for none.
    ema_share: of the steps so far, the most that it remembers; 1 where the run begins from weights
        that are good already.
    clip: largest norm of the gradient; 0 for no limit.
    discriminator, discriminator_rate: the network and its learning rate, where a loss is
        adversarial: one of timm's, or "patches", see `discriminator`.
    picture_side: side, in the large latent's pixels, of the square of each that losses on pictures
        look at; 0 for all of it.
    picture_squares: how many such squares of each, which losses take for one picture.
    weighting: whether a pair is drawn as often as it has places for the crop ("area"), or all
        equally often ("even"): where pairs of the same pictures have several factors, those of
        small factors have far more places.
    """

    name: str
    summary: str
    network: NetworkSpec
    terms: tuple[Term, ...]
    optimizer: str
    learning_rate: float
    batch: int
    steps: int
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    schedule: Schedule = "constant"
    warm_up: int = 0
    accumulation: int = 1
    processes: int = 1
    precision: Precision = "bf16"
    crop: int = 32
    factor: float | None = 2
    scale: str = "raw"
    space: str = "sd15"
    ema: float = 0.999
    ema_share: float = 1 / 9
    clip: float = 0.0
    discriminator: str = PUBLISHED_DISCRIMINATOR
    discriminator_rate: float = 1e-4
    picture_side: int = 0
    picture_squares: int = 1
    weighting: str = "area"
    notes: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        """Raises `TrainingError` for numbers and words that no training can be done with."""
        for name, least in _AT_LEAST.items():
            if not getattr(self, name) >= least:
                raise TrainingError(f"{name} is {least} or more, not {getattr(self, name)}")
        if not self.ema < 1:
            raise TrainingError(f"ema, a decay, is from 0 to below 1, not {self.ema}")
        if not 0 < self.ema_share <= 1:
            raise TrainingError(f"ema_share is above 0 and up to 1, not {self.ema_share}")
        if self.precision not in get_args(Precision):
            words = " or ".join(get_args(Precision))
            raise TrainingError(f"precision is {words}, not {self.precision!r}")

    def input_scale(self, space: LatentSpace) -> LatentScale:
        """The scale of the network's latents, in a space."""
        if self.scale == "raw":
            return RAW
        if self.scale == "unet":
            return space.unet
        try:
            return LatentScale(float(self.scale))
        except ValueError:
            raise TrainingError(
                f'a scale is "raw", "unet" or a number, not {self.scale!r}'
            ) from None

    def as_json(self) -> dict[str, Any]:
        """All of it, for a file; `from_json` reads it."""
        return dataclasses.asdict(self)


_AT_LEAST = {
    "batch": 1, "accumulation": 1, "processes": 1, "crop": 1, "picture_squares": 1, "steps": 0,
    "warm_up": 0, "clip": 0, "ema": 0, "picture_side": 0,
}  # fmt: skip


def from_json(said: Mapping[str, Any]) -> Recipe:
    """A recipe from what `Recipe.as_json` gave."""
    network = NetworkSpec.from_json(said["network"])
    terms = (Term(**{**term, "options": tuples(term["options"])}) for term in said["terms"])
    rest = {key: value for key, value in said.items() if key not in ("network", "terms")}
    rest["optimizer_options"] = tuples(rest["optimizer_options"])
    return Recipe(network=network, terms=tuple(terms), **rest)


def override(recipe: Recipe, key: str, text: str) -> Recipe:
    """The recipe with one setting another.

    key: a field's name (`steps`), one of the network's (`network.dropout`, `network.dim`), or an
        option of the optimizer (`optimizer.weight_decay`).
    text: the value as people write it: 24, 1e-4, 2,2,2, yes, bf16.
    Raises `TrainingError` for what there is not.
    """
    value = parse(text)
    section, _, name = key.partition(".")
    if section == "network" and name:
        return replace(recipe, network=_override_network(recipe.network, name, value))
    if section == "optimizer" and name:
        options = {**recipe.optimizer_options, name: value}
        return replace(recipe, optimizer_options=options)
    fields = {item.name: item for item in dataclasses.fields(Recipe)}
    fixed = ("name", "network", "terms", "optimizer_options")
    if key not in fields or key in fixed:
        settable = ", ".join(name for name in fields if name not in fixed)
        raise TrainingError(
            f"no setting {key!r}; there are {settable}, network.NAME and optimizer.NAME "
            "(and --loss for the losses)"
        )
    current = getattr(recipe, key)
    if key == "optimizer" and str(value) != current:  # the options were those of another one
        recipe = replace(recipe, optimizer_options={})
    if key == "scale":
        value = str(value)
    elif key == "factor" and value == "any":
        value = None
    else:
        value = _as_type(key, value, type(current) if current is not None else float)
    return replace(recipe, **{key: value})


def _override_network(spec: NetworkSpec, name: str, value: Any) -> NetworkSpec:
    if name == "parameters":
        raise TrainingError("set the network's parameters one by one: network.dim=24")
    if name == "architecture":  # the parameters were those of another network
        return NetworkSpec(str(value))
    own = {item.name: item for item in dataclasses.fields(NetworkSpec)}
    if name in own:
        return replace(spec, **{name: _as_type(name, value, type(getattr(spec, name)))})
    return replace(spec, parameters={**spec.parameters, name: value})


def _as_type(key: str, value: Any, wanted: type) -> Any:
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise TrainingError(f"{key} is to be {_WORDS.get(wanted, wanted.__name__)}, not {value!r}")
    return value


_WORDS = {int: "a whole number", float: "a number", bool: "yes or no", str: "a word"}


def parse(text: str) -> Any:
    """A value as people write it on a command line."""
    word = text.strip()
    if word.lower() in ("true", "yes", "on"):
        return True
    if word.lower() in ("false", "no", "off"):
        return False
    if word.lower() == "none":
        return None
    try:
        value = ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word
    return tuple(value) if isinstance(value, list) else value


def parse_term(text: str) -> Term:
    """A loss as people write it: `l1=0.08`, `fft=1,start=1000,on=picture,window=11`.

    Raises `TrainingError` for what is no such thing.
    """
    first, *rest = [part.strip() for part in text.split(",")]
    loss, _, weight = first.partition("=")
    said: dict[str, Any] = {}
    for part in rest:
        name, equals, value = part.partition("=")
        if not equals:
            raise TrainingError(f"--loss {text}: {part!r} should be NAME=VALUE")
        said[name.strip()] = parse(value)
    try:
        start, on = int(said.pop("start", 0)), said.pop("on", "latent")
        if on not in ("latent", "picture"):
            raise ValueError("on=latent or on=picture")
        return Term(loss, float(weight or 1), start, on, said)
    except (ValueError, TypeError) as error:
        raise TrainingError(
            f"--loss {text}: write NAME=WEIGHT, then start=STEP, on=picture and the loss's own "
            f"options, by commas ({error})"
        ) from error


def parse_settings(pairs: Iterable[str]) -> list[tuple[str, str]]:
    """`key=value` each."""
    found = []
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise TrainingError(f"--set {pair}: write KEY=VALUE, such as --set network.dim=24")
        found.append((key.strip(), value))
    return found
