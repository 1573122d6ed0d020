"""What each call has cost so far, and in the end, for a gateway that asks by the call's id.

A gateway that dies, or whose client hangs up, doesn't read the counts that end a stream. The pod knows them, and keeps
them for some minutes, so that nobody has to estimate (`gateway.ledger.reaper`).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Listing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flask import Flask, jsonify, request

from services.common.errors import InvalidRequest, NotFound
from services.common.wire import Usage, parse_json
from services.inference.parameters import read_number

if TYPE_CHECKING:
    from flask import Response

    from services.inference.engine.generation import Generation

KEPT = 300.0
"""Seconds that the counts of a call that has ended are kept at least, unless there are too many."""
MOST = 20_000
"""Calls whose counts are kept at most: some ten MiB."""
LONGEST_ID = 64
MOST_IDS = 1000
"""Calls that one question may be about."""
LONGEST_WAIT = 5.0
"""Seconds that a question may wait for the call's end."""

Count = Callable[[], Usage]


@dataclass(eq=False, slots=True)
class Leg:
    """A call's stay in this pod; it has several where it came back to go on."""

    count: Count | None
    """Counts while it runs; None once it has ended, so that nothing holds its tokens any longer."""
    usage: Usage | None = None
    """What it used, once it has ended."""
    outcome: str | None = None
    """How it ended, as the metrics name it; None while it runs."""
    ended: float = 0.0

    def used(self) -> Usage:
        """What it has used so far, or in the end."""
        if self.usage is not None:
            return self.usage
        assert self.count is not None
        return self.count()


class Calls:
    """The calls of this pod by id. All methods may be called from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._legs: OrderedDict[str, list[Leg]] = OrderedDict()

    def follow(self, identity: str | None, generations: Listing[Generation], count: Count) -> None:
        """Keeps the counts of a call that was handed to the engine. Without an id, it is no gateway's.

        Args:
            generations: of its choices; the call ends when all have.
            count: what they have used so far. Called from the engine's thread at the end.
        """
        if not identity or len(identity) > LONGEST_ID:
            return
        leg = Leg(count)
        with self._changed:
            self._forget()
            self._legs.setdefault(identity, []).append(leg)
            self._legs.move_to_end(identity)

        def look() -> None:
            outcomes = [generation.outcome for generation in generations]
            if None in outcomes:
                return
            with self._changed:
                if leg.outcome is None:
                    leg.usage, leg.count, leg.ended = count(), None, self._clock()
                    leg.outcome = next((one for one in outcomes if one not in {"stop", "length"}), outcomes[0])
                    self._changed.notify_all()

        for generation in generations:
            generation.on_end = look
        look()  # all may have ended before they had anyone to tell

    def find(self, identity: str, wait: float = 0.0) -> tuple[bool, str | None, Usage] | None:
        """Whether the call still runs, how it ended, and what it used; None of a call that is not known.

        Args:
            wait: seconds to wait for its end.
        """
        with self._changed:
            legs = self._legs.get(identity)
            if legs is None:
                return None
            self._changed.wait_for(lambda: all(leg.outcome is not None for leg in legs), timeout=wait)
            return any(leg.outcome is None for leg in legs), legs[-1].outcome, whole([leg.used() for leg in legs])

    def _forget(self) -> None:
        """Drops what has ended long ago, the oldest first; of too many also what has just ended."""
        while self._legs:
            identity, legs = next(iter(self._legs.items()))
            if any(leg.outcome is None for leg in legs):
                if len(self._legs) < 2 * MOST:
                    return
            elif len(self._legs) < MOST and self._clock() - legs[-1].ended < KEPT:
                return
            del self._legs[identity]


def whole(legs: Listing[Usage]) -> Usage:
    """The usage of a call from those of its legs. A leg that goes on counts the tokens before it as its own, so the
    highest count is the call's; time and energy were spent on each."""
    joules = [leg.energy_joules for leg in legs]
    return Usage(
        prompt_tokens=max(leg.prompt_tokens for leg in legs),
        completion_tokens=max(leg.completion_tokens for leg in legs),
        cached_tokens=max(leg.cached_tokens or 0 for leg in legs),
        compute_seconds=sum(leg.compute_seconds or 0.0 for leg in legs),
        energy_joules=None if None in joules else sum(one or 0.0 for one in joules),
    )


def register(app: Flask, calls: Calls) -> None:
    """Adds what the gateways ask: `GET /internal/calls/<call id>`, and `POST /internal/calls` for many at once."""

    @app.get("/internal/calls/<identity>")
    def show_call(identity: str) -> Response:
        wait = read_number("wait", request.args.get("wait"), 0, least=0, most=LONGEST_WAIT)
        body = describe(identity, wait)
        if body is None:
            raise NotFound("This pod does not know the call, or not any more.")
        return jsonify(body)

    @app.post("/internal/calls")
    def show_calls() -> Response:
        """Those that this pod knows of the body's `ids`."""
        asked = parse_json(request.get_data()).get("ids")
        if not isinstance(asked, list) or len(asked) > MOST_IDS or not all(isinstance(one, str) for one in asked):
            raise InvalidRequest(f"'ids' must be an array of {MOST_IDS} strings at most.", param="ids")
        return jsonify(calls=[body for one in asked if (body := describe(one)) is not None])

    def describe(identity: str, wait: float = 0.0) -> dict[str, Any] | None:
        found = calls.find(identity, wait)
        if found is None:
            return None
        running, outcome, usage = found
        return {"id": identity, "running": running, "outcome": outcome, "usage": usage.body()}
