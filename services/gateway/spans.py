"""A span of each call for OpenTelemetry, where `tracing_url` names a collector: the same facts as in the ledger.

The span is the parent of what the pods make of the call, by the `traceparent` that they get, and the child of the
client's own span where it sent one. It is made when the call has ended, out of the call's entry, so that a call on its
way costs nothing. Attributes by OpenTelemetry's conventions for GenAI where there are any.
"""

from __future__ import annotations

import secrets
import time

from services.cache.ledger import Entry
from services.gateway.call import Call

TIMEOUT = 2.0
"""Seconds that a batch is tried for, also the last one, while the process ends."""
INTERVAL = 1.0
FAILED = frozenset({"error", "upstream_error", "timeout", "overloaded"})
OPERATIONS = {"chat": "chat", "text": "text_completion"}


def enter(traceparent: str, given: str | None) -> tuple[str, str | None]:
    """The trace context of the gateway's own span, and the id of its parent, None where the trace begins here.

    Args:
        traceparent: the context that was accepted: the client's, or a new one.
        given: what the client sent.
    """
    if traceparent != given:
        return traceparent, None
    version, trace, parent, flags = traceparent.split("-")
    return f"{version}-{trace}-{secrets.token_hex(8)}-{flags}", parent


class Spans:
    """Sends spans to the collector at `url` (OTLP over HTTP), in the background; what it does not take is dropped.

    Raises:
        SystemExit: OpenTelemetry is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        except ImportError:
            raise SystemExit("FOREBAY_TRACING_URL needs OpenTelemetry: pip install 'forebay[tracing]'") from None
        exporter = OTLPSpanExporter(endpoint=url, timeout=TIMEOUT)
        self._processor = BatchSpanProcessor(exporter, schedule_delay_millis=INTERVAL * 1000)
        self._resource = Resource.create({"service.name": "forebay-gateway"})

    def record(self, call: Call, entry: Entry) -> None:
        """Hands the span of a call that has just ended on; never waits."""
        from opentelemetry.sdk.trace import ReadableSpan  # noqa: PLC0415
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags  # noqa: PLC0415

        _, trace, own, flags = call.traceparent.split("-")

        def context(span: str) -> SpanContext:
            return SpanContext(int(trace, 16), int(span, 16), is_remote=False, trace_flags=TraceFlags(int(flags, 16)))

        end = time.time_ns()
        failed = entry.outcome in FAILED
        self._processor.on_end(
            ReadableSpan(
                f"{OPERATIONS.get(entry.kind, entry.kind)} {entry.model}",
                context=context(own),
                parent=None if call.parent_span is None else context(call.parent_span),
                resource=self._resource,
                attributes={
                    "gen_ai.operation.name": OPERATIONS.get(entry.kind, entry.kind),
                    "gen_ai.request.model": call.asked_model,
                    "gen_ai.response.model": entry.model,
                    "gen_ai.usage.input_tokens": entry.prompt_tokens,
                    "gen_ai.usage.output_tokens": entry.completion_tokens,
                    "forebay.request_id": entry.request_id,
                    "forebay.tenant": entry.tenant,
                    "forebay.outcome": entry.outcome,
                    "forebay.route": entry.route,
                    **({"error.type": entry.outcome} if failed else {}),
                },
                kind=SpanKind.SERVER,
                status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
                start_time=end - int((time.monotonic() - call.started) * 1e9),
                end_time=end,
            )
        )

    def stop(self) -> None:
        """Sends what is left, for `TIMEOUT` at most."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]
