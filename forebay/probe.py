"""Asking a running child how it is, over its own port."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

TIMEOUT = 1.0
"""Seconds a child on loopback has for its answer."""


@dataclass(frozen=True)
class Health:
    """A child's own word on its state."""

    state: Literal["ready", "loading", "failed", "silent"]
    """`loading` gets ready by itself, `failed` never does, `silent` gave no answer."""
    detail: str = ""
    """The phase of the load, or the reason of the failure."""
    models: tuple[str, ...] = ()
    """The models that a pod serves."""


Probe = Callable[[], Health]


def http_ready(host: str, port: int, *, needs_models: bool = False) -> Probe:
    """A probe of `GET /readyz`. With `needs_models`, one that is up but has nothing to serve still counts as loading: a
    gateway that has not found its pods yet."""

    def ask() -> Health:
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            health = read_readiness(answer.status, answer.read())
        except (OSError, http.client.HTTPException):
            return Health("silent")
        finally:
            connection.close()
        return Health("loading", "looking for its pods") if needs_models and health == Health("ready") else health

    return ask


def read_readiness(status: int, body: bytes) -> Health:
    """What an answer of `/readyz` means (docs/architecture.md, "On the wire")."""
    try:
        found: Any = json.loads(body)
    except ValueError:
        found = {}
    said = found if isinstance(found, dict) else {}
    if status == 200:
        return Health("ready", models=tuple(str(name) for name in said.get("models") or ()))
    if said.get("status") == "failed":
        return Health("failed", str(said.get("reason") or "it gave no reason"))
    return Health("loading", str(said.get("phase") or said.get("reason") or ""))


def cache_ready(host: str, port: int, password: str) -> Probe:
    """A probe of a Valkey server: logs in and says PING, in the protocol's inline form."""

    def ask() -> Health:
        try:
            with socket.create_connection((host, port), timeout=TIMEOUT) as connection:
                connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2:
                    piece = connection.recv(256)
                    if not piece:
                        return Health("silent")
                    answer += piece
        except OSError:
            return Health("silent")
        return Health("ready") if answer.startswith(b"+OK\r\n+PONG") else Health("loading", "LOADING")

    return ask


def reachable(host: str, port: int) -> bool:
    """Whether something listens there."""
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT):
            return True
    except OSError:
        return False
