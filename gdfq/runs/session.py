"""One run from its start to its end, whatever comes between: recipe in, run folder out."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from gdfq.convert import QuantizedModel
from gdfq.distributed import World
from gdfq.environment import environment
from gdfq.errors import InputError, NonFiniteLossError
from gdfq.files import is_partial, locked, remove, write_file
from gdfq.models import Generator
from gdfq.nn import average_weight_bits, float_weight_share, float_weights
from gdfq.recipes import Recipe, load_recipe
from gdfq.recipes.networks import (
    TEACHER_FILE,
    build_generator,
    build_teacher,
    build_trainer,
    check_factory,
)
from gdfq.runs.folder import STUDENT_FILE, create_folder, save_student, save_teacher
from gdfq.runs.interrupts import Interrupted, Interrupts
from gdfq.runs.measure import Evaluate, Result, effective_bits, make_measure
from gdfq.runs.metrics import Metrics
from gdfq.runs.picture import picture
from gdfq.runs.state import RunState, read_json
from gdfq.runs.tensorboard import TensorBoard, require_tensorboard
from gdfq.sources import LoadedTeacher
from gdfq.training import GDFQTrainer, TrainerCallback
from gdfq.training.checkpoint import (
    checkpoint_path,
    newest_sound,
    read_checkpoint,
    write_checkpoint,
)
from gdfq.training.memory_format import TORCH_FORMATS
from gdfq.training.state import digest

# What a run's rounding can depend on.
ROUNDING = ("gdfq", "torch", "cpu", "cpu_capability", "threads", "gpu", "backend", "processes")


class Progress(Protocol):
    """What a run tells while it goes on."""

    def start(self, trainer: GDFQTrainer) -> None:
        """Training begins."""

    def phase(self, name: str) -> None:
        """Something else than a training step begins."""

    def warning(self, text: str) -> None:
        """Something is not as it should be, and the run goes on."""

    def step(self, trainer: GDFQTrainer, losses: dict[str, Tensor]) -> None:
        """A training step is done."""

    def epoch(self, trainer: GDFQTrainer, losses: dict[str, float]) -> None:
        """An epoch is done."""

    def stop(self) -> None:
        """Training ended."""


@dataclass(frozen=True)
class Options:
    """How a run is done: nothing that a recipe decides.

    Attributes:
        device: what the run computes on; rounding depends on it.
        checkpoint_every: seconds between checkpoints; 0 is one after every step.
        tensorboard: log to ``tensorboard`` in the run's folder.
        workers: processes that decode test images, see :class:`gdfq.data.Batches`.
        world: the processes of the run. All call :func:`quantize` or :func:`resume`, the first
            writes, and all read: a resumed run's folder is one that every machine sees.
        closing: called in the first process with a run that has come to its end, when everything
            about it is written. An error there is a warning.
        network: the teacher, where the caller has it; the recipe says what it is called.
        evaluate: what accuracy is measured with, instead of the recipe's data set.

    Raises:
        InputError: ``checkpoint_every`` is negative, or TensorBoard is not installed.
    """

    device: str = "cpu"
    checkpoint_every: float = 60.0
    tensorboard: bool = False
    workers: int | None = None
    world: World = field(default_factory=World)
    closing: Callable[[RunState], None] | None = None
    network: nn.Module | None = field(default=None, kw_only=True)
    evaluate: Evaluate | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.checkpoint_every < math.inf:
            raise InputError(
                f"checkpoint_every: must be a number of seconds >= 0, got {self.checkpoint_every}"
            )
        if self.tensorboard:
            require_tensorboard()


def quantize(
    recipe: Recipe,
    folder: Path,
    progress: Progress,
    options: Options,
    interrupts: Interrupts | None = None,
) -> Result:
    """Quantize the recipe's teacher and leave everything about the run in ``folder``.

    Training reads no real image. The data set is opened to measure: the student before
    fine-tuning, and teacher and student at the end; where it cannot be read, the result says so.

    Raises:
        InputError: the recipe does not fit its teacher, or ``folder`` cannot be used.
        NonFiniteLossError: a loss became NaN; the last sound student has been saved.
        Interrupted: a signal of ``interrupts`` arrived; :func:`resume` goes on from there.
        OSError: the student or the result could not be written; :func:`resume` writes them.
        ProcessLostError: another process of ``options.world`` is gone.
    """
    recipe, teacher, trainer = _build(recipe, options)
    for note in (*teacher.notes, *trainer.teacher.describe_unrecorded()):
        progress.warning(note)
    if options.network is not None:
        recipe = recipe.with_options({"weights": TEACHER_FILE})
    # The format that was chosen: rounding depends on it, and the recipe is to repeat the run.
    recipe = recipe.with_options({"memory_format": trainer.memory_format})
    session = _Session(recipe, folder, teacher, trainer, progress, options, interrupts)
    _warn_of_float_weights(session.result, trainer.student, progress)
    session.try_evaluate()
    if options.world.first:
        create_folder(folder)
        try:
            if options.network is not None:
                save_teacher(teacher.network, folder)
            # With these the run can be resumed, so they come first.
            write_file(folder / "recipe.toml", recipe.to_toml().encode())
        except OSError as error:
            raise InputError(f"out: cannot write to {folder}: {error.strerror}") from error
    with locked(folder / "recipe.toml") if options.world.first else nullcontext():
        return session.go()


def resume(
    folder: Path, progress: Progress, options: Options, interrupts: Interrupts | None = None
) -> Result:
    """Go on with the run in ``folder`` from its newest sound checkpoint, or from its start.

    On the same machine and device (:func:`device_of`) the student becomes that of the undisturbed
    run, bit for bit. Of a run that has finished, the result is returned.

    Raises:
        InputError: ``folder`` holds no run, another process is at it, or the checkpoint does not
            fit the recipe or its teacher.
        NonFiniteLossError, Interrupted, OSError, ProcessLostError: as from :func:`quantize`.
    """
    if not (folder / "recipe.toml").is_file():
        raise InputError(f"resume: {folder} is no run folder: it has no recipe.toml")
    recipe = load_recipe(str(folder / "recipe.toml"))
    with locked(folder / "recipe.toml") if options.world.first else nullcontext():
        done = _finished(folder)
        if done is not None:
            return done
        if options.world.first:
            remove(path for path in folder.iterdir() if is_partial(path))
        recipe, teacher, trainer = _build(recipe, options, folder)
        session = _Session(recipe, folder, teacher, trainer, progress, options, interrupts)
        session.load_newest()
        return session.go()


def _warn_of_float_weights(result: Result, student: nn.Module, progress: Progress) -> None:
    if result.float_weight_share:
        name, elements = next(iter(float_weights(student).items()))
        progress.warning(
            f"{100 * result.float_weight_share:.2f}% of the weights stay in float, the largest "
            f"{name} with {elements:,}: {result.average_weight_bits:.2f} bits a weight on average"
        )


def device_of(folder: Path) -> str:
    """The device that the run in ``folder`` began on; "auto" where that is not known."""
    return read_json(folder / "environment.json").get("device", "auto")


def _finished(folder: Path) -> Result | None:
    stored = read_json(folder / "result.json")
    return Result(**stored) if stored.get("finished") else None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())


def _build(
    recipe: Recipe, options: Options, folder: Path | None = None
) -> tuple[Recipe, LoadedTeacher, GDFQTrainer]:
    """The recipe in full, its teacher, and a trainer of its student at step 0."""
    recipe, loaded = build_teacher(recipe, options.network, folder)
    if options.network is not None and not recipe.teacher.in_memory:
        check_factory(recipe, loaded.network)
    teacher = loaded.network.to(options.device)
    generator = build_generator(recipe, loaded.preprocessing).to(options.device)
    trainer = build_trainer(recipe, loaded, generator, options.world)
    teacher.to(memory_format=TORCH_FORMATS[trainer.memory_format])
    return recipe, loaded, trainer


class _Session(TrainerCallback):
    """A run that is going on, as its trainer's callback."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        teacher: LoadedTeacher,
        trainer: GDFQTrainer,
        progress: Progress,
        options: Options,
        interrupts: Interrupts | None,
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.loaded_teacher = teacher
        self.teacher = teacher.network
        self.images = teacher.preprocessing
        self.trainer = trainer
        self.progress = progress
        self.options = options
        self.world = options.world
        self.interrupts = interrupts or Interrupts()
        weights, acts = effective_bits(trainer.student, self.images)
        self.result = Result(
            name=recipe.name,
            weight_bits=recipe.quantization.weight_bits,
            act_bits=recipe.quantization.act_bits,
            average_weight_bits=average_weight_bits(trainer.student),
            seed=recipe.training.seed,
            steps=0,
            finished=False,
            training_seconds=0.0,
            dynamic_ranges=recipe.quantization.dynamic_ranges,
            effective_weight_bits=weights,
            effective_act_bits=acts,
            float_weight_share=float_weight_share(trainer.student),
        )
        self.measure = make_measure(
            recipe, self.images, self.result, self.world, options.workers, options.evaluate
        )
        self.counts: dict[str, Tensor] = {}
        self.teacher_digest = digest(self.teacher)
        self.environment = {
            **environment(),
            "device": options.device,
            "processes": options.world.size,
        }
        self.metrics = Metrics(folder / "metrics.jsonl", progress.warning)
        self.tensorboard: TensorBoard | None = None
        self.checkpoint: Path | None = None  # the newest, sound
        self.checkpoint_step = -1
        self.began = self.saved = time.perf_counter()

    def load_newest(self) -> None:
        """Go back to the newest sound checkpoint, if there is one."""
        found = newest_sound(self.folder, self.progress.warning) if self.world.first else None
        step = self.world.broadcast_from_rank0(found[1]["trainer"]["steps_done"] if found else -1)
        if not self.world.first and step >= 0:
            path = checkpoint_path(self.folder, step)
            found = path, read_checkpoint(path)
        if found is None:
            self.progress.phase("there is no checkpoint to go on from: starting at step 0")
            return
        path, state = found
        if state["teacher"] != self.teacher_digest:
            raise InputError(f"resume: the teacher's weights are not those that {path} is of")
        self.trainer.load_state_dict(state["trainer"])
        self.metrics.records = state["metrics"]
        self.result.before = state["before"]
        self.result.evaluation = state["evaluation"]
        self.result.training_seconds = state["training_seconds"]
        self.checkpoint, self.checkpoint_step = path, self.trainer.steps_done
        self.progress.phase(f"going on after step {self.trainer.steps_done}, from {path.name}")
        earlier = read_json(self.folder / "environment.json")
        for key in ROUNDING:
            if earlier.get(key, self.environment[key]) != self.environment[key]:
                self.progress.warning(
                    f"{key} was {earlier[key]!r} when the run began and is "
                    f"{self.environment[key]!r} now: rounding may differ"
                )

    def try_evaluate(self) -> None:
        """Measure the teacher with what the caller gave: if that fails, nothing has begun yet."""
        if self.options.evaluate is not None:
            self.progress.phase("measuring the teacher")
            self.result.teacher = self._measure_for_report("teacher", self.teacher)

    # ---- from here to the end ----

    def go(self) -> Result:
        """Train, measure, write; a signal leaves the run where it can be resumed."""
        with self.interrupts:
            try:
                self._prepare()
                failure = self._train()
                self.interrupts.agree(self.world)
                if failure is None:  # else the student has been put back, and there is no going on
                    self.interrupts.check()
                self._finish(failure)
            except Interrupted:
                self._leave()
                raise
            finally:
                if self.tensorboard is not None:
                    self.tensorboard.close()
        if failure is not None:
            raise failure
        self._close()
        return self.result

    def _prepare(self) -> None:
        note = self.measure.open()
        if note is not None:
            self.progress.warning(note)
        if not self.world.first:
            return
        if not (self.folder / "environment.json").exists():
            _write_json(self.folder / "environment.json", self.environment)
        self.metrics.write()
        if self.options.tensorboard:
            self.tensorboard = TensorBoard(
                self.folder / "tensorboard", self.trainer.steps_done, self.progress.warning
            )

    def _train(self) -> NonFiniteLossError | None:
        self.progress.start(self.trainer)
        self.began = self.saved = time.perf_counter()
        try:
            self.trainer.train(self)
        except NonFiniteLossError as error:
            self.result.failure = str(error)
            return error
        finally:
            self._count_seconds()
            self.progress.stop()
        return None

    def _finish(self, failure: NonFiniteLossError | None) -> None:
        """Write and measure what came out; killed in here, a resumed run does it again."""
        if self.world.first:
            if failure is None:
                self._save_checkpoint()
            self.metrics.write()
            save_student(self.trainer.outcome, self.recipe, self.folder / STUDENT_FILE)
            image = io.BytesIO()
            picture(self.recipe, self.images, self.trainer).save(image, "png")
            write_file(self.folder / "images.png", image.getvalue())
        if failure is None:
            self._announce("measuring teacher and student")
            with self.interrupts.at_once():
                self.result.after = self._measure_for_report("student", self.trainer.outcome)
                if self.result.teacher is None:
                    self.result.teacher = self._measure_for_report("teacher", self.teacher)
            self._log_accuracy("after", self.result.after)
            self._log_accuracy("teacher", self.result.teacher)
        self._write_result(finished=failure is None)

    def _measure_for_report(self, name: str, model: nn.Module) -> float | None:
        accuracy = self.measure(model)
        if accuracy is not None and self.measure.counts is not None:
            self.counts[name] = self.measure.counts
        return accuracy

    def _close(self) -> None:
        """Hand the finished run on; whatever becomes of that, the run is complete."""
        if self.options.closing is None or not self.world.first:
            return
        student, generator = self.trainer.outcome, self.trainer.generator
        assert isinstance(student, QuantizedModel)
        assert isinstance(generator, Generator)
        state = RunState(
            self.folder,
            self.recipe,
            self.loaded_teacher,
            student,
            generator,
            self.trainer.steps_done,
            self.counts,
            asdict(self.result),
        )
        try:
            self.options.closing(state)
        except Exception as error:
            self.progress.warning(f"no report: {type(error).__name__}: {error}")

    def _leave(self) -> None:
        """Leave quickly: a checkpoint, and the student as far as it is, unmeasured."""
        if not self.world.first:
            return
        self._save_checkpoint()
        try:
            if self.trainer.calibrated:
                save_student(self.trainer.outcome, self.recipe, self.folder / STUDENT_FILE)
            self._write_result(finished=False)
        except OSError as error:
            self.progress.warning(f"cannot write to {self.folder}: {error.strerror}")

    def _write_result(self, finished: bool) -> None:
        self.result.steps = self.trainer.steps_done
        self.result.finished = finished
        if self.world.first:
            _write_json(self.folder / "result.json", asdict(self.result))

    def _save_checkpoint(self) -> None:
        step = self.trainer.steps_done
        if step == self.checkpoint_step:
            return
        self._count_seconds()
        state = {
            "trainer": self.trainer.state_dict(),
            "teacher": self.teacher_digest,
            "metrics": self.metrics.records,
            "before": self.result.before,
            "evaluation": self.result.evaluation,
            "training_seconds": self.result.training_seconds,
        }
        try:
            self.checkpoint = write_checkpoint(self.folder, step, state, self.checkpoint)
            self.checkpoint_step = step
        except OSError as error:
            kept = f"{self.checkpoint.name} is kept" if self.checkpoint else "there is none yet"
            self.progress.warning(
                f"cannot write {checkpoint_path(self.folder, step)}: {error.strerror}; {kept}"
            )
        self.saved = time.perf_counter()

    def _count_seconds(self) -> None:
        """Add the time since the last call to that of training."""
        now = time.perf_counter()
        self.result.training_seconds += now - self.began
        self.began = now

    def _announce(self, measuring: str) -> None:
        if self.measure.ready:
            self.progress.phase(measuring)

    def _log_accuracy(self, name: str, value: float | None) -> None:
        if self.tensorboard is not None and value is not None:
            self.tensorboard.accuracy(name, value, self.trainer.steps_done)

    # ---- what the trainer calls ----

    def on_step(self, trainer: GDFQTrainer, losses: dict[str, Tensor]) -> None:
        """Show it."""
        self.progress.step(trainer, losses)

    def on_calibrated(self, trainer: GDFQTrainer) -> None:
        """Measure the student before it is fine-tuned."""
        self._count_seconds()
        self._announce("measuring the student before fine-tuning")
        with self.interrupts.at_once():
            self.result.before = self.measure(trainer.student)
        self._log_accuracy("before", self.result.before)
        self.began = time.perf_counter()

    def on_epoch(self, trainer: GDFQTrainer, losses: dict[str, float]) -> None:
        """Record the epoch."""
        epoch = trainer.steps_done // trainer.steps_per_epoch
        record = {
            "epoch": epoch,
            "step": trainer.steps_done,
            **losses,
            "generator_lr": float(trainer.generator_lr.value),
            "student_lr": float(trainer.student_lr.value),
        }
        if self.world.first:
            self.metrics.append(record)
        if self.tensorboard is not None:
            self.tensorboard.epoch(record)
            if epoch % max(1, trainer.epochs // 10) == 0:
                self.tensorboard.images(
                    picture(self.recipe, self.images, trainer), trainer.steps_done
                )
        self.progress.epoch(trainer, losses)

    def between_steps(self, trainer: GDFQTrainer, losses: dict[str, Tensor]) -> None:
        """Save a checkpoint when it is time, unless the losses are about to end the run."""
        due = time.perf_counter() - self.saved >= self.options.checkpoint_every
        if self.world.first and due and all(math.isfinite(loss) for loss in losses.values()):
            self._save_checkpoint()

    def should_stop(self) -> bool:
        """Whether a signal has arrived."""
        return self.interrupts.arrived is not None
