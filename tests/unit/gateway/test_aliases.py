"""An alias stands for several models: each conversation has one of them, as often as the weights say."""

from __future__ import annotations

from collections import Counter

import pytest

from services.gateway.aliases import conversation_of, listed, resolve

CONVERSATIONS = [str(number).encode() for number in range(4000)]


def shares(weights: dict[str, float]) -> dict[str, float]:
    counted = Counter(resolve("prod", weights, one) for one in CONVERSATIONS)
    return {model: counted[model] / len(CONVERSATIONS) for model in weights}


@pytest.mark.parametrize("weights", [{"a": 90, "b": 10}, {"a": 1, "b": 1, "c": 2}, {"a": 0.999, "b": 0.001}])
def test_each_model_gets_its_weights_part_of_the_conversations(weights: dict[str, float]) -> None:
    total = sum(weights.values())
    for model, share in shares(weights).items():
        assert share == pytest.approx(weights[model] / total, abs=0.02)


def test_a_conversation_keeps_its_model_whatever_order_the_weights_stand_in() -> None:
    for one in CONVERSATIONS[:100]:
        assert resolve("prod", {"a": 90, "b": 10}, one) == resolve("prod", {"b": 10, "a": 90}, one)


def test_a_larger_canary_takes_conversations_and_gives_none_back() -> None:
    before = {one for one in CONVERSATIONS if resolve("prod", {"a": 90, "b": 10}, one) == "b"}
    after = {one for one in CONVERSATIONS if resolve("prod", {"a": 70, "b": 30}, one) == "b"}
    assert before < after


def test_two_aliases_draw_independently() -> None:
    weights = {"a": 50, "b": 50}
    same = sum(resolve("one", weights, each) == resolve("two", weights, each) for each in CONVERSATIONS)
    assert same / len(CONVERSATIONS) == pytest.approx(0.5, abs=0.04)


class TestConversation:
    def test_later_turns_belong_to_it(self) -> None:
        first = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
        later = [*first, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Why?"}]
        assert conversation_of({"messages": first}, None) == conversation_of({"messages": later}, None)

    @pytest.mark.parametrize("role", ["system", "user"])
    def test_another_beginning_is_another_one(self, role: str) -> None:
        first = {"system": "Be brief.", "user": "hi"}
        other = {**first, role: "something else"}
        bodies = [
            {"messages": [{"role": name, "content": text} for name, text in one.items()]} for one in (first, other)
        ]
        assert conversation_of(bodies[0], None) != conversation_of(bodies[1], None)

    def test_a_session_tells_it_whatever_is_said(self) -> None:
        said = [{"messages": [{"role": "user", "content": text}]} for text in ("a", "b")]
        assert conversation_of(said[0], "s") == conversation_of(said[1], "s") != conversation_of(said[0], "t")

    def test_a_prompt_is_told_by_its_beginning(self) -> None:
        assert conversation_of({"prompt": "one"}, None) != conversation_of({"prompt": "two"}, None)
        assert conversation_of({"prompt": "x" * 600 + "a"}, None) == conversation_of({"prompt": "x" * 600 + "b"}, None)

    @pytest.mark.parametrize("body", [{}, {"messages": 7}, {"messages": []}, {"messages": [None, 3]}, {"prompt": [1]}])
    def test_what_is_none_does_no_harm(self, body: dict[str, object]) -> None:
        assert isinstance(conversation_of(body, None), bytes)

    def test_text_that_is_no_unicode_does_no_harm(self) -> None:
        assert conversation_of({"prompt": "\ud800"}, None) == b"?"


def test_an_alias_is_listed_where_one_of_its_models_is() -> None:
    aliases = {"prod": {"a": 90, "b": 10}, "next": {"c": 1}}
    assert listed(aliases, {"b": {"created": 7}}) == {"prod": {"created": 7, "aliased_models": {"a": 90, "b": 10}}}
