"""A client's stream is whole, whichever pod is lost at whichever moment; where it cannot be, the client is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from services.common import sse
from services.common.errors import ApiError, UpstreamUnavailable
from services.common.wire import Answer, Usage
from tests.unit.gateway.dispatching import Dispatched, Dispatcher
from tests.unit.gateway.scripted_pod import Handler, Script, scripted_pod

WORDS = {11: "The", 12: " fore", 13: "bay", 14: "", 15: " holds", 16: " water."}
"""What every pod here says: tokens with the text that each makes certain."""
PROMPT = 5
Blocks = list[bytes]
Start = Callable[..., Dispatcher]


def speak(body: dict[str, Any], *, notes: bool = True, resumes: bool = True) -> Blocks:
    """The stream of a pod, block by block. Its chunks: the role (of a chat), five with text, the end, the usage."""
    answer = Answer.new("chat" if "messages" in body else "text", "m")
    given = body.get("resume_token_ids", []) if resumes else []
    assert given == list(WORDS)[: len(given)]
    count, fresh, blocks = len(given), list[int](), Blocks()

    def add(chunk: dict[str, Any] | None) -> None:
        if chunk is not None:
            note = sse.note({"completion_tokens": count, "token_ids": fresh, "prompt_tokens": PROMPT})
            blocks.append((note if notes else b"") + sse.event(chunk))
            fresh.clear()

    if not given:
        add(answer.first())
    for token in list(WORDS)[len(given) :]:
        count += 1
        fresh.append(token)
        if WORDS[token]:
            add(answer.delta(WORDS[token]))
    add(answer.last("stop"))
    add(answer.usage(Usage(PROMPT, count)))
    return [*blocks, sse.DONE]


def whole(handler: Handler, body: dict[str, Any]) -> None:
    """A pod that is well."""
    if body.get("stream"):
        send(handler, speak(body))
    else:
        handler.answer(200, Answer.new("chat", "m").whole([("".join(WORDS.values()), "stop")], Usage(PROMPT, 6)))


def send(handler: Handler, blocks: Blocks, *, broken: bool = False) -> None:
    handler.start_stream()
    for block in blocks:
        handler.send_piece(block)
    handler.break_off() if broken else handler.end_stream()


def says(cut: Callable[[Blocks], Blocks], *, broken: bool = True, **how: bool) -> Script:
    """A pod whose stream has only what `cut` leaves of it."""
    return lambda handler, body: send(handler, cut(speak(body, **how)), broken=broken)


def after(count: int) -> Script:
    """A pod that is lost after so many chunks."""
    return says(lambda blocks: blocks[:count])


def gives_up(count: int, error: ApiError, *, broken: bool = False) -> Script:
    """A pod that ends its stream after so many chunks with an error, two tokens further than it gave out."""
    note = sse.note({"completion_tokens": count + 1, "token_ids": [], "prompt_tokens": PROMPT})
    return says(lambda blocks: [*blocks[:count], note + sse.event(error.envelope())], broken=broken)


def refuses(status: int, code: str) -> Script:
    return lambda handler, _: handler.answer(status, {"error": {"message": "no", "type": "t", "code": code}})


def closes(handler: Handler, _body: dict[str, Any]) -> None:
    handler.break_off()


SHUTTING_DOWN = UpstreamUnavailable("The server is shutting down.")


class Recorder:
    """A pod's script that keeps the bodies it was sent."""

    def __init__(self, script: Script = whole) -> None:
        self.bodies: list[dict[str, Any]] = []
        self._script = script

    def __call__(self, handler: Handler, body: dict[str, Any]) -> None:
        self.bodies.append(body)
        self._script(handler, body)

    @property
    def resumed(self) -> list[list[int]]:
        return [body.get("resume_token_ids", []) for body in self.bodies]


@pytest.fixture
def start() -> Iterator[Start]:
    """Pods that follow these scripts, seen ready, with calls sent to the first of them that is."""
    with ExitStack() as stack:

        def begin(*scripts: Script, owners: tuple[str, ...] = ("forebay",) * 4) -> Dispatcher:
            pods = [
                stack.enter_context(scripted_pod(script, owner)) for script, owner in zip(scripts, owners, strict=False)
            ]
            dispatcher = Dispatcher(*pods)
            stack.callback(dispatcher.close)
            return dispatcher

        yield begin


