"""Compiled layers compute what plain ones do, for steps of any size, with code for a few sizes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from services.common.settings import InferenceSettings
from services.inference.engine.compile import step_sizes
from services.inference.engine.errors import UnsupportedModel
from services.inference.engine.load import load
from services.inference.engine.schedule import Work
from services.inference.engine.sequence import Sequence
from tests.unit.inference.tiny import save_tiny


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def plan(loaded: Any, *sizes: tuple[int, int]) -> list[Work]:
    works = []
    for done, count in sizes:
        ids = [(11 * at + done) % loaded.vocabulary for at in range(done + count)]
        blocks = loaded.pool.take(loaded.pool.blocks_for(len(ids)))
        works.append(Work(Sequence(ids, len(ids), 1, blocks=blocks, computed=done), count))
    return works


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_step_of_any_size_computes_what_it_does_without_and_compiles_nothing_anew(
    family: str, tmp_path: Path
) -> None:
    loaded = load(str(save_tiny(tmp_path, family)), InferenceSettings(kv_blocks=64, device="cpu"))
    runner: Any = loaded.runner
    steps = [plan(loaded, *sizes) for sizes in [[(0, 1)], [(0, 13)], [(20, 1)] * 3, [(40, 1), (2, 1), (0, 9)]]]
    expected = [runner.forward(works) for works in steps for _ in range(2)]
    counter = CompileCounter()
    runner.compile(16, backend=counter)
    made = counter.frame_count
    assert made > 0
    for works, logits in zip([works for works in steps for _ in range(2)], expected, strict=True):
        torch.testing.assert_close(runner.forward(works), logits, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == made


@pytest.mark.parametrize(("most", "sizes"), [(1, [1]), (5, [1, 2, 4, 8]), (16, [1, 2, 4, 8, 16])])
def test_a_step_is_padded_to_less_than_twice_its_size(most: int, sizes: list[int]) -> None:
    assert step_sizes(most) == sizes


def test_compiling_and_quantising_exclude_each_other(tiny_folder: Path) -> None:
    settings = InferenceSettings(kv_blocks=64, device="cpu", quantization="int8", compile=True)
    with pytest.raises(UnsupportedModel, match="compiled"):
        load(str(tiny_folder), settings)
