"""The table: each row is a question to the results, with the answer that is aimed at. Pure arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Results = Mapping[str, Mapping[str, Any]]
Pick = Literal["best", "median"]
"""Which of the rounds counts: of each side its best, or its median."""
Measure = Callable[[Results, Pick], float]

BYTES = {"none": 4, "int8": 1}
"""Of one weight."""


def rate(job: str, size: int) -> Measure:
    """Tokens/s of `size` requests at a time, from the first prompt's start to the last answer's end."""

    def measure(results: Results, pick: Pick) -> float:
        rates = [run["tokens"] / run["seconds"] for run in results[job]["runs"][str(size)]]
        return max(rates) if pick == "best" else statistics.median(rates)

    return measure


def decode_rate(job: str, size: int) -> Measure:
    """Tokens/s of `size` requests at a time once each of them has its first token."""

    def measure(results: Results, pick: Pick) -> float:
        rates = [
            (run["tokens"] - size) / (run["seconds"] - max(run["ttft"])) for run in results[job]["runs"][str(size)]
        ]
        return max(rates) if pick == "best" else statistics.median(rates)

    return measure


def first_token(job: str, size: int) -> Measure:
    """Mean seconds to the first token of `size` requests at a time."""

    def measure(results: Results, pick: Pick) -> float:
        times = [statistics.mean(run["ttft"]) for run in results[job]["runs"][str(size)]]
        return min(times) if pick == "best" else statistics.median(times)

    return measure


def bound(quantization: str, size: int) -> Measure:
    """Tokens/s that the machine allows: as often as memory yields all weights, and as fast as it multiplies them."""

    def measure(results: Results, _pick: Pick) -> float:
        machine = results["bounds"]
        read = size * machine["bandwidth"] / (machine["weights"] * BYTES[quantization])
        computed = machine["products"][quantization] / (2 * machine["weights"])
        return float(min(read, computed))

    return measure


def perplexity(quantization: str) -> Measure:
    """Of the fixed text."""
    return lambda results, _pick: float(results[f"perplexity {quantization}"]["perplexity"])


def stall(results: Results, _pick: Pick) -> float:
    """The 99th percentile of the time between tokens while a long prompt is computed, by the median."""
    gaps = results["sharing"]["gaps"]
    return statistics.quantiles(gaps, n=100)[98] / statistics.median(gaps)


def wait_beside_a_flood(results: Results, _pick: Pick) -> float:
    """A light tenant's mean time to first token beside another's flood, by that alone."""
    return float(results["sharing"]["beside"]) / float(results["sharing"]["alone"])


def ratio(over: Measure, under: Measure) -> Measure:
    """The one by the other."""
    return lambda results, pick: over(results, pick) / under(results, pick)


@dataclass(frozen=True)
class Row:
    """One question.

    jobs: whose results it needs. goal: what the measured is to reach, or, where `at_most`, not to exceed; None where it
    is only printed. form: how a value is written.
    """

    name: str
    text: str
    jobs: tuple[str, ...]
    measure: Measure
    goal: float | None = None
    at_most: bool = False
    form: str = "{:.2f}x"


def _against(rival: str, who: str, size: int, goal: float) -> Row:
    """A row that sets our int8 against a rival at the same number of requests."""
    ours = ratio(rate("int8", size), rate(rival, size))
    return Row(f"{rival}-{size}", f"int8 vs {who}, {size} at a time", ("int8", rival), ours, goal)


def _share_of_bound(quantization: str, job: str, size: int) -> Row:
    share = ratio(decode_rate(job, size), bound(quantization, size))
    text = f"{job}, {size} at a time: decode vs the machine's bound"
    return Row(f"bound-{job}-{size}", text, (job, "bounds"), share, form="{:.0%}")


def _perplexity_kept(quantization: str) -> Row:
    more = ratio(perplexity(quantization), perplexity("none"))
    jobs = ("perplexity none", f"perplexity {quantization}")
    text = f"perplexity of a fixed text, {quantization} vs none"
    return Row(f"perplexity-{quantization}", text, jobs, more, 1.03, at_most=True, form="{:.4f}x")


ROWS: tuple[Row, ...] = (
    Row(
        "int8-generate",
        "int8, 16 at a time, vs one-by-one generate fp32",
        ("int8", "generate"),
        ratio(rate("int8", 16), rate("generate", 4)),
        25,
    ),
    Row(
        "fp32-generate",
        "exact fp32, 16 at a time, vs one-by-one generate fp32",
        ("fp32", "generate"),
        ratio(rate("fp32", 16), rate("generate", 4)),
        15,
    ),
    Row(
        "int8-generate-1",
        "int8, 1 at a time, vs one-by-one generate fp32",
        ("int8", "generate"),
        ratio(rate("int8", 1), rate("generate", 4)),
        4,
    ),
    _against("transformers", "transformers' continuous batching", 16, 6),
    _against("llama.cpp", "llama.cpp Q4_1", 16, 1.5),
    _against("llama.cpp", "llama.cpp Q4_1", 4, 1),
    _against("llama.cpp", "llama.cpp Q4_1", 1, 0.6),
    _against("openvino", "OpenVINO GenAI Q4_1", 16, 2),
    Row(
        "prefix",
        "first token, 16 requests on 1,000 tokens: computed vs cached",
        ("prefix computed", "prefix cached"),
        ratio(first_token("prefix computed", 16), first_token("prefix cached", 16)),
        8,
    ),
    Row(
        "stack",
        "through gateway and HTTP, 16 streams, vs the engine alone",
        ("stack", "int8"),
        ratio(rate("stack", 16), rate("int8", 16)),
        0.85,
        form="{:.0%}",
    ),
    Row(
        "stall",
        "time between tokens, p99 by median, beside a 4,000-token prompt",
        ("sharing",),
        stall,
        3,
        at_most=True,
    ),
    Row(
        "flood",
        "a tenant's first token beside another's 200 requests vs alone",
        ("sharing",),
        wait_beside_a_flood,
        2,
        at_most=True,
    ),
    _share_of_bound("none", "fp32", 1),
    _share_of_bound("none", "fp32", 16),
    _share_of_bound("int8", "int8", 1),
    _share_of_bound("int8", "int8", 16),
    _perplexity_kept("int8"),
    _perplexity_kept("nf4"),
)


@dataclass(frozen=True)
class Verdict:
    """A row's answer: the values by the best and by the median rounds, or why there are none."""

    row: Row
    best: float | None = None
    median: float | None = None
    reason: str | None = None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None where there is none, or no value."""
        if self.best is None or self.row.goal is None:
            return None
        return self.best <= self.row.goal if self.row.at_most else self.best >= self.row.goal

    def figures(self) -> dict[str, Any]:
        """For the JSON file."""
        row = {key: value for key, value in asdict(self.row).items() if key in {"name", "text", "goal", "at_most"}}
        return {**row, "best": self.best, "median": self.median, "met": self.met, "reason": self.reason}


def judge(row: Row, results: Results, failures: Mapping[str, str]) -> Verdict:
    """The row's answer, from the results of the jobs that have one and the reasons of those that failed."""
    reasons = [f"{job}: {failures[job]}" for job in row.jobs if job in failures]
    if reasons:
        return Verdict(row, reason="; ".join(reasons))
    return Verdict(row, row.measure(results, "best"), row.measure(results, "median"))


