"""One try of a call at one pod, from the first byte sent to the last byte read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, islice

from services.common import sse
from services.common.errors import ClientGone, RelayedError
from services.common.orca import LOAD_FORMAT_HEADER
from services.common.telemetry import CALL_HEADER, REQUEST_ID_HEADER, TIMEOUT_HEADER, TRACE_HEADER, WEIGHT_HEADER
from services.gateway.call import Call
from services.gateway.hangup import HangupWatch
from services.gateway.upstreams.choose import Upstream
from services.gateway.upstreams.exchange import Broken, Exchange, Unreachable
from services.gateway.upstreams.http1 import Response

PATHS = {"chat": "/v1/chat/completions", "text": "/v1/completions"}


class Leg:
    """A call at `pod`, which answers as `model`. `close` must be called, however it ends."""

    def __init__(self, pod: Upstream, call: Call, model: str, weight: float) -> None:
        self.pod = pod
        self.answer = b""
        """The body of an answer that is not streamed."""
        self._call = call
        self._weight = weight
        self._attempt = pod.begin(model, streamed=call.streamed)
        self._exchange = Exchange(pod.pool, call.deadline)
        self._hangs = False
        self._attempt.on_hang = self._hang
        self._watch = HangupWatch(call.client, self._exchange.abort) if call.client is not None else None
        self._open = True

    def begin(self, body: bytes) -> None:
        """Sends the call and waits until its stream begins, or until its whole answer is there.

        Raises:
            Unreachable, Broken: the pod is lost; nothing of its answer has gone to the client.
            RelayedError: the pod refused the call, and says why.
            DeadlineExceeded: it did not answer in time.
            ClientGone: the client hung up meanwhile.
        """
        call = self._call
        headers = {
            "Content-Type": "application/json",
            REQUEST_ID_HEADER: call.request_id,
            CALL_HEADER: call.id,
            TRACE_HEADER: call.traceparent,
            WEIGHT_HEADER: f"{self._weight:g}",
            TIMEOUT_HEADER: f"{max(call.remaining(), 0.001):.3f}",
            LOAD_FORMAT_HEADER: "JSON",
        }
        try:
            response = self._exchange.send("POST", PATHS[call.kind], headers, body)
            self._attempt.answered(response.status, response.headers)
            if response.status != 200:
                raise _refusal(response, self._exchange.read())
            if not call.streamed:
                self.answer = self._exchange.read()
        except TimeoutError:
            raise call.too_late() from None
        except Unreachable:
            self.failed()
            raise
        except Broken:
            if self.client_gone:
                raise ClientGone from None
            self.failed()
            raise

    def events(self) -> Iterator[sse.Event]:
        """The stream's events as they come.

        Raises:
            Broken: the pod is lost, or the client hung up (`client_gone`).
            TimeoutError: the deadline passed, and the pod did not say so.
        """
        pieces = self._exchange.pieces()
        return chain.from_iterable(map(sse.Parser().feed, chain(self._first(pieces), pieces)))

    def _first(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in islice(pieces, 1):
            self._attempt.first_byte()
            yield piece

    def failed(self) -> None:
        """Lays it at the pod's door, whose circuit opens when that happens again and again."""
        self._attempt.failed()

    @property
    def client_gone(self) -> bool:
        """Whether it ended because the client hung up."""
        return self._exchange.aborted and not self._hangs

    def _hang(self) -> None:
        """The pod answers nobody any more, though its connections stand."""
        self._hangs = True
        self._exchange.abort()

    def close(self) -> None:
        """Ends the try, wherever it stands; the pod sees the connection close and frees the slot."""
        if self._open:
            self._open = False
            if self._watch is not None:
                self._watch.close()
            self._exchange.close()
            self._attempt.close()


def _refusal(response: Response, body: bytes) -> RelayedError:
    try:
        envelope = json.loads(body)
    except ValueError:
        envelope = {}
    return RelayedError(response.status, envelope, retry_after=response.headers.get("Retry-After"))
