"""To which pod a conversation belongs."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.upstreams.affinity import BEGINNING, LEAST, affinity, home, seed_of

LONG = "The quick brown fox jumps over the lazy dog, and once more. " * 40
SEEDS = [seed_of(f"http://10.0.0.{number}:8000") for number in range(1, 9)]
KEYS = st.integers(0, (1 << 64) - 1)
FLEETS = st.lists(st.sampled_from(SEEDS), min_size=1, max_size=len(SEEDS), unique=True)


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def key(messages: list[dict[str, Any]], salt: str = "salt") -> int | None:
    found = affinity(salt, {"model": "m", "messages": messages})
    return found and found.key


def test_later_turns_have_the_key_of_the_first() -> None:
    first = [system("Be brief."), user(LONG[:200])]
    turns = [*first, {"role": "assistant", "content": "Yes."}, user("And why?")]
    assert key(turns) == key(first) is not None


def test_a_short_first_message_has_no_key_until_there_is_something_to_find_again() -> None:
    assert key([user("hi")]) is None
    assert key([user("hi"), {"role": "assistant", "content": "Hello!"}, user("How are you?")]) is not None


def test_questions_on_the_same_long_document_have_one_key() -> None:
    assert key([user(LONG + "Who jumps?")]) == key([user(LONG + "Over whom?")])
    assert len(LONG) > BEGINNING


def test_conversations_that_begin_differently_have_different_keys() -> None:
    assert key([system("Be brief."), user(LONG)]) != key([system("Be funny."), user(LONG)])
    assert key([system("Be brief."), user("a" * 99)]) != key([system("Be brief."), user("b" * 99)])


def test_the_same_beginning_of_two_tenants_or_two_models_is_not_the_same() -> None:
    assert key([user(LONG)], "one") != key([user(LONG)], "other")
    both = [affinity("salt", {"model": model, "messages": [user(LONG)]}) for model in ("m", "n")]
    assert both[0] != both[1]


def test_a_session_goes_before_the_prompt() -> None:
    body = {"model": "m", "messages": [user(LONG)]}
    found = affinity("salt", body, "s-1")
    assert found == affinity("salt", {"model": "m", "prompt": "hi"}, "s-1")
    assert found is not None
    assert found.policy == "session"
    assert found != affinity("salt", body, "s-2")
    assert found != affinity("other", body, "s-1")


def test_text_and_token_prompts_are_known_by_their_beginning() -> None:
    def of(prompt: Any) -> Any:
        return affinity("salt", {"model": "m", "prompt": prompt})

    assert of(LONG + "a") == of(LONG + "b") != of("x" + LONG)
    assert of([LONG]) == of(LONG)
    ids = list(range(1000))
    assert of(ids) == of([ids]) == of([*ids, 7]) != of(ids[1:])
    for too_little in ("a" * (LEAST - 1), [1, 2], [], "", None):
        assert of(too_little) is None


def test_parts_of_a_message_are_read_as_their_text() -> None:
    parts = [{"type": "text", "text": LONG[:500]}, {"type": "image_url", "image_url": {"url": "data:"}}]
    assert key([user(parts)]) is not None
    assert key([user(parts)]) != key([user(parts[:1])])


@given(st.recursive(st.none() | st.booleans() | st.text() | st.integers(), lambda one: st.lists(one, max_size=3)))
def test_no_content_is_too_strange_to_be_asked_about(content: Any) -> None:
    affinity("salt", {"model": "m", "messages": [system("s"), user(content)]})
    affinity("salt", {"model": "m", "prompt": content})


@given(KEYS, FLEETS, st.data(), st.floats(1, 3))
def test_no_pod_gets_more_than_the_bound(key: int, seeds: list[int], data: st.DataObject, bound: float) -> None:
    loads = data.draw(st.lists(st.integers(0, 50), min_size=len(seeds), max_size=len(seeds)))
    place, _ = home(key, seeds, loads, bound)
    assert loads[place] + 1 <= math.ceil(bound * (sum(loads) + 1) / len(loads))


@given(st.lists(KEYS, max_size=200), FLEETS)
def test_loads_stay_within_the_bound_whatever_comes(keys: list[int], seeds: list[int]) -> None:
    loads = [0] * len(seeds)
    for key in keys:
        place, _ = home(key, seeds, loads, 1.25)
        loads[place] += 1
        assert max(loads) <= math.ceil(1.25 * sum(loads) / len(loads))


@given(KEYS, FLEETS.filter(lambda seeds: len(seeds) > 1), st.data())
def test_a_pod_that_goes_moves_only_its_own_conversations(key: int, seeds: list[int], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(seeds))
    before = seeds[home(key, seeds, [0] * len(seeds), 9)[0]]
    left = [seed for seed in seeds if seed != gone]
    after = left[home(key, left, [0] * len(left), 9)[0]]
    assert before in (gone, after)


@given(KEYS, FLEETS, st.randoms())
def test_gateways_that_know_the_pods_in_another_order_agree(key: int, seeds: list[int], random: Any) -> None:
    shuffled = random.sample(seeds, len(seeds))
    zeros = [0] * len(seeds)
    assert seeds[home(key, seeds, zeros, 2)[0]] == shuffled[home(key, shuffled, zeros, 2)[0]]


def test_idle_pods_get_an_equal_part_of_the_conversations() -> None:
    keys = [key([user(f"{number} {LONG}")]) for number in range(8000)]
    counts = Counter(home(one, SEEDS, [0] * 8, 9)[0] for one in keys if one is not None)
    assert len(counts) == 8
    assert all(850 < count < 1150 for count in counts.values()), counts


def test_a_conversation_whose_pod_is_full_goes_to_the_next_one_in_its_order() -> None:
    zeros = [0] * 8
    first, at_home = home(77, SEEDS, zeros, 1.25)
    assert at_home
    full = [9 if place == first else 0 for place in range(8)]
    second, at_home = home(77, SEEDS, full, 1.25)
    assert not at_home
    others = [seed for place, seed in enumerate(SEEDS) if place != first]
    assert SEEDS[second] == others[home(77, others, zeros[1:], 1.25)[0]]
