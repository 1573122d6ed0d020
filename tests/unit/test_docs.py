"""The generated pages are what the code declares, and what is written by hand leaves nothing out."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from services.common.wire import ChatRequest, CompletionRequest
from services.inference.parameters import INERT

ROOT = Path(__file__).parents[2]
PAGES: dict[Path, str] = runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_generated_page_is_up_to_date(page: Path) -> None:
    assert page.read_text() == PAGES[page], "run `make docs` and commit the result"


def test_the_page_on_the_api_names_every_parameter() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    known = ChatRequest.model_fields.keys() | CompletionRequest.model_fields.keys() | INERT
    assert [name for name in sorted(known) if f"`{name}`" not in page] == []
