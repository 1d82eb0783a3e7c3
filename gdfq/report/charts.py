"""Line charts as inline SVG, readable as they are; ``page.js`` adds read-outs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from markupsafe import Markup, escape

from gdfq.report.text import MINUS, fixed, superscript

# The drawing's own units; the page shows it at about one pixel each.
WIDTH, HEIGHT = 400, 246
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 12, 40
MARKER_EVERY = 56

# As many as the style sheet has series; more lines begin again, with the other kind of marker.
SERIES = 6
_MARKERS = (
    "M-3,-3h6v6h-6z",
    "M0,-4.2L4,3H-4z",
    "M0,-4.2L4.2,0L0,4.2L-4.2,0z",
    "M0,4.2L4,-3H-4z",
    "M-4,-1.2h2.8v-2.8h2.4v2.8h2.8v2.4h-2.8v2.8h-2.4v-2.8h-2.8z",
)


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: for the legend and the read-out.
        x, y: of its points; a point whose ``y`` is None or not finite is a gap.
        series: which colour, dash and marker.
        flat: a value that is the same everywhere, drawn across the chart; ``x`` is ignored.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    series: int
    flat: bool = False


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    *,
    description: str,
    logarithmic: bool = False,
    x_names: Sequence[str] | None = None,
    format_y: Callable[[float], str] | None = None,
) -> Markup:
    """Draw a chart with axes, one line per series.

    Args:
        title: its name for a screen reader.
        lines: at least one with a point.
        x_label: what ``x`` is.
        description: what there is to see, for who does not see it.
        logarithmic: of y; only where all values are positive.
        x_names: names of ``x`` = 0, 1, ...: for the read-out; the axis then has no numbers.
        format_y: of the read-out; by default four significant digits.
    """
    lines = [line for line in lines if any(map(is_number, line.y))]
    values = [y for line in lines for y in line.y if is_number(y)]
    logarithmic = logarithmic and min(values) > 0
    xs = [x for line in lines if not line.flat for x in line.x] or [0.0]
    x_ticks = [] if x_names else nice_ticks(min(xs), max(xs), 5)
    y_ticks = log_ticks(min(values), max(values)) if logarithmic else []
    logarithmic = bool(y_ticks)
    y_ticks = y_ticks or nice_ticks(min(values), max(values), 5)
    low, high = min(*values, *y_ticks), max(*values, *y_ticks)
    scale = _Scale(min(xs), max(xs), low, high, logarithmic)
    parts = [_grid(scale, x_ticks, y_ticks), _axis_label(x_label, bool(x_ticks))]
    parts += [_draw(line, scale) for line in lines]
    data = _read_out(lines, scale, x_label, x_names, format_y)
    return _svg(f"{title}. {description}", data, parts)


def deviations_chart(
    title: str,
    deviations: Sequence[float | None],
    by_class: Sequence[Sequence[float | None]],
    names: Sequence[str],
    *,
    description: str,
) -> Markup:
    """Draw a circle per channel, a short line per class and channel.

    Where they reach further than -1 or 1, the band between these is shaded.

    Args:
        title: its name for a screen reader.
        deviations: per channel; None is left out.
        by_class: per class and channel.
        names: of the classes.
        description: what there is to see, for who does not see it.
    """
    values = [v for row in (deviations, *by_class) for v in row if is_number(v)] + [-0.1, 0.1]
    ticks = nice_ticks(min(values), max(values), 5)
    # Half a channel of room at both ends.
    scale = _Scale(-0.5, len(deviations) - 0.5, ticks[0], ticks[-1], False)
    top, bottom = scale.y(min(1.0, ticks[-1])), scale.y(max(-1.0, ticks[0]))
    band = Markup('<rect class="band" x="{}" y="{}" width="{}" height="{}"/>').format(
        LEFT, top, WIDTH - LEFT - RIGHT, round(bottom - top, 1)
    )
    parts = [
        band if ticks[0] < -1 or ticks[-1] > 1 else Markup(""),
        _grid(scale, [], ticks),
        Markup('<path class="zero" d="M{},{}H{}"/>').format(LEFT, scale.y(0.0), WIDTH - RIGHT),
        _axis_label("channels", False),
    ]
    half = min(5.0, (WIDTH - LEFT - RIGHT) / len(deviations) * 0.35)
    points = []
    for channel in range(len(deviations)):
        value, x = deviations[channel], scale.x(channel)
        classes = [
            (v, name)
            for v, name in zip([row[channel] for row in by_class], names, strict=True)
            if is_number(v)
        ]
        path = "".join(f"M{x - half:.1f},{scale.y(v)}h{2 * half:.1f}" for v, _ in classes)
        parts.append(Markup('<path class="class-tick" d="{}"/>').format(path))
        if not is_number(value):
            continue
        y = scale.y(value)
        parts.append(
            Markup(
                '<g class="series s0"><circle class="mark" cx="{}" cy="{}" r="3.2"/></g>'
            ).format(x, y)
        )
        text = fixed(value, 2)
        if classes:
            (low, lowest), (high, highest) = min(classes), max(classes)
            text += f"; classes from {fixed(low, 2)} ({lowest}) to {fixed(high, 2)} ({highest})"
        points.append([x, y, f"Channel {channel}", text])
    data = {
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "lines": [{"name": "generated images", "points": points}],
    }
    return _svg(f"{title}. {description}", data, parts)


def swatch(series: int) -> Markup:
    """Draw a piece of a line of ``series``, for a legend."""
    return Markup(
        '<svg class="swatch" viewBox="0 0 30 10" aria-hidden="true">'
        '<g class="series {}"><path class="line" d="M0,5H30"/>{}</g></svg>'
    ).format(series_class(series), marker(series, 15, 5))


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Return about so many round numbers that span ``low`` to ``high``."""
    if high <= low:
        pad = abs(low) * 0.05 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / about
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(s for s in (1, 2, 2.5, 5, 10) if s * magnitude >= raw * (1 - 1e-9)) * magnitude
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten, and between few 2 and 5 times these, that span ``low`` to ``high``.

    Empty where the values are too near each other for it.
    """
    if high / low < 4:
        return []
    factors = (1,) if high / low > 300 else (1, 2, 5)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [f * 10.0**e for e in range(first, last + 1) for f in factors]
    below = max(t for t in ticks if t <= low * (1 + 1e-9))
    above = min(t for t in ticks if t >= high * (1 - 1e-9))
    return [t for t in ticks if below <= t <= above]


def short(value: float) -> str:
    """Return a tick's label, with no more digits than it needs."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.10g}".replace("-", MINUS)
    mantissa, exponent = f"{value:.1e}".split("e")
    times = "" if float(mantissa) == 1 else f"{float(mantissa):g}\N{MULTIPLICATION SIGN}"
    return f"{times}10{superscript(int(exponent))}".replace("-", MINUS)


