"""Tokens to text, piece by piece: what is given out is never taken back.

Two things make a piece wait: bytes of a character whose other bytes are still to come, and text that may be the start
of a stop sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Listing

REPLACEMENT = "\ufffd"
CONTEXT = 6
"""Tokens of the past that are decoded again with each new one: how a token is written depends on its neighbours
(SentencePiece drops the space before the first word), so none can be decoded alone."""
LONGEST_SPLIT = 3
"""An unfinished UTF-8 character has at most three bytes, each of which may show as one replacement character."""
LONGEST_WINDOW = 32
"""Tokens after which text that still ends in replacement characters is taken to be malformed for good."""


class Detokenizer:
    """The text of one request."""

    def __init__(
        self, decode: Callable[[list[int]], str], prompt: Listing[int] = (), stops: Iterable[str] = ()
    ) -> None:
        """
        Args:
            decode: text of token ids, special tokens left out.
            prompt: the ids before the first token; they are context and never part of the text.
            stops: sequences at the first of which the text ends; they are not part of it.
        """
        self._decode = decode
        self._window = list(prompt[-CONTEXT:])
        self._known = decode(self._window) if self._window else ""
        self._fresh = 0  # tokens at the end of the window whose text is not all given out
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False
        """Whether a stop sequence was found; nothing may be pushed after that."""

    def push(self, token: int) -> str:
        """The text that has become certain with `token`, often nothing."""
        return self._release(self._decode_next(token))

    def finish(self) -> str:
        """The rest of the text, once no token follows. An unfinished character at the end is dropped."""
        rest, self._held = self._held, ""
        return "" if self.stopped else rest

    def _decode_next(self, token: int) -> str:
        self._window.append(token)
        self._fresh += 1
        text = self._decode(self._window)
        whole = text.rstrip(REPLACEMENT)
        waits = len(text) > len(whole)
        if waits and self._fresh <= LONGEST_WINDOW:
            # Replacement characters before the last three are malformed for good, not unfinished.
            text = text[: max(len(whole), len(text) - LONGEST_SPLIT)]
        new = text[len(self._known) :]
        if waits and self._fresh <= LONGEST_WINDOW:
            self._known += new
            return new
        self._window = self._window[-CONTEXT:]
        self._known = self._decode(self._window)
        self._fresh = 0
        return new

    def _release(self, new: str) -> str:
        if not self._stops:
            return new
        text = self._held + new
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
