"""The sampler: each row by its own rules, whatever stands beside it."""

from __future__ import annotations

import collections

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.engine.sample import sample, uniform
from services.inference.engine.sequence import Sampling

GREEDY = Sampling(temperature=0)
LOGITS = torch.tensor([0.0, 1.0, 2.0, 3.0])


def draws(rule: Sampling, logits: torch.Tensor = LOGITS, count: int = 2000) -> collections.Counter[int]:
    return collections.Counter(sample(logits.expand(count, -1), [rule] * count, range(count)))


def test_temperature_zero_takes_the_likeliest() -> None:
    assert sample(torch.stack([LOGITS, LOGITS.flip(0)]), [GREEDY, GREEDY], [0, 0]) == [3, 0]


def test_tokens_are_drawn_by_their_probability() -> None:
    found = draws(Sampling(seed=5), count=20_000)
    for token, probability in enumerate(LOGITS.softmax(-1).tolist()):
        assert found[token] / 20_000 == pytest.approx(probability, abs=0.015)


def test_low_temperature_prefers_the_likeliest() -> None:
    assert draws(Sampling(temperature=0.2))[3] > draws(Sampling(temperature=1.5))[3]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_leaves_k_tokens(k: int) -> None:
    assert set(draws(Sampling(top_k=k))) == set(range(4 - k, 4))


@pytest.mark.parametrize(("p", "left"), [(0.5, {3}), (0.7, {2, 3}), (0.95, {1, 2, 3}), (1.0, {0, 1, 2, 3})])
def test_top_p_leaves_the_likeliest_that_reach_the_mass(p: float, left: set[int]) -> None:
    assert set(draws(Sampling(top_p=p))) == left


def test_top_p_looks_beyond_the_first_candidates_when_the_distribution_is_flat() -> None:
    found = draws(Sampling(top_p=0.9), torch.linspace(0, 0.01, 4000))
    assert len(found) > 1000
    assert min(found) > 300


def test_a_top_k_larger_than_the_vocabulary_leaves_all() -> None:
    assert set(draws(Sampling(top_k=100))) == {0, 1, 2, 3}


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])
    assert set(draws(Sampling(), logits)) == {1, 3}


@given(seed=st.integers(-(2**63), 2**64 - 1), index=st.integers(0, 2**31), others=st.integers(0, 6), place=st.data())
@settings(max_examples=60, deadline=None)
def test_a_row_is_drawn_the_same_alone_and_in_company(seed: int, index: int, others: int, place: st.DataObject) -> None:
    rule = Sampling(temperature=0.9, top_k=20, top_p=0.9, seed=seed)
    logits = torch.randn(others + 1, 50, generator=torch.Generator().manual_seed(index))
    at = place.draw(st.integers(0, others))
    rules = [Sampling(temperature=1.3, seed=i) if i % 2 else GREEDY for i in range(others + 1)]
    rules[at] = rule
    together = sample(logits, rules, [index] * (others + 1))
    assert together[at] == sample(logits[at : at + 1], [rule], [index])[0]


@given(seed=st.integers(-(2**63), 2**63 - 1), index=st.integers(0, 2**31))
def test_the_number_of_a_draw_depends_on_seed_and_index_only(seed: int, index: int) -> None:
    number = uniform(seed, index)
    assert 0 <= number < 1
    assert number == uniform(seed, index)
    assert number != uniform(seed, index + 1)


def test_half_precision_logits_are_drawn_too() -> None:
    assert sample(LOGITS[None].bfloat16(), [Sampling(top_k=1)], [0]) == [3]
