"""A run in progress: train, record, measure, write."""

from __future__ import annotations

import io
import math
import time
from dataclasses import asdict
from pathlib import Path

from torch import Tensor, nn

from gdfq.convert import QuantizedModel
from gdfq.environment import environment
from gdfq.errors import InputError, NonFiniteLossError
from gdfq.files import write_file
from gdfq.models import Generator
from gdfq.recipes import Recipe
from gdfq.report.contents import Result
from gdfq.runs.accuracy import bits_of, make_measure
from gdfq.runs.folder import (
    ENVIRONMENT,
    IMAGES,
    METRICS,
    RESULT,
    STUDENT,
    TENSORBOARD,
    read_json,
    save_student,
    write_json,
)
from gdfq.runs.interrupts import Interrupted, Interrupts
from gdfq.runs.metrics import Metrics
from gdfq.runs.options import Options
from gdfq.runs.picture import picture
from gdfq.runs.report import write_run_report
from gdfq.runs.run import Run
from gdfq.runs.tensorboard import TensorBoard
from gdfq.sources import LoadedTeacher
from gdfq.training import GDFQTrainer, TrainerCallback
from gdfq.training.checkpoint import (
    checkpoint_path,
    newest_valid,
    read_checkpoint,
    write_checkpoint,
)
from gdfq.training.progress import Progress
from gdfq.training.state import digest

# Facts of the environment on which a run's rounding can depend.
ROUNDING = ("gdfq", "torch", "cpu", "cpu_capability", "threads", "gpu", "backend", "processes")


