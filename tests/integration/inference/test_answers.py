"""What a client of a pod gets: text, usage, finish reasons, and errors in their proper shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.integration.inference.conftest import MODEL, chat, completion
from tests.integration.inference.pod import Pod

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def test_a_question_is_answered_to_its_end(pod: Pod) -> None:
    answer = pod.post(CHAT, chat("What is the capital of France?", max_tokens=40))
    assert "Paris" in answer.text
    assert answer.finish == "stop"
    assert "<|im_end|>" not in answer.text


def test_a_request_that_says_nothing_is_drawn_as_the_models_makers_advise(pod: Pod) -> None:
    def drawn(**sampling: float) -> str:
        body = chat("Write a sentence about rivers.", max_tokens=24, seed=1) | {"temperature": None}
        return pod.post(CHAT, body | sampling).text

    assert drawn() == drawn(temperature=0.2, top_p=0.9)
    assert drawn() != drawn(temperature=1.0)


def test_usage_counts_prompt_and_answer(pod: Pod, tokenizer: Any) -> None:
    usage = pod.post(COMPLETIONS, completion("One two three", max_tokens=7)).body["usage"]
    prompt = len(tokenizer("One two three").input_ids)
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (prompt, 7, prompt + 7)
    assert usage["forebay"]["compute_seconds"] > 0


def test_an_answer_that_is_cut_says_length(pod: Pod) -> None:
    assert pod.post(CHAT, chat("Count to one hundred.", max_tokens=5)).finish == "length"


def test_a_stream_and_a_whole_answer_say_the_same(pod: Pod) -> None:
    body = chat("Name three colours.", max_tokens=24)
    streamed = pod.stream(CHAT, body | {"stream_options": {"include_usage": True}})
    whole = pod.post(CHAT, body)
    assert "".join(streamed.deltas) == whole.text
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [streamed.bodies[-1]["usage"][name] for name in counts] == [whole.body["usage"][name] for name in counts]
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


def test_several_choices_and_prompts_are_answered_and_the_first_is_that_of_one_alone(pod: Pod) -> None:
    body = completion(["One, two,", "Red, green,"], max_tokens=12, temperature=0.9, seed=5)
    several = pod.post(COMPLETIONS, body | {"n": 2}).body["choices"]
    assert [choice["index"] for choice in several] == [0, 1, 2, 3]
    for at, prompt in enumerate(body["prompt"]):
        assert pod.post(COMPLETIONS, body | {"prompt": prompt}).text == several[2 * at]["text"]
    assert several[0]["text"] != several[1]["text"]


def test_log_probabilities_are_the_models(pod: Pod, tokenizer: Any, reference_model: Any) -> None:
    prompt = "The capital of France is"
    found = pod.post(COMPLETIONS, completion(prompt, max_tokens=4, logprobs=3)).body["choices"][0]
    tokens, ids = found["logprobs"]["tokens"], tokenizer(prompt, return_tensors="pt").input_ids
    assert "".join(tokens) == found["text"]
    with torch.inference_mode():
        expected = reference_model(ids).logits[0, -1].log_softmax(-1).topk(3)
    told = found["logprobs"]["top_logprobs"][0]
    assert list(told) == [tokenizer.decode([token]) for token in expected.indices.tolist()]
    assert list(told.values()) == pytest.approx(expected.values.tolist(), abs=1e-3)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"temperature": 0.9, "top_p": 0.9, "seed": 3, "repetition_penalty": 1.1, "stop": [" blue"]},
    ],
    ids=["greedy", "seeded"],
)
def test_an_answer_goes_on_from_where_another_pod_was_lost(pod: Pod, fields: dict[str, Any]) -> None:
    body = chat("Write a short poem about the sea 🌊, with 海 in it.", max_tokens=40) | fields
    unbroken = pod.stream(CHAT, body)
    text = "".join(unbroken.deltas)
    for broken in range(1, len(unbroken.events), 7):
        seen = [event for event in unbroken.events[:broken] if event.note]
        given = [token for event in seen for token in event.note["token_ids"]]
        rest = pod.stream(CHAT, body | {"resume_token_ids": given})
        assert "".join(unbroken.deltas[:broken] + rest.deltas) == text
        assert given + rest.ids == unbroken.ids


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
        ({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "n": 0}, 400, "invalid_request"),
        ({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "suffix": "y"}, 400, "unsupported_parameter"),
    ],
    ids=["malformed", "binary", "negative", "unknown-model", "no-choice", "unsupported"],
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
