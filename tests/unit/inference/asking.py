"""Requests to an engine without a server: how the tests of its loop ask, read, and hold it in a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import pytest

from services.common.errors import ApiError
from services.inference.engine.engine import Engine
from services.inference.engine.generation import Generation, Piece
from services.inference.engine.sequence import Sampling

StartEngine = Callable[..., Engine]
GREEDY = Sampling(temperature=0)
PROMPT = [3, 14, 15, 92]


def submit(engine: Engine, prompt: list[int] = PROMPT, *, seconds: float = 30, **more: Any) -> Generation:
    given = {"sampling": GREEDY, "max_tokens": 8} | more
    return engine.submit(prompt, given.pop("sampling"), deadline=time.monotonic() + seconds, **given)


def tokens(generation: Generation) -> list[int | None]:
    return [piece.token for piece in generation]


def unbroken(engine: Engine, **more: Any) -> list[Piece]:
    return list(submit(engine, **more))


def resumed(engine: Engine, before: list[Piece], **more: Any) -> list[Piece]:
    return list(submit(engine, resume=[piece.token for piece in before], **more))


def failure(generation: Generation) -> ApiError:
    with pytest.raises(ApiError) as caught:
        list(generation)
    return caught.value


@contextmanager
def held(engine: Engine) -> Iterator[Event]:
    """Holds the engine in its next step until the block ends; the event tells that it is there."""
    forward, arrived, go_on = engine.loaded.runner.forward, Event(), Event()

    def wait(plan: Any) -> Any:
        arrived.set()
        go_on.wait(30)
        return forward(plan)

    engine.loaded.runner.forward = wait  # type: ignore[method-assign]
    try:
        yield arrived
    finally:
        engine.loaded.runner.forward = forward  # type: ignore[method-assign]
        go_on.set()
