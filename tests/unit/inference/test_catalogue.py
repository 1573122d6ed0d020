"""FOREBAY_MODEL read."""

from __future__ import annotations

import pytest

from services.inference.catalogue import parse_catalogue


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
