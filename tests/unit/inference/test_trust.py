"""Nothing in a model's files can run code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from services.common.settings import InferenceSettings
from services.inference.engine.errors import SourceError
from services.inference.engine.load import load

SETTINGS = InferenceSettings(kv_blocks=16, device="cpu")
CLASSES = {
    "AutoConfig": "trap.Config",
    "AutoModelForCausalLM": "trap.Model",
    "AutoTokenizer": ["trap.Tokenizer", "trap.Tokenizer"],
}


@pytest.fixture
def trap(tiny_folder: Path, tmp_path: Path) -> Path:
    """A tiny Llama with a module of its own beside it, which leaves a mark when it is run."""
    folder = tmp_path / "trap"
    shutil.copytree(tiny_folder, folder)
    (folder / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    return folder


def change(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_code_beside_a_model_that_transformers_knows_is_not_run(trap: Path) -> None:
    change(trap / "config.json", auto_map=CLASSES)
    change(trap / "tokenizer_config.json", auto_map=CLASSES)
    assert load(str(trap), SETTINGS).vocabulary
    assert not (trap.parent / "sprung").exists()


def test_a_model_that_needs_its_own_code_is_refused(trap: Path) -> None:
    change(trap / "config.json", auto_map=CLASSES, model_type="trap")
    with pytest.raises(SourceError, match="transformers cannot load the model"):
        load(str(trap), SETTINGS)
    assert not (trap.parent / "sprung").exists()


def test_a_tokenizer_that_needs_its_own_code_is_refused(trap: Path) -> None:
    change(trap / "tokenizer_config.json", auto_map=CLASSES, tokenizer_class="TrapTokenizer")
    with pytest.raises(SourceError, match="transformers cannot load the tokenizer"):
        load(str(trap), SETTINGS)
    assert not (trap.parent / "sprung").exists()


def test_pickled_weights_beside_safetensors_are_not_opened(trap: Path) -> None:
    (trap / "pytorch_model.bin").write_bytes(b'cbuiltins\nexec\n(S\'open("sprung", "w")\'\ntR.')
    assert load(str(trap), SETTINGS).vocabulary
    (trap / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="pickled weights can run code and are refused"):
        load(str(trap), SETTINGS)
