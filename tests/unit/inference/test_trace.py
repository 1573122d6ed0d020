"""A forward pass without Python gives the same bits as the one with it, or is not used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from services.common.settings import InferenceSettings
from services.inference.engine.attention import attend_groups
from services.inference.engine.load import Loaded, load
from services.inference.engine.run import Runner
from services.inference.engine.schedule import Work
from services.inference.engine.sequence import Sequence
from services.inference.engine.trace import traced
from tests.unit.inference.tiny import save_tiny

FAMILIES = ["llama", "qwen3", "gemma3_text", "gemma2", "deepseek_v3", "gpt2", "gpt_oss"]


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def plan(loaded: Loaded, *sizes: tuple[int, int]) -> list[Work]:
    """Works on sequences of so many computed and so many pending tokens, each with blocks of its own."""
    works = []
    for done, count in sizes:
        ids = [(11 * at + done) % loaded.vocabulary for at in range(done + count)]
        blocks = loaded.pool.take(loaded.pool.blocks_for(len(ids)))
        works.append(Work(Sequence(ids, len(ids), 1, blocks=blocks, computed=done), count))
    return works


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_of_any_shape_give_the_bits_that_python_gives(family: str, quantization: str, tmp_path: Path) -> None:
    settings = InferenceSettings(kv_blocks=64, device="cpu", quantization=quantization)
    loaded = load(str(save_tiny(tmp_path, family)), settings)
    runner: Any = loaded.runner
    assert runner._quick is not None
    for sizes in [[(0, 1)], [(0, 40)], [(40, 1)], [(3, 1)] * 7, [(150, 1), (2, 1), (0, 9), (30, 2), (31, 1)]]:
        works = plan(loaded, *sizes)
        runner.forward(works)  # so that there are keys and values
        without = runner.forward(works)
        compute, runner._quick = runner._quick, None
        assert torch.equal(without, runner.forward(works))
        runner._quick = compute
        loaded.pool.give_back([block for work in works for block in work.sequence.blocks])


class Looking(nn.Module):
    """Stands in for a forward pass whose code looks at a value."""

    attend_groups = staticmethod(attend_groups)

    def forward(self, values: Tensor) -> Tensor:
        return values * 2 if values.sum() > 0 else values


class Forgetful(nn.Module):
    """Stands in for one that takes a number out of a tensor behind the recorder's back."""

    attend_groups = staticmethod(attend_groups)

    def forward(self, values: Tensor) -> Tensor:
        return values * values.numpy().max()


@pytest.mark.parametrize("kind", [Looking, Forgetful])
def test_code_that_looks_at_values_stays_with_python(kind: type[nn.Module]) -> None:
    forward: Any = kind()
    assert traced(forward, [(torch.ones(3),), (-torch.ones(3),), (torch.arange(5.0),)]) is None
    assert forward.attend_groups is attend_groups


def test_a_step_with_an_adapter_goes_by_python_and_one_without_does_not(tiny_folder: Path) -> None:
    loaded = load(str(tiny_folder), InferenceSettings(kv_blocks=64, device="cpu"))
    runner: Any = loaded.runner
    taken = []
    traced_compute = runner._quick
    runner._quick = lambda *inputs: (taken.append("traced"), traced_compute(*inputs))[1]
    runner._adapters = SimpleNamespace(begin=lambda works: any(work.sequence.adapter for work in works))
    works = plan(loaded, (0, 3))
    runner.forward(works)
    works[0].sequence.adapter = "some"
    runner.forward(works)
    assert taken == ["traced"]
    assert isinstance(runner, Runner)
