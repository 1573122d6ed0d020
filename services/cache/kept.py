"""An answer as it lies in Redis. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer's body as it is kept, and what it took, which admit.lua reads to tell what the next call is spared."""

    body: bytes
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    @classmethod
    def of(cls, value: bytes) -> Kept:
        """The answer of what lies in Redis.

        Raises:
            ValueError: it is none.
        """
        line, _, body = value.partition(b"\n")
        prompt, cached, completion = map(int, line.split())
        return cls(body, prompt, cached, completion)

    def value(self) -> bytes:
        """What lies in Redis: a line with the three counts, then the body."""
        return b"%d %d %d\n%b" % (self.prompt_tokens, self.cached_tokens, self.completion_tokens, self.body)
