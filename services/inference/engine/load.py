"""A model in memory, ready to generate: device, number format, weights, KV memory."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging

from services.common.settings import InferenceSettings
from services.inference.engine.attention import ATTENTION, LayerShape
from services.inference.engine.blocks import BlockPool
from services.inference.engine.check import check, expectation, sample_ids
from services.inference.engine.errors import SourceError, UnsupportedModel
from services.inference.engine.fuse import fuse_norms, siblings
from services.inference.engine.linears import file_dtype, straighten, widen
from services.inference.engine.lora import Adapters
from services.inference.engine.machine import free_memory, use_own_cores
from services.inference.engine.nf4 import pack_nf4, scale_bytes
from services.inference.engine.pack import INT8_KERNELS, can_pack, exact, fastest, pack, packed_bytes
from services.inference.engine.parallel import Leader, lead, least, local, placement
from services.inference.engine.ranks import rank, ranks
from services.inference.engine.run import Runner, layer_shapes
from services.inference.engine.schedule import Work
from services.inference.engine.sequence import Sampling, Sequence
from services.inference.engine.source import resolve, resolve_adapter
from services.inference.engine.weigh import Weight, weigh

BLOCK_SIZE = 16
USUAL_CONTEXT = 2048
"""Tokens of a request that the KV memory is sized for, where the model could take more."""
MEMORY_SHARE = {"cpu": 0.25, "cuda": 0.9}
"""Part of the free memory that the KV memory may take: a laptop does other things too, a GPU does not."""

Phase = Callable[[str], None]
MakeRoom = Callable[[int], int]
"""Sees that so many bytes are within the budget of all models, and tells how many more are."""


@dataclass
class Loaded:
    """A model that is ready to generate."""

    runner: Runner | Leader
    tokenizer: Any
    pool: BlockPool
    context_length: int
    vocabulary: int
    eos_ids: frozenset[int]
    defaults: Sampling
    bytes: int
    twice_at: float = math.inf
    """Tokens of context at which a token costs twice what the first one does."""
    quantization: str = "none"
    kernel: str = ""
    """What multiplies the weights."""
    seconds: dict[str, float] = field(default_factory=dict)


def load(
    source: str,
    settings: InferenceSettings,
    *,
    adapters: Mapping[str, str] | None = None,
    phase: Phase = lambda _name: None,
    make_room: MakeRoom = lambda _bytes: sys.maxsize,
) -> Loaded:
    """Brings the model that `source` names into memory.

    Args:
        adapters: sources of its LoRA adapters, by the names that requests call them.
        phase: told the name of each phase as it begins: `resolve`, `map`, `pack`, `warm-up`.
        make_room: asked before memory is taken, with all that the model will have then.

    Returns:
        The model, with the seconds that each phase took.

    Raises:
        SourceError: it cannot be had, or does not fit into memory.
        UnsupportedModel: it does not compute in a packed batch.
    """
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    seconds: dict[str, float] = {}
    clock = time.monotonic()

    def timed(name: str) -> None:
        nonlocal clock
        seconds[name], clock = time.monotonic() - clock, time.monotonic()

    phase("resolve")
    folder = resolve(source, settings.home, bundled=settings.bundled_model, offline=settings.hub_offline)
    if adapters and ranks() > 1:
        raise UnsupportedModel("A model that is split over several ranks has no adapters.")
    if settings.compile and (adapters or ranks() > 1 or settings.quantization != "none"):
        raise UnsupportedModel("A model that is compiled has no adapters, is not quantised, and is in one piece.")
    if settings.quantization != "none" and ranks() > 1:
        raise UnsupportedModel("A model that is split over several ranks is not quantised.")
    adapter_folders = {
        name: resolve_adapter(where, offline=settings.hub_offline) for name, where in (adapters or {}).items()
    }
    timed("resolve")
    phase("map")
    use_own_cores()
    device = pick_device(settings.device)
    # A split linear is more than its product: transformers hangs the sum over the ranks on it. A compiler packs itself.
    packs = ranks() == 1 and not settings.compile
    held, peak = _weighed(folder, device, settings.quantization, packs=packs)
    make_room(held)
    if peak > (free := free_memory(device)):
        raise SourceError(f"Too little memory: the weights need {peak / 1e9:.1f} GB, {free / 1e9:.1f} GB are free.")
    model = _map_weights(folder, device, settings.quantization, packs=packs)
    tokenizer = _load_tokenizer(folder)
    weights = model.num_parameters(exclude_embeddings=True)
    timed("map")
    phase("pack")
    kernel, shapes = _pack(model, tokenizer, settings.quantization, packs=packs)
    timed("pack")
    phase("warm-up")
    loaded = _warm_up(model, shapes, tokenizer, adapter_folders, settings=settings, make_room=make_room)
    timed("warm-up")
    loaded.kernel, loaded.quantization, loaded.seconds = kernel, settings.quantization, seconds
    loaded.twice_at = _twice_at(model, shapes, weights)
    return loaded


def _twice_at(model: PreTrainedModel, shapes: Iterable[LayerShape], weights: int) -> float:
    """The context, in tokens, at which attention takes as long as the products with the weights.

    A token is multiplied once with each weight, and in each query head with each key and value of its context; the
    latter products run at about half the speed, by measurement.
    """
    heads: int = model.config.get_text_config().num_attention_heads
    return weights / (2 * sum(heads * (shape.key_dim + shape.value_dim) for shape in shapes))


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one, else the CPU. Each rank of a split model has a GPU of its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name, rank()) if name == "cuda" and ranks() > 1 else torch.device(name)


def _weighed(folder: Path, device: torch.device, quantization: str, *, packs: bool) -> Weight:
    """What this rank's part of the weights will take."""
    try:
        held, peak = weigh(folder, device, quantization, packs=packs)
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise SourceError(f"transformers cannot load the model in {folder}: {error}") from error
    return Weight(held // ranks(), peak // ranks())


def _map_weights(folder: Path, device: torch.device, quantization: str, *, packs: bool) -> PreTrainedModel:
    # On CPU exact: half precision there is emulated on most machines, slower than float32 and less precise.
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    more = placement(folder, device)
    if (config := _bitsandbytes(device, quantization)) is not None:
        more["quantization_config"] = config
    widens = device.type == "cpu" and packs
    mapped = (file_dtype(folder) if widens else None) or dtype
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=mapped, use_safetensors=True, trust_remote_code=False, **more
        )
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise SourceError(f"transformers cannot load the model in {folder}: {error}") from error
    model.requires_grad_(False)
    if widens:
        straighten(model)
        if mapped != dtype:
            widen(model)
    return model