class Execution(TrainerCallback):
    """A run in progress, as its trainer's callback; see :mod:`gdfq.runs.session`."""

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
        self.preprocessing = teacher.preprocessing
        self.trainer = trainer
        self.progress = progress
        self.options = options
        self.world = options.world
        self.interrupts = interrupts or Interrupts()
        self.result = Result(
            name=recipe.name,
            weight_bits=recipe.quantization.weight_bits,
            act_bits=recipe.quantization.act_bits,
            seed=recipe.training.seed,
            training_seconds=0.0,
            dynamic_ranges=recipe.quantization.dynamic_ranges,
            **bits_of(trainer.student, self.preprocessing),
        )
        self.measure = make_measure(
            recipe, self.preprocessing, self.result, self.world, options.workers, options.evaluate
        )
        self.counts: dict[str, Tensor] = {}
        self.teacher_digest = digest(self.teacher)
        self.environment = {
            **environment(),
            "device": options.device,
            "processes": options.world.size,
        }
        self.metrics = Metrics(folder / METRICS, progress.on_warning)
        self.tensorboard: TensorBoard | None = None
        self.checkpoint: Path | None = None  # the newest valid one
        self.checkpoint_step = -1
        self.began = self.saved = time.perf_counter()

    def load_newest(self) -> None:
        """Go back to the newest valid checkpoint, if there is one."""
        found = newest_valid(self.folder, self.progress.on_warning) if self.world.first else None
        step = self.world.broadcast_from_rank0(found[1]["trainer"]["steps_done"] if found else -1)
        if not self.world.first and step >= 0:
            path = checkpoint_path(self.folder, step)
            found = path, read_checkpoint(path)
        if found is None:
            self.progress.on_status("there is no checkpoint: starting at step 0")
            return
        path, state = found
        if state["teacher"] != self.teacher_digest:
            raise InputError(f"resume: the teacher's weights are not those of {path}")
        self.trainer.load_state_dict(state["trainer"])
        self.metrics.records = state["metrics"]
        self.result.before = state["before"]
        self.result.evaluation = state["evaluation"]
        self.result.training_seconds = state["training_seconds"]
        self.checkpoint, self.checkpoint_step = path, self.trainer.steps_done
        self.progress.on_status(f"resuming after step {self.trainer.steps_done}, from {path.name}")
        earlier = read_json(self.folder / ENVIRONMENT)
        for key in ROUNDING:
            if earlier.get(key, self.environment[key]) != self.environment[key]:
                self.progress.on_warning(
                    f"{key} was {earlier[key]!r} when the run began and is "
                    f"{self.environment[key]!r} now: rounding may differ"
                )

    def try_evaluate(self) -> None:
        """Measure the teacher with what the caller gave: if that fails, nothing has begun yet."""
        if self.options.evaluate is not None:
            self.progress.on_status("measuring the teacher")
            self.result.teacher = self._measure_for_report("teacher", self.teacher)

    # ---- from here to the end ----

    def run_to_end(self) -> Run:
        """Train, measure, write; a signal leaves the run where it can be resumed."""
        with self.interrupts:
            try:
                self._prepare()
                failure = self._train()
                self.interrupts.agree(self.world)
                if (
                    failure is None
                ):  # else the student has been put back, and nothing can be resumed
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
        return self._close()

    def _prepare(self) -> None:
        note = self.measure.open()
        if note is not None:
            self.progress.on_warning(note)
        if not self.world.first:
            return
        if not (self.folder / ENVIRONMENT).exists():
            write_json(self.folder / ENVIRONMENT, self.environment)
        self.metrics.write()
        if self.options.tensorboard:
            self.tensorboard = TensorBoard(
                self.folder / TENSORBOARD, self.trainer.steps_done, self.progress.on_warning
            )

    def _train(self) -> NonFiniteLossError | None:
        self.progress.on_start(self.trainer)
        self.began = self.saved = time.perf_counter()
        try:
            self.trainer.train(self)
        except NonFiniteLossError as error:
            self.result.failure = str(error)
            return error
        finally:
            self._count_seconds()
            self.progress.on_stop()
        return None

    def _finish(self, failure: NonFiniteLossError | None) -> None:
        """Write and measure what came out; killed in here, a resumed run does it again."""
        if self.world.first:
            if failure is None:
                self._save_checkpoint()
            self.metrics.write()
            save_student(self.trainer.outcome, self.recipe, self.folder / STUDENT)
            image = io.BytesIO()
            picture(self.recipe, self.preprocessing, self.trainer.generator).save(image, "png")
            write_file(self.folder / IMAGES, image.getvalue())
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

    def _close(self) -> Run:
        """Return the finished run, its report written; an error there leaves the run complete."""
        student, generator = self.trainer.outcome, self.trainer.generator
        assert isinstance(student, QuantizedModel)
        assert isinstance(generator, Generator)
        student.zero_grad()  # what training leaves behind
        run = Run(self.folder, self.options.network, self.options.device, self.options.evaluate)
        run.hold(self.recipe, self.result, self.loaded_teacher, student, generator, self.counts)
        if self.options.report and self.world.first:
            self.progress.on_status("measuring the layers for the report")
            try:
                write_run_report(run)
            except Exception as error:
                self.progress.on_warning(f"no report: {type(error).__name__}: {error}")
        return run

    def _leave(self) -> None:
        """Leave quickly: save a checkpoint and the student as it is, unmeasured."""
        if not self.world.first:
            return
        self._save_checkpoint()
        try:
            if self.trainer.calibrated:
                save_student(self.trainer.outcome, self.recipe, self.folder / STUDENT)
            self._write_result(finished=False)
        except OSError as error:
            self.progress.on_warning(f"cannot write to {self.folder}: {error.strerror}")

    def _write_result(self, finished: bool) -> None:
        self.result.steps = self.trainer.steps_done
        self.result.finished = finished
        if self.world.first:
            write_json(self.folder / RESULT, asdict(self.result))

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
            self.progress.on_warning(
                f"cannot write {checkpoint_path(self.folder, step)}: {error.strerror}; {kept}"
            )
        self.saved = time.perf_counter()

    def _count_seconds(self) -> None:
        """Add the time since the last call to that of training."""
        now = time.perf_counter()
        self.result.training_seconds = (self.result.training_seconds or 0.0) + now - self.began
        self.began = now

    def _announce(self, measuring: str) -> None:
        if self.measure.ready:
            self.progress.on_status(measuring)

    def _log_accuracy(self, name: str, value: float | None) -> None:
        if self.tensorboard is not None and value is not None:
            self.tensorboard.accuracy(name, value, self.trainer.steps_done)

    # ---- what the trainer calls ----

    def on_step(self, trainer: GDFQTrainer, losses: dict[str, Tensor]) -> None:
        """Show it."""
        self.progress.on_step(trainer, losses)

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
        epoch = trainer.steps_done // trainer.training.steps_per_epoch
        record = {
            "epoch": epoch,
            "step": trainer.steps_done,
            **losses,
            "generator_lr": float(trainer.generator_update.rate.value),
            "student_lr": float(trainer.student_update.rate.value),
        }
        if self.world.first:
            self.metrics.append(record)
        if self.tensorboard is not None:
            self.tensorboard.epoch(record)
            if epoch % max(1, trainer.training.epochs // 10) == 0:
                self.tensorboard.images(
                    picture(self.recipe, self.preprocessing, trainer.generator), trainer.steps_done
                )
        self.progress.on_epoch(trainer, losses)

    def between_steps(self, trainer: GDFQTrainer, losses: dict[str, Tensor]) -> None:
        """Save a checkpoint when it is time, unless the losses are about to end the run."""
        due = time.perf_counter() - self.saved >= self.options.checkpoint_every
        if self.world.first and due and all(math.isfinite(loss) for loss in losses.values()):
            self._save_checkpoint()

    def should_stop(self) -> bool:
        """Whether a signal has arrived."""
        return self.interrupts.arrived is not None
