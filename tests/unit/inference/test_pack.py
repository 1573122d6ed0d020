"""Packed weights: the same sums, in the same order whatever the batch."""

import pytest
import torch
from torch import nn

from services.inference.engine.pack import (
    INT8_KERNELS,
    Kernel,
    Packed,
    PackedLinear,
    exact,
    fastest,
    pack,
    packed_bytes,
)

SHAPES = [(64, 48), (576, 192), (1536, 576), (2048, 300)]
KERNELS = {"exact": exact, **INT8_KERNELS}


@pytest.fixture(autouse=True)
def _inference() -> object:
    with torch.inference_mode():
        yield


def alone(linear: nn.Linear, kernel: Kernel) -> PackedLinear:
    return PackedLinear(linear, Packed([linear], kernel), 0)


def error(values: torch.Tensor, right: torch.Tensor) -> float:
    return float((values - right).norm() / right.norm())


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_packed_linear_computes_what_the_plain_one_does(kernel: str, inputs: int, outputs: int, bias: bool) -> None:
    plain = nn.Linear(inputs, outputs, bias=bias)
    values = torch.randn(3, 5, inputs)
    off = error(alone(plain, KERNELS[kernel])(values), plain(values))
    assert off < (1e-6 if kernel == "exact" else 0.03)


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_rows_result_is_the_same_bits_alone_and_in_any_batch(kernel: str, inputs: int, outputs: int) -> None:
    packed = alone(nn.Linear(inputs, outputs), KERNELS[kernel])
    rows = torch.randn(200, inputs)
    together = packed(rows)
    for count in (1, 2, 3, 4, 7, 16, 33, 128):
        assert torch.equal(packed(rows[:count]), together[:count]), count
    assert torch.equal(packed(rows[77]), together[77])


@pytest.mark.parametrize("kernel", INT8_KERNELS)
def test_a_loud_row_takes_nothing_from_a_quiet_one(kernel: str) -> None:
    plain = nn.Linear(576, 192)
    rows = torch.randn(16, 576)
    rows[3] *= 50
    packed = alone(plain, INT8_KERNELS[kernel])(rows)
    assert max(error(*pair) for pair in zip(packed, plain(rows), strict=True)) < 0.02


@pytest.mark.parametrize("kernel", INT8_KERNELS)
def test_a_loud_channel_takes_little_from_the_quiet_ones_when_it_is_known(kernel: str) -> None:
    plain = nn.Linear(576, 192)
    plain.weight[:, 7] /= 100
    rows = torch.randn(16, 576)
    rows[:, 7] *= 100
    loudest = rows.abs().amax(0)
    smooth = PackedLinear(plain, Packed([plain], INT8_KERNELS[kernel], loudest), 0)
    assert error(smooth(rows), plain(rows)) < 0.04 < error(alone(plain, INT8_KERNELS[kernel])(rows), plain(rows))


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_of_zeros_gives_the_bias(kernel: str) -> None:
    plain = nn.Linear(64, 48)
    assert torch.equal(alone(plain, KERNELS[kernel])(torch.zeros(2, 64)), plain.bias.expand(2, -1))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bias", [True, False])
def test_siblings_compute_what_each_would_alone(kernel: str, bias: bool) -> None:
    linears = [nn.Linear(64, size, bias=bias) for size in (48, 16, 32)]
    packed = Packed(linears, KERNELS[kernel])
    for rows in (torch.randn(5, 64), torch.randn(1, 64)):
        for index, linear in enumerate(linears):
            expected = alone(linear, KERNELS[kernel])(rows)
            torch.testing.assert_close(PackedLinear(linear, packed, index)(rows), expected, rtol=1e-5, atol=1e-5)


def test_a_sibling_that_reads_something_else_than_the_first_is_computed_from_that() -> None:
    linears = [nn.Linear(64, 48), nn.Linear(64, 48)]
    first, second = (PackedLinear(linear, packed, at) for packed in [Packed(linears, exact)] for at, linear in
                     enumerate(linears))  # fmt: skip
    one, other = torch.randn(2, 64), torch.randn(2, 64)
    first(one)
    torch.testing.assert_close(second(other), linears[1](other), rtol=1e-4, atol=1e-5)


def test_all_plain_linears_of_a_model_are_swapped_and_nothing_else() -> None:
    class Odd(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(8, 8), nn.ModuleDict({"inner": nn.Linear(8, 4)}), Odd(4, 4), nn.Linear(4, 2).half())
    pack(model, exact)
    assert isinstance(model[0], PackedLinear)
    assert isinstance(model[1]["inner"], PackedLinear)
    assert [type(module) for module in model[2:]] == [Odd, nn.Linear]
    assert packed_bytes(model) == (8 * 8 + 8 * 4) * 4


def test_the_weight_can_still_be_looked_at() -> None:
    plain = nn.Linear(24, 10)
    torch.testing.assert_close(alone(plain, exact).weight, plain.weight)


def repeated(times: int) -> Kernel:
    def kernel(weight: torch.Tensor, bias: torch.Tensor | None) -> object:
        product = exact(weight, bias)
        return lambda rows: [product(rows) for _ in range(times)][-1]

    return kernel  # type: ignore[return-value]


def test_a_kernel_that_is_clearly_faster_is_chosen() -> None:
    assert fastest({"slow": repeated(100), "fast": exact}, torch.randn(64, 64)) == "fast"


def test_of_kernels_that_are_about_as_fast_every_pod_chooses_the_first() -> None:
    assert {fastest({"one": repeated(100), "other": repeated(95)}, torch.randn(64, 64)) for _ in range(5)} == {"one"}
