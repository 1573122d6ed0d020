"""Many streams at once: `python -m bench.gateway.streams URL KEY STREAMS SECONDS PID` opens them, keeps them open, and
says as JSON how long tokens were on their way, and what the server whose process is PID spent on them.

The delay of a token is from the pod's sending it (see `bench.gateway.pod`) to its having been read here, by the same
clock. So it holds whatever lies between, and the sockets of pod and client besides.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from array import array
from typing import Any
from urllib.parse import urlsplit

from bench.gateway.pod import MODEL, RATE
from bench.machine import cpu_seconds, memory

MARK = b'"content":"@'
OPENED_PER_SECOND = 200
SETTLING = 2.0
"""Seconds between the last stream's opening and the first token that counts."""
OPENING_LIMIT = 60.0


class Client(asyncio.Protocol):
    """One stream."""

    def __init__(self, request: bytes, tally: Tally) -> None:
        self._request = request
        self._tally = tally
        self._rest = b""
        self._begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        *frames, self._rest = (self._rest + data).split(b"\n\n")
        for frame in frames:
            at = frame.find(MARK)
            if at < 0:
                continue
            at += len(MARK)
            if not self._begun:
                self._begun = True
                self._tally.open += 1
            if self._tally.counting:
                self._tally.delays.append((now - int(frame[at : frame.index(b'"', at)])) / 1e9)

    def connection_lost(self, _error: Exception | None) -> None:
        self._tally.lost += 1


class Tally:
    """What all clients saw together. delays: seconds that each token was on its way, while `counting`."""

    def __init__(self) -> None:
        self.open = self.lost = 0
        self.counting = False
        self.delays = array("d")


async def measure(url: str, key: str, streams: int, seconds: float, pid: int) -> dict[str, Any]:
    """
    Returns:
        streams, lost; tokens and those that were due; delay_p50, delay_p99, delay_max in seconds; cpu: the server's
        seconds a second; cpu_per_chunk: its seconds for one token of one stream; memory_per_stream: bytes.

    Raises:
        RuntimeError: the streams did not all begin.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    body = json.dumps(
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Tell me a story that does not end."}],
            "max_tokens": int(RATE * (OPENING_LIMIT + SETTLING + seconds)),
            "stream": True,
        }
    ).encode()
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    tally, loop = Tally(), asyncio.get_running_loop()
    before = memory(pid)
    deadline = time.monotonic() + OPENING_LIMIT
    for _ in range(streams):
        await loop.create_connection(lambda: Client(request, tally), host, port)
        await asyncio.sleep(1 / OPENED_PER_SECOND)
    while tally.open < streams:
        if time.monotonic() > deadline or tally.lost:
            raise RuntimeError(f"only {tally.open} of {streams} streams began, {tally.lost} were lost")
        await asyncio.sleep(0.05)
    await asyncio.sleep(SETTLING)

    tally.counting, spent, begin = True, cpu_seconds(pid), time.monotonic()
    await asyncio.sleep(seconds)
    tally.counting, spent, took = False, cpu_seconds(pid) - spent, time.monotonic() - begin
    cuts = statistics.quantiles(tally.delays, n=100)
    return {
        "streams": streams,
        "lost": tally.lost,
        "tokens": len(tally.delays),
        "due": int(streams * RATE * took),
        "delay_p50": cuts[49],
        "delay_p99": cuts[98],
        "delay_max": max(tally.delays),
        "cpu": spent / took,
        "cpu_per_chunk": spent / len(tally.delays),
        "memory_per_stream": (memory(pid) - before) / streams,
    }


def main() -> None:
    url, key, streams, seconds, pid = sys.argv[1:]
    print(json.dumps(asyncio.run(measure(url, key, int(streams), float(seconds), int(pid)))))


if __name__ == "__main__":
    main()