@dataclass(frozen=True)
class _Scale:
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    logarithmic: bool

    def x(self, value: float) -> float:
        span = self.x_high - self.x_low
        share = (value - self.x_low) / span if span else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_low, self.y_high
        if self.logarithmic:
            value, low, high = math.log(value), math.log(low), math.log(high)
        share = (value - low) / (high - low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def _svg(label: str, data: dict[str, object], parts: Sequence[Markup]) -> Markup:
    return Markup(
        '<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-label="{label}" '
        'data-chart="{data}">{parts}<g class="cursor" hidden></g></svg>'
    ).format(
        w=WIDTH,
        h=HEIGHT,
        label=label,
        data=json.dumps(data, separators=(",", ":")),
        parts=Markup("").join(parts),
    )


def is_number(value: float | None) -> TypeGuard[float]:
    """Whether there is a value that can be drawn."""
    return value is not None and math.isfinite(value)


def _grid(scale: _Scale, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> Markup:
    parts = []
    for tick in y_ticks:
        y = scale.y(tick)
        parts.append(
            Markup(
                '<path class="grid" d="M{},{}H{}"/><text x="{}" y="{}" class="y">{}</text>'
            ).format(LEFT, y, WIDTH - RIGHT, LEFT - 8, y + 4, short(tick))
        )
    bottom = HEIGHT - BOTTOM
    parts.append(Markup('<path class="axis" d="M{},{}H{}"/>').format(LEFT, bottom, WIDTH - RIGHT))
    for tick in x_ticks:
        if scale.x_low <= tick <= scale.x_high:
            x = scale.x(tick)
            parts.append(
                Markup(
                    '<path class="axis" d="M{},{}v4"/><text x="{}" y="{}" class="x">{}</text>'
                ).format(x, bottom, x, bottom + 17, short(tick))
            )
    return Markup("").join(parts)


def _axis_label(text: str, below_ticks: bool) -> Markup:
    return Markup('<text x="{}" y="{}" class="label">{}</text>').format(
        WIDTH - RIGHT, HEIGHT - BOTTOM + (34 if below_ticks else 18), text
    )


def _flat(line: Line) -> float:
    return next(filter(is_number, line.y))


def series_class(series: int) -> str:
    """Return the style sheet's class of ``series``."""
    return f"s{series % SERIES}"


def marker(series: int, x: float, y: float) -> Markup:
    """Draw a point of ``series``."""
    index = (series + series // SERIES) % (len(_MARKERS) + 1)
    if index == 0:
        return Markup('<circle class="mark" cx="{}" cy="{}" r="3.2"/>').format(x, y)
    return Markup('<path class="mark" d="{}" transform="translate({},{})"/>').format(
        _MARKERS[index - 1], x, y
    )


def _draw(line: Line, scale: _Scale) -> Markup:
    if line.flat:
        y = scale.y(_flat(line))
        path = f"M{LEFT},{y}H{WIDTH - RIGHT}"
        points = [((LEFT + WIDTH - RIGHT) / 2, y)]
    else:
        path, points, pen = "", [], "M"
        for x, value in zip(line.x, line.y, strict=True):
            if is_number(value):
                points.append((scale.x(x), scale.y(value)))
                path += f"{pen}{points[-1][0]:g},{points[-1][1]:g}"
            pen = "L" if is_number(value) else "M"
    marks, last = [], -math.inf
    for x, y in points:
        if x - last >= MARKER_EVERY:
            marks.append(marker(line.series, x, y))
            last = x
    return Markup('<g class="series {}"><path class="line" d="{}"/>{}</g>').format(
        series_class(line.series), escape(path), Markup("").join(marks)
    )


def _read_out(
    lines: Sequence[Line],
    scale: _Scale,
    x_label: str,
    x_names: Sequence[str] | None,
    format_y: Callable[[float], str] | None,
) -> dict[str, object]:
    """Return the points in the drawing's units, and their texts, for the page's script."""
    shown = format_y or (lambda value: f"{value:.4g}")
    series: list[dict[str, Any]] = []
    for line in lines:
        points = [
            [scale.x(x), scale.y(y), _position(x, x_label, x_names), shown(y)]
            for x, y in zip(line.x, line.y, strict=True)
            if is_number(y) and not line.flat
        ]
        if line.flat:
            series.append({"name": line.name, "flat": shown(_flat(line))})
        else:
            series.append({"name": line.name, "points": points})
    return {"top": TOP, "bottom": HEIGHT - BOTTOM, "lines": series}


def _position(x: float, label: str, names: Sequence[str] | None) -> str:
    return names[int(x)] if names else f"{label} {x:,.6g}"
