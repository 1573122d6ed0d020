"""What is computed together is found by running the model, and swapped only for what computes the same."""

import pytest
import torch
from torch import Tensor, nn

from services.inference.engine.fuse import FusedRMSNorm, fuse_norms, siblings


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.out = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 8)

    def forward(self, values: Tensor) -> Tensor:
        query, key = self.query(values), self.key(values)
        return self.out(query + key.sum())


class ToyRMSNorm(nn.Module):
    def __init__(self, offset: float) -> None:
        super().__init__()
        self.weight, self.eps, self.offset = nn.Parameter(torch.randn(8)), 1e-5, offset

    def forward(self, values: Tensor) -> Tensor:
        return values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + self.eps) * (self.weight + self.offset)


def test_linears_that_read_one_tensor_are_siblings_in_the_order_of_their_calls() -> None:
    model = nn.Sequential(Layer(), Layer())
    families = siblings(model, lambda: model(torch.randn(1, 8))).families
    assert families == [[layer.query, layer.key] for layer in model]


def test_a_linear_that_is_called_twice_has_no_siblings() -> None:
    layer = Layer()
    model = nn.Sequential(layer, layer)
    families = siblings(model, lambda: model(torch.randn(1, 8))).families
    assert families == []


def test_the_loudest_input_of_every_linear_is_found() -> None:
    model = Layer()
    values = torch.tensor([[1.0, -5, 0, 0, 0, 0, 0, 2], [-3.0, 4, 0, 0, 0, 0, 0, 1]])
    loudest = siblings(model, lambda: model(values)).loudest
    assert loudest[model.query].tolist() == loudest[model.key].tolist() == [3, 5, 0, 0, 0, 0, 0, 2]
    assert set(loudest) == {model.query, model.key, model.out}


def test_no_hook_is_left_behind() -> None:
    model = Layer()
    siblings(model, lambda: model(torch.randn(1, 8)))
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("offset", [0.0, 1.0], ids=["plain", "from one"])
def test_an_rms_norm_becomes_torchs_own(offset: float) -> None:
    model = nn.Sequential(ToyRMSNorm(offset))
    values = torch.randn(3, 8)
    expected = model(values)
    fuse_norms(model)
    assert isinstance(model[0], FusedRMSNorm)
    torch.testing.assert_close(model(values), expected)


def test_a_norm_that_computes_something_else_stays() -> None:
    model = nn.Sequential(ToyRMSNorm(0.5))
    fuse_norms(model)
    assert type(model[0]) is ToyRMSNorm
