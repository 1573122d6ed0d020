"""Writes the chart as plain manifests, for those without Helm: `make k8s`.

A test compares the files with what this yields, so that they cannot fall behind the chart.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHART = ROOT / "helm" / "forebay"
NAME = "forebay"
"""Of the release and of the namespace."""
PRESETS = {"cpu-demo": "values-cpu-demo.yaml", "production": "values-production.yaml"}
HEAD = """\
# Generated from helm/forebay and its {values} by `make k8s`; do not edit.
# What is to be different stands in the kustomization.yaml beside it.
"""


def rendered(preset: str, helm: str) -> str:
    """The manifests of the chart under one of its presets, without the pods of `helm test`."""
    values = PRESETS[preset]
    command = [helm, "template", NAME, str(CHART), f"--namespace={NAME}", f"--values={CHART / values}", "--skip-tests"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - the chart of this repository
    return HEAD.format(values=values) + done.stdout


def place(preset: str) -> Path:
    return ROOT / "k8s" / "rendered" / preset / "forebay.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--helm", default=str(ROOT / "build" / "tools" / "helm"), help="the program to render with")
    helm = parser.parse_args().helm
    for preset in PRESETS:
        place(preset).write_text(rendered(preset, helm))


if __name__ == "__main__":
    main()
