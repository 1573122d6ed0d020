"""What requests of others cost a request: a long prompt beside running streams, a flood beside a light tenant."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from bench.engine.contenders import Model
from bench.engine.contenders.forebay import PATIENCE, started
from bench.engine.perplexity import TEXT
from bench.engine.worker import answer
from services.common.errors import ApiError

if TYPE_CHECKING:
    from services.inference.engine.engine import Engine
    from services.inference.engine.generation import Generation

STREAMS = 8
LONG_PROMPT = 4000
SHORT_PROMPT = 60
FLOOD = 200
LIGHT = 12
"""Requests of the light tenant, one after the other."""


def measure(model: Model, **options: Any) -> dict[str, Any]:
    """Seconds between tokens of streams while a long prompt is computed, and seconds to a light tenant's first token
    alone and beside another's flood.

    Args:
        options: settings of the pod, such as quantization.
    """
    with started(model, **options) as engine:
        words = itertools.cycle(engine.loaded.tokenizer(TEXT.read_text(), add_special_tokens=False).input_ids)
        return {"gaps": _gaps(engine, words), **_first_tokens(engine, words)}


def _gaps(engine: Engine, words: Iterator[int]) -> list[float]:
    streams = [_submit(engine, words, SHORT_PROMPT, 2000) for _ in range(STREAMS)]
    times: list[list[float]] = [[] for _ in streams]

    def consume(stream: Generation, seen: list[float]) -> None:
        with suppress(ApiError):  # it is cancelled in the end
            for _ in stream:
                seen.append(time.monotonic())

    with ThreadPoolExecutor(STREAMS) as consumers:
        for stream, seen in zip(streams, times, strict=True):
            consumers.submit(consume, stream, seen)
        while any(len(seen) < 20 for seen in times):
            time.sleep(0.01)
        begin = time.monotonic()
        next(iter(_submit(engine, words, LONG_PROMPT, 1)))
        end = time.monotonic()
        for stream in streams:
            stream.cancel()
    return [
        after - before
        for seen in times
        for before, after in itertools.pairwise(seen)
        if begin <= before and after <= end
    ]


def _first_tokens(engine: Engine, words: Iterator[int]) -> dict[str, float]:
    def one() -> float:
        begin = time.monotonic()
        generation = _submit(engine, words, SHORT_PROMPT, 4, salt="light")
        next(iter(generation))
        taken = time.monotonic() - begin
        generation.cancel()
        return taken

    alone = [one() for _ in range(LIGHT)]
    flood = [_submit(engine, words, SHORT_PROMPT, 200, salt="greedy") for _ in range(FLOOD)]
    next(iter(flood[0]))
    beside = [one() for _ in range(LIGHT)]
    for generation in flood:
        generation.cancel()
    return {"alone": statistics.mean(alone), "beside": statistics.mean(beside), "worst": max(beside)}


def _submit(engine: Engine, words: Iterator[int], length: int, tokens: int, *, salt: str = "") -> Generation:
    from services.inference.engine.sequence import Sampling  # noqa: PLC0415

    prompt = list(itertools.islice(words, length))
    deadline = time.monotonic() + PATIENCE
    return engine.submit(
        prompt, Sampling(temperature=0), max_tokens=tokens, ignore_eos=True, salt=salt, deadline=deadline
    )


if __name__ == "__main__":
    answer(measure)
