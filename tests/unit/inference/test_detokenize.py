"""Text from tokens, piece by piece."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.engine.detokenize import Detokenizer
from tests.unit.inference.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()


def decode(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def pieces(text: str | bytes, stops: tuple[str, ...] = (), prompt: str = "") -> list[str]:
    """The pieces of a text whose every byte is a token of its own, up to a stop sequence."""
    detokenizer = Detokenizer(decode, TOKENIZER.encode(prompt), stops)
    data = text.encode() if isinstance(text, str) else text
    found = []
    for token in byte_ids(data):
        found.append(detokenizer.push(token))
        if detokenizer.stopped:
            break
    return [*found, detokenizer.finish()]


def byte_ids(data: bytes) -> list[int]:
    # Each byte by way of a character of the same number, since not every byte is text.
    letters = {byte: letter for letter, byte in _byte_of_letter().items()}
    return [TOKENIZER.convert_tokens_to_ids(letters[byte]) for byte in data]


def _byte_of_letter() -> dict[str, int]:
    # GPT-2's map: printable Latin-1 stands for itself, the rest is moved beyond 255 in order.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(moved)}


@given(text=st.text(max_size=40).filter(lambda text: "\ufffd" not in text), prompt=st.text(max_size=4))
@settings(deadline=None, max_examples=150)
def test_any_text_split_into_bytes_comes_out_whole_and_never_broken(text: str, prompt: str) -> None:
    found = pieces(text, prompt=prompt)
    assert "".join(found) == text
    assert not any("\ufffd" in piece for piece in found)


def test_a_character_comes_with_its_last_byte() -> None:
    assert pieces("a🌊b") == ["a", "", "", "", "🌊", "b", ""]


def test_an_unfinished_character_at_the_end_is_dropped() -> None:
    assert "".join(pieces("ok 🌊".encode()[:-1])) == "ok "


@given(data=st.binary(max_size=60))
@settings(deadline=None, max_examples=150)
def test_malformed_bytes_are_shown_as_such_but_never_taken_back(data: bytes) -> None:
    shown = "".join(pieces(data))
    assert data.decode(errors="replace").startswith(shown.rstrip("\ufffd"))


def test_an_endless_run_of_malformed_bytes_does_not_wait_for_ever() -> None:
    assert len("".join(pieces(b"\xff" * 100))) > 50


def test_special_tokens_are_not_shown() -> None:
    detokenizer = Detokenizer(decode)
    shown = [detokenizer.push(token) for token in TOKENIZER.encode("a<|im_start|>b")]
    assert "".join(shown) == "ab"


def test_a_stop_sequence_across_tokens_is_held_back_and_cut() -> None:
    assert pieces("one STOP two", ("STOP",)) == ["o", "n", "e", " ", "", "", "", "", ""]


def test_the_beginning_of_a_stop_sequence_is_given_out_once_it_is_none() -> None:
    assert pieces("STORE", ("STOP",)) == ["", "", "", "STOR", "E", ""]


def test_the_beginning_of_a_stop_sequence_at_the_end_is_part_of_the_text() -> None:
    assert pieces("a ST", ("STOP",)) == ["a", " ", "", "", "ST"]


@given(text=st.text(alphabet="ab", max_size=20), stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=4)))
@settings(deadline=None, max_examples=200)
def test_text_ends_before_the_first_stop_sequence_to_be_complete(text: str, stops: list[str]) -> None:
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    first = min(end for end, _ in ends) if ends else None
    cut = min((start for end, start in ends if end == first), default=len(text))
    assert "".join(pieces(text, tuple(stops))) == text[:cut]


@pytest.mark.parametrize("stop", ["🌊", "海"])
def test_a_stop_sequence_beyond_ascii_is_found(stop: str) -> None:
    assert "".join(pieces(f"a{stop}b", (stop,))) == "a"
