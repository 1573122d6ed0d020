"""The layers of a model compiled by `torch.compile`, in static shapes, which on a GPU become CUDA graphs.

A step has as many tokens as it has; compiled code wants few sizes. So a step is padded to the next of some sizes, all
of which are computed while the model loads. Attention stays as it is, between two compiled pieces of each layer: it
looks at the step's own tokens alone, and what fills up is computed for nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from collections.abc import Sequence as Listing
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.inference.engine.attention import Step
from services.inference.engine.forward import Forward
from services.inference.engine.trace import Compute

Backend = str | Callable[..., Any]


def step_sizes(most: int) -> list[int]:
    """Powers of two up to the first that holds `most` tokens."""
    return [1 << power for power in range((most - 1).bit_length() + 1)]


def compiled(forward: Forward, sizes: Listing[int], backend: Backend = "inductor") -> Compute:
    """`forward` with compiled layers, for steps of at most the last of these sizes.

    Args:
        backend: of `torch.compile`; with its own one, a GPU's kernels are recorded as CUDA graphs.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * len(sizes))
    mode = "reduce-overhead" if backend == "inductor" else None
    for layer in _layers(forward.model):
        layer.compile(backend=backend, mode=mode, dynamic=False)
    forward.attention = _Padded()

    def compute(ids: Tensor, positions: Tensor, *rest: Tensor) -> Tensor:
        tokens = ids.shape[1]
        padding = (0, sizes[bisect_left(sizes, tokens)] - tokens)
        result: Tensor = forward(functional.pad(ids, padding), functional.pad(positions, padding), *rest)
        return result

    return compute


def _layers(model: nn.Module) -> list[nn.Module]:
    """The model's layers, by the name that its makers gave to what must not be split; else all of it as one."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names] or [model]


class _Padded:
    """The attention of a padded step. One object for all steps: compiled code must know it again."""

    def __init__(self) -> None:
        self._step: Step | None = None
        self._attend: Callable[..., Tensor] = torch.compiler.disable(self._own)  # type: ignore[no-untyped-call]

    def __call__(self, step: Step) -> Callable[..., Tensor]:
        self._step = step
        return self._attend

    def _own(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        assert self._step is not None
        own = len(self._step.layout.slots)
        result = self._step.attend(module, query[:, :, :own], key[:, :, :own], value[:, :, :own], **options)
        return functional.pad(result, (0, 0, 0, 0, 0, query.shape[2] - own))
