"""Structured logs and the identity of a request through every hop.

A log line is one JSON object on stdout (`python-json-logger`), with the request id of the request that it belongs to.
No prompt text and no secret is ever logged: lines carry counts, names and times.
"""

from __future__ import annotations

import logging
import re
import secrets
import sys
from contextvars import ContextVar
from logging.handlers import RotatingFileHandler

from pythonjsonlogger.json import JsonFormatter

from services.common.settings import CommonSettings

REQUEST_ID_HEADER = "X-Request-Id"
CALL_HEADER = "X-Forebay-Call"
"""The gateway's own id of the call, which is never given out twice: a client may send its `X-Request-Id` again. Leases,
the ledger and a pod's counts are kept by it."""
TIMEOUT_HEADER = "X-Forebay-Timeout"
"""Seconds that are left for the request, a decimal number: the client may shorten the route's time-out with it, and the
gateway tells the pod with it. Relative, so that clocks need not agree."""
WEIGHT_HEADER = "X-Forebay-Weight"
"""The share of a pod that the request's tenant has against others, a positive number; 1 where it is not sent."""
SESSION_HEADER = "X-Forebay-Session"
"""A client's name for a conversation, any text: its requests go to the same model of an alias and, where that is no
worse, to the same pod."""
ROUTE_HEADER = "X-Forebay-Route"
"""Says in an answer where the call went and why (`services.gateway.route`)."""
TRACE_HEADER = "traceparent"

_SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def accept_request_id(given: str | None) -> str:
    """The client's id where it is harmless in a log and a header, else a new one."""
    return given if given and _SAFE_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"


def accept_traceparent(given: str | None) -> str:
    """The client's W3C trace context where it is well formed, else the start of a new trace."""
    if given and _TRACEPARENT.fullmatch(given):
        return given
    drawn = secrets.token_hex(24)
    return f"00-{drawn[:32]}-{drawn[32:]}-01"


class _RequestId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        current = request_id.get()
        if current is not None and not hasattr(record, "request_id"):
            record.request_id = current
        return True


def configure_logging(service: str, settings: CommonSettings) -> None:
    """Sends every logger of the process to stdout, and to the rotating file where the settings name one."""
    formatter = JsonFormatter(
        "%(asctime)s %(levelname)s %(name)s %(message)s",
        rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
        static_fields={"service": service},
    )
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if settings.log_file is not None:
        settings.log_file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(
            RotatingFileHandler(
                settings.log_file, maxBytes=settings.log_file_max_bytes, backupCount=settings.log_file_backups
            )
        )
    for handler in handlers:
        handler.setFormatter(formatter)
        handler.addFilter(_RequestId())
    logging.basicConfig(level=settings.log_level.upper(), handlers=handlers, force=True)
    logging.captureWarnings(True)
