"""What is measured: the jobs by name, the prompts that they are given, and one process for each."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.machine import Others
from forebay import spawn

ROOT = Path(__file__).parents[2]
RIVALS = ROOT / "build/bench/venv/bin/python"
"""The environment of what is not the product's business; `make bench-rivals` makes it."""
SIZES = (1, 4, 16)
PREFIX_TOKENS = 1000
TIME_LIMIT = 900.0
"""Seconds for one job."""
POLL = 0.1
LAST_WISH = 40.0
"""Seconds in which a job that is told to end does."""

Prompts = list[tuple[str, list[int]]]


class Failed(Exception):
    """A job without a result; the message says why."""


@dataclass(frozen=True)
class Job:
    """One process that measures: a module of `bench.engine`, and what its `measure` is told."""

    module: str
    task: dict[str, Any] = field(default_factory=dict)
    prompts: str | None = None
    """Which prompts it is given: `chats` or `prefixed`."""
    rival: bool = False
    """Whether it runs in the rivals' environment."""


def _contender(
    contender: str,
    sizes: tuple[int, ...] = SIZES,
    *,
    tokens: int = 64,
    prompts: str = "chats",
    rival: bool = False,
    **options: Any,
) -> Job:
    task = {"contender": contender, "options": options, "sizes": sizes, "tokens": tokens}
    return Job("contend", task, prompts, rival)


def _prefixed(*, cached: bool) -> Job:
    return _contender("forebay", (16,), tokens=2, prompts="prefixed", quantization="int8", prefix_cache=cached)


# Chats begin with the same system prompt, which our prefix cache would spare and the others' would not: it is off but
# where it is what is measured.
JOBS: dict[str, Job] = {
    # One by one, so four show what sixteen would.
    "generate": _contender("generate", (4,)),
    "transformers": _contender("transformers_batching"),
    "llama.cpp": _contender("llama_cpp", rival=True),
    "openvino": _contender("openvino", rival=True),
    "fp32": _contender("forebay", quantization="none", prefix_cache=False),
    "int8": _contender("forebay", quantization="int8", prefix_cache=False),
    "stack": _contender("stack", (16,), quantization="int8", prefix_cache=False),
    "prefix cached": _prefixed(cached=True),
    "prefix computed": _prefixed(cached=False),
    "bounds": Job("bounds"),
    "sharing": Job("sharing", {"quantization": "int8"}),
    **{
        f"perplexity {quantization}": Job("perplexity", {"quantization": quantization})
        for quantization in ("none", "int8", "nf4")
    },
}


def run(job: Job, model: dict[str, str], prompts: dict[str, list[Prompts]], log: Path) -> dict[str, Any]:
    """The result of a job, in a process of its own, which is gone afterwards however this ends.

    Args:
        model: the fields of a `Model`. prompts: of each kind, those of all rounds.
        log: where its task, result and messages are kept, with suffixes of their own.

    Raises:
        Failed: it ended without a result, took too long, or misses a package.
    """
    python = RIVALS if job.rival else Path(sys.executable)
    if not python.exists():
        raise Failed("not installed: make bench-rivals")
    task = {"model": model, **job.task, **({"rounds": prompts[job.prompts]} if job.prompts else {})}
    log.with_suffix(".task").write_text(json.dumps(task))
    argv = [str(python), "-m", f"bench.engine.{job.module}", str(log.with_suffix(".task"))]
    others = Others()
    with log.with_suffix(".json").open("wb") as output, log.with_suffix(".log").open("wb") as messages:
        process = spawn.start(argv, os.environ, cwd=ROOT, stdout=output, stderr=messages)
        with _ended(process):
            deadline = time.monotonic() + TIME_LIMIT
            while (code := spawn.collect(process)) is None:
                if time.monotonic() > deadline:
                    raise Failed(f"took longer than {TIME_LIMIT:.0f} s")
                time.sleep(POLL)
    if code != 0:
        lines = log.with_suffix(".log").read_text(errors="replace").strip().splitlines()
        raise Failed(lines[-1] if lines else spawn.describe_exit(code))
    result: dict[str, Any] = json.loads(log.with_suffix(".json").read_text())
    if "missing" in result:
        raise Failed(f"not installed: {'make bench-rivals' if job.rival else result['missing']}")
    return {**result, "others": others.share()}


@contextlib.contextmanager
def _ended(process: Any) -> Iterator[None]:
    """Sees that the process has ended: by its own hand, else by SIGTERM, at last by SIGKILL with all its group."""
    try:
        yield
    finally:
        spawn.terminate(process)
        deadline = time.monotonic() + LAST_WISH
        while spawn.collect(process) is None:
            if time.monotonic() > deadline:
                spawn.kill_group(process)
            time.sleep(POLL)


def chats(tokenizer: Any, rounds: int, size: int) -> list[Prompts]:
    """For each round other chats of about 60 tokens."""
    from forebay.bench import prompt  # noqa: PLC0415

    def chat(number: int) -> tuple[str, list[int]]:
        text = f"{prompt(number)} Answer in about one hundred words."
        return text, _ids(tokenizer, [{"role": "user", "content": text}])

    return [[chat(size * number + place) for place in range(size)] for number in range(rounds)]


def prefixed(tokenizer: Any, rounds: int, size: int, document: str) -> list[Prompts]:
    """For each round other questions on one document, which makes the first 1,000 tokens of all of them."""
    system = tokenizer.decode(tokenizer(document, add_special_tokens=False).input_ids[:PREFIX_TOKENS])

    def question(number: int) -> tuple[str, list[int]]:
        text = f"({number}) What does it say?"
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        return text, _ids(tokenizer, messages)

    return [[question(size * number + place) for place in range(size)] for number in range(rounds)]


def _ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return [int(token) for token in encoded["input_ids"]]
