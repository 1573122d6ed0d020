"""Which URLs the pods have now: fixed ones, the addresses behind a name, and what Kubernetes says.

`dns+http://HOST:PORT` stands for one pod at each address of HOST, as the headless Service of a Deployment gives them;
it is looked up again and again. `k8s+http://NAMESPACE` stands for the endpoints of the Services that select pods of a
model there, which are watched (`slices`).
"""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from services.gateway.upstreams.endpoint import Endpoint, url_of

if TYPE_CHECKING:
    from services.gateway.upstreams.slices import SliceWatch

log = logging.getLogger("forebay.upstreams")
DNS_PREFIX = "dns+"
KUBERNETES_PREFIX = "k8s+"
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
    """The pods, from a list whose entries are URLs, names to be looked up, or namespaces to be watched."""

    def __init__(
        self, entries: Iterable[str], *, lookup: Lookup = addresses, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Raises:
            ValueError: an entry that begins with `k8s+` is none that can be watched, or no cluster is configured.
        """
        self._entries = list(entries)
        self._lookup = lookup
        self._clock = clock
        self._answers: dict[str, tuple[float, list[str]]] = {}
        self._watches = {entry: _watch(entry) for entry in self._entries if entry.startswith(KUBERNETES_PREFIX)}

    def start(self, changed: Callable[[], None]) -> None:
        """Begins to watch, in the background; calls `changed` when pods have come or gone."""
        for watch in self._watches.values():
            watch.start(changed)

    def stop(self) -> None:
        for watch in self._watches.values():
            watch.stop()

    def heard_at(self) -> dict[str, float]:
        """When Kubernetes last said how things are, in Unix seconds, by namespace: of several watches the oldest."""
        heard: dict[str, float] = {}
        for watch in self._watches.values():
            heard[watch.namespace] = min(watch.heard_at, heard.get(watch.namespace, math.inf))
        return heard

    def endpoints(self) -> list[Endpoint]:
        """All pods there are now, each URL once. While a name service or Kubernetes does not answer, what it said last
        stands."""
        found: dict[str, Endpoint] = {}
        for entry in self._entries:
            if entry in self._watches:
                named = self._watches[entry].endpoints()
            elif entry.startswith(DNS_PREFIX):
                named = [Endpoint(url) for url in self._resolve(entry)]
            else:
                named = [Endpoint(entry)]
            for endpoint in named:
                found.setdefault(endpoint.url, endpoint)
        return list(found.values())

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
            urls = [url_of(parts.scheme, host, port, parts.path) for host in hosts]
        self._answers[entry] = (now + RESOLVE_INTERVAL, urls)
        return urls


def _watch(entry: str) -> SliceWatch:
    # Here, not above: the client of Kubernetes is heavy, and most gateways are told their pods.
    from services.gateway.upstreams.slices import open_watch  # noqa: PLC0415

    return open_watch(entry.removeprefix(KUBERNETES_PREFIX))
