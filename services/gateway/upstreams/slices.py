"""The pods that Kubernetes knows, by a watch of the EndpointSlices of the Services that select pods of a model.

One list, then a watch from its resource version on, as the API's concepts page has it ("Efficient detection of
changes"): bookmarks move the version on while nothing changes, a version that is gone (410) needs a new list, and so
does any other failure, after a pause. Until the list is there, the last picture stands: an API server that restarts
takes no pod away.

The connection, its certificates and its token are the client's; the objects are read as the JSON that they are, since
the client's models cost a gateway that serves streams milliseconds a slice, and its `Watch` keeps a 410 to itself. In a
gevent worker the thread here is a greenlet, and the client's sockets wait in the loop like all others.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubernetes import client, config
from kubernetes.config.incluster_config import InClusterConfigLoader
from urllib3.exceptions import HTTPError

from services.gateway.upstreams.endpoint import Endpoint, url_of

log = logging.getLogger("forebay.upstreams")
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
MODEL_LABEL = "forebay.dev/model"
SELECTOR = f"{MODEL_LABEL},!forebay.dev/scrape"
"""Slices have the labels of their Service. Not those that exist for the scraping of metrics."""
PORT_NAME = "http"
WATCH_SECONDS = 60
"""After which the server ends a watch, and it goes on anew where it stood: so long a dead connection is not noticed."""
LIST_SECONDS = 10.0
CONNECT_SECONDS = 5.0
GONE = 410
"""The status of a version that is too old, of the answer or in the stream."""
PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds before a try after a failure; doubled at each failure in a row, and spread, so that not all gateways come to
a restarted API server at once."""

Slice = dict[str, Any]
FAILURES = (client.ApiException, config.ConfigException, HTTPError, OSError, ValueError, KeyError, TypeError)


class Gone(Exception):
    """The version to go on from is too old; only a list tells what there is."""


def open_watch(entry: str, account: Path = ACCOUNT) -> SliceWatch:
    """The watch for an entry of `upstreams` without its prefix: `http://NAMESPACE[:PORT][?labelSelector=…]`.

    Args:
        account: folder of the service account: its token, certificate and namespace. Outside a cluster, KUBECONFIG.

    Raises:
        ValueError: the entry names no namespace and this is no pod, or no cluster is configured.
    """
    parts = urlsplit(entry)
    namespace = parts.hostname
    if not namespace:
        try:
            namespace = (account / "namespace").read_text().strip()
        except OSError:
            raise ValueError(f"k8s+{entry} names no namespace, and this is not a pod, which has one.") from None
    selector = parse_qs(parts.query).get("labelSelector", [SELECTOR])[0]

    def connect() -> client.DiscoveryV1Api:
        settings = client.Configuration()
        settings.retries = False
        if account.is_dir():
            # A new loader for each try: it reads the token file, which the kubelet renews, at once and every minute.
            loader = InClusterConfigLoader(str(account / "token"), str(account / "ca.crt"))  # type: ignore[no-untyped-call]
            loader.load_and_set(settings)  # type: ignore[no-untyped-call]
        else:
            config.load_kube_config(client_configuration=settings)  # type: ignore[no-untyped-call]
        return client.DiscoveryV1Api(client.ApiClient(settings))

    try:
        connect()
    except config.ConfigException as error:
        raise ValueError(f"No cluster to watch for k8s+{entry}: {error}") from error
    return SliceWatch(connect, namespace, selector, scheme=parts.scheme, port=parts.port)


