"""A forward pass without Python: the operations of one are recorded, and run again from C++.

On a CPU, half of a small model's step is Python that calls some 2,000 short operations. TorchScript records them once,
through transformers' modelling code as it is, for any number of rows. It computes the same operations in the same
order, hence the same bits; a model whose code looks at values, and so would have been recorded wrongly, says so while
it is recorded, or gives other bits on other examples, and stays with Python.

TorchScript is deprecated, and torch is pinned to a version that has it. Its successors either compile, which takes a
C++ compiler in every pod and made the step slower here, or run from Python again.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, jit
from torch.jit import TracerWarning, optimized_execution  # type: ignore[attr-defined]

from services.inference.engine.forward import Forward
from services.inference.engine.simplify import simplify

log = logging.getLogger("forebay.trace")

Code = TypeVar("Code")
Compute = Callable[..., Tensor]
Inputs = tuple[Tensor, ...]


def scripted(code: Code) -> Code:
    """A function or module that TorchScript runs."""
    with _quiet():
        return cast("Code", jit.script(code))


@torch.inference_mode()
def traced(forward: Forward, examples: Iterable[Inputs]) -> Compute | None:
    """`forward` recorded, None where that gives other bits with any of the examples. The first two have other numbers
    of everything that a step has."""
    first, second, *_ = examples = list(examples)
    plain = forward.attend_groups
    forward.attend_groups = scripted(plain)  # has loops over what only the step knows
    try:
        with _quiet(), optimized_execution(False):
            warnings.simplefilter("error", TracerWarning)
            # torch itself looks at sizes of weights, which stay what they are.
            warnings.filterwarnings("ignore", category=TracerWarning, module=r"torch\.")
            recorded, again = _recorded(forward, first), _recorded(forward, second)
            simplify(recorded.graph, again.graph)
    except Exception as error:
        _declined(f"{type(error).__name__}: {error}")
        return None
    finally:
        forward.attend_groups = plain

    def compute(*inputs: Tensor) -> Tensor:
        with optimized_execution(False):  # would compile anew for each new shape
            result: Tensor = recorded(*inputs)
        return result

    try:
        same = all(torch.equal(compute(*inputs), forward(*inputs)) for inputs in examples)
    except RuntimeError as error:
        _declined(f"what was recorded fails: {error}")
        return None
    if not same:
        _declined("what was recorded computes something else")
    return compute if same else None


def _recorded(forward: Forward, example: Inputs) -> Any:
    return jit.trace(forward, example, check_trace=False)  # type: ignore[no-untyped-call]


def _declined(reason: str) -> None:
    log.info("computes by Python", extra={"reason": reason[:300]})


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated, and whatever it touches while it looks around
        yield
