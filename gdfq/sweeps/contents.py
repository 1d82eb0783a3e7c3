"""The content of a sweep's page and of its ``sweep.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Status = Literal["finished", "failed", "unfinished", "not started"]


@dataclass
class Comparison:
    """Students of one seed and of the same bits beside their teacher, on the same images.

    Attributes:
        group: the bits.
        seed: of the runs.
        images: how many.
        students: by variant, the SHA-256 of the student's file.
        divergence: by variant, mean of KL(teacher || student) over the images, in nats; None where
            that is not finite.
        agreement: by variant, percent of the images that both take for the same class.
    """

    group: str
    seed: int
    images: int
    students: dict[str, str]
    divergence: dict[str, float | None]
    agreement: dict[str, float]


@dataclass
class RunRow:
    """A row of ``sweep.json`` about a run; what is not known is None.

    Attributes:
        variant: of which it is one.
        seed: its own.
        folder: beside the page.
        status: what it has come to.
        reason: why it failed or is unfinished, where that is known.
        teacher, before, after: top-1 in percent.
        evaluation: what that was measured on, or why it was not.
        steps: done.
        weight_bits: average over the weights; with dynamic ranges, what these cost included.
        training_seconds: of training alone.
        divergence, agreement: see :class:`Comparison`.
        report: whether it has a page of its own in its folder.
        environment: machine and versions in a line; empty where not known.
    """

    variant: str
    seed: int
    folder: str
    status: Status
    reason: str | None = None
    teacher: float | None = None
    before: float | None = None
    after: float | None = None
    evaluation: str = ""
    steps: int | None = None
    weight_bits: float | None = None
    training_seconds: float | None = None
    divergence: float | None = None
    agreement: float | None = None
    report: bool = False
    environment: str = ""


@dataclass
class Spread:
    """A number's mean over seeds, and its standard deviation (of n - 1) if n > 1."""

    n: int
    mean: float
    std: float | None


@dataclass
class Paired:
    """The difference to the reference in top-1, over the seeds that both have.

    Attributes:
        to: the reference.
        by_seed: the differences.
        spread: of them.
        won: seeds in which it is above 0.
    """

    to: str
    by_seed: dict[int, float]
    spread: Spread
    won: int


@dataclass
class VariantRow:
    """A variant over its finished runs; a number that none of them has is None.

    Attributes:
        name: its own.
        options: by field, in what it differs from the base.
        group: its bits, among which students are chosen.
        reference: whether others are compared with it.
        finished, failed: runs.
        before, after, teacher: top-1 in percent.
        lost: the teacher's top-1 less the student's, run by run.
        difference: of ``after`` to the reference's.
        divergence, agreement: on generated images.
        weight_bits: average over the weights.
        seconds: of training.
    """

    name: str
    options: dict[str, str]
    group: str
    reference: bool
    finished: int
    failed: int
    before: Spread | None
    after: Spread | None
    teacher: Spread | None
    lost: Spread | None
    difference: Paired | None
    divergence: Spread | None
    agreement: Spread | None
    weight_bits: Spread | None
    seconds: Spread | None


@dataclass
class Group:
    """Variants of the same bits, and which of them is chosen on generated images.

    Attributes:
        name: the bits.
        variants: all of them.
        chosen: the one of the smallest mean divergence; None where there is nothing to choose yet.
        lowest: seeds, of ``seeds``, in which its divergence was the smallest.
        seeds: that all candidates have.
        note: why none is chosen, or which are no candidates; empty without.
    """

    name: str
    variants: list[str]
    chosen: str | None
    lowest: int
    seeds: int
    note: str


@dataclass
class Sweep:
    """A sweep, finished or not.

    Attributes:
        recipe: name of the recipe that the variants are of.
        model: the teacher.
        seeds: all of them.
        variants, runs, groups: in the file's order; runs seed by seed.
        measured: what was found on generated images.
        ray: whether runs were done at the same time.
        notes: what could not be measured and why.
        file: the sweep as TOML.
    """

    recipe: str
    model: str
    seeds: list[int]
    variants: list[VariantRow]
    runs: list[RunRow]
    groups: list[Group]
    measured: list[Comparison] = field(default_factory=list)
    ray: bool = False
    notes: list[str] = field(default_factory=list)
    file: str = ""
