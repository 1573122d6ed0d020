"""How a stream goes on at another pod, as one to the client: of one choice, or of several, of which each goes on alone.

A pod draws choice i of a prompt by the request's seed plus i, so a request for one choice with that seed is the same.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from typing import Any

from services.common import sse
from services.common.wire import Answer, CompletionRequest, Usage
from services.gateway.call import Call
from services.gateway.hold import Hold
from services.gateway.trip import Trip
from services.gateway.upstreams.exchange import Broken

CHOICES = b'"choices":'
"""Ends what all chunks of an answer have in common: id, time and model."""


def continued(events: Iterator[sse.Event], given: int, head: bytes) -> Iterator[sse.Event]:
    """The events of a pod that goes on after `given` tokens: under the head of the first pod's chunks, and without the
    opening chunk, which the client has.

    Raises:
        Broken: the pod begins again, since it does not know how to go on.
    """
    first = True
    for event in events:
        data, note = event.data or b"", event.note or {}
        if first:
            _check(note, given)
        first = False
        if note.get("completion_tokens") != 0:
            _, choices, rest = data.partition(CHOICES)
            yield sse.Event(head + choices + rest, event.note) if choices else event


class Choices:
    """How far each choice of a stream has come."""

    def __init__(self, call: Call) -> None:
        count = call.request.choices
        self._call = call
        self._tokens = [array("i") for _ in range(count)]
        self._opened = [False] * count
        self._finished = [False] * count

    @property
    def begun(self) -> bool:
        """Whether any of it was seen here."""
        return any(self._opened)

    def watch(self, events: Iterator[sse.Event]) -> Iterator[sse.Event]:
        """The events, each noted down on its way to the client."""
        for event in events:
            note, data = event.note, event.data
            if note is not None and data is not None and (choices := json.loads(data).get("choices")):
                self._note(choices[0], note)
            yield event

    def rest(self, trip: Trip, hold: Hold, head: dict[str, Any]) -> Iterator[sse.Event]:
        """What the client still lacks, choice after choice; under the id and time of `head`, a chunk that it has.

        Raises:
            Broken: a pod was lost again.
            ApiError: as `Hold.leg` says.
        """
        for index, tokens in enumerate(self._tokens):
            if self._finished[index]:
                continue
            leg = yield from hold.leg(trip, resume=tokens, alone=self._alone(index, trip.spent.seed))
            yield from self._one(leg.events(), index, head)
            if not self._finished[index]:
                raise Broken("it ended the stream before its end")
            trip.completed()
        answer = Answer(self._call.kind, head["id"], head["model"], head["created"])
        usage = Usage(trip.spent.prompt_tokens, self._count())
        yield sse.Event(sse.dump(answer.usage(usage)))
        yield sse.Event(b"[DONE]")

    def _one(self, events: Iterator[sse.Event], index: int, head: dict[str, Any]) -> Iterator[sse.Event]:
        """The events of one choice, made those of the stream."""
        others = self._count() - len(self._tokens[index])
        first = True
        for event in events:
            note = event.note or {}
            if first:
                _check(note, len(self._tokens[index]))
            first = False
            if event.data is None or event.done:
                continue
            chunk = json.loads(event.data)
            count = note.get("completion_tokens", 0)
            ids = note.get("token_ids", ())
            told = {"completion_tokens": others + count, "token_ids": ids, "index": index}
            told["compute_seconds"] = note.get("compute_seconds", 0.0)
            if chunk.get("choices"):
                if count == 0 and self._opened[index]:
                    continue
                (choice,) = chunk["choices"]
                self._note(choice, told)
                chunk |= {"id": head["id"], "created": head["created"], "choices": [{**choice, "index": index}]}
            elif "error" not in chunk:
                continue  # its own usage
            yield sse.Event(sse.dump(chunk), told)

    def _note(self, choice: dict[str, Any], note: dict[str, Any]) -> None:
        index = note.get("index", 0)
        self._tokens[index].extend(note.get("token_ids", ()))
        self._opened[index] = True
        self._finished[index] = choice["finish_reason"] is not None

    def _count(self) -> int:
        return sum(map(len, self._tokens))

    def _alone(self, index: int, drawn: int | None) -> dict[str, Any]:
        """What the body of a request for that choice alone has of its own."""
        request = self._call.request
        own: dict[str, Any] = {"n": 1}
        seed = request.seed if request.seed is not None else drawn
        if seed is not None:
            own["seed"] = seed + index % (request.n or 1)
        if isinstance(request, CompletionRequest):
            own["prompt"] = request.prompts[index // (request.n or 1)]
        return own


def _check(note: dict[str, Any], given: int) -> None:
    if note.get("completion_tokens", -1) < given:
        raise Broken("it cannot resume an answer")
