"""One run: from a recipe to a folder with the student and everything about how it came to be."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gdfq import models
from gdfq.convert import QuantizedModel, quantize_model
from gdfq.data import Batches, class_names, open_test_set, top1
from gdfq.environment import environment
from gdfq.errors import InputError, NonFiniteLossError
from gdfq.nn import QAct
from gdfq.picture import image_grid
from gdfq.recipes import Recipe, load_recipe
from gdfq.sources import LoadedTeacher, Preprocessing, load_teacher
from gdfq.training import GDFQTrainer, TrainerCallback
from gdfq.training.memory_format import TORCH_FORMATS


class Progress(Protocol):
    """What a run tells while it goes on."""

    def note(self, text: str) -> None:
        """Something was decided that nobody asked for."""

    def start(self, trainer: GDFQTrainer) -> None:
        """Training begins."""

    def phase(self, name: str) -> None:
        """Something else than a training step begins."""

    def step(self, trainer: GDFQTrainer, losses: dict[str, Tensor]) -> None:
        """A training step is done."""

    def epoch(self, trainer: GDFQTrainer, losses: dict[str, float]) -> None:
        """An epoch is done."""

    def stop(self) -> None:
        """Training ended."""


@dataclass
class Result:
    """The closing table of a run: top-1 in percent, None where it was not measured."""

    name: str
    weight_bits: int
    act_bits: int
    seed: int
    steps: int
    finished: bool
    training_seconds: float
    teacher: float | None = None
    before: float | None = None
    after: float | None = None
    evaluation: str = "not asked for"
    failure: str | None = None


def create_folder(folder: Path) -> None:
    """Make ``folder``, which must not exist or be empty, and be writable."""
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"out: {folder} exists and is not empty; nothing is overwritten")
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"out: cannot write to {folder}: {error.strerror}") from error


def build_teacher(recipe: Recipe) -> tuple[Recipe, LoadedTeacher]:
    """The recipe's teacher, and the recipe with everything about it filled in.

    Raises:
        InputError: see :func:`gdfq.sources.load_teacher`.
    """
    given = recipe.teacher.model_dump(exclude={"data_path"})
    teacher = load_teacher(**given, seed=recipe.training.seed)
    found = {**teacher.preprocessing.fields(), "weights": teacher.weights}
    if recipe.teacher.data_path is not None:
        found["data_path"] = str(Path(recipe.teacher.data_path).resolve())
    return recipe.with_options(found), teacher


def build_student(recipe: Recipe, teacher: nn.Module) -> QuantizedModel:
    """The quantized copy of ``teacher``, its ranges not yet set."""
    spec = recipe.quantization
    return quantize_model(
        teacher,
        spec.weight_bits,
        spec.act_bits,
        ste=spec.ste,
        momentum=spec.range_momentum,
    )


def _use_format(recipe: Recipe, *networks: nn.Module) -> None:
    """Bring networks into the memory format of a finished recipe, on which rounding depends."""
    name = recipe.training.memory_format
    for network in networks:
        network.to(memory_format=TORCH_FORMATS["channels_last" if name == "auto" else name])


class _RunCallback(TrainerCallback):
    def __init__(
        self,
        folder: Path,
        progress: Progress,
        should_stop: Callable[[], bool],
        on_calibrated: Callable[[], None],
    ) -> None:
        self.metrics = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self.progress = progress
        self.should_stop = should_stop  # type: ignore[method-assign]
        self.calibrated = on_calibrated

    def on_step(self, trainer: GDFQTrainer, losses: dict[str, Tensor]) -> None:
        self.progress.step(trainer, losses)

    def on_calibrated(self, trainer: GDFQTrainer) -> None:
        self.calibrated()

    def on_epoch(self, trainer: GDFQTrainer, losses: dict[str, float]) -> None:
        record = {
            "epoch": trainer.steps_done // trainer.steps_per_epoch,
            "step": trainer.steps_done,
            **losses,
            "generator_lr": float(trainer.generator_lr.value),
            "student_lr": float(trainer.student_lr.value),
        }
        self.metrics.write(json.dumps(record) + "\n")
        self.metrics.flush()
        self.progress.epoch(trainer, losses)


def quantize(
    recipe: Recipe,
    folder: Path,
    progress: Progress,
    should_stop: Callable[[], bool] = lambda: False,
    device: str = "cpu",
    workers: int | None = None,
) -> Result:
    """Quantize the recipe's teacher and leave everything about the run in ``folder``.

    Training reads no real image. The data set is opened to measure: the student before
    fine-tuning, and teacher and student at the end; where it cannot be read, the result says so.
    ``workers`` processes decode it, see :class:`gdfq.data.Batches`.

    Raises:
        InputError: the recipe does not fit its teacher, or ``folder`` cannot be used.
        NonFiniteLossError: a loss became NaN; the last sound student has been saved.
    """
    recipe, loaded = build_teacher(recipe)
    for note in loaded.notes:
        progress.note(note)
    teacher, images = loaded.network.to(device), loaded.preprocessing
    student = build_student(recipe, teacher)
    training = recipe.training.model_dump()
    with torch.random.fork_rng():
        torch.manual_seed(recipe.training.seed)
        generator = models.Generator(
            images.num_classes,
            images.image_size,
            images.channels,
            **recipe.generator.model_dump(),
        ).to(device)
    trainer = GDFQTrainer(teacher, student, generator, images.num_classes, **training)
    # The format that was chosen: rounding depends on it, and the recipe is to repeat the run.
    recipe = recipe.with_options({"memory_format": trainer.memory_format})
    _use_format(recipe, teacher)
    create_folder(folder)
    (folder / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")

    result = Result(
        name=recipe.name,
        weight_bits=recipe.quantization.weight_bits,
        act_bits=recipe.quantization.act_bits,
        seed=recipe.training.seed,
        steps=0,
        finished=False,
        training_seconds=0.0,
    )
    measure = _Measure(recipe, images, workers, result)
    measuring = 0.0

    def on_calibrated() -> None:
        nonlocal measuring
        start = time.perf_counter()
        measure.announce(progress, "measuring the student before fine-tuning")
        result.before = measure(student)
        measuring += time.perf_counter() - start

    callback = _RunCallback(folder, progress, should_stop, on_calibrated)
    failure: NonFiniteLossError | None = None
    progress.start(trainer)
    start = time.perf_counter()
    try:
        trainer.train(callback)
    except NonFiniteLossError as error:
        failure = error
        result.failure = str(error)
    finally:
        progress.stop()
        callback.metrics.close()
    result.training_seconds = time.perf_counter() - start - measuring
    result.steps = trainer.steps_done
    result.finished = trainer.steps_done == recipe.training.epochs * recipe.training.steps_per_epoch

    if not trainer.calibrated and failure is None:
        trainer.calibrate(recipe.training.calibration_batches)
    save_student(student, recipe, folder / "student.safetensors")
    _save_picture(recipe, images, trainer, folder / "images.png")
    if failure is None:
        measure.announce(progress, "measuring teacher and student")
        result.after = measure(student)
        result.teacher = measure(teacher)
    (folder / "result.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    if failure is not None:
        raise failure
    return result


def open_batches(recipe: Recipe, images: Preprocessing, workers: int | None = None) -> Batches:
    """The test images that the recipe names.

    Raises:
        InputError: it names none, or they cannot be opened; the message has the path.
    """
    spec = recipe.teacher
    if spec.data == "none":
        raise InputError("data: the recipe names no data set to measure on")
    return Batches(
        open_test_set(spec.data, spec.data_path, images.num_classes), images, workers=workers
    )


class _Measure:
    """Top-1 on the recipe's data set, or None with the reason in the result."""

    def __init__(
        self, recipe: Recipe, images: Preprocessing, workers: int | None, result: Result
    ) -> None:
        self.recipe = recipe
        self.images = images
        self.workers = workers
        self.result = result
        self.asked = recipe.teacher.data != "none"
        self.batches: Batches | None = None

    def announce(self, progress: Progress, what: str) -> None:
        if self.asked:
            progress.phase(what)

    def __call__(self, model: nn.Module) -> float | None:
        if not self.asked:
            return None
        try:
            if self.batches is None:
                self.batches = open_batches(self.recipe, self.images, self.workers)
            share = top1(model, self.batches)
        except InputError as error:
            self.result.evaluation = f"skipped: {error}"
            return None
        self.result.evaluation = f"{self.batches.pictures:,} test images of {self.batches.name}"
        return share


