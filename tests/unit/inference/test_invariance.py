"""A request's logits are the same bits whatever else is in the batch, whenever others come and go, however its prompt
is cut into chunks, and whether its tokens were generated one by one or came all at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common.settings import InferenceSettings
from services.inference.engine.load import Loaded, load
from services.inference.engine.schedule import Work
from services.inference.engine.sequence import Sequence
from tests.unit.inference.tiny import save_tiny

FAMILIES = ["llama", "qwen3", "gemma2", "gpt2"]
LENGTH = 150
TokenIds = list[int]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Loaded]:
    """A tiny model of a family, loaded once for each quantization."""

    @cache
    def loaded(family: str, quantization: str) -> Loaded:
        folder = save_tiny(tmp_path_factory.mktemp("invariance") / family, family)
        settings = InferenceSettings(device="cpu", kv_blocks=128, quantization=quantization)  # type: ignore[arg-type]
        return load(str(folder), settings)

    return loaded


def last_logits(
    loaded: Loaded, ids: TokenIds, chunks: list[int], neighbours: list[tuple[TokenIds, int, int]]
) -> torch.Tensor:
    """The logits after `ids`, computed in chunks of these sizes, the rest token by token, beside neighbours.

    Args:
        neighbours: their ids, the step in which they join, and how many tokens of theirs a step computes.
    """
    pool = loaded.pool
    subject = Sequence(list(ids), len(ids), 1, blocks=pool.take(pool.blocks_for(len(ids))))
    others = [Sequence(list(one), len(one), 1, blocks=pool.take(pool.blocks_for(len(one)))) for one, _, _ in neighbours]
    sizes = iter(chunks)
    step = 0
    logits = torch.empty(0)
    while subject.pending:
        plan = [Work(subject, min(next(sizes, 1), subject.pending))]
        for other, (_, joins, count) in zip(others, neighbours, strict=True):
            if step >= joins and other.pending:
                plan.insert(step % len(plan), Work(other, min(count, other.pending)))
        result = loaded.runner.forward(plan)
        rows = [work.sequence for work in plan if work.samples]
        if subject in rows:
            logits = result[rows.index(subject)].clone()
        for work in plan:
            work.sequence.computed += work.count
        step += 1
    for sequence in (subject, *others):
        pool.give_back(sequence.blocks)
    return logits


texts = st.lists(st.integers(0, 255), min_size=2, max_size=LENGTH)


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=texts,
    chunks=st.lists(st.integers(1, 70), max_size=6),
    neighbours=st.lists(st.tuples(texts, st.integers(0, 5), st.integers(1, 40)), max_size=6),
)
def test_logits_do_not_depend_on_neighbours_or_chunks(
    model: Callable[[str, str], Loaded],
    family: str,
    quantization: str,
    ids: TokenIds,
    chunks: list[int],
    neighbours: list[tuple[TokenIds, int, int]],
) -> None:
    loaded = model(family, quantization)
    alone = last_logits(loaded, ids, [len(ids)], [])
    assert torch.equal(alone, last_logits(loaded, ids, chunks, neighbours))
