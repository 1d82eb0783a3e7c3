"""The ``gdfq`` command: one module a subcommand, each a thin layer over the package."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gdfq import __version__, distributed
from gdfq.cli._common import console, errors, explain, leave, print_error
from gdfq.cli.bench import bench
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

app = typer.Typer(
    help="Quantize a trained convolutional network to a few bits, without its training data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    quantize, sweep, suggest_bits, evaluate, export, report, inspect, recipes, bench, info,
):  # fmt: skip
    app.command()(command)


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


def main() -> None:
    """Entry point: one-line errors, exit code 2 for what the user gave."""
    world = World()
    try:
        world = distributed.start()
        console.quiet = errors.quiet = world.rank > 0
        code = app(standalone_mode=False, obj=world) or 0
        if code:
            world.note_failure()
        distributed.stop(world)
    except (Exception, KeyboardInterrupt) as error:
        if world.parallel:
            leave(world, error)
        message, code = explain(error)
        if message is None:
            raise
        print_error(f"gdfq: {message}")
    sys.exit(code)
