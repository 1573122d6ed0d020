"""What a call that failed is counted as, in metrics and ledger."""

from __future__ import annotations

from services.common.errors import BUSY, ApiError, ClientGone, DeadlineExceeded, QueueFull, RelayedError


def outcome_of(error: BaseException | None) -> str:
    """The outcome of a call that ended with `error`, or without one."""
    if error is None:
        return "ok"
    if isinstance(error, ClientGone):
        return "client_gone"
    if isinstance(error, DeadlineExceeded):
        return "timeout"
    if isinstance(error, RelayedError | QueueFull) and error.status in BUSY:
        return "overloaded"
    if isinstance(error, ApiError):
        return "client_error" if error.status < 500 else "upstream_error"
    return "error"
