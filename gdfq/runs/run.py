"""A run: one object for what a run's folder holds and for what can be done with it."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from PIL import Image
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gdfq.convert import QuantizedModel
from gdfq.errors import InputError
from gdfq.export import packed
from gdfq.export.files import Exported, FileOptions, export_file, options_for
from gdfq.export.inspection import Inspection, in_bytes, inspect_student
from gdfq.export.source import CheckImages, open_images
from gdfq.files import as_path
from gdfq.models import Generator
from gdfq.nn import QAct
from gdfq.recipes import Recipe, load_recipe
from gdfq.recipes.files import parse_recipe, read_text
from gdfq.recipes.images import random_images, seeded
from gdfq.recipes.networks import build_generator, build_student, build_teacher
from gdfq.report.contents import Result
from gdfq.runs import folder as files
from gdfq.runs.accuracy import Evaluate, bits_of
from gdfq.runs.folder import read_json, shorten, use_format
from gdfq.runs.measures import float_bytes
from gdfq.runs.report import write_report
from gdfq.runs.table import html_table, text_table
from gdfq.settings import checked, with_fields
from gdfq.sources import LoadedTeacher, Preprocessing
from gdfq.training.checkpoint import newest_valid
from gdfq.training.parts import final_state

_RESULT = TypeAdapter(Result)


def _ignore(text: str) -> None:
    """Do nothing; a function with a name, so that runs can be pickled."""


class Run:
    """A run, finished or not; its folder is read lazily.

    In a notebook it shows itself as a table.

    Args:
        folder: of the run.
        network: the teacher, if the run was given it in Python without a ``factory``; only its
            architecture counts, the weights are in the folder.
        device: where the networks are put.
        evaluate: what top-1 was measured with; an exported file is compared on its batches.
        on_warning: called with a line about each file that cannot be used.

    Attributes:
        folder: the run's. A temporary one is deleted with this object.
        counts: by ``"teacher"`` and ``"student"``, how the test images were taken, see
            :func:`gdfq.data.confusion`, if this process measured that.

    Raises:
        InputError: of any attribute: the folder holds no run, no student yet, or ``network`` is
            not the run's.
    """

    def __init__(
        self,
        folder: str | Path,
        network: nn.Module | None = None,
        device: str = "cpu",
        evaluate: Evaluate | None = None,
        on_warning: Callable[[str], None] = _ignore,
    ) -> None:
        self.folder = as_path("folder", folder)
        self.device = device
        self.counts: dict[str, Tensor] = {}
        self._network = network
        self._evaluate = evaluate
        self._on_warning = on_warning

    # ---- what the folder holds ----

    @cached_property
    def recipe(self) -> Recipe:
        """Everything that decided the run: ``recipe.toml``."""
        path = self._path(files.RECIPE)
        return parse_recipe(read_text(path, "recipe"), str(path))

    def _path(self, name: str) -> Path:
        """Return the path of a file of the run; raise InputError if there is no run."""
        if not (self.folder / files.RECIPE).is_file():
            raise InputError(f"run: {self.folder} is not a run folder: it has no {files.RECIPE}")
        return self.folder / name

    @cached_property
    def result(self) -> Result:
        """The run's figures: ``result.json``, or what the recipe says as long as there is none."""
        path = self._path(files.RESULT)
        spec = self.recipe.quantization
        known = {
            "name": self.recipe.name,
            "weight_bits": spec.weight_bits,
            "act_bits": spec.act_bits,
            "seed": self.recipe.training.seed,
            "dynamic_ranges": spec.dynamic_ranges,
            **read_json(path),
        }
        try:
            return _RESULT.validate_python(known)
        except ValidationError as error:
            wrong = error.errors()[0]
            raise InputError(
                f"run: cannot read {path}: {wrong['loc'][0]} is {wrong['input']!r}"
            ) from error

    @property
    def ended(self) -> bool:
        """Whether the run finished or failed: resumed, it would not train."""
        return self.result.finished or self.result.failure is not None

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The losses and learning rates of each epoch: ``metrics.jsonl``."""
        try:
            lines = self._path(files.METRICS).read_bytes().splitlines()
        except OSError:
            return []
        records: list[dict[str, Any]] = []
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                break  # the last line of a run that was killed while it wrote
            if not isinstance(record, dict):
                break
            records.append(record)
        return records

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions and machine: ``environment.json``; empty if it is not there."""
        return read_json(self._path(files.ENVIRONMENT))

    @property
    def images(self) -> Image.Image:
        """Images that the generator made, a row for each class: ``images.png``."""
        path = self._path(files.IMAGES)
        try:
            with Image.open(path) as image:
                return image.copy()
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises
            problem = getattr(error, "strerror", None) or error
            raise InputError(
                f"run: cannot read {path}, which is written when training ends: {problem}"
            ) from error

    # ---- networks ----

    @property
    def teacher(self) -> nn.Module:
        """The float network that the student was made of; a copy."""
        return self.loaded_teacher.network

    @property
    def preprocessing(self) -> Preprocessing:
        """The images that the networks take."""
        return self.loaded_teacher.preprocessing

    @property
    def student(self) -> QuantizedModel:
        """The quantized network, in evaluation mode."""
        student, problem = self.kept_student
        if problem is None and not self.calibrated:
            end = "was interrupted" if self.result.failure is None else "failed"
            problem = (
                f"the student in {self.folder} has no activation ranges: its run {end} before "
                "fine-tuning began"
            )
        if problem is not None:
            raise InputError(f"run: {problem}")
        return student

    @cached_property
    def loaded_teacher(self) -> LoadedTeacher:
        """The teacher with what is known about it."""
        recipe = load_recipe(str(self._path(files.RECIPE)))
        _, teacher = build_teacher(recipe, self._network, self.folder)
        use_format(recipe, teacher.network)
        teacher.network.to(self.device)
        return teacher

    @cached_property
    def kept_student(self) -> tuple[QuantizedModel, str | None]:
        """The newest student that was kept; if none was, an untrained one and the reason."""
        student, problem = build_student(self.recipe, self.teacher), None
        use_format(self.recipe, student)
        if self._checkpoint is not None and not self.ended:
            student.load_state_dict(self._checkpoint["student"])
        else:  # later than any checkpoint, or all that is left
            path = self.folder / files.STUDENT
            try:
                student.load_state_dict(load_file(path))
            except (OSError, SafetensorError, InputError) as error:
                problem = f"cannot load {path}: {shorten(error)}"
        return student.to(self.device), problem

    @property
    def calibrated(self) -> bool:
        """Whether the student's activation ranges are set."""
        acts = [m for m in self.kept_student[0].modules() if isinstance(m, QAct)]
        return all(act.has_range for act in acts)

    @cached_property
    def generator(self) -> Generator | None:
        """The generator, None if no checkpoint with it is left."""
        if self._checkpoint is None:
            return None
        generator = build_generator(self.recipe, self.preprocessing)
        generator.load_state_dict(self._checkpoint["generator"])
        use_format(self.recipe, generator)
        return generator.to(self.device)

    def generate(self, count: int, rng: torch.Generator | None = None) -> Tensor:
        """Generate ``(count, C, H, W)`` images of random classes, as training made them.

        Args:
            count: of images.
            rng: source of noise and classes, on the generator's device; None is seeded by the
                recipe.

        Raises:
            InputError: no checkpoint with the generator is left.
        """
        if self.generator is None:
            raise InputError(f"run: {self.folder} has no checkpoint with its generator any more")
        rng = rng or seeded(self.recipe, self.generator)
        classes = self.preprocessing.num_classes
        return random_images(self.recipe, self.generator, classes, count, rng)

    @cached_property
    def _checkpoint(self) -> dict[str, Any] | None:
        """Networks' states and figures of the newest valid checkpoint."""
        found = newest_valid(self._path(files.RECIPE).parent, self._on_warning)
        if found is None:
            return None
        trained = found[1]["trainer"]
        known = ("before", "evaluation", "training_seconds")
        return {
            "generator": trained["generator"],
            "student": final_state(trained),
            "result": {key: found[1][key] for key in known if key in found[1]}
            | {"steps": trained["steps_done"]},
        }

    def hold(
        self,
        recipe: Recipe,
        result: Result,
        teacher: LoadedTeacher,
        student: QuantizedModel,
        generator: Generator,
        counts: dict[str, Tensor],
    ) -> None:
        """Keep what a run that has just finished has in memory, in place of reading it again."""
        self.recipe, self.result, self.counts = recipe, result, counts
        self.loaded_teacher, self.generator = teacher, generator
        self.kept_student = student, None

    # ---- figures ----

    @cached_property
    def latest_result(self) -> Result:
        """The figures of the newest student that was kept, even if the run has not ended."""
        if self.ended:
            return self.result
        known = {} if self._checkpoint is None else dict(self._checkpoint["result"])
        if self.result.average_weight_bits is None:
            with suppress(InputError):  # the network computes all its weights
                known |= bits_of(self.kept_student[0], self.preprocessing)
        return replace(self.result, **known)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The result in numbers.

        ``teacher``, ``before`` and ``after`` (fine-tuning) are top-1 in percent, None where it was
        not measured; ``weight_bits`` and ``act_bits`` the student's, ``average_weight_bits`` over
        all weights, those in float at 32 bits, ``float_weight_share`` of them in float, 0 to 1
        (:func:`gdfq.nn.float_weights`), ``effective_weight_bits`` and ``effective_act_bits`` with
        what their ranges cost (:func:`gdfq.nn.effective_weight_bits`); ``float_bytes`` and
        ``packed_bytes`` the sizes of both networks as files.
        """
        return {
            **asdict(self.latest_result),
            "float_bytes": float_bytes(self.teacher),
            "packed_bytes": len(packed.to_bytes(self.on_cpu(), self.recipe)),
        }

    # ---- what can be done with it ----

    def export(
        self,
        path: str | Path,
        format: str | None = None,
        *,
        images: int | None = None,
        keep_unfaithful: bool = True,
        **options: Any,
    ) -> Exported:
        """Write the student for other runtimes, then run the file and compare it with the student.

        Args:
            path: of the file; it is replaced if it exists.
            format: ``"onnx"``, ``"pt2"`` or ``"safetensors"``; None is what ``path`` ends in.
            images: how many it is compared on; None is all of ``evaluate``'s batches, else all of
                the recipe's data set, else 256 generated ones.
            keep_unfaithful: False deletes a file that fails the comparison, and restores the file
                that it replaced.
            options: the other fields of :class:`gdfq.export.files.FileOptions`, by name:
                ``mode="integer"`` or ``weights="int4"`` for ONNX, ``decompose=True`` for pt2.

        Returns:
            The file's comparison with the student. If it fails, a warning names runtime and reason.

        Raises:
            InputError: an option is not allowed, a package is missing, the network cannot be
                exported, or the file cannot be written.
        """
        path = as_path("path", path)
        form = options_for(path, format, **options)
        images = checked("images", images, Annotated[int, Field(ge=1)] | None)
        student = self.on_cpu()
        written = export_file(
            student, path, form, self.check_images(images), self.recipe, keep_unfaithful
        )
        if not written.faithful:
            warnings.warn(f"gdfq: {written}", stacklevel=2)
        return written

    def check_images(self, limit: int | None = None) -> CheckImages:
        """Return the images that an exported file is compared on, see :meth:`export`."""
        given = None
        if self._evaluate is not None and not callable(self._evaluate):
            given = cast(Iterable[tuple[Tensor, Tensor]], self._evaluate)
        return open_images(self.recipe, self.folder, limit, given, lambda: self.generator)

    def inspect(self) -> Inspection:
        """Return the student's layers with bits, ranges and sizes, and the folder's files."""
        facts = {"run": self.recipe.name, "seed": str(self.recipe.training.seed)}
        for key in ("teacher", "before", "after"):
            if (value := getattr(self.latest_result, key)) is not None:
                facts[f"top-1 {key}"] = f"{value:.2f}%"
        for file in sorted(self.folder.iterdir()):
            if file.is_file():
                facts[file.name] = in_bytes(file.stat().st_size)
        return inspect_student(self.student, facts)

    def save(self, path: str | Path) -> None:
        """Write the student as a small file for :func:`gdfq.load`, its weights packed.

        Raises:
            InputError: it cannot be written.
        """
        packed.save(self.on_cpu(), as_path("path", path), self.recipe)

    def report(self, path: str | Path | None = None) -> Path:
        """Write one HTML file about the run: accuracy, losses, images, and every layer.

        Args:
            path: of the file, which is replaced if it exists; None is ``report.html`` in the
                run's folder.

        Returns:
            Where it is.

        Raises:
            InputError: it cannot be written.
        """
        path = self.folder / files.PAGE if path is None else as_path("path", path)
        write_report([self], path, on_warning=_warn)
        return path

    def on_cpu(self) -> Any:
        """Return the student on the CPU, a copy if it is elsewhere."""
        if next(self.student.parameters()).device.type == "cpu":
            return self.student
        return copy.deepcopy(self.student).cpu()

    def __repr__(self) -> str:
        return text_table(self.latest_result, self.metrics, self.folder)

    def _repr_html_(self) -> str:
        return html_table(self.latest_result, self.metrics, self.folder)


Run.export.__signature__ = with_fields(Run.export, FileOptions)  # type: ignore[attr-defined]


def _warn(text: str) -> None:
    warnings.warn(f"gdfq: {text}", stacklevel=4)
