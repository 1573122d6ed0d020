"""Which tokens the next step computes. Pure Python: a property test can drive it through any life of any requests.

Prefill and decode are one thing: a sequence has tokens pending, one in the middle of generation, many at the start. A
step computes at most `step_tokens` of them: first the one token of every sequence that generates, so that a long prompt
stalls nobody, then prompts in chunks with what is left.

Memory: a sequence is admitted when the blocks for all its tokens are free, and takes one more block whenever it grows
past its last. When none is left, the sequence admitted last is preempted: it gives all its blocks back, waits at the
head of the queue and is computed again, prompt and generated tokens, when there is room. Since the oldest sequence is
never the victim and every sequence alone fits into the pool, someone always gets on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Listing
from dataclasses import dataclass

from services.inference.engine.blocks import BlockPool
from services.inference.engine.sequence import Sequence


@dataclass(frozen=True)
class Work:
    """The next `count` pending tokens of a sequence."""

    sequence: Sequence
    count: int

    @property
    def samples(self) -> bool:
        """Whether this work reaches the last token known, so that the step yields the next one."""
        return self.count == self.sequence.pending


class Scheduler:
    """Waiting and running sequences over one block pool. Used by one thread."""

    def __init__(self, pool: BlockPool, *, max_batch: int, step_tokens: int) -> None:
        self.pool = pool
        self.max_batch = max_batch
        # At least one token for everybody who runs, so that none of them can starve.
        self.step_tokens = max(step_tokens, max_batch)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of admission

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Puts a sequence at the end of the queue.

        Raises:
            ValueError: it has no tokens, or could not be computed even with the whole pool to itself.
        """
        if not sequence.ids or sequence.limit > self.pool.tokens:
            raise ValueError(f"a sequence of 1 to {self.pool.tokens} tokens can be computed, not {sequence.limit}")
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and frees its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._release(sequence)

    def plan(self) -> list[Work]:
        """The work of the next step, empty only when nothing is waiting or running. Decides admission and preemption.

        Whoever calls this either commits the plan or removes the sequences in it.
        """
        generating = [sequence for sequence in self.running if sequence.pending == 1]
        work: list[Work] = []
        preempted = False
        for sequence in generating:
            if sequence not in self.running:
                continue  # preempted for an older one
            preempted |= self._make_room(sequence)
            if sequence in self.running:
                work.append(Work(sequence, 1))

        budget = self.step_tokens - len(work)
        for sequence in self.running:
            if sequence.pending > 1 and budget > 0:
                work.append(Work(sequence, min(sequence.pending, budget)))
                budget -= work[-1].count
        # Who was preempted just now shall not come straight back and push out the next.
        while not preempted and budget > 0 and (admitted := self._admit()):
            work.append(Work(admitted, min(admitted.pending, budget)))
            budget -= work[-1].count
        return work

    def commit(self, plan: Listing[Work], tokens: Listing[int]) -> None:
        """Records that `plan` was computed and that `tokens` came out of it, one for each work that samples."""
        sampled = iter(tokens)
        for work in plan:
            token = next(sampled) if work.samples else None
            work.sequence.computed += work.count
            if token is not None:
                work.sequence.ids.append(token)

    def _admit(self) -> Sequence | None:
        """Moves the head of the queue into the batch, if there is a place and memory for it.

        Nobody passes the head, however small: else a long prompt could wait for ever.
        """
        if not self.waiting or len(self.running) >= self.max_batch:
            return None
        needed = self.pool.blocks_for(len(self.waiting[0].ids))
        if needed > self.pool.free:
            return None
        sequence = self.waiting.popleft()
        sequence.blocks = self.pool.take(needed)
        self.running.append(sequence)
        return sequence

    def _make_room(self, sequence: Sequence) -> bool:
        """Sees that `sequence` has a block for its next token; tells whether someone was preempted for that.

        The victim may be the sequence itself, when all others came before it.
        """
        if len(sequence.blocks) * self.pool.size >= len(sequence.ids):
            return False
        preempted = False
        while not self.pool.free:
            victim = self.running.pop()
            self._release(victim)
            victim.preemptions += 1
            self.waiting.appendleft(victim)
            preempted = True
            if victim is sequence:
                return True
        sequence.blocks += self.pool.take(1)
        return preempted

    def _release(self, sequence: Sequence) -> None:
        self.pool.give_back(sequence.blocks)
        sequence.blocks = []
        sequence.computed = 0