CHAT = {"stream": True, "stream_options": {"include_usage": True}}
TEXT = {**CHAT, "prompt": "hi"}


@pytest.fixture
def unbroken(start: Start) -> Callable[[dict[str, Any]], Dispatched]:
    return start(whole).ask


BREAKS: dict[str, tuple[Script, int | None]] = {
    "before the headers": (closes, None),
    "before the first chunk": (after(0), None),
    "after the first chunk": (after(1), 0),
    "between note and data": (says(lambda blocks: [*blocks[:3], blocks[3].partition(b"data:")[0]]), 2),
    "in a note": (says(lambda blocks: [*blocks[:3], blocks[3][:20]]), 2),
    "in a data line": (says(lambda blocks: [*blocks[:3], blocks[3][:-20]]), 2),
    "in the end of a block": (says(lambda blocks: [*blocks[:3], blocks[3][:-1]]), 2),
    "before a chunk with two tokens": (after(4), 3),
    "after a chunk with two tokens": (after(5), 5),
    "before the finish": (after(6), 6),
    "without an end": (says(lambda blocks: blocks[:4], broken=False), 3),
    "by shutting down": (gives_up(4, SHUTTING_DOWN), 3),
}
"""How a pod is lost in a chat, and how many tokens the client has by then; None where another pod begins anew."""


@pytest.mark.parametrize(("pod", "given"), BREAKS.values(), ids=BREAKS)
def test_another_pod_goes_on_where_one_was_lost(
    start: Start, unbroken: Callable[[dict[str, Any]], Dispatched], pod: Script, given: int | None
) -> None:
    other = Recorder()
    dispatcher = start(pod, other)
    retries, resumes = dispatcher.counted()
    got = dispatcher.ask(CHAT)
    assert got.answer == unbroken(CHAT).answer
    assert other.resumed == [list(WORDS)[: given or 0]]
    assert list(got.spent.token_ids) == list(WORDS)
    assert (got.spent.outcome, got.spent.tokens) == ("ok", Usage(PROMPT, 6))
    assert (got.spent.retries, got.spent.resumes) == (1, given is not None)
    assert dispatcher.counted() == (retries + 1, resumes + (given is not None))


@pytest.mark.parametrize("chunks", range(6))
def test_a_text_goes_on_too(start: Start, unbroken: Callable[[dict[str, Any]], Dispatched], chunks: int) -> None:
    assert start(after(chunks), whole).ask(TEXT).answer == unbroken(TEXT).answer


@pytest.mark.parametrize("chunks", [7, 8], ids=["after the finish", "after the usage"])
@pytest.mark.parametrize("wants_usage", [True, False], ids=["with usage", "without usage"])
def test_what_only_lacks_its_end_is_ended_without_another_pod(
    start: Start, unbroken: Callable[[dict[str, Any]], Dispatched], chunks: int, wants_usage: bool
) -> None:
    asked = {**CHAT, "stream_options": {"include_usage": wants_usage}}
    other = Recorder()
    got = start(after(chunks), other).ask(asked)
    assert got.answer == unbroken(asked).answer
    assert (got.spent.outcome, got.spent.tokens) == ("ok", Usage(PROMPT, 6))
    assert other.bodies == []


def test_a_connection_that_breaks_after_the_end_changes_nothing(start: Start) -> None:
    other = Recorder()
    dispatcher = start(says(lambda blocks: blocks), other)
    got = dispatcher.ask(CHAT)
    assert got.events.count("[DONE]") == 1
    assert got.spent.outcome == "ok"
    assert dispatcher.ready() == [True, True]
    assert other.bodies == []


def test_a_stream_outlives_as_many_pods_as_there_are_tries(
    start: Start, unbroken: Callable[[dict[str, Any]], Dispatched]
) -> None:
    last = Recorder()
    got = start(after(2), after(2), last).ask(CHAT)
    assert got.answer == unbroken(CHAT).answer
    assert last.resumed == [[11, 12, 13]]
    assert got.spent.resumes == 2


