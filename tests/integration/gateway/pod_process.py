"""A scripted pod in a process of its own: `python -m tests.integration.gateway.pod_process NAME FILE` prints its URL.

It answers looks at once, and requests with its name, after as many seconds as FILE says at that moment.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services.common import sse
from services.common.wire import Answer, Usage
from tests.integration.gateway.scripts import kind_of, noted
from tests.unit.gateway.scripted_pod import Handler, scripted_pod


class PodProcess:
    """A running one, as the test that started it sees it."""

    def __init__(self, process: subprocess.Popen[str], url: str, delay: Path) -> None:
        self.process = process
        self.url = url
        self._delay = delay

    def answers_after(self, seconds: float) -> None:
        self._delay.write_text(str(seconds))


@contextmanager
def pod_process(folder: Path, name: str, *, seconds: float = 0) -> Iterator[PodProcess]:
    delay = folder / f"{name}.delay"
    delay.write_text(str(seconds))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.gateway.pod_process", name, str(delay)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield PodProcess(process, process.stdout.readline().strip(), delay)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def named(stream: bytes) -> str:
    """The name of the pod that answered, from a stream as the client has it."""
    chunks = [json.loads(line[6:]) for line in stream.split(b"\n") if line.startswith(b"data: {")]
    assert all("error" not in chunk for chunk in chunks), chunks
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


def main(name: str, delay: Path) -> None:
    def script(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(float(delay.read_text()))
        answer = Answer.new(kind_of(body), body["model"])
        handler.start_stream()
        for piece in (noted(1, [1], answer.delta(name)), noted(1, [], answer.last("stop"))):
            handler.send_piece(piece)
        handler.send_piece(noted(1, [], answer.usage(Usage(5, 1))) + sse.DONE)
        handler.end_stream()

    with scripted_pod(script) as url:
        print(url, flush=True)  # noqa: T201
        sys.stdin.read()  # until whoever started it is gone


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
