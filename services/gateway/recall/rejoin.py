"""Coming back for an answer that is on tape: what stands there, what still comes, and where the run was cut, because
its client hung up or its gateway died, the rest, generated from the tokens on the tape.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import replace

from services.cache.connection import CacheDown
from services.common.errors import NotFound, StreamMismatch, UpstreamUnavailable
from services.gateway.call import Call, Reply, Spent
from services.gateway.identify import Principal
from services.gateway.parts import Gateway
from services.gateway.recall.follow import Following, read
from services.gateway.recall.playback import Playback
from services.gateway.recall.record import Recording

FIRST_WRITE = 0.25
"""Seconds in which a client may be back before its first events are on tape."""
_EVENT_ID = re.compile(r"([0-9a-f]{28}):([0-9]{1,9})", re.ASCII)


def record(gateway: Gateway, principal: Principal, call: Call, spent: Spent) -> None:
    """Numbers the stream and keeps it for `stream_replay_ttl`, so that its client may come back for the rest. One of
    several choices is not numbered: the tape has no room for the tokens of each."""
    if call.request.choices > 1:
        return
    spent.recording = recording_of(
        gateway, principal, call, spent, name=call.id, ttl=gateway.settings.stream_replay_ttl
    )
    spent.recording.write()


def reconnect(gateway: Gateway, principal: Principal, call: Call, spent: Spent) -> Reply:
    """The stream after the event that the client says it has: `Last-Event-ID` (WHATWG HTML, section 9.2).

    When there is nothing after it, the answer is 204, which tells an EventSource not to come back.

    Raises:
        NotFound: no such stream of this tenant is kept.
        StreamMismatch: it answered another request.
        UpstreamUnavailable: Redis is down.
    """
    match = _EVENT_ID.fullmatch(call.last_event_id or "")
    unknown = NotFound("The stream of Last-Event-ID is not known, or not kept any more.", param="Last-Event-ID")
    if match is None:
        raise unknown
    name, number = match[1], int(match[2])
    recording = recording_of(gateway, principal, call, spent, name=name, ttl=gateway.settings.stream_replay_ttl)
    try:
        playback = Playback(gateway, call, recording.key, None)
        if not playback.begins:
            playback.close()
            time.sleep(FIRST_WRITE)
            playback = Playback(gateway, call, recording.key, None)
    except CacheDown:
        raise UpstreamUnavailable("Streams can't be continued at the moment.", retry_after=5) from None
    if playback.begin is None or not playback.begins:
        playback.close()
        raise unknown
    if playback.begin.request != recording.request:
        playback.close()
        raise StreamMismatch("The stream of Last-Event-ID answered another request.", param="Last-Event-ID")
    if playback.done(number):
        playback.close()
        spent.recalled, spent.outcome = "replayed", "cached"
        return Reply(body=b"", status=204)
    reply = come_back(gateway, principal, call, spent, recording, playback=playback, number=number)
    if reply is None:
        raise unknown
    return reply


def come_back(
    gateway: Gateway,
    principal: Principal,
    call: Call,
    spent: Spent,
    recording: Recording,
    *,
    playback: Playback,
    number: int,
) -> Reply | None:
    """What stands on the tape after this event, and what comes; None where the call is to begin it anew."""
    if playback.begin is not None:
        spent.seed, spent.model = playback.begin.seed, playback.begin.model
        if spent.model != call.model:  # an alias stood for this one then, or another took its place
            call = _for_model(call, spent.model)
            spent.cacheable = False
    recording.skip(number)
    spent.recording = recording

    def take_over(playback: Playback) -> None:
        recording.skip(playback.count)
        if playback.taken:
            recording.write(begun=True, number=playback.count, tokens=len(spent.token_ids))

    following = Following(
        playback, "replayed", recording.begin(), recording.ttl, take_over, again=recording.add, skip=number
    )
    return read(gateway, principal, call, spent, following)


def recording_of(
    gateway: Gateway, principal: Principal, call: Call, spent: Spent, *, name: str, ttl: float
) -> Recording:
    """The tape `name` of the tenant, for what the call asks."""
    return Recording(gateway, principal, call, spent, name=name, request=digest_of(call), ttl=ttl)


def digest_of(call: Call) -> str:
    """Names what the client asked: the body, with the model as it was written."""
    asked = {**call.body, "model": call.asked_model or call.model}
    canonical = json.dumps([call.kind, asked], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode(errors="surrogatepass")).hexdigest()


def _for_model(call: Call, model: str) -> Call:
    return replace(call, request=call.request.model_copy(update={"model": model}), body={**call.body, "model": model})
