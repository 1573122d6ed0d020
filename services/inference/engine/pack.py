"""Weights in the layout that the processor's matrix kernels want, made once at load.

torch hands a plain `Linear` to a general matrix product that arranges the weights anew at each call. Kernels that keep
them arranged take a third of the time with the same float32 arithmetic, a tenth with 8-bit integers. Linears that read
the same input, as a layer's query, key and value do, become one product. Modules are swapped by class; no modelling
code is touched.

Every product here gives a row the same bits alone and in a batch of any size.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Listing
from typing import Any

import torch
from torch import Tensor, nn

from services.inference.engine.linears import Mapped, is_linear
from services.inference.engine.trace import scripted

Product = Callable[[Tensor], Tensor]
"""From rows [rows, in] to [rows, out]."""
Kernel = Callable[[Tensor, Tensor | None], Product]
"""Arranges a weight [out, in] and a bias [out], and gives the product with them."""

SMOOTHING = 0.65
"""How much of the difficulty of being rounded goes from inputs to weights, 0 to 1: of the values tried the one with the
least perplexity on two texts, 2.1 and 1.2 percent above full precision in windows of 256 tokens."""
CLEARLY = 0.7
"""Part of another kernel's time that is not noise."""
TURNS = 20
"""How often each kernel is tried; the quickest try counts."""
SMALLEST = 1e-30
"""What an all-zero row is divided by instead of its largest value."""


class _Exact(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        self.bias: Tensor | None = bias

    def forward(self, rows: Tensor) -> Tensor:
        alone = rows.size(0) == 1
        if alone:  # for a single row oneDNN takes another kernel, which adds up in another order
            rows = rows.expand(2, -1)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, "none", [], "")
        return result[:1] if alone else result


