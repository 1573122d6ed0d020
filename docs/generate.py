"""Writes docs/settings.md and docs/metrics.md from the code that declares them: `make docs`.

A unit test compares the pages with what this yields, so that neither can fall behind the code.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from services.common.metrics import EngineMetrics, GatewayMetrics, HttpMetrics
from services.common.settings import (
    PREFIX,
    CommonSettings,
    FleetSettings,
    GatewaySettings,
    InferenceSettings,
    is_secret,
)

FOLDER = Path(__file__).parent

READERS: dict[type[CommonSettings], str] = {
    CommonSettings: "All processes",
    FleetSettings: "`forebay up`",
    GatewaySettings: "Gateway",
    InferenceSettings: "Inference pod",
}
SETTINGS_HEAD = """\
# Settings

Generated from `services/common/settings/` by `make docs`; do not edit.

Every setting is an environment variable. An empty variable counts as one that is not set. A secret may also be given as
a file, whose path stands in the variable with `_FILE` at its end; of both, the file counts. `forebay up` reads all of
them, hands them to what it starts, and warns of `FOREBAY_…` variables that it does not know.
"""
METRICS_HEAD = """\
# Metrics

Generated from `services/common/metrics.py` by `make docs`; do not edit.

Gateways and pods serve `/metrics` on a port of their own (`FOREBAY_METRICS_PORT`), one answer for all workers of a
process. Times are in seconds.
"""


def pages() -> dict[Path, str]:
    """The text of each generated page, by its path."""
    return {FOLDER / "settings.md": settings_page(), FOLDER / "metrics.md": metrics_page()}


def settings_page() -> str:
    """Every setting in a table of the process that reads it."""
    parts = [SETTINGS_HEAD]
    for kind, reader in READERS.items():
        parts.extend([f"\n## {reader}\n", *_settings_table(kind)])
        for subject in _subjects(kind):
            parts.extend([f"\n### {(subject.__doc__ or '').removesuffix('.')}\n", *_settings_table(subject)])
    return "".join(parts)


def _subjects(kind: type[CommonSettings]) -> Iterator[type[CommonSettings]]:
    """The classes that this one brings together, where it has settings of several subjects."""
    return (base for base in kind.__bases__ if issubclass(base, CommonSettings) and base is not CommonSettings)


def _settings_table(kind: type[CommonSettings]) -> Iterator[str]:
    """The settings that this class declares itself, in their order."""
    yield "\n| variable | value | default | meaning |\n|---|---|---|---|\n"
    for name, field in kind.model_fields.items():
        if name in kind.__annotations__:
            yield _settings_row(name, field)


def _settings_row(name: str, field: FieldInfo) -> str:
    variable = f"`{PREFIX}{name.upper()}`"
    if is_secret(field):
        variable += f" or `{PREFIX}{name.upper()}_FILE`"
    return f"| {variable} | {_value(field)} | {_default(field)} | {field.description} |\n"


def _value(field: FieldInfo) -> str:
    if is_secret(field):
        return "secret"
    options = [option for option in typing.get_args(field.annotation) if option is not types.NoneType]
    if typing.get_origin(field.annotation) is typing.Literal:
        return ", ".join(f"`{option}`" for option in options)
    kind = options[0] if len(options) == 1 else typing.get_origin(field.annotation) or field.annotation
    names = {
        bool: "`true` or `false`",
        int: "integer",
        float: "number",
        Path: "path",
        list: "list",
        dict: "JSON object",
    }
    if isinstance(field.annotation, types.GenericAlias):
        kind = typing.get_origin(field.annotation)
    return " ".join([names.get(kind, "text"), ", ".join(_bounds(field))]).strip()


def _bounds(field: FieldInfo) -> Iterator[str]:
    words = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    for limit in field.metadata:
        for attribute, sign in words.items():
            if hasattr(limit, attribute):
                yield f"{sign} {getattr(limit, attribute)}"


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "none; `forebay up` makes one"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{','.join(value) if isinstance(value, list) else value}`"


def metrics_page() -> str:
    """Every metric in a table of the process that serves it."""
    parts = [METRICS_HEAD]
    for title, kind in (("Both", HttpMetrics), ("Gateway", GatewayMetrics), ("Inference pod", EngineMetrics)):
        parts.append(f"\n## {title}\n\n| name | kind | labels | meaning |\n|---|---|---|---|\n")
        parts.extend(_metric_row(collector) for collector in vars(kind(CollectorRegistry())).values())
    return "".join(parts)


def _metric_row(collector: Any) -> str:
    (described,) = collector.describe()
    name = f"{described.name}_total" if described.type == "counter" else described.name
    labels = ", ".join(f"`{label}`" for label in collector._labelnames) or "none"
    return f"| `{name}` | {described.type} | {labels} | {described.documentation} |\n"


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
