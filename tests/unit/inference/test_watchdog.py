"""What is kept of a pod that has to be started anew."""

from __future__ import annotations

import logging
import threading

import pytest

from services.inference.watchdog import logged_once, stacks


def test_every_thread_has_a_stack_with_the_innermost_call_last() -> None:
    go_on, waits = threading.Event(), threading.Event()

    def sleeper() -> None:
        waits.set()
        go_on.wait(30)

    thread = threading.Thread(target=sleeper, name="sleeper")
    thread.start()
    waits.wait(30)
    try:
        found = {name.partition(" ")[0]: frames for name, frames in stacks().items()}
        assert any(frame.endswith(" sleeper") for frame in found["sleeper"])
        assert found["MainThread"][-1].endswith(" stacks")
    finally:
        go_on.set()
        thread.join()


def test_the_first_trouble_is_logged_with_the_stacks_and_only_the_first(caplog: pytest.LogCaptureFixture) -> None:
    said: list[str | None] = [None, "it hangs", None, "it hangs again"]
    with caplog.at_level(logging.CRITICAL, "forebay.watchdog"):
        check = logged_once(iter(said).__next__)
        assert [check() for _ in said] == said
    (record,) = caplog.records
    assert record.reason == "it hangs"  # type: ignore[attr-defined]
    assert any(name.startswith("MainThread") for name in record.stacks)  # type: ignore[attr-defined]
