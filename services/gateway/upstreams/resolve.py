"""Which URLs the pods have now: fixed ones, and the addresses behind a name that are looked up again and again.

`dns+http://HOST:PORT` stands for one pod at each address of HOST, as the headless Service of a Deployment gives them.
Anything else that knows pods (Kubernetes' EndpointSlices, say) can stand beside this as another source of URLs.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import time
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit, urlunsplit

log = logging.getLogger("forebay.upstreams")
DNS_PREFIX = "dns+"
RESOLVE_INTERVAL = 3.0
"""Seconds that an answer of the name service is used; with the look that follows, a new pod is found within ten."""
NO_SUCH_NAME = (socket.EAI_NONAME, socket.EAI_NODATA)
"""What name services say of a headless Service without a ready pod."""

Lookup = Callable[[str, int], list[str]]


def addresses(host: str, port: int) -> list[str]:
    """The IP addresses of a name, in a steady order.

    Raises:
        OSError: the name service did not answer.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in NO_SUCH_NAME:
            return []
        raise
    return sorted({str(row[4][0]) for row in found})


class Source:
    """The pods' URLs, from a list whose entries are URLs or names to be looked up."""

    def __init__(
        self, entries: Iterable[str], *, lookup: Lookup = addresses, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._entries = list(entries)
        self._lookup = lookup
        self._clock = clock
        self._answers: dict[str, tuple[float, list[str]]] = {}

    def urls(self) -> list[str]:
        """The URLs of all pods there are now. While the name service does not answer, its last answer stands."""
        found: dict[str, None] = {}
        for entry in self._entries:
            found.update(dict.fromkeys(self._resolve(entry) if entry.startswith(DNS_PREFIX) else [entry]))
        return list(found)

    def _resolve(self, entry: str) -> list[str]:
        now = self._clock()
        until, urls = self._answers.get(entry, (0.0, []))
        if now < until:
            return urls
        parts = urlsplit(entry.removeprefix(DNS_PREFIX))
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            hosts = self._lookup(parts.hostname or "", port)
        except OSError as error:
            log.warning("name not resolved", extra={"upstream": entry, "error": str(error)})
        else:
            urls = [urlunsplit((parts.scheme, f"{_bracketed(host)}:{port}", parts.path, "", "")) for host in hosts]
        self._answers[entry] = (now + RESOLVE_INTERVAL, urls)
        return urls


def _bracketed(host: str) -> str:
    return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
