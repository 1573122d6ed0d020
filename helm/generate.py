"""Writes the chart's `values.schema.json` and `README.md` from the comments in `values.yaml`: `make chart-docs`.

Above a value, `# -- text` says what it is, and lines that follow without a mark go on with it. `# @schema {…}` is YAML
that is laid over the JSON schema which follows from the default. Two keys of it are ours: `open: true` for maps whose
content is Kubernetes' own, and `definition: true` for an object that others refer to as `#/definitions/<key>`.
Everything else is closed, so that a typing error fails the installation instead of being ignored.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "forebay"
PLACE = '{{ template "chart.valuesSection" . }}'
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}


@dataclass
class Value:
    """One value of `values.yaml`, with what its comment says."""

    path: tuple[str, ...]
    default: Any
    text: str = ""
    schema: dict[str, Any] = field(default_factory=dict)
    children: list[Value] = field(default_factory=list)

    @property
    def is_map(self) -> bool:
        """Whether the user names the keys, or Kubernetes does."""
        return bool({"additionalProperties", "open"} & self.schema.keys())


def read(source: str) -> list[Value]:
    """The values in the order of the file.

    Raises:
        ValueError: the file or a comment's schema is no mapping.
    """
    root = yaml.compose(source, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise ValueError("the file holds no mapping")
    return list(_values(root, (), source.splitlines()))


def _values(node: yaml.MappingNode, path: tuple[str, ...], lines: list[str]) -> Iterator[Value]:
    for key, content in node.value:
        text, schema = _comment(lines, key.start_mark.line)
        value = Value((*path, key.value), _plain(content), text, schema)
        if isinstance(content, yaml.MappingNode) and content.value and not value.is_map:
            value.children = list(_values(content, value.path, lines))
        yield value


def _plain(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _comment(lines: list[str], at: int) -> tuple[str, dict[str, Any]]:
    """What the comment right above line `at` says."""
    begin = at
    while begin > 0 and lines[begin - 1].strip().startswith("#"):
        begin -= 1
    text: list[str] = []
    schema: dict[str, Any] = {}
    for line in (line.strip().removeprefix("#").strip() for line in lines[begin:at]):
        if line.startswith("@schema "):
            found = yaml.safe_load(line.removeprefix("@schema "))
            if not isinstance(found, dict):
                raise ValueError(f"line {at}: a schema is a mapping, not {found!r}")
            schema |= found
        elif line.startswith("-- "):
            text = [line.removeprefix("-- ")]
        elif text and line:
            text.append(line)
    return " ".join(text), schema


def schema_of(values: list[Value]) -> dict[str, Any]:
    """The JSON schema (draft 7) of the whole file."""
    definitions: dict[str, Any] = {}
    root = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the chart forebay"}
    root |= _object(values, definitions)
    return root | {"definitions": definitions}


def _object(values: list[Value], definitions: dict[str, Any]) -> dict[str, Any]:
    properties = {value.path[-1]: _schema(value, definitions) for value in values}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _schema(value: Value, definitions: dict[str, Any]) -> dict[str, Any]:
    extra = {key: content for key, content in value.schema.items() if key not in ("open", "definition")}
    found: dict[str, Any] = {"description": value.text} if value.text else {}
    if value.children:
        found |= _object(value.children, definitions)
    elif isinstance(value.default, dict):
        found |= {"type": "object"} if value.is_map else _object([], definitions)
    elif isinstance(value.default, list):
        found |= {"type": "array"}
    else:
        found |= {"type": TYPES[type(value.default)]}
        if found["type"] == "integer":
            found["minimum"] = 0
    found |= extra
    if value.schema.get("definition"):
        definitions[value.path[-1]] = found
        return {"$ref": f"#/definitions/{value.path[-1]}"}
    return found


def table_of(values: list[Value]) -> str:
    """The values as Markdown: a heading for each that has values of its own, and a table of what is in it."""
    single = [value for value in values if not value.children]
    parts = [_table(single)] if single else []
    for value in values:
        if value.children:
            parts.append(f"### `{value.path[-1]}`\n\n{value.text}\n\n{_table(list(_leaves(value)))}")
    return "\n\n".join(parts)


def _leaves(value: Value) -> Iterator[Value]:
    for child in value.children:
        if child.children:
            yield from _leaves(child)
        else:
            yield child


def _table(values: list[Value]) -> str:
    rows = ["| value | default | what it is |", "|---|---|---|"]
    for value in values:
        default = json.dumps(value.default, ensure_ascii=False)
        text = value.text.replace("|", "\\|")
        allowed = value.schema.get("enum")
        if allowed and not all(f"`{one}`" in text for one in allowed):
            text = f"{text} One of {', '.join(f'`{one}`' for one in allowed)}.".strip()
        rows.append(f"| `{'.'.join(value.path)}` | `{default}` | {text} |")
    return "\n".join(rows)


def generated(chart: Path = CHART) -> dict[str, str]:
    """The generated files: their names and what should be in them."""
    values = read((chart / "values.yaml").read_text())
    template = (chart / "README.md.gotmpl").read_text()
    notice = "<!-- Generated by `make chart-docs` from README.md.gotmpl and values.yaml; do not edit. -->\n"
    return {
        "values.schema.json": json.dumps(schema_of(values), indent=2, ensure_ascii=False) + "\n",
        "README.md": notice + template.replace(PLACE, table_of(values)),
    }


def main() -> int:
    for name, text in generated().items():
        (CHART / name).write_text(text)
        sys.stdout.write(f"{(CHART / name).relative_to(Path.cwd())}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
