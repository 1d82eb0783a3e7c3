"""The ``gdfq`` command; what it does lives in :mod:`gdfq.run`."""

from __future__ import annotations

import inspect
import signal
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import torch
import typer
from rich.console import Console
from rich.table import Table

from gdfq import __version__
from gdfq.bench.measure import Settings, check_rivals, measure
from gdfq.bench.networks import WORKLOADS
from gdfq.bench.report import details
from gdfq.bench.report import table as bench_table
from gdfq.data import load_test_images, top1
from gdfq.environment import environment
from gdfq.errors import InputError, NonFiniteLossError
from gdfq.memory import keep_freed_memory
from gdfq.progress import LiveProgress, PlainProgress
from gdfq.recipes import load_recipe, recipe_names
from gdfq.recipes.schema import fields
from gdfq.run import Result, load_run
from gdfq.run import quantize as run_quantize

app = typer.Typer(
    help="Quantize a trained convolutional network to a few bits, without its training data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def _option_type(annotation: Any) -> Any:
    """The command line's type of a recipe field's annotation."""
    if get_origin(annotation) is Annotated:
        return _option_type(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return str
    if get_origin(annotation) is list:
        return list[_option_type(get_args(annotation)[0])]  # type: ignore[misc]
    return annotation


def _recipe_options() -> list[inspect.Parameter]:
    """One option per recipe field: ``--weight-bits`` for ``quantization.weight_bits``."""
    parameters = []
    for section, key, definition in fields():
        flag = f"--{key.replace('_', '-')}"
        if definition.annotation is bool:
            flag += f"/--no-{flag[2:]}"
        option = typer.Option(
            flag,
            help=definition.description,
            rich_help_panel=f"Recipe: {section}" if section else "Recipe",
            show_default=False,
        )
        kind: Any = Annotated[_option_type(definition.annotation) | None, option]
        parameters.append(
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        )
    return parameters


def quantize(
    recipe: Annotated[str, typer.Option(help="name (see `gdfq recipes`) or path of a .toml file")],
    out: Annotated[
        Path | None, typer.Option(help="run folder; must not exist or be empty", show_default=False)
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu or cuda; auto takes a GPU where there is one")
    ] = "auto",
    **options: Any,
) -> None:
    """Quantize a recipe's teacher; any field of the recipe can be overridden."""
    device = _device(device)
    given = {key: value for key, value in options.items() if value is not None}
    resolved = load_recipe(recipe).with_options(given)
    bits = f"w{resolved.quantization.weight_bits}a{resolved.quantization.act_bits}"
    folder = out or Path("runs") / f"{resolved.name}-{bits}-seed{resolved.training.seed}"
    progress = LiveProgress(console) if console.is_terminal else PlainProgress(console)
    interrupts = _Interrupts()
    keep_freed_memory()
    try:
        result = run_quantize(resolved, folder, progress, interrupts.arrived, device)
    except NonFiniteLossError as error:
        errors.print(f"gdfq: {error}", highlight=False, soft_wrap=True, markup=False)
        errors.print(
            f"The last sound student is in {folder}", highlight=False, soft_wrap=True, markup=False
        )
        raise typer.Exit(EXIT_FAILED) from None
    _print_result(result, folder)
    if not result.finished:
        raise typer.Exit(EXIT_INTERRUPTED)


_signature = inspect.signature(quantize, eval_str=True)
quantize.__signature__ = _signature.replace(  # type: ignore[attr-defined]
    parameters=[
        *(p for p in _signature.parameters.values() if p.kind is not p.VAR_KEYWORD),
        *_recipe_options(),
    ]
)
app.command()(quantize)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="a run folder, written by `gdfq quantize`")],
) -> None:
    """Measure a run's student and its teacher on the recipe's test images."""
    recipe, teacher, student = load_run(run)
    spec = recipe.teacher
    if spec.data == "none":
        raise InputError(f"data: the recipe of {run} names no data set to measure on")
    images, labels = load_test_images(spec.data, spec.mean, spec.std)
    table = Table("", f"top-1 on {len(labels):,} test images of {spec.data}")
    table.add_row("teacher", _percent(top1(teacher, images, labels)))
    table.add_row(_bits(recipe.quantization), _percent(top1(student, images, labels)))
    console.print(table)


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="show this one, in full", show_default=False)
    ] = None,
) -> None:
    """List the recipes, or show one with every field."""
    if name is not None:
        typer.echo(load_recipe(name).to_toml(), nl=False)
        return
    table = Table("recipe", "what it is")
    for recipe in map(load_recipe, recipe_names()):
        table.add_row(recipe.name, recipe.description)
    console.print(table)


