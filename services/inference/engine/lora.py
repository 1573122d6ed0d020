"""LoRA adapters over one model (Hu et al. 2021): each request may have its own, all are computed in one batch.

An adapter adds `scale * up(down(x))` to some linears, where `down` has few rows. Those of all adapters stand in one
matrix, one segment an adapter; `x` goes through it, what falls into segments of other adapters is set to zero, and so
does through `up`. That is two small products a linear for any mix of adapters, and a row's result does not depend on
its neighbours. The model's linears stay what they are: a forward hook adds to what they return.

peft reads the files; its own layers know one adapter a batch row, not one a token.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Listing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from services.inference.engine.blocks import BlockPool
from services.inference.engine.errors import SourceError
from services.inference.engine.pack import exact, pack
from services.inference.engine.schedule import Work
from services.inference.engine.sequence import Sequence

WEIGHT = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "eva_config", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout",
    "peft_type", "peft_version", "r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type",
    "use_rslora",
}  # fmt: skip
"""Fields of peft's configuration that say how the adapter was trained, or that are read here."""
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Ways to begin the training that leave the model's own weights as they are; the others subtract from them."""


@dataclasses.dataclass(frozen=True)
class Factors:
    """What an adapter adds to one linear: down [rank, in], and up [out, rank], which holds the scale too."""

    down: Tensor
    up: Tensor


