"""The documents: their blocks of code, and what stands in front of each."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^( *)```(\w*) *(.*)$")
MARKER = re.compile(r"<!-- (test|quoted|before): ?(.*?)-->", re.S)


@dataclass
class Block:
    """A fenced block.

    Attributes:
        page: its document, relative to the repository.
        line: of its first line of code, from 1.
        language: as the fence says.
        info: what else the fence says.
        code: without the fence's indentation.
        markers: comments in front of it: ``<!-- before: CODE -->`` is run before the block,
            ``<!-- test: needs a GPU -->`` and ``<!-- test: not run, REASON -->`` say when it is
            not run, ``<!-- quoted: FILE -->`` that it stands in a file, word for word.
    """

    page: str
    line: int
    language: str
    info: str
    code: str
    markers: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Every document that a reader is shown."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a document."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    since = 0  # behind the last block: where its markers can be
    at = 0
    while at < len(lines):
        opened = FENCE.match(lines[at])
        if opened is None:
            at += 1
            continue
        indent, language, info = opened.groups()
        end = lines.index(f"{indent}```", at + 1)
        code = "\n".join(line.removeprefix(indent) for line in lines[at + 1 : end]) + "\n"
        before = "\n".join(lines[since:at])
        markers = {
            match[1]: match[2].strip()
            for match in MARKER.finditer(before)
            # Only what stands right in front of the fence, other markers aside.
            if not MARKER.sub("", before[match.end() :]).strip()
        }
        name = str(page.relative_to(ROOT))
        found.append(Block(name, at + 2, language, info, code, markers))
        at = since = end + 1
    return found


def commands(block: Block) -> list[list[str]]:
    """The ``gdfq`` commands in a block of a shell, as arguments."""
    found = []
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["gdfq"]:
            found.append(words[1:])
        elif words[:1] in (["torchrun"], ["python"]) and "gdfq" in words:
            assert words[words.index("gdfq") - 1] == "-m", f"{block.where}: {line}"
            found.append(words[words.index("gdfq") + 1 :])
    return found
