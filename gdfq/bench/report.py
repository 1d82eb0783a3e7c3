"""What was measured, as a table for the terminal."""

from __future__ import annotations

from rich.table import Table

from gdfq.bench.measure import PHASES, Measurement


def table(results: list[Measurement], title: str) -> Table:
    """One row per formulation; ``results[0]`` is ours."""
    ours = results[0]
    shown = Table("", "s/step", "ours is faster by", "images/s", "peak memory", title=title)
    for result in results:
        ratio = "" if result is ours else f"{result.median / ours.median:.2f} x"
        peak = "-" if result.peak_bytes is None else f"{result.peak_bytes / 1e6:,.0f} MB"
        shown.add_row(
            result.name, f"{result.median:.3g}", ratio, f"{result.images_per_second:.0f}", peak
        )
    return shown


def details(ours: Measurement) -> str:
    """Where our step's time goes."""
    total = sum(ours.phases.values()) or 1.0
    parts = [f"{name} {ours.phases[name] / total:.0%}" for name in PHASES if name in ours.phases]
    if ours.convolutions is not None:
        parts.append(f"convolutions {ours.convolutions:.0%} of the step")
    return ", ".join(parts)
