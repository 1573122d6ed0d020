"""The sampler: each row by its own rules, whatever stands beside it."""

from __future__ import annotations

import collections
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from services.inference.engine.sample import BLOCK, Draw, sample, uniform
from services.inference.engine.sequence import Sampling, Sequence

GREEDY = Sampling(temperature=0)
LOGITS = torch.tensor([0.0, 1.0, 2.0, 3.0])
PROMPT = [1, 2]

rules = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 7, 60, 1000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.02, 0.4]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    presence_penalty=st.sampled_from([0.0, 0.7, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.4, -0.3]),
    logit_bias=st.sampled_from([(), ((3, 5.0), (250, -100.0)), ((299, 2.5),)]),
    min_tokens=st.sampled_from([0, 0, 3]),
    ends=st.sampled_from([frozenset[int](), frozenset({4, 290})]),
    logprobs=st.sampled_from([None, 0, 4]),
    seed=st.integers(-(2**63), 2**63 - 1),
)


def sequence(rule: Sampling, answer: list[int] | None = None) -> Sequence:
    return Sequence(PROMPT + (answer or []), len(PROMPT), 10_000, rule)


def draw_one(rule: Sampling, logits: torch.Tensor = LOGITS, answer: list[int] | None = None) -> Draw:
    return sample(logits[None], [sequence(rule, answer)])[0]


def draws(rule: Sampling, logits: torch.Tensor = LOGITS, count: int = 2000) -> collections.Counter[int]:
    """How often each token is drawn, each time by another seed."""
    rows = [sequence(replace(rule, seed=(rule.seed + number) % 2**63)) for number in range(count)]
    return collections.Counter(draw.token for draw in sample(logits.expand(count, -1), rows))


