"""One contender, measured: `python -m bench.engine.contend TASK`, a task in JSON; its result, in JSON, on stdout.

In a process of its own, so that contenders share neither threads nor memory; rivals even have an environment of their
own, in which there is neither Forebay nor torch. So this imports nothing beyond the standard library.
"""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

from bench.engine.contenders import Generate, Model, Prompt
from bench.engine.worker import answer

TRIAL_TOKENS = 16
"""Tokens a request in the short runs that choose among a contender's settings."""


def measure(
    model: Model,
    *,
    contender: str,
    options: dict[str, Any],
    rounds: list[list[tuple[str, list[int]]]],
    sizes: list[int],
    tokens: int,
) -> dict[str, Any]:
    """
    Args:
        contender: a module of `bench.engine.contenders`; options: what its `start` is told besides a setting.
        rounds: the prompts of each round, the first of which warms up. A round of one size takes the first so many.
        sizes: numbers of requests at a time. tokens: how many each answer has.

    Returns:
        setting: the fastest. trials: tokens/s of each setting tried. runs: by size, one for each round.
    """
    module = import_module(f"bench.engine.contenders.{contender}")
    warm_up, *measured = [[Prompt(*prompt) for prompt in prompts] for prompts in rounds]
    trials: dict[str, float] = {}
    if len(module.SETTINGS) > 1:
        for name, setting in module.SETTINGS.items():
            with module.start(model, **options, **setting) as generate:
                run(generate, warm_up[: max(sizes)], TRIAL_TOKENS)
                result = run(generate, warm_up[: max(sizes)], TRIAL_TOKENS)
                trials[name] = result["tokens"] / result["seconds"]
    best = max(trials, key=lambda name: trials[name], default=next(iter(module.SETTINGS)))
    runs = {}
    with module.start(model, **options, **module.SETTINGS[best]) as generate:
        for size in sizes:
            run(generate, warm_up[:size], tokens)
            runs[str(size)] = [run(generate, prompts[:size], tokens) for prompts in measured]
    return {"setting": best, "trials": trials, "runs": runs}


def run(generate: Generate, prompts: list[Prompt], tokens: int) -> dict[str, Any]:
    """One round: its wall time, the tokens of all answers, and the seconds to each answer's first.

    Raises:
        RuntimeError: an answer has fewer or more tokens than it should.
    """
    begin = time.monotonic()
    answers = generate(prompts, tokens)
    seconds = time.monotonic() - begin
    if any(answer.tokens != tokens for answer in answers):
        raise RuntimeError(f"not {tokens} tokens each, but {[answer.tokens for answer in answers]}")
    return {
        "seconds": seconds,
        "tokens": len(prompts) * tokens,
        "ttft": [answer.ttft for answer in answers if answer.ttft is not None],
    }


if __name__ == "__main__":
    answer(measure)
