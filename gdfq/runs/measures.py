"""Measure what a report shows of a run's networks, its generated images and its test images."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gdfq.bit_widths.sensitivity import Divergence, tensor_at
from gdfq.data import confusion, open_batches
from gdfq.export import packed
from gdfq.nn.weight import QuantizedWeight, dequantize
from gdfq.recipes.images import class_images
from gdfq.recipes.networks import build_trainer
from gdfq.report.confusion import describe
from gdfq.report.contents import Measured
from gdfq.report.images import images_by_class, norm_statistics
from gdfq.report.layers import Place, batch_norms, places
from gdfq.report.observation import Loss, Moments, observe, quantizers
from gdfq.runs.picture import shown_classes

if TYPE_CHECKING:
    from gdfq.runs.run import Run

# Generated images that layers are measured on, of up to so many pixels a side, and of larger ones.
SMALL = 64
IMAGES_SMALL, IMAGES_LARGE = 256, 64
# Sensitivity takes a forward pass per layer.
SENSITIVITY_SMALL, SENSITIVITY_LARGE = 128, 32
# Images of each class that are averaged.
PER_CLASS_SMALL, PER_CLASS_LARGE = 32, 8
PASS = 64  # images in a forward pass

StatusCallback = Callable[[str], None]


def measure(run: Run, on_status: StatusCallback = lambda text: None) -> Measured:
    """Measure everything that a report needs of ``run``'s networks; they are left as they are.

    What cannot be measured is missing and explained in ``notes``.

    Args:
        run: finished or not; a student that is not calibrated has no measured activations.
        on_status: called with the name of each measurement before it begins.
    """
    return _Measurement(run, on_status).all()


class _Measurement:
    def __init__(self, run: Run, on_status: StatusCallback) -> None:
        self.run = run
        self.student, _ = run.kept_student
        self.on_status = on_status
        self.result = Measured(run.latest_result.steps)
        self.small = run.preprocessing.image_size <= SMALL
        self.places: list[Place] = []

    def all(self) -> Measured:
        """Measure one thing after the other; that one fails says nothing about the others."""
        self.attempt("the layers", self.layers)
        if self.run.generator is None:
            self.result.notes.append(
                "There is no checkpoint with the generator, so nothing that needs generated "
                "images could be measured."
            )
        else:
            self.attempt("generated images", self.images)
            self.attempt("activations and batch norms", self.statistics)
            self.attempt("sensitivity", self.sensitivity)
        self.attempt("the confusion matrix", self.confusion)
        self.attempt("file sizes", self.sizes)
        return self.result

    def attempt(self, what: str, action: Callable[[], None]) -> None:
        try:
            self.on_status(what)
            action()
        except Exception as error:  # of any network, on any machine: a report is not a run's result
            reason = str(error) or type(error).__name__
            self.result.notes.append(f"No {what.removeprefix('the ')}: {reason}")

    # ---- layers ----

    def layers(self) -> None:
        self.places = places(self.student)
        self.result.layers = [place.row for place in self.places]
        for place in self.places:
            row = place.row
            if row.weight_bits is None:
                continue
            layer = self.student.get_submodule(row.name)
            if isinstance(layer, QuantizedWeight):
                lost = Loss()
                lost.add(layer.weight, dequantize(*layer.weight_codes()))
                row.weight_sqnr = lost.sqnr
            elif place.weight:
                row.shape = list(tensor_at(self.student, place.weight).shape)

    def images(self) -> None:
        run, generator = self.run, self.run.generator
        assert generator is not None
        names = shown_classes(run.recipe, run.preprocessing)
        count = PER_CLASS_SMALL if self.small else PER_CLASS_LARGE
        made = class_images(run.recipe, generator, len(names), count)
        self.result.classes = images_by_class(made, names, run.preprocessing)
        norms = batch_norms(run.teacher)
        order = [row.norm for row in self.result.layers if row.norm in norms]
        self.result.norms = norm_statistics(
            run.teacher,
            {name: norms[name] for name in order},
            made.to(next(generator.parameters()).device),
        )

    def generate(self) -> list[Tensor]:
        """Generate images of random classes, in batches."""
        wanted = IMAGES_SMALL if self.small else IMAGES_LARGE
        return list(self.run.generate(wanted).split(PASS))

    def statistics(self) -> None:
        run = self.run
        batches = self.batches = self.generate()
        self.result.images = sum(map(len, batches))
        norms = batch_norms(run.teacher)
        seen: dict[nn.Module, Moments] = {norm: Moments() for norm in norms.values()}
        observe(run.teacher, batches, seen)
        lost = {module: Loss() for module in quantizers(self.student).values()}
        after = _moments(self.student)
        before: dict[str, Moments] = {}
        if run.calibrated:
            observe(self.student, batches, _by_module(self.student, after), lost)
            student = self.fresh_student()
            before = _moments(student)
            observe(student, batches, _by_module(student, before))
        else:
            self.result.notes.append(
                "The student has no activation ranges yet, so its activations were not measured."
            )
        for row in self.result.layers:
            if row.norm in norms:
                norm = norms[row.norm]
                assert norm.running_mean is not None
                assert norm.running_var is not None
                stored = norm.running_mean.double(), norm.running_var.double()
                row.mismatch_teacher = seen[norm].mismatch(*stored)
                if row.norm in before:
                    row.mismatch_before = before[row.norm].mismatch(*stored)
                if row.norm in after:
                    row.mismatch_after = after[row.norm].mismatch(*stored)
            if row.act:
                act = lost[self.student.get_submodule(row.act)]
                row.act_sqnr, row.clipped = act.sqnr, act.clipped
            if row.weight_bits is not None and row.weight_sqnr is None:
                weight = lost.get(self.student.get_submodule(row.name))
                row.weight_sqnr = weight.sqnr if weight else None

    def fresh_student(self) -> nn.Module:
        """A student that has been calibrated, not fine-tuned."""
        generator = copy.deepcopy(self.run.generator)
        assert generator is not None
        trainer = build_trainer(self.run.recipe, self.run.loaded_teacher, generator)
        trainer.calibrate(trainer.training.calibration_batches)
        return trainer.student

    def sensitivity(self) -> None:
        wanted = SENSITIVITY_SMALL if self.small else SENSITIVITY_LARGE
        images = torch.cat(self.batches)[:wanted]
        divergence = Divergence(self.run.teacher, images.split(PASS), self.run.recipe.quantization)
        self.result.sensitivity_images = len(images)
        for place in self.places:
            if place.weight and place.row.weight_bits is not None:
                place.row.sensitivity = divergence({place.weight: place.row.weight_bits})

    # ---- the rest ----

    def confusion(self) -> None:
        run = self.run
        counts = dict(run.counts)
        if not counts and run.recipe.teacher.data != "none" and run.calibrated:
            batches = open_batches(run.recipe, run.preprocessing)
            counts["teacher"] = confusion(run.teacher, batches)
            counts["student"] = confusion(self.student, batches)
        if len(counts) == 2:
            self.result.confusion = describe(
                run.recipe.teacher.data, counts["teacher"], counts["student"]
            )

    def sizes(self) -> None:
        self.result.float_bytes = float_bytes(self.run.teacher)
        if self.run.calibrated:
            self.result.packed_bytes = len(packed.to_bytes(self.run.on_cpu(), self.run.recipe))


def float_bytes(network: nn.Module) -> int:
    """Return the bytes of a network's tensors, each counted once whatever its names."""
    tensors = {id(value): value for value in network.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _moments(student: nn.Module) -> dict[str, Moments]:
    return {name: Moments() for name in batch_norms(student)}


def _by_module(student: nn.Module, moments: dict[str, Moments]) -> dict[nn.Module, Moments]:
    return {student.get_submodule(name): seen for name, seen in moments.items()}
