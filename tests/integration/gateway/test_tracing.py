"""Spans reach a collector, with the route, and pods are told whose children their own are."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.integration.gateway.conftest import StartGateway, until
from tests.integration.gateway.scripts import hello
from tests.unit.gateway.scripted_pod import Handler, scripted_pod

CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """The URL of a collector, and the spans that it was sent."""
    spans: list[Any] = []

    class Collect(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collect)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_each_call_has_a_span_between_the_clients_and_the_pods(start_gateway: StartGateway) -> None:
    told: list[str] = []

    def script(handler: Handler, body: dict[str, Any]) -> None:
        told.append(handler.headers["traceparent"])
        hello(handler, body)

    with scripted_pod(script) as pod, collector() as (url, spans):
        gateway = start_gateway(pod, tracing_url=url)
        with gateway.client() as client:
            answers = [client.post("/v1/chat/completions", json=CHAT, headers={"traceparent": CLIENT})]
            answers += [client.post("/v1/chat/completions", json={**CHAT, "stream": True})]
        until(lambda: len(spans) == 2)
    for span, answer, traceparent in zip(spans, answers, told, strict=True):
        assert traceparent.split("-")[1:3] == [span.trace_id.hex(), span.span_id.hex()]
        said = {one.key: one.value.string_value or one.value.int_value for one in span.attributes}
        assert said["forebay.route"] == answer.headers["x-forebay-route"]
        assert said["forebay.request_id"] == answer.headers["x-request-id"]
        assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (5, 2)
        assert span.end_time_unix_nano > span.start_time_unix_nano
    child, root = spans
    assert (child.trace_id.hex(), child.parent_span_id.hex()) == tuple(CLIENT.split("-")[1:3])
    assert root.parent_span_id == b""


def test_a_collector_that_is_gone_costs_no_answer(start_gateway: StartGateway) -> None:
    with collector() as (url, _):
        pass
    with scripted_pod(hello) as pod:
        gateway = start_gateway(pod, tracing_url=url)
        with gateway.client() as client:
            assert [client.post("/v1/chat/completions", json=CHAT).status_code for _ in range(3)] == [200] * 3
