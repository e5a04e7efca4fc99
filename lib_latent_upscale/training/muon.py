"""Muon for a network's inner weights, AdamW for the rest.

Source: K. Jordan et al., Muon: An optimizer for hidden layers in neural networks (2024), with its
coefficients of the iteration; the updates' size as in J. Liu et al., Muon is Scalable for LLM
Training (2025), so that one learning rate is right for both parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

INNER = 32
"""A weight is an inner one where it has at least so many inputs and outputs: the first and last
layers' are not."""

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_LIKE_ADAM = 0.2
"""The root mean square of an AdamW update, in learning rates."""


class Muon(torch.optim.Optimizer):
    """Makes the update of each inner weight, seen as a matrix of outputs by inputs, orthogonal.

    momentum: of the gradients of inner weights, by Nesterov's rule.
    betas, eps: of AdamW, for all other parameters.
    weight_decay: of inner weights; the others have none.
    iterations: of Newton and Schulz, towards the nearest orthogonal matrix.
    centered: whether an update of an inner weight sums up to zero over its inputs (gradient
        centralization, Yong et al., ECCV 2020). Behind a ReLU inputs are positive, so a sum that is
        not zero moves an output everywhere at once, until it is never above zero and learns no
        more (see `idle`).
    rest: the learning rate of all other parameters, in parts of `lr`.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        iterations: int = 5,
        centered: bool = False,
        rest: float = 1.0,
    ) -> None:
        if not (lr >= 0 and 0 <= momentum < 1 and iterations > 0 and rest >= 0):
            raise ValueError(
                f"Muon: lr {lr}, momentum {momentum}, {iterations} iterations, rest {rest}"
            )
        everything = list(params)
        inner = [parameter for parameter in everything if is_inner(parameter)]
        others = [parameter for parameter in everything if not is_inner(parameter)]
        groups = [{"params": some, "inner": some is inner} for some in (inner, others) if some]
        defaults = {
            "lr": lr, "momentum": momentum, "betas": betas, "eps": eps,
            "weight_decay": weight_decay, "iterations": iterations, "centered": centered,
            "rest": rest,
        }  # fmt: skip
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update from the gradients that are there."""
        if closure is not None:
            raise NotImplementedError("Muon takes no closure")
        for group in self.param_groups:
            update = self._orthogonal if group["inner"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update(parameter, parameter.grad, group)
        return None

    def _orthogonal(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        mean = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(mean, group["momentum"])
        ahead = ahead.flatten(1)
        if group["centered"]:
            ahead = ahead - ahead.mean(dim=1, keepdim=True)
        matrix = orthogonal(ahead, group["iterations"])
        size = _LIKE_ADAM * max(matrix.shape) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(matrix.view(parameter.shape), alpha=-group["lr"] * size)

    def _adam(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["mean"], state["square"] = (
                torch.zeros_like(parameter),
                torch.zeros_like(parameter),
            )
        state["step"] += 1
        first, second = group["betas"]
        mean = state["mean"].lerp_(gradient, 1 - first)
        square = state["square"].lerp_(gradient.square(), 1 - second)
        width = (square / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
        rate = group["rest"] * group["lr"] / (1 - first ** state["step"])
        parameter.addcdiv_(mean, width, value=-rate)


def is_inner(parameter: Tensor) -> bool:
    """Whether a parameter is the weight of an inner layer."""
    return parameter.ndim >= 2 and min(parameter.shape[:2]) >= INNER


def orthogonal(matrix: Tensor, iterations: int = 5) -> Tensor:
    """About the nearest matrix with orthogonal rows or columns; singular values of 0.7 to 1.2.

    Computed in bfloat16 where that suffices, for (n, m) of any kind; gives float32.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.T if tall else x).float()
