"""Asks pods what calls have cost (`services.inference.calls`). A pod of another engine knows nothing of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from services.common.wire import Usage
from services.gateway.upstreams.choose import Upstream
from services.gateway.upstreams.exchange import Broken, Exchange, Unreachable

ASK_TIMEOUT = 2.0
"""Seconds that a pod has to tell of many calls."""
END_WAIT = 1.0
"""Seconds that a pod has to end one call that was broken off, which is a step."""
ASKED_AT_ONCE = 16


@dataclass(frozen=True)
class Known:
    """What a pod knows of a call. `outcome` is None while it runs."""

    pod: str
    outcome: str | None
    usage: Usage


class Silent(Exception):
    """A pod did not answer, and so may know what it did not say."""


def ask(pod: Upstream, identities: Sequence[str]) -> dict[str, Known]:
    """What a pod knows of these calls, by id.

    Raises:
        Silent: it does not answer.
    """
    body = _exchange(pod, "POST", "/internal/calls", ASK_TIMEOUT, json.dumps({"ids": list(identities)}).encode())
    said = body.get("calls") if isinstance(body, dict) else None
    found = {}
    for one in said if isinstance(said, list) else ():
        if (known := _known(pod, one)) is not None:
            found[str(one.get("id"))] = known
    return found


def ask_all(pods: Iterable[Upstream], identities: Sequence[str]) -> tuple[dict[str, list[Known]], bool]:
    """What all pods know of these calls, and whether all have answered."""
    found: dict[str, list[Known]] = {}
    complete = True

    def one(pod: Upstream) -> dict[str, Known] | None:
        try:
            return ask(pod, identities)
        except Silent:
            return None

    with ThreadPoolExecutor(ASKED_AT_ONCE, "ask") as askers:
        for answer in askers.map(one, pods):
            complete &= answer is not None
            for identity, known in (answer or {}).items():
                found.setdefault(identity, []).append(known)
    return found, complete


def final(pods: Iterable[Upstream], url: str, model: str, identity: str) -> Usage | None:
    """What a call that was broken off has cost in the end, which is after the step that runs; None where nobody says.

    It is for those whose client is gone: nobody waits for it but the slot that the call holds in its limits.
    """
    pod = next((one for one in pods if one.url == url), None)
    if pod is None or not pod.ready or not pod.resumes(model):
        return None
    try:
        said = _exchange(pod, "GET", f"/internal/calls/{identity}?wait={END_WAIT}", 2 * END_WAIT)
    except Silent:
        return None
    known = _known(pod, said)
    return known.usage if known is not None else None


def whole(legs: Sequence[Known]) -> Usage:
    """The usage of a call that several pods worked on. Who went on counts the tokens before as its own, so the highest
    count is the call's; time and energy were spent at each."""
    usages = [leg.usage for leg in legs]
    seconds = [one.compute_seconds for one in usages if one.compute_seconds is not None]
    joules = [one.energy_joules for one in usages if one.energy_joules is not None]
    return Usage(
        prompt_tokens=max(one.prompt_tokens for one in usages),
        completion_tokens=max(one.completion_tokens for one in usages),
        cached_tokens=max(one.cached_tokens or 0 for one in usages),
        compute_seconds=sum(seconds) if seconds else None,
        energy_joules=sum(joules) if len(joules) == len(usages) else None,
    )


def _exchange(pod: Upstream, method: str, path: str, seconds: float, body: bytes | None = None) -> Any:
    """The body of a pod's answer, None of one that knows nothing of such questions."""
    exchange = Exchange(pod.pool, time.monotonic() + seconds)
    try:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        status = exchange.send(method, path, headers, body).status
        answer = exchange.read()
    except (Unreachable, Broken, TimeoutError) as error:
        raise Silent(str(error)) from error
    finally:
        exchange.close()
    if status >= 500:
        raise Silent(f"it answers {status}")
    try:
        return json.loads(answer) if status == 200 else None
    except ValueError:
        return None


def _known(pod: Upstream, said: Any) -> Known | None:
    if not isinstance(said, dict) or (usage := Usage.of(said.get("usage"))) is None:
        return None
    return Known(pod.url, None if said.get("running") else str(said.get("outcome")), usage)
