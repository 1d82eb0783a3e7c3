"""Compare exported files with their students and a float model: ``python -m benchmarks.export``.

For the embedded network at each of ``BITS``: a short run of the recipe (``--runs`` uses finished
ones), exported in both modes; predictions on all test images in ONNX Runtime and OpenVINO, the
nodes that ran in integers, and latencies, interleaved with those of the same runtime's float
model. Writes ``results/export-cpu.json`` and ``.md``, and the tables in ``docs/export.md``.
Students can be measured again one at a time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks import readme
from benchmarks.executed import executed
from benchmarks.exported import (
    BATCHES,
    DOCUMENT,
    FILES,
    RESULTS,
    RUNTIMES,
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
from gdfq.environment import environment
from gdfq.export import export_onnx, packed, runtimes
from gdfq.export.parity import compare
from gdfq.runs.run import Run

BITS = {"W4A4": (4, 4), "W3A3": (3, 3), "W2A4": (2, 4)}
# A short run: the comparison is of a student with its file, not of the method's accuracy.
SHORT = ["--epochs", "13", "--warmup-epochs", "6"]


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


def measure(folder_of_run: Path, folder: Path, rounds: int) -> dict[str, Any]:
    run = Run(folder_of_run)
    images = run.check_images()
    files = {"float": folder / "float.onnx"}
    export_float(run.teacher, images, files["float"])
    result: dict[str, Any] = {"date": date.today().isoformat(), "steps": run.result.steps}
    result["bytes"] = {"student.safetensors": (run.folder / "student.safetensors").stat().st_size}
    for name, options in FILES.items():
        files[name] = folder / f"{name}.onnx"
        export_onnx(run.student, files[name], images.example, input_range=images.range, **options)
        parities = compare(run.student, files[name], run.check_images().batches)
        result[name] = {p.runtime: asdict(p) for p in parities}
        print(run.folder.name, name, result[name], flush=True)
    packed.save(run.student, folder / "packed", run.recipe)
    written = {name: path.stat().st_size for name, path in files.items()}
    result["bytes"] |= written | {"packed": (folder / "packed").stat().st_size}
    for runtime in runtimes.NAMES:
        models = {name: runtimes.open_model(runtime, path) for name, path in files.items()}
        facts: dict[str, Any] = {"executed": {}}
        for name, path in files.items():
            facts["executed"][name] = executed(runtime, path, images.example)
        for size in BATCHES:
            batch = torch.randn(size, *images.shape).numpy()
            facts[f"batch {size}"] = latencies(models, batch, rounds)
        result[runtimes.NAMES[runtime]] = facts
    return result


# ---- tables ----


def rows(kept: dict[str, Any]) -> list[Row]:
    return [
        Row(bits, file, runtime, answers, result[runtime])
        for bits in BITS
        if (result := kept["students"].get(bits))
        for file in FILES
        for runtime, answers in result[file].items()
    ]


def markdown_table(kept: dict[str, Any]) -> str:
    """Return a table with a row per student, file and runtime."""
    top1 = {
        f"top-1 {name}": lambda p, name=name: f"{p[f'{name}_top1']:.2f}%"
        for name in ("student", "file")
    }
    return table(rows(kept), {**SAME_ANSWER, **top1})


def introduction(kept: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in kept["versions"].items())
    images = {p["images"] for r in kept["students"].values() for p in r["exact"].values()}
    return (
        f"The embedded ResNet-20 on {where('cpu', kept['machine'])}, {versions}. Students of short "
        f"runs (`benchmarks/export.py`), compared on {min(images):,} test images. Milliseconds are "
        "the fastest of many, a student's files interleaved, on a shared machine; in brackets, the "
        "time of the same runtime's float model of the teacher divided by it: above 1 is faster "
        "than float."
    )


def markdown(kept: dict[str, Any]) -> str:
    lines = ["# Exported students", "", introduction(kept), "", markdown_table(kept), ""]
    lines += ["The float model:", ""]
    for bits, result in kept["students"].items():
        for runtime in RUNTIMES:
            times = ", ".join(
                f"batch {size} {result[runtime][f'batch {size}']['float']['fastest_ms']:.2f} ms"
                for size in BATCHES
            )
            lines.append(f"* measured with {bits} ({result['date']}), {runtime}: {times}")
    lines += ["", "Operators that ran in integers, by the runtime's profile:", ""]
    for bits, result in kept["students"].items():
        for runtime in RUNTIMES:
            for name, nodes in result[runtime]["executed"].items():
                lines.append(f"* {bits}, {runtime}, {name}: {integers(nodes)}")
    lines += ["", "Bytes:", "", sizes(kept["students"])]
    return "\n".join(lines) + "\n"


def write(kept: dict[str, Any]) -> None:
    (RESULTS / "export-cpu.md").write_text(markdown(kept), encoding="utf-8")
    readme.write("export", f"{introduction(kept)}\n\n{markdown_table(kept)}", DOCUMENT)
    readme.write("export-aims", aims(rows(kept)), DOCUMENT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, help="folder with w4a4, w3a3, w2a4; made if missing")
    parser.add_argument("--student", action="append", choices=list(BITS),
                        help="only these; default: all")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=40, help="runs of each file")
    parser.add_argument("--table", action="store_true", help="write the tables without measuring")
    arguments = parser.parse_args()
    path = RESULTS / "export-cpu.json"
    kept = json.loads(path.read_text()) if path.exists() else {"students": {}}
    if arguments.table:
        write(kept)
        return
    kept["machine"], kept["versions"] = environment(), versions()
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
