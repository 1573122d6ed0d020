"""A pod that keeps how long each token was on its way: `GET /bench/delays` gives, and forgets, the seconds between the
engine's handing a token out and its frame's having been written to the socket.

The product is as it is; only its application is wrapped. gunicorn asks for the next frame when it has written the one
before, so the time at which it asks is the time at which that one had left.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flask import Flask, Response, jsonify

from services.common.sse import NOTE_PREFIX
from services.inference.app import create_app

delays: list[float] = []
request = threading.local()
"""When the engine handed out each token of the request that this thread serves."""


def instrumented() -> Flask:
    """The application of a pod, wrapped."""
    from services.inference.engine.engine import Engine  # noqa: PLC0415
    from services.inference.engine.generation import Generation, Piece  # noqa: PLC0415

    if "BENCH_SWITCH_INTERVAL" in os.environ:
        sys.setswitchinterval(float(os.environ["BENCH_SWITCH_INTERVAL"]))
    put, submit = Generation.put, Engine.submit

    def timed_put(self: Any, piece: Any) -> None:
        if isinstance(piece, Piece):
            self.__dict__.setdefault("handed_out", []).append(time.monotonic())
        put(self, piece)

    def noted_submit(*args: Any, **more: Any) -> Generation:
        generation = submit(*args, **more)
        request.handed_out = generation.__dict__.setdefault("handed_out", [])
        return generation

    Generation.put = timed_put  # type: ignore[method-assign]
    Engine.submit = noted_submit  # type: ignore[method-assign]
    app = create_app()
    app.wsgi_app = _watched(app.wsgi_app)  # type: ignore[method-assign]

    @app.get("/bench/delays")
    def give_delays() -> Response:
        given = delays.copy()
        delays.clear()
        return jsonify(given)

    return app


def _watched(wsgi: Callable[..., Iterable[bytes]]) -> Any:
    def answer(environ: Any, start_response: Any) -> Iterator[bytes]:
        body = wsgi(environ, start_response)
        try:
            for frame in body:
                yield frame
                written = time.monotonic()
                if frame.startswith(NOTE_PREFIX):
                    note = json.loads(frame[len(NOTE_PREFIX) : frame.index(b"\n")])
                    if note["token_ids"]:  # the last of them is what the frame waited for
                        delays.append(written - request.handed_out[note["completion_tokens"] - 1])
        finally:
            body.close()  # type: ignore[attr-defined]

    return answer
