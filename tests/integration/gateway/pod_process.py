"""A scripted pod in a process of its own: `python -m tests.integration.gateway.pod_process NAME FILE` prints its URL.

It answers looks at once, and requests in two tokens, its name and "!", after as many seconds as FILE says at that
moment, of which the second number is between the tokens. An answer whose first token is given goes on with the second.
FILE.seen gets a line for each request that has come and each first token that has gone.
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

    def seen(self, what: str) -> int:
        """Requests that have `come`, or that have `begun` to be answered."""
        log = self._delay.with_suffix(".seen")
        return log.read_text().split().count(what) if log.exists() else 0

    def answers_after(self, seconds: float, between: float = 0) -> None:
        self._delay.write_text(f"{seconds} {between}")


@contextmanager
def pod_process(folder: Path, name: str, *, seconds: float = 0, between: float = 0) -> Iterator[PodProcess]:
    delay = folder / f"{name}.delay"
    delay.write_text(f"{seconds} {between}")
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


def text_of(stream: bytes) -> str:
    """The text of a whole stream as the client has it."""
    assert stream.endswith(sse.DONE)
    chunks = [json.loads(line[6:]) for line in stream.split(b"\n") if line.startswith(b"data: {")]
    assert all("error" not in chunk for chunk in chunks), chunks
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


def main(name: str, delay: Path) -> None:
    def note(what: str) -> None:
        with delay.with_suffix(".seen").open("a") as log:
            log.write(f"{what}\n")

    def script(handler: Handler, body: dict[str, Any]) -> None:
        before, between = map(float, delay.read_text().split())
        note("come")
        time.sleep(before)
        answer = Answer.new(kind_of(body), body["model"])
        handler.start_stream()
        if not body.get("resume_token_ids"):
            handler.send_piece(noted(1, [1], answer.delta(name)))
            note("begun")
            time.sleep(between)
        handler.send_piece(noted(2, [2], answer.delta("!")))
        handler.send_piece(noted(2, [], answer.last("stop")))
        handler.send_piece(noted(2, [], answer.usage(Usage(5, 2))) + sse.DONE)
        handler.end_stream()

    with scripted_pod(script) as url:
        print(url, flush=True)  # noqa: T201
        sys.stdin.read()  # until whoever started it is gone


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
