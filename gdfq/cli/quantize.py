"""``gdfq quantize``: a recipe in, a run folder out."""

from __future__ import annotations

import signal
import types
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from gdfq.cli._common import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    console,
    errors,
    percent,
    print_error,
    resolve_device,
    student_name,
)
from gdfq.cli._recipe_options import takes_recipe_fields
from gdfq.errors import NonFiniteLossError
from gdfq.memory import keep_freed_memory
from gdfq.progress import LiveProgress, PlainProgress
from gdfq.recipes import Recipe, load_recipe
from gdfq.recipes.bits import parse_bits
from gdfq.run import Result
from gdfq.run import quantize as run_quantize


def quantize(
    recipe: Annotated[str, typer.Option(help="name (see `gdfq recipes`) or path of a .toml file")],
    out: Annotated[
        Path | None, typer.Option(help="run folder; must not exist or be empty", show_default=False)
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu or cuda; auto takes a GPU where there is one")
    ] = "auto",
    bits: Annotated[
        list[str] | None,
        typer.Option(
            help="exception for layers by glob pattern, as 'layer1.*=w8a6', 'fc=w8' or "
            "'*.relu=a6'; may be given several times, the last that matches wins",
            show_default=False,
        ),
    ] = None,
    **options: Any,
) -> None:
    """Quantize a recipe's teacher; any field of the recipe can be overridden."""
    device = resolve_device(device)
    given = {key: value for key, value in options.items() if value is not None}
    resolved = load_recipe(recipe).with_options({**given, "bits": parse_bits(bits or [])})
    folder = out or _default_folder(resolved)
    progress = LiveProgress(console) if console.is_terminal else PlainProgress(console)
    interrupts = _Interrupts()
    keep_freed_memory()
    try:
        result = run_quantize(resolved, folder, progress, interrupts.arrived, device)
    except NonFiniteLossError as error:
        print_error(f"gdfq: {error}")
        print_error(f"The last sound student is in {folder}")
        raise typer.Exit(EXIT_FAILED) from None
    _print_result(result, folder)
    if not result.finished:
        raise typer.Exit(EXIT_INTERRUPTED)


def _default_folder(recipe: Recipe) -> Path:
    spec = recipe.quantization
    mixed = "-mixed" if recipe.bits or spec.first_last_bits is not None else ""
    bits = f"w{spec.weight_bits}a{spec.act_bits}{mixed}"
    return Path("runs") / f"{recipe.name}-{bits}-seed{recipe.training.seed}"


takes_recipe_fields(quantize)


def _print_result(result: Result, folder: Path) -> None:
    student = student_name(result.average_weight_bits, result.act_bits)
    state = "" if result.finished else f", stopped at step {result.steps}"
    table = Table(
        "",
        "top-1",
        title=f"{result.name}, seed {result.seed}{state}",
        caption=f"measured on: {result.evaluation}",
    )
    table.add_row("teacher, float32", percent(result.teacher))
    table.add_row(f"{student}, before fine-tuning", percent(result.before))
    table.add_row(f"{student}, after fine-tuning", percent(result.after))
    console.print(table)
    console.print(
        f"{result.steps} steps in {result.training_seconds:.0f} s. Student: "
        f"{folder / 'student.safetensors'}  Generated images: {folder / 'images.png'}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


class _Interrupts:
    """The first Ctrl-C asks the run to stop after its step, the second ends it at once."""

    def __init__(self) -> None:
        self.count = 0
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, signum: int, frame: types.FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt
        errors.print("stopping after this step and saving; Ctrl-C again ends at once")

    def arrived(self) -> bool:
        return self.count > 0
