"""What an expression names, found without a full parser: enough to hold names and labels against their source."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from grafana.panels import Json

SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}")
SERIES = re.compile(r"(?<![\w:])(?:forebay|gen_ai|flask|kube|python|process|namespace|namespace_model)[_:][\w:]+")
SUFFIX = re.compile(r"_(bucket|count|sum)$")


def selectors(expression: str) -> Iterator[tuple[str, str]]:
    """The name of each metric that is selected from, without a histogram's suffix, and the matchers."""
    for name, matchers in SELECTOR.findall(expression):
        yield SUFFIX.sub("", name), matchers


def names(expression: str) -> set[str]:
    """Every series that is named, recorded ones included, without a histogram's suffix."""
    found = set(SERIES.findall(expression)) | {name for name, _ in SELECTOR.findall(expression)}
    return {name if ":" in name else SUFFIX.sub("", name) for name in found}


def rules_of(file: dict[str, Any]) -> list[dict[str, Any]]:
    return [rule for group in file["groups"] for rule in group["rules"]]


def targets_of(board: Json) -> list[tuple[str, str]]:
    """The title of the panel and the expression, of each query."""
    return [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel["targets"]]
