"""One request as the engine sees it: plain data, no behaviour beyond arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    temperature 0 takes the likeliest token, and then nothing else matters. top_k 0 and top_p 1 leave all tokens in.
    seed fixes the draw: token i of a request depends on the seed, i and the distribution, on nothing else in the batch.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


@dataclass(eq=False)
class Sequence:
    """The tokens of one request, and where its keys and values are.

    ids: the prompt, then what was generated. computed: how many of them, from the first on, have their keys and values
    in the pool. blocks: the pool's blocks that hold these, in order of position.
    """

    ids: list[int]
    prompt_length: int
    max_tokens: int
    sampling: Sampling = Sampling()
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    preemptions: int = 0

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.ids) - self.prompt_length

    @property
    def pending(self) -> int:
        """Tokens that have yet to be computed; 1 in the middle of generation."""
        return len(self.ids) - self.computed

    @property
    def limit(self) -> int:
        """The most tokens it can ever hold in the pool: the last token generated is never fed back."""
        return self.prompt_length + self.max_tokens - 1
