"""Export to a file of any format, and comparison of the written file with the student."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from pydantic import Field, model_validator

from gdfq.convert import QuantizedModel
from gdfq.errors import InputError
from gdfq.export import packed
from gdfq.export.form import Form
from gdfq.export.onnx_file import OnnxOptions, data_path, export_onnx, require
from gdfq.export.parity import NOTICEABLE, Parity, compare, difference
from gdfq.export.pt2 import export_pt2
from gdfq.export.source import CheckImages
from gdfq.files import remove
from gdfq.recipes import Recipe
from gdfq.settings import one_of

if TYPE_CHECKING:
    from typing_extensions import Self

Format = Literal["onnx", "pt2", "safetensors"]
PACKED = "packed.safetensors"


class FileOptions(OnnxOptions):
    """The format and form of an exported file."""

    format: Format = Field(
        "onnx",
        description="'onnx', 'pt2' or 'safetensors'; by default the ending of the file's name, "
        "without one 'onnx'",
    )
    decompose: bool = Field(
        False, description="pt2: PyTorch's operators only, so that it loads without this package"
    )

    @model_validator(mode="after")
    def _suit_the_format(self) -> Self:
        for name, format in (("mode", "onnx"), ("weights", "onnx"), ("decompose", "pt2")):
            if name in self.changed() and self.format != format:
                raise InputError(f"{name}: is for the format {format} only")
        if self.format == "onnx":
            require("onnx", "onnxscript", "onnxruntime")
        return self

    @property
    def file_name(self) -> str:
        """Default name of the file."""
        if self.format == "safetensors":
            return PACKED
        integer = "-integer" if self.mode == "integer" else ""
        int4 = "-int4" if self.weights == "int4" else ""
        plain = "-decomposed" if self.decompose else ""
        return f"student{integer}{int4}{plain}.{self.format}"


def options_for(path: Path | None, format: Any = None, **options: Any) -> FileOptions:
    """Return the options of the file ``path``.

    Without ``format``, the ending of ``path`` selects it; without both, it is ONNX.

    Raises:
        InputError: an option is unknown or does not apply to the format, a required package is not
            installed, or the ending of ``path`` is not a format.
    """
    if format is None:
        format = "onnx" if path is None else path.suffix.removeprefix(".")
        if format not in get_args(Format):
            raise InputError(
                f"format: must be {one_of(get_args(Format))}, where {path} does not end in one"
            )
    return FileOptions(format=format, **options)


@dataclass(frozen=True, repr=False)
class Exported:
    """A written file and its comparison with the student.

    Attributes:
        path: of the file.
        size: in bytes.
        options: of the file.
        images: description of the images used for the comparison.
        parities: of ONNX: the comparison in each runtime.
        difference: of other formats: largest absolute difference of logits; 0 is bit for bit.
        form: of ONNX: how each layer is stored.
        fate: what happened to a file that failed the comparison; empty if it was kept.
    """

    path: Path
    size: int
    options: FileOptions
    images: str
    parities: list[Parity] = field(default_factory=list)
    difference: float | None = None
    form: Form | None = None
    fate: str = ""

    @property
    def faithful(self) -> bool:
        """Whether it passed the comparison."""
        return not self.wrong

    @property
    def wrong(self) -> list[str]:
        """Reasons why it failed the comparison, one for each runtime."""
        if self.difference is not None:
            allowed = 0.0 if self.options.format == "safetensors" else NOTICEABLE
            if self.difference <= allowed:
                return []
            return [f"loaded again, it gives the student's logits to {self.difference:.2g} only"]
        exact = self.options.mode == "exact"
        best = min((p.median_difference for p in self.parities), default=0.0)
        verdicts = [
            (p.runtime, p.wrong if exact else p.problem or p.worse_than(best))
            for p in self.parities
        ]
        return [f"{runtime}: {wrong}" for runtime, wrong in verdicts if wrong]

    @property
    def paths(self) -> list[Path]:
        """All files written: ``path``, and the file of its tensors if there is one."""
        return _written(self.path)

    def __str__(self) -> str:
        results = [
            f"{parity.runtime} agrees with the student on {parity.agreement:.2f}%"
            for parity in self.parities
            if not parity.problem
        ]
        if self.difference is not None:
            same = "bit for bit" if self.difference == 0 else f"to {self.difference:.2g}"
            results = [f"loaded again, it gives the student's logits, {same}"]
        text = f"{self.path}: {self.size:,} bytes; compared on {self.images}: {'; '.join(results)}"
        if self.faithful:
            return text
        fate = f", and {self.fate}" if self.fate else ""
        return f"{text}; it FAILED its check{fate}: {'; '.join(self.wrong)}"

    __repr__ = __str__


def _written(path: Path) -> list[Path]:
    return [file for file in (path, data_path(path)) if file.exists()]


def export_file(
    student: QuantizedModel,
    path: Path,
    options: FileOptions,
    test: CheckImages,
    recipe: Recipe | None,
    keep_unfaithful: bool = True,
) -> Exported:
    """Write ``student`` to ``path``, load the file and compare it on the images ``test``.

    Args:
        student: with ranges set.
        path: of the file; replaced if it exists.
        options: of the file.
        test: images for the comparison.
        recipe: of the run that trained the student, for packed files.
        keep_unfaithful: keep a file that fails the comparison; else delete it and restore the file
            that it replaced.

    Raises:
        InputError: see :func:`export_onnx`, :func:`export_pt2` and :func:`gdfq.save`.
    """
    if keep_unfaithful:
        return _export_file(student, path, options, test, recipe)
    earlier = _written(path)
    with TemporaryDirectory(prefix=".", dir=path.parent if earlier else None) as aside:
        for file in earlier:
            shutil.copy2(file, aside)
        exported = _export_file(student, path, options, test, recipe)
        if exported.faithful:
            return exported
        remove(exported.paths)
        for file in earlier:
            Path(aside, file.name).replace(file)
    fate = "was deleted, and the earlier file put back" if earlier else "was deleted"
    return replace(exported, fate=fate)


def _export_file(
    student: QuantizedModel,
    path: Path,
    options: FileOptions,
    test: CheckImages,
    recipe: Recipe | None,
) -> Exported:
    if options.format == "onnx":
        form = export_onnx(
            student,
            path,
            test.example,
            input_range=test.range,
            mode=options.mode,
            weights=options.weights,
        )
        size = sum(file.stat().st_size for file in _written(path))
        parities = compare(student, path, test.batches)
        return Exported(path, size, options, test.name, parities, form=form)
    if options.format == "pt2":
        export_pt2(student, path, test.example, decompose=options.decompose)
        network: Any = torch.export.load(path).module()
    else:
        packed.save(student, path, recipe)
        named = recipe is not None and not recipe.teacher.in_memory
        network = packed.load(path, None if named else student)
    largest = difference(student, network, test.batches)
    return Exported(path, path.stat().st_size, options, test.name, difference=largest)
