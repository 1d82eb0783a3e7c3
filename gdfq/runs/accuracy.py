"""Measure a run's top-1."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gdfq.data import Batches, accuracy, confusion, open_batches
from gdfq.distributed import World
from gdfq.errors import InputError
from gdfq.nn import (
    average_weight_bits,
    effective_act_bits,
    effective_weight_bits,
    float_weight_share,
)
from gdfq.recipes import Recipe
from gdfq.report.contents import Result
from gdfq.sources import Preprocessing

# Batches of normalized images and labels, or a function of a network that returns top-1 in percent.
Evaluate = Iterable[tuple[Tensor, Tensor]] | Callable[[nn.Module], float]


def bits_of(student: nn.Module, preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the fields of :class:`Result` that describe the student's bits on such images."""
    size = preprocessing.image_size
    shape = (2, preprocessing.channels, size, size)
    example = torch.zeros(shape, device=next(student.parameters()).device, dtype=torch.float32)
    return {
        "average_weight_bits": average_weight_bits(student),
        "float_weight_share": float_weight_share(student),
        "effective_weight_bits": effective_weight_bits(student),
        "effective_act_bits": effective_act_bits(student, example),
    }


class Measure:
    """A measurement of top-1 in percent, None if nothing is measured; the result says on what.

    ``ready`` says whether calling it measures; ``counts`` is of what was measured last, see
    :func:`gdfq.data.confusion`, where that is known.
    """

    ready = False
    counts: Tensor | None = None

    def __init__(self, result: Result, world: World) -> None:
        self.result = result
        self.world = world

    def open(self) -> str | None:
        """Get ready; return a warning about it, from this process or another, or None."""
        return None

    def __call__(self, model: nn.Module) -> float | None:
        """Return the top-1 of ``model``."""
        return None


class MeasureOnData(Measure):
    """Top-1 on the recipe's data set."""

    def __init__(
        self,
        recipe: Recipe,
        preprocessing: Preprocessing,
        workers: int | None,
        result: Result,
        world: World,
    ) -> None:
        super().__init__(result, world)
        self.recipe = recipe
        self.preprocessing = preprocessing
        self.workers = workers
        self.batches: Batches | None = None

    @property
    def ready(self) -> bool:  # type: ignore[override]
        """Whether the data set is open."""
        return self.batches is not None

    def open(self) -> str | None:
        """Open the data set."""
        problem = ""
        try:
            self.batches = open_batches(self.recipe, self.preprocessing, self.workers, self.world)
        except InputError as error:
            problem = str(error)
        if self.world.any(bool(problem)):
            self.batches = None
            problem = self._skip(problem or "data: another process cannot open it")
            return f"accuracy will not be measured: {problem}"
        return (self.batches and self.batches.note) or None

    def __call__(self, model: nn.Module) -> float | None:
        """Return the top-1 of ``model``; None if no data set is open."""
        if self.batches is None:
            return None
        try:
            counts = confusion(model, self.batches, self.world)
        except InputError as error:
            self._skip(str(error))
            return None
        self.counts = counts
        pictures = self.world.total(self.batches.pictures)
        note = f", {self.batches.note}" if self.batches.note else ""
        self.result.evaluation = f"{pictures:,} test images of {self.batches.name}{note}"
        return accuracy(counts)

    def _skip(self, problem: str) -> str:
        self.result.evaluation = f"skipped: {problem}"
        return problem


class MeasureOnBatches(Measure):
    """Top-1 on batches that the caller gave."""

    ready = True

    def __init__(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        preprocessing: Preprocessing,
        result: Result,
        world: World,
    ) -> None:
        super().__init__(result, world)
        if iter(batches) is batches:
            raise InputError(
                "evaluate: an iterator can be read once, and it is read three times; give a list "
                "or a DataLoader"
            )
        _check_batch(next(iter(batches), None), preprocessing)
        self.batches = batches

    def __call__(self, model: nn.Module) -> float:
        """Return the top-1 of ``model``."""
        self.count = 0
        self.counts = confusion(model, self._counted(), self.world)
        self.result.evaluation = f"{self.world.total(self.count):,} images given as batches"
        return accuracy(self.counts)

    def _counted(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.batches:
            self.count += len(images)
            yield images, (labels if labels.dim() == 2 else labels.long()).cpu()


def _check_batch(batch: Any, preprocessing: Preprocessing) -> None:
    shape = (preprocessing.channels, preprocessing.image_size, preprocessing.image_size)
    classes = preprocessing.num_classes
    wanted = (
        f"(images, labels): images (N, {', '.join(map(str, shape))}) float32, labels (N,), or "
        f"(N, {classes}) bool with several right classes"
    )
    if batch is None:
        raise InputError(f"evaluate: there is no batch; must be batches of {wanted}")
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise InputError(f"evaluate: must be batches of {wanted}; got a {type(batch).__name__}")
    for name, part in zip(("images", "labels"), batch, strict=True):
        if not isinstance(part, Tensor):
            raise InputError(
                f"evaluate: must be batches of {wanted}; {name} are a {type(part).__name__}"
            )
    pixels, labels = batch
    if pixels.shape[1:] != shape or pixels.dtype != torch.float32:
        raise InputError(
            f"evaluate: must be batches of {wanted}; got images {tuple(pixels.shape)} of "
            f"{pixels.dtype}"
        )
    several = labels.dtype == torch.bool and labels.shape == (len(pixels), classes)
    if not several and (labels.shape != pixels.shape[:1] or labels.is_floating_point()):
        raise InputError(
            f"evaluate: must be batches of {wanted}; got labels {tuple(labels.shape)} of "
            f"{labels.dtype}"
        )
    if several:
        if not labels.any(1).all():
            raise InputError("evaluate: labels must have one right class or more for each image")
    elif len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(
            f"evaluate: labels must be 0 to {classes - 1}, got {int(labels.min())} to "
            f"{int(labels.max())}"
        )


class MeasureByFunction(Measure):
    """Top-1 by a function that the caller gave; it gets a copy of the network."""

    ready = True

    def __init__(
        self, function: Callable[[nn.Module], float], result: Result, world: World
    ) -> None:
        super().__init__(result, world)
        self.function = function

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> float:
        """Return what the function returns for ``model``."""
        returned = self.function(copy.deepcopy(model).eval())
        try:
            accuracy = float(returned)
        except (TypeError, ValueError):
            raise InputError(
                f"evaluate: must return top-1 in percent, got a {type(returned).__name__}"
            ) from None
        if not 0 <= accuracy <= 100:
            raise InputError(f"evaluate: must return top-1 in percent, 0 to 100, got {accuracy}")
        name = getattr(self.function, "__name__", type(self.function).__name__)
        self.result.evaluation = f"by {name}"
        return accuracy


def make_measure(
    recipe: Recipe,
    preprocessing: Preprocessing,
    result: Result,
    world: World,
    workers: int | None = None,
    evaluate: Evaluate | None = None,
) -> Measure:
    """Return a run's measurement: ``evaluate``, else the recipe's data set, else none.

    Raises:
        InputError: ``evaluate`` is nothing that can.
    """
    if callable(evaluate):
        return MeasureByFunction(evaluate, result, world)
    if evaluate is not None:
        if not isinstance(evaluate, Iterable):
            raise InputError(
                "evaluate: must be batches of (images, labels) or a function of a network, got a "
                f"{type(evaluate).__name__}"
            )
        return MeasureOnBatches(evaluate, preprocessing, result, world)
    if recipe.teacher.data == "none":
        return Measure(result, world)
    return MeasureOnData(recipe, preprocessing, workers, result, world)
