"""What the commands share: where they print, how they end, options that several take."""

from __future__ import annotations

import torch
import typer
from rich.console import Console

from gdfq.errors import InputError

console = Console()
errors = Console(stderr=True)

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

DEVICE = typer.Option(help="cpu or cuda; auto takes a GPU where there is one")
WORKERS = typer.Option(
    min=0, help="processes that decode test images; by default one a core, at most 8",
    show_default=False,
)  # fmt: skip


def print_error(message: str) -> None:
    """One line on standard error, as it is."""
    errors.print(message, highlight=False, soft_wrap=True, markup=False)


def resolve_device(name: str) -> str:
    """The device called so; "auto" is a GPU where there is one."""
    gpu = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda") or (name == "cuda" and not gpu):
        raise InputError(f"device: must be auto, cpu, or cuda where there is a GPU, got {name!r}")
    return ("cuda" if gpu else "cpu") if name == "auto" else name


def percent(value: float | None) -> str:
    """A share as text, "-" where there is none."""
    return "-" if value is None else f"{value:.2f}%"


def student_name(average_weight_bits: float, act_bits: int) -> str:
    """What a table calls the student."""
    return f"student, W{round(average_weight_bits, 2):g}A{act_bits}"
