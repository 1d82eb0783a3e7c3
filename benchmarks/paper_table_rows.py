"""Write the table of ``benchmarks/paper_table.py``, with published figures beside ours."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import readme
from benchmarks.accuracy_tables import plot_lengths, spread_text
from gdfq.recipes.files import parse_toml, read_text
from gdfq.sweeps.summary import spread

RESULTS = Path(__file__).parent / "results"
PUBLISHED = Path(__file__).with_name("published.toml")
DOCS = Path(__file__).parents[1] / "docs"
BITS = ("W8A8", "W6A6", "W5A5", "W4A4", "W3A3", "W2A4")
RECIPES = ("paper", "default")
AGAINST = ("GDFQ", "SynQ")  # published methods in the short tables
NOTHING = "-"
UNMEASURED = "Not measured yet; `python -m benchmarks.paper_table --folder FOLDER` writes it."


@dataclass(frozen=True)
class Outcome:
    """A finished run. Accuracies in percent; what was not measured is None.

    Attributes:
        network: its title.
        bits: ``"W4A4"``.
        recipe: one of ``RECIPES``.
        first_last_bits: of the first and the last layer, where they differ.
        seed: of the run.
        teacher, before, after: top-1 of the teacher and of the student around fine-tuning.
        evaluation: images of that.
        agreement: top-1 agreement with the teacher.
        compared: images of that.
        seconds: of training.
        steps: of training, warm-up included.
        images: generated in these.
        machine: and versions.
    """

    network: str
    bits: str
    recipe: str
    first_last_bits: int | None
    seed: int
    teacher: float | None
    before: float | None
    after: float | None
    evaluation: str
    agreement: float | None
    compared: str
    seconds: float
    steps: int
    images: int
    machine: str

    @property
    def lost(self) -> float | None:
        """The teacher's top-1 less the student's."""
        return None if self.teacher is None or self.after is None else self.teacher - self.after

    @property
    def key(self) -> tuple[Any, ...]:
        """Which run it is."""
        return self.network, self.bits, self.recipe, self.first_last_bits, self.seed


@dataclass(frozen=True)
class Published:
    """A published figure: top-1 in percent of a method's student.

    ``images`` is the number that its schedule generates, where known.
    """

    method: str
    source: str
    network: str
    bits: str
    first_last_bits: int | None
    teacher: float
    top1: float
    images: int | None

    @property
    def lost(self) -> float:
        """The teacher's top-1 less the student's."""
        return self.teacher - self.top1


def published(path: Path = PUBLISHED) -> list[Published]:
    """Return all published figures, method by method."""
    tables = parse_toml(read_text(path, "published"), "published", str(path))
    images = tables["images"]
    return [
        Published(
            method["name"], method["source"], network, bits, method.get("first_last_bits"),
            tables["teachers"][network], top1, images.get(method["name"], {}).get(network),
        )
        for method in tables["method"]
        for bits, figures in method.items()
        if isinstance(figures, dict)
        for network, top1 in figures.items()
    ]  # fmt: skip


def merged(earlier: Iterable[Outcome], found: Iterable[Outcome]) -> list[Outcome]:
    """Return all outcomes, ``found`` in place of earlier ones of the same run."""
    return list({outcome.key: outcome for outcome in (*earlier, *found)}.values())


def read(path: Path) -> list[Outcome]:
    """Return the outcomes in a file that :func:`write` wrote; none without a file."""
    if not path.exists():
        return []
    return [Outcome(**row) for row in json.loads(path.read_text())["runs"]]


def write(outcomes: Sequence[Outcome], out: Path) -> None:
    """Write ``out`` and the data beside it; where that is the repository's, the pages too."""
    out.parent.mkdir(parents=True, exist_ok=True)
    record = {"runs": [asdict(outcome) for outcome in outcomes]}
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    out.write_text(markdown(outcomes), encoding="utf-8")
    if out.parent == RESULTS:
        for document in (readme.README, DOCS / "limits.md"):
            readme.write("paper-table", short(outcomes), document)
        readme.write("published", published_table(), DOCS / "limits.md")


def write_lengths(outcomes: Sequence[Outcome], place: Path | None = None) -> None:
    """Write runs of several lengths, of one network: data, plot, and the table in a page.

    ``place`` gets data and plot alone, None stands for the repository.
    """
    name = "paper-table-length"
    record = json.dumps({"runs": [asdict(outcome) for outcome in outcomes]}, indent=1)
    (place or RESULTS).joinpath(f"{name}.json").write_text(record + "\n", encoding="utf-8")
    lines = {
        bits: [(o.seconds / 60, o.after) for o in outcomes if o.bits == bits and o.after]
        for bits in dict.fromkeys(outcome.bits for outcome in outcomes)
    }
    label = f"minutes of training; {outcomes[0].machine}"
    picture = (place or DOCS / "images") / f"{name}.png"
    plot_lengths(lines, outcomes[0].teacher or 0.0, label, picture)
    if place is None:
        readme.write(name, lengths_table(outcomes), DOCS / "accuracy.md")


# ---- tables ----

