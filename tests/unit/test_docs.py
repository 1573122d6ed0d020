"""The generated pages are what the code declares."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES: dict[Path, str] = runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_generated_page_is_up_to_date(page: Path) -> None:
    assert page.read_text() == PAGES[page], "run `make docs` and commit the result"
