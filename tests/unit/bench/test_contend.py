"""How a contender is measured: its best setting is found first, and every answer is as long as it should be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bench.engine.contend import measure
from bench.engine.contenders import Answer, Generate, Model, Prompt

MODEL = Model(Path("folder"), Path("file"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Each call of the contender `scripted`, as (setting, prompts, tokens); `slow` takes twice as long."""
    clock = [0.0]
    monkeypatch.setattr("bench.engine.contend.time", SimpleNamespace(monotonic=lambda: clock[0]))
    made: list[tuple[str, int, int]] = []
    module = ModuleType("scripted")

    @contextmanager
    def start(_model: Model, *, setting: str, short: int = 0) -> Iterator[Generate]:
        def generate(prompts: list[Prompt], tokens: int) -> list[Answer]:
            made.append((setting, len(prompts), tokens))
            clock[0] += 2 if setting == "slow" else 1
            return [Answer(tokens - short, 0.0)] * len(prompts)

        yield generate

    module.__dict__.update(SETTINGS={"slow": {"setting": "slow"}, "fast": {"setting": "fast"}}, start=start)
    monkeypatch.setitem(sys.modules, "bench.engine.contenders.scripted", module)
    return made


def task(**options: Any) -> dict[str, Any]:
    rounds = [[(f"{number}", [number])] * 4 for number in range(3)]
    return {"contender": "scripted", "options": options, "rounds": rounds, "sizes": [1, 4], "tokens": 8}


def test_it_is_measured_with_the_setting_that_was_the_fastest(calls: list[tuple[str, int, int]]) -> None:
    result = measure(MODEL, **task())
    assert result["setting"] == "fast"
    assert result["trials"] == {"slow": 4 * 16 / 2, "fast": 4 * 16}
    assert calls[-1][0] == "fast"


def test_each_size_has_a_round_that_does_not_count_and_all_that_do(calls: list[tuple[str, int, int]]) -> None:
    result = measure(MODEL, **task())
    assert {size: len(runs) for size, runs in result["runs"].items()} == {"1": 2, "4": 2}
    assert calls[-6:] == [("fast", 1, 8)] * 3 + [("fast", 4, 8)] * 3


def test_answers_that_are_too_short_are_an_error_not_a_fast_run(calls: list[tuple[str, int, int]]) -> None:
    with pytest.raises(RuntimeError, match="not 16 tokens each"):
        measure(MODEL, **task(short=1))
    assert calls
