"""Estimates of prompts: on the high side, and nearer the truth with each count."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.common.wire import ChatRequest, CompletionRequest, validate
from services.gateway.estimate import LONG, MESSAGE_TOKENS, TEMPLATE_TOKENS, Estimates, Size, size_of


def chat(*texts: str) -> Size:
    messages = [{"role": "user", "content": text} for text in texts]
    return size_of(validate(ChatRequest, {"model": "m", "messages": messages}))


def text(prompt: Any) -> Size:
    return size_of(validate(CompletionRequest, {"model": "m", "prompt": prompt}))


def test_a_prompt_s_size_is_that_of_its_texts_in_bytes() -> None:
    assert chat("hello", "日本語") == Size(5 + 9, 2)
    assert text(["ab", "c"]) == Size(3)


def test_token_ids_are_counted_as_they_are() -> None:
    assert text([[1, 2, 3], [4]]) == Size(0, 0, 4)
    assert Estimates().prompt_tokens("m", text([1, 2, 3])) == 3 + 1


def test_an_unknown_model_s_template_may_bring_a_system_message() -> None:
    assert Estimates().prompt_tokens("m", chat("hi!")) == 1 + MESSAGE_TOKENS + TEMPLATE_TOKENS


def test_the_first_count_replaces_the_guess() -> None:
    estimates = Estimates()
    estimates.learn("m", chat("hi!"), 12)
    assert estimates.prompt_tokens("m", chat("hi!")) == 12
    assert estimates.prompt_tokens("another", chat("hi!")) > 12
    assert estimates.prompt_tokens("m", text("hi!")) < 12, "plain text has no template"


def test_a_higher_count_is_believed_at_once_and_a_lower_one_slowly() -> None:
    estimates = Estimates()
    for count in (12, 30, 12):
        estimates.learn("m", chat("hi!"), count)
    assert 29 <= estimates.prompt_tokens("m", chat("hi!")) <= 30
    for _ in range(500):
        estimates.learn("m", chat("hi!"), 12)
    assert estimates.prompt_tokens("m", chat("hi!")) in {12, 13}


def test_long_prompts_teach_how_long_tokens_are_and_cost_short_ones_nothing() -> None:
    estimates = Estimates()
    estimates.learn("m", chat("hi!"), 12)
    digits = chat("7" * 3000)
    estimates.learn("m", digits, 3000)
    assert estimates.prompt_tokens("m", digits) >= 3000
    assert estimates.prompt_tokens("m", chat("hi!")) <= 15


@given(st.lists(st.tuples(st.integers(0, 5 * LONG), st.integers(1, 5), st.floats(0, 1)), min_size=1, max_size=20))
def test_a_prompt_that_was_counted_is_never_estimated_lower_at_once(counted: list[tuple[int, int, float]]) -> None:
    estimates = Estimates()
    for size_bytes, messages, tokens_per_byte in counted:
        size = Size(size_bytes, messages)
        tokens = messages * MESSAGE_TOKENS + int(size_bytes * tokens_per_byte)
        estimates.learn("m", size, tokens)
        assert estimates.prompt_tokens("m", size) >= tokens
