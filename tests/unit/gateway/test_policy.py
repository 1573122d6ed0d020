"""The input policy: bounds that hold for every field, HTML, and the moderation model."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.common.errors import ApiError, ContentPolicyViolation, InvalidRequest, ModerationUnavailable
from services.common.metrics import GatewayMetrics
from services.common.settings import GatewaySettings
from services.common.wire import ChatRequest, CompletionRequest, Kind, parse_json, validate
from services.gateway import policy
from services.gateway.call import Call
from services.gateway.moderation import Moderator
from services.gateway.routes.guide import GuideRequest

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def settings(**given: Any) -> GatewaySettings:
    return GatewaySettings(jwt_secret="j" * 40, key_secret="k" * 40, **given)


def refused(body: dict[str, Any], **given: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        policy.apply(settings(**given), body)
    return caught.value


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


# Bounds


def test_a_body_within_the_bounds_passes_unchanged() -> None:
    body = {**CHAT, "tools": [{"type": "function", "function": {"parameters": {"a": [1.5, None, True]}}}]}
    before = json.dumps(body)
    policy.apply(settings(), body)
    assert json.dumps(body) == before


@pytest.mark.parametrize(
    ("body", "given", "param"),
    [
        ({**CHAT, "messages": CHAT["messages"] * 3}, {"max_messages": 2}, "messages"),
        (
            {**CHAT, "messages": [*CHAT["messages"], {"content": "x" * 11}]},
            {"max_text_length": 10},
            "messages.1.content",
        ),
        ({**CHAT, "prompt": ["ok", "x" * 11]}, {"max_text_length": 10}, "prompt.1"),
        ({**CHAT, "of_another_engine": {"deep": "x" * 11}}, {"max_text_length": 10}, "of_another_engine.deep"),
        ({**CHAT, "extra": {"in": nested(4)}}, {"max_json_depth": 5}, "extra.in.0.0.0"),
        (parse_json(b'{"model": "m", "extra": [1e400]}'), {}, "extra.0"),
    ],
    ids=["messages", "message", "prompt", "unknown field", "depth", "number"],
)
def test_what_is_out_of_bounds_is_refused_by_name(body: dict[str, Any], given: dict[str, Any], param: str) -> None:
    error = refused(body, **given)
    assert (error.status, error.param) == (400, param)
    assert f"'{param}'" in error.message


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 6])
def test_the_depth_is_counted_from_the_body_on(levels: int) -> None:
    # The body is the first level, and the list of messages the second.
    body = {"model": "m", "extra": nested(levels - 1)}
    if levels > 4:
        assert "nested deeper than 4 levels" in refused(body, max_json_depth=4).message
    else:
        policy.apply(settings(max_json_depth=4), body)


def test_what_is_too_deep_to_parse_is_refused_before_the_policy() -> None:
    with pytest.raises(InvalidRequest, match="recursion"):
        parse_json(b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}")


def test_the_path_to_a_deep_value_is_cut_short() -> None:
    assert refused({"model": "m", "extra": nested(100)}).param == "extra" + ".0" * 7


def test_a_refusal_repeats_nothing_of_the_text() -> None:
    assert "hunter2" not in refused({**CHAT, "user": "hunter2" * 10}, max_text_length=10).message


@pytest.mark.parametrize(
    "wrong", [{"max_length": 2**31}, {"top_k": 2**31}, {"seed": 2**63}, {"model": "m" * 257}, {"prompt": ""}]
)
def test_the_guides_routes_name_the_guides_fields(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        validate(GuideRequest, {"prompt": "hi", **wrong})
    assert caught.value.param == next(iter(wrong))


# HTML


def test_html_is_left_alone_unless_it_is_asked_for() -> None:
    body = {**CHAT, "messages": [{"role": "user", "content": "<b>bold</b>"}]}
    policy.apply(settings(), body)
    assert body["messages"][0]["content"] == "<b>bold</b>"


def test_html_is_stripped_from_messages_parts_and_prompts() -> None:
    dirty = "<script>alert(1)</script>Hello <b onclick='x()'>world</b>"
    chat: dict[str, Any] = {
        "messages": [{"role": "user", "content": dirty}, {"role": "user", "content": [{"type": "text", "text": dirty}]}]
    }
    policy.apply(settings(strip_html=True), chat)
    assert chat["messages"][0]["content"] == "Hello world"
    assert chat["messages"][1]["content"][0]["text"] == "Hello world"
    for prompt, clean in ((dirty, "Hello world"), ([dirty, "b"], ["Hello world", "b"]), ([1, 2], [1, 2])):
        text = {"prompt": prompt}
        policy.apply(settings(strip_html=True), text)
        assert text["prompt"] == clean


@pytest.mark.parametrize("messages", ["hi", [1], [{"content": 5}], [{"content": [1, {"text": 5}]}], [{}], None])
def test_stripping_leaves_what_is_malformed_to_the_validation(messages: Any) -> None:
    policy.apply(settings(strip_html=True), {"messages": messages})


# Moderation

Answer = Callable[[dict[str, Any]], tuple[int, Any]]


@contextmanager
def moderation_service(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A real server that speaks `/v1/moderations` as `answer` says, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({**body, "path": self.path, "authorization": self.headers["Authorization"]})
            status, said = answer(body)
            data = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def words(body: dict[str, Any]) -> tuple[int, Any]:
    """Flags each text with "bomb" in it, as OpenAI's model words it."""
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    found = [{"flagged": "bomb" in text, "categories": {"violence": "bomb" in text, "hate": False}} for text in texts]
    return 200, {"id": "modr-1", "model": "words", "results": found}


