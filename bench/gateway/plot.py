"""The figures as a picture: `python -m bench.gateway.plot FIGURES PICTURE`, in the rivals' environment, which has
matplotlib."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench.engine.plot import draw_goals


def draw(figures: Path, picture: Path) -> None:
    """Writes the PNG: requests/s of all who were asked for whole answers, and the table's rows by their goals."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    said = json.loads(figures.read_text())
    rates = {
        name: max(run["rate"] for run in result["runs"])
        for name, result in said["results"].items()
        if "rate" in result["runs"][0]
    }
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(15, 5), width_ratios=(2, 3))
    left.bar_label(left.barh(list(rates), list(rates.values())), fmt="%.0f", padding=2, fontsize=8)
    left.invert_yaxis()
    left.set_xscale("log")
    left.set_xlabel("requests/s on one core, best round")
    draw_goals(right, said["rows"])
    for axes in (left, right):
        axes.margins(x=0.15)  # for what stands at the bars' ends
    figure.tight_layout()
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    draw(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
