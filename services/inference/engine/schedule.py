"""Which tokens the next step computes. Pure Python: a property test can drive it through any life of any requests.

Prefill and decode are one thing: a sequence has tokens pending, one in the middle of generation, many at the start. A
step computes the one token of every sequence that generates, and prompts in chunks with what the budget leaves: up to
`step_tokens` in all, but of prompts only `chunk_tokens` while others generate, since what a chunk takes is how long
their next tokens wait; far inside a long prompt fewer, since each attends to more.

A short prompt of a tenant of whom nothing else runs has now and then a step for itself: its first token comes sooner
by what the others' tokens take, and theirs come no later than with it in one step.

Which prompt is next: a sequence is admitted when the fair queue says so. Among those admitted, one of a tenant who gets
no tokens yet goes first, then the one with the least left to compute, since it loses most by waiting; but one step
in `OLDEST_EVERY` begins with the prompt that was admitted first, so that others, however many come, do not stop a long
one.

Memory: a sequence is admitted when the blocks for all its tokens can be had, and beside them one for each who runs to
grow into, else it would soon push somebody out. Nobody passes the head of the queue, however small. A sequence takes
over the blocks that the prefix cache has for its beginning, also those that others have computed since it was admitted;
what another is computing in this very step it waits for. It takes one more block whenever it grows past its last. When
none is left, the one of the lowest priority that was admitted last is preempted: it gives its blocks back, waits where
it waited before, and continues when there is room with what the cache still has.

A request of higher priority, or of a tenant of whom nothing runs while another who was served no less has several
running, is not kept waiting for one of those to end: it is admitted in its place.

Someone always gets on: of those who run, the first admitted of the highest priority is never preempted but for a still
higher one, and every sequence alone fits into the pool.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence as Listing
from dataclasses import dataclass

from services.inference.engine.blocks import BlockPool
from services.inference.engine.fair import FairQueue
from services.inference.engine.sequence import Sequence
from services.inference.engine.table import BlockTables

OLDEST_EVERY = 4
CHUNK_TOKENS = 64
"""As many as a usual question has, so that its answer begins after one step."""


@dataclass(frozen=True, slots=True)
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

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_batch: int,
        step_tokens: int,
        chunk_tokens: int = CHUNK_TOKENS,
        twice_at: float = math.inf,
        prefix_cache: bool = True,
    ) -> None:
        """
        Args:
            max_batch: sequences that run at once.
            step_tokens: tokens that one step computes at most.
            chunk_tokens: tokens of prompts that a step computes at most while sequences generate.
            twice_at: tokens of context at which a token costs twice what the first one does.
            prefix_cache: whether blocks that are computed may be used again.
        """
        self.pool = pool
        self.max_batch = max_batch
        # At least one token for everybody who runs, so that none of them can starve.
        self.step_tokens = max(step_tokens, max_batch)
        self.chunk_tokens = max(chunk_tokens, 1)
        self._twice_at = twice_at
        self._tables = BlockTables(pool, prefix_cache=prefix_cache)
        self.waiting = FairQueue()
        self.running: list[Sequence] = []  # in order of admission
        self._steps = 0
        self._stood_back = False
        self._generating: set[str] = set()
        """Salts of the tenants who get tokens now."""

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Puts a sequence into the queue.

        Raises:
            ValueError: it has no tokens, could not be computed even with the whole pool to itself, or has no weight.
        """
        if not sequence.ids or sequence.limit > self.pool.tokens:
            raise ValueError(f"a sequence of 1 to {self.pool.tokens} tokens can be computed, not {sequence.limit}")
        if not 0 < sequence.weight < math.inf:
            raise ValueError(f"a weight is a positive number, not {sequence.weight}")
        self._tables.name(sequence)
        self.waiting.push(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and gives its blocks back.

        Raises:
            ValueError: it is not here.
        """
        if sequence in self.running:
            self._stop(sequence)
        else:
            self.waiting.remove(sequence)

    def requeue(self, sequence: Sequence) -> None:
        """Preempts a running sequence: it gives its blocks back and waits again, where it waited before.

        Also for one whose step failed.
        """
        self._stop(sequence)
        sequence.preemptions += 1
        self.waiting.push(sequence)

    def plan(self) -> list[Work]:
        """The work of the next step, empty only when nothing is waiting or running. Decides admission and preemption.

        Whoever calls this either commits the plan, or removes or requeues the sequences in it.
        """
        self._steps += 1
        self._grow()
        self._generating = {sequence.salt for sequence in self.running if sequence.pending == 1}
        self._make_way()
        decodes = [Work(sequence, 1) for sequence in self.running if sequence.pending == 1]
        if decodes:
            prefills = self._prefill(min(self.chunk_tokens, self.step_tokens - len(decodes)), self._twice_at)
        else:
            prefills = self._prefill(self.step_tokens)
        self._stood_back = bool(decodes) and not self._stood_back and self._is_newcomer(prefills)
        if self._stood_back:
            return prefills
        for decode in decodes:
            self.waiting.charge(decode.sequence, 1)
        return decodes + prefills

    def commit(self, plan: Listing[Work], tokens: Listing[int]) -> None:
        """Records that `plan` was computed and that `tokens` came out of it, one for each work that samples."""
        sampled = iter(tokens)
        for work in plan:
            token = next(sampled) if work.samples else None
            self._tables.advance(work.sequence, work.count)
            if token is not None:
                work.sequence.ids.append(token)
                self.waiting.charge(work.sequence, 1)

    def _grow(self) -> None:
        """Sees that all who generate have a block for their next token, preempting others or themselves for it."""
        for sequence in [sequence for sequence in self.running if sequence.pending == 1]:
            while sequence.blocks and not self._tables.grow(sequence):
                self.requeue(max(reversed(self.running), key=lambda running: running.priority))

    def _make_way(self) -> None:
        """Admits the head of the queue in the place of others who have to stand back for it, when that is enough.

        Those of lower priority have to, and where nothing of its tenant runs, all but the first of each tenant who was
        served no less. The latest of the most served goes first; with the prefix cache, little of its work is lost.
        """
        head = self.waiting.head()
        if head is None or self._fits(head) or not self._is_before(head, self._begun()):
            return
        tenant = self.waiting.tenant(head)
        behind: list[Sequence] = []
        seen: set[str] = set()
        for other in sorted(self.running, key=lambda one: (one.priority, self.waiting.tenant(one).served)):
            served_more = other.salt in seen and self.waiting.tenant(other).served >= tenant.served
            as_urgent = other.priority == head.priority
            if other.priority > head.priority or (as_urgent and served_more and not tenant.running):
                behind.append(other)
            seen.add(other.salt)
        victims: list[Sequence] = []
        blocks = 0
        while behind and not self._fits(head, places=len(victims), blocks=blocks):
            victims.append(behind.pop())
            blocks += self._tables.yields(victims[-1], head)
        if victims and self._fits(head, places=len(victims), blocks=blocks):
            for victim in victims:
                self.requeue(victim)
            self._admit(head)

    def _is_newcomer(self, prefills: Listing[Work]) -> bool:
        """Whether the first token of a tenant of whom nothing else runs comes out of these."""
        return any(work.samples and self.waiting.tenant(work.sequence).running == 1 for work in prefills[:1])

    def _prefill(self, budget: float, twice_at: float = math.inf) -> list[Work]:
        """Shares `budget` tokens out among the prompts of those who run, and of those whom it admits.

        Args:
            twice_at: tokens of context at which a token counts twice.
        """
        work: list[Work] = []
        computing: set[bytes] = set()
        passed: set[Sequence] = set()
        begun = self._begun()
        admitting = True
        while budget >= 1:
            head = self._candidate(passed, computing) if admitting else None
            if head and self._is_before(head, begun):
                if not self._fits(head):
                    admitting = False  # nobody passes the head
                    continue
                self._admit(head)
                sequence = head
            elif begun:
                sequence = begun.popleft()
                self._tables.catch_up(sequence)
                if self._awaits(sequence, computing):
                    continue
            else:
                break
            price = 1 + sequence.computed / twice_at
            count = self._chunk(sequence, max(1, int(budget / price)), first=not work)
            if not count:
                break
            work.append(Work(sequence, count))
            self.waiting.charge(sequence, count)
            budget -= count * price
            size = self.pool.size
            computing.update(sequence.keys[sequence.computed // size : -(-(sequence.computed + count) // size)])
        return work

    def _candidate(self, passed: set[Sequence], computing: set[bytes]) -> Sequence | None:
        """The head of the queue. Passes those who wait for what is being computed; they keep their places."""
        while len(self.running) + len(passed) < self.max_batch and (head := self.waiting.head(passed)):
            if not self._awaits(head, computing):
                return head
            passed.add(head)
        return None

    def _awaits(self, sequence: Sequence, computing: set[bytes]) -> bool:
        """Whether the next block that the sequence needs, and could share, is among those `computing`."""
        ahead = self._tables.ahead(sequence)
        found = len(self.pool.find(ahead)) if computing else 0
        return found < len(ahead) and ahead[found] in computing

    def _begun(self) -> deque[Sequence]:
        """The running sequences whose prompts are not yet computed, the next first."""
        return deque(sorted((one for one in self.running if one.pending > 1), key=self._rank))

    def _is_before(self, head: Sequence, begun: deque[Sequence]) -> bool:
        """Whether the prompt of a waiting sequence would be computed first, were it admitted now."""
        return not begun or self._rank(head) < self._rank(begun[0])

    def _rank(self, sequence: Sequence) -> tuple[int, bool, int]:
        """The place of a prompt in this step; of equal ones, the one admitted first goes first."""
        if self._steps % OLDEST_EVERY == 0:
            return sequence.priority, False, 0
        left = sequence.pending - len(self._tables.find(sequence)) * self.pool.size
        return sequence.priority, sequence.salt in self._generating, left

    def _chunk(self, sequence: Sequence, budget: int, *, first: bool) -> int:
        """How much of `budget` a prompt gets: all it needs, or whole blocks, which others can use at once; if not even
        one can be filled, nothing, but for the `first` of the step."""
        if sequence.pending <= budget:
            return sequence.pending
        whole = (sequence.computed + budget) // self.pool.size * self.pool.size - sequence.computed
        return whole if whole > 0 else (budget if first else 0)

    def _fits(self, sequence: Sequence, *, places: int = 0, blocks: int = 0) -> bool:
        """Whether a waiting sequence can be admitted, once so many more places and blocks are free."""
        running = len(self.running) - places
        return running < self.max_batch and self._tables.needs(sequence) + running <= self.pool.free + blocks

    def _admit(self, sequence: Sequence) -> None:
        self._tables.fill(sequence)
        if not sequence.preemptions:
            sequence.cached = min(sequence.computed, sequence.prompt_length)
        self.waiting.start(sequence)
        self.running.append(sequence)

    def _stop(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.waiting.stop(sequence)
        self._tables.empty(sequence)
