"""A pod that generates nothing and is never the bottleneck: `python -m bench.gateway.pod PORT`.

It speaks what our pods speak, on bare asyncio. Streams come as from a fleet: `PODS` pods, each with a step every
`1 / RATE` seconds at a time of its own, which gives each of its streams a token. The text of a token is `@` and the
monotonic clock's nanoseconds at which it was sent, so that a client on the same machine knows how long it was on its
way.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from itertools import cycle

from services.common import sse
from services.common.wire import Answer, Usage

MODEL = "mock"
PODS = 25
RATE = 20
"""Tokens a second of each stream."""
PROMPT_TOKENS = 20
ANSWER_TOKENS = 16

READY = {"status": "ready", "models": [MODEL]}
MODELS = {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "forebay"}]}
HEAD = Answer("chat", f"chatcmpl-{'0' * 32}", MODEL, 1_700_000_000)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_before, _, _after = sse.event(HEAD.delta("@")).partition(b"@")


def whole(body: object) -> bytes:
    """A response that is not streamed."""
    data = sse.dump(body)
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


ANSWER = whole(HEAD.whole([("word " * ANSWER_TOKENS, "stop")], Usage(PROMPT_TOKENS, ANSWER_TOKENS, 0, 0.01)))
GETS = {b"/readyz": whole(READY), b"/healthz": whole({"status": "ok"}), b"/v1/models": whole(MODELS)}


class Stream:
    """One answer on its way, a token at each step."""

    def __init__(self, transport: asyncio.Transport, tokens: int) -> None:
        self.transport = transport
        self._tokens = tokens
        self._count = 0
        note = {"completion_tokens": 0, "token_ids": [], "prompt_tokens": PROMPT_TOKENS}
        transport.write(STREAM_HEAD + chunk(sse.note(note) + sse.event(HEAD.first())))

    def step(self) -> bool:
        """Sends a token, or the end; whether there is more to come."""
        if self.transport.is_closing():
            return False
        if self._count == self._tokens:
            usage = Usage(PROMPT_TOKENS, self._count, 0, 0.01 * self._count)
            last = sse.note({"completion_tokens": self._count, "token_ids": []}) + sse.event(HEAD.last("length"))
            end = chunk(last) + chunk(sse.event(HEAD.usage(usage))) + chunk(sse.DONE) + b"0\r\n\r\n"
            self.transport.write(end)
            return False
        self._count += 1
        note = sse.NOTE_PREFIX + b'{"completion_tokens":%d,"token_ids":[%d]}\n' % (self._count, 40000 + self._count)
        self.transport.write(chunk(note + _before + b"@%d" % time.monotonic_ns() + _after))
        return True


steps: list[set[Stream]] = [set() for _ in range(PODS)]
turns: Iterator[set[Stream]] = cycle(steps)


class Connection(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self) -> None:
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._rest += data
        while (end := self._rest.find(b"\r\n\r\n")) >= 0:
            head = self._rest[:end]
            at = head.lower().find(b"\r\ncontent-length:")
            length = int(head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._rest) < end + 4 + length:
                return
            body, self._rest = self._rest[end + 4 : end + 4 + length], self._rest[end + 4 + length :]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        method, path, _ = head.split(b" ", 2)
        if method == b"GET":
            self._transport.write(GETS.get(path, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"))
        elif b'"stream":true' in body:
            asked = json.loads(body)
            next(turns).add(Stream(self._transport, asked.get("max_tokens") or ANSWER_TOKENS))
        else:
            self._transport.write(ANSWER)


async def step_for_ever() -> None:
    """Each pod's step in turn, at an even pace; when late, as fast as it can."""
    at = time.monotonic()
    while True:
        for streams in steps:
            streams -= {stream for stream in list(streams) if not stream.step()}
            at += 1 / (RATE * PODS)
            await asyncio.sleep(max(0.0, at - time.monotonic()))


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_server(Connection, "127.0.0.1", port, backlog=2048)
    await step_for_ever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
