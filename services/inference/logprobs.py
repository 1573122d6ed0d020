"""Log probabilities in OpenAI's shapes: of chat completions and of text completions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from services.common.wire import Kind

if TYPE_CHECKING:
    from services.inference.engine.generation import Piece

LEAST = -9999.0
"""Stands for minus infinity, which JSON cannot say; OpenAI's number for "very unlikely"."""

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
"""How SentencePiece vocabularies name a single byte."""
_SHOWN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_MOVED = [byte for byte in range(256) if byte not in _SHOWN]
BYTE_OF_LETTER = {chr(byte): byte for byte in _SHOWN} | {chr(256 + at): byte for at, byte in enumerate(_MOVED)}
"""How byte-level vocabularies write bytes as letters (GPT-2's `bytes_to_unicode`)."""


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """What a token stands for in a text, also where that is a space in front, or only a part of a character."""
    name = str(tokenizer.convert_ids_to_tokens(token) or "")
    text = str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if "\ufffd" in text:
        if byte := BYTE_TOKEN.fullmatch(name):
            return bytes.fromhex(byte[1])
        if all(letter in BYTE_OF_LETTER for letter in name):
            return bytes(BYTE_OF_LETTER[letter] for letter in name)
    if name.startswith("▁") and not text.startswith(" "):
        text = " " + text  # SentencePiece drops the space of a first word, and here every token comes first
    return text.encode(errors="replace")


class Logprobs:
    """The log probabilities of one answer, collected until a chunk takes them."""

    def __init__(self, kind: Kind, tokenizer: Any, given: Iterable[int] = ()) -> None:
        """
        Args:
            given: the answer's tokens before the first that is added; the offsets count their text.
        """
        self._kind = kind
        self._tokenizer = tokenizer
        self._pieces: list[Piece] = []
        self._offset = sum(_characters(token_bytes(tokenizer, token)) for token in given)

    def add(self, piece: Piece) -> None:
        """Takes in the next piece of the answer."""
        if piece.logprob is not None:
            self._pieces.append(piece)

    def take(self) -> dict[str, Any] | None:
        """The `logprobs` of a choice, for the tokens since the last time; None where there are none."""
        pieces, self._pieces = self._pieces, []
        if not pieces:
            return None
        return self._chat(pieces) if self._kind == "chat" else self._text(pieces)

    def _chat(self, pieces: list[Piece]) -> dict[str, Any]:
        content = [
            {**self._entry(*_drawn(piece)), "top_logprobs": [self._entry(*one) for one in piece.top]}
            for piece in pieces
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        data = token_bytes(self._tokenizer, token)
        return {"token": _name(data), "logprob": max(logprob, LEAST), "bytes": list(data)}

    def _text(self, pieces: list[Piece]) -> dict[str, Any]:
        offsets = []
        for piece in pieces:
            offsets.append(self._offset)
            self._offset += _characters(token_bytes(self._tokenizer, _drawn(piece)[0]))
        return {
            "tokens": [self._text_name(_drawn(piece)[0]) for piece in pieces],
            "token_logprobs": [max(_drawn(piece)[1], LEAST) for piece in pieces],
            # The token that was drawn is always among them, as OpenAI's are.
            "top_logprobs": [
                {self._text_name(token): max(logprob, LEAST) for token, logprob in (*piece.top, _drawn(piece))}
                for piece in pieces
            ],
            "text_offset": offsets,
        }

    def _text_name(self, token: int) -> str:
        data = token_bytes(self._tokenizer, token)
        return _name(data, part="bytes:")


def _drawn(piece: Piece) -> tuple[int, float]:
    assert piece.token is not None
    assert piece.logprob is not None
    return piece.token, piece.logprob


def _name(data: bytes, *, part: str = "") -> str:
    """The text of a token; a part of a character as OpenAI writes it, `\\xf0\\x9f`, so that two parts differ."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return part + "".join(f"\\x{byte:02x}" for byte in data)


def _characters(data: bytes) -> int:
    """Characters that begin within the data: every byte of UTF-8 but the continuing ones begins one."""
    return sum(byte & 0xC0 != 0x80 for byte in data)
