"""The pool of KV cache blocks: which are held, which are free, which of the free still hold something of use.

A block holds the keys and values of `size` consecutive tokens of one sequence, in all layers (PagedAttention: Kwon et
al. 2023, "Efficient Memory Management for Large Language Model Serving"). Pure bookkeeping, the memory itself is the
runner's.

Prefix cache: what a block holds depends on its tokens and on all that come before them, so a key that is a hash over
both (`block_key` of the block before, back to a `root_key`) names its content. A block that is full and computed may be
published under its key; whoever needs the same content holds it too instead of computing it again, and nobody writes to
it any more. When its last holder leaves, it counts as free but keeps its content until its memory is needed, the least
recently held first.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Listing
from hashlib import blake2b


def root_key(salt: str, adapter: str | None) -> bytes:
    """The key that the first block of a sequence hangs on: blocks of one salt and adapter are no other's."""
    return _digest(repr((salt, adapter)).encode())


def block_key(parent: bytes, ids: Listing[int]) -> bytes:
    """The key of a block with the tokens `ids` after the block, or the root, whose key is `parent`.

    A cryptographic hash, since whoever finds two texts with one key could be answered from another's text.
    """
    return _digest(parent + array("q", ids).tobytes())


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


class BlockPool:
    """`count` blocks of `size` tokens each."""

    def __init__(self, count: int, size: int) -> None:
        if count < 1 or size < 1:
            raise ValueError(f"a pool needs blocks and tokens in them, not {count} of {size}")
        self.count = count
        self.size = size
        # Last freed, first used: the same memory is touched again, and blocks never needed never become resident.
        self._empty = list(range(count - 1, -1, -1))
        self._holders: dict[int, int] = {}
        self._published: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()  # published, held by nobody; the next to go is first

    @property
    def free(self) -> int:
        """Blocks that nobody holds, those that keep their content included."""
        return len(self._empty) + len(self._kept)

    @property
    def used(self) -> int:
        """Blocks that somebody holds."""
        return len(self._holders)

    @property
    def tokens(self) -> int:
        """Tokens that the whole pool can hold."""
        return self.count * self.size

    def blocks_for(self, tokens: int) -> int:
        """Blocks that `tokens` tokens of one sequence need."""
        return -(-tokens // self.size)

    def take(self, count: int) -> list[int]:
        """`count` free blocks, now held by the caller alone, content forgotten.

        Raises:
            ValueError: there are not so many.
        """
        if count > self.free:
            raise ValueError(f"{count} blocks asked for, {self.free} free")
        taken = [self._empty.pop() if self._empty else self._evict() for _ in range(count)]
        self._holders.update(dict.fromkeys(taken, 1))
        return taken

    def give_back(self, blocks: Listing[int]) -> None:
        """Lets go of blocks that the caller holds, given in order of position.

        Raises:
            ValueError: one of them is not held: it was freed twice, or never taken.
        """
        for block in reversed(blocks):  # so that of a chain, which is found from its head, the tail is evicted first
            holders = self._holders.get(block)
            if holders is None:
                raise ValueError(f"block {block} is not held")
            if holders > 1:
                self._holders[block] = holders - 1
                continue
            del self._holders[block]
            if block in self._keys:
                self._kept[block] = None
            else:
                self._empty.append(block)

    def publish(self, block: int, key: bytes) -> None:
        """Says that a held block is full and computed, and what it holds: from now on it may be found.

        Where another block is known for the same content, that one stays the one to be found.
        """
        if key not in self._published:
            self._published[key] = block
            self._keys[block] = key

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks published under `keys`, up to the first key that none is known for. Holds none of them."""
        found = []
        for key in keys:
            block = self._published.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def hold(self, blocks: Iterable[int]) -> None:
        """Makes the caller a holder, beside others, of blocks just found."""
        for block in blocks:
            self._kept.pop(block, None)
            self._holders[block] = self._holders.get(block, 0) + 1

    def held_by(self, holders: int, blocks: Iterable[int]) -> int:
        """How many of `blocks` have exactly so many holders."""
        return sum(self._holders.get(block, 0) == holders for block in blocks)

    def shrink(self, blocks: int, *, keep: int = 1) -> int:
        """Takes free blocks out of use for good, where the memory turned out to be less than it seemed.

        Args:
            blocks: how many to take, as far as there are so many free.
            keep: blocks that must be left, held or free; a request that needs more than are left would wait for ever.

        Returns:
            How many it took. Those left keep their numbers, so a number may be greater than `count` from now on.
        """
        gone = max(0, min(blocks, self.free, self.count - keep))
        for _ in range(gone):
            if not self._empty:
                self._empty.append(self._evict())
            self._empty.pop()
        self.count -= gone
        return gone

    def _evict(self) -> int:
        block, _ = self._kept.popitem(last=False)
        del self._published[self._keys.pop(block)]
        return block
