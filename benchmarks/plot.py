"""Plot the benchmarks' table: speed-ups on a logarithmic axis."""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib.ticker
from matplotlib.figure import Figure

COLOURS = {"eager": "#1b6ca8", "torch.compile": "#d9822b", "aten": "#6a994e", "copy": "#7f7f7f"}
LABELS = {
    "eager": "eager PyTorch",
    "torch.compile": "torch.compile",
    "aten": "PyTorch's own operator",
    "copy": "a copy of the same bytes",
}


def draw(groups: dict[str, list[dict[str, float]]], title: str, out: Path) -> None:
    """Draw geometric means over an operation's sizes as dots, and minimum to maximum as lines.

    Args:
        groups: by operation, for each size the rivals' times divided by ours.
        title: the machine.
        out: the PNG.
    """
    figure = Figure(figsize=(9, 1.6 + 0.42 * len(groups)), dpi=150, layout="constrained")
    axes = figure.subplots()
    for place, ratios in enumerate(groups.values()):
        for lane, (rival, colour) in enumerate(COLOURS.items()):
            values = [r[rival] for r in ratios if rival in r]
            if not values:
                continue
            y = place + (lane - 1.5) * 0.18
            axes.plot([min(values), max(values)], [y, y], color=colour, alpha=0.45, linewidth=2)
            axes.plot(statistics.geometric_mean(values), y, "o", color=colour, markersize=5)
    for rival, colour in COLOURS.items():
        if any(rival in r for ratios in groups.values() for r in ratios):
            axes.plot([], [], "o-", color=colour, label=LABELS[rival])
    for place in range(1, len(groups), 2):
        axes.axhspan(place - 0.5, place + 0.5, color="black", alpha=0.04, linewidth=0)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.grid(axis="x", alpha=0.3)
    axes.set_yticks(range(len(groups)), groups.keys())
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlabel("the rival's time over ours: right of 1, ours is faster")
    axes.set_title(
        f"{title}\ndots: geometric means over sizes; lines: minimum to maximum", fontsize=10
    )
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(out)
