"""The way of a call over the pods: to another one where none took it, or where the one that worked on it was lost."""

from __future__ import annotations

import secrets
from collections.abc import Sequence as Listing
from typing import Any

from services.common import sse
from services.common.errors import BUSY, ApiError, ModelNotFound, RelayedError, UpstreamUnavailable
from services.gateway.call import Call, Spent
from services.gateway.leg import Leg
from services.gateway.parts import Gateway
from services.gateway.upstreams.choose import Upstream, choose
from services.gateway.upstreams.exchange import Broken, Unreachable

MAX_TRIES = 3
"""Pods that one call is sent to at most, whether they refuse it, are lost before they answer, or in mid-stream."""


class Trip:
    """The legs of a call, one at a time. `close` must be called, however it ends."""

    def __init__(self, gateway: Gateway, call: Call, body: dict[str, Any], spent: Spent) -> None:
        self.call = call
        self.spent = spent
        self.leg: Leg | None = None
        """The one that the call is at, None before the first."""
        self._gateway = gateway
        self._body = body
        # By a seed, every pod draws the same tokens. The body that the cache knows has none, as the client wants it.
        self._seed = {} if call.request.deterministic else {"seed": secrets.randbits(63)}
        self._tries = 0

    def go_on(self, resume: Listing[int] | None = None) -> Leg:
        """Has the next pod take the call, from its beginning or from the answer's tokens so far.

        A pod that was lost before may be the one if it has come back.

        Raises:
            ModelNotFound: no pod serves the model, or ever did.
            UpstreamUnavailable: no pod that serves it can be reached, or the last one that worked on it was lost.
            RelayedError: the pod refused the call, and says why.
            DeadlineExceeded: none answered in time.
            ClientGone: the client hung up meanwhile.
        """
        self.close()
        fleet, model = self._gateway.fleet, self.call.model
        tried = [self.leg.pod] if self.leg is not None else []
        refusal: ApiError | None = None
        while self._tries < MAX_TRIES:
            pod = choose(fleet.upstreams, model, tried=tried, resuming=resume is not None)
            if pod is None:
                break
            if self._tries:
                self.spent.retries += 1
                self._gateway.metrics.retries.labels(model).inc()
            self._tries += 1
            tried.append(pod)
            try:
                return self._begin(pod, resume)
            except Unreachable as error:
                fleet.lost(pod, str(error))
            except Broken as error:
                fleet.lost(pod, str(error))
                refusal = UpstreamUnavailable("The pod that worked on the request was lost.", retry_after=1)
            except RelayedError as error:
                refusal = error
                if error.status not in BUSY:
                    raise
        raise refusal or self._no_pod()

    def lost(self, reason: str) -> None:
        """Has no other call sent to the pod of this leg until it answers again."""
        if self.leg is not None:
            self._gateway.fleet.lost(self.leg.pod, reason)

    def count_resume(self) -> None:
        """Counts that a stream goes on at this leg's pod."""
        self.spent.resumes += 1
        self._gateway.metrics.resumes.labels(self.call.model).inc()

    @property
    def client_gone(self) -> bool:
        """Whether the leg ended because the client hung up."""
        return self.leg is not None and self.leg.client_gone

    def close(self) -> None:
        """Ends the leg that the call is at."""
        if self.leg is not None:
            self.leg.close()

    def _begin(self, pod: Upstream, resume: Listing[int] | None) -> Leg:
        leg = self.leg = Leg(pod, self.call)
        self.spent.upstream = pod.url
        try:
            leg.begin(self._body_for(pod, resume))
        except BaseException:
            leg.close()
            raise
        return leg

    def _body_for(self, pod: Upstream, resume: Listing[int] | None) -> bytes:
        body = self._body
        if pod.resumes(self.call.model):  # others cannot make use of a seed, and vLLM samples slower with one
            body = body | self._seed
        if resume:
            body = body | {"resume_token_ids": [*resume]}
        return sse.dump(body)

    def _no_pod(self) -> ApiError:
        model = self.call.model
        if model not in self._gateway.fleet.known_models:
            return ModelNotFound(model)
        return UpstreamUnavailable(f"No pod is ready for the model '{model}' at the moment.", retry_after=5)
