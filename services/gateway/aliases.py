"""Names that stand for a weighted choice of models: `prod`, say, for nine parts of `a` and one of `b`, a canary.

Which model a call gets is a function of its conversation, not of chance: every turn of a conversation goes to the model
that had its first, in whichever gateway it arrives. Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

BEGINNING = 512
"""Characters of a conversation's beginning that tell it from others."""

Weights = Mapping[str, float]


def resolve(alias: str, weights: Weights, conversation: bytes) -> str:
    """The model that a conversation gets, each as often as its weight.

    Weighted rendezvous hashing: when weights are changed, only as many conversations move as must (Schindelhauer and
    Schomaker, "Weighted distributed hash tables", SPAA 2005; the logarithmic method).
    """
    return max(weights, key=lambda model: weights[model] / -math.log(_draw(alias, model, conversation)))


def conversation_of(body: Mapping[str, Any], session: str | None) -> bytes:
    """What all requests of a conversation have in common: its session where the client names one, else how it began, up
    to the user's first message. Takes any body: what is no conversation is refused later."""
    if session is not None:
        return b"session:" + session.encode()
    messages = body.get("messages")
    if not isinstance(messages, list):
        return str(body.get("prompt"))[:BEGINNING].encode("utf-8", "replace")
    beginning = []
    for message in messages:
        if isinstance(message, Mapping):
            beginning.append(f"{message.get('role')}:{message.get('content')}"[:BEGINNING])
            if message.get("role") == "user":
                break
    return "\n".join(beginning).encode("utf-8", "replace")


def listed(aliases: Mapping[str, Weights], models: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The rows of `GET /v1/models` for the aliases that one of these models stands behind."""
    return {
        alias: {"created": max(created), "aliased_models": dict(weights)}
        for alias, weights in aliases.items()
        if (created := [models[model].get("created", 0) for model in weights if model in models])
    }


def _draw(alias: str, model: str, conversation: bytes) -> float:
    """A number above 0 and below 1, the same each time."""
    name = f"{alias}\n{model}\n".encode()
    number = int.from_bytes(blake2b(name + conversation, digest_size=7).digest())
    return (number + 0.5) / 2**56
