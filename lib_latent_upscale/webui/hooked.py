"""A latent that answers the host's one call of `interpolate` itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

Answer = Callable[[Tensor, tuple[int, int]], Tensor]


class HookedLatent(Tensor):
    """Stands in for the latent that a hires pass is given.

    `torch.nn.functional.interpolate(latent, size=...)` on it gives `answer(latent, size)`.
    Every other function sees the plain tensor and gives plain tensors, so that the hook ends
    with that one call and nothing else is touched: no function of torch is replaced, and live
    previews, which interpolate at the same time in another thread, work on other tensors.
    """

    plain: Tensor
    answer: Answer

    @classmethod
    def of(cls, latent: Tensor, answer: Answer) -> HookedLatent:
        latent = unhook(latent)
        hooked = latent.as_subclass(cls)
        hooked.plain = latent
        hooked.answer = answer
        return hooked

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # An extension may have put its own function in interpolate's place, and call the
        # original: torch then names either of them here.
        if func is F.interpolate or getattr(func, "__name__", "") == "interpolate":
            latent = args[0] if args else kwargs.get("input")
            size = args[1] if len(args) > 1 else kwargs.get("size")
            if isinstance(latent, cls) and size is not None:
                height, width = (size, size) if isinstance(size, int) else size
                return latent.answer(latent.plain, (int(height), int(width)))
        return func(*unhook(args), **unhook(kwargs))


def unhook(value: Any) -> Any:
    """The plain tensor of a hooked one; the same within tuples, lists and dicts."""
    if isinstance(value, HookedLatent):
        return value.plain
    if type(value) in (tuple, list):
        return type(value)(map(unhook, value))
    if type(value) is dict:
        return {key: unhook(item) for key, item in value.items()}
    return value