class SliceWatch:
    """The endpoints of the slices that a selector finds in a namespace."""

    def __init__(
        self,
        connect: Callable[[], client.DiscoveryV1Api],
        namespace: str,
        selector: str,
        *,
        scheme: str = "http",
        port: int | None = None,
    ) -> None:
        """
        Args:
            connect: a client of the API with fresh credentials.
            port: of the pods; by default the slices' port named `http`, or else their first.
        """
        self._connect = connect
        self._selector = selector
        self._scheme = scheme
        self._port = port
        self.namespace = namespace
        self.heard_at = time.time()
        """When the API server last said how things are, in Unix seconds; before that, when the watch was made."""
        self._slices: dict[str, Slice] = {}
        self._changed: Callable[[], None] = lambda: None
        self._stopped = threading.Event()
        self._response: Any = None

    def endpoints(self) -> list[Endpoint]:
        """The pods of the last picture, without those that terminate: what runs there goes on, and nothing new goes
        there. A pod that two slices name is ready when one of them says so."""
        found: dict[str, Endpoint] = {}
        for one in list(self._slices.values()):
            for endpoint in endpoints_of(one, self._scheme, self._port):
                if endpoint.ready or endpoint.url not in found:
                    found[endpoint.url] = endpoint
        return list(found.values())

    def start(self, changed: Callable[[], None]) -> None:
        """Begins to watch in the background."""
        self._changed = changed
        threading.Thread(target=self._run, name="slices", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        response = self._response
        if response is not None:
            with suppress(Exception):  # it may end by itself at the same moment
                response.shutdown()

    def _run(self) -> None:
        failures = 0
        while not self._stopped.is_set():
            try:
                api = self._connect()
                version = self._list(api)
                if failures:
                    log.info("the watch of EndpointSlices goes on", extra={"namespace": self.namespace})
                failures = 0
                while not self._stopped.is_set():
                    version = self._follow(api, version)
            except Gone:
                self._stopped.wait(PAUSE)  # also where a server forgets all the time
            except FAILURES as error:
                if self._stopped.is_set():
                    return
                if not failures:
                    reason = f"{type(error).__name__}: {error}".splitlines()[0]
                    log.warning("EndpointSlices not watched", extra={"namespace": self.namespace, "reason": reason})
                pause = min(PAUSE * 2.0 ** min(failures, 10), LONGEST_PAUSE)
                failures += 1
                self._stopped.wait(pause * random.uniform(0.5, 1))  # noqa: S311

    def _list(self, api: client.DiscoveryV1Api) -> str:
        """Takes a new picture; returns its version."""
        response = self._ask(api, LIST_SECONDS)
        try:
            answer = json.loads(response.data)
        finally:
            response.release_conn()
        self._slices = {one["metadata"]["name"]: one for one in answer["items"]}
        self.heard_at = time.time()
        self._changed()
        version: str = answer["metadata"]["resourceVersion"]
        return version

    def _follow(self, api: client.DiscoveryV1Api, version: str) -> str:
        """Applies what changes from a version on, until the server ends the watch; returns the version then.

        Raises:
            Gone: the server does not remember that version.
        """
        began = time.monotonic()
        response = self._response = self._ask(
            api,
            WATCH_SECONDS + LIST_SECONDS,
            watch=True,
            resource_version=version,
            allow_watch_bookmarks=True,
            timeout_seconds=WATCH_SECONDS,
        )
        try:
            for event in _events(response):
                kind, one = event["type"], event["object"]
                if kind == "ERROR":
                    if one.get("code") == GONE:
                        raise Gone
                    raise ValueError(f"the watch ends with {one.get('message')}")
                version = one["metadata"]["resourceVersion"]
                self.heard_at = time.time()
                if kind == "BOOKMARK":
                    continue
                slices = dict(self._slices)
                slices.pop(one["metadata"]["name"], None)
                if kind != "DELETED":
                    slices[one["metadata"]["name"]] = one
                self._slices = slices
                self._changed()
        finally:
            self._response = None
            response.close()
        self.heard_at = time.time()  # the server ended it, which it can do only as long as it is there
        if time.monotonic() - began < PAUSE:
            self._stopped.wait(PAUSE)  # a server that ends each watch at once must not be asked in a tight loop
        return version

    def _ask(self, api: client.DiscoveryV1Api, seconds: float, **more: Any) -> Any:
        try:
            response: Any = api.list_namespaced_endpoint_slice(
                self.namespace,
                label_selector=self._selector,
                _preload_content=False,
                _request_timeout=(CONNECT_SECONDS, seconds),
                **more,
            )
        except client.ApiException as error:
            if error.status == GONE:
                raise Gone from error
            raise
        if response.status != 200:
            response.close()
            raise client.ApiException(status=response.status, reason=response.reason)
        return response


def endpoints_of(one: Slice, scheme: str, port: int | None) -> list[Endpoint]:
    """The pods of a slice that may be looked at, by its conditions: absent means ready, and not terminating. A Service
    that publishes pods before they are ready says so of them, and `serving` is the truth then.

    Of an endpoint's addresses, all mean the same pod; consumers take the first.
    """
    number = port or _port_of(one)
    if number is None or one.get("addressType") == "FQDN":
        return []
    model = (one["metadata"].get("labels") or {}).get(MODEL_LABEL)
    found = []
    for endpoint in one.get("endpoints") or ():
        conditions = endpoint.get("conditions") or {}
        if conditions.get("terminating") or not endpoint.get("addresses"):
            continue
        ready = conditions.get("ready") is not False and conditions.get("serving") is not False
        found.append(Endpoint(url_of(scheme, endpoint["addresses"][0], number), ready, model))
    return found


def _port_of(one: Slice) -> int | None:
    ports = [port for port in one.get("ports") or () if port.get("port") and port.get("protocol", "TCP") == "TCP"]
    named = [port for port in ports if port.get("name") == PORT_NAME]
    return next((int(port["port"]) for port in named or ports), None)


def _events(response: Any) -> Iterator[dict[str, Any]]:
    """The watch's events, one JSON object a line."""
    rest = b""
    for piece in response.stream(amt=None):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)
