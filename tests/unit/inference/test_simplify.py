"""A recorded forward pass without what was known before: fewer nodes, the same bits."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, jit, nn

from services.inference.engine.simplify import simplify

ROWS, OTHER_ROWS = 5, 7
"""Of the recorded examples."""


class Half(nn.Module):
    """Gives each row the sum of its two halves, and the rows' numbers doubled."""

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        half = rows.shape[1] // 2
        return rows[:, :half] + rows[:, half:], torch.arange(rows.shape[0] * 2).reshape(-1, 2)[:, :1]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.halves = Half()

    def forward(self, rows: Tensor) -> Tensor:
        first, numbers = self.halves(rows)
        again, _ = self.halves(rows)
        result: Tensor = first * again + numbers
        return result


@pytest.fixture
def recorded() -> Any:
    module = Twice()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that recording is deprecated
        recorded, again = (jit.trace(module, torch.rand(rows, 6)) for rows in (ROWS, OTHER_ROWS))  # type: ignore[no-untyped-call]
    simplify(recorded.graph, again.graph)
    return recorded


def kinds(recorded: Any) -> list[str]:
    return [node.kind() for node in recorded.graph.nodes()]


@pytest.mark.parametrize("rows", [1, ROWS, 6, 40])
def test_any_number_of_rows_is_computed_to_the_same_bits(recorded: Any, rows: int) -> None:
    given = torch.rand(rows, 6)
    assert torch.equal(recorded(given), Twice()(given))


def test_no_module_is_called(recorded: Any) -> None:
    assert "prim::CallMethod" not in kinds(recorded)


def test_a_size_of_the_model_is_not_worked_out_again(recorded: Any) -> None:
    assert "aten::floor_divide" not in kinds(recorded)
    assert kinds(recorded).count("aten::size") == 1, "but that of the rows is"


def test_what_is_there_twice_is_computed_once(recorded: Any) -> None:
    assert kinds(recorded).count("aten::add") == 2, "of the halves, once; and of the rows' numbers"
