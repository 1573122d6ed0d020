"""Log probabilities in OpenAI's shapes."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from services.inference.engine.generation import Piece
from services.inference.logprobs import Logprobs, token_bytes
from tests.unit.inference.tiny import byte_tokenizer

BYTES = byte_tokenizer()


def sentencepiece() -> PreTrainedTokenizerFast:
    """A vocabulary as SentencePiece makes it: spaces as ▁, and bytes for what it has no piece for."""
    words = ["<unk>", "▁Paris", "▁is", "er", "<0xF0>", "<0x9F>", "<0x8C>", "<0x8A>"]
    tokenizer = Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def ids(text: str) -> list[int]:
    found: list[int] = BYTES.encode(text)
    return found


def told(kind: Any, text: str, tokenizer: Any = BYTES, **more: Any) -> dict[str, Any]:
    logprobs = Logprobs(kind, tokenizer)
    for token in ids(text):
        logprobs.add(Piece(token, "", logprob=-1.5, **more))
    found = logprobs.take()
    assert found is not None
    return found


def test_bytes_of_a_character_in_parts_are_told_one_by_one() -> None:
    assert b"".join(token_bytes(BYTES, token) for token in ids("a 🌊 海")) == "a 🌊 海".encode()
    assert [token_bytes(BYTES, token) for token in ids("海")] == [b"\xe6", b"\xb5", b"\xb7"]


def test_a_special_token_is_told_by_its_name() -> None:
    assert token_bytes(BYTES, BYTES.eos_token_id) == b"<|im_end|>"


def test_a_token_that_only_the_model_has_is_empty() -> None:
    assert token_bytes(BYTES, len(BYTES) + 5) == b""


def test_a_word_keeps_the_space_before_it_in_sentencepiece_vocabularies() -> None:
    assert [token_bytes(sentencepiece(), token) for token in (1, 2, 3)] == [b" Paris", b" is", b"er"]


def test_single_bytes_of_sentencepiece_vocabularies_are_told() -> None:
    assert b"".join(token_bytes(sentencepiece(), token) for token in (4, 5, 6, 7)) == "🌊".encode()


def test_a_chats_entries_have_token_probability_and_bytes() -> None:
    (entry,) = told("chat", "a", top=((66, -0.25), (67, -2.0)))["content"]
    assert (entry["token"], entry["logprob"], entry["bytes"]) == ("a", -1.5, [97])
    assert [one["logprob"] for one in entry["top_logprobs"]] == [-0.25, -2.0]


def test_parts_of_a_character_have_names_of_their_own() -> None:
    assert [entry["token"] for entry in told("chat", "海")["content"]] == ["\\xe6", "\\xb5", "\\xb7"]
    assert told("text", "海")["tokens"] == ["bytes:\\xe6", "bytes:\\xb5", "bytes:\\xb7"]


def test_offsets_count_the_characters_that_began_before() -> None:
    assert told("text", "a海b")["text_offset"] == [0, 1, 2, 2, 2]


def test_the_drawn_token_is_among_the_likeliest_of_a_completion_even_where_it_is_not() -> None:
    assert told("text", "a", top=((ids("b")[0], -0.1),))["top_logprobs"] == [{"b": -0.1, "a": -1.5}]


def test_the_impossible_is_a_number_that_json_has() -> None:
    logprobs = Logprobs("chat", BYTES)
    logprobs.add(Piece(ids("a")[0], "a", logprob=-math.inf, top=((ids("b")[0], -math.inf),)))
    assert "Infinity" not in json.dumps(logprobs.take())


def test_what_was_taken_is_not_told_again() -> None:
    logprobs = Logprobs("text", BYTES)
    for token in ids("ab"):
        logprobs.add(Piece(token, "", logprob=-1.0))
    assert logprobs.take() is not None
    assert logprobs.take() is None
    logprobs.add(Piece(ids("c")[0], "", logprob=-1.0))
    assert logprobs.take() == {
        "tokens": ["c"],
        "token_logprobs": [-1.0],
        "top_logprobs": [{"c": -1.0}],
        "text_offset": [2],
    }


def test_pieces_without_log_probabilities_are_none() -> None:
    logprobs = Logprobs("chat", BYTES)
    logprobs.add(Piece(1, "a"))
    assert logprobs.take() is None


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_every_token_of_a_vocabulary_can_be_told(kind: Any) -> None:
    logprobs = Logprobs(kind, BYTES)
    for token in range(len(BYTES)):
        logprobs.add(Piece(token, "", logprob=-1.0))
    found = logprobs.take()
    assert found is not None
    names = [entry["token"] for entry in found["content"]] if kind == "chat" else found["tokens"]
    assert len(set(names)) == len(BYTES)