def test_a_roll_out_of_many_pods_cuts_no_stream(start: Start) -> None:
    """Each pod does one token more and shuts down; so do two that come back, five times in all."""
    legs = Recorder(gives_up(1, SHUTTING_DOWN))
    got = start(gives_up(2, SHUTTING_DOWN), legs, legs).ask(CHAT)
    assert got.text == "The forebay holds water."
    assert got.events[-1] == "[DONE]"
    assert got.spent.resumes > 3


def test_a_pod_that_shuts_down_before_it_did_anything_counts(start: Start) -> None:
    legs = Recorder(
        lambda handler, body: gives_up(0 if "resume_token_ids" in body else 2, SHUTTING_DOWN)(handler, body)
    )
    got = start(legs, legs, legs, legs).ask(CHAT)
    assert (got.text, got.failure) == ("The", "upstream_unavailable")
    assert len(legs.bodies) == 4, "the first one has done its part, and cost nothing"


def test_more_pods_than_that_are_not_tried(start: Start) -> None:
    fourth = Recorder()
    got = start(after(2), after(1), after(1), fourth).ask(CHAT)
    assert (got.text, got.failure) == ("The forebay", "upstream_unavailable")
    assert fourth.bodies == []


def test_a_pod_that_has_come_back_may_go_on_with_what_it_began(
    start: Start, unbroken: Callable[[dict[str, Any]], Dispatched]
) -> None:
    lives = iter([after(2), whole])

    def returns(handler: Handler, body: dict[str, Any]) -> None:
        next(lives)(handler, body)

    def lost_later(handler: Handler, body: dict[str, Any]) -> None:
        dispatcher.fleet.look()
        after(2)(handler, body)

    dispatcher = start(returns, lost_later)
    assert dispatcher.ask(CHAT).answer == unbroken(CHAT).answer


def test_a_lost_pod_gets_no_more_calls_until_it_is_seen_again(start: Start) -> None:
    dispatcher = start(after(3), whole)
    dispatcher.ask(CHAT)
    assert dispatcher.ready() == [False, True]
    dispatcher.fleet.look()
    assert dispatcher.ready() == [True, True]


def test_no_call_is_left_in_a_pod(start: Start) -> None:
    dispatcher = start(after(3), whole)
    dispatcher.ask(CHAT)
    dispatcher.ask({})
    assert dispatcher.inflight() == [0, 0]


def test_the_text_for_the_cache_is_that_of_both_pods(start: Start) -> None:
    got = start(after(3), whole).ask({**CHAT, "temperature": 0})
    assert ("".join(got.spent.text), got.spent.finish) == ("The forebay holds water.", "stop")


class TestTheSeed:
    def test_all_pods_draw_by_the_same_one_where_the_client_gave_none(self, start: Start) -> None:
        first, second = Recorder(after(3)), Recorder()
        dispatcher = start(first, second)
        dispatcher.ask(CHAT)
        dispatcher.ask({})
        seeds = [body["seed"] for body in (*first.bodies, *second.bodies)]
        assert seeds[0] == seeds[1] != seeds[2]

    def test_it_does_not_make_the_answer_one_for_the_cache(self, start: Start) -> None:
        got = start(whole).ask(CHAT)
        assert got.spent.text == []

    @pytest.mark.parametrize("fields", [{"seed": 7}, {"temperature": 0}, {"temperature": 0, "seed": None}])
    def test_a_call_that_has_one_answer_anyway_is_sent_as_it_is(self, start: Start, fields: dict[str, Any]) -> None:
        pod = Recorder()
        start(pod).ask({**CHAT, **fields})
        assert pod.bodies[0].get("seed") == fields.get("seed")

    def test_an_engine_that_cannot_resume_is_sent_none(self, start: Start) -> None:
        pod = Recorder()
        start(pod, owners=("vllm",)).ask(CHAT)
        assert "seed" not in pod.bodies[0]


