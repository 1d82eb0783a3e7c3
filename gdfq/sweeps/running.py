"""A sweep's runs: start or resume each in its folder, and read it from there."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gdfq.errors import InputError, NonFiniteLossError
from gdfq.files import write_file
from gdfq.recipes import load_recipe
from gdfq.recipes.networks import build_generator, build_teacher, build_trainer
from gdfq.runs import session
from gdfq.runs.folder import PAGE, RECIPE, RESULT
from gdfq.runs.interrupts import Interrupts
from gdfq.runs.options import Options
from gdfq.runs.report import environment_line
from gdfq.runs.run import Run
from gdfq.sweeps.contents import RunRow
from gdfq.sweeps.plan import Plan, PlannedRun
from gdfq.training.progress import Progress

# Executes runs in the folders of their names in a folder; yields each when it is over, with what
# kept it from its end if its own folder does not say it.
Launcher = Callable[[Sequence[PlannedRun], Path], Iterator[tuple[PlannedRun, str | None]]]


def execute(
    run: PlannedRun, out: Path, options: Options, progress: Progress, interrupts: Interrupts
) -> str | None:
    """Start a run or resume it; return why it did not finish if its folder does not say it.

    Raises:
        Interrupted: a signal of ``interrupts`` arrived; the next call continues from there.
    """
    try:
        session.start_or_resume(run.recipe, out / run.name, progress, options, interrupts)
    except NonFiniteLossError:
        return None  # it is in the folder
    except InputError as error:
        return str(error)
    except Exception as error:  # that one run cannot be done says nothing about the others
        return f"{type(error).__name__}: {error}"
    return None


def one_after_another(
    options: Options, make_progress: Callable[[], Progress], notice: Callable[[], None]
) -> Launcher:
    """Execute runs in this process; ``notice`` is called when a signal waits for a step's end.

    The result raises Interrupted, see :func:`execute`.
    """

    def launch(runs: Sequence[PlannedRun], out: Path) -> Iterator[tuple[PlannedRun, str | None]]:
        for number, run in enumerate(runs, 1):
            progress = make_progress()
            progress.on_status(f"run {number} of {len(runs)}: {run.name}")
            interrupts = Interrupts(signal.SIGINT, signal.SIGTERM, notice=notice)
            yield run, execute(run, out, options, progress, interrupts)

    return launch


def recipe_file(out: Path, run: PlannedRun) -> Path:
    """Return the file beside a run's folder that holds its recipe as the sweep's file gave it."""
    return out / f"{run.name}.toml"


def check_folders(plan: Plan, out: Path) -> None:
    """Check that the folders in ``out`` are of the runs that ``plan`` has now.

    Raises:
        InputError: one has another recipe, or none; the message names the first difference.
    """
    for run in plan.runs:
        folder, file = out / run.name, recipe_file(out, run)
        if not (folder / RECIPE).exists():
            continue
        if not file.is_file():
            raise InputError(f"sweep: {folder} is not of a sweep: there is no {file}")
        stored, wanted = load_recipe(str(file)).model_dump(), run.recipe.model_dump()
        for section, fields in wanted.items():
            if fields == stored[section]:
                continue
            key, was, now = section, stored[section], fields
            if isinstance(fields, dict) and section != "bits":
                name = next(k for k, value in fields.items() if value != stored[section][k])
                key, was, now = f"{section}.{name}", stored[section][name], fields[name]
            raise InputError(
                f"{plan.source}: variant {run.variant.name}: {key} is {now!r}, but the run in "
                f"{folder} has {was!r}; give the variant another name, or the sweep another folder"
            )


def check_networks(plan: Plan, device: str | None) -> None:
    """Check that the teacher converts and trains as each variant has it, before any is run.

    Args:
        plan: the sweep.
        device: that runs are done on; None where that is another machine's.

    Raises:
        InputError: one does not; the message names it.
    """
    teacher = None
    for variant in plan.variants:
        try:
            recipe = PlannedRun(variant, plan.seeds[0]).recipe
            if teacher is None:
                filled, teacher = build_teacher(recipe)
                teacher.network.to(device or "cpu")
                found = filled.teacher.model_dump(exclude_none=True)
            # Timing would decide about the format, and another machine knows other precisions.
            options = {"memory_format": "contiguous"}
            if device is None:
                options["precision"] = "fp32"
            recipe = recipe.with_options({**found, **options})
            generator = build_generator(recipe, teacher.preprocessing).to(device or "cpu")
            build_trainer(recipe, teacher, generator)
        except InputError as error:
            raise InputError(f"{plan.source}: variant {variant.name}: {error}") from error


def write_recipe(out: Path, run: PlannedRun) -> None:
    """Keep the recipe that ``run`` is begun with, see :func:`check_folders`."""
    if not (out / run.name / RECIPE).exists():
        write_file(recipe_file(out, run), run.recipe.to_toml().encode())


def row_of(out: Path, run: PlannedRun, problem: str | None = None) -> RunRow:
    """Return what a run's folder says; ``problem`` is what kept it from its end just now."""
    folder = out / run.name
    row = RunRow(run.variant.name, run.seed, run.name, "not started", problem)
    if not (folder / RECIPE).is_file():
        row.status = "unfinished" if problem else "not started"
        return row
    opened = Run(folder)
    result = opened.result
    row.status = "finished" if result.finished else "failed" if result.failure else "unfinished"
    row.reason = result.failure or problem
    row.report = (folder / PAGE).is_file()
    row.environment = environment_line(opened.environment)
    if (folder / RESULT).is_file():
        row.teacher, row.before, row.after = result.teacher, result.before, result.after
        row.evaluation, row.steps = result.evaluation, result.steps
        row.training_seconds = result.training_seconds
        kept = result.dynamic_ranges == "none"
        row.weight_bits = result.average_weight_bits if kept else result.effective_weight_bits
    return row
