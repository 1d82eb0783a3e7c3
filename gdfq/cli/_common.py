"""Shared by the commands: printing, exit codes, options that several take."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from typing import Any, NoReturn

import torch
import typer
from rich.table import Table
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from gdfq.distributed import World
from gdfq.errors import InputError, ProcessLostError
from gdfq.runs.console import make_console, print_line
from gdfq.runs.options import Options

console = make_console()
errors = make_console(stderr=True)

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

NARROW = 40  # columns; a table that is wrapped to fewer has nothing left in its cells


def run_option(name: str, *flags: str, **more: Any) -> Any:
    """Return the option of the field ``name`` of a run's options."""
    field = Options.model_fields[name]
    shown = field.default is not None
    return typer.Option(*flags, help=field.description, show_default=shown, **more)


DEVICE = run_option("device")
WORKERS = run_option("workers", min=0)
CHECKPOINT_EVERY = run_option("checkpoint_every")
REPORT = run_option("report", "--report/--no-report")
OPTIONS = Options()  # the defaults
RECIPE = typer.Option(
    help="name (see `gdfq recipes`) or path of a .toml file; without one, --model with the "
    "constants of cifar10-resnet20, or of imagenet-resnet18-quick from 64 pixels on",
    show_default=False,
)


def print_text(text: str, style: str | None = None) -> None:
    """Print a line on standard output, as it is."""
    print_line(console, text, style)


def print_error(message: str) -> None:
    """Print a line on standard error, as it is."""
    print_line(errors, message)


def print_warning(text: str) -> None:
    """Print a warning on standard error."""
    print_error(f"warning: {text}")


def print_stopping() -> None:
    """Print that a signal has arrived; for :class:`gdfq.runs.interrupts.Interrupts`."""
    print_error("stopping after this step and saving; a second signal ends at once")


def explain(error: BaseException) -> tuple[str | None, int]:
    """Return a line about an error, None if only a traceback will do, and the exit code.

    The line is empty where everything has been said.
    """
    if isinstance(error, InputError):
        return str(error), EXIT_BAD_INPUT
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", EXIT_INTERRUPTED
    if isinstance(error, ProcessLostError):
        return str(error), EXIT_FAILED
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        problem = str(error).splitlines()[0] if str(error) else "MemoryError"
        return f"not enough memory: {problem}; a smaller batch_size needs less", EXIT_FAILED
    # Errors of the command line's own parsing, whose classes Typer does not make public.
    message = getattr(error, "format_message", None)
    if message is not None:
        # Empty where there was no argument at all, for which the help is printed.
        return message() and f"{message()} (see gdfq --help)", EXIT_BAD_INPUT
    return None, EXIT_FAILED


def natural_width(table: Table) -> int:
    """Return the columns that ``table`` takes with nothing in it wrapped."""
    return console.measure(table, options=console.options.update(max_width=10_000)).maximum


def print_table(table: Table) -> None:
    """Print a table, wrapped to a terminal unless that is very narrow; unwrapped elsewhere."""
    if not console.is_terminal or console.width < NARROW:
        table.width = natural_width(table)
    console.print(table, crop=False)


# The launcher looks ten times a second for processes that ended, and names the first as the cause.
SECONDS_BEHIND_THE_CAUSE = 3.0


def leave(world: World, error: BaseException) -> NoReturn:
    """Print an error, once for all processes, and end this one of many at once."""
    message, code = explain(error)
    if world.should_report(error):
        errors.quiet = False
        text = message or "".join(traceback.format_exception(error)).rstrip()
        print_error(f"gdfq: rank {world.rank}: {text}")
    if isinstance(error, ProcessLostError):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which the launcher ends the wait
        time.sleep(SECONDS_BEHIND_THE_CAUSE)
    else:
        # For the launcher's own report, which comes last; where one line says it, without stack.
        try:
            raise error.with_traceback(None if message else error.__traceback__) from None
        except BaseException as raised:
            get_error_handler().record_exception(raised)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # Not sys.exit: leaving the others in good order would wait for those that are gone.
    os._exit(code)
