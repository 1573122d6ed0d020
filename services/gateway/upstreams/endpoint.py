"""Where a pod is, as whoever knows it says: a list, a name service, Kubernetes."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlunsplit


@dataclass(frozen=True)
class Endpoint:
    """Where a pod is. `ready`: whether who named it says that it may take requests. `model`: what it says it serves."""

    url: str
    ready: bool = True
    model: str | None = None


def url_of(scheme: str, address: str, port: int, path: str = "") -> str:
    """A pod's base URL; an IPv6 address gets its brackets."""
    host = f"[{address}]" if ipaddress.ip_address(address).version == 6 else address
    return urlunsplit((scheme, f"{host}:{port}", path, "", ""))
