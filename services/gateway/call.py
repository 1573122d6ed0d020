"""The values that go from step to step: the call as it came, what it spent, and the reply."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from socket import socket
from typing import TYPE_CHECKING, Any

from services.common.errors import DeadlineExceeded
from services.common.ids import new_id
from services.common.sse import Event
from services.common.wire import FinishReason, GenerationRequest, Kind, Usage
from services.gateway import route

if TYPE_CHECKING:
    from services.gateway.recall.record import Recording
    from services.gateway.recall.semantic import Meaning


@dataclass(frozen=True)
class Call:
    """A generation request as a route understood it."""

    kind: Kind
    request: GenerationRequest
    body: dict[str, Any]
    """What the pod gets; the client's JSON with the gateway's own fields set."""
    authorization: str | None
    request_id: str
    traceparent: str
    started: float
    """`time.monotonic()` at arrival."""
    timeout: float
    """Seconds from arrival to the last byte."""
    use_cache: bool
    """False when the client asked for a fresh answer (`Cache-Control: no-cache` or `no-store`)."""
    client: socket | None
    """The client's socket, to see it hang up; None under a test client."""
    id: str = field(default_factory=new_id)
    """The gateway's own, never given out twice; `request_id` may be the client's, and serves correlation alone."""
    asked_model: str = ""
    """What the client wrote: the model, or an alias that stands for it."""
    parent_span: str | None = None
    """The id of the client's span, where it sent one and spans are made (`services.gateway.spans`)."""
    session: str | None = None
    """The client's own name of the conversation, None where it gives none."""
    keep: bool = True
    """False when no other request may get this answer (`Cache-Control: no-store`)."""
    resumable: bool = False
    """Whether the stream's events are numbered and kept for a while, as EventSource clients expect."""
    last_event_id: str | None = None
    """The last event that the client has of a stream that it lost, as it says in `Last-Event-ID`."""
    idempotency_key: str | None = None
    """The client's own name of this request, by which it may be sent again."""
    body_digest: bytes | None = None
    """Of the body as it came, where nothing but the body says what is asked (`services.gateway.recall.known`)."""
    log_fields: dict[str, Any] = field(default_factory=dict)
    """Goes into the request's log line."""

    @property
    def model(self) -> str:
        return self.request.model

    @property
    def streamed(self) -> bool:
        return bool(self.request.stream)

    @property
    def taped(self) -> bool:
        """Whether its answer is kept for, or asked for by, a client that comes back."""
        return self.resumable or self.idempotency_key is not None or self.last_event_id is not None

    @property
    def deadline(self) -> float:
        return self.started + self.timeout

    def remaining(self) -> float:
        """Seconds left until the deadline."""
        return self.deadline - time.monotonic()

    def too_late(self) -> DeadlineExceeded:
        """What the call ends with once its deadline has passed."""
        return DeadlineExceeded(f"The request took longer than {self.timeout:g} s.")


