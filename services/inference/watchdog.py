"""What the log shall hold when a pod is about to be started anew: where each of its threads stood."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable

log = logging.getLogger("forebay.watchdog")


def logged_once(trouble: Callable[[], str | None]) -> Callable[[], str | None]:
    """The same check, which writes the first trouble that it finds to the log, with the stacks of all threads."""
    found = threading.Lock()

    def check() -> str | None:
        reason = trouble()
        if reason is not None and found.acquire(blocking=False):
            log.critical("the pod should be started anew", extra={"reason": reason, "stacks": stacks()})
        return reason

    return check


def stacks() -> dict[str, list[str]]:
    """Where each thread of this process is now, by its name: `file:line function`, the innermost last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        f"{names.get(ident, 'unknown')} {ident}": [
            f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_stack(top)
        ]
        for ident, top in sys._current_frames().items()
    }
