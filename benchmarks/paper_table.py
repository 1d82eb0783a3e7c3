"""Measure the paper's table: ``python -m benchmarks.paper_table --folder FOLDER --data DATA``.

Each network is quantized to each width with the paper's recipe and with the default, and once more
with 8 bits in the first and the last layer. The command writes ``results/paper-table.md`` and
``.json``, with published figures beside (``published.toml``), and the short tables of README and
``docs/limits.md``, anew after each run. A network whose images or weights are missing is skipped;
a line says how to get them, and rows that the results have already are kept.

Each network is a sweep in a folder of its own in ``FOLDER``: finished runs are kept, and one that
was killed is resumed, to the same student. Runs are done one after another, so that seconds are
those of a machine with nothing else to do. The paper's recipe is the default one with the paper's
start and without any part, as the length is the same; none has the paper's 80,000 steps.

``--minutes 2 8 20 60`` instead runs the first network for so long, with as much of it warm-up as in
its recipe, and writes a plot and a table into ``docs/accuracy.md``.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import imagenet_teachers, photographs
from benchmarks.paper_table_rows import (
    BITS,
    RECIPES,
    RESULTS,
    Outcome,
    merged,
    read,
    write,
    write_lengths,
)
from gdfq.cli._common import console, print_stopping
from gdfq.data import open_batches
from gdfq.errors import InputError
from gdfq.memory import keep_freed_memory
from gdfq.recipes import Recipe, load_recipe
from gdfq.recipes.networks import build_teacher
from gdfq.runs.folder import read_json, write_json
from gdfq.runs.interrupts import Interrupted
from gdfq.runs.options import Options
from gdfq.runs.progress import console_progress
from gdfq.runs.run import Run
from gdfq.sources import Preprocessing
from gdfq.sweeps.criterion import students
from gdfq.sweeps.plan import Plan, PlannedRun, make_plan
from gdfq.sweeps.running import check_networks, one_after_another, row_of
from gdfq.sweeps.sweep import OVER, run_sweep
from gdfq.training import Parts, Start

# The paper's start, ranges and loop.
PAPERS = {**Start().model_dump(), **Parts().model_dump(), "learned_ranges": "none"}
TRIAL = {"epochs": 2, "steps_per_epoch": 1, "warmup_epochs": 1, "calibration_batches": 1}


@dataclass(frozen=True)
class Network:
    """A network of the table.

    Attributes:
        name: of its folder.
        title: in the table; published figures have the same.
        recipe: returns its default recipe, or raises InputError if its weights are not there.
    """

    name: str
    title: str
    recipe: Callable[[], Recipe]


def _imagenet(name: str, title: str) -> Network:
    return Network(
        name.replace("_", "-"), f"ImageNet, {title}", partial(imagenet_teachers.recipe, name)
    )


NETWORKS = {
    network.name: network
    for network in (
        Network("cifar10-resnet20", "CIFAR-10, ResNet-20", lambda: load_recipe("cifar10-resnet20")),
        _imagenet("mobilenet_v2", "MobileNetV2"),
        _imagenet("efficientnet_lite0", "EfficientNet-Lite0"),
        _imagenet("efficientnet_lite1", "EfficientNet-Lite1"),
    )
}


# ---- what is run ----


def variants(recipe: Recipe, bits: Sequence[str], recipes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the table's variants of ``recipe``, as a sweep's ``[[variant]]`` tables."""
    paper = {key: PAPERS[key] for key in changed(recipe)}
    return [
        {
            "name": f"{label.lower()}-{name}{suffix}",
            **widths(label),
            **(paper if name == "paper" else {}),
            **ends,
        }
        for suffix, ends in (("", {}), ("-first-last-8", {"first_last_bits": 8}))
        for label in bits
        if not ends or label != "W8A8"
        for name in recipes
    ]


def changed(recipe: Recipe) -> list[str]:
    """Return the fields of ``PAPERS`` that ``recipe`` has another value of."""
    tables = (recipe.start, recipe.parts, recipe.quantization)
    own = {key: value for table in tables for key, value in table.model_dump().items()}
    return [key for key, value in PAPERS.items() if own[key] != value]


def widths(label: str) -> dict[str, int]:
    """Return the fields of a width such as ``"W4A4"``."""
    found = re.fullmatch(r"W(\d)A(\d)", label)
    if found is None:
        raise InputError(f"bits: must be as W4A4, got {label!r}")
    return {"weight_bits": int(found[1]), "act_bits": int(found[2])}


