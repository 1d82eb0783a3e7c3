"""The schema of a recipe; option names on the command line are the field names below."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, model_validator
from pydantic.fields import FieldInfo

from gdfq.convert.bits import LayerBits
from gdfq.errors import InputError
from gdfq.models.generator import GeneratorSettings
from gdfq.nn.quantization import Quantization
from gdfq.recipes.bits import with_exceptions
from gdfq.settings import Settings
from gdfq.training import Parts, Start

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Teacher(Settings):
    """The network to quantize, and the images it takes."""

    model: str = Field(
        description="torchvision:NAME, timm:NAME, pytorchcv:NAME, gdfq:NAME or "
        "package.module:factory of your own"
    )
    weights: str | None = Field(
        None,
        description="a safetensors or state-dict file, 'pretrained' or a tag of the source, "
        "'builtin', or 'random' to try out; where not given, what the source has",
    )
    data: Literal["fashion-mnist", "cifar10", "cifar100", "imagenet", "none"] = Field(
        "none", description="data set that the result is measured on; training never reads it"
    )
    data_path: str | None = Field(
        None, description="where it is; otherwise it is looked for in the folder GDFQ_DATA"
    )
    # What the source of the network knows about its input is written into a run's recipe.
    num_classes: Annotated[int, Field(ge=2)] | None = Field(
        None, description="classes of the teacher"
    )
    image_size: Annotated[int, Field(ge=4)] | None = Field(
        None, description="height and width of an image; otherwise the source's"
    )
    channels: Annotated[int, Field(ge=1)] | None = Field(None, description="channels of an image")
    mean: tuple[float, ...] | None = Field(
        None, description="per channel, what the teacher's input was shifted by"
    )
    std: tuple[Positive, ...] | None = Field(
        None, description="per channel, what it was divided by"
    )
    resize: Annotated[int, Field(ge=4)] | None = Field(
        None, description="of a picture's shorter edge, before the crop to image_size"
    )
    crop: Literal["center", "squash"] | None = Field(
        None, description="'squash' resizes both edges"
    )
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None = Field(
        None, description="of the resizing"
    )

    @property
    def in_memory(self) -> bool:
        """Whether the network was given in Python, and nothing in the recipe makes it."""
        return self.model.startswith("memory:")


class Training(Settings):
    """The schedule and the losses; see gdfq.GDFQTrainer."""

    batch_size: int = Field(200, ge=2, description="images per step")
    epochs: int = Field(400, ge=0, description="epochs, warm-up included")
    steps_per_epoch: int = Field(200, ge=1, description="steps per epoch")
    warmup_epochs: int = Field(4, ge=0, description="first epochs, of the generator alone")
    calibration_batches: int = Field(
        16, ge=1, description="batches that set the activation ranges before fine-tuning"
    )
    student_lr: Positive = Field(1e-4, description="learning rate of the student")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of the student's optimizer")
    weight_decay: NotNegative = Field(1e-4, description="weight decay of the student")
    generator_lr: Positive = Field(1e-3, description="learning rate of the generator")
    bns_weight: NotNegative = Field(0.1, description="weight of the batch-norm statistics loss")
    temperature: Positive = Field(20.0, description="temperature of the distillation loss")
    alpha: NotNegative = Field(1.0, description="weight of the distillation loss")
    schedule: Literal["step", "cosine", "constant"] = Field(
        "step", description="schedule of both learning rates"
    )
    milestones: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (100, 200, 300), description="epochs at which schedule 'step' divides by 10"
    )
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32", description="of convolutions and matrix products; all else is float32"
    )
    memory_format: Literal["auto", "channels_last", "contiguous"] = Field(
        "auto", description="of tensors; 'auto' times both at the start"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="decides everything that is random")

    @model_validator(mode="after")
    def _warm_up_is_a_part(self) -> Training:
        if self.warmup_epochs > self.epochs:
            raise InputError(
                f"warmup_epochs: must be <= epochs = {self.epochs}, got {self.warmup_epochs}"
            )
        return self


class PartsSection(Settings):
    """What is added to the paper's loop; see gdfq.training.Parts. All off by default."""

    objective: Literal["kd_ce", "logit_mse", "kl_only"] = Field(
        "kd_ce", description="the student's loss; 'kd_ce' is the paper's"
    )
    ce_weight: NotNegative = Field(
        1.0, description="weight of the student's cross-entropy, in 'kd_ce' and 'logit_mse'"
    )
    ce_gate: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="cross-entropy only where the teacher's probability of the label is at least "
        "1 - ce_gate",
    )
    hard_sample_gamma: NotNegative = Field(
        0.0, description="exponent of (1 - p) that weights the generator's cross-entropy"
    )
    hard_sample_step: NotNegative = Field(
        0.0,
        description="how far the student's images are moved towards what it gets wrong; twice the "
        "student's cost",
    )
    code_change_share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="share of each weight's codes that its scaled gradient changes in a step"
    )
    max_grad_norm: Positive | None = Field(
        None, description="norm that the student's gradients are shortened to where they exceed it"
    )
    mix_probability: float = Field(
        0.0, ge=0, le=1, description="share of images whose label is a mix of classes"
    )
    mix_classes: int = Field(2, ge=2, description="classes in a mix")
    low_pass: Positive | None = Field(
        None,
        description="width of the Gaussian that damps the images' frequencies, in periods per "
        "image",
    )
    bns_spread: Literal["variance", "std"] = Field(
        "variance", description="what the batch-norm statistics loss compares beside means"
    )
    bns_layers: tuple[str, ...] = Field(
        ("*",), min_length=1, description="glob patterns of the batch norms it compares"
    )
    bns_of: Literal["teacher", "both"] = Field(
        "teacher", description="'both' compares the student's statistics too; one more pass"
    )
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="decay of the average of the student's parameters; 0 is none"
    )
    replay_batches: int = Field(
        0, ge=0, description="batches of older images that are kept for the student"
    )
    replay_share: float = Field(
        0.5, gt=0, lt=1, description="share of the student's images taken from these"
    )

    range_lr: Positive = Field(1e-2, description="learning rate of ranges that are learned")

    @model_validator(mode="after")
    def _fit(self) -> PartsSection:
        self.build()
        return self

    def build(self) -> Parts:
        """The parts as the trainer takes them.

        Raises:
            InputError: two of them contradict each other.
        """
        return Parts(**self.model_dump())


