"""The supervisor on real children: shell scripts that live and die on command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from forebay.child import Child, Spec, describe
from forebay.probe import Health
from forebay.restart import Policy
from forebay.supervise import Failure, StopAsked, Supervisor

QUICK = Policy(first_pause=0.01, longest_pause=0.05, failures=3, healthy_after=60)
SLEEP = "exec sleep 1000"


class Crew:
    """A supervisor under test with what it said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[tuple[str, str]] = []
        self.changes = 0
        self.supervisor = Supervisor(lambda name, text: self.said.append((name, text)), self._changed, QUICK)

    def _changed(self) -> None:
        self.changes += 1

    def spec(self, script: str, *, role: str = "pod", name: str = "pod-1", health: Health | None = None) -> Spec:
        return Spec(
            role=role,
            name=name,
            argv=("/bin/sh", "-c", script),
            env=dict(os.environ),
            probe=lambda: health or Health("ready"),
            log=self.folder / f"{name}.log",
            url="http://x",
        )

    def start(self, script: str, **fields: str) -> Child:
        child = self.supervisor.start(self.spec(script, **fields))
        self.supervisor.run_until_ready([child], 10)
        return child

    def turn_until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            self.supervisor.turn()


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    made = Crew(tmp_path)
    with made.supervisor.signals():
        yield made
        made.supervisor.stop(0)


def pid(child: Child) -> int:
    assert child.process is not None
    return child.process.pid


def test_a_child_becomes_ready_when_its_probe_says_so(crew: Crew) -> None:
    child = crew.start(SLEEP)
    assert child.state == "ready"
    assert crew.said == [("pod-1", "ready on http://x")]


def test_a_child_that_is_killed_is_started_again_and_counted(crew: Crew) -> None:
    child = crew.start(SLEEP)
    first = pid(child)
    os.kill(first, signal.SIGKILL)
    crew.turn_until(lambda: child.record.restarts == 1 and child.state == "ready")
    assert pid(child) != first
    assert "died (killed by SIGKILL)" in crew.said[1][1]
    assert describe(child)["restarts"] == 1


def test_a_death_is_told_with_the_exit_code_and_the_last_line_of_the_log(crew: Crew) -> None:
    crew.supervisor.start(crew.spec("echo starting; echo 'no such model' >&2; exit 7", health=Health("silent")))
    crew.turn_until(lambda: bool(crew.said))
    assert crew.said[0] == (
        "pod-1",
        "died (exit code 7; its last line: no such model); starts again in 0.01 s (restart 1)",
    )


def test_after_a_few_deaths_in_a_row_the_supervisor_gives_up(crew: Crew) -> None:
    child = crew.supervisor.start(crew.spec("exit 7", health=Health("silent")))
    with pytest.raises(Failure, match=r"pod-1 died 3 times in a row \(exit code 7\); giving up"):
        crew.turn_until(lambda: False)
    assert child.state == "failed"


def test_a_child_that_cannot_load_is_no_reason_to_try_again(crew: Crew) -> None:
    child = crew.supervisor.start(crew.spec(SLEEP, health=Health("failed", "Too little memory.")))
    with pytest.raises(Failure, match=r"pod-1 cannot start: Too little memory\."):
        crew.supervisor.run_until_ready([child])


def test_the_phases_of_a_load_are_told_once_each(crew: Crew) -> None:
    answers = iter(
        [Health("silent"), Health("loading", "load"), Health("loading", "load"), Health("loading", "warm-up")]
    )
    spec = crew.spec(SLEEP)
    child = crew.supervisor.start(Spec(**{**vars(spec), "probe": lambda: next(answers, Health("ready"))}))
    crew.supervisor.run_until_ready([child], 10)
    assert [text for _, text in crew.said] == ["load", "warm-up", "ready on http://x"]


def test_waiting_for_a_child_ends_when_patience_does(crew: Crew) -> None:
    child = crew.supervisor.start(crew.spec(SLEEP, health=Health("silent")))
    with pytest.raises(Failure, match="pod-1 is not ready after 0 s"):
        crew.supervisor.run_until_ready([child], 0)


def test_what_a_dead_child_started_dies_with_it(crew: Crew) -> None:
    child = crew.start("sleep 1000 & echo $!; wait")
    crew.turn_until(lambda: bool(child.spec.log.read_text().strip()))
    grandchild = psutil.Process(int(child.spec.log.read_text()))
    os.kill(pid(child), signal.SIGKILL)
    crew.turn_until(lambda: child.record.restarts == 1)
    grandchild.wait(10)


