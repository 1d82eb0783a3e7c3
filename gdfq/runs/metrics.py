"""``metrics.jsonl``: one line of JSON for every epoch of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gdfq.files import write_file


class Metrics:
    """The file's records, also kept in memory: checkpoints hold them, a full disk delays them.

    Args:
        path: of the file.
        on_warning: called with a line when a record cannot be written; the next one writes it too.
    """

    def __init__(self, path: Path, on_warning: Callable[[str], None]) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        self.on_warning = on_warning
        self._behind = False

    def write(self) -> None:
        """Make the file hold the records and nothing else.

        Raises:
            OSError: it cannot be written.
        """
        write_file(self.path, "".join(map(_line, self.records)).encode())
        self._behind = False

    def append(self, record: dict[str, Any]) -> None:
        """Add an epoch's record."""
        self.records.append(record)
        try:
            if self._behind:
                self.write()
            else:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(_line(record))
        except OSError as error:
            self._behind = True
            self.on_warning(
                f"cannot write {self.path}: {error.strerror}; its last line follows with the next"
            )


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"
