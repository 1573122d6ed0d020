"""What `forebay up` keeps under FOREBAY_HOME: secrets, the lock, the status file. Nothing else writes these."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

SECRETS = ("jwt_secret", "key_secret", "cache_password")
LOCK_PATIENCE = 1.0
"""Seconds to wait for the lock: a supervisor that was just killed frees it a moment later."""

SAME_PROCESS = 2.0
"""Seconds by which the kernel's word on when a process began may move, as the clock is set."""


class AlreadyRunning(Exception):
    """Another supervisor holds this home."""


@dataclass(frozen=True)
class Home:
    """The folder FOREBAY_HOME, absolute, and where things lie in it."""

    path: Path

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def temporary(self) -> Path:
        return self.run / "tmp"

    @property
    def status_file(self) -> Path:
        return self.run / "status.json"

    @property
    def key_file(self) -> Path:
        return self.path / "demo.key"

    def secret_file(self, name: str) -> Path:
        return self.path / "secrets" / name

    def log_file(self, child: str) -> Path:
        return self.logs / f"{child}.log"


def open_home(path: Path) -> Home:
    """Makes the folder, readable for its owner alone, and the secrets that are missing.

    Raises:
        OSError: the folder cannot be made or written.
    """
    home = Home(path.expanduser().resolve())
    for folder in (home.path, home.logs, home.run, home.path / "secrets"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in SECRETS:
        keep_secret(home.secret_file(name))
    return home


def keep_secret(path: Path) -> None:
    """Writes 32 random bytes, as hex, to a file that only its owner may read; one that exists stays as it is."""
    if path.exists():
        return
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32) + "\n")
    draft.replace(path)


def lock(home: Home) -> IO[str]:
    """Holds the home until the process ends, however it ends; the caller keeps the returned file open.

    Raises:
        AlreadyRunning: another supervisor holds it; the text names its pid.
    """
    file = (home.run / "lock").open("a+")
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise AlreadyRunning(
                f"`forebay up` already runs on {home.path} (pid {holder}): stop it first, or set FOREBAY_HOME."
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        return file


def write_status(home: Home, status: dict[str, Any]) -> None:
    """Replaces the status file in one step, so that a reader never sees half of it."""
    draft = home.status_file.with_suffix(".new")
    draft.write_text(json.dumps(status, indent=2) + "\n")
    draft.replace(home.status_file)


def read_status(home: Home) -> dict[str, Any] | None:
    """What the living supervisor wrote last; None when no supervisor lives."""
    try:
        status: dict[str, Any] = json.loads(home.status_file.read_text())
        apart = psutil.Process(status["pid"]).create_time() - status["pid_created"]
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None
    return status if abs(apart) < SAME_PROCESS else None
