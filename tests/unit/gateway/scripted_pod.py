"""A pod whose answers a test scripts: a real HTTP server on loopback that speaks what a pod speaks.

For what a real pod cannot be made to do on demand: break in mid-stream, answer garbage, refuse, never answer.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    script: Script
    owner: str
    model: str
    loaded: threading.Event

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)  # type: ignore[attr-defined]

    def finish(self) -> None:
        self.server.connections.discard(self.connection)  # type: ignore[attr-defined]
        super().finish()

    def do_GET(self) -> None:
        if self.path == "/readyz" and not self.loaded.is_set():
            self.answer(503, {"status": "loading", "phase": "pack", "models": [self.model]})
        elif self.path == "/readyz":
            self.answer(200, {"status": "ready"})
        else:
            row = {"id": self.model, "object": "model", "owned_by": self.owner}
            self.answer(200, {"object": "list", "data": [row]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).script(self, body)

    def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def start_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send_piece(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def break_off(self) -> None:
        """Ends the connection without the end of the body, as a killed process does."""
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def scripted_pod(
    script: Script,
    owner: str = "forebay",
    model: str = "m",
    port: int = 0,
    loaded: threading.Event | None = None,
) -> Iterator[str]:
    """The base URL of a running pod that answers every POST by `script(handler, body)`; `owner` as its models name it,
    by which the gateway tells our engine from others. It is not ready before `loaded`, where that is given."""
    if loaded is None:
        loaded = threading.Event()
        loaded.set()
    own = {"script": staticmethod(script), "owner": owner, "model": model, "loaded": loaded}
    handler = type("Scripted", (Handler,), own)
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    server.connections = set()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        for connection in list(server.connections):  # type: ignore[attr-defined]
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
