"""Printing to any terminal, file or closed stream, in any encoding, without markup."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, TextIO

from rich.console import Console, ConsoleDimensions


class Output:
    """A stream that never fails: it escapes what it cannot encode, and drops what it cannot write.

    Args:
        stream: where text goes; None is a stream that was closed before the process started.
        failed: called with the error of the first write that fails; nothing is written after that.
    """

    def __init__(
        self, stream: TextIO | None, failed: Callable[[OSError], None] = lambda error: None
    ) -> None:
        self.stream = stream
        self.failed = failed
        self.failure: OSError | None = None

    @property
    def encoding(self) -> str:
        """The stream's encoding."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write ``text`` as far as that is possible; its length."""
        if not isinstance(text, str):  # by which others know a stream of text
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if self.failure is not None:
            return len(text)
        try:
            if self.stream is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self.stream.write(text)
        except UnicodeEncodeError:
            # The dots are Rich's own, where it cuts; as one letter they keep the lines' lengths.
            escaped = text.replace("\N{HORIZONTAL ELLIPSIS}", "~")
            self.write(escaped.encode(self.encoding, "backslashreplace").decode(self.encoding))
        except OSError as error:
            self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream as far as that is possible."""
        if self.failure is not None or self.stream is None:
            return
        try:
            self.stream.flush()
        except OSError as error:
            self._fail(error)

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self.stream is not None and self.stream.isatty()

    def _fail(self, error: OSError) -> None:
        self.failure = error
        self.failed(error)

    def leave(self) -> None:
        """Drop what a failed stream still holds, so that the process exits quietly."""
        if self.failure is not None and self.stream is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _Console(Console):
    """A console that loses no lines if COLUMNS is 0."""

    @property
    def size(self) -> ConsoleDimensions:
        found = super().size
        return ConsoleDimensions(max(1, found.width), max(1, found.height))

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        Console.size.fset(self, new_size)  # type: ignore[attr-defined]


def make_console(file: Output | None = None, stderr: bool = False) -> Console:
    """Make a console that shows strings as they are, without markup, emoji or highlighting.

    What is to look otherwise is a ``rich.text.Text``, or is printed with a style.

    Args:
        file: where it prints; None is what ``sys.stdout`` is at the time.
        stderr: print to ``sys.stderr`` instead.
    """
    return _Console(file=file, stderr=stderr, markup=False, emoji=False, highlight=False)  # type: ignore[arg-type]


def is_live(console: Console) -> bool:
    """Whether ``console`` prints to a terminal on which a line can be written again.

    A file is none, although FORCE_COLOR has Rich take it for a terminal.
    """
    interactive = console.is_terminal and console.is_interactive and not console.is_dumb_terminal
    return interactive and console.file.isatty()


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """Print ``text`` as it is, not wrapped."""
    console.print(text, style=style, soft_wrap=True)
