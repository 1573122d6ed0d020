"""Grafana's JSON as small functions: only the fields that differ from Grafana's own defaults.

Grafana's schema is larger than what a dashboard uses by two orders of magnitude; docs/dependencies.md says why no
builder library stands here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Query:
    """One curve, or one curve for each value of the labels in `legend`."""

    expression: str
    legend: str
    optional: bool = False
    """Needs something beside Forebay in the cluster (kube-state-metrics); the panel is whole without it."""


def target(query: Query, position: int, *, instant: bool) -> Json:
    return {
        "refId": chr(ord("A") + position),
        "datasource": DATASOURCE,
        "expr": query.expression,
        "legendFormat": query.legend,
        **({"instant": True} if instant else {"range": True}),
    }


def panel(
    kind: str, title: str, description: str, queries: list[Query], *, unit: str, runbook: str = "", **field: Any
) -> Json:
    """What both kinds of panel have in common. `field` holds further defaults of its values."""
    text = f"{description}\n\nRunbook: {runbook}" if runbook else description
    return {
        "type": kind,
        "title": title,
        "description": text,
        "datasource": DATASOURCE,
        "targets": [target(query, position, instant=kind == "stat") for position, query in enumerate(queries)],
        "fieldConfig": {"defaults": {"unit": unit, **field}, "overrides": []},
    }


def stat(title: str, description: str, queries: list[Query], *, steps: Json | None = None, **rest: Any) -> Json:
    """The value of now, in the colour of the step that it has reached: `steps` maps colours to where each begins."""
    colours = [{"color": colour, "value": begin} for colour, begin in (steps or {"text": None}).items()]
    made = panel(
        "stat",
        title,
        description,
        queries,
        thresholds={"mode": "absolute", "steps": colours},
        noValue="no data",
        **rest,
    )
    made["options"] = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "none",
        "textMode": "auto",
    }
    return made


def series(title: str, description: str, queries: list[Query], *, stacked: bool = False, **rest: Any) -> Json:
    """Values over time. They begin at zero, so that a small change does not look like a large one."""
    custom = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if stacked else 0,
        "showPoints": "never",
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    made = panel("timeseries", title, description, queries, custom=custom, min=0, **rest)
    made["options"] = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return made


def rows(*given: tuple[int, list[Json]]) -> list[Json]:
    """Lays panels out: each row is a height and the panels that share its 24 columns evenly."""
    placed: list[Json] = []
    top = 0
    for height, panels in given:
        width = 24 // len(panels)
        for position, made in enumerate(panels):
            grid = {"x": position * width, "y": top, "w": width, "h": height}
            placed.append({"id": len(placed) + 1, **made, "gridPos": grid})
        top += height
    return placed


def datasource_variable() -> Json:
    return {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus"}


def label_variable(name: str, label: str, query: str) -> Json:
    """A choice of some or all values that a label has."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def dashboard(uid: str, title: str, description: str, variables: list[Json], panels: list[Json]) -> Json:
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["forebay"],
        "schemaVersion": 39,
        "editable": False,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "graphTooltip": 1,
        "templating": {"list": variables},
        "panels": panels,
    }
