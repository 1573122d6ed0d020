"""Which process of a pod this is. torchrun starts one for each part of a split model and tells each by its environment;
a pod that gunicorn starts is one process, rank 0 of 1."""

from __future__ import annotations

import os


def rank() -> int:
    """0 serves, schedules and samples; the others follow it."""
    return int(os.environ.get("RANK", "0"))


def ranks() -> int:
    """Processes that hold one part of the model each."""
    return int(os.environ.get("WORLD_SIZE", "1"))
