"""A run's figures and measurements, as its folder keeps them and its page shows them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import PlainSerializer, PlainValidator

from gdfq.recipes.bits import bits_label


def png(pixels: np.ndarray) -> bytes:
    """Return ``(H, W)`` or ``(H, W, 3)`` uint8 as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png", optimize=True)
    return content.getvalue()


def _to_text(pixels: np.ndarray) -> str:
    return base64.b64encode(png(pixels)).decode()


def _to_pixels(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    with Image.open(io.BytesIO(base64.b64decode(value))) as image:
        return np.array(image)


# (H, W) gray or (H, W, 3) RGB, uint8; a PNG file in base64 in JSON.
Pixels = Annotated[np.ndarray, PlainValidator(_to_pixels), PlainSerializer(_to_text)]


@dataclass
class Result:
    """A run's figures, as ``result.json`` holds them; what is not known is None.

    Attributes:
        name, weight_bits, act_bits, seed, dynamic_ranges: the recipe's.
        average_weight_bits: over all weights, those in float at 32 bits.
        float_weight_share: share, 0 to 1, of the weights' elements that stay in float.
        effective_weight_bits, effective_act_bits: with what their ranges cost.
        steps: steps done.
        finished: whether the run ended; ``failure`` says why it stopped with a loss that is NaN.
        training_seconds: of training alone.
        teacher, before, after: top-1 in percent of the teacher, and of the student before and
            after fine-tuning.
        evaluation: what top-1 was measured on, or why it was not.
    """

    name: str
    weight_bits: int
    act_bits: int
    average_weight_bits: float | None = None
    seed: int = 0
    steps: int = 0
    finished: bool = False
    training_seconds: float | None = None
    teacher: float | None = None
    before: float | None = None
    after: float | None = None
    evaluation: str = "not measured"
    failure: str | None = None
    dynamic_ranges: str = "none"
    effective_weight_bits: float | None = None
    effective_act_bits: float | None = None
    float_weight_share: float = 0.0

    @property
    def label(self) -> str:
        """The student's bits in short, see :func:`gdfq.recipes.bits.bits_label`."""
        average, width = self.average_weight_bits, self.weight_bits
        effective = self.effective_weight_bits, self.effective_act_bits
        return bits_label(
            width if average is None else average, self.act_bits, self.dynamic_ranges, effective
        )


@dataclass
class FileSize:
    """A file that holds the network: ``"float"``, ``"packed safetensors"``, or a file's name.

    ``exists``: whether it lies in the run's folder; else the bytes are those that it would have.
    """

    name: str
    bytes: int
    exists: bool


@dataclass
class Curve:
    """A number over training: ``values[i]`` is the mean of the epoch that ended at ``steps[i]``.

    ``kind``: ``"loss"``, or ``"rate"`` of a learning rate. Curves of some names begin later than
    others (the student's loss after the warm-up).
    """

    name: str
    kind: str
    steps: list[int]
    values: list[float]


@dataclass
class AccuracyPoint:
    """The student's top-1 in percent, measured when ``step`` steps were done."""

    step: int
    value: float


@dataclass
class ClassImages:
    """Generated images of a class.

    Attributes:
        label: the class's number.
        name: the class's name.
        images: some, each ``(H, W)`` or ``(H, W, 3)`` uint8; large ones are reduced.
        mean: the mean of ``averaged`` images of the class, of the same shape.
        averaged: how many.
    """

    label: int
    name: str
    images: list[Pixels]
    mean: Pixels
    averaged: int


@dataclass
class NormStatistics:
    """Statistics that a batch norm of the teacher stores, beside those of generated images.

    The first channels, where there are many. ``running_mean`` and ``running_std`` are stored;
    ``by_class[i][c]`` is the mean in channel ``c`` of the layer's input over the images of
    ``Measured.classes[i]``, and ``generated[c]`` over those of all these classes.

    Attributes:
        name: of the layer.
        channels: that the layer has.
        running_mean, running_std, generated: per channel shown.
        by_class: per class in ``Measured.classes`` and channel shown.
    """

    name: str
    channels: int
    running_mean: list[float]
    running_std: list[float]
    generated: list[float]
    by_class: list[list[float]]


@dataclass
class LayerRow:
    """A layer with the batch norm that reads its output and the activation quantizer behind both.

    A batch norm or a quantizer behind none has a row of its own. In order of execution.

    Attributes:
        name: of the layer (of the batch norm or quantizer in a row of its own).
        kind: ``"Conv2d"``, ``"Linear"``, ``"BatchNorm2d"``, ``"relu"``, ...
        shape: of the weight, or None.
        norm, act: names of the batch norm and of the activation quantizer; empty without.
        weight_bits, act_bits: widths, None where nothing is quantized.
        weight_sqnr: ``10 log10(sum(w**2) / sum((w - quantized w)**2))``, dB; None also where
            nothing was lost.
        act_sqnr: the same of the activation's values on generated images.
        act_low, act_high: the quantizer's range.
        clipped: share, 0 to 1, of the activation's values on generated images outside the range.
        mismatch_teacher, mismatch_before, mismatch_after: of the batch norm: mean over channels of
            ``(mean - running mean)**2 + (variance - running variance)**2``, where mean and variance
            are those of its input in the teacher, in the student before fine-tuning, and in the
            finished student, on the same generated images, and what runs is the teacher's.
        sensitivity: divergence, in nats, of the predictions of the teacher with this layer's weight
            alone quantized from the teacher's: mean over images of KL(teacher || quantized).
    """

    name: str
    kind: str
    shape: list[int] | None = None
    norm: str = ""
    act: str = ""
    weight_bits: int | None = None
    act_bits: int | None = None
    weight_sqnr: float | None = None
    act_sqnr: float | None = None
    act_low: float | None = None
    act_high: float | None = None
    clipped: float | None = None
    mismatch_teacher: float | None = None
    mismatch_before: float | None = None
    mismatch_after: float | None = None
    sensitivity: float | None = None


@dataclass
class ConfusedPair:
    """Counts of test images of class ``label`` that teacher and student took for ``predicted``."""

    label: str
    predicted: str
    teacher: int
    student: int


@dataclass
class Confusion:
    """Predictions on the test images.

    Up to 100 classes, ``teacher[i][j]`` and ``student[i][j]`` are the images of class ``i`` that
    were taken for class ``j``; with more they are empty. ``pairs`` are the most frequent mistakes
    of the student, most frequent first.

    Attributes:
        classes: names, of all classes.
        teacher, student: counts, or empty.
        pairs: mistakes.
    """

    classes: list[str]
    teacher: list[list[int]]
    student: list[list[int]]
    pairs: list[ConfusedPair]


@dataclass
class Measured:
    """Measurements on networks and images, as ``report.json`` holds them.

    Attributes:
        step: steps that the student had been trained for.
        images: generated images that activations and batch norms were measured on.
        sensitivity_images: generated images that sensitivity was measured on.
        classes: generated images by class; the first classes, where there are many.
        norms: some of the teacher's batch norms, in order of execution.
        layers: the table.
        confusion: where there are labels.
        float_bytes: of the teacher's parameters and buffers as a safetensors file.
        packed_bytes: of the student as a packed safetensors file.
        notes: what could not be measured and why, a sentence each.
    """

    step: int
    images: int = 0
    sensitivity_images: int = 0
    classes: list[ClassImages] = field(default_factory=list)
    norms: list[NormStatistics] = field(default_factory=list)
    layers: list[LayerRow] = field(default_factory=list)
    confusion: Confusion | None = None
    float_bytes: int | None = None
    packed_bytes: int | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Contents:
    """A run as a page shows it.

    Attributes:
        name: of the run, unlike that of any other run on the same page.
        sentence: one sentence about it.
        result: its figures.
        measured: what was measured on its networks.
        sizes: files, the float one first.
        curves: in the order of ``metrics.jsonl``.
        points: the student's accuracy over training.
        start, parts: what was done beside the paper's loop, a line each.
        environment: versions and machine, in a line; empty if not known.
    """

    name: str
    sentence: str
    result: Result
    measured: Measured
    sizes: list[FileSize]
    curves: list[Curve]
    points: list[AccuracyPoint]
    environment: str
    start: str = ""
    parts: str = ""