def call(kind: Kind = "chat", **fields: Any) -> Call:
    body = {"model": "m", **fields}
    return Call(
        kind=kind,
        request=validate(ChatRequest if kind == "chat" else CompletionRequest, body),
        body=body,
        authorization=None,
        request_id="req-1",
        traceparent="00-0-0-01",
        started=time.monotonic(),
        timeout=30,
        use_cache=True,
        client=None,
    )


def chat(*texts: str) -> Call:
    return call(messages=[{"role": "user", "content": text} for text in texts])


class Asking:
    """A moderator at `url`, and its counter."""

    def __init__(self, url: str, **given: Any) -> None:
        self.metrics = GatewayMetrics(CollectorRegistry())
        self.moderator = Moderator(settings(moderation_url=url, **given), self.metrics)
        self._before = {result: self._value(result) for result in ("passed", "flagged", "failed")}

    def ask(self, call: Call) -> ApiError | None:
        try:
            self.moderator.ask(call)
        except ApiError as error:
            return error
        return None

    def count(self, result: str) -> float:
        """How many there were since this moderator was made."""
        return self._value(result) - self._before[result]

    def _value(self, result: str) -> float:
        return float(self.metrics.moderations.labels(result)._value.get())


Moderators = Callable[..., Asking]


@pytest.fixture
def asking() -> Iterator[Moderators]:
    """Makes moderators, and closes them after the test."""
    made: list[Asking] = []

    def make(url: str, **given: Any) -> Asking:
        made.append(Asking(url, **given))
        return made[-1]

    yield make
    for each in made:
        each.moderator.close()


def test_a_harmless_prompt_passes_and_the_model_saw_all_of_it(asking: Moderators) -> None:
    with moderation_service(words) as (url, asked):
        asked_of = asking(url, moderation_model="words", moderation_key="s3cret")
        assert asked_of.ask(chat("Hello", "world")) is None
        assert asked_of.ask(call("text", prompt=["a", "b"])) is None
    assert asked[0] == {
        "input": ["Hello", "world"],
        "model": "words",
        "path": "/v1/moderations",
        "authorization": "Bearer s3cret",
    }
    assert asked[1]["input"] == ["a", "b"]
    assert asked_of.count("passed") == 2


@pytest.mark.parametrize(
    ("make", "param"),
    [
        (lambda: chat("Hello", "how to make a bomb"), "messages"),
        (lambda: call("text", prompt="bomb"), "prompt"),
    ],
)
def test_a_flagged_prompt_is_refused_as_openai_does_and_not_repeated(
    asking: Moderators, make: Callable[[], Call], param: str
) -> None:
    asked = make()  # not sooner: its time runs from here
    with moderation_service(words) as (url, _):
        asked_of = asking(url)
        error = asked_of.ask(asked)
    assert isinstance(error, ContentPolicyViolation)
    assert (error.status, error.code, error.param) == (400, "content_policy_violation", param)
    assert "bomb" not in error.message
    assert asked.log_fields["moderation"] == ["violence"]
    assert asked_of.count("flagged") == 1


def test_a_prompt_of_token_ids_has_no_text_to_ask_about(asking: Moderators) -> None:
    with moderation_service(words) as (url, asked):
        assert asking(url).ask(call("text", prompt=[1, 2, 3])) is None
    assert asked == []


BROKEN: list[tuple[int, Any]] = [
    (500, {"error": {}}),
    (200, b"not json"),
    (200, {"results": []}),
    (200, {"results": [{"flagged": "no"}]}),
    (200, {"something": "else"}),
    (200, [1]),
]


@pytest.mark.parametrize("said", BROKEN, ids=["status", "garbage", "empty", "types", "fields", "list"])
def test_a_service_that_fails_lets_nothing_pass_unless_it_may(asking: Moderators, said: tuple[int, Any]) -> None:
    with moderation_service(lambda _: said) as (url, _):
        closed, open_ = asking(url), asking(url, moderation_failure="open")
        error = closed.ask(chat("Hello"))
        assert open_.ask(chat("Hello")) is None
    assert isinstance(error, ModerationUnavailable)
    assert (error.status, error.code) == (503, "moderation_unavailable")
    assert closed.count("failed") == open_.count("failed") == 1


def test_a_service_that_is_not_there_counts_as_failed(asking: Moderators) -> None:
    with moderation_service(words) as (url, _):
        pass
    assert isinstance(asking(url).ask(chat("Hello")), ModerationUnavailable)


def test_a_service_that_does_not_answer_holds_nobody_beyond_the_time_out(asking: Moderators) -> None:
    done = threading.Event()

    def never(_: dict[str, Any]) -> tuple[int, Any]:
        done.wait(30)
        return 200, {}

    with moderation_service(never) as (url, _):
        asked_of = asking(url, moderation_timeout=0.2)
        started = time.monotonic()
        error = asked_of.ask(chat("Hello"))
        took = time.monotonic() - started
        done.set()
    assert isinstance(error, ModerationUnavailable)
    assert took < 10, "the service would have answered after 30 s"


def test_the_service_gets_no_more_time_than_the_call_has(asking: Moderators) -> None:
    done = threading.Event()

    def never(_: dict[str, Any]) -> tuple[int, Any]:
        done.wait(30)
        return 200, {}

    with moderation_service(never) as (url, _):
        asked_of = asking(url, moderation_timeout=20)
        late = chat("Hello")
        late = Call(**{**late.__dict__, "timeout": 0.2})
        started = time.monotonic()
        assert isinstance(asked_of.ask(late), ModerationUnavailable)
        took = time.monotonic() - started
        done.set()
    assert took < 10, "the setting alone would allow 20 s"
