"""The pool of KV cache blocks: which are held, which are free. Pure bookkeeping, the memory itself is the runner's.

A block holds the keys and values of `size` consecutive tokens of one sequence, in all layers (PagedAttention: Kwon et
al. 2023, "Efficient Memory Management for Large Language Model Serving").
"""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """`count` blocks of `size` tokens each."""

    def __init__(self, count: int, size: int) -> None:
        if count < 1 or size < 1:
            raise ValueError(f"a pool needs blocks and tokens in them, not {count} of {size}")
        self.count = count
        self.size = size
        # Last freed, first used: the same memory is touched again, and blocks never needed never become resident.
        self._free = list(range(count - 1, -1, -1))
        self._held: set[int] = set()

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Blocks that somebody holds."""
        return len(self._held)

    @property
    def tokens(self) -> int:
        """Tokens that the whole pool can hold."""
        return self.count * self.size

    def blocks_for(self, tokens: int) -> int:
        """Blocks that `tokens` tokens of one sequence need."""
        return -(-tokens // self.size)

    def take(self, count: int) -> list[int]:
        """`count` free blocks, now held by the caller.

        Raises:
            ValueError: there are not so many.
        """
        if count > len(self._free):
            raise ValueError(f"{count} blocks asked for, {len(self._free)} free")
        taken = [self._free.pop() for _ in range(count)]
        self._held.update(taken)
        return taken

    def give_back(self, blocks: Iterable[int]) -> None:
        """Frees blocks that the caller holds.

        Raises:
            ValueError: one of them is not held: it was freed twice, or never taken.
        """
        for block in blocks:
            if block not in self._held:
                raise ValueError(f"block {block} is not held")
            self._held.remove(block)
            self._free.append(block)
