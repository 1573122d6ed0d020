"""The block pool: every block is free or held, and held once."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.inference.engine.blocks import BlockPool

COUNT = 12


class PoolLife(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(COUNT, 4)
        self.holders: list[list[int]] = []

    @rule(count=st.integers(0, COUNT + 2))
    def take(self, count: int) -> None:
        if count > self.pool.free:
            with pytest.raises(ValueError, match="free"):
                self.pool.take(count)
        else:
            self.holders.append(self.pool.take(count))

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        if self.holders:
            self.pool.give_back(self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1))))

    @invariant()
    def free_and_used_are_all(self) -> None:
        assert self.pool.free + self.pool.used == COUNT

    @invariant()
    def no_block_is_held_twice(self) -> None:
        held = [block for blocks in self.holders for block in blocks]
        assert len(held) == len(set(held)) == self.pool.used
        assert all(0 <= block < COUNT for block in held)


test_pool_life = PoolLife.TestCase


def test_a_block_cannot_be_freed_twice() -> None:
    pool = BlockPool(2, 4)
    taken = pool.take(1)
    pool.give_back(taken)
    with pytest.raises(ValueError, match="not held"):
        pool.give_back(taken)


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2)])
def test_blocks_are_counted_in_full(tokens: int, blocks: int) -> None:
    assert BlockPool(4, 4).blocks_for(tokens) == blocks


def test_the_block_freed_last_is_used_first() -> None:
    pool = BlockPool(8, 4)
    first = pool.take(2)
    pool.give_back(first)
    assert set(pool.take(2)) == set(first)
