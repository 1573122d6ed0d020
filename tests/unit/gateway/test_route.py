"""The line that says where a call went and why, which programs and people read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.call import Spent
from services.gateway.route import read, replica, write

PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1)


@given(st.dictionaries(st.text("abcdefghij_", min_size=1), PRINTABLE, max_size=5))
def test_what_is_written_is_read(pairs: dict[str, str]) -> None:
    assert read(write(pairs)) == pairs


@given(st.text(min_size=1))
def test_any_value_may_stand_in_a_header(value: str) -> None:
    line = write({"model": value})
    assert line.isascii()
    assert line.isprintable()


def test_a_pod_is_named_by_its_address_alone() -> None:
    assert replica("http://user:secret@10.0.0.7:8000/base") == "10.0.0.7:8000"
    assert replica("http://[fd00::1]:8000") == "[fd00::1]:8000"
    assert replica(None) is None


def test_a_call_that_went_the_plain_way_says_the_six_pairs() -> None:
    spent = Spent(asked_model="a", model="a", upstream="http://10.0.0.7:8000", policy="prefix", queue=3, cache="miss")
    assert spent.route == "model=a; replica=10.0.0.7:8000; policy=prefix; queue=3; cache=miss; retries=0"


def test_what_was_out_of_the_ordinary_is_said_too() -> None:
    spent = Spent(asked_model="prod", model="b", policy="only", retries=2, resumes=1, held=2.0625)
    assert spent.route == "model=b; asked=prod; policy=only; cache=bypass; retries=2; resumes=1; held=2.06"


def test_a_cached_answer_came_from_no_pod() -> None:
    assert Spent(asked_model="a", model="a", cache="hit").route == "model=a; cache=hit; retries=0"