def random_logits(rows: int, vocabulary: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def reference_scores(logits: torch.Tensor, row: Sequence) -> list[float]:
    """Bias and penalties, slowly and plainly."""
    rule, answer = row.sampling, row.ids[row.prompt_length :]
    scores = logits.tolist()
    for token, bias in rule.logit_bias:
        scores[token] += bias
    for token in set(row.ids):
        scores[token] *= rule.repetition_penalty if scores[token] < 0 else 1 / rule.repetition_penalty
    for token, count in collections.Counter(answer).items():
        scores[token] -= rule.presence_penalty + rule.frequency_penalty * count
    for token in rule.ends if len(answer) < rule.min_tokens else ():
        scores[token] = -math.inf
    return [float(score) for score in scores]


def reference_probabilities(scores: list[float], rule: Sampling) -> torch.Tensor:
    """The distribution that transformers' own warpers leave, in the order in which its `generate` applies them."""
    warpers: list[Any] = [TemperatureLogitsWarper(float(rule.temperature))]
    if rule.top_k > 0:
        warpers.append(TopKLogitsWarper(rule.top_k))
    if rule.top_p < 1:
        warpers.append(TopPLogitsWarper(rule.top_p))
    if rule.min_p > 0:
        warpers.append(MinPLogitsWarper(rule.min_p))
    none = torch.zeros(1, 0, dtype=torch.long)
    warped = LogitsProcessorList(warpers)(none, torch.tensor([scores], dtype=torch.float64))  # type: ignore[arg-type]
    return warped.softmax(-1)[0]


def test_temperature_zero_takes_the_likeliest() -> None:
    both = sample(torch.stack([LOGITS, LOGITS.flip(0)]), [sequence(GREEDY), sequence(GREEDY)])
    assert [draw.token for draw in both] == [3, 0]


@pytest.mark.parametrize("vocabulary", [4, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 5 * BLOCK + 3])
def test_the_likeliest_is_found_wherever_it_stands_and_the_first_of_equals(vocabulary: int) -> None:
    for place in {0, 1, vocabulary // 2, vocabulary - 2, vocabulary - 1}:
        logits = torch.full((vocabulary,), -5.0)
        logits[place:] = -1.0
        assert draw_one(GREEDY, logits).token == place


@pytest.mark.parametrize("vocabulary", [4, 2 * BLOCK + 5])
def test_tokens_are_drawn_by_their_probability(vocabulary: int) -> None:
    logits = torch.linspace(0, 3, vocabulary)
    found = draws(Sampling(seed=5), logits, count=20_000)
    expected = logits.softmax(-1)
    for part in torch.arange(vocabulary).chunk(4):
        drawn = sum(found[token] for token in part.tolist())
        assert drawn / 20_000 == pytest.approx(expected[part].sum().item(), abs=0.015)


def test_low_temperature_prefers_the_likeliest() -> None:
    assert draws(Sampling(temperature=0.2))[3] > draws(Sampling(temperature=1.5))[3]


def test_the_lowest_temperature_is_as_good_as_none() -> None:
    assert set(draws(Sampling(temperature=1e-30), LOGITS * 1e6, count=100)) == {3}


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_leaves_k_tokens(k: int) -> None:
    assert set(draws(Sampling(top_k=k))) == set(range(4 - k, 4))


@pytest.mark.parametrize(("p", "left"), [(0.5, {3}), (0.7, {2, 3}), (0.95, {1, 2, 3}), (1.0, {0, 1, 2, 3})])
def test_top_p_leaves_the_likeliest_that_reach_the_mass(p: float, left: set[int]) -> None:
    assert set(draws(Sampling(top_p=p))) == left


@pytest.mark.parametrize(("p", "left"), [(0.9, {3}), (0.3, {2, 3}), (0.1, {1, 2, 3}), (0.0, {0, 1, 2, 3})])
def test_min_p_leaves_what_has_that_part_of_the_largest_probability(p: float, left: set[int]) -> None:
    assert set(draws(Sampling(min_p=p))) == left


def test_top_p_reaches_far_where_the_distribution_is_flat() -> None:
    found = draws(Sampling(top_p=0.9), torch.linspace(0, 0.01, 4000))
    assert len(found) > 1000
    assert min(found) > 300


def test_a_top_k_larger_than_the_vocabulary_leaves_all() -> None:
    assert set(draws(Sampling(top_k=100))) == {0, 1, 2, 3}


@pytest.mark.parametrize("rule", [Sampling(), Sampling(top_p=0.99), Sampling(top_k=3), Sampling(min_p=0.01)])
def test_a_token_of_probability_zero_is_never_drawn(rule: Sampling) -> None:
    logits = torch.full((3 * BLOCK,), -torch.inf)
    logits[[5, 2 * BLOCK + 7]] = 0.0
    assert set(draws(rule, logits)) == {5, 2 * BLOCK + 7}


@given(rule=rules, answer=st.lists(st.integers(0, 299), max_size=12), seed=st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_a_row_is_drawn_as_the_plain_reference_would(rule: Sampling, answer: list[int], seed: int) -> None:
    row, logits = sequence(rule, answer), random_logits(1, 300, seed)
    token = sample(logits, [row])[0].token
    scores = reference_scores(logits[0], row)
    if rule.temperature == 0:
        assert scores[token] == pytest.approx(max(scores), abs=1e-4)
        return
    cumulative = reference_probabilities(scores, rule).cumsum(-1)
    number = uniform(rule.seed, len(answer))
    before = cumulative[token - 1].item() if token else 0.0
    assert before - 1e-4 <= number <= cumulative[token].item() + 1e-4


@given(rule=rules, seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_what_is_drawn_is_what_transformers_own_filters_leave(rule: Sampling, seed: int) -> None:
    bare = Sampling(rule.temperature or 1.0, rule.top_k, rule.top_p, rule.min_p, seed=rule.seed)
    logits = random_logits(1, 300, seed)[0]
    expected = reference_probabilities(logits.tolist(), bare)
    found = draws(bare, logits, count=3000)
    # A token at the very edge of a mass may fall on either side; it is one of the least likely of those left.
    assert sum(count for token, count in found.items() if expected[token] == 0) <= 3000 * 0.01
    for token in expected.topk(3).indices.tolist():
        assert found[token] / 3000 == pytest.approx(expected[token].item(), abs=0.06)


def test_the_repetition_penalty_is_transformers_own() -> None:
    logits, answer = random_logits(1, 300, seed=1), [7, 7, 9, 250]
    theirs = RepetitionPenaltyLogitsProcessor(1.4)(torch.tensor([PROMPT + answer]), logits.clone())
    ours = reference_scores(logits[0], sequence(Sampling(repetition_penalty=1.4), answer))
    assert theirs[0].tolist() == pytest.approx(ours, rel=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_repetition_penalty_counts_prompt_and_answer_and_makes_both_signs_less_likely(sign: int) -> None:
    logits = torch.tensor([0.0, 4.0, 4.1, 3.9]) if sign > 0 else torch.tensor([-9.0, -3.9, -3.8, -4.0])
    assert draw_one(GREEDY, logits).token == 2
    assert draw_one(Sampling(temperature=0, repetition_penalty=1.2), logits).token == 3


def test_presence_and_frequency_penalties_count_the_answer_alone() -> None:
    logits = torch.tensor([0.0, 2.0, 1.9, 1.5])
    presence, frequency = Sampling(temperature=0, presence_penalty=0.3), Sampling(temperature=0, frequency_penalty=0.3)
    assert draw_one(presence, logits).token == 1  # in the prompt
    assert draw_one(presence, logits, [1]).token == 2
    assert draw_one(presence, logits, [1, 2, 2]).token == 1
    assert draw_one(frequency, logits, [1, 2, 2]).token == 1
    assert draw_one(frequency, logits, [1, 1, 2, 2]).token == 3


def test_a_bias_makes_a_token_certain_or_impossible_also_for_the_greedy() -> None:
    assert draw_one(Sampling(temperature=0, logit_bias=((0, 100.0),))).token == 0
    assert draw_one(Sampling(temperature=0, logit_bias=((3, -100.0),))).token == 2
    assert set(draws(Sampling(logit_bias=((1, 100.0),)), count=200)) == {1}


def test_what_ends_an_answer_is_not_drawn_before_the_answer_is_long_enough() -> None:
    greedy = Sampling(temperature=0, min_tokens=2, ends=frozenset({3}))
    assert [draw_one(greedy, answer=[0] * length).token for length in range(4)] == [2, 2, 3, 3]
    drawn = Sampling(min_tokens=2, ends=frozenset({2, 3}), logit_bias=((3, 100.0),))
    assert set(draws(drawn, count=200)) == {0, 1}


def test_logprobs_are_the_models_own_whatever_the_rules_are() -> None:
    plain = draw_one(Sampling(temperature=0, logprobs=2))
    expected = LOGITS.log_softmax(-1).tolist()
    assert plain.logprob == pytest.approx(expected[3])
    assert [token for token, _ in plain.top] == [3, 2]
    assert [logprob for _, logprob in plain.top] == pytest.approx([expected[3], expected[2]])
    ruled = draw_one(Sampling(temperature=0.1, top_k=1, repetition_penalty=5, logit_bias=((0, 100.0),), logprobs=2))
    assert (ruled.token, ruled.logprob, ruled.top) == (0, pytest.approx(expected[0]), plain.top)


def test_logprobs_come_only_where_they_were_asked_for() -> None:
    asked, not_asked = sample(torch.stack([LOGITS, LOGITS]), [sequence(Sampling(logprobs=0)), sequence(Sampling())])
    assert asked.logprob is not None
    assert asked.top == ()
    assert (not_asked.logprob, not_asked.top) == (None, ())


def test_the_models_logits_are_left_as_they_are() -> None:
    logits = random_logits(2, 300, seed=3)
    before = logits.clone()
    sample(logits, [sequence(Sampling(top_p=0.5)), sequence(Sampling(temperature=0, repetition_penalty=2))])
    assert logits.equal(before)


@given(
    rows=st.lists(st.tuples(rules, st.lists(st.integers(0, 299), max_size=8)), min_size=1, max_size=9),
    vocabulary=st.sampled_from([300, BLOCK * 2, 5003]),
    seed=st.integers(0, 2**31),
    place=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_a_row_is_the_same_to_the_bit_alone_and_in_any_company(
    rows: list[tuple[Sampling, list[int]]], vocabulary: int, seed: int, place: st.DataObject
) -> None:
    logits = random_logits(len(rows), vocabulary, seed)
    sequences = [sequence(rule, answer) for rule, answer in rows]
    together = sample(logits, sequences)
    order = place.draw(st.permutations(range(len(rows))))
    assert sample(logits[order], [sequences[row] for row in order]) == [together[row] for row in order]
    for row, one in enumerate(sequences):
        assert sample(logits[row : row + 1], [one]) == [together[row]]


@pytest.mark.parametrize("rule", [Sampling(seed=3), Sampling(temperature=1.4, top_p=0.97, top_k=900, seed=4)])
def test_a_row_of_a_real_vocabulary_is_the_same_to_the_bit_in_any_number_of_rows(rule: Sampling) -> None:
    logits = random_logits(64, 49_152, seed=1)
    sequences = [sequence(rule, [0] * index) for index in range(64)]
    alone = [sample(logits[row : row + 1], [sequences[row]])[0] for row in range(64)]
    for count in (2, 3, 16, 64):
        assert sample(logits[:count], sequences[:count]) == alone[:count]


@pytest.mark.parametrize("rule", [GREEDY, Sampling(), Sampling(top_p=0.5), Sampling(min_p=0.5)])
def test_a_row_that_is_not_of_numbers_gets_some_token_and_leaves_its_neighbours_alone(rule: Sampling) -> None:
    logits = random_logits(2, 300, seed=1)
    logits[0] = torch.nan
    broken, other = sample(logits, [sequence(rule), sequence(rule)])
    assert 0 <= broken.token < 300
    assert other == sample(logits[1:], [sequence(rule)])[0]


@given(seed=st.integers(-(2**63), 2**63 - 1), index=st.integers(0, 2**31))
def test_the_number_of_a_draw_depends_on_seed_and_index_only(seed: int, index: int) -> None:
    number = uniform(seed, index)
    assert 0 <= number < 1
    assert number == uniform(seed, index)
    assert number != uniform(seed, index + 1)


def test_half_precision_logits_are_drawn_too() -> None:
    assert draw_one(Sampling(top_k=1), LOGITS.bfloat16()).token == 3
