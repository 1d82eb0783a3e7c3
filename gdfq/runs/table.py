"""A run's result as a table, in text and in a notebook."""

from __future__ import annotations

import html
from typing import Any

from gdfq.recipes.bits import bits_label


def text_table(metrics: dict[str, Any], folder: str) -> str:
    """Return the table of :attr:`gdfq.Run.metrics` as lines of text."""
    rows = _rows(metrics)
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, 4))]
        ).rstrip()
        for row in rows
    ]
    return "\n".join([_title(metrics), *lines, _caption(metrics, folder)])


def html_table(metrics: dict[str, Any], folder: str) -> str:
    """Return the same as HTML."""
    head, *rows = _rows(metrics)
    body = "".join(f"<tr>{_cells('th', row[:1])}{_cells('td', row[1:])}</tr>" for row in rows)
    return (
        f'<table class="gdfq-result"><caption>{html.escape(_title(metrics))}</caption>'
        f"<thead><tr>{_cells('th', head)}</tr></thead><tbody>{body}</tbody></table>"
        f"<div>{html.escape(_caption(metrics, folder))}</div>"
    )


def _title(metrics: dict[str, Any]) -> str:
    return f"{metrics['name']}, seed {metrics['seed']}"


def _rows(metrics: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    average = metrics["average_weight_bits"]
    effective = metrics["effective_weight_bits"], metrics["effective_act_bits"]
    bits = bits_label(
        metrics["weight_bits"] if average is None else average,
        metrics["act_bits"],
        metrics["dynamic_ranges"],
        effective,
    )
    share = {
        key: "-" if metrics[key] is None else f"{metrics[key]:.2f}%"
        for key in ("teacher", "before", "after")
    }
    small = _size(metrics["packed_bytes"])
    return [
        ("", "top-1", "bits", "size"),
        ("teacher", share["teacher"], "float32", _size(metrics["float_bytes"])),
        ("student before fine-tuning", share["before"], bits, small),
        ("student after fine-tuning", share["after"], bits, small),
    ]


def _caption(metrics: dict[str, Any], folder: str) -> str:
    state = "" if metrics["finished"] else ", not finished"
    seconds = metrics["training_seconds"]
    time = "" if seconds is None else f" in {seconds:.0f} s"
    share = metrics["float_weight_share"]
    floats = f"; {100 * share:.2f}% of the weights in float" if share else ""
    return (
        f"{metrics['steps']} steps{state}{time}; measured: {metrics['evaluation']}{floats}; "
        f"folder: {folder}"
    )


def _cells(tag: str, row: tuple[str, ...]) -> str:
    return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)


def _size(count: int) -> str:
    """Return a number of bytes in MB or kB."""
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
