"""A run saves, measures and reports one and the same student: the trainer's outcome."""

import errno
import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

import gdfq
from gdfq.recipes import networks, resolve_recipe
from gdfq.runs import session
from gdfq.runs.interrupts import Interrupted, Interrupts
from gdfq.runs.metrics import Metrics
from gdfq.runs.options import Options
from gdfq.runs.run import Run as OpenedRun
from gdfq.sources.registries import InMemory
from gdfq.training.checkpoint import newest_valid
from tests.helpers.tiny import tiny_teacher
from tests.runs.test_resume import Show

SHORT = {
    "num_classes": 4, "image_size": 8, "channels": 2, "mean": [0.5, 0.5], "std": [0.25, 0.25],
    "width": 8, "latent_dim": 10, "batch_size": 8, "epochs": 3, "steps_per_epoch": 2,
    "warmup_epochs": 1, "calibration_batches": 2, "memory_format": "contiguous",
    "student_lr": 1e-2,
}  # fmt: skip
# What makes the outcome another network than the one that is trained.
OUTCOMES = {"ema_decay": 0.9, "bn_reestimate_end": True}
every_outcome = pytest.mark.parametrize("option", OUTCOMES)


def recipe_of(**options):
    model = InMemory("", tiny_teacher()).model
    return resolve_recipe(None, {"model": model, **SHORT, **options})


def states(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(v, second[n]) for n, v in first.items()
    )


class Run:
    """A run of the tiny network in a folder, and each network that was measured."""

    def __init__(self, folder, **options):
        self.folder = folder
        self.measured = []
        self.recipe = recipe_of(**options)

    def evaluate(self, network):
        self.measured.append(states(network))
        return float(len(self.measured))

    def options(self):
        return Options(network=tiny_teacher(), evaluate=self.evaluate)

    def go(self, show=None, interrupts=None):
        return session.quantize(
            self.recipe, self.folder, show or Show(), self.options(), interrupts
        )

    @property
    def trained(self):
        """The student as it was trained, by the checkpoint."""
        return newest_valid(self.folder, pytest.fail)[1]["trainer"]["student"]


@every_outcome
def test_what_is_measured_is_saved_and_reported(tmp_path, option):
    run = Run(tmp_path / "run", **{option: OUTCOMES[option]})
    done = run.go()
    result, saved = done.result, load_file(run.folder / "student.safetensors")
    assert not same(saved, run.trained)
    # The teacher first, then the student before and after fine-tuning.
    assert (result.teacher, result.before, result.after) == (1.0, 2.0, 3.0)
    assert same(run.measured[0], states(tiny_teacher()))
    assert same(run.measured[2], saved)
    assert same(states(done.student), saved)
    loaded = gdfq.open_run(run.folder, tiny_teacher()).student
    assert same(states(loaded), saved)
    assert same(states(OpenedRun(run.folder, tiny_teacher()).student), saved)


def test_an_interrupted_run_leaves_the_average_too(tmp_path):
    run = Run(tmp_path / "run", ema_decay=0.9)
    stop = Show(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        run.go(stop, Interrupts(signal.SIGTERM))
    saved = load_file(run.folder / "student.safetensors")
    average = newest_valid(run.folder, pytest.fail)[1]["trainer"]["parts"]["average"]["values"]
    assert same({name: saved[name] for name in average}, average)
    assert not same(saved, run.trained)
    # What is reported of it is that student too.
    assert same(states(OpenedRun(run.folder, tiny_teacher()).student), saved)


def test_a_resumed_run_keeps_what_was_measured_and_counted(tmp_path):
    run = Run(tmp_path / "run")
    stop = Show(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        run.go(stop, Interrupts(signal.SIGTERM))
    seconds = newest_valid(run.folder, pytest.fail)[1]["training_seconds"]
    assert seconds > 0
    result = session.resume(run.folder, Show(), run.options()).result
    # The student before fine-tuning was measured before the signal, and is not again.
    assert (result.before, len(run.measured)) == (2.0, 4)
    assert result.training_seconds > seconds


def test_metrics_hold_each_rate_under_its_name(tmp_path):
    run = Run(
        tmp_path / "run", generator_lr=0.02, student_lr=0.01, schedule="step", milestones=[1, 2]
    )
    run.go()
    history = gdfq.open_run(run.folder, tiny_teacher()).history
    assert [record["step"] for record in history] == [2, 4, 6]
    # After an epoch, the rates of the next.
    assert [r["generator_lr"] for r in history] == pytest.approx([2e-3, 2e-4, 2e-4])
    assert [r["student_lr"] for r in history] == pytest.approx([1e-3, 1e-4, 1e-4])


def test_a_record_that_could_not_be_written_comes_with_the_next(tmp_path, monkeypatch):
    def full(path, *arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    told = []
    metrics = Metrics(tmp_path / "metrics.jsonl", told.append)
    metrics.append({"epoch": 1})
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.open", full)
        metrics.append({"epoch": 2})
    assert len(told) == 1
    metrics.append({"epoch": 3})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


# No field at its default.
QUANTIZATION = {
    "weight_bits": 5, "act_bits": 6, "first_last_bits": 7, "ste": "clip", "range_momentum": 0.6,
    "zero_in_range": True, "learned_ranges": "weight", "dynamic_ranges": "act",
    "leaf_modules": ("8",),
}  # fmt: skip


def test_every_field_reaches_what_it_is_of(monkeypatch):
    """Section by section: the student, the generator, the trainer with parts and start."""
    recipe = recipe_of(
        **{**QUANTIZATION, "bits": {"3": {"weight": 3}}, "act_ranges": "minmax"},
        **{"equalize": False, "ema_decay": 0.5, "conditional_bn": True, "seed": 3},
        generated_size=12,
    )
    given_to = {}

    def quantize_model(model, **options):
        given_to["student"] = options
        return gdfq.quantize_model(model)

    def trainer(*arguments, **options):
        given_to["trainer"] = options

    monkeypatch.setattr(networks, "quantize_model", quantize_model)
    monkeypatch.setattr(networks, "GDFQTrainer", trainer)
    recipe, teacher = networks.build_teacher(recipe, tiny_teacher())
    generator = networks.build_generator(recipe, teacher.preprocessing)
    networks.build_trainer(recipe, teacher, generator)
    wanted = recipe.quantization.model_dump()
    assert wanted == QUANTIZATION
    assert given_to["student"] == {"bits": {"3": {"weight": 3}}, **wanted}
    others = {"parts": recipe.parts, "start": recipe.start, "world": None}
    assert given_to["trainer"] == {**recipe.training.model_dump(), **others}
    assert (generator.width, generator.latent_dim, generator.conditional_bn) == (8, 10, True)
    torch.manual_seed(3)
    again = gdfq.models.Generator(4, 12, 2, latent_dim=10, width=8, conditional_bn=True)
    assert same(states(generator), states(again))
    assert teacher.preprocessing.image_size == 8
