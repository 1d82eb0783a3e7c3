"""The ``gdfq`` command: one module a subcommand, each a thin layer over the package."""

from __future__ import annotations

import sys
from typing import Annotated

import torch
import typer

from gdfq import __version__
from gdfq.cli._common import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, print_error
from gdfq.cli.bench import bench
from gdfq.cli.evaluate import evaluate
from gdfq.cli.export import export
from gdfq.cli.info import info
from gdfq.cli.inspect import inspect
from gdfq.cli.quantize import quantize
from gdfq.cli.recipes import recipes
from gdfq.cli.suggest_bits import suggest_bits
from gdfq.errors import InputError

app = typer.Typer(
    help="Quantize a trained convolutional network to a few bits, without its training data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    quantize, suggest_bits, evaluate, export, inspect, recipes, bench, info,
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
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except InputError as error:
        print_error(f"gdfq: {error}")
        sys.exit(EXIT_BAD_INPUT)
    except Exception as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(
            error
        ):
            problem = str(error).splitlines()[0] if str(error) else "MemoryError"
            print_error(f"gdfq: not enough memory: {problem}; a smaller batch_size needs less")
            sys.exit(EXIT_FAILED)
        # Errors of the command line's own parsing, whose classes Typer does not make public.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        print_error(f"gdfq: {message()} (see gdfq --help)")
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        print_error("gdfq: interrupted")
        sys.exit(EXIT_INTERRUPTED)
