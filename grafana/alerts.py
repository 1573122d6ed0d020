"""How an alert is put together: each gets its severity, its texts and its runbook's address here, so that none can be
forgotten."""

from __future__ import annotations

from typing import Any

from grafana.config import Options

Rule = dict[str, Any]

IN = "{{ $labels.namespace }}"
"""Prometheus' template for the namespace, for texts."""


def alert(
    options: Options,
    name: str,
    expression: str,
    *,
    wait: str,
    severity: str,
    summary: str,
    description: str,
    **labels: str,
) -> Rule:
    """An alert; its runbook is the page that is named like it."""
    return {
        "alert": name,
        "expr": expression,
        "for": options.waits.get(name, wait),
        "labels": {"severity": severity, **labels},
        "annotations": {
            "summary": summary,
            "description": description,
            "runbook_url": runbook(name, options),
        },
    }


def runbook(name: str, options: Options) -> str:
    return f"{options.runbooks}docs/runbooks/{name}.md"
