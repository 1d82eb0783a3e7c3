"""Compare exported larger networks: ``python -m benchmarks.export_networks --folder FOLDER``.

Like ``benchmarks/export.py``, for EfficientNet-Lite0 with its ImageNet weights, on crops of the
photographs that ``gdfq data photographs`` wrote into the folder GDFQ_DATA, and for a ResNet-18 that
``resnet18.py`` trains on Fashion-MNIST; students of a few steps each. ``FOLDER`` keeps trained
weights and students, so that ``--latencies`` can repeat the timing alone. Writes
``results/export-networks-cpu.json`` and ``.md``, and a table in ``docs/export.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gdfq
from benchmarks import imagenet_teachers, photographs, readme, resnet18
from benchmarks.executed import executed
from benchmarks.exported import (
    BATCHES,
    DOCUMENT,
    FILES,
    RESULTS,
    SAME_ANSWER,
    Row,
    aims,
    export_float,
    integers,
    latencies,
    sizes,
    table,
    versions,
)
from benchmarks.table import where
from gdfq.convert import QuantizedModel
from gdfq.data.sets import ROOT
from gdfq.environment import environment
from gdfq.export import export_onnx, runtimes
from gdfq.export.parity import NOTICEABLE, compare
from gdfq.export.source import CheckImages
from gdfq.recipes import Recipe
from gdfq.recipes.networks import build_generator, build_teacher, build_trainer
from gdfq.sources import LoadedTeacher
from gdfq.training.start import NO_START

RESULT = RESULTS / "export-networks-cpu.json"
IMAGE_SIZE = 128  # of the photographs


@dataclass(frozen=True)
class Network:
    """A trained network, its students' training, and the images for the comparison."""

    bits: tuple[tuple[int, int], ...]
    teacher: Callable[[Path], nn.Module]
    train: Callable[[nn.Module, int, int], QuantizedModel]
    batches: Callable[[int], Iterator[tuple[Tensor, Tensor | None]]]
    shape: tuple[int, int, int]
    range: tuple[float, float]

    def images(self, count: int) -> CheckImages:
        """Return the first ``count`` images, at most."""
        return CheckImages(self.batches(count), "", self.shape, self.range)


# ---- EfficientNet-Lite0 ----


@cache
def _efficientnet() -> tuple[Recipe, LoadedTeacher]:
    """Return a recipe of a few steps from the paper's start, and its teacher."""
    recipe = imagenet_teachers.recipe("efficientnet_lite0").with_options(
        {
            **NO_START.model_dump(), "image_size": IMAGE_SIZE, "resize": IMAGE_SIZE,
            "epochs": 3, "warmup_epochs": 2, "steps_per_epoch": 10,
            "memory_format": "channels_last",
        }
    )  # fmt: skip
    return build_teacher(recipe)


def _photographs(count: int) -> Iterator[tuple[Tensor, None]]:
    root, preprocessing = Path(os.environ.get(ROOT, ".")), _efficientnet()[1].preprocessing
    for batch in photographs.crops(root, preprocessing, photographs=4):
        yield batch[:count], None
        count -= len(batch)
        if count <= 0:
            return


def _train_efficientnet(teacher: nn.Module, weight_bits: int, act_bits: int) -> QuantizedModel:
    recipe, loaded = _efficientnet()
    recipe = recipe.with_options({"weight_bits": weight_bits, "act_bits": act_bits})
    generator = build_generator(recipe, loaded.preprocessing)
    student = build_trainer(recipe, loaded, generator).train()
    assert isinstance(student, QuantizedModel)
    return student.eval()


# ---- ResNet-18 ----


def _resnet18(folder: Path) -> nn.Module:
    weights = folder / "resnet18.safetensors"
    if not weights.exists():
        command = [sys.executable, "-m", "benchmarks.resnet18", "--out", str(weights)]
        subprocess.run(command, check=True)
    return resnet18.resnet18(weights)


def _train_resnet18(teacher: nn.Module, weight_bits: int, act_bits: int) -> QuantizedModel:
    torch.manual_seed(0)
    student = gdfq.quantize_model(teacher, weight_bits, act_bits, ste="clip")
    generator = gdfq.models.Generator(resnet18.CLASSES, resnet18.IMAGE_SIZE, channels=1, width=32)
    # The constants of the recipe fashion-mnist-resnet20, for fewer steps.
    trainer = gdfq.GDFQTrainer(
        teacher, student, generator, resnet18.CLASSES, 32,
        epochs=8, warmup_epochs=4, steps_per_epoch=15, student_lr=1e-4, bns_weight=30.0,
        alpha=200.0, schedule="cosine", memory_format="channels_last", seed=0,
    )  # fmt: skip
    trainer.train()
    return student.eval()