def lengths(
    recipe: Recipe, bits: Sequence[str], minutes: Sequence[float], steps_per_minute: float
) -> list[dict[str, Any]]:
    """Return variants of ``recipe`` that take so long, with its share of warm-up and milestones."""
    training, made = recipe.training, []
    for label in bits:
        for length in minutes:
            epochs = max(2, round(length * steps_per_minute / training.steps_per_epoch))
            share = epochs / training.epochs
            warmup_epochs = round(training.warmup_epochs * share)
            fields: dict[str, Any] = {"epochs": epochs, "warmup_epochs": warmup_epochs}
            if training.schedule == "step":
                fields["milestones"] = [max(1, round(m * share)) for m in training.milestones]
            name = f"{label.lower()}-{length:g}-minutes"
            made.append({"name": name, **widths(label), **fields})
    return made


def plan_of(recipe: Recipe, made: list[dict[str, Any]], seeds: Sequence[int]) -> Plan:
    """Return the sweep of these variants of ``recipe``."""
    # The memory format is chosen by time otherwise, and rounding depends on it.
    recipe = recipe.with_options({"memory_format": "channels_last"})
    tables = {"recipe": recipe.model_dump(), "seeds": [*seeds], "variant": made}
    return make_plan(tables, f"paper_table: {recipe.name}", Path())


def available(network: Network, data: Path | None, trial: bool) -> Recipe:
    """Return the network's recipe, measured on the images in ``data``.

    Raises:
        InputError: weights or images are not there; the message says how to get them.
    """
    recipe = network.recipe()
    if data is not None and recipe.teacher.data != "fashion-mnist":
        recipe = recipe.with_options({"data_path": str(data)})
    if trial:
        recipe = recipe.with_options(TRIAL)
    complete, loaded = build_teacher(recipe)
    try:
        open_batches(complete, loaded.preprocessing, workers=0)
    except InputError as error:
        fetch = f"gdfq data {recipe.teacher.data} --out {data or 'DATA'}"
        raise InputError(f"{error}; `{fetch}` fetches them") from error
    return recipe


# ---- what is measured ----


def batches(recipe: Recipe, preprocessing: Preprocessing) -> Iterator[Tensor]:
    """Yield the images that students are compared with their teacher on."""
    if recipe.teacher.data == "photographs":
        root = recipe.teacher.data_path or os.environ["GDFQ_DATA"]
        yield from photographs.crops(Path(root), preprocessing)
        return
    for images, _ in open_batches(recipe, preprocessing, workers=0):
        yield images


@torch.inference_mode()
def predictions(network: nn.Module, images: Iterator[Tensor]) -> Tensor:
    """Return the network's classes ``(N,)``."""
    return torch.cat([network(batch).argmax(1) for batch in images])


class Agreement:
    """Agreement of a sweep's students with their teacher; known figures are kept beside a run."""

    def __init__(self) -> None:
        self.teacher: Tensor | None = None

    def measure(self, folder: Path) -> None:
        """Measure the student of the finished run in ``folder``, unless that has been done."""
        student = students({"": folder})[""]
        if read_json(agreement_file(folder)).get("student") == student:
            return
        run = Run(folder)
        if self.teacher is None:
            self.teacher = predictions(run.teacher, batches(run.recipe, run.preprocessing))
        found = predictions(run.student, batches(run.recipe, run.preprocessing))
        same = 100 * float((found == self.teacher).float().mean())
        crops = "crops of photographs" if run.recipe.teacher.data == "photographs" else "of them"
        compared = f"{len(found):,} {crops}"
        content = {"student": student, "agreement": same, "compared": compared}
        write_json(agreement_file(folder), content)


def agreement_file(folder: Path) -> Path:
    """Return the file beside the run in ``folder`` that keeps its agreement."""
    return folder.with_name(f"{folder.name}.agreement.json")


def outcomes(network: Network, plan: Plan, out: Path) -> Iterator[Outcome]:
    """Yield the outcome of each finished run of ``plan`` in ``out``."""
    for run in plan.runs:
        row = row_of(out, run)
        if row.status != "finished":
            continue
        kept = read_json(agreement_file(out / run.name))
        spec, steps = run.recipe.quantization, row.steps or 0
        yield Outcome(
            network=network.title,
            bits=f"W{spec.weight_bits}A{spec.act_bits}",
            recipe="paper" if "-paper" in run.variant.name else "default",
            first_last_bits=spec.first_last_bits,
            seed=run.seed,
            teacher=row.teacher,
            before=row.before,
            after=row.after,
            evaluation=row.evaluation,
            agreement=kept.get("agreement"),
            compared=kept.get("compared", ""),
            seconds=row.training_seconds or 0.0,
            steps=steps,
            images=steps * run.recipe.training.batch_size,
            machine=row.environment,
        )


