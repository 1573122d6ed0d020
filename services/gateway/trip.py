"""The way of a call over the pods: to another one where none took it, or where the one that worked on it was lost."""

from __future__ import annotations

import secrets
from collections.abc import Sequence as Listing
from typing import Any

from services.common import sse
from services.common.errors import (
    BUSY,
    ApiError,
    DeadlineExceeded,
    ModelNotFound,
    NoPodReady,
    QueueFull,
    RelayedError,
    UpstreamUnavailable,
)
from services.gateway.call import Call, Spent
from services.gateway.identify import Principal
from services.gateway.leg import Leg
from services.gateway.parts import Gateway
from services.gateway.upstreams.affinity import affinity
from services.gateway.upstreams.choose import Choice, Upstream
from services.gateway.upstreams.exchange import Broken, Unreachable

MAX_TRIES = 3
"""Pods that one call is sent to at most, whether they refuse it, are lost before they answer, or in mid-stream. Those
that could not be reached are none of them: nothing was sent there."""
NOT_TRIED_AGAIN = (501, DeadlineExceeded.status)
"""What another pod would answer too, of a pod's errors of 500 and above."""


class Trip:
    """The legs of a call, one at a time. `close` must be called, however it ends."""

    def __init__(self, gateway: Gateway, principal: Principal, call: Call, body: dict[str, Any], spent: Spent) -> None:
        self.call = call
        self.spent = spent
        self.leg: Leg | None = None
        """The one that the call is at, None before the first."""
        self._gateway = gateway
        self._body = body
        self._weight = principal.weight
        self._models = [call.model, *_fallbacks(gateway, principal, call.model)]
        self._affinity = affinity(principal.cache_salt, body, call.session)
        # By a seed, every pod draws the same tokens. The body that the cache knows has none, as the client wants it.
        if not call.request.deterministic and spent.seed is None:
            spent.seed = secrets.randbits(62)  # choice i is drawn by it plus i, which has to fit into 63 bits too
        self._seed = {} if spent.seed is None else {"seed": spent.seed}
        self._tries = 0
        self._begun_after = 0
        spent.model = spent.model or call.model
        gateway.fleet.retries.request()

    def go_on(
        self, resume: Listing[int] | None = None, alone: dict[str, Any] | None = None, *, anew: bool = False
    ) -> Leg:
        """Has the next pod take the call, from its beginning or from the answer's tokens so far; a pod of the model's
        fallbacks where none of its own can, and nothing was sent.

        Args:
            alone: what differs in the body where one of several choices goes on.
            anew: also the pod that lost it, which has been waited for.

        Raises:
            ModelNotFound: no pod serves the model, ever did, or is expected to.
            NoPodReady: no pod that serves it takes requests now.
            QueueFull: its queues are so long that the answer would come too late.
            UpstreamUnavailable: the last one that worked on the call was lost.
            RelayedError: the pod refused the call, and says why.
            DeadlineExceeded: none answered in time.
            ClientGone: the client hung up meanwhile.
        """
        self.close()
        left = [] if anew or self.leg is None else [self.leg.pod]
        if resume is not None:
            return self._reach(self.spent.model, left, MAX_TRIES, resume, alone)
        refusal: ApiError | None = None
        for number, model in enumerate(self._models):
            try:
                return self._reach(model, left, MAX_TRIES + number, None)
            except (ModelNotFound, UpstreamUnavailable, QueueFull, RelayedError) as error:
                if isinstance(error, RelayedError) and not _elsewhere(error):
                    raise
                refusal = refusal or error
        assert refusal is not None
        raise refusal

    def lost(self, reason: str) -> None:
        """Has no other call sent to the pod of this leg until it answers again."""
        if self.leg is not None:
            self.leg.failed()
            self._gateway.fleet.lost(self.leg.pod, reason)

    def given_up(self, *, shut_down: bool) -> None:
        """The pod of this leg ended the stream by an error of its own. One that shuts down after it has done its part
        costs the call none of its tries, or a long stream would not survive a roll-out of many pods."""
        if self.leg is not None:
            self.leg.failed()
        if shut_down and len(self.spent.token_ids) > self._begun_after:
            self._tries -= 1

    def completed(self) -> None:
        """This leg has brought one choice of several to its end, and costs the call none of its tries."""
        self.close()
        self.leg = None
        self._tries -= 1

    def count_resume(self) -> None:
        """Counts that a stream goes on at this leg's pod."""
        self.spent.resumes += 1
        self._gateway.metrics.resumes.labels(self.spent.model).inc()

    @property
    def models(self) -> list[str]:
        """Those that may answer: the call's own, then its fallbacks; once tokens were sent, the one that made them."""
        return [self.spent.model] if self.spent.token_ids else self._models

    @property
    def client_gone(self) -> bool:
        """Whether the leg ended because the client hung up."""
        return self.leg is not None and self.leg.client_gone

    def close(self) -> None:
        """Ends the leg that the call is at."""
        if self.leg is not None:
            self.leg.close()

    def _reach(
        self,
        model: str,
        left: Listing[Upstream],
        most: int,
        resume: Listing[int] | None,
        alone: dict[str, Any] | None = None,
    ) -> Leg:
        """The next pod of `model` that takes the call, of those that it has not just left."""
        fleet, spent = self._gateway.fleet, self.spent
        if resume is None:
            self._check_queue(model)
        tried = list(left)
        refusal: ApiError | None = None
        while self._tries < most:
            choice = fleet.choose(model, tried=tried, resuming=resume is not None, affinity=self._affinity)
            if choice is None:
                break
            if refusal is not None and resume is None and not fleet.retries.spend():
                break
            if self.leg is not None:
                spent.retries += 1
                self._gateway.metrics.retries.labels(model).inc()
            self._tries += 1
            tried.append(choice.pod)
            try:
                return self._begin(choice, model, self._body_for(choice.pod, model, resume, alone))
            except Unreachable as error:
                fleet.lost(choice.pod, str(error))
                self._tries -= 1
                if self.call.remaining() <= 0:
                    raise self.call.too_late() from None
            except Broken as error:
                fleet.lost(choice.pod, str(error))
                refusal = UpstreamUnavailable("The pod that worked on the request was lost.", retry_after=1)
            except RelayedError as error:
                if not _elsewhere(error):
                    raise
                refusal = error
                if resume is not None and error.status in BUSY:  # a stream that runs waits until there is room for it
                    self._tries -= 1
                    refusal = NoPodReady(error.message, retry_after=1)
        if refusal is None and self._tries >= most:
            refusal = UpstreamUnavailable("The pods that worked on the request were lost.", retry_after=1)
        raise refusal or self._no_pod(model)

    def _begin(self, choice: Choice, model: str, body: bytes) -> Leg:
        pod, spent = choice.pod, self.spent
        leg = self.leg = Leg(pod, self.call, model, self._weight)
        spent.upstream, spent.policy, spent.phase, spent.queue = pod.url, choice.policy, None, pod.queue
        if model != spent.model:
            spent.model = model
            spent.cacheable = False  # it is another model's answer
        self._begun_after = len(spent.token_ids)
        spent.next_leg()
        try:
            leg.begin(body)
        except BaseException:
            leg.close()
            raise
        return leg

    def _body_for(self, pod: Upstream, model: str, resume: Listing[int] | None, alone: dict[str, Any] | None) -> bytes:
        body = self._body
        if model != self.call.model:
            body = body | {"model": model}
        if pod.resumes(model):  # others cannot make use of a seed, and vLLM samples slower with one
            body = body | self._seed
        if alone:
            body = body | alone
        if resume:
            body = body | {"resume_token_ids": [*resume]}
        return sse.dump(body)

    def _check_queue(self, model: str) -> None:
        """
        Raises:
            QueueFull: the call's time would be over before its turn came.
        """
        wait = self._gateway.fleet.queue_wait(model)
        if wait and wait >= self.call.remaining():
            # So much later the queue will be short enough to leave half of the time for the answer.
            raise QueueFull(
                f"Who comes now waits {wait:.3g} s for the model '{model}', "
                f"but this request must be answered within {max(self.call.remaining(), 0):.3g} s.",
                retry_after=wait - self.call.timeout / 2,
            )

    def _no_pod(self, model: str) -> ApiError:
        fleet = self._gateway.fleet
        if not fleet.expects(model):
            return ModelNotFound(model)
        self.spent.phase = fleet.phase(model)
        return NoPodReady(f"No pod is ready for the model '{model}' at the moment.", retry_after=fleet.ready_in(model))


def _fallbacks(gateway: Gateway, principal: Principal, model: str) -> list[str]:
    """The models that may answer in its place: a key that is limited to some models is never answered by another."""
    named = gateway.settings.fallbacks.get(model)
    if not named:
        return []
    return [one for one in named if principal.models is None or one in principal.models]


def _elsewhere(error: RelayedError) -> bool:
    """Whether another pod may have another answer: this one is full, or failed."""
    return error.status in BUSY or (error.status >= 500 and error.status not in NOT_TRIED_AGAIN)
