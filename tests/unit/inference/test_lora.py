"""LoRA adapters: each request by its own, in one batch, as peft computes them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from prometheus_client import CollectorRegistry
from torch import nn
from transformers import AutoModelForCausalLM

from services.common.metrics import EngineMetrics
from services.common.settings import InferenceSettings
from services.inference.engine.engine import Engine
from services.inference.engine.errors import SourceError
from services.inference.engine.load import Loaded, load
from services.inference.engine.schedule import Scheduler, Work
from services.inference.engine.sequence import Sampling, Sequence
from services.inference.engine.source import resolve_adapter
from tests.unit.inference.tiny import save_tiny

# Of peft, which makes adapters here and asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning", "ignore::UserWarning:peft.*"
)

PROMPTS = [[3, 14, 15, 92, 65], list(range(40, 75)), [7], [100 + i % 9 for i in range(20)]]
ANSWER = 12
GREEDY = Sampling(temperature=0)
SETTINGS = InferenceSettings(kv_blocks=64, device="cpu")
ATTENTION = ["q_proj", "v_proj"]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

MakeAdapter = Callable[..., Path]


@pytest.fixture
def make_adapter(tiny_folder: Path, tmp_path: Path) -> MakeAdapter:
    """Has peft make a random adapter for the tiny Llama, large enough to change what it says."""

    def make(name: str, *, base: Path = tiny_folder, seed: int = 1, **config: Any) -> Path:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base)
        adapted = get_peft_model(
            model, LoraConfig(**({"r": 4, "target_modules": ALL, "task_type": "CAUSAL_LM"} | config))
        )
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.2)
        adapted.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def by_peft(base: Path, adapter: Path | None, prompt: list[int]) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, adapter) if adapter is not None else model
    ids = torch.tensor([prompt])
    made = adapted.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER, do_sample=False, pad_token_id=0
    )
    return made[0, len(prompt) :].tolist()


def greedy(loaded: Loaded, asked: list[tuple[list[int], str | None]], *, step_tokens: int = 512) -> list[list[int]]:
    """What the engine's parts generate when all come at once."""
    scheduler = Scheduler(loaded.pool, max_batch=len(asked), step_tokens=step_tokens)
    sequences = [Sequence(list(ids), len(ids), ANSWER, GREEDY, adapter=name) for ids, name in asked]
    for one in sequences:
        scheduler.add(one)
    running = set(sequences)
    while running:
        plan = scheduler.plan()
        logits = loaded.runner.forward(plan)
        scheduler.commit(plan, logits.argmax(-1).tolist())
        for one in [one for one in running if one.generated == ANSWER]:
            scheduler.remove(one)
            running.remove(one)
    return [one.ids[one.prompt_length :] for one in sequences]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"target_modules": ATTENTION},
        {"r": 7, "lora_alpha": 3},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 32}},
        {"layers_to_transform": [1]},
    ],
    ids=str,
)
def test_an_adapter_generates_what_peft_does(
    tiny_folder: Path, make_adapter: MakeAdapter, config: dict[str, Any]
) -> None:
    adapter = make_adapter("one", **config)
    loaded = load(str(tiny_folder), SETTINGS, adapters={"one": str(adapter)})
    expected = [by_peft(tiny_folder, adapter, prompt) for prompt in PROMPTS]
    assert greedy(loaded, [(prompt, "one") for prompt in PROMPTS]) == expected
    assert greedy(loaded, [(prompt, "one") for prompt in PROMPTS], step_tokens=7) == expected, "in chunks"
    assert expected != [by_peft(tiny_folder, None, prompt) for prompt in PROMPTS]


def test_base_and_adapters_in_one_batch_generate_what_each_does_alone(
    tiny_folder: Path, make_adapter: MakeAdapter
) -> None:
    adapters = {"one": make_adapter("one"), "two": make_adapter("two", seed=2, r=3, target_modules=ATTENTION)}
    loaded = load(str(tiny_folder), SETTINGS, adapters={name: str(folder) for name, folder in adapters.items()})
    asked = [(prompt, name) for prompt in PROMPTS for name in (None, "one", "two")]
    expected = [by_peft(tiny_folder, adapters.get(name or ""), prompt) for prompt, name in asked]
    assert greedy(loaded, asked) == expected


def test_another_architecture_takes_adapters_too(tmp_path: Path, make_adapter: MakeAdapter) -> None:
    folder = save_tiny(tmp_path / "gemma", "gemma3_text")
    adapter = make_adapter("one", base=folder)
    loaded = load(str(folder), SETTINGS, adapters={"one": str(adapter)})
    assert greedy(loaded, [(PROMPTS[0], "one")]) == [by_peft(folder, adapter, PROMPTS[0])]


