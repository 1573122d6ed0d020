"""Schedulers, the requests they are given, and their steps without a model."""

from __future__ import annotations

import math
from itertools import count

from services.inference.engine.blocks import BlockPool
from services.inference.engine.schedule import Scheduler, Work
from services.inference.engine.sequence import Sequence

FRESH = count(1)
STEM = tuple(range(100, 140))
"""A beginning for several requests."""


def sequence(
    prompt: int, answer: int = 4, *, salt: str = "", priority: int = 0, stem: tuple[int, ...] = ()
) -> Sequence:
    """A request of `prompt` tokens, which begin with `stem` and are no other request's after that."""
    ids = [*stem, *([next(FRESH) + 1000] * prompt)][:prompt]
    return Sequence(ids, prompt, answer, salt=salt, priority=priority)


def scheduler(
    *,
    blocks: int = 8,
    size: int = 4,
    max_batch: int = 4,
    step_tokens: int = 16,
    chunk_tokens: int = 16,
    twice_at: float = math.inf,
    cache: bool = True,
) -> Scheduler:
    pool, sizes = BlockPool(blocks, size), {"max_batch": max_batch, "step_tokens": step_tokens}
    return Scheduler(pool, **sizes, chunk_tokens=chunk_tokens, twice_at=twice_at, prefix_cache=cache)


def following(ids: list[int]) -> int:
    """The token after `ids`: like a model's, given by all of them."""
    return sum(ids) % 3


def finish_step(over: Scheduler, plan: list[Work]) -> list[Sequence]:
    """The rest of a step as the engine does it; a finished sequence leaves, and is returned."""
    sampling = [work.sequence for work in plan if work.samples]
    over.commit(plan, [following(one.ids) for one in sampling])
    done = [one for one in sampling if one.generated >= one.max_tokens]
    for one in done:
        over.remove(one)
    return done


def step(over: Scheduler) -> list[Work]:
    plan = over.plan()
    finish_step(over, plan)
    return plan


def run(over: Scheduler, *sequences: Sequence) -> None:
    """Adds the sequences and steps until nothing is left to do."""
    for one in sequences:
        over.add(one)
    while over.busy:
        step(over)
