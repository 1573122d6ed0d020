"""Which pod a conversation returns to, so that the KV blocks of its beginning are found there. Pure functions.

Every gateway finds the same pod without talking to the others: of all pods the one whose hash with the conversation's
key is the largest (rendezvous hashing, Thaler & Ravishankar 1998), so a pod that comes or goes moves only the
conversations that it gets or had. A pod whose load is far above the average is passed over for the next one in that
order (Mirrokni, Thorup & Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2016), so a beginning that everybody
shares is on as many pods as its traffic needs, and no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

BEGINNING = 1024
"""Characters of a prompt's beginning that make its key: about 256 tokens, 16 KV blocks. The same however the prompt
goes on, so that later turns, and other questions on the same document, find the pod of the first."""
LEAST = 64
"""Characters below which a conversation's first request may go anywhere: there is next to nothing to find again."""
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Affinity:
    """What ties a request to a pod: a key, from the session that the client names or else from the prompt."""

    key: int
    policy: Literal["session", "prefix"]


def affinity(salt: str, body: dict[str, Any], session: str | None = None) -> Affinity | None:
    """What ties a request of the tenant with `salt` to a pod, None when nothing does.

    Args:
        body: in OpenAI's format, validated.
        session: the client's own name for what belongs together; goes before the prompt.
    """
    if session:
        return Affinity(_hash(f"{salt}\0session\0{session}"), "session")
    beginning = _of_messages(body["messages"]) if body.get("messages") else _of_prompt(body.get("prompt"))
    return Affinity(_hash(f"{salt}\0{body.get('model')}\0{beginning}"), "prefix") if beginning is not None else None


def seed_of(url: str) -> int:
    """A pod's part of the hash."""
    return _hash(url)


def home(key: int, seeds: Sequence[int], loads: Sequence[int], bound: float) -> tuple[int, bool]:
    """The place in `seeds` of the pod for a conversation, and whether it is the first in its order.

    Args:
        seeds, loads: of the pods that may be taken, at least one.
        bound: how many times the average load, with this request, a pod may have; 1 or more, so there always is one.
    """
    most = math.ceil(bound * (sum(loads) + 1) / len(loads))  # above the average, so some pod has less
    # A multiply and shift mix, some 0.2 µs a pod where blake2b takes 1; in place, as a call costs half of that again.
    scores = [
        ((mixed := ((key ^ seed) * 0x9E3779B97F4A7C15) & _MASK) ^ (mixed >> 32)) * 0xD6E8FEB86659FD93 & _MASK
        for seed in seeds
    ]
    first = scores.index(max(scores))
    if loads[first] + 1 <= most:
        return first, True
    return max((place for place, load in enumerate(loads) if load + 1 <= most), key=scores.__getitem__), False


def _of_messages(messages: list[dict[str, Any]]) -> str | None:
    """The beginning of a chat: what stands before the user's first message, and that one."""
    pieces, left = [], BEGINNING
    for number, message in enumerate(messages):
        text = _text(message.get("content"))
        pieces.append(f"{message.get('role')}\0{text[:left]}")
        left -= len(text)
        if left <= 0 or message.get("role") == "user":
            fresh = number + 1 == len(messages)
            return None if fresh and BEGINNING - left < LEAST else "\0".join(pieces)
    return None


def _of_prompt(prompt: Any) -> str | None:
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, list):
        return str(prompt[: BEGINNING // 4]) if len(prompt) >= LEAST // 4 else None
    return prompt[:BEGINNING] if isinstance(prompt, str) and len(prompt) >= LEAST else None


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text") or part.get("type")) for part in content if isinstance(part, dict))
    return ""


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
