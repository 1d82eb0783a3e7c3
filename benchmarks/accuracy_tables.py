"""Write the tables and the plot of ``benchmarks/accuracy.py``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from benchmarks import readme
from gdfq.environment import environment
from gdfq.sweeps.contents import Spread
from gdfq.sweeps.plan import Plan, PlannedRun, Variant
from gdfq.sweeps.summary import paired, spread

RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parents[1] / "docs" / "accuracy.md"
COMPARED = ("paper", "default")  # variants in the short table
STEPS_PER_MINUTE = 360  # the embedded network's recipe on two cores, approximately


@dataclass
class Outcome:
    """A student's top-1 in percent on the test images, and its distance from the teacher.

    ``divergence``: mean ``KL(teacher || student)`` in nat on generated images that no step used;
    ``agreement``: top-1 agreement on these, in percent.
    """

    before: float
    after: float
    divergence: float
    agreement: float
    failure: str | None = None


def path_of(run: PlannedRun, folder: Path) -> Path:
    """Return the path of a run's outcome."""
    return folder / "students" / f"{run.name}.json"


def write(plan: Plan, name: str, folder: Path, teacher: float) -> None:
    """Write the finished results of a sweep; ``teacher`` is the float network's top-1."""
    found = results(plan, folder)
    record = {
        "environment": environment(),
        "teacher": teacher,
        "runs": {run: asdict(outcome) for run, outcome in found.items()},
    }
    (RESULTS / f"accuracy-{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    readme.write(f"accuracy-{name}", markdown(plan, found).rstrip(), DOCUMENT)
    if name == "parts":
        beside = [DOCUMENT.with_name(f"{other}.md") for other in ("index", "limits")]
        for document in (readme.README, *beside):
            readme.write("accuracy", short(plan, found, teacher), document)
    if name == "length":
        draw_lengths(plan, found, teacher, DOCUMENT.parent / "images" / "accuracy-length.png")


def results(plan: Plan, folder: Path) -> dict[str, Outcome]:
    """Return a plan's finished outcomes by run name."""
    return {
        run.name: Outcome(**json.loads(path_of(run, folder).read_text()))
        for run in plan.runs
        if path_of(run, folder).exists()
    }


def markdown(plan: Plan, found: dict[str, Outcome]) -> str:
    """Return a table for each width: means and standard deviations over the finished seeds."""
    lines = []
    for bits, variants in plan.groups.items():
        if not any(_by_seed(plan, variant, found) for variant in variants):
            continue
        lines += [
            f"**{bits}**",
            "",
            "| | seeds | before | after | gain over the reference | KL on generated images |",
            "|---|---|---|---|---|---|",
        ]
        for variant in variants:
            own = _by_seed(plan, variant, found)
            if not own:
                continue
            of = partial(_spread_of, own.values())
            reference = next(v for v in variants if v.name == plan.references[variant.name])
            others = _by_seed(plan, reference, found)
            difference = paired("", _after(own), _after(others))
            beside = (
                ""
                if difference is None or variant.name == plan.references[variant.name]
                else f"{spread_text(difference.spread, '+.2f')}"
            )
            name = variant.table or variant.name.removeprefix(f"{bits.lower()}-")
            lines.append(
                f"| {name} | {len(own)} | {of('before')} | {of('after')} | {beside} | "
                f"{of('divergence', '.3f')} |"
            )
        lines.append("")
    return "\n".join(lines)


def short(plan: Plan, found: dict[str, Outcome], teacher: float) -> str:
    """Return the table of the paper's recipe and the default."""
    lines = [
        "| bits | teacher, float32 | paper's recipe, before fine-tuning | after | default recipe, "
        "before | after | lost |",
        "|---|---|---|---|---|---|---|",
    ]
    for bits, variants in sorted(plan.groups.items(), reverse=True):
        pair = [_by_seed(plan, v, found) for name in COMPARED for v in variants if v.table == name]
        if len(pair) < len(COMPARED) or not all(pair):
            continue
        cells = [_spread_of(own.values(), of) for own in pair for of in ("before", "after")]
        kept = spread(outcome.after for outcome in pair[-1].values())
        assert kept is not None
        cells[-1] = f"**{cells[-1]}**"
        lines.append(
            f"| {bits} | {teacher:.2f} | {' | '.join(cells)} | {teacher - kept.mean:.2f} |"
        )
    return "\n".join(lines)


def _by_seed(plan: Plan, variant: Variant, found: dict[str, Outcome]) -> dict[int, Outcome]:
    names = {seed: PlannedRun(variant, seed).name for seed in plan.seeds}
    return {seed: found[name] for seed, name in names.items() if name in found}


def _after(outcomes: dict[int, Outcome]) -> dict[int, float]:
    return {seed: outcome.after for seed, outcome in outcomes.items()}


def _spread_of(outcomes: Iterable[Outcome], field: str, form: str = ".2f") -> str:
    return spread_text(spread(getattr(outcome, field) for outcome in outcomes), form)


def spread_text(found: Spread | None, form: str) -> str:
    """Return mean and standard deviation, each formatted as ``form``."""
    assert found is not None
    mean = round(found.mean, int(form.strip("+.f"))) + 0.0  # + 0.0: no minus before zero
    deviation = "" if found.std is None else f" ± {found.std:{form.lstrip('+')}}"
    return f"{mean:{form}}{deviation}"


def draw_lengths(plan: Plan, found: dict[str, Outcome], teacher: float, out: Path) -> None:
    """Plot top-1 over training time, a line for each width."""
    lines = {
        bits: [
            (
                variant.recipe.training.epochs
                * variant.recipe.training.steps_per_epoch
                / STEPS_PER_MINUTE,
                outcome.after,
            )
            for variant in variants
            for outcome in _by_seed(plan, variant, found).values()
        ]
        for bits, variants in plan.groups.items()
    }
    plot_lengths(lines, teacher, f"minutes on two cores, {STEPS_PER_MINUTE} steps each", out)


def plot_lengths(
    lines: Mapping[str, Sequence[tuple[float, float]]], teacher: float, label: str, out: Path
) -> None:
    """Plot a line of (minutes, top-1 in percent) for each width; ``label`` is the minutes'."""
    from matplotlib.figure import Figure  # from the extra `bench`, which tests do not need

    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.axhline(teacher, color="black", linewidth=1, linestyle="--", label="teacher, float32")
    for bits, points in lines.items():
        axes.plot(*zip(*points, strict=True), "o-", label=bits)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(label)
    axes.set_ylabel("top-1 on the test images, percent")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(out)
