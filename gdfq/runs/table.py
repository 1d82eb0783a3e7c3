"""A run's result as a table, in text and in a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path

from gdfq.report.contents import Result
from gdfq.report.text import plain_percent, size


def text_table(result: Result, sizes: Mapping[str, int], folder: Path) -> str:
    """Return the table as lines of text; ``sizes`` are those of :attr:`gdfq.Run.metrics`."""
    rows = _rows(result, sizes)
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, 4))]
        ).rstrip()
        for row in rows
    ]
    return "\n".join([_title(result), *lines, _caption(result, folder)])


def html_table(result: Result, sizes: Mapping[str, int], folder: Path) -> str:
    """Return the same as HTML."""
    head, *rows = _rows(result, sizes)
    body = "".join(f"<tr>{_cells('th', row[:1])}{_cells('td', row[1:])}</tr>" for row in rows)
    return (
        f'<table class="gdfq-result"><caption>{html.escape(_title(result))}</caption>'
        f"<thead><tr>{_cells('th', head)}</tr></thead><tbody>{body}</tbody></table>"
        f"<div>{html.escape(_caption(result, folder))}</div>"
    )


def _title(result: Result) -> str:
    return f"{result.name}, seed {result.seed}"


def _rows(result: Result, sizes: Mapping[str, int]) -> list[tuple[str, str, str, str]]:
    small = size(sizes["packed_bytes"])
    return [
        ("", "top-1", "bits", "size"),
        ("teacher", plain_percent(result.teacher), "float32", size(sizes["float_bytes"])),
        ("student before fine-tuning", plain_percent(result.before), result.label, small),
        ("student after fine-tuning", plain_percent(result.after), result.label, small),
    ]


def _caption(result: Result, folder: Path) -> str:
    state = "" if result.finished else ", not finished"
    seconds = result.training_seconds
    time = "" if seconds is None else f" in {seconds:.0f} s"
    share = result.float_weight_share
    floats = f"; {100 * share:.2f}% of the weights in float" if share else ""
    return (
        f"{result.steps} steps{state}{time}; measured: {result.evaluation}{floats}; "
        f"folder: {folder}"
    )


def _cells(tag: str, row: tuple[str, ...]) -> str:
    return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
