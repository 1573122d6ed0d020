"""The contenders: each module runs many prompts in its own way, behind one interface.

A module has `SETTINGS`, the ways of running it that are worth trying, by name, and `start(model, **options)`, a context
manager that yields a `Generate`. `bench.engine.contend` tries the settings and measures with the fastest. A module
imports what it measures inside of `start`: it may be absent, and the environment must be set before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


@dataclass(frozen=True)
class Model:
    """The one model of all contenders, in the two forms that they read."""

    folder: Path
    """Safetensors, in float32."""
    file: Path
    """GGUF, from which the folder was made."""


class Prompt(NamedTuple):
    """A user's message, and the token ids of the chat that it makes."""

    text: str
    ids: list[int]


class Answer(NamedTuple):
    """How many tokens came, and when the first: in seconds since all prompts were handed in, where it can be seen."""

    tokens: int
    ttft: float | None


Generate = Callable[[list[Prompt], int], list[Answer]]
"""Continues all prompts at once, greedily, by so many tokens each whatever they are; returns when all are done."""