def table(verdicts: list[Verdict]) -> str:
    """The verdicts as aligned text."""
    lines = [("", "goal", "measured", "median", "")]
    for verdict in verdicts:
        row = verdict.row
        goal = "" if row.goal is None else f"{'≤' if row.at_most else '≥'} {row.form.format(row.goal)}"
        if verdict.best is None or verdict.median is None:
            lines.append((row.text, goal, "", "", verdict.reason or ""))
            continue
        met = {True: "met", False: "NOT MET", None: ""}[verdict.met]
        lines.append((row.text, goal, row.form.format(verdict.best), row.form.format(verdict.median), met))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(
        f"{text:<{widths[0]}}  {goal:>{widths[1]}}  {best:>{widths[2]}}  {median:>{widths[3]}}  {met}".rstrip()
        for text, goal, best, median, met in lines
    )


def rates(results: Results) -> str:
    """Tokens/s of every contender at each number of requests, and the setting that was the fastest."""
    lines = []
    for name, result in results.items():
        for size in result.get("runs", {}):
            best, median = (rate(name, int(size))(results, pick) for pick in ("best", "median"))
            lines.append(f"{name:<16}  {size:>2} at a time  {best:8.1f}  {median:8.1f}  {result['setting']}")
    return "\n".join(["tokens/s: best round, median, setting", *lines])
