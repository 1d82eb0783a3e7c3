"""Run the benchmarks and write their table, as Markdown, JSON and a plot: ``make bench``."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import readme
from gdfq.environment import environment

RESULTS = Path(__file__).parent / "results"
SPEED = Path(__file__).parents[1] / "docs" / "speed.md"
RIVALS = ("eager", "torch.compile", "aten", "copy")

HEADING = """\
A number is the rival's median time divided by ours, interleaved in one run, with memory reused:
2.00 means ours takes half the time. `copy` is `Tensor.copy_` of the minimum of bytes that the
operation must read and write, so its column is our share of a copy's bandwidth."""


@dataclass
class Row:
    """One benchmark: an operation on one size."""

    operation: str
    size: str
    seconds: float
    traffic: int | None  # the minimum of bytes that it reads and writes
    ratios: dict[str, float]

    @property
    def name(self) -> str:
        """Return the name in the tables."""
        return f"{self.operation}[{self.size}]"


def run(selection: str | None, device: str, seconds: float | None) -> tuple[list[Row], int]:
    """Return the rows of all matching benchmarks, and the number that the time limit cut off."""
    with tempfile.TemporaryDirectory() as folder:
        report, outcomes = Path(folder) / "report.json", Path(folder) / "outcomes.xml"
        command = [sys.executable, "-m", "pytest", str(Path(__file__).parent), "-q",
                   "-o", "python_files=bench_*.py", "-o", "addopts=", f"--benchmark-json={report}",
                   "--benchmark-disable-gc", "--benchmark-columns=median",
                   f"--junitxml={outcomes}"]  # fmt: skip
        if selection:
            command += ["-k", selection]
        chosen = {**os.environ, "GDFQ_TEST_DEVICE": device}
        if seconds is not None:
            chosen["GDFQ_BENCH_SECONDS"] = str(seconds)
        if subprocess.run(command, stdout=sys.stderr, env=chosen).returncode:
            raise SystemExit("a benchmark failed; no table was written")
        if not report.exists():
            raise SystemExit("no benchmark ran; no table was written")
        found = json.loads(report.read_text())["benchmarks"]
        late = outcomes.read_text(encoding="utf-8").count('message="no time left"')
    rows = []
    for benchmark in found:
        operation, _, size = benchmark["name"].removeprefix("test_").partition("[")
        extra = benchmark["extra_info"]
        seconds = benchmark["stats"]["median"]
        rows.append(Row(operation, size.rstrip("]"), seconds, extra["traffic"], extra["ratios"]))
    return sorted(rows, key=lambda row: row.operation), late


def geometric_mean(values: Iterable[float]) -> float | None:
    """Return the geometric mean, or None without values."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def means(rows: list[Row]) -> dict[str, float | None]:
    """Return each rival's geometric mean over its rows."""
    return {r: geometric_mean(row.ratios[r] for row in rows if r in row.ratios) for r in RIVALS}


def by_operation(rows: list[Row]) -> dict[str, list[Row]]:
    """Group rows by operation."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.operation, []).append(row)
    return groups


def slower_than_compiled(rows: list[Row]) -> list[Row]:
    """Return the rows in which torch.compile is faster."""
    return [row for row in rows if row.ratios.get("torch.compile", math.inf) < 1]


def where(device: str, machine: dict) -> str:
    """Name the processor or GPU of ``machine``, an environment."""
    return f"{machine['cpu']}, {machine['threads']} threads" if device == "cpu" else machine["gpu"]


def line(name: str, ratios: Mapping[str, float | None]) -> str:
    """Return one line of a Markdown table."""
    cells = [f"{ratios[r]:.2f}" if ratios.get(r) is not None else "" for r in RIVALS]
    return "| " + " | ".join([name, *cells]) + " |"


def markdown(rows: list[Row], device: str, plot: str | None, late: int = 0) -> str:
    """Return the tables."""
    machine = environment()
    head = ["| " + " | ".join(RIVALS) + " |", "|---" * (len(RIVALS) + 1) + "|"]
    lines = [f"# Operators on {where(device, machine)}", ""]
    lines += [f"torch {machine['torch']}, gdfq {machine['gdfq']}. {HEADING}", ""]
    lines += [f"The time limit cut off {late} more benchmarks.", ""] if late else []
    lines += [f"![Every operation compared with its rivals]({plot})", ""] if plot else []
    lines += ["## Geometric means over sizes", "", "| operation " + head[0], head[1]]
    lines += [line(name, means(group)) for name, group in by_operation(rows).items()]
    lines += [line(f"**all {len(rows)} rows**", means(rows)), ""]
    slower = slower_than_compiled(rows)
    names = ", ".join(f"{r.name} ({r.ratios['torch.compile']:.2f})" for r in slower)
    compared = sum("torch.compile" in row.ratios for row in rows)
    lines += [f"Slower than `torch.compile`: {len(slower)} of {compared} rows. {names}".strip(), ""]
    lines += ["## Every size", "", "| benchmark " + head[0], head[1]]
    lines += [line(row.name, row.ratios) for row in rows]
    return "\n".join(lines) + "\n"


def summary(rows: list[Row]) -> str:
    """Return the means alone, for docs/speed.md."""
    head = ["| operation | " + " | ".join(RIVALS) + " |", "|---" * (len(RIVALS) + 1) + "|"]
    lines = [line(f"`{name}`", means(group)) for name, group in by_operation(rows).items()]
    return "\n".join([*head, *lines, line(f"**all {len(rows)} rows**", means(rows))])


def record(rows: list[Row], device: str) -> dict:
    """Return the tables' figures."""
    machine = environment()
    return {
        "device": where(device, machine),
        "environment": machine,
        "rows": [asdict(row) for row in rows],
        "means": {
            **{name: means(group) for name, group in by_operation(rows).items()},
            "all": means(rows),
        },
        "slower_than_torch_compile": [row.name for row in slower_than_compiled(rows)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-k", dest="selection", help="only benchmarks whose name matches")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, help="start no benchmark after this time")
    parser.add_argument("--out", type=Path, help="default: results/operators-<device>.md")
    arguments = parser.parse_args()
    rows, late = run(arguments.selection, arguments.device, arguments.seconds)
    out = arguments.out or RESULTS / f"operators-{arguments.device}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    picture = None
    if importlib.util.find_spec("matplotlib"):
        from benchmarks import plot

        picture = out.with_suffix(".png")
        groups = {name: [row.ratios for row in g] for name, g in by_operation(rows).items()}
        plot.draw(groups, where(arguments.device, environment()), picture)
    else:
        print("no plot: matplotlib is not installed", file=sys.stderr)
    table = markdown(rows, arguments.device, picture.name if picture else None, late)
    out.write_text(table, encoding="utf-8")
    if out == RESULTS / "operators-cpu.md" and not arguments.selection:
        readme.write("operators", summary(rows), SPEED)
    text = json.dumps(record(rows, arguments.device), indent=1) + "\n"
    out.with_suffix(".json").write_text(text, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
