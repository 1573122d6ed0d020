"""Step 4, dispatch: picks a pod, sends the call there, relays what comes back, tries another pod where none took it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPResponse

from services.common import sse
from services.common.errors import (
    BUSY,
    ApiError,
    ClientGone,
    DeadlineExceeded,
    ModelNotFound,
    RelayedError,
    UpstreamUnavailable,
)
from services.common.telemetry import REQUEST_ID_HEADER, TIMEOUT_HEADER, TRACE_HEADER
from services.gateway.call import Call, Reply, Spent
from services.gateway.hangup import HangupWatch
from services.gateway.identify import Principal
from services.gateway.observe import observe, usage_of
from services.gateway.parts import Gateway
from services.gateway.upstreams.choose import Upstream, choose
from services.gateway.upstreams.exchange import Broken, Exchange, Unreachable

PATHS = {"chat": "/v1/chat/completions", "text": "/v1/completions"}
MAX_TRIES = 3


def dispatch(gateway: Gateway, principal: Principal, call: Call, spent: Spent) -> Reply:
    """The reply of the pod that took the call.

    Raises:
        ModelNotFound: no pod serves the model, or ever did.
        UpstreamUnavailable: no pod that serves it can be reached.
        DeadlineExceeded: none answered in time.
        ClientGone: the client hung up meanwhile.
        RelayedError: the pod refused the call, and says why.
    """
    body = _body_for_pod(call, principal)
    tried: list[Upstream] = []
    refusal: ApiError | None = None
    while len(tried) < MAX_TRIES:
        pod = choose(gateway.fleet.upstreams, call.model, tried=tried)
        if pod is None:
            break
        if tried:
            spent.retries += 1
            gateway.metrics.retries.labels(call.model).inc()
        tried.append(pod)
        leg = _Leg(gateway, pod, call)
        try:
            return leg.run(body, spent)
        except Unreachable as error:
            gateway.fleet.lost(pod, str(error))
        except RelayedError as error:
            refusal = error
            if error.status not in BUSY:
                raise
        finally:
            if not leg.relaying:
                leg.close()
    raise refusal or _no_pod(gateway, call)


def _no_pod(gateway: Gateway, call: Call) -> ApiError:
    if call.model not in gateway.fleet.known_models:
        return ModelNotFound(call.model)
    return UpstreamUnavailable(f"No pod is ready for the model '{call.model}' at the moment.", retry_after=5)


def _body_for_pod(call: Call, principal: Principal) -> bytes:
    body = {**call.body, "cache_salt": principal.cache_salt}
    body.pop("resume_token_ids", None)  # ours alone: a client could have tokens counted that no pod generated
    if call.request.priority is not None:
        body["priority"] = max(call.request.priority, 0)  # to yield to all others is allowed, to overtake them is not
    if call.streamed:
        # The usage chunk is how any engine tells its true count; `_relay` drops it where the client did not ask.
        body["stream_options"] = {**(call.body.get("stream_options") or {}), "include_usage": True}
    else:
        body.pop("stream_options", None)
    return sse.dump(body)


class _Leg:
    """One try at one pod, from the first byte sent to the last byte relayed."""

    def __init__(self, gateway: Gateway, pod: Upstream, call: Call) -> None:
        self._streams = gateway.metrics.streams
        self._pod = pod
        self._call = call
        self._exchange = Exchange(pod.pool, call.deadline)
        self._watch = HangupWatch(call.client, self._exchange.abort) if call.client is not None else None
        self._open = True
        self.relaying = False
        pod.inflight += 1

    def run(self, body: bytes, spent: Spent) -> Reply:
        call = self._call
        spent.upstream = self._pod.url
        headers = {
            "Content-Type": "application/json",
            REQUEST_ID_HEADER: call.request_id,
            TRACE_HEADER: call.traceparent,
            TIMEOUT_HEADER: f"{max(call.remaining(), 0.001):.3f}",
        }
        try:
            response = self._exchange.send("POST", PATHS[call.kind], headers, body)
            if response.status != 200:
                raise _refusal(response, self._exchange.read())
            if call.streamed:
                self.relaying = True
                self._streams.inc()
                return Reply(events=self._relay(spent), on_close=[self.close])
            answer = self._exchange.read()
        except TimeoutError:
            raise DeadlineExceeded(f"The request took longer than {call.timeout:g} s.") from None
        except Broken as error:
            if self._exchange.aborted:
                spent.outcome = "client_gone"
                raise ClientGone from None
            raise UpstreamUnavailable("The pod that worked on the request was lost.", retry_after=1) from error
        spent.answer = answer
        spent.usage = usage_of(answer)
        return Reply(body=answer)

    def close(self) -> None:
        """Ends the try, wherever it stands; the pod sees the connection close and frees the slot."""
        if self._open:
            self._open = False
            if self._watch is not None:
                self._watch.close()
            self._exchange.close()
            self._pod.inflight -= 1
            if self.relaying:
                self._streams.dec()

    def _relay(self, spent: Spent) -> Iterator[sse.Event]:
        parser = sse.Parser()
        spent.outcome = "client_gone"  # until the stream says otherwise
        try:
            for piece in self._exchange.pieces():
                for event in parser.feed(piece):
                    if observe(event, self._call, spent):
                        yield event
            if spent.outcome == "client_gone":  # the pod ended the stream without [DONE] and without an error
                spent.outcome = "upstream_error"
        except TimeoutError:
            spent.outcome = "timeout"
            yield _error_event(DeadlineExceeded(f"The request took longer than {self._call.timeout:g} s."))
        except Broken:
            if not self._exchange.aborted:
                spent.outcome = "upstream_error"
                yield _error_event(UpstreamUnavailable("The pod that worked on the request was lost in mid-stream."))


def _error_event(error: ApiError) -> sse.Event:
    return sse.Event(sse.dump(error.envelope()))


def _refusal(response: HTTPResponse, body: bytes) -> RelayedError:
    try:
        envelope = json.loads(body)
    except ValueError:
        envelope = {}
    return RelayedError(response.status, envelope, retry_after=response.headers.get("Retry-After"))
