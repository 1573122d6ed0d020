"""A real PostgreSQL server on a Unix socket, for tests: made in a second, without durability, gone with its block."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import psycopg

INSTALLED = Path("/usr/lib/postgresql")
"""Where Debian has a server's programs, by version; not on the PATH."""
FAST = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "max_connections=200", "listen_addresses=")


def server_programs() -> Path | None:
    """The folder of the newest server that is installed."""
    found = sorted(INSTALLED.glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else None


class Postgres:
    """The server. It can be lost and come back, and stand still, as a real one does."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._names = count()
        # It refuses to run as root. Whoever else runs the tests runs it as himself.
        self._who: dict[str, Any] = {}
        if os.geteuid() == 0:
            who = next(name for name in ("postgres", "nobody") if name in {user.pw_name for user in pwd.getpwall()})
            self._who = {"user": who, "group": pwd.getpwnam(who).pw_gid, "extra_groups": []}
            shutil.chown(folder, who)
        command = [programs / "initdb", "-D", folder / "data", "-U", "forebay", "-A", "trust", "--no-sync"]
        command += ["-E", "UTF8", "--locale=C"]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, **self._who)

    def start(self) -> None:
        """Starts the server, and waits until it answers."""
        command = [self._programs / "postgres", "-D", self._folder / "data", "-k", self._folder]
        command += [part for setting in FAST for part in ("-c", setting)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder, **self._who)
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self._address("postgres")).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (self._folder / "log").read_text()
                time.sleep(0.02)

    def kill(self) -> None:
        """Ends the server at once, with every connection, as a crash does."""
        assert self._process is not None
        self.thaw()
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(10)

    def freeze(self) -> None:
        """Lets every process of the server stand still: connections stay open, and nothing answers."""
        for process in self._processes():
            process.suspend()

    def thaw(self) -> None:
        for process in self._processes():
            process.resume()

    def new_database(self, template: str = "template0") -> str:
        """SQLAlchemy's URL of a new database, a copy of `template`."""
        name = f"test_{next(self._names)}"
        with psycopg.connect(self._address("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return f"postgresql+psycopg://forebay@/{name}?host={self._folder}"

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def _processes(self) -> list[psutil.Process]:
        assert self._process is not None
        if self._process.poll() is not None:
            return []
        server = psutil.Process(self._process.pid)
        return [server, *server.children(recursive=True)]

    def _address(self, database: str) -> str:
        return f"host={self._folder} user=forebay dbname={database} connect_timeout=5"


@contextmanager
def run_postgres() -> Iterator[Postgres]:
    """A server that runs, ended with the block."""
    programs = server_programs()
    assert programs is not None
    # Not below pytest's own folder, which the server's user may not enter; short, since a socket's path may be.
    folder = Path(tempfile.mkdtemp(prefix="forebay-pg-"))
    try:
        server = Postgres(programs, folder)
        server.start()
        try:
            yield server
        finally:
            server.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
