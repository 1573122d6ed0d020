"""An API server of Kubernetes that has EndpointSlices: a real HTTPS server on loopback that speaks the list and watch
protocol, with resource versions, label selectors, bookmarks, 410 and bearer tokens, and that can be restarted.

https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class KubernetesApi:
    """The cluster's state, and the server that tells it. `account` is the folder that a pod would have mounted."""

    def __init__(self, folder: Path) -> None:
        self.account = folder
        self.requests: list[dict[str, str]] = []
        """The queries of all lists and watches that were let in."""
        self.refused = 0
        self._certificate(folder)
        self._changed = threading.Condition()
        self._version = 100
        self._oldest = 0
        self._slices: dict[tuple[str, str], dict[str, Any]] = {}
        self._history: list[tuple[int, str, dict[str, Any]]] = []
        self._server: ThreadingHTTPServer | None = None
        self._open: set[socket.socket] = set()
        self._generation = 0
        self._watching: Counter[int] = Counter()
        self._address = ("127.0.0.1", 0)
        self.let_in("token-1")
        (folder / "namespace").write_text("models\n")

    @property
    def environment(self) -> dict[str, str]:
        """By which a pod finds the server."""
        return {"KUBERNETES_SERVICE_HOST": self._address[0], "KUBERNETES_SERVICE_PORT": str(self._address[1])}

    def let_in(self, token: str) -> None:
        """Takes no other token from now on; the pod's file has it."""
        self.token = token
        (self.account / "token").write_text(token)

    def put(self, one: dict[str, Any]) -> None:
        key = (one["metadata"]["namespace"], one["metadata"]["name"])
        with self._changed:
            kind = "MODIFIED" if key in self._slices else "ADDED"
            self._slices[key] = self._tell(kind, one)

    def delete(self, name: str, namespace: str = "models") -> None:
        with self._changed:
            self._tell("DELETED", self._slices.pop((namespace, name)))

    def bookmark(self) -> str:
        """Tells watchers a version; returns it."""
        with self._changed:
            return str(self._tell("BOOKMARK", {"metadata": {}})["metadata"]["resourceVersion"])

    def forget(self) -> None:
        """Compacts the history, as etcd does; a watch from an earlier version is answered 410."""
        with self._changed:
            self._version += 1
            self._oldest = self._version
            self._history.clear()
            self._changed.notify_all()

    def end_watches(self) -> None:
        """Ends those that run in order, as their time-outs do; whoever watches may begin anew meanwhile."""
        with self._changed:
            ended = range(self._generation + 1)
            self._generation += 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: not any(self._watching[one] for one in ended), timeout=20)

    def reset_connections(self) -> None:
        """Cuts them, as a load balancer that is restarted does."""
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def start(self) -> None:
        handler = type("Bound", (Handler,), {"api": self})
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.account / "ca.crt", self.account / "ca.key")
        self._server = ThreadingHTTPServer(self._address, handler)
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._address = ("127.0.0.1", self._server.server_port)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        self.end_watches()
        self.reset_connections()

    def await_request(self, **query: str) -> None:
        """Waits until a list or watch with these parameters has come."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: any(query.items() <= request.items() for request in self.requests), timeout=20
            ), f"no request with {query}"

    def await_refusals(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.refused >= count, timeout=20)

    def let_through(self, token: str | None, query: dict[str, str]) -> bool:
        with self._changed:
            allowed = token is not None and token.lower() == f"bearer {self.token}"
            if allowed:
                self.requests.append(query)
            else:
                self.refused += 1
            self._changed.notify_all()
            return allowed

    def listing(self, namespace: str, selector: str) -> dict[str, Any]:
        with self._changed:
            items = [one for (where, _), one in self._slices.items() if where == namespace and matches(one, selector)]
            return {
                "kind": "EndpointSliceList",
                "apiVersion": "discovery.k8s.io/v1",
                "metadata": {"resourceVersion": str(self._version)},
                "items": items,
            }

    @contextmanager
    def a_watch(self) -> Iterator[int]:
        """Gives the generation of watches that it belongs to."""
        with self._changed:
            generation = self._generation
            self._watching[generation] += 1
        try:
            yield generation
        finally:
            with self._changed:
                self._watching[generation] -= 1
                self._changed.notify_all()

    def events(self, namespace: str, selector: str, query: dict[str, str], generation: int) -> Iterator[dict[str, Any]]:
        version, until = int(query["resourceVersion"]), time.monotonic() + float(query.get("timeoutSeconds", "3600"))
        while True:
            with self._changed:
                if version < self._oldest:
                    yield {"type": "ERROR", "object": gone()}
                    return
                news = [(number, kind, one) for number, kind, one in self._history if number > version]
                if not news:
                    if generation != self._generation or time.monotonic() >= until:
                        return
                    self._changed.wait(until - time.monotonic())
                    continue
            for number, kind, one in news:
                version = number
                if kind == "BOOKMARK":
                    if query.get("allowWatchBookmarks"):
                        yield {"type": kind, "object": one}
                elif one["metadata"]["namespace"] == namespace and matches(one, selector):
                    yield {"type": kind, "object": one}

    def too_old(self, query: dict[str, str]) -> bool:
        return int(query.get("resourceVersion", self._oldest)) < self._oldest

    def _tell(self, kind: str, one: dict[str, Any]) -> dict[str, Any]:
        self._version += 1
        told = {**one, "metadata": {**one["metadata"], "resourceVersion": str(self._version)}}
        self._history.append((self._version, kind, told))
        self._changed.notify_all()
        return told

    def _certificate(self, folder: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kubernetes")])
        now = datetime.datetime.now(datetime.UTC)
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        signed = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(address, critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        (folder / "ca.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        (folder / "ca.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: KubernetesApi

    def setup(self) -> None:
        super().setup()
        self.api._open.add(self.connection)

    def finish(self) -> None:
        self.api._open.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with suppress(OSError, ssl.SSLError):
            super().handle()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        *front, namespace, kind = url.path.split("/")
        assert front == ["", "apis", "discovery.k8s.io", "v1", "namespaces"], self.path
        assert kind == "endpointslices"
        selector = query.get("labelSelector", "")
        if not self.api.let_through(self.headers["Authorization"], query):
            self.answer(401, {"kind": "Status", "code": 401, "reason": "Unauthorized"})
        elif query.get("watch", "").lower() not in ("true", "1"):
            self.answer(200, self.api.listing(namespace, selector))
        elif self.api.too_old(query):
            self.answer(410, gone())
        else:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with self.api.a_watch() as generation:
                for event in self.api.events(namespace, selector, query, generation):
                    self.chunk(json.dumps(event).encode() + b"\n")
                self.chunk(b"")

    def answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def chunk(self, data: bytes) -> None:
        # In two pieces, as a line of a watch need not come in one.
        for piece in (data[:7], data[7:]) if data else (b"",):
            if piece or not data:
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def kubernetes_api(folder: Path) -> Iterator[KubernetesApi]:
    """A running API server, whose service account lies in `folder`."""
    api = KubernetesApi(folder)
    api.start()
    try:
        yield api
    finally:
        with suppress(OSError):
            api.stop()


def endpoint_slice(name: str, *endpoints: dict[str, Any], namespace: str = "models", **more: Any) -> dict[str, Any]:
    """A slice as the control plane makes it for the headless Service of a model's pods."""
    return {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": name, "forebay.dev/model": "small"},
        },
        "addressType": "IPv4",
        "endpoints": list(endpoints),
        "ports": [{"name": "metrics", "port": 9090, "protocol": "TCP"}, {"name": "http", "port": 8000}],
        **more,
    }


def endpoint(address: str, **conditions: bool) -> dict[str, Any]:
    return {"addresses": [address], "conditions": {"ready": True, "serving": True, "terminating": False, **conditions}}


def matches(one: dict[str, Any], selector: str) -> bool:
    """Whether an object has the labels of a selector made of `name`, `!name` and `name=value`."""
    labels = one["metadata"].get("labels", {})
    for term in filter(None, selector.split(",")):
        name, equals, value = term.partition("=")
        if name.startswith("!"):
            if name[1:] in labels:
                return False
        elif name not in labels or (equals and labels[name] != value):
            return False
    return True


def gone() -> dict[str, Any]:
    return {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
