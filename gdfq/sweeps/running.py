"""One run of a sweep: brought to its end in its folder, and read from there."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gdfq.environment import resolve_device
from gdfq.errors import InputError, NonFiniteLossError
from gdfq.files import write_file
from gdfq.recipes import Recipe, load_recipe
from gdfq.recipes.networks import build_generator, build_teacher, build_trainer
from gdfq.report.run import PAGE, close, environment_line
from gdfq.runs import session
from gdfq.runs.interrupts import Interrupts
from gdfq.runs.session import Options, Progress, device_of
from gdfq.runs.state import RunState, read_json
from gdfq.sweeps.contents import RunRow
from gdfq.sweeps.plan import Plan, Run


@dataclass(frozen=True)
class Settings:
    """How the runs are done: nothing that a recipe decides.

    Attributes:
        device: what each computes on; "auto" takes a GPU where there is one.
        checkpoint_every: seconds between checkpoints.
        workers: processes that decode test images.
        report: leave ``report.html`` in each folder.
    """

    device: str = "auto"
    checkpoint_every: float = 60.0
    workers: int | None = None
    report: bool = True


@dataclass(frozen=True)
class Job:
    """A run that is to be done: its variant and seed by name, its recipe, its folder."""

    name: str
    recipe: Recipe
    folder: Path


# Does jobs; yields each when it is over, with what kept it from its end where its folder does not
# say it.
Trainer = Callable[[Sequence[Job]], Iterator[tuple[Job, str | None]]]


def bring_to_its_end(
    job: Job, settings: Settings, progress: Progress, interrupts: Interrupts
) -> str | None:
    """Begin a run or go on with it; returns why it did not end, where its folder does not say it.

    Raises:
        Interrupted: a signal of ``interrupts`` arrived; the next call goes on from there.
    """
    begun = (job.folder / "recipe.toml").is_file()
    earlier = device_of(job.folder) if begun else "auto"
    try:
        device = resolve_device(earlier if settings.device == "auto" else settings.device)
        options = Options(
            device,
            settings.checkpoint_every,
            workers=settings.workers,
            closing=partial(_report, progress) if settings.report else None,
        )
        if begun:
            session.resume(job.folder, progress, options, interrupts)
        else:
            session.quantize(job.recipe, job.folder, progress, options, interrupts)
    except NonFiniteLossError:
        return None  # it is in the folder
    except InputError as error:
        return str(error)
    except Exception as error:  # that one run cannot be done says nothing about the others
        return f"{type(error).__name__}: {error}"
    return None


def one_after_another(
    settings: Settings, make_progress: Callable[[], Progress], notice: Callable[[], None]
) -> Trainer:
    """Does jobs in this process; ``notice`` is called when a signal is kept until a step is done.

    What it returns raises Interrupted, see :func:`bring_to_its_end`.
    """

    def train(jobs: Sequence[Job]) -> Iterator[tuple[Job, str | None]]:
        for number, job in enumerate(jobs, 1):
            progress = make_progress()
            progress.phase(f"run {number} of {len(jobs)}: {job.name}")
            interrupts = Interrupts(signal.SIGINT, signal.SIGTERM, notice=notice)
            yield job, bring_to_its_end(job, settings, progress, interrupts)

    return train


def _report(progress: Progress, run: RunState) -> None:
    progress.phase("measuring the layers for the report")
    close(run)


def recipe_file(out: Path, run: Run) -> Path:
    """Beside a run's folder: the recipe as the sweep's file gives it, from when it began."""
    return out / f"{run.name}.toml"


def check_folders(plan: Plan, out: Path) -> None:
    """Check that the folders in ``out`` are of the runs that ``plan`` has now.

    Raises:
        InputError: one has another recipe, or none; the message names the first difference.
    """
    for run in plan.runs:
        folder, file = out / run.name, recipe_file(out, run)
        if not (folder / "recipe.toml").exists():
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
            recipe = Run(variant, plan.seeds[0]).recipe
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


def write_recipe(out: Path, run: Run) -> None:
    """Keep the recipe that ``run`` is begun with, see :func:`check_folders`."""
    if not (out / run.name / "recipe.toml").exists():
        write_file(recipe_file(out, run), run.recipe.to_toml().encode())


def read_run(out: Path, run: Run, problem: str | None = None) -> RunRow:
    """What a run's folder says of it; ``problem`` is what kept it from its end just now."""
    folder = out / run.name
    result = read_json(folder / "result.json")
    known = ("teacher", "before", "after", "steps", "training_seconds")
    kept = result.get("dynamic_ranges", "none") == "none"
    row = RunRow(
        run.variant.name,
        run.seed,
        run.name,
        "not started",
        result.get("failure") or problem,
        evaluation=result.get("evaluation", ""),
        report=(folder / PAGE).is_file(),
        environment=environment_line(read_json(folder / "environment.json")),
        weight_bits=result.get("average_weight_bits" if kept else "effective_weight_bits"),
        **{key: result.get(key) for key in known},
    )
    if result.get("finished"):
        row.status = "finished"
    elif result.get("failure"):
        row.status = "failed"
    elif problem or (folder / "recipe.toml").is_file():
        row.status = "unfinished"
    return row