class TestWhereNobodyCanGoOn:
    """The client has the text so far, and an error as the last event."""

    def lost(self, got: Dispatched, text: str = "The fore") -> None:
        assert (got.text, got.failure) == (text, "upstream_unavailable")
        assert got.spent.outcome == "upstream_error"
        assert got.spent.resumes == 0

    def test_without_another_pod(self, start: Start) -> None:
        got = start(after(3)).ask(CHAT)
        self.lost(got)
        assert got.spent.tokens == Usage(PROMPT, 2), "what was generated before the loss is counted"

    def test_after_a_pod_that_sends_no_notes(self, start: Start) -> None:
        other = Recorder()
        self.lost(start(says(lambda blocks: blocks[:3], notes=False), other).ask(CHAT))
        assert other.bodies == []

    def test_at_an_engine_that_cannot_resume(self, start: Start) -> None:
        other = Recorder()
        self.lost(start(after(3), other, owners=("forebay", "vllm")).ask(CHAT))
        assert other.bodies == []

    def test_at_a_pod_that_begins_again_instead(self, start: Start) -> None:
        got = start(after(3), says(lambda blocks: blocks, resumes=False)).ask(CHAT)
        assert (got.text, got.failure) == ("The fore", "upstream_unavailable")

    @pytest.mark.parametrize("status", [400, 429, 503])
    def test_at_a_pod_that_refuses(self, start: Start, status: int) -> None:
        self.lost(start(after(3), refuses(status, "whatever")).ask(CHAT))

    def test_in_time(self, start: Start) -> None:
        got = start(after(3), refuses(504, "deadline_exceeded")).ask(CHAT)
        assert (got.text, got.failure) == ("The fore", "deadline_exceeded")
        assert got.spent.outcome == "timeout"

    def test_after_a_pod_that_says_why_it_gives_up(self, start: Start) -> None:
        got = start(gives_up(3, SHUTTING_DOWN)).ask(CHAT)
        told = got.events[-1]["error"]
        assert told.pop("route") == got.spent.route
        assert told == SHUTTING_DOWN.envelope()["error"]
        assert got.spent.tokens == Usage(PROMPT, 4), "what was computed and not given out is counted too"


@pytest.mark.parametrize("broken", [False, True], ids=["", "and broken off"])
def test_an_error_that_every_pod_would_have_is_passed_on(start: Start, broken: bool) -> None:
    other = Recorder()
    got = start(gives_up(3, ApiError("The engine failed."), broken=broken), other).ask(CHAT)
    assert got.failure == "internal_error"
    assert other.bodies == []


class TestComputeSeconds:
    """Of each pod as far as it told them, since a process that was killed tells nothing any more."""

    @staticmethod
    def costing(chunks: int | None, each: float) -> Script:
        """A pod whose chunks cost so much each, and that is lost after so many, or tells its usage at the end."""

        def script(handler: Handler, body: dict[str, Any]) -> None:
            blocks, told = Blocks(), 0.0
            for block in speak(body):
                told += each
                cost = f'"compute_seconds":{told:.4f},'.encode()
                blocks.append(block.replace(b": forebay {", b": forebay {" + cost, 1))
            used = Usage(PROMPT, 6, compute_seconds=each * len(blocks))
            blocks[-2:-1] = [sse.event(Answer.new("chat", "m").usage(used))]
            send(handler, blocks[:chunks], broken=chunks is not None)

        return script

    def test_those_of_a_pod_that_was_lost_are_the_calls_too(self, start: Start) -> None:
        got = start(self.costing(3, 0.5), self.costing(None, 0.25)).ask(CHAT)
        own = got.events[-2]["usage"]["forebay"]["compute_seconds"]
        assert got.spent.outcome == "ok"
        assert got.spent.charged.compute_seconds == pytest.approx(3 * 0.5 + own)

    def test_of_each_of_several(self, start: Start) -> None:
        got = start(self.costing(3, 0.5), self.costing(2, 0.25), self.costing(None, 1.0)).ask(CHAT)
        own = got.events[-2]["usage"]["forebay"]["compute_seconds"]
        assert got.spent.charged.compute_seconds == pytest.approx(3 * 0.5 + 2 * 0.25 + own)

    def test_where_nobody_goes_on(self, start: Start) -> None:
        got = start(self.costing(3, 0.5)).ask(CHAT)
        assert got.spent.outcome == "upstream_error"
        assert got.spent.charged.compute_seconds == pytest.approx(1.5)

    def test_of_a_pod_that_tells_its_usage_they_are_as_it_says(self, start: Start) -> None:
        got = start(self.costing(None, 0.25)).ask(CHAT)
        assert got.spent.charged.compute_seconds == got.events[-2]["usage"]["forebay"]["compute_seconds"]

    def test_of_an_engine_that_tells_nothing_they_are_unknown(self, start: Start) -> None:
        assert start(whole).ask(CHAT).spent.charged.compute_seconds is None