def _bitsandbytes(device: torch.device, quantization: str) -> BitsAndBytesConfig | None:
    """How bitsandbytes quantises the weights while they are mapped, on GPUs: nf4 (Dettmers et al. 2023, "QLoRA") and
    int8 (Dettmers et al. 2022, "LLM.int8()"). On CPU `pack` and `nf4` do it, by what the model reads."""
    if device.type == "cpu" or quantization == "none":
        return None
    if quantization == "nf4":
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]


def _load_tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise SourceError(f"transformers cannot load the tokenizer in {folder}: {error}") from error


@torch.inference_mode()
def _pack(model: PreTrainedModel, tokenizer: Any, quantization: str, *, packs: bool) -> tuple[str, list[LayerShape]]:
    """Puts our attention into the model and arranges its weights for this machine.

    Returns:
        The name of the kernel that multiplies the weights, and what each layer keeps of a token.
    """
    expected = expectation(model, tokenizer)
    linears = [module for module in model.modules() if can_pack(module)] if packs else []
    rounds = bool(linears) and quantization != "none"
    if quantization != "none" and not rounds and model.device.type == "cpu":
        raise UnsupportedModel(
            f"Models of type '{model.config.model_type}' have no linears that can be quantised on this machine."
        )
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    ids = torch.tensor([sample_ids(tokenizer)[:longest] if rounds else [0]], device=model.device)
    families, loudest, power = siblings(model, lambda: model(ids, use_cache=False))
    try:
        model.set_attn_implementation(ATTENTION)
    except ValueError as error:
        raise UnsupportedModel(
            f"Models of type '{model.config.model_type}' do not let attention be replaced."
        ) from error
    shapes = layer_shapes(model)
    kernel = "torch" if quantization == "none" else f"bitsandbytes-{quantization}"
    if rounds:  # what is rounded is checked before: rounding is no error, but would hide one
        check(model, shapes, expected, quantized=False)
        sizes = Counter(linear.weight.shape for linear in linears if isinstance(linear, nn.Linear))
        name = fastest(INT8_KERNELS, torch.randn(sizes.most_common(1)[0][0]))
        kernel = f"{name}-int8"
        fuse_norms(model)
        if quantization == "nf4":
            kernel = f"bitsandbytes-nf4, {kernel}"
            pack_nf4(model, power)
        pack(model, INT8_KERNELS[name], families, loudest)
    else:
        if linears:
            kernel = "onednn-float32"
            fuse_norms(model)
            pack(model, exact, families)
        check(model, shapes, expected, quantized=quantization != "none")
    return kernel, shapes


