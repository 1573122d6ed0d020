"""A `forebay up` that runs as a process of its own, seen as its operator sees it: by what it prints."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

HANG = 240
"""Seconds after which a test stops waiting: far more than anything takes, so it says that something hangs."""
FOREBAY = (str(Path(sys.executable).with_name("forebay")),)
"""The installed command: unlike `python -m forebay` it takes no code from the working folder."""


class Up:
    """A running `forebay up`, in a process group of its own as a shell gives it."""

    def __init__(
        self,
        home: Path,
        environment: dict[str, str],
        command: Sequence[str] = (*FOREBAY, "up"),
        cwd: Path | None = None,
    ) -> None:
        self.home = home
        self.environment = {**clean_environment(), "FOREBAY_HOME": str(home), **environment}
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            command,
            env=self.environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first line, of those not yet waited for, that the pattern is found in."""
        while True:
            line = self._queue.get(timeout=HANG)
            assert line is not None, f"it ended (exit status {self.process.wait()}) before {pattern!r}:\n{self.output}"
            if found := re.search(pattern, line):
                return found

    def wait(self) -> int:
        """Its exit status, once it has ended and everything it said is in `output`."""
        code = self.process.wait(HANG)
        self._reader.join()
        return code

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def status(self) -> dict[str, Any]:
        """What `forebay status --json` says."""
        command = (*FOREBAY, "status", "--json")
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def family(self) -> list[psutil.Process]:
        """The supervisor and everything that it, or one of its children, started."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def press_ctrl_c(self) -> None:
        """What a terminal does: SIGINT for the whole foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> None:
        """Ends it however it is, with all that it started; for the cleaning up after a test."""
        if self.process.poll() is None:
            family = self.family()
            self.process.terminate()
            _, left = psutil.wait_procs(family, timeout=30)
            for process in left:
                process.kill()
        self.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line)
            self._queue.put(line)
        self._queue.put(None)


@dataclass(frozen=True)
class Stack:
    """A stack that is ready, and how to use it."""

    up: Up
    url: str
    """Of the first gateway, without a path."""
    model: str
    key: str
    admin_username: str
    admin_password: str | None
    """Only of a stack whose home is new."""
    curl: str
    """The line that it offers for pasting."""

    @property
    def endpoint(self) -> str:
        """What OpenAI's clients call `base_url`."""
        return f"{self.url}/v1"


def wait_until_ready(up: Up) -> Stack:
    """Waits for the lines that `forebay up` prints when everything is ready, and reads them."""
    up.wait_for(r"Forebay is ready after \d+ s\.")
    endpoint = up.wait_for(r"Endpoint +(http://\S+)/v1")
    model = up.wait_for(r"Model +(\S+)")
    key = up.wait_for(r"API key +(fb-\S+)")
    admin = up.wait_for(r"Admin +(\S+)  (?:password (\S+)  )?\(")
    curl = up.wait_for(r"^ +(curl .*)")
    up.wait_for(r"Ctrl-C stops everything\.")
    return Stack(up, endpoint[1], model[1], key[1], admin[1], admin[2], curl[1])


def clean_environment() -> dict[str, str]:
    """Our environment without settings of Forebay's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FOREBAY_")}