class _Int8Fbgemm(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        integers, scales = _quantized(weight)
        zeros = torch.zeros(len(scales), dtype=torch.long)
        with warnings.catch_warnings():
            # torch will drop its quantised number types one day; then oneDNN's kernel below remains.
            warnings.simplefilter("ignore", UserWarning)
            whole = torch._make_per_channel_quantized_tensor(integers, scales.double(), zeros, 0)
        self.packed = torch.ops.quantized.linear_prepack(whole, None)
        self.bias: Tensor | None = bias

    def forward(self, rows: Tensor) -> Tensor:
        largest = rows.abs().amax([-1], True).clamp_min_(1e-30)
        scaled = rows / largest
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        result: Tensor = multiply(scaled, 2 / 255, 128, self.packed).mul_(largest)
        return result if self.bias is None else result.add_(self.bias)


class _Int8Onednn(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        integers, self.scales = _quantized(weight)
        self.columns = integers.t().contiguous()
        self.bias: Tensor | None = bias

    def forward(self, rows: Tensor) -> Tensor:
        largest = rows.abs().amax([-1], True).clamp_min_(1e-30).div_(127)
        sums = torch._int_mm((rows / largest).round_().to(torch.int8), self.columns)
        result = sums.float().mul_(self.scales).mul_(largest)
        return result if self.bias is None else result.add_(self.bias)


def exact(weight: Tensor, bias: Tensor | None) -> Product:
    """float32, by oneDNN with its blocked layout."""
    return scripted(_Exact(weight, bias))


def int8_fbgemm(weight: Tensor, bias: Tensor | None) -> Product:
    """8-bit integers, by FBGEMM: weights scaled by output channel, activations by row.

    The kernel takes one scale for all activations, and with that a loud row would drown a quiet one. So each row is
    divided by its largest absolute value, quantised with the scale that fits [-1, 1], and multiplied back.
    """
    return scripted(_Int8Fbgemm(weight, bias))


def int8_onednn(weight: Tensor, bias: Tensor | None) -> Product:
    """The same by oneDNN's integer product, with the scales applied outside."""
    return scripted(_Int8Onednn(weight, bias))


INT8_KERNELS: dict[str, Kernel] = {"fbgemm": int8_fbgemm, "onednn": int8_onednn}


def fastest(kernels: dict[str, Kernel], weight: Tensor, *, rows: Iterable[int] = (1, 16)) -> str:
    """The name of the kernel for such a weight on this machine, by its time over batches of so many rows.

    The first of them, unless another takes clearly less: pods of a kind must choose alike, or an answer that one began
    and another ends is not the same to the bit. They take turns, so that what else the machine does meets all of them.
    """
    products = {name: kernel(weight, None) for name, kernel in kernels.items()}
    taken = dict.fromkeys(products, 0.0)
    for count in rows:
        values = torch.randn(count, weight.shape[1])
        turns = [{name: _seconds(product, values) for name, product in products.items()} for _ in range(TURNS)]
        for name in products:
            taken[name] += min(turn[name] for turn in turns)
    first, best = next(iter(taken)), min(taken, key=lambda name: taken[name])
    return best if taken[best] < CLEARLY * taken[first] else first


class Packed(nn.Module):
    """The packed weights of linears that read the same input, multiplied in one product."""

    def __init__(self, linears: Listing[nn.Linear], kernel: Kernel, loudest: Tensor | None = None) -> None:
        """
        Args:
            loudest: the largest absolute values seen at each input, [in]; with them, inputs and weights share the
                difficulty of being rounded.
        """
        super().__init__()
        self.sizes = [linear.out_features for linear in linears]
        biases = [linear.bias for linear in linears]
        bias = torch.cat([one for one in biases if one is not None]) if biases[0] is not None else None
        weight = torch.cat([linear.weight.float() for linear in linears])
        self.inverse: Tensor | None = None
        """What inputs are multiplied by first."""
        if loudest is not None:
            scale = _smoothing(weight, loudest)
            weight, self.inverse = weight * scale, 1 / scale
        self.product = kernel(weight, bias)
        self._nbytes = weight.numel() * (4 if kernel is exact else 1)
        self._input: Tensor | None = None
        self._parts: tuple[Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return self._nbytes

    def part(self, index: int, values: Tensor) -> Tensor:
        """The output of linear `index` for `values`, […, in]: computed for all of them when the first is asked."""
        if values is not self._input:
            rows = values.reshape(-1, values.shape[-1])
            if self.inverse is not None:
                rows = rows * self.inverse
            result = self.product(rows).view(*values.shape[:-1], -1)
            if len(self.sizes) == 1:
                return result
            self._input, self._parts = values, torch.split(result, self.sizes, -1)
        found = self._parts[index]
        if index == len(self.sizes) - 1:
            self._input, self._parts = None, ()
        return found


class PackedLinear(nn.Module):
    """A `Linear` whose weight is packed, alone or with those of its siblings."""

    def __init__(self, linear: nn.Linear, packed: Packed, index: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._index = index
        self._shared = (packed,)  # not as a module: TorchScript can't have oneDNN's weights in two places …
        if index == 0:
            self._own = packed  # … but in one it must

    @property
    def packed(self) -> Packed:
        """The weights, also those of its siblings."""
        return self._shared[0]

    def __getattr__(self, name: str) -> Any:
        """`weight` as the product has it, [out, in], for code that looks at it instead of calling the module. Not a
        property: TorchScript looks at all of those, and this one is work."""
        if name != "weight":
            return super().__getattr__(name)
        columns: Tensor = self(torch.eye(self.in_features))
        return (columns if self.bias is None else columns - self.bias).t()

    def forward(self, values: Tensor) -> Tensor:
        """[…, in] to […, out]."""
        return self.packed.part(self._index, values)


def can_pack(module: nn.Module) -> bool:
    """Whether a module is a linear on a CPU, computed in float32, for which there are kernels, and not packed yet."""
    if not (isinstance(module, nn.Linear) and is_linear(module) and module.weight.device.type == "cpu"):
        return False
    if not module.weight.numel():
        return False
    float32 = isinstance(module, Mapped) or module.weight.dtype == torch.float32
    return float32 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def pack(
    model: nn.Module,
    kernel: Kernel,
    families: Iterable[Listing[nn.Module]] = (),
    loudest: Mapping[nn.Module, Tensor] | None = None,
    *,
    only: Callable[[nn.Linear], bool] = lambda _linear: True,
) -> None:
    """Swaps the model's linears for packed ones, as far as they can be packed. One by one loses its plain weight.

    Args:
        families: linears that read the same input, in the order in which they are called.
        loudest: for kernels that round, the largest absolute values seen at each input of a linear.
        only: which of the linears.
    """
    loudest = loudest or {}
    places: dict[nn.Module, PackedLinear] = {}

    def place(linears: Listing[nn.Linear]) -> None:
        packed = Packed(linears, kernel, loudest.get(linears[0]))
        for index, linear in enumerate(linears):
            places[linear] = PackedLinear(linear, packed, index)
            linear.weight = nn.Parameter(linear.weight.new_empty(0), requires_grad=False)

    for family in families:
        linears = [module for module in family if isinstance(module, nn.Linear) and can_pack(module) and only(module)]
        if len(linears) > 1 and len({linear.bias is None for linear in linears}) == 1:
            place(linears)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if child not in places and isinstance(child, nn.Linear) and can_pack(child) and only(child):
                place([child])
            if child in places:
                setattr(module, name, places[child])


def packed_bytes(model: nn.Module) -> int:
    """Bytes of all packed weights of a model; a weight that an embedding shares is counted there, and here again."""
    return sum(packed.nbytes for packed in {m.packed for m in model.modules() if isinstance(m, PackedLinear)})


def _smoothing(weight: Tensor, loudest: Tensor) -> Tensor:
    """What inputs are to be divided by, and the columns of a weight multiplied, so that no input is much louder than
    others, [in].

    Xiao et al. 2023, "SmoothQuant". Without it the few channels that transformers keep loud leave the others a handful
    of steps.
    """
    largest = weight.abs().amax(0).clamp_min(SMALLEST)
    scale = loudest.clamp_min(SMALLEST) ** SMOOTHING / largest ** (1 - SMOOTHING)
    return (scale / scale.log().mean().exp()).clamp(1e-4, 1e4)


def _quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weight as 8-bit integers [out, in], and the scale of each output channel [out]."""
    scales = weight.abs().amax(1).clamp_min(SMALLEST) / _steps()
    return (weight / scales[:, None]).round_().to(torch.int8), scales


def _steps() -> int:
    """The largest integer of a weight. Without the processor's instruction for such products (VNNI), kernels add two of
    them up in 16 bits, which 255 * 63 * 2 just fits."""
    return 127 if torch.cpu._is_vnni_supported() else 63


def _seconds(product: Product, rows: Tensor) -> float:
    begin = time.perf_counter()
    product(rows)
    return time.perf_counter() - begin