class TestSeveralChoices:
    """Each goes on alone; that its tokens are the same is shown with a real pod (tests/integration/gateway)."""

    @staticmethod
    def two(handler: Handler, body: dict[str, Any]) -> None:
        """A pod that is lost when one choice has two tokens and the other, though begun, has none."""
        assert body["n"] == 2
        answer = Answer.new("chat", "m")
        ids: list[tuple[int, list[int], Any]] = [
            (0, [], answer.first(0)),
            (1, [], answer.first(1)),
            (0, [11], answer.delta("The", 0)),
            (0, [12], answer.delta(" fore", 0)),
        ]
        count, blocks = 0, Blocks()
        for index, fresh, chunk in ids:
            count += len(fresh)
            note = {"completion_tokens": count, "token_ids": fresh, "prompt_tokens": PROMPT, "index": index}
            blocks.append(sse.note(note) + sse.event(chunk))
        send(handler, blocks, broken=True)

    def test_each_goes_on_from_its_own_tokens_by_its_own_seed(self, start: Start) -> None:
        other = Recorder()
        got = start(self.two, other).ask({**CHAT, "n": 2, "seed": 7, "stream_options": {"include_usage": True}})
        assert other.resumed == [[11, 12], []]
        assert [(body["n"], body["seed"]) for body in other.bodies] == [(1, 7), (1, 8)]
        choices = [choice for event in got.answer[:-1] for choice in event["choices"]]
        for index in (0, 1):
            own = [choice for choice in choices if choice["index"] == index]
            assert "".join(choice["delta"].get("content", "") for choice in own) == "The forebay holds water."
            assert [choice["delta"].get("role") for choice in own].count("assistant") == 1
            assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == ["stop"]
        assert got.events[-2]["usage"]["completion_tokens"] == 12
        assert (got.spent.outcome, got.spent.tokens.total_tokens) == ("ok", PROMPT + 12)
        assert got.spent.resumes == 1

    def test_a_loss_on_the_way_costs_no_more_than_one_of_a_single_choice(self, start: Start) -> None:
        got = start(self.two, after(3), whole).ask({**CHAT, "n": 2, "seed": 7})
        assert got.spent.outcome == "ok"
        assert got.events[-1] == "[DONE]"
        assert got.spent.resumes == 2

    def test_an_engine_that_cannot_resume_ends_it_with_an_error(self, start: Start) -> None:
        got = start(self.two, Recorder(), owners=("forebay", "vllm")).ask({**CHAT, "n": 2})
        assert got.failure == "upstream_unavailable"


class TestAnswersThatAreNotStreamed:
    def test_another_pod_answers_where_one_was_lost(self, start: Start) -> None:
        def half(handler: Handler, _body: dict[str, Any]) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", "100")
            handler.end_headers()
            handler.wfile.write(b'{"choices"')
            handler.break_off()

        dispatcher = start(closes, half, whole)
        got = dispatcher.ask({})
        assert got.body["choices"][0]["message"]["content"] == "The forebay holds water."
        assert (got.spent.retries, got.spent.tokens) == (2, Usage(PROMPT, 6))
        assert dispatcher.ready() == [False, False, True]

    def test_no_more_pods_are_tried_than_tries_are_allowed(self, start: Start) -> None:
        fourth = Recorder()
        got = start(closes, closes, closes, fourth).ask({})
        assert isinstance(got.error, UpstreamUnavailable)
        assert got.error.retry_after == 1
        assert fourth.bodies == []
