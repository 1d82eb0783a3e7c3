"""Exported files beside their students and a float model: ``python -m benchmarks.export``.

For the embedded network at each of ``BITS``: a short run of the recipe (``--runs`` takes finished
ones), exported in both modes; answers on all test images in ONNX Runtime and OpenVINO, which nodes
ran in integers, and latency beside the same runtime's float model, in turns in one process.
Writes ``results/export-cpu.json`` and ``.md``, and the table in ``docs/export.md``. Students can be
measured again one at a time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import readme
from benchmarks.table import where
from gdfq import packed
from gdfq.environment import environment
from gdfq.export import export_onnx, runtimes
from gdfq.export.emit import OPSET
from gdfq.export.parity import compare
from gdfq.export.source import Images, open_images
from gdfq.runs.folder import load_run

RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parents[1] / "docs" / "export.md"
BITS = {"W4A4": (4, 4), "W3A3": (3, 3), "W2A4": (2, 4)}
BATCHES = (1, 32)
FILES: dict[str, dict[str, Any]] = {
    "exact": {"mode": "exact"},
    "exact, int4": {"mode": "exact", "weights": "int4"},
    "integer": {"mode": "integer"},
}
RUNTIMES = list(runtimes.NAMES.values())
# A short run: what is compared is a student with its file, not the method's accuracy.
SHORT = ["--epochs", "13", "--warmup-epochs", "6"]
INTEGER_TYPES = ("uint8", "int8", "u8", "i8")
COMPUTING = ("Conv", "QLinearConv", "Convolution", "Gemm", "FullyConnected", "Add", "QLinearAdd",
             "Eltwise")  # fmt: skip


def make_run(folder: Path, weight_bits: int, act_bits: int) -> Path:
    out = folder / f"w{weight_bits}a{act_bits}"
    if not out.exists():
        subprocess.run(
            [
                sys.executable, "-m", "gdfq", "quantize", "--recipe", "fashion-mnist-resnet20",
                "--weight-bits", str(weight_bits), "--act-bits", str(act_bits), *SHORT,
                "--out", str(out),
            ],
            check=True,
        )  # fmt: skip
    return out


def export_float(network: nn.Module, images: Images, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (images.example,), path, dynamo=True, opset_version=OPSET, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False,
        )  # fmt: skip


def latencies(models: dict[str, Callable[[Any], Any]], images: Any, rounds: int) -> dict[str, Any]:
    """Median and fastest milliseconds of each model, taken in turns."""
    taken: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 3):
        for name, model in models.items():
            start = time.perf_counter()
            model(images)
            if turn >= 3:  # the first ones warm up
                taken[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {"median_ms": statistics.median(times), "fastest_ms": min(times)}
        for name, times in taken.items()
    }


def measure(run: Path, folder: Path, rounds: int) -> dict[str, Any]:
    recipe, teacher, student = load_run(run)
    images = open_images(run, recipe)
    files = {"float": folder / "float.onnx"}
    export_float(teacher.network, images, files["float"])
    steps = json.loads((run / "result.json").read_text())["steps"]
    result: dict[str, Any] = {"date": date.today().isoformat(), "steps": steps}
    result["bytes"] = {"student.safetensors": (run / "student.safetensors").stat().st_size}
    for name, options in FILES.items():
        files[name] = folder / f"{name}.onnx"
        export_onnx(student, files[name], images.example, input_range=images.range, **options)
        parities = compare(student, files[name], open_images(run, recipe).batches)
        result[name] = {p.runtime: asdict(p) for p in parities}
        print(run.name, name, result[name], flush=True)
    packed.save(student, folder / "packed", recipe)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    result["bytes"] |= sizes | {"packed": (folder / "packed").stat().st_size}
    for runtime in runtimes.NAMES:
        models = {name: runtimes.open_model(runtime, path) for name, path in files.items()}
        facts: dict[str, Any] = {"executed": {}}
        for name, path in files.items():
            facts["executed"][name] = runtimes.executed(runtime, path, images.example)
        for size in BATCHES:
            batch = torch.randn(size, *images.shape).numpy()
            facts[f"batch {size}"] = latencies(models, batch, rounds)
        result[runtimes.NAMES[runtime]] = facts
    return result


# ---- what is shown ----


def integers(executed: dict[str, int]) -> str:
    """How many of the computing nodes ran in integers."""
    computing = {k.split(", ")[0] for k in executed} & set(COMPUTING)
    parts = []
    for kind in sorted(computing):
        counts = {k.split(", ")[1]: n for k, n in executed.items() if k.split(", ")[0] == kind}
        parts.append(
            f"{sum(n for t, n in counts.items() if t in INTEGER_TYPES)} of "
            f"{sum(counts.values())} {kind}"
        )
    return ", ".join(parts)


def table(kept: dict[str, Any]) -> str:
    """A row per student, file and runtime."""
    head = ["student", "file", "runtime", "same answer", "median difference", "top-1 student",
            "top-1 file", *(f"batch {size}, ms" for size in BATCHES)]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for bits in BITS:
        result = kept["students"].get(bits, {})
        for name in FILES:
            for runtime, p in result.get(name, {}).items():
                times = []
                for size in BATCHES:
                    taken = result[runtime][f"batch {size}"]
                    ours, base = (taken[n]["fastest_ms"] for n in (name, "float"))
                    times.append(f"{ours:.2f} ({base / ours:.2f})")
                lines.append(
                    f"| {bits} | {name} | {runtime} | {p['agreement']:.2f}% | "
                    f"{p['median_difference']:.1e} | {p['student_top1']:.2f}% | "
                    f"{p['file_top1']:.2f}% | " + " | ".join(times) + " |"
                )
    return "\n".join(lines)


def introduction(kept: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in kept["versions"].items())
    images = {p["images"] for r in kept["students"].values() for p in r["exact"].values()}
    return (
        f"The embedded ResNet-20 on {where('cpu', kept['machine'])}, {versions}. Students of short "
        f"runs (`benchmarks/export.py`); answers on {min(images):,} test images. Milliseconds are "
        "the fastest of many, the files of a student taken in turns on a machine that others used "
        "too; in brackets, the time of the same "
        "runtime's float model of the teacher divided by it: above 1 is faster than float."
    )


def markdown(kept: dict[str, Any]) -> str:
    lines = ["# Exported students", "", introduction(kept), "", table(kept), ""]
    lines += ["The float model:", ""]
    for bits, result in kept["students"].items():
        for runtime in RUNTIMES:
            times = ", ".join(
                f"batch {size} {result[runtime][f'batch {size}']['float']['fastest_ms']:.2f} ms"
                for size in BATCHES
            )
            lines.append(f"* measured with {bits} ({result['date']}), {runtime}: {times}")
    lines += ["", "What ran in integers, by the runtime's own profile:", ""]
    for bits, result in kept["students"].items():
        for runtime in RUNTIMES:
            for name, executed in result[runtime]["executed"].items():
                lines.append(f"* {bits}, {runtime}, {name}: {integers(executed)}")
    names = list(next(iter(kept["students"].values()))["bytes"])
    lines += ["", "Bytes:", "", "| student | " + " | ".join(names) + " |",
              "|---" * (len(names) + 1) + "|"]  # fmt: skip
    for bits, result in kept["students"].items():
        lines.append(f"| {bits} | " + " | ".join(f"{n:,}" for n in result["bytes"].values()) + " |")
    return "\n".join(lines) + "\n"


def write(kept: dict[str, Any]) -> None:
    (RESULTS / "export-cpu.md").write_text(markdown(kept), encoding="utf-8")
    readme.write("export", f"{introduction(kept)}\n\n{table(kept)}", DOCUMENT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, help="folder with w4a4, w3a3, w2a4; made if missing")
    parser.add_argument("--student", action="append", choices=list(BITS),
                        help="only these; default: all")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=40, help="runs of each file")
    arguments = parser.parse_args()
    import onnxruntime
    import openvino

    path = RESULTS / "export-cpu.json"
    kept = json.loads(path.read_text()) if path.exists() else {"students": {}}
    kept["machine"] = environment()
    kept["versions"] = {
        "ONNX Runtime": onnxruntime.__version__,
        "OpenVINO": openvino.__version__.split("-")[0],
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.student or BITS:
            run = make_run(arguments.runs or Path(folder), *BITS[name])
            files = Path(folder) / f"files-{name}"
            files.mkdir()
            kept["students"][name] = measure(run, files, arguments.rounds)
            path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    write(kept)
    print(markdown(kept))


if __name__ == "__main__":
    main()
