"""Which question is the nearest, whose it is, and how many are remembered."""

from __future__ import annotations

import math

import pytest

from services.cache.connection import Connection
from services.cache.kept import Kept
from services.cache.responses import ANSWER
from services.cache.semantic import Meanings
from services.common.ids import new_id


@pytest.fixture
def salt() -> str:
    return new_id()


def keep(connection: Connection, number: int) -> str:
    """A kept answer; its key."""
    key = f"{ANSWER}{number:064x}"
    connection.store(key, Kept(b"answer %d" % number).value(), 60)
    return key


@pytest.fixture
def meanings(connection: Connection) -> Meanings:
    return Meanings(connection, most=3, ttl=60)


def test_the_nearest_is_found_whatever_the_vectors_length(
    connection: Connection, meanings: Meanings, salt: str
) -> None:
    meanings.add(salt, "s", [1, 0, 0], keep(connection, 1))
    meanings.add(salt, "s", [0, 2, 2], keep(connection, 2))
    found = meanings.nearest(salt, "s", [0, 30, 10])
    assert found is not None
    assert found[1] == b"answer 2"
    assert math.isclose(found[0], 40 / math.sqrt(1000) / math.sqrt(2), rel_tol=1e-5)


def test_nothing_is_found_of_another_tenant_or_scope(connection: Connection, meanings: Meanings, salt: str) -> None:
    meanings.add(salt, "s", [1, 0], keep(connection, 1))
    assert meanings.nearest(salt + "x", "s", [1, 0]) is None
    assert meanings.nearest(salt, "t", [1, 0]) is None
    assert meanings.nearest(salt, "s", [1, 0, 0]) is None, "of another model's length"
    assert meanings.nearest(salt, "s", [1, 0]) == (1.0, b"answer 1")


def test_the_oldest_are_forgotten(connection: Connection, meanings: Meanings, salt: str) -> None:
    for number in range(4):
        meanings.add(salt, "s", [float(number == place) for place in range(4)], keep(connection, number))
    near = [meanings.nearest(salt, "s", [float(number == place) for place in range(4)]) for number in range(4)]
    assert [found is not None and found[0] == 1.0 for found in near] == [False, True, True, True]


def test_one_whose_answer_is_gone_is_not_found(connection: Connection, meanings: Meanings, salt: str) -> None:
    meanings.add(salt, "s", [1, 0], f"{ANSWER}{9:064x}")
    assert meanings.nearest(salt, "s", [1, 0]) is None


def test_a_vector_of_zeros_is_near_to_nothing(connection: Connection, meanings: Meanings, salt: str) -> None:
    meanings.add(salt, "s", [0, 0], keep(connection, 1))
    found = meanings.nearest(salt, "s", [1, 0])
    assert found is not None
    assert found[0] == 0.0
