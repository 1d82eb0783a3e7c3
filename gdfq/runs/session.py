"""Start a run, or resume it: recipe in, run folder out, whatever comes between."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from torch import nn

from gdfq.environment import resolve_device
from gdfq.errors import InputError, NonFiniteLossError
from gdfq.files import is_partial, locked, remove, write_file
from gdfq.nn import float_weights
from gdfq.recipes import Recipe, load_recipe
from gdfq.recipes.networks import (
    TEACHER_FILE,
    build_generator,
    build_teacher,
    build_trainer,
    check_factory,
)
from gdfq.report.contents import Result
from gdfq.runs.execution import Execution
from gdfq.runs.folder import RECIPE, TENSORBOARD, create_folder, device_of, save_teacher
from gdfq.runs.interrupts import Interrupted, Interrupts
from gdfq.runs.options import Options
from gdfq.runs.run import Run
from gdfq.sources import LoadedTeacher
from gdfq.training import GDFQTrainer
from gdfq.training.memory_format import TORCH_FORMATS
from gdfq.training.progress import Progress


def quantize(
    recipe: Recipe,
    folder: Path,
    progress: Progress,
    options: Options,
    interrupts: Interrupts | None = None,
) -> Run:
    """Quantize the recipe's teacher and leave everything about the run in ``folder``.

    Training reads no real image. The data set is opened to measure: the student before
    fine-tuning, and teacher and student at the end; if it cannot be read, the result says so.

    Raises:
        InputError: the recipe does not fit its teacher, or ``folder`` cannot be used.
        NonFiniteLossError: a loss became NaN; the last good student has been saved.
        Interrupted: a signal of ``interrupts`` arrived; :func:`resume` continues from there.
        OSError: the student or the result could not be written; :func:`resume` writes them.
        ProcessLostError: another process of ``options.world`` is gone.
    """
    options = options.model_copy(update={"device": resolve_device(options.device)})
    recipe, teacher, trainer = _build(recipe, options)
    for note in (*teacher.notes, *trainer.teacher.describe_unrecorded()):
        progress.on_warning(note)
    if options.network is not None:
        recipe = recipe.with_options({"weights": TEACHER_FILE})
    # The format that was chosen: rounding depends on it, and the recipe is to repeat the run.
    recipe = recipe.with_options({"memory_format": trainer.memory_format})
    execution = Execution(recipe, folder, teacher, trainer, progress, options, interrupts)
    _warn_of_float_weights(execution.result, trainer.student, progress)
    execution.try_evaluate()
    if options.world.first:
        create_folder(folder)
        try:
            if options.network is not None:
                save_teacher(teacher.network, folder)
            # With these the run can be resumed, so they come first.
            write_file(folder / RECIPE, recipe.to_toml().encode())
        except OSError as error:
            raise InputError(f"out: cannot write to {folder}: {error.strerror}") from error
    with locked(folder / RECIPE) if options.world.first else nullcontext():
        return execution.run_to_end()


def resume(
    folder: Path, progress: Progress, options: Options, interrupts: Interrupts | None = None
) -> Run:
    """Continue the run in ``folder`` from its newest valid checkpoint, or from its start.

    On the same machine and device the student becomes that of the undisturbed run, bit for bit. A
    run that has finished is returned as it is.

    Raises:
        InputError: ``folder`` holds no run, another process is at it, or the checkpoint does not
            fit the recipe or its teacher.
        NonFiniteLossError, Interrupted, OSError, ProcessLostError: as from :func:`quantize`.
    """
    if not (folder / RECIPE).is_file():
        raise InputError(f"resume: {folder} is not a run folder: it has no {RECIPE}")
    device = device_of(folder) if options.device == "auto" else options.device
    logged = options.tensorboard or (folder / TENSORBOARD).is_dir()
    options = options.model_copy(update={"device": resolve_device(device), "tensorboard": logged})
    with locked(folder / RECIPE) if options.world.first else nullcontext():
        run = Run(folder, options.network, options.device, options.evaluate)
        if run.result.finished:
            return run
        if options.world.first:
            remove(path for path in folder.iterdir() if is_partial(path))
        recipe, teacher, trainer = _build(load_recipe(str(folder / RECIPE)), options, folder)
        execution = Execution(recipe, folder, teacher, trainer, progress, options, interrupts)
        execution.load_newest()
        return execution.run_to_end()


def start_or_resume(
    recipe: Recipe,
    folder: Path,
    progress: Progress,
    options: Options,
    interrupts: Interrupts | None = None,
) -> Run:
    """Resume the run in ``folder``, or start it with ``recipe`` if there is none."""
    if (folder / RECIPE).is_file():
        return resume(folder, progress, options, interrupts)
    return quantize(recipe, folder, progress, options, interrupts)


def explain_end(error: BaseException, folder: Path, again: str) -> str:
    """Return a line about a run that ``error`` ended; the call ``again`` resumes it."""
    if isinstance(error, NonFiniteLossError):
        return f"{error}; the last good student is in {folder}"
    if isinstance(error, Interrupted):
        return f"stopped by {error} and saved in {folder}; to resume: {again}"
    if isinstance(error, OSError) and error.strerror:
        problem = f"cannot write {error.filename or folder}: {error.strerror}"
        return f"{problem}; after that is mended, to resume: {again}"
    return f"the run did not finish but is saved in {folder}; to resume: {again}"


def _warn_of_float_weights(result: Result, student: nn.Module, progress: Progress) -> None:
    if result.float_weight_share:
        name, elements = next(iter(float_weights(student).items()))
        progress.on_warning(
            f"{100 * result.float_weight_share:.2f}% of the weights stay in float, the largest "
            f"{name} with {elements:,}: {result.average_weight_bits:.2f} bits a weight on average"
        )


def _build(
    recipe: Recipe, options: Options, folder: Path | None = None
) -> tuple[Recipe, LoadedTeacher, GDFQTrainer]:
    """Return the recipe in full, its teacher, and a trainer of its student at step 0."""
    recipe, loaded = build_teacher(recipe, options.network, folder)
    if options.network is not None and not recipe.teacher.in_memory:
        check_factory(recipe, loaded.network)
    teacher = loaded.network.to(options.device)
    generator = build_generator(recipe, loaded.preprocessing).to(options.device)
    trainer = build_trainer(recipe, loaded, generator, options.world)
    teacher.to(memory_format=TORCH_FORMATS[trainer.memory_format])
    return recipe, loaded, trainer
