"""A small OpenID Connect issuer over HTTP: signs tokens, publishes its keys, and changes them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

AUDIENCE = "forebay-tests"


class Issuer:
    """The issuer at `url`. `held` closes its mouth: while it is clear, documents wait."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[str] = []
        self.published: list[dict[str, Any]] = []
        self.discovery: dict[str, Any] = {"issuer": url, "jwks_uri": f"{url}/keys"}
        self.status = 200
        self.held = threading.Event()
        self.held.set()
        self._keys: dict[str, tuple[Any, str]] = {}

    def new_key(self, kid: str, algorithm: str = "RS256", *, publish: bool = True) -> None:
        """Makes a key pair and publishes the public half beside the others."""
        private: Any
        if algorithm.startswith("ES"):
            private = ec.generate_private_key(ec.SECP256R1())
            public = ECAlgorithm.to_jwk(private.public_key(), as_dict=True)
        elif algorithm == "EdDSA":
            private = ed25519.Ed25519PrivateKey.generate()
            public = OKPAlgorithm.to_jwk(private.public_key(), as_dict=True)
        else:
            private = rsa.generate_private_key(65537, 2048)
            public = RSAAlgorithm.to_jwk(private.public_key(), as_dict=True)
        self._keys[kid] = private, algorithm
        if publish:
            self.published.append({**public, "kid": kid, "use": "sig"})

    def withdraw(self, kid: str) -> None:
        self.published = [key for key in self.published if key["kid"] != kid]

    def private_key(self, kid: str) -> Any:
        return self._keys[kid][0]

    def token(self, kid: str, *, headers: dict[str, Any] | None = None, **changes: Any) -> str:
        """A token that is good for a minute; `changes` are other claims, those of None are left out."""
        private, algorithm = self._keys[kid]
        claims = {"iss": self.url, "aud": AUDIENCE, "sub": "ada", "exp": int(time.time()) + 60, "tenant": "demo"}
        claims |= {"iat": int(time.time()), "groups": ["llm-users"]}
        claims = {name: value for name, value in {**claims, **changes}.items() if value is not None}
        named = {name: value for name, value in {"kid": kid, **(headers or {})}.items() if value is not None}
        return jwt.encode(claims, private, algorithm=algorithm, headers=named)

    def document(self, path: str) -> dict[str, Any] | None:
        return {"/.well-known/openid-configuration": self.discovery, "/keys": {"keys": self.published}}.get(path)


@contextmanager
def running_issuer(port: int = 0) -> Iterator[Issuer]:
    """An issuer that answers, ended with the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.requests.append(self.path)
            issuer.held.wait(30)
            document = issuer.document(self.path)
            body = json.dumps(document).encode()
            self.send_response(issuer.status if document is not None else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    issuer = Issuer(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield issuer
    finally:
        issuer.held.set()
        server.shutdown()
        server.server_close()
        thread.join()