def test_roles_are_stopped_in_the_reverse_order_of_their_start(crew: Crew) -> None:
    script = "trap 'echo $NAME >> order; exit 0' TERM; echo up; while :; do sleep 0.01; done"
    for name in ("cache", "pod", "gateway"):
        child = crew.start(f"cd {crew.folder}; NAME={name}; {script}", role=name, name=name)
        crew.turn_until(lambda child=child: "up" in child.spec.log.read_text())  # type: ignore[misc]
    crew.supervisor.stop(10)
    assert (crew.folder / "order").read_text().split() == ["gateway", "pod", "cache"]
    assert {child.state for child in crew.supervisor.children} == {"stopped"}


def test_what_does_not_end_in_time_is_killed(crew: Crew) -> None:
    child = crew.start("trap '' TERM; echo up; while :; do sleep 0.01; done")
    crew.turn_until(lambda: "up" in child.spec.log.read_text())
    process = psutil.Process(pid(child))
    crew.supervisor.stop(0.1)
    assert not process.is_running()
    assert ("pod-1", "did not end in time: killed") in crew.said


def test_a_signal_while_stopping_kills_at_once(crew: Crew) -> None:
    child = crew.start("trap '' TERM; echo up; while :; do sleep 0.01; done")
    crew.turn_until(lambda: "up" in child.spec.log.read_text())
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    crew.supervisor.stop(1000)
    assert ("pod-1", "killed") in crew.said


def test_signals_close_together_count_as_one(crew: Crew) -> None:
    # What it does when it is told to end: the second signal, while it takes its time.
    script = (
        f"trap 'kill -TERM {os.getpid()}; sleep 0.2; echo done; exit 0' TERM; echo up; while :; do sleep 0.01; done"
    )
    child = crew.start(script)
    crew.turn_until(lambda: "up" in child.spec.log.read_text())
    os.kill(os.getpid(), signal.SIGINT)
    crew.supervisor.stop(1000)
    assert "done" in child.spec.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_stop_ends_the_wait_at_once(crew: Crew, number: signal.Signals) -> None:
    crew.start(SLEEP)
    threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
    with pytest.raises(StopAsked):
        crew.turn_until(lambda: False)


def test_a_job_gives_its_result_and_tells_its_progress(crew: Crew) -> None:
    heard: list[str] = []
    script = "echo one >&2; printf 'two\\rthree' >&2; echo noise; echo /the/result"
    result = crew.supervisor.run_job(("/bin/sh", "-c", script), dict(os.environ), heard.append)
    assert (result.code, result.output, result.last_error) == (0, "/the/result", "three")
    assert heard == ["one", "two", "three"]


def test_a_job_that_fails_gives_its_last_word(crew: Crew) -> None:
    result = crew.supervisor.run_job(("/bin/sh", "-c", "echo sorry >&2; exit 1"), dict(os.environ), lambda _line: None)
    assert (result.code, result.last_error) == (1, "sorry")


def test_a_job_is_killed_when_the_operator_says_stop(crew: Crew) -> None:
    pids: list[int] = []

    def heard(line: str) -> None:
        pids.append(int(line))
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StopAsked):
        crew.supervisor.run_job(("/bin/sh", "-c", "echo $$ >&2; exec sleep 1000"), dict(os.environ), heard)
    assert not psutil.pid_exists(pids[0])


def test_children_are_looked_after_while_a_job_runs(crew: Crew) -> None:
    child = crew.start(SLEEP)
    os.kill(pid(child), signal.SIGKILL)
    crew.supervisor.run_job(("/bin/sh", "-c", "sleep 0.3"), dict(os.environ), lambda _line: None)
    assert child.record.restarts == 1


def test_the_status_is_rewritten_on_changes_only(crew: Crew) -> None:
    child = crew.start(SLEEP)
    before = crew.changes
    child.due = 0
    crew.supervisor.turn()
    assert crew.changes == before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import os, sys, subprocess, signal; from forebay import spawn\n"
        "child = spawn.start(['sleep', '1000'], os.environ, stdout=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        child = psutil.Process(int(supervisor.stdout.readline()))
        supervisor.kill()
    child.wait(10)
