"""The block tables of sequences: filled from the prefix cache and the pool, published as they are computed.

`sequence.blocks` is its block table. Blocks that it shares are full and computed; what it computes goes into blocks
that it holds alone, which follow them. So nobody writes to a block that another reads.
"""

from __future__ import annotations

from services.inference.engine.blocks import BlockPool, block_key, root_key
from services.inference.engine.sequence import Sequence


class BlockTables:
    """The tables of all sequences of one pool."""

    def __init__(self, pool: BlockPool, *, prefix_cache: bool) -> None:
        self._pool = pool
        self._prefix_cache = prefix_cache

    def name(self, sequence: Sequence) -> None:
        """Computes the keys of the blocks that the sequence's tokens fill, as far as they are new."""
        size, keys = self._pool.size, sequence.keys
        while self._prefix_cache and len(keys) < len(sequence.ids) // size:
            parent = keys[-1] if keys else root_key(sequence.salt, sequence.adapter)
            keys.append(block_key(parent, sequence.ids[len(keys) * size : (len(keys) + 1) * size]))

    def ahead(self, sequence: Sequence) -> list[bytes]:
        """The keys of blocks yet to be computed that could be shared: at least the last token is the sequence's own
        to compute, since it has to yield the next one."""
        size = self._pool.size
        return sequence.keys[sequence.computed // size : (len(sequence.ids) - 1) // size]

    def find(self, sequence: Sequence) -> list[int]:
        """The blocks ahead that the prefix cache has."""
        return self._pool.find(self.ahead(sequence))

    def needs(self, sequence: Sequence) -> int:
        """Free blocks that a sequence with an empty table takes to be filled."""
        found = self.find(sequence)
        return self._pool.blocks_for(len(sequence.ids)) - len(found) + self._pool.held_by(0, found)

    def yields(self, victim: Sequence, heir: Sequence) -> int:
        """Blocks that become free for `heir` when the table of `victim` is emptied, at least."""
        found = set(self.find(heir))
        return self._pool.held_by(1, (block for block in victim.blocks if block not in found))

    def fill(self, sequence: Sequence) -> None:
        """Gives a sequence with an empty table the blocks for all its tokens: those found, and free ones."""
        found = self.find(sequence)
        self._pool.hold(found)  # before others are taken, which may evict
        sequence.blocks = found + self._pool.take(self._pool.blocks_for(len(sequence.ids)) - len(found))
        sequence.computed = len(found) * self._pool.size

    def grow(self, sequence: Sequence) -> bool:
        """Sees that there is a block for the last token; False when none is free."""
        if len(sequence.blocks) * self._pool.size < len(sequence.ids):
            if not self._pool.free:
                return False
            sequence.blocks += self._pool.take(1)
        return True

    def catch_up(self, sequence: Sequence) -> None:
        """Takes over, in place of the sequence's own, the blocks ahead that others have computed since."""
        if found := self.find(sequence):
            first = sequence.computed // self._pool.size
            own = slice(first, first + len(found))
            self._pool.hold(found)
            self._pool.give_back(sequence.blocks[own])
            sequence.blocks[own] = found
            sequence.computed = own.stop * self._pool.size

    def advance(self, sequence: Sequence, count: int) -> None:
        """The next `count` tokens are computed. Blocks that are full now may be shared from now on."""
        first, full = sequence.computed // self._pool.size, (sequence.computed + count) // self._pool.size
        sequence.computed += count
        if full > first and self._prefix_cache:
            self.name(sequence)
            for index in range(first, full):
                self._pool.publish(sequence.blocks[index], sequence.keys[index])

    def empty(self, sequence: Sequence) -> None:
        """Gives all blocks back; what is published of them can be found until their memory is needed."""
        self._pool.give_back(sequence.blocks)
        sequence.blocks = []
        sequence.computed = 0
