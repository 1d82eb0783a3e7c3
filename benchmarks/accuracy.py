"""Measure parts and starts: ``python -m benchmarks.accuracy FILE --folder FOLDER``.

``FILE`` is a sweep for ``gdfq sweep``. The generator never sees the student, so its images are
recorded once for all runs that train the same generator, and each student is trained on them as
in its own run: the same student bit for bit (``tests/project/test_benchmarks.py``). With
``bns_of = "both"`` the generator sees the student, and the whole run is repeated. ``FOLDER`` keeps
finished results. The command writes ``results/accuracy-FILE.json`` and the table of that name in
``docs/accuracy.md``, whose markers must exist, from all results in ``FOLDER``; ``parts.toml``
also writes the short table of README, ``docs/index.md`` and ``docs/limits.md``, ``length.toml`` the
plot. ``--real-images DIR`` fine-tunes the same students on Fashion-MNIST's training images instead,
which is not data-free, and writes ``accuracy-FILE-real``.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy_tables import Outcome, path_of, write
from examples.train_teacher import FASHION_MNIST, load_split
from gdfq.data import open_batches, top1
from gdfq.errors import NonFiniteLossError
from gdfq.recipes import Recipe
from gdfq.recipes.networks import build_generator, build_student, build_teacher
from gdfq.sources import LoadedTeacher
from gdfq.sweeps.criterion import compare
from gdfq.sweeps.plan import PlannedRun, read_plan
from gdfq.training import GDFQTrainer, TrainerCallback
from gdfq.training.parts import PARTS

HELD_OUT = 16  # batches of generated images that no student is trained on
PASS = 200  # of them in a forward pass
GENERATORS = {"labels", "images", "cross_entropy", "bns_loss"}  # hooks of a part
# A generator's training depends on every field of a recipe except these.
STUDENTS = {
    "quantization": None,
    "start": None,
    "bits": None,
    "training": {"student_lr", "momentum", "weight_decay", "temperature", "alpha"},
    "parts": {
        field
        for part in PARTS
        for field in part.settings_class.model_fields
        if not vars(part).keys() & GENERATORS or field == "hard_sample_step"
    },
}


@dataclass
class Recording:
    """A generator's images, and the states that a student's training needs."""

    warmed_up: dict[str, Any]  # generator and random state at the end of the warm-up
    ended: dict[str, Any]
    steps: list[tuple[Tensor, Tensor, Tensor]]  # images, labels, teacher's logits
    held_out: Tensor  # images that no student is trained on


class Recorder(GDFQTrainer):
    """Train the generator alone, and keep the batches that a student would get."""

    def record(self) -> Recording:
        """Run the whole schedule."""
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []
        self.train()
        ended = copy.deepcopy(self._state())
        return Recording(self._warmed_up, ended, self.steps, held_out(self))

    def calibrate(self, batches: int) -> None:
        """Draw the random numbers of a calibration."""
        self._warmed_up = copy.deepcopy(self._state())
        for _ in range(batches):
            self.images.sample()
        self.calibrated = True

    def _state(self) -> dict[str, Any]:
        return {"generator": self.generator.state_dict(), "random": self.rng.get_state()}

    def _tuning_step(self) -> dict[str, Tensor]:
        finish, images, labels, logits = self.algorithm.train_generator(tuning=True)
        self.steps.append((images.clone(), labels.clone(), logits.clone()))
        return self._record(finish())


class Player(GDFQTrainer):
    """Train a student on a recording."""

    def play(self, recording: Recording, callback: TrainerCallback) -> nn.Module:
        """From the calibration to the end."""
        self.recording = recording
        self._set(recording.warmed_up)
        self.steps_done = self.training.warmup_steps
        self.algorithm.train_generator = self._played  # type: ignore[method-assign]
        return self.train(callback)

    def _set(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.rng.set_state(state["random"])

    def _played(self, tuning: bool) -> Any:
        batch = self.recording.steps[self.steps_done - self.training.warmup_steps]
        if batch is self.recording.steps[-1]:  # the end may ask for new images
            self._set(self.recording.ended)
        return dict, *(part.clone() for part in batch)


class Watched(TrainerCallback):
    """Call ``calibrated`` before a student's fine-tuning."""

    def __init__(self, calibrated: Callable[[], None]) -> None:
        self.calibrated = calibrated

    def on_calibrated(self, trainer: GDFQTrainer) -> None:
        """Call it once."""
        self.calibrated()


@torch.no_grad()
def held_out(trainer: GDFQTrainer) -> Tensor:
    """Generate new images ``(N, C, H, W)``."""
    return torch.cat([trainer.images.make(*trainer.images.sample()) for _ in range(HELD_OUT)])


@torch.no_grad()
def take_real_images(recording: Recording, teacher: nn.Module, data: Path, seed: int) -> None:
    """Replace the generated images by as many training images with their labels."""
    images, labels = load_split(FASHION_MNIST, data, "train")
    random = torch.Generator().manual_seed(seed)
    for step, (generated, *_) in enumerate(recording.steps):
        chosen = torch.randint(len(labels), (len(generated),), generator=random)
        batch = torch.empty_like(generated).copy_(images[chosen])  # keeps its memory format
        recording.steps[step] = batch, labels[chosen], teacher(batch.clone())


