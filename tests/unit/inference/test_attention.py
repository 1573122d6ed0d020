"""The two ways of computing attention, for CPUs and for GPUs, are one attention. What the first promises beyond that is
in test_invariance.py; the second has no GPU here, but its arithmetic is torch's on any device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from services.inference.engine.attention import Group, _dense, _fused

SIZE = 16
DIM, VALUE_DIM = 8, 12


def group(first: list[int], queries: int) -> Group:
    """Sequences of which so many tokens came before the step, each on blocks of its own."""
    pages = -(-(max(first) + queries) // SIZE)
    blocks = torch.arange(len(first) * pages).view(len(first), pages)
    return Group(blocks, torch.tensor(first), queries, SIZE, clear=0)


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize(("first", "queries"), [([0, 17, 40], 1), ([5], 30), ([0, 7], 4)])
def test_the_attention_for_gpus_gives_what_that_for_cpus_does(
    first: list[int], queries: int, members: int, window: int | None
) -> None:
    heads, one = 2, group(first, queries)
    hidden = one.hidden(window)
    asked = values(len(first), queries, heads, members, DIM)
    keys = values(len(first) * heads, hidden.shape[-1], DIM)
    held = values(len(first) * heads, hidden.shape[-1], VALUE_DIM)
    fused = _fused(asked, keys, held, hidden, scale=0.3)
    dense = _dense(asked, keys, held, hidden, scale=0.3, rows=4, softcap=None, sinks=None)
    assert fused.shape == (len(first) * queries, heads * members, VALUE_DIM)
    assert torch.allclose(fused, dense, atol=1e-5)


def test_a_token_sees_itself_and_what_came_before_it_within_the_window() -> None:
    one = group([2, 0], 2)
    assert (~one.hidden(None)).sum(-1).tolist() == [[3, 4], [1, 2]]
    assert (~one.hidden(2)).sum(-1).tolist() == [[2, 2], [1, 2]]