class StartSection(Settings):
    """What is done before fine-tuning; see gdfq.training.Start. All off by default."""

    act_ranges: Literal["minmax", "mse", "percentile"] = Field(
        "minmax",
        description="where activation ranges end: extremes, least squared error or percentile",
    )
    percentile: float = Field(
        99.9, gt=50, le=100, description="percent of an activation's values below its range's end"
    )
    weight_ranges: Literal["minmax", "mse"] = Field(
        "minmax", description="where weight ranges end: extremes or least squared error"
    )
    equalize: bool = Field(False, description="scale channels to use their ranges alike")
    bias_correction: bool = Field(
        False, description="take out by how much quantization moves each channel's mean"
    )
    bn_reestimate: bool = Field(
        False, description="the same for means and standard deviations, in the batch norms"
    )
    bn_reestimate_end: bool = Field(False, description="once more when training has ended")
    rounding: Literal["nearest", "flip"] = Field(
        "nearest", description="'flip' rounds otherwise where that cancels a kernel's error"
    )

    @model_validator(mode="after")
    def _fit(self) -> StartSection:
        self.build()
        return self

    def build(self) -> Start:
        """The start as the trainer takes it."""
        return Start(**self.model_dump())


class Recipe(Settings):
    """A run, fully specified."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", description="what the run is called")
    description: str = Field("", description="a line about it")
    teacher: Teacher
    quantization: Quantization = Quantization()
    generator: GeneratorSettings = GeneratorSettings()
    training: Training = Training()
    parts: PartsSection = PartsSection()
    start: StartSection = StartSection()
    bits: dict[str, LayerBits] = Field(
        {}, description="exceptions by glob pattern of layers' names; the last that matches wins"
    )

    @model_validator(mode="after")
    def _tables_fit(self) -> Recipe:
        parts = self.parts.build()
        for table, check in (
            ("training", lambda: parts.check_alpha(self.training.alpha)),
            ("start", lambda: self.start.build().check_dynamic_ranges(
                self.quantization.dynamic_ranges)),
        ):  # fmt: skip
            try:
                check()
            except InputError as error:
                raise InputError(f"{table}.{error}") from error
        if "range_lr" in parts.changed() and self.quantization.learned_ranges == "none":
            raise InputError("parts.range_lr: has no effect without learned_ranges")
        return self

    def with_options(self, options: dict[str, Any], source: str = "command line") -> Recipe:
        """A copy with fields replaced, by their names alone (``{"weight_bits": 3}``).

        What ``bits`` holds is put behind the recipe's own exceptions; errors name ``source``.
        """
        tables = self.model_dump()
        tables["bits"] = self.exceptions()
        sections = {key: section for section, key, _ in fields()}
        for key, value in options.items():
            if key == "bits":
                tables[key] = with_exceptions(tables[key], value)
                continue
            check_key(key)
            table = tables[sections[key]] if sections[key] else tables
            table[key] = value
        return Recipe.read(tables, source)

    def exceptions(self) -> dict[str, dict[str, int]]:
        """``bits`` as :func:`gdfq.quantize_model` takes it."""
        return {p: widths.model_dump(exclude_none=True) for p, widths in self.bits.items()}

    def to_toml(self) -> str:
        """The recipe as a TOML file that gives this recipe again."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))


def fields() -> Iterator[tuple[str, str, FieldInfo]]:
    """Section ("" for the top level), name and definition of every field of a recipe."""
    for section, info in Recipe.model_fields.items():
        if info.annotation is str:
            yield "", section, info
        if isinstance(info.annotation, type) and issubclass(info.annotation, Settings):
            for key, definition in info.annotation.model_fields.items():
                yield section, key, definition


def check_key(key: str) -> None:
    """Check that a recipe has a field ``key``, as :meth:`Recipe.with_options` takes it.

    Raises:
        InputError: it has none; the message has near ones.
    """
    known = [*(name for _, name, _ in fields()), "bits"]
    if key not in known:
        near = difflib.get_close_matches(key, known, n=3)
        hint = f"; near matches: {', '.join(near)}" if near else ""
        raise InputError(f"{key}: no recipe has such a key{hint}")
