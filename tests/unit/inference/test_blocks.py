"""The block pool: every block is free or held, and what is found in it is what was computed into it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.inference.engine.blocks import BlockPool, block_key, root_key

COUNT = 12
KEYS = [bytes([number]) for number in range(8)]


class PoolLife(RuleBasedStateMachine):
    """Holders come and go. What a block holds is written to `memory` by the only one who may write to it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(COUNT, 4)
        self.holders: list[list[int]] = []
        self.memory: dict[int, bytes] = {}

    @rule(count=st.integers(0, COUNT + 2))
    def take(self, count: int) -> None:
        if count > self.pool.free:
            with pytest.raises(ValueError, match="free"):
                self.pool.take(count)
        else:
            held = self.references()
            self.holders.append(taken := self.pool.take(count))
            assert not held.keys() & set(taken), "held by somebody else"
            for block in taken:
                self.memory.pop(block, None)

    @precondition(lambda self: any(self.holders))
    @rule(data=st.data(), key=st.sampled_from(KEYS))
    def compute(self, data: st.DataObject, key: bytes) -> None:
        block = data.draw(st.sampled_from(sorted(self.references())))
        if block not in self.memory:
            assert self.references()[block] == 1
            self.memory[block] = key
            self.pool.publish(block, key)

    @rule(keys=st.lists(st.sampled_from(KEYS)))
    def share(self, keys: list[bytes]) -> None:
        found = self.pool.find(keys)
        assert [self.memory[block] for block in found] == keys[: len(found)]
        self.pool.hold(found)
        self.holders.append(found)

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        if self.holders:
            self.pool.give_back(self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1))))

    @rule(blocks=st.integers(0, 3), keep=st.integers(1, COUNT))
    def shrink(self, blocks: int, keep: int) -> None:
        before, free = self.pool.count, self.pool.free
        gone = self.pool.shrink(blocks, keep=keep)
        assert gone == max(0, min(blocks, free, before - keep))
        assert self.pool.count == before - gone

    def references(self) -> Counter[int]:
        return Counter(block for blocks in self.holders for block in blocks)

    @invariant()
    def free_and_used_are_all(self) -> None:
        assert self.pool.free + self.pool.used == self.pool.count

    @invariant()
    def holders_are_counted(self) -> None:
        references = self.references()
        assert self.pool.used == len(references)
        for holders in (1, 2, 3):
            expected = sum(count == holders for count in references.values())
            assert self.pool.held_by(holders, range(COUNT)) == expected

    def teardown(self) -> None:
        """Nothing leaks: when all have left, all that was not taken out of use can be taken."""
        for blocks in self.holders:
            self.pool.give_back(blocks)
        taken = self.pool.take(self.pool.count)
        assert len(set(taken)) == self.pool.count
        assert set(taken) <= set(range(COUNT))
        assert self.pool.find(KEYS) == []


test_pool_life = PoolLife.TestCase


def published(pool: BlockPool, keys: list[bytes]) -> list[int]:
    """A chain of held blocks under `keys`."""
    blocks = pool.take(len(keys))
    for block, key in zip(blocks, keys, strict=True):
        pool.publish(block, key)
    return blocks


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


def test_a_published_block_is_found_until_its_memory_is_needed() -> None:
    pool = BlockPool(4, 4)
    block = published(pool, [KEYS[0]])
    pool.give_back(block)
    pool.take(3)
    assert pool.find(KEYS) == block
    assert pool.free == 1
    assert pool.take(1) == block
    assert pool.find(KEYS) == []


def test_the_chain_not_held_for_the_longest_time_is_evicted_first_and_from_its_tail() -> None:
    pool = BlockPool(6, 4)
    old, young = published(pool, KEYS[:3]), published(pool, KEYS[3:6])
    pool.give_back(old)
    pool.give_back(young)
    found = pool.find(KEYS[:1])
    pool.hold(found)
    pool.give_back(found)
    assert [pool.take(1)[0] for _ in range(6)] == [old[2], old[1], young[2], young[1], young[0], old[0]]


def test_a_block_that_somebody_holds_is_not_evicted() -> None:
    pool = BlockPool(2, 4)
    block = published(pool, KEYS[:1])
    pool.hold(block)
    pool.give_back(block)
    with pytest.raises(ValueError, match="2 blocks asked for, 1 free"):
        pool.take(2)
    assert pool.find(KEYS) == block


def test_a_search_ends_at_the_first_gap() -> None:
    pool = BlockPool(4, 4)
    blocks = published(pool, [KEYS[0], KEYS[2]])
    assert pool.find(KEYS) == blocks[:1]


def test_of_two_blocks_with_one_content_the_first_is_found_and_the_second_is_an_ordinary_one() -> None:
    pool = BlockPool(2, 4)
    first, second = published(pool, KEYS[:1]), published(pool, KEYS[:1])
    assert pool.find(KEYS) == first
    pool.give_back(first)
    pool.give_back(second)
    assert pool.take(1) == second
    assert pool.find(KEYS) == first


def test_shrinking_spares_what_is_held_and_what_is_to_be_kept() -> None:
    pool = BlockPool(8, 4)
    held = pool.take(3)
    assert pool.shrink(2, keep=4) == 2
    assert pool.shrink(9, keep=4) == 2
    assert pool.shrink(9) == 1
    assert (pool.count, pool.free, pool.used) == (3, 0, 3)
    pool.give_back(held)
    assert sorted(pool.take(3)) == sorted(held)


def test_a_key_names_the_tokens_and_all_before_them_and_whose_they_are() -> None:
    roots = [root_key("a", None), root_key("b", None), root_key("a", "None"), root_key("a', None", None)]
    texts: list[list[int]] = [[1, 2], [2, 1], [258], [1, 2, 0]]
    first = [block_key(root, text) for root in roots for text in texts]
    second = [block_key(parent, text) for parent in first for text in texts]
    assert len({*roots, *first, *second}) == len(roots) + len(first) + len(second)
    assert block_key(root_key("a", None), [1, 2]) == first[0]