NETWORKS = {
    "EfficientNet-Lite0": Network(
        bits=((8, 8), (4, 4)),
        teacher=lambda folder: _efficientnet()[1].network,
        train=_train_efficientnet,
        batches=_photographs,
        shape=(3, IMAGE_SIZE, IMAGE_SIZE),
        range=(-127 / 128, 1.0),
    ),
    "ResNet-18": Network(
        bits=((4, 4),),
        teacher=_resnet18,
        train=_train_resnet18,
        batches=resnet18.batches,
        shape=(1, resnet18.IMAGE_SIZE, resnet18.IMAGE_SIZE),
        range=resnet18.RANGE,
    ),
}
STUDENTS = {
    f"{name} W{weight}A{act}": (network, weight, act)
    for name, network in NETWORKS.items()
    for weight, act in network.bits
}


# ---- measuring ----


def make_student(name: str, folder: Path) -> tuple[nn.Module, QuantizedModel]:
    """Return teacher and student, trained unless ``folder`` has them."""
    network, weight_bits, act_bits = STUDENTS[name]
    teacher = network.teacher(folder)
    path = folder / f"{name.replace(' ', '-')}.safetensors"
    if not path.exists():
        student = network.train(teacher, weight_bits, act_bits)
        save_file({k: v.contiguous() for k, v in student.state_dict().items()}, path)
    student = gdfq.quantize_model(teacher, weight_bits, act_bits)
    student.load_state_dict(load_file(path))
    return teacher, student.eval()


def write_files(
    name: str, teacher: nn.Module, student: QuantizedModel, folder: Path
) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """Write the float model and the exported files; return them and their replaced layers."""
    network = STUDENTS[name][0]
    images = network.images(1)
    files = {"float": folder / "float.onnx"}
    export_float(teacher, images, files["float"])
    instead = {}
    for kind, options in FILES.items():
        files[kind] = folder / f"{kind}.onnx"
        form = export_onnx(
            student, files[kind], images.example, input_range=images.range, **options
        )
        instead[kind] = [f"{part.name}: {part.note}" for part in form.instead]
    return files, instead


def answers(
    name: str, teacher: nn.Module, student: QuantizedModel, files: dict[str, Path], count: int
) -> dict[str, Any]:
    network = STUDENTS[name][0]
    result: dict[str, Any] = {}
    for kind in FILES:
        parities = compare(student, files[kind], network.images(count).batches)
        result[kind] = {p.runtime: asdict(p) for p in parities}
        print(name, kind, result[kind], flush=True)
    hits = total = same = 0
    differences = []
    # The effect of rounding on the student itself: run it in the other memory format.
    for images, _ in network.images(count).batches:
        with torch.inference_mode():
            expected = student(images)
            other = student(images.contiguous(memory_format=torch.channels_last))
            hits += int((teacher(images).argmax(1) == expected.argmax(1)).sum())
        same += int((other.argmax(1) == expected.argmax(1)).sum())
        differences.append((other - expected).abs())
        total += len(images)
    found = torch.cat(differences)
    result["same as teacher"] = 100 * hits / total
    result["itself"] = {
        "images": total,
        "agreement": 100 * same / total,
        "median_difference": float(found.median()),
        "noticeable": 100 * float((found > NOTICEABLE).any(1).float().mean()),
    }
    return result


def measure_latencies(name: str, files: dict[str, Path], rounds: int) -> dict[str, Any]:
    shape = STUDENTS[name][0].shape
    result: dict[str, Any] = {"date": date.today().isoformat(), "load": os.getloadavg()[0]}
    for runtime in runtimes.NAMES:
        models = {kind: runtimes.open_model(runtime, path) for kind, path in files.items()}
        result[runtimes.NAMES[runtime]] = {
            f"batch {size}": latencies(models, torch.randn(size, *shape).numpy(), rounds)
            for size in BATCHES
        }
    return result


# ---- tables ----


def rows(kept: dict[str, Any]) -> list[Row]:
    """Return each student's row in the other memory format, then those of its files."""
    found = []
    for name in STUDENTS:
        result = kept["students"].get(name, {})
        answers, taken = result.get("answers", {}), result.get("latencies", {})
        if "itself" in answers:
            found.append(Row(name, "none, in channels_last", "PyTorch", answers["itself"]))
        found += [
            Row(name, kind, runtime, p, taken.get(runtime))
            for kind in FILES
            for runtime, p in answers.get(kind, {}).items()
        ]
    return found