_HEAD = (
    "| bits | | seeds | before fine-tuning | after | lost | lost, first and last layer at 8 bits | "
    "agreement with the teacher | minutes | images generated |\n" + "|---" * 10 + "|"
)


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Return the whole table, network by network, published figures beside ours."""
    lines = [
        "# The paper's table",
        "",
        "Written by `python -m benchmarks.paper_table`. Top-1 in percent, mean and standard",
        "deviation over seeds; a loss is the teacher's top-1 less the student's, in points. Rows",
        "marked *published* are not measured here: their teachers are others, so compare what is",
        "lost. Sources are in `benchmarks/published.toml`.",
    ]
    for network in dict.fromkeys(outcome.network for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.network == network]
        others = [figure for figure in published() if figure.network == network]
        lines += ["", f"## {network}", "", *_facts(own, others), "", _HEAD]
        widths = {outcome.bits for outcome in own} | {figure.bits for figure in others}
        for bits in sorted(widths, key=_place):
            for recipe in RECIPES:
                lines += _row(bits, recipe, own)
            lines += [_published_row(figure) for figure in others if figure.bits == bits]
    if not outcomes:
        lines += ["", UNMEASURED]
    return "\n".join(lines) + "\n"


def short(outcomes: Sequence[Outcome]) -> str:
    """Return one table of all networks: what the default loses, beside published losses."""
    if not outcomes:
        return UNMEASURED
    lines = [
        "| network | bits | teacher | paper's recipe, lost | default recipe, lost | first and last "
        "layer at 8 bits, lost | agreement with the teacher | "
        + " | ".join(f"{method}, published, lost" for method in AGAINST)
        + " |",
        "|---" * (7 + len(AGAINST)) + "|",
    ]
    for network in dict.fromkeys(outcome.network for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.network == network]
        lost = {(f.method, f.bits): f.lost for f in published() if f.network == network}
        for bits in sorted({outcome.bits for outcome in own}, key=_place):
            default = _of(own, bits, "default", None)
            cells = [
                _mean(_of(own, bits, "paper", None), "lost"),
                f"**{_mean(default, 'lost')}**" if default else NOTHING,
                _mean(default if bits == "W8A8" else _of(own, bits, "default", 8), "lost"),
                _mean(default, "agreement"),
                *(_two(lost.get((method, bits))) for method in AGAINST),
            ]
            teacher = _mean([o for o in own if o.bits == bits][:1], "teacher")
            lines.append(f"| {network} | {bits} | {teacher} | {' | '.join(cells)} |")
    return "\n".join(lines)


def lengths_table(outcomes: Sequence[Outcome]) -> str:
    """Return the plot and a row for each run of :func:`write_lengths`."""
    lines = [
        "![Top-1 over the minutes of training](images/paper-table-length.png)",
        "",
        f"{outcomes[0].network}, teacher {_mean(outcomes[:1], 'teacher')}; {outcomes[0].machine}.",
        "",
        "| bits | minutes | steps | before fine-tuning | after | lost |",
        "|---|---|---|---|---|---|",
    ]
    for o in outcomes:
        cells = [_two(value) for value in (o.before, o.after, o.lost)]
        lines.append(f"| {o.bits} | {o.seconds / 60:.1f} | {o.steps:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def published_table() -> str:
    """Return published figures of ``AGAINST``, a row for each network."""
    shown = [f"{method}, {bits}" for method in AGAINST for bits in ("W4A4", "W3A3")]
    lines = [f"| | teacher | {' | '.join(shown)} |", "|---" * (2 + len(shown)) + "|"]
    found = {(f.network, f"{f.method}, {f.bits}"): f for f in published()}
    for network in dict.fromkeys(network for network, _ in found):
        figures = [found.get((network, column)) for column in shown]
        teacher = next(f.teacher for (name, _), f in found.items() if name == network)
        cells = [_two(f.top1 if f else None) for f in figures]
        lines.append(f"| {network} | {teacher:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _place(bits: str) -> tuple[int, str]:
    return BITS.index(bits) if bits in BITS else len(BITS), bits


def _of(
    outcomes: Iterable[Outcome], bits: str, recipe: str, first_last_bits: int | None
) -> list[Outcome]:
    wanted = bits, recipe, first_last_bits
    return [o for o in outcomes if (o.bits, o.recipe, o.first_last_bits) == wanted]


def _facts(own: Sequence[Outcome], others: Sequence[Published]) -> list[str]:
    """Return what is the same for all rows: teachers, images, machines."""
    parts = [f"Teacher: {_mean(own[:1], 'teacher')}"]
    if others:
        parts[0] += f"; that of the published rows: {others[0].teacher:.2f}"
    for name in ("evaluation", "compared", "machine"):
        values = dict.fromkeys(getattr(outcome, name) for outcome in own)
        title = {"evaluation": "Top-1 on", "compared": "Agreement on", "machine": "Machine"}[name]
        parts.append(f"{title}: {'; '.join(filter(None, values)) or NOTHING}")
    return [f"{'. '.join(parts)}."]


def _row(bits: str, recipe: str, own: Sequence[Outcome]) -> list[str]:
    alike = _of(own, bits, recipe, None)
    apart = alike if bits == "W8A8" else _of(own, bits, recipe, 8)
    if not alike and not apart:
        return []
    cost = alike or apart
    cells = [
        bits,
        f"{recipe}'s recipe" if recipe == "paper" else f"{recipe} recipe",
        str(len(cost)),
        _mean(alike, "before"),
        _mean(alike, "after"),
        _mean(alike, "lost"),
        _mean(apart, "lost"),
        _mean(alike, "agreement"),
        f"{sum(outcome.seconds for outcome in cost) / len(cost) / 60:.1f}",
        f"{cost[0].images:,}",
    ]
    return [f"| {' | '.join(cells)} |"]


def _published_row(figure: Published) -> str:
    lost = [_two(figure.lost), NOTHING]
    cells = [
        figure.bits, f"{figure.method}, *published*", NOTHING, NOTHING, _two(figure.top1),
        *(lost if figure.first_last_bits is None else reversed(lost)), NOTHING, NOTHING,
        f"{figure.images:,}" if figure.images else NOTHING,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _mean(outcomes: Iterable[Outcome], field: str) -> str:
    found = spread(getattr(outcome, field) for outcome in outcomes)
    return NOTHING if found is None else spread_text(found, ".2f")


def _two(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"
