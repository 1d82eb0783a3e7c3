"""Charts of values, their means and deviations as inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from gdfq.report.charts import (
    BOTTOM,
    SERIES,
    TOP,
    WIDTH,
    is_number,
    marker,
    nice_ticks,
    series_class,
    short,
)

# Height of a row, and letters shown of a long name.
ROW, NAME = 40, 46


@dataclass(frozen=True)
class Row:
    """A line of a chart of spreads.

    Attributes:
        name: above it.
        points: values by what they are of, as ``"seed 0"``; None is left out.
        mean, std: over the points; no bar without the latter.
        main: whether it is set off from the others.
    """

    name: str
    points: Sequence[tuple[str, float | None]]
    mean: float
    std: float | None
    main: bool = False


def spread_chart(
    title: str,
    rows: Sequence[Row],
    x_label: str,
    *,
    description: str,
    shown: Callable[[float], str],
    zero: bool = False,
) -> Markup:
    """Draw each row's points, the mean as an upright line, and a bar of a deviation to both sides.

    The points have the markers of series 0, 1, ... in the order of ``points``; from one more than
    there are series on, all have the first one's.

    Args:
        title: its name for a screen reader.
        rows: at least one.
        x_label: what the values are.
        description: what there is to see, for who does not see it.
        shown: a value as text, for the browser's hint at a point.
        zero: whether 0 is drawn.
    """
    values = [v for row in rows for _, v in row.points if is_number(v)] + [0.0] * zero
    for row in rows:
        values += [row.mean - (row.std or 0.0), row.mean + (row.std or 0.0)]
    ticks = nice_ticks(min(values), max(values), 5)
    height = TOP + ROW * len(rows) + BOTTOM
    left, right = 24.0, WIDTH - 24.0

    def at(value: float) -> float:
        return round(left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (right - left), 1)

    bottom = height - BOTTOM
    parts = []
    for tick in ticks:
        kind = "zero" if zero and tick == 0 else "grid"
        parts.append(
            Markup('<path class="{}" d="M{},{}V{}"/><text x="{}" y="{}" class="x">{}</text>')
            .format(kind, at(tick), TOP, bottom, at(tick), bottom + 17, short(tick))
        )  # fmt: skip
    parts.append(Markup('<path class="axis" d="M{},{}H{}"/>').format(left, bottom, right))
    parts.append(
        Markup('<text x="{}" y="{}" class="label">{}</text>').format(right, bottom + 34, x_label)
    )
    for number, row in enumerate(rows):
        y = TOP + ROW * number + 28
        name = row.name if len(row.name) <= NAME else row.name[: NAME - 1] + "…"
        parts.append(
            Markup('<text x="{}" y="{}" class="{}">{}</text>').format(
                left, y - 14, "row main" if row.main else "row", name
            )
        )
        if row.std is not None:
            first, last = at(row.mean - row.std), at(row.mean + row.std)
            parts.append(
                Markup('<rect class="band" x="{}" y="{}" width="{}" height="12"/>').format(
                    first, y - 6, round(last - first, 1)
                )
            )
        parts.append(Markup('<path class="mean" d="M{},{}v18"/>').format(at(row.mean), y - 9))
        for i, (of, value) in enumerate(row.points):
            if is_number(value):
                series = i if len(row.points) <= SERIES else 0
                parts.append(
                    Markup('<g class="series {}"><title>{}: {}</title>{}</g>').format(
                        series_class(series), of, shown(value), marker(series, at(value), y)
                    )
                )
    return Markup(
        '<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-label="{label}">{parts}</svg>'
    ).format(w=WIDTH, h=height, label=f"{title}. {description}", parts=Markup("").join(parts))
