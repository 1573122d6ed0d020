"""Packed weights: the same sums, in the same order whatever the batch."""

import pytest
import torch
from torch import nn

from services.inference.engine.pack import PackedLinear, pack, packed_bytes

SHAPES = [(64, 48), (576, 192), (1536, 576), (2048, 300)]


@pytest.fixture(autouse=True)
def _inference() -> object:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_linear_computes_what_the_plain_one_does(inputs: int, outputs: int, bias: bool) -> None:
    plain = nn.Linear(inputs, outputs, bias=bias)
    values = torch.randn(3, 5, inputs)
    torch.testing.assert_close(PackedLinear(plain)(values), plain(values), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_rows_result_is_the_same_bits_alone_and_in_any_batch(inputs: int, outputs: int) -> None:
    packed = PackedLinear(nn.Linear(inputs, outputs))
    rows = torch.randn(200, inputs)
    together = packed(rows)
    for count in (1, 2, 3, 4, 7, 16, 33, 128):
        assert torch.equal(packed(rows[:count]), together[:count]), count
    assert torch.equal(packed(rows[77]), together[77])


def test_all_plain_linears_of_a_model_are_swapped_and_nothing_else() -> None:
    class Odd(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(8, 8), nn.ModuleDict({"inner": nn.Linear(8, 4)}), Odd(4, 4), nn.Linear(4, 2).half())
    pack(model)
    assert isinstance(model[0], PackedLinear)
    assert isinstance(model[1]["inner"], PackedLinear)
    assert [type(module) for module in model[2:]] == [Odd, nn.Linear]
    assert packed_bytes(model) == (8 * 8 + 8 * 4) * 4


def test_the_weight_can_still_be_looked_at() -> None:
    plain = nn.Linear(24, 10)
    assert torch.equal(PackedLinear(plain).weight, plain.weight)
