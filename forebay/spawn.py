"""Starting and ending one process: in a group of its own, and never outliving the supervisor."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def start(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    cwd: Path | None = None,
    stdout: int | IO[bytes],
    stderr: int | IO[bytes] = subprocess.STDOUT,
) -> subprocess.Popen[bytes]:
    """Starts a child that the terminal's Ctrl-C does not reach and that ends when the supervisor does, even by SIGKILL.

    Must be called from the main thread: Linux sends the death signal when the *thread* that forked ends.

    Raises:
        OSError: the program cannot be started.
    """
    parent = os.getpid()

    def die_with_parent() -> None:
        # SIGTERM, so that a gunicorn master takes its workers along and cleans up.
        if _libc is not None:
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

    # The supervisor has no threads, which is what makes preexec_fn safe.
    return subprocess.Popen(
        argv,
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        process_group=0,
        preexec_fn=die_with_parent,  # noqa: PLW1509
    )


def collect(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code of a process that ended, negative for a signal; None while it runs.

    What is left of its group is killed first, while the unreaped leader still keeps the group's number from reuse:
    a gunicorn master that was killed leaves workers behind, and those hold its port.
    """
    if process.returncode is not None:
        return process.returncode
    if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        return None
    kill_group(process)
    return process.wait()


def terminate(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM for the process. Unlike `Popen.terminate` it never reaps it, so that `collect` sees its group."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the process and everything it started. The process must not have been reaped."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def describe_exit(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