# ---- running ----


def execute(
    plan: Plan, out: Path, options: Options, after_run: Callable[[], None], device: str = "cpu"
) -> None:
    """Do or resume the runs of ``plan`` in ``out``, and measure each student's agreement.

    Raises:
        InputError: a variant cannot be run, or ``out`` has other runs.
        Interrupted: a signal arrived; the next call continues.
    """
    if any(row_of(out, run).status not in OVER for run in plan.runs):
        check_networks(plan, device)
    compared = Agreement()
    whole = one_after_another(options, lambda: console_progress(console), print_stopping)

    def launch(runs: Sequence[PlannedRun], folder: Path) -> Iterator[tuple[PlannedRun, str | None]]:
        for run, problem in whole(runs, folder):
            if row_of(folder, run, problem).status == "finished":
                compared.measure(folder / run.name)
            after_run()
            yield run, problem

    run_sweep(plan, out, launch, device, console.print, console.print)
    for run in plan.runs:
        row = row_of(out, run)
        if row.status == "finished":  # killed before its agreement was known, perhaps
            compared.measure(out / run.name)
        else:
            console.print(f"{out / run.name}: {row.status}: {row.reason}")
    after_run()


def table(arguments: argparse.Namespace, networks: Sequence[Network]) -> None:
    """Run what can be run, and write the table."""
    out = arguments.folder / "paper-table.md" if arguments.trial else RESULTS / "paper-table.md"
    for network in networks:
        try:
            recipe = available(network, arguments.data, arguments.trial)
        except InputError as error:
            console.print(f"{network.title}: skipped: {error}")
            continue
        folder = arguments.folder / network.name
        chosen = variants(recipe, arguments.bits, arguments.recipe)
        if arguments.alike:
            chosen = [variant for variant in chosen if "first_last_bits" not in variant]
        plan = plan_of(recipe, chosen, arguments.seed)
        execute(plan, folder, arguments.options, partial(publish, network, plan, folder, out))


def publish(network: Network, plan: Plan, folder: Path, out: Path) -> None:
    """Write the table with what is in ``folder``."""
    write(merged(read(out.with_suffix(".json")), outcomes(network, plan, folder)), out)


def draw(arguments: argparse.Namespace, network: Network) -> None:
    """Run the network for each of the lengths, and draw them."""
    recipe = available(network, arguments.data, arguments.trial)
    folder = arguments.folder / f"{network.name}-length"
    speed = 1 if arguments.trial else arguments.steps_per_minute
    made = lengths(recipe, arguments.bits, arguments.minutes, speed)
    plan = plan_of(recipe, made, arguments.seed[:1])
    place = arguments.folder if arguments.trial else None

    def publish() -> None:
        found = [*outcomes(network, plan, folder)]
        if found:
            write_lengths(found, place)

    execute(plan, folder, arguments.options, publish)


def main(given: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].replace("``", "'"))
    parser.add_argument("--folder", type=Path, required=True, help="keeps the runs")
    parser.add_argument("--data", type=Path, help="that `gdfq data` wrote to; default: GDFQ_DATA")
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--bits", nargs="+", help=f"default: {' '.join(BITS)}; W4A4 W3A3 for times")
    parser.add_argument("--recipe", nargs="+", choices=RECIPES, default=[*RECIPES])
    parser.add_argument("--alike", action="store_true",
                        help="no runs with 8 bits in the first and the last layer")  # fmt: skip
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", nargs="+", type=float, help="draw the accuracy of such runs")
    parser.add_argument("--steps-per-minute", type=float, default=270,
                        help="of the first network, approximately")  # fmt: skip
    parser.add_argument("--trial", action="store_true",
                        help="two steps each; writes into the folder alone")  # fmt: skip
    arguments = parser.parse_args(given)
    arguments.bits = arguments.bits or (["W4A4", "W3A3"] if arguments.minutes else [*BITS])
    arguments.options = Options()
    keep_freed_memory()
    networks = [NETWORKS[name] for name in arguments.network]
    try:
        if arguments.minutes:
            draw(arguments, networks[0])
        else:
            table(arguments, networks)
    except InputError as error:
        parser.error(str(error))
    except Interrupted as error:
        console.print(f"stopped by {error}; the same command continues")
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
