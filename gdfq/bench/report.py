"""Tables of measurements for the terminal."""

from __future__ import annotations

from rich.table import Table

from gdfq.bench.measure import PHASES, Measurement


def table(results: list[Measurement], title: str) -> Table:
    """Return a table with one row per implementation; ``results[0]`` is our trainer."""
    ours = results[0]
    shown = Table("", "s/step", "ours is faster by", "images/s", "peak memory", title=title)
    for result in results:
        ratio = "" if result is ours else f"{result.median / ours.median:.2f} x"
        peak = "-" if result.peak_bytes is None else f"{result.peak_bytes / 1e6:,.0f} MB"
        shown.add_row(
            result.name, f"{result.median:.3g}", ratio, f"{result.images_per_second:.0f}", peak
        )
    return shown


def traffic_table(ours: Measurement, processes: int) -> Table:
    """Return a table of each process's collective traffic in a step and a calibration batch."""
    shown = Table("", "purpose", "calls", "bytes", title=f"collectives, {processes} processes")
    for when, traffic in (("step", ours.traffic), ("calibration", ours.calibration_traffic)):
        for purpose, given in traffic.items():
            shown.add_row(when, purpose, f"{given.calls:,}", f"{given.bytes:,}")
        calls = sum(given.calls for given in traffic.values())
        size = sum(given.bytes for given in traffic.values())
        shown.add_row(when, "all", f"{calls:,}", f"{size:,}", end_section=True)
    return shown


def details(ours: Measurement) -> str:
    """Format our step's time by phase."""
    total = sum(ours.phases.values()) or 1.0
    parts = [f"{name} {ours.phases[name] / total:.0%}" for name in PHASES if name in ours.phases]
    if ours.convolutions is not None:
        parts.append(f"convolutions {ours.convolutions:.0%} of the step")
    return ", ".join(parts)
