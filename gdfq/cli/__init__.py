"""The ``gdfq`` command: one module a subcommand, each a thin layer over the package."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import Annotated

import typer

from gdfq import distributed
from gdfq.cli._common import (
    EXIT_FAILED,
    NARROW,
    console,
    errors,
    explain,
    leave,
    print_error,
    print_text,
)
from gdfq.cli.bench import bench
from gdfq.cli.data import data
from gdfq.cli.evaluate import evaluate
from gdfq.cli.export import export
from gdfq.cli.info import info
from gdfq.cli.inspect import inspect
from gdfq.cli.quantize import quantize
from gdfq.cli.recipes import recipes
from gdfq.cli.report import report
from gdfq.cli.suggest_bits import suggest_bits
from gdfq.cli.sweep import sweep
from gdfq.distributed import World
from gdfq.environment import __version__
from gdfq.runs.console import Output

app = typer.Typer(
    help="Quantize a trained convolutional network to a few bits, without its training data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    quantize, sweep, suggest_bits, evaluate, export, report, inspect, recipes, data, bench, info,
):  # fmt: skip
    app.command()(command)


def _version(show: bool) -> None:
    if show:
        print_text(f"gdfq {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: one-line errors, exit code 2 for invalid input."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) < NARROW:
        del os.environ["COLUMNS"]  # nothing is left of help and tables in so few
    out, err = Output(sys.stdout, _lost), Output(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        code = _run()
        out.flush()
    out.leave()
    err.leave()
    sys.exit(code or (EXIT_FAILED if out.failure else 0))


def _lost(error: OSError) -> None:
    print_error(
        f"gdfq: cannot write to standard output: {error.strerror}; what is printed from here on is "
        "lost"
    )


def _run() -> int:
    """Run the command; return its exit code."""
    world = World()
    try:
        world = distributed.start()
        console.quiet = errors.quiet = world.rank > 0
        code = _command(world)
        if code:
            world.note_failure()
        distributed.stop(world)
        return code
    except (Exception, KeyboardInterrupt) as error:
        if world.parallel:
            leave(world, error)
        message, code = explain(error)
        if message is None:
            raise
        if message:
            print_error(f"gdfq: {message}")
        return code


def _command(world: World) -> int:
    """Run ``app`` as a call would, but raise Ctrl-C."""
    try:
        command = typer.main.get_command(app)
        with command.make_context("gdfq", sys.argv[1:], obj=world) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return 0
