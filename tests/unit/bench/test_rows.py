"""The table of `make bench-engine`: what its rows make of the jobs' results."""

from __future__ import annotations

from typing import Any

import pytest

from bench.engine.jobs import JOBS, SIZES
from bench.engine.rows import (
    ROWS,
    Row,
    bound,
    decode_rate,
    first_token,
    judge,
    perplexity,
    rate,
    rates,
    ratio,
    stall,
    table,
    wait_beside_a_flood,
)

RUNS: list[dict[str, Any]] = [
    {"seconds": 4.0, "tokens": 128, "ttft": [1.0, 2.0]},
    {"seconds": 2.0, "tokens": 128, "ttft": [0.5, 1.0]},
    {"seconds": 8.0, "tokens": 128, "ttft": [2.0, 4.0]},
]
RESULTS: dict[str, Any] = {
    "ours": {"setting": "as it is", "runs": {"2": RUNS}},
    "theirs": {"setting": "its best", "runs": {"2": [{"seconds": 8.0, "tokens": 128, "ttft": [4.0, 4.0]}]}},
    "bounds": {"weights": 100, "bandwidth": 4000.0, "products": {"none": 6000.0, "int8": 60000.0}},
    "sharing": {"gaps": [0.02] * 98 + [0.05] * 2, "alone": 0.1, "beside": 0.15, "worst": 0.3},
    "perplexity none": {"perplexity": 20.0},
    "perplexity int8": {"perplexity": 20.5},
}
TWICE = Row("twice", "ours vs theirs", ("ours", "theirs"), ratio(rate("ours", 2), rate("theirs", 2)), 2)


def test_a_rate_counts_all_tokens_over_the_whole_time_of_the_best_or_the_median_round() -> None:
    assert rate("ours", 2)(RESULTS, "best") == 64
    assert rate("ours", 2)(RESULTS, "median") == 32


def test_a_decode_rate_leaves_out_the_first_tokens_and_the_time_until_the_last_of_them() -> None:
    assert decode_rate("ours", 2)(RESULTS, "best") == (128 - 2) / (2.0 - 1.0)


def test_the_time_to_the_first_token_is_the_mean_of_a_round() -> None:
    assert first_token("ours", 2)(RESULTS, "best") == 0.75
    assert first_token("ours", 2)(RESULTS, "median") == 1.5


@pytest.mark.parametrize(
    ("quantization", "size", "tokens"),
    [
        ("none", 1, 4000 / 400),  # memory: each weight is read once for one token
        ("none", 16, 6000 / 200),  # arithmetic: a product and a sum for each weight
        ("int8", 1, 4000 / 100),
        ("int8", 16, 60000 / 200),
    ],
)
def test_the_bound_is_memory_for_one_request_and_arithmetic_for_many(
    quantization: str, size: int, tokens: float
) -> None:
    assert bound(quantization, size)(RESULTS, "best") == tokens


def test_each_side_of_a_ratio_is_its_own_best() -> None:
    verdict = judge(TWICE, RESULTS, {})
    assert (verdict.best, verdict.median) == (4, 2)


@pytest.mark.parametrize(("goal", "met"), [(3.9, True), (4, True), (4.1, False), (None, None)])
def test_a_goal_is_met_when_it_is_reached(goal: float | None, met: bool | None) -> None:
    assert judge(Row("r", "", TWICE.jobs, TWICE.measure, goal), RESULTS, {}).met is met


@pytest.mark.parametrize(("goal", "met"), [(1.03, True), (1.02, False)])
def test_a_limit_is_met_when_it_is_not_exceeded(goal: float, met: bool) -> None:
    more = ratio(perplexity("int8"), perplexity("none"))
    assert judge(Row("r", "", ("perplexity none",), more, goal, at_most=True), RESULTS, {}).met is met


def test_a_row_whose_job_failed_says_why_and_has_no_value() -> None:
    verdict = judge(TWICE, {}, {"theirs": "not installed: make bench-rivals"})
    assert (verdict.best, verdict.met) == (None, None)
    assert table([verdict]).splitlines()[1].endswith("theirs: not installed: make bench-rivals")


def test_the_table_has_goal_both_values_and_the_verdict() -> None:
    assert table([judge(TWICE, RESULTS, {})]).splitlines()[1].split() == [
        *("ours", "vs", "theirs"), *("≥", "2.00x"), "4.00x", "2.00x", "met",
    ]  # fmt: skip


def test_the_rates_name_the_setting_that_was_the_fastest() -> None:
    assert rates(RESULTS).splitlines()[2].split() == ["theirs", "2", "at", "a", "time", "16.0", "16.0", "its", "best"]


def test_a_stall_is_the_rare_long_gap_by_the_usual_one() -> None:
    assert stall(RESULTS, "best") == pytest.approx(2.5)


def test_the_wait_beside_a_flood_is_told_by_the_wait_alone() -> None:
    assert wait_beside_a_flood(RESULTS, "best") == pytest.approx(1.5)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_can_be_measured_by_the_jobs_that_it_names(row: Row) -> None:
    sizes = {str(size) for name in row.jobs for size in JOBS[name].task.get("sizes", SIZES)}
    more = {**RESULTS["bounds"], **RESULTS["sharing"]}
    made = {name: {**more, "perplexity": 1.0, "runs": dict.fromkeys(sizes, RUNS)} for name in row.jobs}
    assert judge(row, made, {}).best is not None


def test_no_two_rows_have_the_same_name() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
