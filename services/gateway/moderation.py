"""Asks a model whether a prompt may be answered, where a setting names one: anything that speaks OpenAI's
`POST /v1/moderations`. Off by default. A cached answer was asked about when it was made."""

from __future__ import annotations

import logging
from typing import Any

from services.common.errors import ContentPolicyViolation, ModerationUnavailable
from services.common.metrics import GatewayMetrics
from services.common.settings import ScreeningSettings
from services.common.wire import ChatRequest, CompletionRequest
from services.gateway.call import Call
from services.gateway.sidemodel import ask
from services.gateway.upstreams.exchange import Broken, Pool, Unreachable

log = logging.getLogger("forebay.moderation")


class Moderator:
    """The moderation model at `moderation_url`, asked over kept connections."""

    def __init__(self, settings: ScreeningSettings, metrics: GatewayMetrics) -> None:
        assert settings.moderation_url is not None
        self._pool = Pool(settings.moderation_url)
        self._settings = settings
        self._metrics = metrics

    def ask(self, call: Call) -> None:
        """Lets the call pass that the model does not flag.

        Raises:
            ContentPolicyViolation: it flags one of the texts.
            ModerationUnavailable: it gave no answer in time, and `moderation_failure` is `closed`.
        """
        texts, field = _texts(call)
        if not texts:
            return
        try:
            flagged = self._flagged(call, texts)
        except (Unreachable, Broken, TimeoutError, LookupError, TypeError, ValueError) as error:
            self._metrics.moderations.labels("failed").inc()
            log.warning("the moderation model gave no answer", extra={"reason": type(error).__name__})
            if self._settings.moderation_failure == "closed":
                raise ModerationUnavailable from None
            return
        self._metrics.moderations.labels("flagged" if flagged else "passed").inc()
        if flagged:
            call.log_fields["moderation"] = flagged
            raise ContentPolicyViolation(param=field)

    def close(self) -> None:
        """Closes the kept connections."""
        self._pool.close()

    def _flagged(self, call: Call, texts: list[str]) -> list[str] | None:
        """The categories that a text was flagged for, None where none was."""
        settings = self._settings
        asked: dict[str, Any] = {"input": texts}
        if settings.moderation_model:
            asked["model"] = settings.moderation_model
        results = ask(
            self._pool,
            "/v1/moderations",
            asked,
            call=call,
            key=settings.moderation_key,
            timeout=settings.moderation_timeout,
        )["results"]
        if not results or not all(isinstance(result["flagged"], bool) for result in results):
            raise ValueError("not an answer of /v1/moderations")
        if not any(result["flagged"] for result in results):
            return None
        categories = [result.get("categories") or {} for result in results if result["flagged"]]
        return sorted({str(name)[:64] for each in categories for name, holds in each.items() if holds is True})


def _texts(call: Call) -> tuple[list[str], str]:
    """All the text that the call brings, and the field in which it stands. Token ids are no text."""
    request = call.request
    if isinstance(request, ChatRequest):
        return [text for message in request.messages if (text := message.text())], "messages"
    if isinstance(request, CompletionRequest):
        return [prompt for prompt in request.prompts if isinstance(prompt, str) and prompt], "prompt"
    return [], "input"