@app.command()
def bench(
    network: Annotated[str, typer.Option(help=f"one of {', '.join(WORKLOADS)}")] = "resnet20",
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="also time plain (PyTorch), frozen (the same, teacher frozen) or compile (that "
            "under torch.compile), in turns; may be given several times",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="images per step", show_default=False)
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="height and width of an image", show_default=False)
    ] = None,
    weight_bits: Annotated[int, typer.Option(help="bits of weights")] = 4,
    act_bits: Annotated[int, typer.Option(help="bits of activations")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="steps to take the median of")] = 7,
    warm_up: Annotated[bool, typer.Option(help="time the phase without the student")] = False,
    precision: Annotated[str, typer.Option(help="fp32, tf32 or bf16; ours only")] = "fp32",
    memory_format: Annotated[
        str, typer.Option(help="auto, channels_last or contiguous; ours only")
    ] = "auto",
    fuse: Annotated[bool, typer.Option(help="fuse the student's layers; ours only")] = True,
    keep_pages: Annotated[
        bool, typer.Option(help="let the others keep freed memory too, as ours does")
    ] = False,
    memory: Annotated[bool, typer.Option(help="measure peak memory too")] = True,
    device: Annotated[
        str, typer.Option(help="cpu or cuda; auto takes a GPU where there is one")
    ] = "auto",
) -> None:
    """Time a training step on random images: by phase, and beside other formulations."""
    if network not in WORKLOADS:
        raise InputError(f"network: must be one of {', '.join(WORKLOADS)}, got {network!r}")
    device = _device(device)
    workload = WORKLOADS[network]
    if batch_size is not None:
        workload = replace(workload, batch_size=batch_size)
    if image_size is not None:
        workload = replace(workload, image_size=image_size)
    settings = Settings(
        weight_bits, act_bits, steps, warm_up, device, fuse, keep_pages,
        {"precision": precision, "memory_format": memory_format},
    )  # fmt: skip
    rivals = check_rivals(against or [])
    results, trainer = measure(workload, settings, rivals, memory)
    phase = "warm-up" if warm_up else "fine-tuning"
    size = f"{workload.image_size}x{workload.image_size}"
    title = f"{network}, {size}, batch {workload.batch_size}, {phase}, median of {steps}"
    console.print(bench_table(results, title))
    for text in (details(results[0]), trainer.describe()):
        console.print(text, highlight=False, soft_wrap=True, markup=False)


@app.command()
def info() -> None:
    """Print what was built, which kernels run on CPU and CUDA tensors, and versions."""
    table = Table(show_header=False)
    for key, value in environment().items():
        table.add_row(key, "-" if value is None else str(value))
    console.print(table)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"gdfq {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    pass


def _device(name: str) -> str:
    """The device called so; "auto" is a GPU where there is one."""
    gpu = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda") or (name == "cuda" and not gpu):
        raise InputError(f"device: must be auto, cpu, or cuda where there is a GPU, got {name!r}")
    return ("cuda" if gpu else "cpu") if name == "auto" else name


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}%"


def _bits(spec: Any) -> str:
    return f"student, W{spec.weight_bits}A{spec.act_bits}"


def _print_result(result: Result, folder: Path) -> None:
    state = "" if result.finished else f", stopped at step {result.steps}"
    table = Table(
        "",
        "top-1",
        title=f"{result.name}, seed {result.seed}{state}",
        caption=f"measured on: {result.evaluation}",
    )
    table.add_row("teacher, float32", _percent(result.teacher))
    table.add_row(f"{_bits(result)}, before fine-tuning", _percent(result.before))
    table.add_row(f"{_bits(result)}, after fine-tuning", _percent(result.after))
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


def main() -> None:
    """Entry point: one-line errors, exit code 2 for what the user gave."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except InputError as error:
        errors.print(f"gdfq: {error}", highlight=False, soft_wrap=True, markup=False)
        sys.exit(EXIT_BAD_INPUT)
    except Exception as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(
            error
        ):
            problem = str(error).splitlines()[0] if str(error) else "MemoryError"
            errors.print(
                f"gdfq: not enough memory: {problem}; a smaller batch_size needs less",
                highlight=False, soft_wrap=True, markup=False,
            )  # fmt: skip
            sys.exit(EXIT_FAILED)
        # Errors of the command line's own parsing, whose classes Typer does not make public.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        errors.print(
            f"gdfq: {message()} (see gdfq --help)", highlight=False, soft_wrap=True, markup=False
        )
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        errors.print("gdfq: interrupted")
        sys.exit(EXIT_INTERRUPTED)