def markdown_table(kept: dict[str, Any]) -> str:
    """Return a table with a row per student, file and runtime."""
    return table(rows(kept), {**SAME_ANSWER, "beyond 1e-3": lambda p: f"{p['noticeable']:.1f}%"})


def introduction(kept: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in kept["versions"].items())
    counts = []
    for name, result in kept["students"].items():
        images = next(iter(result["answers"]["exact"].values()))["images"]
        counts.append(f"{name} on {images:,}")
    loads = [r["latencies"]["load"] for r in kept["students"].values() if "latencies" in r]
    busy = max(loads, default=0.0) > 0.75 * (os.cpu_count() or 1)
    others = f", on a machine with other load (load average up to {max(loads):.0f})" if busy else ""
    return (
        "EfficientNet-Lite0 with its ImageNet weights, 128x128, and a ResNet-18 trained on "
        f"Fashion-MNIST, 64x64, on {where('cpu', kept['machine'])}, {versions}. Students of a few "
        "dozen steps (`benchmarks/export_networks.py`): the comparison is of a file with its "
        f"student. Images: {', '.join(counts)}. Milliseconds are the fastest of many, a student's "
        f"files interleaved{others}; in brackets, the time of the same runtime's float "
        "model of the teacher divided by it: above 1 is faster than float. The first row of each "
        "student is the student itself in PyTorch's other memory format, which sums in another "
        "order."
    )


def markdown(kept: dict[str, Any]) -> str:
    lines = ["# Larger networks, exported", "", introduction(kept), "", markdown_table(kept), ""]
    lines += ["Top-1 agreement of each student with its teacher, and top-1 where labels exist:", ""]
    for name, result in kept["students"].items():
        first = next(iter(result["answers"]["exact"].values()))
        line = f"* {name}: {result['answers']['same as teacher']:.1f}% agreement"
        if first["student_top1"] is not None:
            line += f"; top-1 {first['student_top1']:.2f}%"
            for kind in FILES:
                tops = {r: p["file_top1"] for r, p in result["answers"][kind].items()}
                line += f", {kind} " + ", ".join(f"{t:.2f}% ({r})" for r, t in tops.items())
        lines.append(line)
    lines += ["", "Operators that ran in integers, by the runtime's profile:", ""]
    for name, result in kept["students"].items():
        for runtime, files in result["executed"].items():
            for kind, nodes in files.items():
                lines.append(f"* {name}, {runtime}, {kind}: {integers(nodes)}")
    lines += ["", "Layers with a replacement form:", ""]
    for name, result in kept["students"].items():
        for kind, notes in result["instead"].items():
            for note in notes:
                lines.append(f"* {name}, {kind}, {note}")
    lines += ["", "Bytes:", "", sizes(kept["students"])]
    return "\n".join(lines) + "\n"


def write(kept: dict[str, Any]) -> None:
    (RESULTS / "export-networks-cpu.md").write_text(markdown(kept), encoding="utf-8")
    shown = f"{introduction(kept)}\n\n{markdown_table(kept)}"
    readme.write("export-networks", shown, DOCUMENT)
    readme.write("export-networks-aims", aims(rows(kept)), DOCUMENT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="keeps weights and students")
    parser.add_argument("--student", action="append", choices=list(STUDENTS),
                        help="only these; default: all")  # fmt: skip
    parser.add_argument("--images", type=int, default=10_000, help="images to compare on, at most")
    parser.add_argument("--rounds", type=int, default=40, help="runs of each file")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--latencies", action="store_true", help="measure latencies only")
    only.add_argument("--answers", action="store_true", help="compare predictions only")
    only.add_argument("--table", action="store_true", help="write the tables without measuring")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    kept = json.loads(RESULT.read_text()) if RESULT.exists() else {"students": {}}
    if arguments.table:
        write(kept)
        return
    kept["machine"], kept["versions"] = environment(), versions()
    for name in arguments.student or STUDENTS:
        teacher, student = make_student(name, arguments.folder)
        result = kept["students"].setdefault(name, {})
        with tempfile.TemporaryDirectory() as folder:
            files, result["instead"] = write_files(name, teacher, student, Path(folder))
            result["bytes"] = {kind: path.stat().st_size for kind, path in files.items()}
            example = STUDENTS[name][0].images(1).example
            if not arguments.latencies:
                result["answers"] = answers(name, teacher, student, files, arguments.images)
                result["executed"] = {
                    shown: {kind: executed(runtime, path, example) for kind, path in files.items()}
                    for runtime, shown in runtimes.NAMES.items()
                }
            if not arguments.answers:
                result["latencies"] = measure_latencies(name, files, arguments.rounds)
        RESULT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    write(kept)
    print(markdown(kept))


if __name__ == "__main__":
    main()
