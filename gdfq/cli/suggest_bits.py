"""``gdfq suggest-bits``: a recipe and a budget in, a recipe with bits for each layer out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from gdfq.bit_widths.sensitivity import WIDTHS
from gdfq.bit_widths.suggest import Suggestion, check_budget
from gdfq.bit_widths.suggest import suggest_bits as suggest
from gdfq.cli._common import (
    DEVICE,
    EXIT_INTERRUPTED,
    RECIPE,
    console,
    print_error,
    print_table,
    print_text,
)
from gdfq.cli._recipe_options import takes_recipe_fields
from gdfq.environment import resolve_device
from gdfq.errors import InputError
from gdfq.memory import keep_freed_memory
from gdfq.recipes import resolve_recipe
from gdfq.runs.progress import console_progress


def suggest_bits(
    context: typer.Context,
    budget: Annotated[float, typer.Option(help="bits of weights, 2 to 8, averaged over them all")],
    recipe: Annotated[str | None, RECIPE] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="recipe to write, a .toml file; must not exist", show_default=False),
    ] = None,
    steps: Annotated[int, typer.Option(help="training steps of the generator")] = 200,
    batches: Annotated[int, typer.Option(help="generated batches to measure on")] = 4,
    device: Annotated[str, DEVICE] = "auto",
    **options: Any,
) -> None:
    """Choose each layer's bits: the least sensitive choice within a budget, as a recipe.

    Each layer's weights alone are quantized to each width, and the network's predictions on
    generated images compared with the teacher's.
    """
    if context.obj.parallel:
        raise InputError("suggest-bits: runs in one process; start it without torchrun")
    check_budget(budget)
    device = resolve_device(device)
    given = {key: value for key, value in options.items() if value is not None}
    resolved = resolve_recipe(recipe, given)
    path = out or Path(f"{resolved.name}-{budget:g}bits.toml")
    _check_path(path)
    progress = console_progress(console)
    keep_freed_memory()
    try:
        suggestion = suggest(resolved, budget, progress, steps, batches, device)
    except KeyboardInterrupt:
        print_error("gdfq: interrupted; no recipe was written")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    _print_suggestion(suggestion, budget)
    _write(path, suggestion.recipe.to_toml())
    print_text(f"Recipe: {path}  Run it: gdfq quantize --recipe {shlex.quote(str(path))}")


takes_recipe_fields(suggest_bits, without=("weight_bits", "first_last_bits"))


def _check_path(path: Path) -> None:
    if path.suffix != ".toml":
        raise InputError(f"out: must be a .toml file, got {path}")
    if path.exists():
        raise InputError(f"out: {path} exists; nothing is overwritten")
    if not path.parent.is_dir():
        raise InputError(f"out: there is no folder {path.parent}")


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InputError(f"out: cannot write {path}: {error.strerror}") from error


def _print_suggestion(suggestion: Suggestion, budget: float) -> None:
    average = f"{round(suggestion.average_weight_bits, 3):g}"
    table = Table(
        title=f"bits by layer, {average} on average, budget {budget:g}",
        caption="by width: how far predictions are from the teacher's with this layer alone "
        "quantized, KL divergence in 1/1000 nat",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    names = [layer.name for layer in suggestion.layers]
    table.add_column("layer", min_width=max(map(len, names)))
    for column in ("weights", *map(str, WIDTHS), "bits"):
        table.add_column(column, justify="right", no_wrap=True)
    for layer in suggestion.layers:
        chosen = suggestion.bits[layer.name]
        cells = [
            Text(_short(1000 * layer.sensitivity[width]), "bold" if width == chosen else "")
            for width in WIDTHS
        ]
        table.add_row(layer.name, f"{layer.parameters:,}", *cells, str(chosen))
    print_table(table)
    equal = ", ".join(
        f"{_short(1000 * divergence)} at {width} everywhere"
        for width, divergence in suggestion.uniform.items()
    )
    print_text(
        f"All layers quantized: {_short(1000 * suggestion.divergence)} at these bits ({average} on "
        f"average, budget {budget:g}), {equal}."
    )


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}"