def _warm_up(
    model: PreTrainedModel,
    shapes: list[LayerShape],
    tokenizer: Any,
    adapter_folders: Mapping[str, Path],
    *,
    settings: InferenceSettings,
    make_room: MakeRoom,
) -> Loaded:
    adapters = Adapters(model, adapter_folders) if adapter_folders else None
    context = _context_length(model, settings)
    pool = BlockPool(least(_pool_blocks(model, shapes, context, settings, make_room)), BLOCK_SIZE)
    runner = Runner(model, shapes, adapters, blocks=pool.count, block_size=BLOCK_SIZE)
    _first_step(runner, pool)
    if settings.compile:
        runner.compile(max(settings.step_tokens, settings.max_batch))
    elif model.device.type == "cpu" and ranks() == 1:
        runner.trace(context)
    if adapters is not None:
        adapters.check(runner.forward, pool)
    generation = model.generation_config
    eos = generation.eos_token_id if generation is not None else None
    eos_ids = {eos} if isinstance(eos, int) else set(eos or ())
    tokenizer.decode(tokenizer("warm").input_ids)
    return Loaded(
        runner=lead(runner),
        tokenizer=tokenizer,
        pool=pool,
        context_length=min(context, pool.tokens),
        vocabulary=model.config.get_text_config().vocab_size,
        eos_ids=frozenset(eos_ids | {tokenizer.eos_token_id} - {None}),
        defaults=Sampling(
            temperature=_default(generation, "temperature", 1.0),
            top_k=_default(generation, "top_k", 0),
            top_p=_default(generation, "top_p", 1.0),
        ),
        bytes=_weights(model) + runner.bytes,
    )


def _weights(model: PreTrainedModel) -> int:
    """Bytes of the weights, shared ones counted once."""
    return sum(local(weight).nbytes for weight in model.parameters()) + packed_bytes(model) + scale_bytes(model)


def _default(generation: Any, name: str, fallback: Any) -> Any:
    """What the model's makers recommend, where they say so."""
    value = getattr(generation, name, None)
    return fallback if value is None else value


def _context_length(model: PreTrainedModel, settings: InferenceSettings) -> int:
    config = model.config.get_text_config()
    limits = [
        getattr(config, "max_position_embeddings", None),
        # Beyond a chunk, models that attend in chunks need a mask that the runner does not make.
        getattr(config, "attention_chunk_size", None),
        settings.context_length,
    ]
    return min((limit for limit in limits if limit), default=USUAL_CONTEXT)


def _pool_blocks(
    model: PreTrainedModel, shapes: list[LayerShape], context: int, settings: InferenceSettings, make_room: MakeRoom
) -> int:
    """Enough for a full batch of usual requests, within a share of the free memory and within the models' budget."""
    token_values = sum(shape.heads * (shape.key_dim + shape.value_dim) for shape in shapes)
    block_bytes = BLOCK_SIZE * token_values * model.dtype.itemsize
    if settings.kv_blocks is not None:
        make_room(_weights(model) + settings.kv_blocks * block_bytes)
        return settings.kv_blocks
    one = -(-min(context, USUAL_CONTEXT) // BLOCK_SIZE)
    wanted = max(settings.max_batch * one, -(-context // BLOCK_SIZE))
    left = make_room(_weights(model) + one * block_bytes)
    free = int(free_memory(model.device) * MEMORY_SHARE.get(model.device.type, 0.25))
    blocks = min(wanted, free // block_bytes, one + left // block_bytes)
    if blocks < 1:
        raise SourceError(f"Too little memory: not one KV cache block of {block_bytes} bytes can be had.")
    return blocks


def _first_step(runner: Runner, pool: BlockPool) -> None:
    """Takes a step, so that the first request does not pay for what libraries do at their first call."""
    sequence = Sequence([0], 1, 1, blocks=pool.take(1))
    runner.forward([Work(sequence, 1)])
    pool.give_back(sequence.blocks)
