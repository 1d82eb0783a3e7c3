"""What a run gave, in Python."""

from __future__ import annotations

import copy
import html
import json
import warnings
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from PIL import Image
from torch import Tensor, nn

from gdfq.errors import InputError
from gdfq.export import packed
from gdfq.export.files import Exported, export_file, options_for
from gdfq.export.source import open_images
from gdfq.recipes.bits import bits_label
from gdfq.report.run import PAGE, write_report
from gdfq.runs.folder import load_run
from gdfq.runs.measure import Evaluate


class QuantizationResult:
    """A run that came to its end, or that was interrupted after fine-tuning began.

    In a notebook it shows itself as a table.

    Attributes:
        student: the quantized network, in evaluation mode.
        teacher: the float network that it was made of; a copy.
        recipe: everything that decided the run.
        folder: of the run: recipe, losses, checkpoints, pictures. A temporary one is deleted with
            this object.
        history: the losses and learning rates of each epoch.
    """

    def __init__(
        self,
        folder: Path,
        network: nn.Module | None = None,
        device: str = "cpu",
        evaluate: Evaluate | None = None,
    ) -> None:
        self.folder = folder
        self.recipe, teacher, self.student = load_run(folder, network)
        self.teacher = teacher.network.to(device)
        self.student.to(device)
        self._evaluate = evaluate
        self._told: dict[str, Any] = {}
        if (folder / "result.json").is_file():
            self._told = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        self.history: list[dict[str, float]] = [json.loads(line) for line in lines]

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
        sizes = {
            "float_bytes": sum(v.numel() * v.element_size() for v in _tensors(self.teacher)),
            "packed_bytes": len(packed.to_bytes(self._on_cpu(), self.recipe)),
        }
        return {**self._told, **sizes}

    @property
    def images(self) -> Image.Image:
        """Images that the generator made, a row for each class."""
        return Image.open(self.folder / "images.png")

    def export(
        self,
        path: str | Path,
        format: str | None = None,
        *,
        mode: str = "exact",
        weights: str = "int8",
        decompose: bool = False,
        images: int | None = None,
        keep_unfaithful: bool = True,
    ) -> Exported:
        """Write the student for other runtimes, then run the file and compare it with the student.

        Args:
            path: of the file; it is replaced if it exists.
            format: ``"onnx"``, ``"pt2"`` or ``"safetensors"``; None is what ``path`` ends in.
            mode: of ONNX; ``"exact"`` keeps every answer, ``"integer"`` computes convolutions and
                sums in integers, which changes some.
            weights: of ONNX; ``"int8"``, or ``"int4"`` for half the size.
            decompose: pt2 in PyTorch's own operators, which loads without this package.
            images: how many it is compared on; None is all of ``evaluate``'s batches, else all of
                the recipe's data set, else 256 generated ones.
            keep_unfaithful: False deletes a file that should answer as the student does and does
                not, and puts back what it replaced.

        Returns:
            How the file answers. Where it should answer as the student does and does not, there is
            a warning too, which says in which runtime and why.

        Raises:
            InputError: there is no such format, a package is missing, the network cannot be
                exported, or the file cannot be written.
        """
        path = Path(path)
        options = options_for(path, format, mode, weights, decompose)
        if images is not None and images < 1:
            raise InputError(f"images: must be >= 1, got {images}")
        given = None
        if self._evaluate is not None and not callable(self._evaluate):
            given = cast(Iterable[tuple[Tensor, Tensor]], self._evaluate)
        test = open_images(self.folder, self.recipe, images, given)
        written = export_file(self._on_cpu(), path, options, test, self.recipe, keep_unfaithful)
        if not written.faithful:
            warnings.warn(f"gdfq: {written}", stacklevel=2)
        return written

    def save(self, path: str | Path) -> None:
        """Write the student as a small file for :func:`gdfq.load`, its weights packed.

        Raises:
            InputError: it cannot be written.
        """
        packed.save(self._on_cpu(), path, self.recipe)

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
        path = self.folder / PAGE if path is None else Path(path)
        device = str(next(self.student.parameters()).device)
        write_report([self.folder], path, warning=_warn, device=device, network=self.teacher)
        return path

    def _on_cpu(self) -> Any:
        device = next(self.student.parameters()).device
        return self.student if device.type == "cpu" else copy.deepcopy(self.student).cpu()

    # ---- shown ----

    def _rows(self) -> list[tuple[str, str, str, str]]:
        numbers = self.metrics
        average = numbers.get("average_weight_bits", numbers.get("weight_bits"))
        effective = numbers.get("effective_weight_bits"), numbers.get("effective_act_bits")
        dynamic = numbers.get("dynamic_ranges", "none")
        bits = "" if average is None else bits_label(
            average, numbers["act_bits"], dynamic, effective
        )  # fmt: skip
        share = {
            key: "-" if numbers.get(key) is None else f"{numbers[key]:.2f}%"
            for key in ("teacher", "before", "after")
        }
        small = _size(numbers["packed_bytes"])
        return [
            ("", "top-1", "bits", "size"),
            ("teacher", share["teacher"], "float32", _size(numbers["float_bytes"])),
            ("student before fine-tuning", share["before"], bits, small),
            ("student after fine-tuning", share["after"], bits, small),
        ]

    def _caption(self) -> str:
        numbers = self._told
        state = "" if numbers.get("finished") else ", not finished"
        steps = f"{numbers.get('steps', '?')} steps{state}"
        seconds = numbers.get("training_seconds")
        time = "" if seconds is None else f" in {seconds:.0f} s"
        measured = numbers.get("evaluation", "not measured")
        share = numbers.get("float_weight_share", 0.0)
        floats = f"; {100 * share:.2f}% of the weights in float" if share else ""
        return f"{steps}{time}; measured: {measured}{floats}; folder: {self.folder}"

    def __repr__(self) -> str:
        rows = self._rows()
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, 4))]
            ).rstrip()
            for row in rows
        ]
        title = f"{self.recipe.name}, seed {self.recipe.training.seed}"
        return "\n".join([title, *lines, self._caption()])

    def _repr_html_(self) -> str:
        head, *rows = self._rows()
        body = "".join(f"<tr>{_cells('th', row[:1])}{_cells('td', row[1:])}</tr>" for row in rows)
        title = html.escape(f"{self.recipe.name}, seed {self.recipe.training.seed}")
        return (
            f'<table class="gdfq-result"><caption>{title}</caption>'
            f"<thead><tr>{_cells('th', head)}</tr></thead><tbody>{body}</tbody></table>"
            f"<div>{html.escape(self._caption())}</div>"
        )


def _tensors(network: nn.Module) -> list[Tensor]:
    """The network's parameters and buffers, each once."""
    return list({id(v): v for v in network.state_dict(keep_vars=True).values()}.values())


def _warn(text: str) -> None:
    warnings.warn(f"gdfq: {text}", stacklevel=4)


def _cells(tag: str, row: tuple[str, ...]) -> str:
    return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)


def _size(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
