"""What the ``gdfq`` command calls first, outside the package, which takes seconds to import."""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130


def main() -> None:
    """Run :func:`gdfq.cli.main`; Ctrl-C during the imports ends the process without a trace."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else it is ignored, as in a shell's background
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    try:
        from gdfq.cli import main as command
    except ImportError as error:
        if not str(error).startswith("gdfq: "):  # a sentence of gdfq/ops/_native.py
            raise
        raise SystemExit(str(error)) from None

    signal.signal(signal.SIGINT, before)
    command()
