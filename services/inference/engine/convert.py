"""GGUF to safetensors: reading GGUF takes many seconds at every start, mapping safetensors takes none."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils
from transformers.utils import logging

from services.inference.engine.errors import SourceError

BYTES_PER_WEIGHT = 4
SPARE_BYTES = 64 << 20


def convert(file: Path, folder: Path, sampling: Mapping[str, Any] | None = None) -> None:
    """Unpacks a GGUF file into `folder`, which is made: weights in float32, tokenizer, chat template and config.

    float32, since it holds every value that a quantised block can stand for exactly.

    Args:
        sampling: what the model's makers advise, in the words of transformers' generation config.

    Raises:
        SourceError: it is not GGUF, its architecture is not one that transformers reads, or there is too little disk.
        OSError: the disk cannot be written.
    """
    try:
        weights = sum(int(tensor.n_elements) for tensor in GGUFReader(file).tensors)
    except ValueError as error:
        raise SourceError(f"{file} is not a GGUF file: {error}.") from error
    needed, free = weights * BYTES_PER_WEIGHT + SPARE_BYTES, shutil.disk_usage(folder.parent).free
    if free < needed:
        raise SourceError(
            f"Too little disk: converting {file.name} needs {needed / 1e9:.1f} GB in {folder.parent}, "
            f"where {free / 1e9:.1f} GB are free."
        )
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # The one bar of transformers that its switch does not reach.
    modeling_gguf_pytorch_utils.__dict__["tqdm"] = lambda tensors, **_: tensors
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise SourceError(f"transformers cannot read {file.name}: {error}") from error
    # What is saved is no longer quantised; with these left in, it would be taken for GGUF when it is loaded.
    model.config.__dict__.pop("quantization_config", None)
    model.hf_quantizer = None  # type: ignore[assignment]
    model.generation_config.update(**(sampling or {}))  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
