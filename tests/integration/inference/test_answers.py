"""What a client of a pod gets: text, usage, finish reasons, and errors in their proper shape."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.inference.conftest import MODEL, chat, completion
from tests.integration.inference.pod import Pod

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def test_a_question_is_answered_to_its_end(pod: Pod) -> None:
    answer = pod.post(CHAT, chat("What is the capital of France?", max_tokens=40))
    assert "Paris" in answer.text
    assert answer.finish == "stop"
    assert "<|im_end|>" not in answer.text


def test_usage_counts_prompt_and_answer(pod: Pod, tokenizer: Any) -> None:
    usage = pod.post(COMPLETIONS, completion("One two three", max_tokens=7)).body["usage"]
    prompt = len(tokenizer("One two three").input_ids)
    assert usage == {"prompt_tokens": prompt, "completion_tokens": 7, "total_tokens": prompt + 7}


def test_an_answer_that_is_cut_says_length(pod: Pod) -> None:
    assert pod.post(CHAT, chat("Count to one hundred.", max_tokens=5)).finish == "length"


def test_a_stream_and_a_whole_answer_say_the_same(pod: Pod) -> None:
    body = chat("Name three colours.", max_tokens=24)
    streamed = pod.stream(CHAT, body | {"stream_options": {"include_usage": True}})
    whole = pod.post(CHAT, body)
    assert "".join(streamed.deltas) == whole.text
    assert streamed.bodies[-1]["usage"] == whole.body["usage"]
    assert streamed.whole
    assert len(streamed.ids) == whole.body["usage"]["completion_tokens"]


@pytest.mark.parametrize("prompt", ["🌊🌊🌊🌊🌊🌊🌊🌊", "你好世界。你好世界。你好世界。你好"])
def test_characters_of_several_tokens_are_streamed_whole(pod: Pod, tokenizer: Any, prompt: str) -> None:
    streamed = pod.stream(COMPLETIONS, completion(prompt, max_tokens=30))
    text = "".join(streamed.deltas)
    assert "\ufffd" not in text
    assert text == tokenizer.decode(streamed.ids, skip_special_tokens=True).rstrip("\ufffd")
    assert any(ord(letter) > 0x2000 for letter in text)
    assert len([delta for delta in streamed.deltas if delta]) < len(streamed.ids), "some tokens are part of a character"


def test_a_stop_sequence_ends_the_answer_and_is_not_shown(pod: Pod) -> None:
    prompt = "Count: 1, 2, 3, 4, 5,"
    free = pod.post(COMPLETIONS, completion(prompt, max_tokens=20)).text
    stop = free[4:9]
    answer = pod.post(COMPLETIONS, completion(prompt, max_tokens=20, stop=[stop]))
    assert answer.text == free[: free.index(stop)]
    assert answer.finish == "stop"
    streamed = pod.stream(COMPLETIONS, completion(prompt, max_tokens=20, stop=stop))
    assert "".join(streamed.deltas) == answer.text


def test_errors_have_their_status_also_when_a_stream_was_asked_for(narrow_pod: Pod) -> None:
    answer = narrow_pod.post(CHAT, chat("word " * 2000, stream=True))
    assert answer.status == 400
    error = answer.body["error"]
    assert (error["code"], error["type"], error["param"]) == (
        "context_length_exceeded",
        "invalid_request_error",
        "messages",
    )
    assert "1024" in error["message"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{not json", 400, "malformed_json"),
        (bytes(range(256)), 400, "malformed_json"),
        ({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": -1}, 400, "invalid_request"),
        ({"model": "none-such", "messages": [{"role": "user", "content": "x"}]}, 404, "model_not_found"),
        ({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "n": 2}, 400, "unsupported_parameter"),
    ],
    ids=["malformed", "binary", "negative", "unknown-model", "unsupported"],
)
def test_what_cannot_be_answered_is_refused_in_openais_shape(pod: Pod, body: Any, status: int, code: str) -> None:
    answer = pod.post(CHAT, body)
    assert (answer.status, answer.body["error"]["code"]) == (status, code)


def test_an_unknown_route_and_a_wrong_method_are_refused_in_openais_shape(pod: Pod) -> None:
    assert pod.get("/v1/none").body["error"]["code"] == "not_found"
    assert pod.get(CHAT).status == 405


def test_nothing_of_this_is_logged_as_a_traceback_and_no_prompt_is_logged(pod: Pod) -> None:
    secret = "my secret is a purple elephant"
    pod.post(CHAT, chat(secret, max_tokens=2), {"X-Request-Id": "req-of-this-test"})
    log = pod.await_log("req-of-this-test")
    assert "Traceback" not in log
    assert secret not in log
    assert "purple" not in log
