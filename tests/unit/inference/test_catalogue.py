"""FOREBAY_MODEL, FOREBAY_ADAPTERS and FOREBAY_PINNED read."""

from __future__ import annotations

import pytest

from services.inference.catalogue import Adapter, parse_adapters, parse_catalogue, parse_pinned


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("bundled", {"smollm2-135m-instruct": "bundled"}),
        ("mine=bundled", {"mine": "bundled"}),
        ("/models/Qwen3-8B", {"qwen3-8b": "/models/Qwen3-8B"}),
        ("/models/Qwen3-8B/", {"qwen3-8b": "/models/Qwen3-8B/"}),
        ("./Tiny.Q4_1.GGUF", {"tiny.q4_1": "./Tiny.Q4_1.GGUF"}),
        ("Qwen/Qwen3-0.6B", {"qwen3-0.6b": "Qwen/Qwen3-0.6B"}),
        ("Qwen/Qwen3-0.6B@refs/pr/3", {"qwen3-0.6b": "Qwen/Qwen3-0.6B@refs/pr/3"}),
        ("bundled, big=/m/b ,", {"smollm2-135m-instruct": "bundled", "big": "/m/b"}),
        ("/data/a=b/model", {"model": "/data/a=b/model"}),
    ],
)
def test_names_and_sources_are_told_apart(text: str, found: dict[str, str]) -> None:
    assert parse_catalogue(text) == found


def test_the_order_is_kept_since_the_first_is_loaded_at_start() -> None:
    assert list(parse_catalogue("z=/1,a=/2,m=/3")) == ["z", "a", "m"]


@pytest.mark.parametrize(
    ("text", "why"), [("", "no model"), (" , ", "no model"), ("a=", "no source"), ("/x/a,/y/a", "two models")]
)
def test_a_catalogue_that_cannot_be_meant_is_refused_in_a_sentence(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_catalogue(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("big:law=/adapters/law", {"big:law": Adapter("big", "law", "/adapters/law")}),
        ("big:law = org/law@v2 , ", {"big:law": Adapter("big", "law", "org/law@v2")}),
        ("qwen:8b:law=/a=b", {"qwen:8b:law": Adapter("qwen:8b", "law", "/a=b")}),
        ("big:a=/1,big:b=/1", {"big:a": Adapter("big", "a", "/1"), "big:b": Adapter("big", "b", "/1")}),
    ],
)
def test_an_adapter_has_the_name_of_its_model_in_its_own(text: str, found: dict[str, Adapter]) -> None:
    assert parse_adapters(text, ["big", "qwen:8b"]) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("law=/x", "must be model:adapter=source"),
        ("big:law", "must be model:adapter=source"),
        ("big:law=", "must be model:adapter=source"),
        ("big:=/x", "must be model:adapter=source"),
        ("other:law=/x", "names the model 'other', which FOREBAY_MODEL does not"),
        ("big:law=/x,big:law=/y", "'big:law', which is there already"),
        ("qwen:8b=/x", "'qwen:8b', which is there already"),
    ],
)
def test_adapters_that_cannot_be_meant_are_refused_in_a_sentence(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_adapters(text, ["big", "qwen", "qwen:8b"])


def test_models_are_pinned_by_name() -> None:
    assert parse_pinned("big, small", ["big", "small", "other"]) == {"big", "small"}
    assert parse_pinned("", ["big"]) == set()
    with pytest.raises(ValueError, match="names the model 'huge', which FOREBAY_MODEL does not"):
        parse_pinned("big,huge", ["big"])
