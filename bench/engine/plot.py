"""The figures as a picture: `python -m bench.engine.plot TASK`, in the rivals' environment, which has matplotlib."""

from __future__ import annotations

from typing import Any

from bench.engine.contenders import Model
from bench.engine.worker import answer


def draw(_model: Model, *, rates: dict[str, dict[str, float]], rows: list[dict[str, Any]], path: str) -> dict[str, Any]:
    """
    Args:
        rates: tokens/s by contender and number of requests. rows: the table's, each with its goal.
        path: the PNG file to write.
    """
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(15, 0.4 * max(len(rows), 12)), width_ratios=(2, 3))
    sizes = sorted({int(size) for by_size in rates.values() for size in by_size})
    height = 0.8 / max(len(sizes), 1)
    for number, size in enumerate(sizes):
        places = [place for place, name in enumerate(rates) if str(size) in rates[name]]
        values = [by_size[str(size)] for by_size in rates.values() if str(size) in by_size]
        bars = left.barh([place + number * height for place in places], values, height, label=f"{size} at a time")
        left.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    left.set_yticks([place + 0.4 - height / 2 for place in range(len(rates))], list(rates))
    left.invert_yaxis()
    left.set_xlabel("tokens/s, best round")
    left.legend(fontsize=8)

    draw_goals(right, rows)
    for axes in (left, right):
        axes.margins(x=0.15)  # for what stands at the bars' ends
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return {"path": path}


def draw_goals(axis: Any, rows: list[dict[str, Any]]) -> None:
    """A table's rows on one axis: a goal is 1 for each, so that rows of any size share one scale; more is better."""
    aimed = [row for row in rows if row["goal"] is not None and row["best"] is not None]
    shares = [row["goal"] / row["best"] if row["at_most"] else row["best"] / row["goal"] for row in aimed]
    colours = ["tab:green" if row["met"] else "tab:red" for row in aimed]
    bars = axis.barh([row["text"] for row in aimed], shares, color=colours)
    axis.bar_label(bars, [f"{row['best']:.2f} of {row['goal']:g}" for row in aimed], padding=2, fontsize=8)
    axis.axvline(1, color="black", linewidth=1)
    axis.invert_yaxis()
    axis.set_xlabel("measured / goal")
    axis.tick_params(labelsize=8)


if __name__ == "__main__":
    answer(draw)
