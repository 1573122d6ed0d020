"""What the gateway refuses, how it says so, and what it never writes down."""

import json
import socket
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.integration.gateway.conftest import SECRET, RunningGateway, StartGateway, until
from tests.integration.gateway.scripts import hello
from tests.unit.gateway.scripted_pod import scripted_pod

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
PATH = "/v1/chat/completions"


def admin_of(gateway: RunningGateway) -> httpx2.Client:
    """A client with the access token of the first admin."""
    credentials = {"username": "admin", "password": gateway.admin_password}
    answer = httpx2.post(f"{gateway.url}/login", json=credentials)
    return gateway.client(key=answer.json()["access_token"])


def send(gateway: RunningGateway, *lines: str) -> httpx2.Response:
    """The answer to these lines, whether or not they are HTTP; the gateway must end the connection after it."""
    where = httpx2.URL(gateway.url)
    with socket.create_connection((where.host, where.port), timeout=30) as connection:
        connection.sendall("\r\n".join(lines).encode("latin-1"))
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    return httpx2.Response(int(head.split()[1]), content=body)


def error_of(answer: httpx2.Response) -> tuple[int, str]:
    """Status and code, after a look that the envelope is whole."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return answer.status_code, error["code"]


class TestMalformedRequests:
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b"\x00\xff\xfe garbage \x80",
            b'{"model": NaN}',
            b"[" * 100_000,
            b'{"a": "\\ud800"}',
        ],
        ids=["empty", "cut", "list", "number", "binary", "nan", "deep", "surrogate"],
    )
    def test_a_body_that_is_no_json_object_is_told_so(self, client: httpx2.Client, content: bytes) -> None:
        assert error_of(client.post(PATH, content=content)) == (400, "malformed_json")

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"max_tokens": -1}, "max_tokens"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_tokens": "5"}, "max_tokens"),
            ({"max_tokens": 2.5}, "max_tokens"),
            ({"temperature": 3}, "temperature"),
            ({"top_p": 0}, "top_p"),
            ({"messages": []}, "messages"),
            ({"messages": "hi"}, "messages"),
            ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages.0.role"),
            ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
            ({"stream": "yes"}, "stream"),
            ({"stop": ["x"] * 17}, "stop"),
            ({"model": ""}, "model"),
            ({"model": 7}, "model"),
        ],
    )
    def test_a_wrong_field_is_named(self, client: httpx2.Client, fields: dict[str, Any], param: str) -> None:
        answer = client.post(PATH, json={**CHAT, **fields})
        assert error_of(answer) == (400, "invalid_request")
        assert answer.json()["error"]["param"] == param

    def test_a_missing_field_is_named(self, client: httpx2.Client) -> None:
        answer = client.post(PATH, json={"messages": CHAT["messages"]})
        assert answer.json()["error"]["param"] == "model"

    def test_a_body_of_five_megabytes_is_413(self, client: httpx2.Client) -> None:
        body = {**CHAT, "messages": [{"role": "user", "content": "x" * 5_000_000}]}
        assert error_of(client.post(PATH, json=body)) == (413, "request_too_large")

    def test_a_time_out_that_is_no_number_is_named(self, client: httpx2.Client) -> None:
        answer = client.post(PATH, json=CHAT, headers={"X-Forebay-Timeout": "soon"})
        assert error_of(answer) == (400, "invalid_request")

    def test_an_unknown_model_is_404(self, client: httpx2.Client) -> None:
        answer = client.post(PATH, json={**CHAT, "model": "none"})
        assert error_of(answer) == (404, "model_not_found")
        assert answer.json()["error"]["param"] == "model"

    def test_an_unknown_route_and_a_wrong_method_have_the_envelope_too(self, client: httpx2.Client) -> None:
        assert error_of(client.get("/v2/nothing")) == (404, "not_found")
        assert error_of(client.get(PATH)) == (405, "method_not_allowed")

    @pytest.mark.parametrize(
        ("lines", "refusal"),
        [
            ([f"GET /v1/models?x={'x' * 9000} HTTP/1.1", "", ""], (414, "uri_too_long")),
            (["GET /healthz HTTP/1.1", f"X-Long: {'x' * 9000}", "", ""], (431, "headers_too_large")),
            (["\x16\x03\x01 no HTTP", "", ""], (400, "invalid_request")),
            ([f"POST {PATH} HTTP/1.1", "Content-Length: -5", "", ""], (400, "invalid_request")),
            ([f"POST {PATH} HTTP/1.1", "Transfer-Encoding: chunked", "", "zz", "{}", ""], (400, "malformed_body")),
        ],
        ids=["long line", "long header", "no http", "negative length", "no chunk"],
    )
    def test_what_never_reaches_a_route_has_the_envelope_too(
        self, gateway: RunningGateway, lines: list[str], refusal: tuple[int, str]
    ) -> None:
        assert error_of(send(gateway, *lines)) == refusal

    def test_a_query_may_be_as_long_as_a_prompt_of_two_pages(self, client: httpx2.Client) -> None:
        assert client.get("/stream", params={"prompt": "x" * 8000}).status_code == 200

    def test_a_compressed_body_is_415(self, client: httpx2.Client) -> None:
        answer = client.post(PATH, json=CHAT, headers={"Content-Encoding": "gzip"})
        assert error_of(answer) == (415, "unsupported_media_type")


class TestCredentials:
    @pytest.mark.parametrize("path", [PATH, "/v1/completions", "/generate", "/stream", "/dynamic"])
    def test_no_route_generates_without_a_key(self, gateway: RunningGateway, path: str) -> None:
        body = {**CHAT} if path == PATH else {"model": "m", "prompt": "hi"}
        answer = httpx2.post(gateway.url + path, json=body)
        assert error_of(answer) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"

    def test_a_wrong_key_is_401_and_is_not_repeated(self, gateway: RunningGateway) -> None:
        wrong = gateway.key[:-4] + "0000"
        with gateway.client(key=wrong) as client:
            answer = client.post(PATH, json=CHAT)
        assert error_of(answer)[0] == 401
        assert wrong not in answer.text

    def test_an_access_token_opens_what_a_key_opens(self, gateway: RunningGateway) -> None:
        with admin_of(gateway) as admin:
            assert admin.post(PATH, json=CHAT).status_code == 200

    def test_an_expired_token_is_told_so(self, start_gateway: StartGateway) -> None:
        with scripted_pod(hello) as pod:
            gateway = start_gateway(pod, access_token_ttl=1)
            with admin_of(gateway) as admin:
                issued = time.monotonic()
                until(lambda: time.monotonic() - issued > 2)
                assert error_of(admin.post(PATH, json=CHAT)) == (401, "token_expired")

    def test_the_admin_routes_are_closed_to_a_plain_key(self, client: httpx2.Client) -> None:
        assert error_of(client.get("/admin/keys")) == (403, "forbidden")


class TestModels:
    @pytest.mark.parametrize("path", ["/generate", "/stream", "/dynamic"])
    def test_a_prompt_without_a_model_is_404_where_the_key_has_none(self, gateway: RunningGateway, path: str) -> None:
        with admin_of(gateway) as admin:
            key = admin.post("/admin/keys", json={"tenant": "demo", "name": "none", "models": ["another"]}).json()[
                "key"
            ]
        with gateway.client(key=key) as client:
            answer = client.post(path, json={"prompt": "hi"})
        assert error_of(answer) == (404, "model_not_found")


class TestLimits:
    def key_with(self, gateway: RunningGateway, **limits: int) -> str:
        with admin_of(gateway) as admin:
            answer = admin.post("/admin/keys", json={"tenant": "demo", "name": str(limits), **limits})
            assert answer.status_code == 201, answer.text
            return str(answer.json()["key"])

    def test_the_request_after_the_last_is_429_and_says_when_to_come_back(self, gateway: RunningGateway) -> None:
        with gateway.client(key=self.key_with(gateway, requests_per_minute=2)) as client:
            answers = [client.post(PATH, json=CHAT) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert error_of(answers[2]) == (429, "rate_limit_exceeded")
        assert 0 < int(answers[2].headers["retry-after"]) <= 60
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
        assert answers[0].headers["x-ratelimit-limit-requests"] == "2"

    def test_tokens_are_reserved_before_and_settled_after(self, gateway: RunningGateway) -> None:
        """Each call may use some 54 tokens of 100 and does use 7, so many calls fit one after another."""
        with gateway.client(key=self.key_with(gateway, tokens_per_minute=100)) as client:
            answers = [client.post(PATH, json={**CHAT, "max_tokens": 50}) for _ in range(15)]
        passed = [answer.status_code for answer in answers].index(429)
        assert passed == 7, "7 times 7 tokens used, and 54 more, do not fit into 100"
        assert answers[0].headers["x-ratelimit-limit-tokens"] == "100"

    def test_refusals_are_counted_by_cause(self, gateway: RunningGateway) -> None:
        before = gateway.metric("forebay_gateway_refused_total", account="key", cause="requests_per_minute")
        with gateway.client(key=self.key_with(gateway, requests_per_minute=1)) as client:
            for _ in range(3):
                client.post(PATH, json=CHAT)
        after = gateway.metric("forebay_gateway_refused_total", account="key", cause="requests_per_minute")
        assert after == before + 2
        assert gateway.metric("forebay_gateway_requests_total", model="m", outcome="rate_limited") >= 2


def test_a_tenant_never_gets_another_tenants_cached_answer(gateway: RunningGateway) -> None:
    with admin_of(gateway) as admin:
        admin.post("/admin/tenants", json={"name": "rivals"})
        key = admin.post("/admin/keys", json={"tenant": "rivals", "name": "theirs"}).json()["key"]
    asked = {**CHAT, "temperature": 0, "messages": [{"role": "user", "content": "isolation"}]}
    with gateway.client() as ours, gateway.client(key=key) as theirs:
        answers = [client.post(PATH, json=asked) for client in (ours, ours, theirs)]
    assert [answer.headers["x-forebay-cache"] for answer in answers] == ["miss", "hit", "miss"]


def test_no_prompt_no_secret_and_no_traceback_is_ever_logged(start_gateway: StartGateway, tmp_path: Path) -> None:
    prompt = "a very private question"
    log_file = tmp_path / "rotating.log"
    with scripted_pod(hello) as pod:
        gateway = start_gateway(pod, log_file=log_file, log_level="DEBUG")
        body = {**CHAT, "messages": [{"role": "user", "content": prompt}]}
        with gateway.client() as client, admin_of(gateway):
            client.post(PATH, json=body)
            client.post(PATH, json={**body, "max_tokens": -1})
            client.post(PATH, content=prompt.encode())
            client.get("/cache", params={"q": prompt})
            client.get("/stream", params={"prompt": prompt})
        with gateway.client(key="fb-wrongkey-0000000000") as client:
            client.post(PATH, json=body)
    for log in (gateway.log.read_text(), log_file.read_text()):
        for secret in (prompt, "private", "Hello", gateway.key, gateway.admin_password, SECRET, "fb-wrongkey", "eyJ"):
            assert secret not in log
        assert "Traceback" not in log
        for line in log.splitlines():
            assert json.loads(line)["service"] == "gateway"


def test_every_line_of_a_request_carries_its_id(gateway: RunningGateway, client: httpx2.Client) -> None:
    client.post(PATH, json=CHAT, headers={"X-Request-Id": "follow-me"})

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in gateway.log.read_text().splitlines() if "follow-me" in line]

    until(lambda: bool(lines()))
    assert lines()[-1]["request_id"] == "follow-me"
    assert {"tenant", "model", "outcome", "prompt_tokens", "completion_tokens", "seconds"} <= set(lines()[-1])
