"""Which modules of a model can be computed together, or in one operation instead of several: found by running it once.

Nothing here knows an architecture. What is swapped is compared with what it replaces, and stays where it differs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.inference.engine.pack import can_pack


class Read(NamedTuple):
    """What was seen while a model read something."""

    families: list[list[nn.Module]]
    """The linears that read the very same tensor one after the other, in the order in which they do."""
    loudest: dict[nn.Module, Tensor]
    """Of every linear that was called, the largest absolute value of each input, [in]."""
    power: dict[nn.Module, Tensor]
    """Of the same, the mean square of each input in the last call, [in]."""


def siblings(model: nn.Module, run: Callable[[], object]) -> Read:
    """Watches the linears of a model.

    Args:
        run: runs the model on something.
    """
    calls: list[tuple[Tensor, nn.Module]] = []  # the tensors are kept, so that none of them is another's successor
    with ExitStack() as hooks:
        for module in model.modules():
            if can_pack(module):
                note = lambda linear, inputs: calls.append((inputs[0], linear))  # noqa: E731
                hooks.callback(module.register_forward_pre_hook(note).remove)
        run()
    families: list[list[nn.Module]] = []
    last: Tensor | None = None
    for values, linear in calls:
        if values is last:
            families[-1].append(linear)
        else:
            families.append([linear])
        last = values
    seen = [linear for family in families for linear in family]
    # A linear called twice, as in layers that share weights, belongs to no one family.
    found = [family for family in families if len(family) > 1 and all(seen.count(linear) == 1 for linear in family)]
    loudest: dict[nn.Module, Tensor] = {}
    power: dict[nn.Module, Tensor] = {}
    for values, linear in calls:
        rows = values.reshape(-1, values.shape[-1])
        loud = rows.abs().amax(0)
        loudest[linear] = torch.maximum(loud, loudest.get(linear, loud))
        power[linear] = rows.square().mean(0)
    return Read(found, loudest, power)


class FusedRMSNorm(nn.Module):
    """torch's own RMS norm, in the place of one that is written as six operations."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eps = eps

    def forward(self, values: Tensor) -> Tensor:
        """[…, features] to the same."""
        return functional.rms_norm(values, self.weight.shape, self.weight, self.eps)


def fuse_norms(model: nn.Module) -> None:
    """Swaps the float32 RMS norms of a model for torch's own, where that computes the same."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm") and (fused := _fused(child)) is not None:
                setattr(module, name, fused)


def _fused(norm: nn.Module) -> FusedRMSNorm | None:
    weight = getattr(norm, "weight", None)
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    plain = len(inspect.signature(norm.forward).parameters) == 1
    if not (plain and isinstance(weight, Tensor) and weight.dim() == 1 and isinstance(eps, float)):
        return None
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return None
    values = torch.linspace(-3, 3, 5 * len(weight)).view(5, -1)
    expected = norm(values)
    for candidate in (weight, 1 + weight):  # Gemma's norms keep the weight's distance from one
        fused = FusedRMSNorm(candidate.detach(), eps)
        if torch.allclose(fused(values), expected, rtol=1e-5, atol=1e-6):
            return fused
    return None
