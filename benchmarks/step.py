"""Time a whole training step and write the table and plots: ``python -m benchmarks.step``.

``results/step-<device>.json`` keeps the measurements of each part, so that parts can be
measured again one at a time; the table and the plots are made from all of them.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import readme
from benchmarks.table import where
from gdfq.bench.formulations import NEED_CUDA, RIVALS, Settings, check_rivals
from gdfq.bench.measure import measure
from gdfq.bench.networks import WORKLOADS
from gdfq.environment import environment

RESULTS = Path(__file__).parent / "results"
NAMES = {
    "resnet20": "ResNet-20, 32x32, b200",
    "resnet18": "ResNet-18, 224x224, b16",
    "mobilenet_v2": "MobileNetV2, 224x224, b16",
    "vgg16_bn": "VGG16-BN, 32x32, b200",
    "resnet50": "ResNet-50, 224x224, b16",
}
# Part: network, settings, rivals, whether to measure memory.
PARTS: dict[str, tuple[str, dict[str, Any], list[str], bool]] = {
    "resnet20": ("resnet20", {}, ["plain", "frozen", "compile"], True),
    "resnet20, freed memory kept by all": (
        "resnet20", {"pages_kept": True}, ["plain", "frozen", "compile"], False,
    ),
    "resnet20, warm-up": ("resnet20", {"warm_up": True}, ["plain", "frozen"], False),
    "resnet20, ours in bf16": (
        "resnet20", {"trainer": {"precision": "bf16"}, "rival_precision": "fp32"},
        ["plain", "frozen"], False,
    ),
    "resnet18": ("resnet18", {}, ["plain"], True),
    "mobilenet_v2": ("mobilenet_v2", {}, ["plain"], True),
    "vgg16_bn": ("vgg16_bn", {}, ["plain"], True),
    "resnet50": ("resnet50", {}, ["plain"], True),
}  # fmt: skip
# The values of each growing quantity; ResNet-20's settings otherwise.
GROWTH: dict[str, tuple[list[int], str]] = {
    "batch size": ([16, 32, 64, 128, 200, 400], "batch_size"),
    "image size": ([32, 64, 96, 128, 224], "image_size"),
    "bits": ([2, 3, 4, 5, 6, 7, 8], "bits"),
    "depth": ([20, 32, 56, 80, 110], "depth"),
}
GROWTH_BASE: dict[str, Any] = {"batch_size": 64, "image_size": 32}


def measure_part(
    name: str, steps: int, device: str, against: list[str] | None = None
) -> dict[str, Any]:
    """Measure a part and its own rivals, or those given."""
    network, options, rivals, memory = PARTS[name]
    chosen = check_rivals(rivals if against is None else against, device)
    settings = Settings(steps=steps, device=device, **options)
    results, trainer = measure(WORKLOADS[network], settings, chosen, memory)
    return {
        "date": date.today().isoformat(),
        "machine": environment(),
        "network": network,
        "results": [asdict(result) | {"median": result.median} for result in results],
        "memory_format": trainer.memory_format,
        "execution": trainer.execution,
        "fusion": trainer.fused.summary() if trainer.fused else None,
    }


def measure_growth(steps: int, device: str) -> dict[str, Any]:
    """Measure seconds of our step; image size S has (S / 32)^2 times the pixels of the base."""
    growth: dict[str, Any] = {"date": date.today().isoformat(), "machine": environment()}
    base = replace(WORKLOADS["resnet20"], **GROWTH_BASE)
    fixed = {"memory_format": "channels_last"}
    for what, (values, key) in GROWTH.items():
        growth[what] = {}
        for value in values:
            workload, settings = base, Settings(steps=steps, device=device, trainer=fixed)
            if key == "bits":
                settings = replace(settings, weight_bits=value, act_bits=value)
            elif key == "depth":
                workload = replace(base, model=f"gdfq:resnet{value}")
            elif key == "image_size":
                workload = replace(base, image_size=value, batch_size=16)
            else:
                change: dict[str, Any] = {key: value}
                workload = replace(base, **change)
            (ours,), _ = measure(workload, settings, [], memory=False)
            growth[what][value] = ours.median
            print(f"{what} {value}: {ours.median:.3f} s", flush=True)
    return growth


# ---- tables ----


def describe(device: str, machine: dict[str, Any]) -> str:
    """Name a machine and its versions."""
    return f"{where(device, machine)}, torch {machine['torch']}, gdfq {machine['gdfq']}"


def machines(kept: dict[str, Any], device: str) -> list[str]:
    """List the machines of all measurements, each once."""
    measured = [*kept["parts"].values(), *filter(None, [kept.get("growth")])]
    return list(dict.fromkeys(describe(device, part["machine"]) for part in measured))


def table(kept: dict[str, Any], device: str) -> str:
    """Return the table of the rivals' times beside ours; "-" means not measured."""
    labels = [
        label for rival, (label, _) in RIVALS.items() if device == "cuda" or rival not in NEED_CUDA
    ]
    several = len(machines(kept, device)) > 1
    head = ["step", "ours, images/s", *labels, "convolutions' share of ours", "peak memory"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in PARTS:
        if name not in kept["parts"]:
            continue
        part = kept["parts"][name]
        by_name = {result["name"]: result for result in part["results"]}
        ours = part["results"][0]
        title = name.replace(part["network"], NAMES[part["network"]], 1)
        ratios = [
            f"{by_name[label]['median'] / ours['median']:.2f}" if label in by_name else "-"
            for label in labels
        ]
        memory = "-"
        if ours["peak_bytes"]:
            memory = f"{ours['peak_bytes'] / 1e6:.0f} MB"
            if labels[0] in by_name:
                memory += f" ({by_name[labels[0]]['peak_bytes'] / 1e6:.0f} MB)"
        share = f"{ours['convolutions']:.0%}" if ours["convolutions"] else "-"
        if several:
            title += f" ({describe(device, part['machine'])})"
        lines.append(
            f"| {title} | {ours['images_per_second']:.3g} | "
            + " | ".join([*ratios, share, memory])
            + " |"
        )
    return "\n".join(lines)


def markdown(kept: dict[str, Any], device: str) -> str:
    text = [
        f"# A training step on {'; '.join(machines(kept, device))}",
        "",
        "Columns 3 to 5: the rival's median time divided by ours, steps interleaved in one "
        "process; 2.00 means ours is twice as fast, `-` that it was not measured. The rivals run "
        "with the C allocator's defaults, except where the row says that freed memory is kept by "
        "all; ours runs as in `gdfq quantize`. Plain is `gdfq/bench/plain.py`: the method in stock "
        "PyTorch modules, float32, its teacher's parameters requiring gradients unless frozen. "
        "Peak memory: ours, and plain's in brackets, each in a process of its own.",
        "",
        table(kept, device),
        "",
        "Our step's time by part:",
        "",
    ]
    for name, part in kept["parts"].items():
        ours = part["results"][0]
        total = sum(ours["phases"].values()) or 1
        phases = ", ".join(
            f"{phase} {value / total:.0%}" for phase, value in ours["phases"].items()
        )
        text.append(
            f"* {name} ({part['date']}): {ours['median']:.3f} s; {phases}; "
            f"{part['memory_format']}, {part['execution']}; {part['fusion']}"
        )
    if kept.get("growth"):
        text += ["", f"Growth ({kept['growth']['date']}), with the exponent of a power law "
                 "through the last two points (1 is linear):", ""]  # fmt: skip
        for what in GROWTH:
            points = {int(k): v for k, v in kept["growth"][what].items()}
            listed = ", ".join(f"{k}: {v:.3f} s" for k, v in points.items())
            text.append(f"* {what}: {listed} (exponent {exponent(points):.2f})")
    return "\n".join(text) + "\n"


def exponent(points: dict[int, float]) -> float:
    """Return the exponent of the power law through the last two of ``points``."""
    (x0, y0), (x1, y1) = list(points.items())[-2:]
    return math.log(y1 / y0) / math.log(x1 / x0)


def plots(kept: dict[str, Any], stem: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    parts = {name: part for name, part in kept["parts"].items() if name in NAMES}
    if parts:
        figure, axes = plt.subplots(figsize=(8, 0.7 * len(parts) + 1.2), layout="constrained")
        for row, part in enumerate(reversed(parts.values())):
            ours, plain = part["results"][0], part["results"][1]
            seconds = (plain["median"], ours["median"])
            for offset, value, color in zip(
                (0.2, -0.2), seconds, ("#b0b0b0", "#1f6fb4"), strict=True
            ):
                axes.barh(row + offset, value / seconds[0], height=0.36, color=color)
                axes.text(
                    value / seconds[0] + 0.01,
                    row + offset,
                    f"{value:.2f} s",
                    va="center",
                    fontsize=9,
                )
        axes.set_yticks(range(len(parts)), [NAMES[name] for name in reversed(parts)])
        axes.set_xlim(0, 1.15)
        axes.set_xlabel("time of a training step, plain PyTorch = 1")
        axes.bar(0, 0, color="#b0b0b0", label="plain PyTorch")
        axes.bar(0, 0, color="#1f6fb4", label="gdfq")
        axes.legend(loc="lower right", frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(stem.with_suffix(".png"), dpi=150)
        plt.close(figure)
    if kept.get("growth"):
        figure, panels = plt.subplots(1, len(GROWTH), figsize=(13, 3.2), layout="constrained")
        for axes, what in zip(panels, GROWTH, strict=True):
            points = {int(k): v for k, v in kept["growth"][what].items()}
            xs, ys = list(points), list(points.values())
            axes.plot(xs, ys, "o-", color="#1f6fb4")
            power = {"image size": 2, "bits": 0}.get(what, 1)
            axes.plot(
                xs, [ys[-1] * (x / xs[-1]) ** power for x in xs], "--", color="#909090",
                label={0: "constant", 1: "linear", 2: "linear in pixels"}[power],
            )  # fmt: skip
            axes.set_xlabel(what + (" (batch 16)" if what == "image size" else ""))
            axes.set_ylim(0)
            axes.legend(frameon=False, loc="lower right")
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("s per step")
        figure.suptitle("ResNet-20, batch 64, 32x32 unless varied")
        figure.savefig(stem.with_name(stem.name + "-growth").with_suffix(".png"), dpi=150)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", choices=[*PARTS, "growth", "none"],
                        help="parts to measure; default: all")  # fmt: skip
    parser.add_argument("--against", action="append", choices=RIVALS,
                        help="rivals; default: each part's own")  # fmt: skip
    parser.add_argument("--steps", type=int, default=7, help="steps for the median")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    stem = RESULTS / f"step-{arguments.device}"
    path = stem.with_suffix(".json")
    kept = json.loads(path.read_text()) if path.exists() else {"parts": {}}
    for name in arguments.part or [*PARTS, "growth"]:
        if name == "growth":
            kept["growth"] = measure_growth(arguments.steps, arguments.device)
        elif name != "none":
            kept["parts"][name] = measure_part(
                name, arguments.steps, arguments.device, arguments.against
            )
            ours, *rivals = kept["parts"][name]["results"]
            ratios = ", ".join(f"{r['name']} {r['median'] / ours['median']:.2f}" for r in rivals)
            print(f"{name}: {ours['median']:.3f} s; {ratios}", flush=True)
        path.write_text(json.dumps(kept, indent=2) + "\n")
    stem.with_suffix(".md").write_text(markdown(kept, arguments.device), encoding="utf-8")
    if arguments.device == "cpu":
        readme.write("step", table(kept, arguments.device))
    plots(kept, stem)


if __name__ == "__main__":
    main()