def save_student(student: nn.Module, recipe: Recipe, path: Path) -> None:
    """Write the student's state as safetensors; loading it gives the same outputs bit for bit."""
    state = {name: value.contiguous() for name, value in student.state_dict().items()}
    # One entry: safetensors writes several in an order that changes from run to run.
    # Written by Python, so that the file gets the permissions of any other.
    path.write_bytes(save(state, metadata={"recipe": recipe.to_toml()}))


def load_run(folder: Path) -> tuple[Recipe, LoadedTeacher, QuantizedModel]:
    """Recipe, teacher and student of a run folder."""
    if not (folder / "recipe.toml").is_file():
        raise InputError(f"run: {folder} is no run folder: it has no recipe.toml")
    recipe, teacher = build_teacher(load_recipe(str(folder / "recipe.toml")))
    student = build_student(recipe, teacher.network)
    _use_format(recipe, teacher.network, student)
    try:
        student.load_state_dict(load_file(folder / "student.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"run: cannot load {folder / 'student.safetensors'}: {error}") from error
    if not all(m.num_batches_tracked for m in student.modules() if isinstance(m, QAct)):
        raise InputError(
            f"run: the student in {folder} has no activation ranges: its run failed before "
            "fine-tuning began"
        )
    return recipe, teacher, student


# Of the picture: classes, and images of each.
ROWS, COLUMNS = 20, 10


@torch.no_grad()
def _save_picture(recipe: Recipe, images: Preprocessing, trainer: GDFQTrainer, path: Path) -> None:
    """One row of generated images per class, the first classes where there are many.

    They are made as in training, in batches that are balanced over the classes shown and, as far
    as that goes, no larger than training's.
    """
    names = class_names(recipe.teacher.data, images.num_classes)[:ROWS]
    random = torch.Generator(trainer.device).manual_seed(recipe.training.seed)
    columns = max(1, recipe.training.batch_size // len(names))
    parts = []
    for first in range(0, COLUMNS, columns):
        repeats = min(columns, COLUMNS - first)
        labels = torch.arange(len(names), device=trainer.device).repeat_interleave(repeats)
        shape = (len(labels), recipe.generator.latent_dim)
        z = torch.randn(shape, generator=random, device=trainer.device)
        parts.append(trainer.generator(z, labels).cpu().unflatten(0, (len(names), repeats)))
    rows = list(torch.cat(parts, 1))
    image_grid(rows, names, images.mean, images.std).save(path)