def can_be_recorded(recipe: Recipe) -> bool:
    """Whether the generator never sees the student."""
    return recipe.parts.bns_of == "teacher"


def generator_key(recipe: Recipe) -> str:
    """Return a key that is equal for recipes with identical generators."""
    tables = recipe.model_dump(mode="json", exclude={"name", "description"})
    for section, keys in STUDENTS.items():
        tables[section] = {
            k: v for k, v in tables[section].items() if keys is not None and k not in keys
        }
    return _digest(tables)


def _start_key(recipe: Recipe) -> str:
    """Return a key that is equal for recipes with identical students before fine-tuning."""
    tables = recipe.model_dump(mode="json", include={"quantization", "start", "bits"})
    return _digest([generator_key(recipe), tables])


def _digest(content: Any) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _measure_once(path: Path, student: nn.Module, batches: Any) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(top1(student, batches)))


def _trainer(
    kind: type, recipe: Recipe, loaded: LoadedTeacher, student: nn.Module, **options: Any
) -> Any:
    return kind(
        loaded.network, student, build_generator(recipe, loaded.preprocessing),
        loaded.preprocessing.num_classes, **recipe.training.model_dump(),
        parts=recipe.parts, **options,
    )  # fmt: skip


def record(recipe: Recipe, folder: Path) -> None:
    """Record the images of the recipe's generator, unless the recording exists."""
    path = folder / "generators" / f"{generator_key(recipe)}.pt"
    if path.exists() or not can_be_recorded(recipe):
        return
    torch.set_num_threads(1)
    recipe, loaded = build_teacher(recipe)
    recording = _trainer(Recorder, recipe, loaded, build_student(recipe, loaded.network)).record()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(asdict(recording), path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def train(recipe: Recipe, folder: Path, where: Path, real_images: Path | None) -> None:
    """Train and measure the recipe's student, unless the result exists."""
    if where.exists():
        return
    torch.set_num_threads(1)
    key = generator_key(recipe)
    before = folder / "before" / f"{_start_key(recipe)}.json"
    recording = (
        Recording(**torch.load(folder / "generators" / f"{key}.pt"))
        if can_be_recorded(recipe)
        else None
    )
    recipe, loaded = build_teacher(recipe)
    if recording and real_images:
        take_real_images(recording, loaded.network, real_images, recipe.training.seed)
    student = build_student(recipe, loaded.network)
    kind = Player if recording else GDFQTrainer
    trainer = _trainer(kind, recipe, loaded, student, start=recipe.start)
    batches = list(open_batches(recipe, loaded.preprocessing, workers=0))
    watched = Watched(partial(_measure_once, before, student, batches))
    failure = None
    try:
        outcome = trainer.play(recording, watched) if recording else trainer.train(watched)
    except NonFiniteLossError as error:
        outcome, failure = student, str(error)
    images = recording.held_out if recording else held_out(trainer)
    divergence, agreement = compare(loaded.network, outcome, images.split(PASS))
    result = Outcome(
        json.loads(before.read_text()), top1(outcome, batches), divergence, agreement, failure
    )
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text(json.dumps(asdict(result), indent=2) + "\n")


def _record(folder: Path, run: PlannedRun) -> None:
    record(run.recipe, folder)


def _train(folder: Path, students: Path, real_images: Path | None, run: PlannedRun) -> PlannedRun:
    train(run.recipe, folder, path_of(run, students), real_images)
    return run


def main() -> None:
    """Train the missing students and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].replace("``", "'"))
    parser.add_argument("file", type=Path, help="a sweep for gdfq sweep")
    parser.add_argument("--folder", type=Path, required=True, help="keeps finished results")
    parser.add_argument("--workers", type=int, default=2, help="students at a time")
    parser.add_argument("--seed", type=int, action="append", help="only these")
    parser.add_argument("--bits", action="append", help="only these, as W4A4")
    parser.add_argument("--variant", action="append", help="only these, as paper or w4a4-paper")
    parser.add_argument("--real-images", type=Path, help="fine-tune on this folder's images")
    options = parser.parse_args()
    plan = read_plan(options.file)
    name, students = options.file.stem, options.folder
    if options.real_images:
        name, students = f"{name}-real", students / "real"
    chosen = [
        run
        for run in plan.runs
        if run.seed in (options.seed or plan.seeds)
        and (options.bits is None or run.variant.bits in options.bits)
        and (options.variant is None or {run.variant.table, run.variant.name} & {*options.variant})
    ]
    if options.real_images and not all(can_be_recorded(run.recipe) for run in chosen):
        parser.error("--real-images: not with bns_of = 'both', whose generator sees the student")
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        for seed in plan.seeds:
            runs = [run for run in chosen if run.seed == seed]
            generators = {generator_key(run.recipe): run for run in runs}
            list(pool.imap_unordered(partial(_record, options.folder), generators.values()))
            trained = partial(_train, options.folder, students, options.real_images)
            for run in pool.imap_unordered(trained, runs):
                print(run.name, path_of(run, students).read_text(), flush=True)
    recipe, loaded = build_teacher(plan.recipe)
    teacher = top1(loaded.network, open_batches(recipe, loaded.preprocessing, workers=0))
    write(plan, name, students, teacher)


if __name__ == "__main__":
    main()
