"""What a run's result says, and how accuracy is measured for it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from gdfq.data import Batches, confusion, open_test_set, share
from gdfq.distributed import World
from gdfq.errors import InputError
from gdfq.recipes import Recipe
from gdfq.sources import Preprocessing


@dataclass
class Result:
    """The closing table of a run: top-1 in percent, None where it was not measured."""

    name: str
    weight_bits: int
    act_bits: int
    average_weight_bits: float
    seed: int
    steps: int
    finished: bool
    training_seconds: float
    teacher: float | None = None
    before: float | None = None
    after: float | None = None
    evaluation: str = "not asked for"
    failure: str | None = None


def open_batches(
    recipe: Recipe,
    images: Preprocessing,
    workers: int | None = None,
    world: World | None = None,
) -> Batches:
    """The test images that the recipe names, this process's share of them.

    Raises:
        InputError: it names none, or they cannot be opened; the message has the path.
    """
    spec = recipe.teacher
    if spec.data == "none":
        raise InputError("data: the recipe names no data set to measure on")
    world = world or World()
    test_set = open_test_set(spec.data, spec.data_path, images.num_classes)
    return Batches(test_set, images, workers=workers, rank=world.rank, ranks=world.size)


class Measure:
    """Top-1 on the recipe's data set, or None with the reason in the result.

    ``counts``: of what was measured last, see :func:`gdfq.data.confusion`.
    """

    def __init__(
        self,
        recipe: Recipe,
        images: Preprocessing,
        workers: int | None,
        result: Result,
        world: World,
    ) -> None:
        self.recipe = recipe
        self.images = images
        self.workers = workers
        self.result = result
        self.world = world
        self.batches: Batches | None = None
        self.counts: Tensor | None = None

    def open(self) -> str | None:
        """Open the data set; why that failed, on this process or another, or None."""
        if self.recipe.teacher.data == "none":
            return None
        problem = ""
        try:
            self.batches = open_batches(self.recipe, self.images, self.workers, self.world)
        except InputError as error:
            problem = str(error)
        if self.world.any(bool(problem)):
            self.batches = None
            return self._skip(problem or "data: another process cannot open it")
        return None

    def __call__(self, model: nn.Module) -> float | None:
        """Top-1 of ``model`` in percent; None where no data set is open."""
        if self.batches is None:
            return None
        try:
            counts = confusion(model, self.batches, self.world)
        except InputError as error:
            self._skip(str(error))
            return None
        self.counts = counts
        pictures = self.world.total(self.batches.pictures)
        self.result.evaluation = f"{pictures:,} test images of {self.batches.name}"
        return share(counts)

    def _skip(self, problem: str) -> str:
        self.result.evaluation = f"skipped: {problem}"
        return problem
