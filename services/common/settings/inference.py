"""What an inference pod reads: which models it serves, by what means, and how much at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from services.common.settings.common import CommonSettings


class InferenceSettings(CommonSettings):
    """The inference service's own settings."""

    inference_port: int = Field(8000, ge=1, le=65535, description="HTTP port of an inference pod.")
    inference_threads: int | None = Field(
        None,
        ge=2,
        description="Requests whose connections one pod holds at the same time; by default max_batch + max_queue + 16, "
        "so that a full queue is answered 429 and the probes still get a thread.",
    )
    model: str = Field(
        "bundled",
        description="What to serve: `bundled` (SmolLM2-135M-Instruct), a hub id (`org/name` or "
        "`org/name@revision`), a local folder or a GGUF file; `name=source` gives it a name, a comma "
        "separates several, of which the first is loaded at start.",
    )
    adapters: str = Field(
        "",
        description="LoRA adapters, as `model:adapter=source`, comma-separated; a source is a folder, as peft saves, "
        "or a hub id. Requests name one as `model:adapter`.",
    )
    pinned: str = Field(
        "", description="Names of models, comma-separated, that stay in memory when others need theirs."
    )
    bundled_model: Path | None = Field(
        None,
        description="A folder that holds the bundled model converted already; images carry one, so that a pod starts "
        "from it at once and writes nothing. By default it is converted into the home folder, once.",
    )
    model_memory: int | None = Field(
        None, gt=0, description="Bytes all loaded models may take together; by default 80% of what is free at start."
    )
    hub_offline: bool = Field(False, description="Never ask the model hub; a hub id must then be in its local cache.")
    device: str = Field("auto", description="`auto`, `cpu`, `cuda` or `cuda:N`.")
    quantization: Literal["none", "int8", "nf4"] = Field(
        "none",
        description="How linears are kept: `none` exactly (float32 on CPU, bfloat16 on GPUs), `int8` in 8 bits, which "
        "on CPU is faster too, `nf4` in 4 bits, by bitsandbytes: on CPU only those that make more values than they "
        "read, on GPUs all. The last two cost some accuracy and are refused for a model that is split over several "
        "GPUs.",
    )
    compile: bool = Field(
        False,
        description="Compile the layers by torch.compile, on GPUs to CUDA graphs; readiness waits for it, for minutes. "
        "Not with quantization, adapters, or several GPUs. On CPU it is slower than without.",
    )
    context_length: int | None = Field(None, gt=0, description="Longest prompt plus answer; else the model's own.")
    max_batch: int = Field(32, ge=1, description="Requests in the running batch.")
    max_queue: int = Field(256, ge=0, description="Requests that may wait; one more is answered 429.")
    step_tokens: int = Field(
        512, ge=1, description="Tokens that one engine step computes at most, prefill and decode together."
    )
    step_timeout: float = Field(
        120.0,
        gt=0,
        description="Seconds that one engine step may take; after that `/healthz` and `/readyz` answer 503, so that "
        "whoever runs the pod starts it anew.",
    )
    chunk_tokens: int = Field(
        64,
        ge=1,
        description="Tokens of prompts that a step computes at most while other requests generate: fewer stall them "
        "less, more bring new requests to their first token sooner.",
    )
    prefix_cache: bool = Field(True, description="Keep the KV cache of prompts and answers for those that begin alike.")
    kv_blocks: int | None = Field(None, gt=0, description="KV cache blocks; by default sized from free memory.")