class Adapters(nn.Module):
    """The adapters of a model. A module of the model, so that their memory counts as its."""

    def __init__(self, model: PreTrainedModel, folders: Mapping[str, Path]) -> None:
        """Reads the adapters and attaches them.

        Raises:
            SourceError: one of them cannot be read, or cannot be applied to this model.
        """
        super().__init__()
        read = {name: _read(name, folder, model) for name, folder in folders.items()}
        widths = [max(len(factors.down) for factors in adapter.values()) for adapter in read.values()]
        starts = [sum(widths[:index]) for index in range(len(widths))]
        self._rows = {name: index for index, name in enumerate(read, start=1)}
        # Row 0 is of requests without an adapter.
        segments = torch.zeros(len(read) + 1, sum(widths), dtype=model.dtype, device=model.device)
        for row, (start, width) in enumerate(zip(starts, widths, strict=True), start=1):
            segments[row, start : start + width] = 1
        self._segments = segments
        self._mask: Tensor | None = None
        self._targets: dict[str, nn.Module] = {}
        self.added = nn.ModuleList()
        for path in dict.fromkeys(path for adapter in read.values() for path in adapter):
            module = self._targets[path] = model.get_submodule(path)
            parts = [
                (start, adapter[path]) for start, adapter in zip(starts, read.values(), strict=True) if path in adapter
            ]
            added = _joined(parts, sum(widths))
            pack(added, exact)
            self.added.append(added)
            module.register_forward_hook(self._hook(added))
        model.add_module("forebay_adapters", self)

    def begin(self, plan: Listing[Work]) -> bool:
        """Tells which rows of the next forward belong to which adapter; returns whether any does."""
        adapted = any(work.sequence.adapter is not None for work in plan)
        if adapted:
            rows = [self._rows.get(work.sequence.adapter or "", 0) for work in plan for _ in range(work.count)]
            self._mask = self._segments.index_select(0, torch.tensor(rows, device=self._segments.device))
        else:
            self._mask = None
        return adapted

    def check(self, forward: Callable[[list[Work]], object], pool: BlockPool) -> None:
        """Computes a text with an adapter and sees that each linear is called once, with the rows of the step.

        Raises:
            SourceError: it is not so, as with linears of single experts.
        """
        seen: dict[str, list[int]] = defaultdict(list)

        def note(path: str) -> Any:
            return lambda _module, inputs, _output: seen[path].append(inputs[0].shape[:-1].numel())

        sequence = Sequence([0] * 3, 3, 1, adapter=next(iter(self._rows)), blocks=pool.take(1))
        # Before the others, which would fail on rows that are not the step's.
        hooks = [module.register_forward_hook(note(path), prepend=True) for path, module in self._targets.items()]
        try:
            forward([Work(sequence, 3)])
        except RuntimeError:
            if all(rows == [3] for rows in seen.values()):
                raise
        finally:
            pool.give_back(sequence.blocks)
            for hook in hooks:
                hook.remove()
        for path in self._targets:
            if seen[path] != [3]:
                raise SourceError(f"An adapter changes '{path}', which does not compute each token once.")

    def _hook(self, added: nn.Sequential) -> Any:
        down, up = added

        def add(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if self._mask is not None:
                output += up(down(inputs[0]) * self._mask.view(*output.shape[:-1], -1))
            return output

        return add


def _joined(parts: Listing[tuple[int, Factors]], width: int) -> nn.Sequential:
    """The factors of several adapters, each from its start on, in one pair of linears of `width` between them."""
    first = parts[0][1]
    down = nn.Linear(first.down.shape[1], width, bias=False, dtype=first.down.dtype, device=first.down.device)
    up = nn.Linear(width, first.up.shape[0], bias=False, dtype=first.up.dtype, device=first.up.device)
    with torch.no_grad():
        down.weight.zero_()
        up.weight.zero_()
        for start, factors in parts:
            end = start + len(factors.down)
            down.weight[start:end] = factors.down
            up.weight[:, start:end] = factors.up
    return nn.Sequential(down, up).requires_grad_(False)


def _read(name: str, folder: Path, model: PreTrainedModel) -> dict[str, Factors]:
    """What an adapter adds, by the path of the linear in the model."""
    # Here, not above: it takes seconds, and most pods have no adapters.
    from peft import LoraConfig, PeftConfig  # noqa: PLC0415
    from peft.utils import load_peft_weights  # noqa: PLC0415
    from peft.utils.other import get_pattern_key  # noqa: PLC0415

    config = PeftConfig.from_pretrained(str(folder))
    if type(config) is not LoraConfig:
        raise SourceError(f"The adapter '{name}' is not LoRA but {config.peft_type}, which is not supported.")
    plain = LoraConfig()
    asked = {field.name for field in dataclasses.fields(config)} - HARMLESS
    asked = {field for field in asked if getattr(config, field) != getattr(plain, field)}
    if config.init_lora_weights not in PLAIN_STARTS:
        asked.add("init_lora_weights")
    if asked:
        wants = ", ".join(f"{field}={getattr(config, field)}" for field in sorted(asked))
        raise SourceError(f"The adapter '{name}' has {wants}, which is not supported.")

    factors: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in load_peft_weights(str(folder), device="cpu").items():
        found = WEIGHT.fullmatch(key)
        if found is None:
            raise SourceError(f"The adapter '{name}' holds '{key}'; only linears can be adapted.")
        factors[found["module"]][found["part"]] = tensor.to(device=model.device, dtype=model.dtype)
    adapter = {}
    modules = dict(model.named_modules())
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    alphas = config.alpha_pattern or {}
    for path, pair in factors.items():
        module = modules.get(path)
        fits = set(pair) == {"A", "B"} and _shape(module) == (pair["B"].shape[0], pair["A"].shape[1])
        if not fits or module is head:
            raise SourceError(f"The adapter '{name}' changes '{path}', which is no such linear in this model.")
        rank = len(pair["A"])
        alpha = alphas.get(get_pattern_key(list(alphas), path), config.lora_alpha)
        scale = alpha / (rank**0.5 if config.use_rslora else rank)
        adapter[path] = Factors(pair["A"], pair["B"] * scale)
    if not adapter:
        raise SourceError(f"The adapter '{name}' is empty.")
    return adapter


def _shape(module: Any) -> tuple[int, int] | None:
    """The size of a linear's output and input, whatever its class; None for other modules."""
    return (module.out_features, module.in_features) if hasattr(module, "in_features") else None
