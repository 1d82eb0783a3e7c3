"""``gdfq quantize``: a recipe in, a run folder out."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from gdfq.cli._common import (
    CHECKPOINT_EVERY,
    DEVICE,
    EXIT_FAILED,
    OPTIONS,
    RECIPE,
    REPORT,
    WORKERS,
    console,
    print_error,
    print_stopping,
    print_table,
    print_text,
    run_option,
)
from gdfq.cli._recipe_options import takes_recipe_fields
from gdfq.errors import InputError, NonFiniteLossError
from gdfq.memory import keep_freed_memory
from gdfq.recipes import Recipe, resolve_recipe
from gdfq.recipes.bits import parse_bits
from gdfq.report.text import plain_percent
from gdfq.runs import session
from gdfq.runs.folder import IMAGES, PAGE, STUDENT
from gdfq.runs.interrupts import Interrupted, Interrupts
from gdfq.runs.options import Options
from gdfq.runs.progress import console_progress
from gdfq.runs.run import Run


def quantize(
    context: typer.Context,
    recipe: Annotated[str | None, RECIPE] = None,
    out: Annotated[
        Path | None, typer.Option(help="run folder; must not exist or be empty", show_default=False)
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="resume the run in this folder, with its recipe", show_default=False),
    ] = None,
    device: Annotated[str, DEVICE] = "auto",
    workers: Annotated[int | None, WORKERS] = None,
    bits: Annotated[
        list[str] | None,
        typer.Option(
            help="exception for layers by glob pattern, as 'layer1.*=w8a6', 'fc=w8' or "
            "'*.relu=a6'; may be given several times, the last that matches wins",
            show_default=False,
        ),
    ] = None,
    checkpoint_every: Annotated[float, CHECKPOINT_EVERY] = OPTIONS.checkpoint_every,
    tensorboard: Annotated[bool, run_option("tensorboard", "--tensorboard")] = False,
    report: Annotated[bool, REPORT] = True,
    **options: Any,
) -> None:
    """Quantize a recipe's teacher, or any network; any field of a recipe can be overridden.

    Without --recipe, --model gets the constants of cifar10-resnet20, or those of
    imagenet-resnet18-quick (20,000 steps, for a GPU) from 64 pixels on, as in gdfq.quantize.
    """
    given = {key: value for key, value in options.items() if value is not None}
    world = context.obj
    progress = console_progress(console, live=world.first)
    interrupts = Interrupts(signal.SIGINT, signal.SIGTERM, notice=print_stopping)
    keep_freed_memory()

    run_options = Options(
        device=device, checkpoint_every=checkpoint_every, tensorboard=tensorboard, workers=workers,
        world=world, report=report,
    )  # fmt: skip
    if resume is not None:
        _refuse_others({"recipe": recipe, "out": out, "bits": bits, **given})
        folder = resume
    else:
        resolved = resolve_recipe(recipe, {**given, "bits": parse_bits(bits or [])})
        if recipe is None:
            progress.on_status(resolved.description)
        folder = out or _default_folder(resolved)
    again = f"gdfq quantize --resume {shlex.quote(str(folder))}"
    try:
        if resume is not None:
            run = session.resume(folder, progress, run_options, interrupts)
        else:
            run = session.quantize(resolved, folder, progress, run_options, interrupts)
    except (NonFiniteLossError, Interrupted, OSError) as error:
        print_error(f"gdfq: {session.explain_end(error, folder, again)}")
        raise typer.Exit(getattr(error, "exit_code", EXIT_FAILED)) from None
    _print_result(run)


def _refuse_others(options: dict[str, Any]) -> None:
    given = [f"--{key.replace('_', '-')}" for key, value in options.items() if value is not None]
    if given:
        raise InputError(
            f"resume: uses the run's own recipe, in its folder; leave out {', '.join(given)}"
        )


def _default_folder(recipe: Recipe) -> Path:
    spec = recipe.quantization
    mixed = "-mixed" if recipe.bits or spec.first_last_bits is not None else ""
    bits = f"w{spec.weight_bits}a{spec.act_bits}{mixed}"
    return Path("runs") / f"{recipe.name}-{bits}-seed{recipe.training.seed}"


takes_recipe_fields(quantize)


def _print_result(run: Run) -> None:
    result, folder = run.result, run.folder
    table = Table(
        "",
        "top-1",
        title=f"{result.name}, seed {result.seed}",
        caption=f"measured on: {result.evaluation}"
        + f"; {100 * result.float_weight_share:.2f}% of the weights in float"
        * (result.float_weight_share > 0),
    )
    table.add_row("teacher, float32", plain_percent(result.teacher))
    table.add_row(f"student, {result.label}, before fine-tuning", plain_percent(result.before))
    table.add_row(f"student, {result.label}, after fine-tuning", plain_percent(result.after))
    print_table(table)
    print_text(
        f"{result.steps} steps in {result.training_seconds or 0:.0f} s. Student: "
        f"{folder / STUDENT}  Generated images: {folder / IMAGES}"
        + (f"  Report: {folder / PAGE}" if (folder / PAGE).is_file() else "")
    )
