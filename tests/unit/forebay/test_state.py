"""Secrets, the lock and the status file under FOREBAY_HOME."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from forebay import state
from forebay.state import Home


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_home_and_its_secrets_are_for_the_owner_alone(home: Home) -> None:
    assert mode(home.path) == mode(home.path / "secrets") == mode(home.run) == 0o700
    assert {mode(home.secret_file(name)) for name in state.SECRETS} == {0o600}


def test_secrets_are_long_and_differ(home: Home) -> None:
    values = [home.secret_file(name).read_text().strip() for name in state.SECRETS]
    assert len(set(values)) == len(state.SECRETS)
    assert {len(bytes.fromhex(value)) for value in values} == {32}


def test_secrets_are_made_once(home: Home) -> None:
    before = home.secret_file("jwt_secret").read_text()
    state.open_home(home.path)
    assert home.secret_file("jwt_secret").read_text() == before


def test_a_home_is_held_by_one_supervisor(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "LOCK_PATIENCE", 0)
    with state.lock(home), pytest.raises(state.AlreadyRunning, match=f"pid {os.getpid()}"):
        state.lock(home)


def test_a_home_is_free_again_when_its_supervisor_is_killed(home: Home) -> None:
    script = (
        "import pathlib, signal, sys; from forebay import state\n"
        "held = state.lock(state.Home(pathlib.Path(sys.argv[1])))\n"
        "print('held', flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(home.path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        os.kill(holder.pid, signal.SIGKILL)
    state.lock(home).close()


def status_of(process: psutil.Process) -> dict[str, object]:
    return {"pid": process.pid, "pid_created": process.create_time(), "state": "ready"}


def test_the_status_of_a_living_supervisor_is_read_back(home: Home) -> None:
    written = status_of(psutil.Process())
    state.write_status(home, written)
    assert state.read_status(home) == written


def test_the_status_that_a_dead_supervisor_left_counts_for_nothing(home: Home) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        written = status_of(psutil.Process(process.pid))
        process.kill()
    state.write_status(home, written)
    assert state.read_status(home) is None


def test_another_process_with_the_same_number_is_no_supervisor(home: Home) -> None:
    state.write_status(home, {**status_of(psutil.Process()), "pid_created": 1.0})
    assert state.read_status(home) is None


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}"])
def test_a_status_file_that_is_missing_or_broken_counts_for_nothing(home: Home, content: str | None) -> None:
    if content is not None:
        home.status_file.write_text(content)
    assert state.read_status(home) is None
