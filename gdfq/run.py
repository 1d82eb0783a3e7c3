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
from gdfq.data import CLASS_NAMES, load_test_images, top1
from gdfq.environment import environment
from gdfq.errors import InputError, NonFiniteLossError
from gdfq.nn import QAct
from gdfq.picture import image_grid
from gdfq.recipes import Recipe, load_recipe
from gdfq.recipes.schema import Teacher
from gdfq.training import GDFQTrainer, TrainerCallback
from gdfq.training.memory_format import TORCH_FORMATS

BUILTIN_WEIGHTS = Path(__file__).parent / "assets" / "fashion_mnist" / "resnet20.safetensors"


class Progress(Protocol):
    """What a run tells while it goes on."""

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


def build_network(spec: Teacher) -> nn.Module:
    """The teacher's network without its weights, in evaluation mode."""
    return {"resnet20": models.resnet20}[spec.arch](spec.num_classes, spec.channels).eval()


def build_teacher(spec: Teacher) -> nn.Module:
    """The teacher of a recipe, with its weights, in evaluation mode."""
    path = BUILTIN_WEIGHTS if spec.weights == "builtin" else Path(spec.weights)
    if not path.is_file():
        raise InputError(f"weights: there is no file {path}")
    model = build_network(spec)
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise InputError(f"weights: cannot read {path}: {error}") from error
    except RuntimeError as error:
        problem = str(error).splitlines()[1].strip()
        raise InputError(f"weights: {path} does not fit {spec.arch}: {problem}") from error
    return model


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
) -> Result:
    """Quantize the recipe's teacher and leave everything about the run in ``folder``.

    Training reads no real image. The data set is opened to measure: the student before
    fine-tuning, and teacher and student at the end; where it cannot be read, the result says so.

    Raises:
        InputError: the recipe does not fit its teacher, or ``folder`` cannot be used.
        NonFiniteLossError: a loss became NaN; the last sound student has been saved.
    """
    teacher = build_teacher(recipe.teacher).to(device)
    student = build_student(recipe, teacher)
    training = recipe.training.model_dump()
    with torch.random.fork_rng():
        torch.manual_seed(recipe.training.seed)
        generator = models.Generator(
            recipe.teacher.num_classes,
            recipe.teacher.image_size,
            recipe.teacher.channels,
            **recipe.generator.model_dump(),
        ).to(device)
    trainer = GDFQTrainer(teacher, student, generator, recipe.teacher.num_classes, **training)
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
    measure = _Measure(recipe.teacher, result)
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
    _save_picture(recipe, trainer, folder / "images.png")
    if failure is None:
        measure.announce(progress, "measuring teacher and student")
        result.after = measure(student)
        result.teacher = measure(teacher)
    (folder / "result.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    if failure is not None:
        raise failure
    return result


class _Measure:
    """Top-1 on the recipe's data set, or None with the reason in the result."""

    def __init__(self, spec: Teacher, result: Result) -> None:
        self.spec = spec
        self.result = result
        self.images: tuple[Tensor, Tensor] | None = None

    def announce(self, progress: Progress, what: str) -> None:
        if self.spec.data != "none":
            progress.phase(what)

    def __call__(self, model: nn.Module) -> float | None:
        if self.spec.data == "none":
            return None
        try:
            self.images = self.images or load_test_images(
                self.spec.data, self.spec.mean, self.spec.std
            )
        except InputError as error:
            self.result.evaluation = f"skipped: {error}"
            return None
        images, labels = self.images
        self.result.evaluation = f"{len(labels):,} test images of {self.spec.data}"
        return top1(model, images, labels)


def save_student(student: nn.Module, recipe: Recipe, path: Path) -> None:
    """Write the student's state as safetensors; loading it gives the same outputs bit for bit."""
    state = {name: value.contiguous() for name, value in student.state_dict().items()}
    # One entry: safetensors writes several in an order that changes from run to run.
    # Written by Python, so that the file gets the permissions of any other.
    path.write_bytes(save(state, metadata={"recipe": recipe.to_toml()}))


def load_run(folder: Path) -> tuple[Recipe, nn.Module, QuantizedModel]:
    """Recipe, teacher and student of a run folder."""
    if not (folder / "recipe.toml").is_file():
        raise InputError(f"run: {folder} is no run folder: it has no recipe.toml")
    recipe = load_recipe(str(folder / "recipe.toml"))
    teacher = build_teacher(recipe.teacher)
    student = build_student(recipe, teacher)
    _use_format(recipe, teacher, student)
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


@torch.no_grad()
def _save_picture(recipe: Recipe, trainer: GDFQTrainer, path: Path, columns: int = 10) -> None:
    """One row of generated images per class, made as in training: in one balanced batch."""
    names = CLASS_NAMES.get(recipe.teacher.data) or tuple(
        f"class {label}" for label in range(recipe.teacher.num_classes)
    )
    names = names[:20]
    random = torch.Generator(trainer.device).manual_seed(recipe.training.seed)
    labels = torch.arange(len(names), device=trainer.device).repeat_interleave(columns)
    z = torch.randn(
        (len(labels), recipe.generator.latent_dim), generator=random, device=trainer.device
    )
    images = trainer.generator(z, labels).cpu()
    image_grid(list(images.split(columns)), names, recipe.teacher.mean, recipe.teacher.std).save(
        path
    )