def test_the_memory_of_adapters_counts(tiny_folder: Path, make_adapter: MakeAdapter) -> None:
    plain = load(str(tiny_folder), SETTINGS)
    adapted = load(str(tiny_folder), SETTINGS, adapters={"one": str(make_adapter("one"))})
    per_layer = 4 * ((32 + 32) * 2 + (32 + 16) * 2 + (32 + 64) * 3)
    assert adapted.bytes - plain.bytes >= 2 * per_layer * 4


@pytest.fixture(scope="module")
def two_adapters(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folders = {}
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(tiny_folder)
        adapted = get_peft_model(
            model, LoraConfig(r=4 + seed, target_modules=ALL, init_lora_weights=False, task_type="CAUSAL_LM")
        )
        folders[name] = str(tmp_path_factory.mktemp("adapters") / name)
        adapted.save_pretrained(folders[name])
    return load(str(tiny_folder), SETTINGS, adapters=folders)


names = st.sampled_from([None, "one", "two"])
texts = st.lists(st.integers(0, 255), min_size=1, max_size=40)


@given(own=st.tuples(texts, names), others=st.lists(st.tuples(texts, names), max_size=6), at=st.integers(0, 6))
def test_logits_are_bit_equal_whatever_the_neighbours(
    two_adapters: Loaded,
    own: tuple[list[int], str | None],
    others: list[tuple[list[int], str | None]],
    at: int,
) -> None:
    alone = logits_of(two_adapters, [own])[0]
    batch = [*others[:at], own, *others[at:]]
    assert torch.equal(logits_of(two_adapters, batch)[min(at, len(others))], alone)


def logits_of(loaded: Loaded, asked: list[tuple[list[int], str | None]]) -> torch.Tensor:
    """The logits after each text's last token, when all are computed in one step."""
    pool = loaded.pool
    sequences = [
        Sequence(list(ids), len(ids), 1, adapter=name, blocks=pool.take(pool.blocks_for(len(ids))))
        for ids, name in asked
    ]
    logits = loaded.runner.forward([Work(one, len(one.ids)) for one in sequences])
    for one in sequences:
        pool.give_back(one.blocks)
    return logits


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "lora_only"}, "bias=lora_only"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save="),
        ({"target_modules": ["embed_tokens"]}, "only linears can be adapted"),
        ({"target_modules": ["lm_head"]}, r"holds 'base_model.model.lm_head\."),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices="),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_an_adapter_that_could_not_be_applied_in_full_is_refused_in_a_sentence(
    tiny_folder: Path, make_adapter: MakeAdapter, config: dict[str, Any], why: str
) -> None:
    adapter = make_adapter("one", **config)
    with pytest.raises(SourceError, match=why):
        load(str(tiny_folder), SETTINGS, adapters={"one": str(adapter)})


def test_an_adapter_of_another_model_is_refused(tiny_folder: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    adapter = make_adapter("one", base=save_tiny(tmp_path / "qwen", "qwen3"))
    with pytest.raises(SourceError, match="which is no such linear in this model"):
        load(str(tiny_folder), SETTINGS, adapters={"one": str(adapter)})


def test_another_kind_of_adapter_is_refused(tiny_folder: Path, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter("one")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({"peft_type": "IA3", "target_modules": ["q_proj"], "feedforward_modules": []}))
    with pytest.raises(SourceError, match="is not LoRA but"):
        load(str(tiny_folder), SETTINGS, adapters={"one": str(adapter)})


def test_pickled_adapters_are_refused(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter("one")
    shutil.move(adapter / "adapter_model.safetensors", adapter / "adapter_model.bin")
    with pytest.raises(SourceError, match="pickled weights can run code"):
        resolve_adapter(str(adapter))


@pytest.mark.parametrize("source", ["/no/such/adapter", "./nothing", "file.txt"])
def test_an_adapter_that_is_not_there_is_said_so(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(SourceError, match="There is no adapter folder"):
        resolve_adapter(source)


def test_engine_keeps_the_adapters_apart_in_one_prefix_cache(
    tiny_folder: Path, make_adapter: MakeAdapter, registry: CollectorRegistry
) -> None:
    adapters = {"one": make_adapter("one"), "two": make_adapter("two", seed=2)}
    loaded = load(str(tiny_folder), SETTINGS, adapters={name: str(folder) for name, folder in adapters.items()})
    engine = Engine("tiny", loaded, EngineMetrics(registry), max_batch=8, max_queue=8, step_tokens=64)
    prompt = list(range(40, 75))
    try:
        for _ in range(2):
            running = [
                (name, engine.submit(prompt, GREEDY, max_tokens=ANSWER, deadline=time.monotonic() + 60, adapter=name))
                for name in (None, "one", "two")
            ]
            for name, generation in running:
                assert [piece.token for piece in generation] == by_peft(tiny_folder, adapters.get(name or ""), prompt)
        assert all(generation.sequence.cached for _, generation in running), "of the first round, each its own"
    finally:
        engine.close()
