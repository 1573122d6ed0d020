"""Typed errors and the one envelope they become on the wire.

The shape is OpenAI's `{"error": {"message", "type", "param", "code"}}`; every route of both services answers with it,
404, 405, 413 and 500 included. Code raises an `ApiError`; only `services.web.edge` turns it into a response.
"""

from __future__ import annotations

import math
from typing import Any


class ApiError(Exception):
    """A failure that the client is told about. Subclasses fix status, type and code."""

    status: int = 500
    type: str = "server_error"
    code: str = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self._headers = dict(headers or {})

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that belong to the error; `Retry-After` is whole seconds, rounded up so that it is true."""
        if self.retry_after is None:
            return dict(self._headers)
        return {**self._headers, "Retry-After": str(max(1, math.ceil(self.retry_after)))}

    def add_header(self, name: str, value: str) -> None:
        """Gives the answer one more header."""
        self._headers[name] = value

    def envelope(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(ApiError):
    status, type, code = 400, "invalid_request_error", "invalid_request"


class MalformedBody(InvalidRequest):
    code = "malformed_body"


class MalformedJson(InvalidRequest):
    code = "malformed_json"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class ContentPolicyViolation(InvalidRequest):
    code = "content_policy_violation"

    def __init__(self, *, param: str) -> None:
        super().__init__("The moderation policy of this service does not allow this prompt.", param=param)


class NotAuthenticated(ApiError):
    status, type, code = 401, "invalid_request_error", "invalid_api_key"

    @property
    def headers(self) -> dict[str, str]:
        return {**super().headers, "WWW-Authenticate": "Bearer"}


class TokenExpired(NotAuthenticated):
    code = "token_expired"


class InvalidCredentials(NotAuthenticated):
    code = "invalid_credentials"


class Forbidden(ApiError):
    status, type, code = 403, "permission_error", "forbidden"


class NotFound(ApiError):
    status, type, code = 404, "invalid_request_error", "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(f"The model '{model}' does not exist or you do not have access to it.", param="model")


class Conflict(ApiError):
    status, type, code = 409, "invalid_request_error", "conflict"


class IdempotencyMismatch(Conflict):
    code = "idempotency_key_reused"


class StreamMismatch(Conflict):
    code = "stream_of_another_request"


class RateLimited(ApiError):
    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"


class QuotaExceeded(ApiError):
    """A budget of a day or a month is used up."""

    status, type, code = 429, "insufficient_quota", "insufficient_quota"


class QueueFull(ApiError):
    status, type, code = 429, "overloaded_error", "queue_full"


class UpstreamUnavailable(ApiError):
    status, type, code = 503, "server_error", "upstream_unavailable"


class NoPodReady(UpstreamUnavailable):
    """No pod takes requests for a model that there is; one may before long."""


class ShuttingDown(ApiError):
    """The gateway process ends, and the request had not by then; another gateway will take it."""

    status, type, code = 503, "server_error", "shutting_down"

    def __init__(self) -> None:
        super().__init__("The gateway shuts down before the answer was whole. Try again.", retry_after=1)


class AccountsUnavailable(ApiError):
    """The accounts' database can't be reached, so nobody can say who this is or keep what was asked for."""

    status, type, code = 503, "server_error", "accounts_unavailable"

    def __init__(self, *, retry_after: float = 1.0) -> None:
        super().__init__("The database of accounts can't be reached just now. Try again soon.", retry_after=retry_after)


class ModerationUnavailable(ApiError):
    """The moderation model gave no answer, and what it has not seen may not pass."""

    status, type, code = 503, "server_error", "moderation_unavailable"

    def __init__(self) -> None:
        super().__init__("The prompt could not be checked just now. Try again soon.", retry_after=1)


class IssuerUnavailable(ApiError):
    """The outside issuer of a token can't be asked for its keys."""

    status, type, code = 503, "server_error", "issuer_unavailable"

    def __init__(self, *, retry_after: float) -> None:
        super().__init__("The issuer of your token can't be reached just now. Try again soon.", retry_after=retry_after)


class DeadlineExceeded(ApiError):
    status, type, code = 504, "timeout_error", "deadline_exceeded"


class ClientGone(ApiError):
    """The client hung up; nobody reads this answer, but the log and the metrics name it (nginx's status 499)."""

    status, type, code = 499, "client_error", "client_gone"

    def __init__(self) -> None:
        super().__init__("The client closed the connection.")


BUSY = (429, 503)
"""What a pod answers that has no room or is not ready: not here, not now."""


class RelayedError(ApiError):
    """A refusal of an inference pod, passed on as it said it; a pod's own trouble is never the client's 401."""

    def __init__(self, status: int, envelope: Any, *, retry_after: str | None) -> None:
        error = envelope.get("error") if isinstance(envelope, dict) else None
        error = error if isinstance(error, dict) else {}
        super().__init__(str(error.get("message") or f"The inference pod answered {status}."), param=error.get("param"))
        self.status = 502 if status in (401, 403) else status
        self.type = str(error.get("type") or "server_error")
        self.code = str(error.get("code") or "upstream_error")
        if retry_after is not None:
            self._headers["Retry-After"] = retry_after


class HttpError(ApiError):
    """An error that HTTP itself names (404 for a route, 405, 413, …), or one that an upstream pod answered with."""

    def __init__(self, status: int, message: str, *, code: str | None = None, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.status = status
        self.type = "invalid_request_error" if status < 500 else "server_error"
        self.code = code or HTTP_CODES.get(status, "http_error")


HTTP_CODES = {
    400: "invalid_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    414: "uri_too_long",
    415: "unsupported_media_type",
    431: "headers_too_large",
    500: "internal_error",
}
