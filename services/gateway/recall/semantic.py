"""The answer to another question of the same meaning, where a setting names who tells meanings: anything that speaks
OpenAI's `POST /v1/embeddings`. Off by default, as what is near need not have the same answer.

Only for what has one answer and no history: deterministic chats with a single message of the user, besides those of
the system. Model, parameters and all other messages must be the same, only the user's text may differ. Never across
tenants.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from services.cache.connection import CacheDown, Connection
from services.cache.semantic import Meanings
from services.common.metrics import GatewayMetrics
from services.common.settings import GatewaySettings
from services.common.wire import ChatRequest
from services.gateway.call import Call, Reply, Spent
from services.gateway.identify import Principal
from services.gateway.recall.exact import replay
from services.gateway.sidemodel import ask
from services.gateway.upstreams.exchange import Broken, Pool, Unreachable

log = logging.getLogger("forebay.semantic")
SIMILARITY_HEADER = "X-Forebay-Similarity"


@dataclass(frozen=True)
class Meaning:
    """What a call asks, as a vector, under what must be the same."""

    salt: str
    scope: str
    vector: Sequence[float]


class Semantic:
    """The semantic cache of a process, which asks the embeddings at `semantic_cache_url`."""

    def __init__(self, connection: Connection, settings: GatewaySettings, metrics: GatewayMetrics) -> None:
        assert settings.semantic_cache_url is not None
        self._pool = Pool(settings.semantic_cache_url)
        self._meanings = Meanings(connection, most=settings.semantic_cache_entries, ttl=settings.cache_ttl)
        self._settings = settings
        self._metrics = metrics

    def recall(self, principal: Principal, call: Call, spent: Spent) -> Reply | None:
        """The answer to a question that is near enough; None where there is none, or it can't be told."""
        question = _question(call)
        if question is None:
            return None
        text, scope = question
        try:
            vector = self._embed(call, text)
            meaning = Meaning(principal.cache_salt, scope, vector)
            found = self._meanings.nearest(meaning.salt, scope, vector)
        except (CacheDown, Unreachable, Broken, TimeoutError, LookupError, TypeError, ValueError) as error:
            self._metrics.semantic.labels("failed").inc()
            log.warning("no meaning was told", extra={"reason": type(error).__name__})
            return None
        if found is None or found[0] < self._settings.semantic_cache_threshold:
            self._metrics.semantic.labels("miss").inc()
            spent.meaning = meaning
            return None
        self._metrics.semantic.labels("hit").inc()
        reply = replay(call, spent, found[1])
        spent.recalled = "semantic"
        reply.headers[SIMILARITY_HEADER] = f"{found[0]:.4f}"
        return reply

    def keep(self, meaning: Meaning, answer_key: str) -> None:
        """Remembers what a call asked whose answer is kept now; silently not while Redis is down."""
        with suppress(CacheDown):
            self._meanings.add(meaning.salt, meaning.scope, meaning.vector, answer_key)

    def _embed(self, call: Call, text: str) -> list[float]:
        settings = self._settings
        asked = {"input": text, "encoding_format": "float"}
        if settings.semantic_cache_model:
            asked["model"] = settings.semantic_cache_model
        answer = ask(
            self._pool,
            "/v1/embeddings",
            asked,
            call=call,
            key=settings.semantic_cache_key,
            timeout=settings.semantic_cache_timeout,
        )
        vector = [float(number) for number in answer["data"][0]["embedding"]]
        if not vector:
            raise ValueError("an empty vector")
        return vector


def _question(call: Call) -> tuple[str, str] | None:
    """The user's text, and all else of the request; None where it is not of the kind that may be near to another."""
    request = call.request
    if not isinstance(request, ChatRequest) or "tools" in call.body or "response_format" in call.body:
        return None
    roles = [message.role for message in request.messages]
    if roles[-1] != "user" or not {*roles[:-1]} <= {"system", "developer"}:
        return None
    others = [message.text() for message in request.messages[:-1]]
    ignored = {"messages", "stream", "stream_options", "user", "metadata"}
    rest = {name: value for name, value in call.body.items() if name not in ignored}
    return request.messages[-1].text(), json.dumps([others, rest], sort_keys=True, separators=(",", ":"))
