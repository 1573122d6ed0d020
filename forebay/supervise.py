"""Keeping children running: start, ask how they are, restart with a growing pause, give up, stop.

One thread, one loop. `Supervisor.turn` waits for a signal, a child's end, a line of a job or the next due moment, and
then looks after every child once. How patient it is stands in `restart.py`.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from forebay import logs, spawn
from forebay.child import Child, Spec, State
from forebay.probe import Health
from forebay.restart import Policy, after_death

PROBE_STARTING = 0.1
PROBE_READY = 3.0
"""Seconds between looks at a child that is not yet ready, and at one that is."""
MISSES = 3
"""Unanswered looks in a row after which a ready child counts as unready."""
SAME_PRESS = 1.0
"""Signals closer together than this, in seconds, are one: a terminal signals a whole group, and `make` passes it on."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopAsked(Exception):
    """Ctrl-C, SIGTERM or SIGHUP."""


class Failure(Exception):
    """The fleet cannot go on; the text is the sentence for the operator."""


@dataclass(frozen=True)
class JobResult:
    """How a job ended."""

    code: int
    output: str
    last_error: str


class Supervisor:
    """The children, in the order in which they were started, and the loop that looks after them."""

    def __init__(
        self, say: Callable[[str, str], None], changed: Callable[[], None], policy: Policy | None = None
    ) -> None:
        """`say(name, text)` tells the operator; `changed()` is called after each change of a child."""
        self.children: list[Child] = []
        self.stopping = False
        self._say = say
        self._changed = changed
        self._policy = policy or Policy()
        self._selector = selectors.DefaultSelector()
        self._presses = 0
        self._last_press = -SAME_PRESS

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Handles the stop signals and SIGCHLD while it is open; each wakes the loop."""
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        self._selector.register(reader, selectors.EVENT_READ, lambda: reader.recv(4096))
        previous = {number: signal.signal(number, self._press) for number in STOP_SIGNALS}
        previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in previous.items():
                signal.signal(number, handler)
            self._selector.close()
            reader.close()
            writer.close()

    def start(self, spec: Spec) -> Child:
        """Starts a child; from now on it is looked after."""
        child = Child(spec)
        self.children.append(child)
        self._launch(child)
        return child

    def run_until_ready(self, children: Iterable[Child], patience: float | None = None) -> None:
        """Runs the loop until all of them are ready. `patience` is in seconds; None waits as long as they live.

        Raises:
            Failure: one cannot become ready, or not in time.
            StopAsked: the operator said stop.
        """
        watched = list(children)
        deadline = None if patience is None else time.monotonic() + patience
        while late := [child for child in watched if child.state != "ready"]:
            if deadline is not None and time.monotonic() > deadline:
                child = late[0]
                raise Failure(f"{child.spec.name} is not ready after {patience:.0f} s; its log is {child.spec.log}.")
            self.turn()

    def run_job(
        self, argv: Sequence[str], env: Mapping[str, str], heard: Callable[[str], None], cwd: Path | None = None
    ) -> JobResult:
        """Runs a program to its end while the children are looked after; each line of its stderr goes to `heard`.

        Raises:
            Failure, StopAsked: as for the children; the job is killed then.
        """
        lines: list[str] = []

        def hear(line: str) -> None:
            lines.append(line)
            heard(line)

        output: list[str] = []
        job = spawn.start(argv, env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        pipes = {pipe: told for pipe, told in ((job.stdout, output.append), (job.stderr, hear)) if pipe}
        try:
            for pipe, listener in pipes.items():
                self._listen(pipe, listener)
            while (code := spawn.collect(job)) is None or any(pipe in self._selector.get_map() for pipe in pipes):
                self.turn()
        finally:
            if job.returncode is None:
                spawn.kill_group(job)
                job.wait()
            for pipe in pipes:
                self._forget(pipe)
        return JobResult(code, output[-1] if output else "", lines[-1] if lines else "")

    def turn(self) -> None:
        """Waits for what comes next and looks after every child once.

        Raises:
            Failure: a child cannot become ready, or died too often.
            StopAsked: the operator said stop.
        """
        next_due = min((child.due for child in self.children), default=time.monotonic() + PROBE_READY)
        self._wait(min(next_due - time.monotonic(), PROBE_READY))
        if self._presses:
            raise StopAsked
        for child in self.children:
            code = spawn.collect(child.process) if child.process else None
            if code is not None:
                self._bury(child, code)
            if time.monotonic() < child.due:
                continue
            if child.process is None:
                self._launch(child)
            else:
                self._hear(child, child.spec.probe())

    def stop(self, limit: float) -> None:
        """Ends all children, the role that was started last first, within `limit` seconds; kills what is left then.

        One more signal from the operator while this runs kills at once.
        """
        self.stopping = True
        presses, deadline = self._presses, time.monotonic() + limit
        for role in reversed(list(dict.fromkeys(child.spec.role for child in self.children))):
            group = [child for child in self.children if child.spec.role == role and child.process]
            for child in group:
                if child.process:
                    spawn.terminate(child.process)
                    self._enter(child, "stopping")
            while running := [child for child in group if not self._ended(child)]:
                urgent = self._presses > presses
                if urgent or time.monotonic() > deadline:
                    for child in running:
                        self._say(child.spec.name, "killed" if urgent else "did not end in time: killed")
                        if child.process:
                            spawn.kill_group(child.process)
                            child.process.wait()
                else:
                    self._wait(0.1)

    def _ended(self, child: Child) -> bool:
        if child.process is not None and spawn.collect(child.process) is None:
            return False
        child.process = None
        self._enter(child, "stopped")
        return True

    def _launch(self, child: Child) -> None:
        spec = child.spec
        with spec.log.open("ab") as log:
            child.process = spawn.start(spec.argv, spec.env, cwd=spec.cwd, stdout=log)
        child.ready_since, child.misses, child.verdict = None, 0, ""
        child.due = time.monotonic() + PROBE_STARTING
        self._enter(child, "starting")
        self._changed()

    def _bury(self, child: Child, code: int) -> None:
        now = time.monotonic()
        ready_for = now - child.ready_since if child.ready_since is not None else 0.0
        child.record, pause = after_death(child.record, self._policy, ready_for=ready_for)
        child.process = None
        why = child.verdict or spawn.describe_exit(code)
        said = logs.last_line(child.spec.log)
        told = f"{why}; its last line: {said}" if said else why
        if pause is None:
            self._enter(child, "failed", why)
            raise Failure(
                f"{child.spec.name} died {child.record.row} times in a row ({told}); giving up. "
                f"Its log is {child.spec.log}."
            )
        self._say(child.spec.name, f"died ({told}); starts again in {pause:g} s (restart {child.record.restarts})")
        child.due = now + pause
        self._enter(child, "restarting", why)

    def _hear(self, child: Child, health: Health) -> None:
        now = time.monotonic()
        ready_before = child.ready_since is not None
        child.due = now + (PROBE_READY if ready_before else PROBE_STARTING)
        child.misses = child.misses + 1 if health.state in {"silent", "failed"} else 0
        if health.state == "ready":
            child.ready_since = child.ready_since or now
            child.due = now + PROBE_READY
            if child.state != "ready":
                self._say(child.spec.name, f"ready on {child.spec.url}")
            child.was_ready, child.models = True, health.models
            self._enter(child, "ready")
        elif health.state == "failed":
            if not child.was_ready:
                self._enter(child, "failed", health.detail)
                raise Failure(f"{child.spec.name} cannot start: {health.detail}")
            # Not at once: a pod that somebody stops says so for as long as it drains, and then ends by itself.
            if child.misses > MISSES and child.process:
                child.verdict = health.detail
                spawn.kill_group(child.process)
        elif not ready_before:
            if health.detail and health.detail != child.detail:
                self._say(child.spec.name, health.detail)
            self._enter(child, "starting", health.detail or child.detail)
        elif health.state == "loading" or child.misses >= MISSES:
            if child.state != "unready":
                self._say(child.spec.name, f"is not ready any more: {health.detail or 'it does not answer'}")
            self._enter(child, "unready", health.detail or "no answer")

    def _enter(self, child: Child, state: State, detail: str = "") -> None:
        if (child.state, child.detail) == (state, detail):
            return
        if child.state != state:
            child.since = time.time()
        child.state, child.detail = state, detail
        self._changed()

    def _wait(self, timeout: float) -> None:
        for key, _ in self._selector.select(max(0.0, timeout)):
            key.data()

    def _press(self, *_: Any) -> None:
        now = time.monotonic()
        if now - self._last_press > SAME_PRESS:
            self._presses += 1
        self._last_press = now

    def _listen(self, stream: IO[bytes], heard: Callable[[str], None]) -> None:
        """Calls `heard` with each line of the stream, until its end; a carriage return ends a line too."""
        rest = b""

        def read() -> None:
            nonlocal rest
            piece = os.read(stream.fileno(), 65536)
            if not piece:
                self._selector.unregister(stream)
            *lines, rest = (rest + piece.replace(b"\r", b"\n")).split(b"\n")
            if not piece and rest:
                lines.append(rest)
            for line in lines:
                if text := line.decode(errors="replace").strip():
                    heard(text)

        self._selector.register(stream, selectors.EVENT_READ, read)

    def _forget(self, stream: IO[bytes]) -> None:
        if stream in self._selector.get_map():
            self._selector.unregister(stream)
        stream.close()