@dataclass
class Spent:
    """What a call used and how it went; filled in while the answer is made, read by `settle`."""

    asked_model: str = ""
    """What the client wrote."""
    model: str = ""
    """The one that answers, or is to answer: another than the call's where a fallback took it."""
    upstream: str | None = None
    policy: str | None = None
    """Why that pod: the choice's reason, `hold` while there is none."""
    phase: str | None = None
    """Why no pod took it when one was last looked for, None once one did."""
    queue: int | None = None
    """Requests that waited in that pod when it was chosen; None where it does not say."""
    moderated: bool = False
    """Whether the moderation model, where there is one, has let it pass already."""
    cache: str = "bypass"
    """What the response cache did: hit, miss, bypass, or the way that the answer was shared."""
    held: float = 0.0
    """Seconds that the call waited for a pod to become ready."""
    retries: int = 0
    """How often it was sent to another pod."""
    resumes: int = 0
    """How often a stream went on at another pod in mid-answer."""
    usage: Usage | None = None
    """The pod's own final count; None when the answer did not reach its end."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Running counts of a stream, from the pod's notes. Every prompt has tokens: 0 is a pod that sends no notes."""
    leg_seconds: float = 0.0
    """Compute seconds of the pod that works on it, so far, from its notes."""
    lost_seconds: float = 0.0
    """Those of the pods before it, as far as they were told."""
    token_ids: array[int] = field(default_factory=lambda: array("i"))
    """The tokens of the chunks that went on to the client, from the pod's notes. Packed: every open stream has one."""
    seed: int | None = None
    """What pods draw the answer by, where the client gave no seed; None until it is sent to one."""
    recalled: str | None = None
    """How the answer was there already: hit, coalesced, replayed or semantic; None where pods make it for this call."""
    given: int = 0
    """Tokens of the answer that were not generated for this call, which goes on after them."""
    first_token_at: float | None = None
    outcome: str | None = None
    text: list[str] = field(default_factory=list)
    """Pieces of a stream's text, kept only where the answer may be cached."""
    finish: FinishReason | None = None
    cacheable: bool = True
    answer: bytes | None = None
    """The body of an answer that was not streamed."""
    meaning: Meaning | None = None
    """What was asked, where the semantic cache is to remember it."""
    recording: Recording | None = None
    """What of the answer is kept for a client that comes back; None for most."""

    def restart(self) -> None:
        """Forgets what was made of an answer that is begun anew, and of which the client has nothing."""
        self.usage, self.finish, self.outcome = None, None, None
        self.prompt_tokens = self.completion_tokens = 0
        self.token_ids, self.text = array("i"), []

    @property
    def route(self) -> str:
        """Where the call went and why, as far as it has come."""
        return route.write(
            {
                "model": self.model,
                "asked": self.asked_model if self.asked_model != self.model else None,
                "replica": route.replica(self.upstream),
                "policy": self.policy,
                "phase": self.phase,
                "queue": self.queue,
                "cache": self.cache,
                "retries": self.retries,
                "resumes": self.resumes or None,
                "held": self.held or None,
            }
        )

    @property
    def tokens(self) -> Usage:
        """The best count there is, with what pods had computed before they were lost."""
        usage = self.usage or Usage(self.prompt_tokens, self.completion_tokens)
        last = usage.compute_seconds
        if self.lost_seconds or (last is None and self.leg_seconds):
            return replace(usage, compute_seconds=self.lost_seconds + (self.leg_seconds if last is None else last))
        return usage

    def next_leg(self) -> None:
        """Another pod begins to work on it."""
        self.lost_seconds += self.leg_seconds
        self.leg_seconds = 0.0

    @property
    def charged(self) -> Usage:
        """What was used for this call alone: nothing where others had made the answer, and not what they had begun."""
        if self.recalled is not None:
            return Usage(0, 0)
        tokens = self.tokens
        return replace(tokens, completion_tokens=tokens.completion_tokens - self.given) if self.given else tokens

    @property
    def saved(self) -> Usage:
        """What this call would have used besides, had nobody made it before."""
        if self.recalled is not None:
            return self.tokens
        return Usage(0, self.given)


@dataclass
class Reply:
    """What goes back: a whole body or events of a stream. `close` ends what is still open behind it."""

    body: bytes | None = None
    events: Iterator[Event] | None = None
    status: int = 200
    frames: Callable[[Iterator[Event], Callable[[Event], bytes]], Iterator[bytes]] | None = None
    """Puts the events into bytes by the function that it is given, where they are numbered or kept."""
    headers: dict[str, str] = field(default_factory=dict)
    on_close: list[Callable[[], None]] = field(default_factory=list)

    def close(self) -> None:
        """Ends what is open, the last first, and all of it, though one should fail."""
        try:
            while self.on_close:
                self.on_close.pop()()
        finally:
            if self.on_close:
                self.close()
