"""SSE framing: what is written is read back, however the network cuts it."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.common import sse

texts = st.text(alphabet=st.characters(codec="utf-8"), max_size=30)
values = st.dictionaries(texts, texts | st.integers(), max_size=3)
blocks = st.one_of(
    values.map(sse.event),
    texts.map(sse.text_event),
    st.just(b": still here\n\n"),
    st.tuples(values, values).map(lambda pair: sse.note(pair[0]) + sse.event(pair[1])),
    st.just(sse.DONE),
)


def parse(pieces: list[bytes]) -> list[sse.Event]:
    parser = sse.Parser()
    return [event for piece in pieces for event in parser.feed(piece)]


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[begin:end] for begin, end in pairwise(edges)]


@given(st.lists(blocks, max_size=6), st.lists(st.integers(min_value=0), max_size=20))
def test_any_split_of_the_stream_gives_the_same_events(stream: list[bytes], places: list[int]) -> None:
    whole = b"".join(stream)
    assert parse(cut(whole, places)) == parse([whole])


@given(st.lists(blocks, max_size=6), st.lists(st.integers(min_value=0), max_size=20))
def test_line_ends_of_cr_lf_make_no_difference(stream: list[bytes], places: list[int]) -> None:
    whole = b"".join(stream)
    assert parse(cut(whole.replace(b"\n", b"\r\n"), places)) == parse([whole])


@given(values)
def test_an_event_is_read_back_as_it_was_written(value: dict[str, object]) -> None:
    (event,) = parse([sse.event(value)])
    assert event.data is not None
    assert json.loads(event.data) == value


@given(texts)
def test_text_with_line_breaks_is_read_back_as_it_was_written(text: str) -> None:
    (event,) = parse([sse.text_event(text)])
    assert event.data == text.replace("\r\n", "\n").replace("\r", "\n").encode()


@given(values, values)
def test_a_note_comes_with_the_event_that_it_stands_before(note: dict[str, object], value: dict[str, object]) -> None:
    assert parse([sse.note(note) + sse.event(value)]) == [sse.Event(sse.dump(value), note)]


@given(values, values)
def test_a_frame_passes_the_data_on_and_drops_the_note(note: dict[str, object], value: dict[str, object]) -> None:
    (event,) = parse([sse.note(note) + sse.event(value)])
    assert event.frame() == sse.event(value)


@given(texts)
def test_a_frame_of_several_lines_is_the_same_event_again(text: str) -> None:
    (event,) = parse([sse.text_event(text)])
    assert parse([event.frame()]) == [event]


def test_a_comment_is_no_event() -> None:
    assert parse([b": still here\n\n"]) == []


def test_a_lone_carriage_return_cannot_hide_the_rest_of_a_text() -> None:
    assert sse.text_event("a\rb") == b"data: a\ndata: b\n\n"


def test_only_the_done_mark_ends_a_stream() -> None:
    events = parse([sse.event("[DONE]") + sse.DONE])
    assert [event.done for event in events] == [False, True]


def test_what_is_not_yet_complete_is_held_back() -> None:
    assert parse([b'data: {"a"', b": 1}\n"]) == []


def test_other_fields_of_the_format_are_ignored() -> None:
    assert parse([b"event: message\nid: 7\nretry: 10\ndata:x\n\n"]) == [sse.Event(b"x")]


def test_text_beyond_ascii_stays_as_it_is() -> None:
    assert sse.event({"t": "Tür"}) == 'data: {"t":"Tür"}\n\n'.encode()


def test_a_comment_is_one_block_that_holds_no_event() -> None:
    event = sse.Event(None, comment=sse.comment("waiting\nfor a pod"))
    assert event.frame() == b": waiting for a pod\n\n"
    assert parse([event.frame()]) == []
