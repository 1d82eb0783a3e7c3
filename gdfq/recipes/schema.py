"""The schema of a recipe; names of options on the command line are those of its fields."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, Literal

import tomli_w
from pydantic import Field, model_validator
from pydantic.fields import FieldInfo

from gdfq.convert.bits import Exceptions, LayerBits
from gdfq.errors import InputError
from gdfq.models.generator import Channels, GeneratorSettings, ImageSize
from gdfq.nn.quantization import Quantization
from gdfq.recipes.bits import with_exceptions
from gdfq.settings import Positive, Settings
from gdfq.sources.preprocessing import Crop, Interpolation
from gdfq.training import Parts, Start, Training
from gdfq.training.parts import check_parts
from gdfq.training.settings import Classes


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
    data: Literal["fashion-mnist", "cifar10", "cifar100", "imagenet", "photographs", "none"] = (
        Field(
            "none", description="data set that the result is measured on; training never reads it"
        )
    )
    data_path: str | None = Field(
        None, description="where it is; otherwise it is looked for in the folder GDFQ_DATA"
    )
    # What the source of the network knows about its input is written into a run's recipe.
    num_classes: Classes | None = Field(None, description="classes of the teacher")
    image_size: ImageSize | None = Field(
        None, description="height and width of an image; otherwise the source's"
    )
    channels: Channels | None = Field(None, description="channels of an image")
    mean: tuple[float, ...] | None = Field(
        None, description="per channel, what the teacher's input was shifted by"
    )
    std: tuple[Positive, ...] | None = Field(
        None, description="per channel, what it was divided by"
    )
    resize: ImageSize | None = Field(
        None, description="of a picture's shorter edge, before the crop to image_size"
    )
    crop: Crop | None = Field(None, description="'squash' resizes both edges")
    interpolation: Interpolation | None = Field(None, description="of the resizing")

    @property
    def in_memory(self) -> bool:
        """Whether the network was given in Python, and nothing in the recipe makes it."""
        return self.model.startswith("memory:")


class Recipe(Settings):
    """A run, fully specified."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", description="what the run is called")
    description: str = Field("", description="a line about it")
    teacher: Teacher
    quantization: Quantization = Quantization()
    generator: GeneratorSettings = GeneratorSettings()
    training: Training = Training()
    parts: Parts = Parts()
    start: Start = Start()
    bits: dict[str, LayerBits] = Field(
        {}, description="exceptions by glob pattern of layers' names; the last that matches wins"
    )

    @model_validator(mode="after")
    def _check_tables(self) -> Recipe:
        how = self.quantization
        try:
            check_parts(self.parts, self.training, how.learned_ranges != "none")
            self.start.check_dynamic_ranges(how.is_dynamic("act"), how.is_dynamic("weight"))
        except InputError as error:
            named = str(error).partition(":")[0]
            section = next(section for section, key, _ in fields() if key == named)
            raise InputError(f"{section}.{error}") from error
        return self

    def with_options(self, options: dict[str, Any], source: str = "command line") -> Recipe:
        """Return a copy with fields replaced, by their names alone (``{"weight_bits": 3}``).

        What ``bits`` holds is put behind the recipe's own exceptions; errors name ``source``.
        """
        tables = self.model_dump()
        tables["bits"] = self.exceptions()
        sections = {key: section for section, key, _ in fields()}
        for key, value in options.items():
            if key == "bits":
                more = Exceptions.read({key: value}, source)
                tables[key] = with_exceptions(tables[key], more.model_dump(exclude_none=True)[key])
                continue
            check_key(key)
            table = tables[sections[key]] if sections[key] else tables
            table[key] = value
        return Recipe.read(tables, source)

    def exceptions(self) -> dict[str, dict[str, int]]:
        """Return ``bits`` as :func:`gdfq.quantize_model` takes it."""
        return {p: widths.model_dump(exclude_none=True) for p, widths in self.bits.items()}

    def to_toml(self) -> str:
        """Return the recipe as the text of a TOML file."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))


def fields() -> Iterator[tuple[str, str, FieldInfo]]:
    """Yield section ("" for the top level), name and definition of every field of a recipe."""
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
