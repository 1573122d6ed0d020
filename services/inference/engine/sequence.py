"""One request as the engine sees it: plain data, no behaviour beyond arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    temperature 0 takes the likeliest token, and then top_k, top_p, min_p and seed do not matter. top_k 0, top_p 1 and
    min_p 0 leave all tokens in. The penalties and the bias change the logits before that: repetition_penalty divides
    or multiplies those of tokens in prompt or answer (CTRL: Keskar et al. 2019), presence and frequency penalties
    subtract from those in the answer (OpenAI API), logit_bias adds to those it names.
    min_tokens: how many tokens an answer has before one of `ends` is drawn; the engine sets these, those that end it.
    logprobs: how many of the likeliest tokens to report with each token drawn; None reports nothing.
    seed fixes the draw: token i of a request depends on the seed, i and the distribution, on nothing else in the batch.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    ends: frozenset[int] = frozenset()
    logprobs: int | None = None
    seed: int = 0


@dataclass(eq=False)
class Sequence:
    """The tokens of one request, and where its keys and values are.

    ids: the prompt, then what was generated. computed: how many of them, from the first on, have their keys and values
    in the pool. blocks: the pool's blocks that hold these, in order of position.
    salt: whose request it is; blocks are shared, and turns are shared out, by it. adapter: the LoRA adapter that
    computes it. weight: the share of the machine that its salt has, against others. priority: smaller goes first.
    preemptions: how often it had to give its blocks back and wait again. arrival: its place in the queue, given there.
    keys: the names of the contents of its full blocks, in the prefix cache, as far as they are known.
    cached: prompt tokens that the prefix cache spared at the first admission. seconds, joules: its part of the time of
    the steps and, where the machine tells it, of their energy.
    """

    ids: list[int]
    prompt_length: int
    max_tokens: int
    sampling: Sampling = Sampling()
    salt: str = ""
    adapter: str | None = None
    weight: float = 1.0
    priority: int = 0
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    preemptions: int = 0
    arrival: int = 0
    keys: list[bytes] = field(default_factory=list)
    cached: int = 0
    seconds: float = 0.0
    joules: float | None = None

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
