"""``gdfq sweep``: its file, its runs, what they come to, and the page."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gdfq import cli
from gdfq.recipes import load_recipe
from gdfq.recipes.images import random_images
from gdfq.runs import session
from gdfq.runs.options import Options
from gdfq.runs.run import Run as OpenedRun
from gdfq.sweeps import criterion
from gdfq.sweeps.contents import Comparison, RunRow
from gdfq.sweeps.page import render
from gdfq.sweeps.plan import label_of_bits, make_plan, read_plan
from gdfq.sweeps.running import row_of
from gdfq.sweeps.summary import paired, spread, summarize
from tests.cli.test_cli import RECIPE, gdfq_command
from tests.runs.test_resume import Show

COMMAND = importlib.import_module("gdfq.cli.sweep")  # gdfq.cli has the function under this name
NASTY = "<script>throw 1</script>\"'&amp;<img src=x onerror=throw 2>"

TINY = """
seeds = [0, 1]

[recipe]
name = "tiny"

[recipe.teacher]
model = "tests.helpers.report_networks:tiny"
weights = "random"
num_classes = 4
image_size = 8
channels = 2
mean = [0.5, 0.5]
std = [0.25, 0.25]

[recipe.generator]
latent_dim = 10
width = 8

[recipe.training]
batch_size = 16
epochs = 3
steps_per_epoch = 2
warmup_epochs = 1
calibration_batches = 1
memory_format = "contiguous"
"""
TWO = """
[[variant]]
name = "plain"

[[variant]]
name = "kl"
objective = "kl_only"
"""


@pytest.fixture
def file(tmp_path):
    """Writes a sweep's file and gives its path."""

    def write(text, name="sweep.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def sweep(capsys, path, out, *options):
    return gdfq_command(capsys, "sweep", path, "--out", out, "--no-report", *options)


def data_of(out):
    return json.loads((out / "sweep.json").read_text())


# ---- the file ----


def test_every_combination_is_taken(file):
    plan = read_plan(
        file(
            f"""
            recipe = "{RECIPE}"
            seeds = [3, 1]
            [base]
            epochs = 20
            first_last_bits = 8
            [grid]
            widths = [{{weight_bits = 4, act_bits = 4}}, {{weight_bits = 3, act_bits = 2}}]
            bns_weight = [1, 0.5]
            [[variant]]
            name = "plain"
            [[variant]]
            name = "parts"
            objective = "kl_only"
            equalize = true
            bits = {{fc = {{weight = 6}}}}
            """
        )
    )
    assert [v.name for v in plan.variants] == [
        "w4a4-bns_weight=1-plain", "w4a4-bns_weight=1-parts",
        "w4a4-bns_weight=0.5-plain", "w4a4-bns_weight=0.5-parts",
        "w3a2-bns_weight=1-plain", "w3a2-bns_weight=1-parts",
        "w3a2-bns_weight=0.5-plain", "w3a2-bns_weight=0.5-parts",
    ]  # fmt: skip
    assert [run.name for run in plan.runs[:2]] == [f"{v.name}-seed3" for v in plan.variants[:2]]
    last = plan.runs[-1].recipe
    assert (last.training.seed, last.training.epochs, last.training.bns_weight) == (1, 20, 0.5)
    assert (last.quantization.weight_bits, last.quantization.act_bits) == (3, 2)
    assert (last.parts.objective, last.start.equalize) == ("kl_only", True)
    assert last.exceptions() == {"fc": {"weight": 6}}
    # By the bits as a whole, and the first of them is what others are compared with.
    assert list(plan.groups) == [
        "W4A4, first and last layer W8", "W4A4, first and last layer W8, fc W6",
        "W3A2, first and last layer W8", "W3A2, first and last layer W8, fc W6",
    ]  # fmt: skip
    assert plan.references["w3a2-bns_weight=0.5-parts"] == "w3a2-bns_weight=1-parts"
    assert plan.references["w3a2-bns_weight=0.5-plain"] == "w3a2-bns_weight=1-plain"


def test_the_kept_file_says_the_same(file, tmp_path):
    (tmp_path / "own.toml").write_text(load_recipe(RECIPE).to_toml())
    text = 'recipe = "own.toml"\nseeds = [0]\n[base]\nalpha = 2.0\n[grid]\nweight_bits = [4, 3]\n'
    plan = read_plan(file(text + TWO))
    again = read_plan(file(plan.text, "again.toml"))
    assert (again.recipe, again.variants, again.seeds) == (plan.recipe, plan.variants, plan.seeds)
    assert again.text == plan.text
    assert again.recipe.training.alpha == 2.0


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (None, ["w4-plain", "w4-plain", "w3-plain", "w3-plain"]),
        ("kl", ["w4-kl", "w4-kl", "w3-kl", "w3-kl"]),
        ("w3-kl", ["w3-kl"] * 4),
    ],
)
def test_what_is_compared_with_what(file, reference, expected):
    first = "" if reference is None else f'reference = "{reference}"\n'
    plan = read_plan(file(first + TINY + "[grid]\nweight_bits = [4, 3]\n" + TWO))
    assert list(plan.references.values()) == expected


def test_seeds_alone_are_a_sweep(file):
    plan = read_plan(file(TINY))
    assert [run.name for run in plan.runs] == ["base-seed0", "base-seed1"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seeds = [0", "is not TOML"),
        ("seeds = [0]", "recipe: missing"),
        ('recipe = "resnet21"\nseeds = [0]', "sweep.toml: recipe: 'resnet21' is none of"),
        (f'recipe = "{RECIPE}"', "sweep.toml: seeds: missing"),
        (f'recipe = "{RECIPE}"\nseeds = []', "seeds: must be a non-empty list, each entry an int"),
        (
            f'recipe = "{RECIPE}"\nseeds = [-1]',
            "seeds: must be a non-empty list, each entry",
        ),
        (f'recipe = "{RECIPE}"\nseeds = [1, 1]', "seeds: each must be there once"),
        (f'recipe = "{RECIPE}"\nseeds = [1]\nvariants = []', "variants: unknown key; allowed are"),
        (TINY + "[grid]\nalpha = []", "grid.alpha: must be a non-empty list, each entry"),
        (TINY + "[grid]\nalpa = [1.0]", "grid.alpa: no recipe has such a key, so its values"),
        (TINY + "[grid]\na = [{alpa = 1}]", "variant alpa=1: alpa: no recipe has such a key; near"),
        (
            TINY + "[grid]\nalpha = [-1.0]",
            "sweep.toml: variant alpha=-1.0: training.alpha: must",
        ),
        (
            TINY + "[grid]\nalpha = ['x']",
            "variant alpha=x: training.alpha: must be a number >= 0",
        ),
        (TINY + "[grid]\nalpha = [1, 1.0]", "variant alpha=1.0: is the same as alpha=1"),
        (TINY + "[grid]\na = [{alpha = 1}]\nalpha = [2]", "grid: alpha is under two keys"),
        (TINY + "[grid]\nimage_size = [8]", "image_size=8: image_size: must be the same for all"),
        (TINY + "[grid]\nseed = [8]", "seed: is what seeds = [...] is for"),
        (TINY + "[base]\nseed = 8", "base: seed: is what seeds = [...] is for"),
        (TINY + "[base]\nsed = 8", "base: sed: no recipe has such a key; near matches: seed"),
        (TINY + "[[variant]]\nalpha = 1.0", "variant.0.name: missing"),
        (TINY + "[[variant]]\nname = 'a/b'", "variant.0.name: must be a string like"),
        (TINY + TWO + "[[variant]]\nname = 'plain'\nalpha = 9.0", "there are two of this name"),
        (TINY + TWO + "[[variant]]\nname = 'other'", "variant other: is the same as plain"),
        (TINY + "[grid]\nobjective = ['kd_ce']\n" + TWO, "objective: is in [grid] too"),
        ("reference = 'x'\n" + TINY + TWO, "reference: must be one of 'plain' or 'kl', got 'x'"),
        # What the network alone can say.
        (TINY + "[grid]\nbits = [{x = {weight = 3}}]", "sweep.toml: variant bits.1: bits: "),
        (TINY + "[grid]\nbns_layers = [['x']]", "sweep.toml: variant bns_layers.1: bns_layers: "),
    ],
)
def test_a_bad_file_starts_nothing(capsys, file, tmp_path, text, told):
    code, _, err = sweep(capsys, file(text), tmp_path / "out")
    assert code == 2
    assert told in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_no_file_and_other_folders(capsys, file, tmp_path):
    code, _, err = sweep(capsys, tmp_path / "none.toml", tmp_path / "out")
    assert (code, "cannot read" in err) == (2, True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    code, _, err = sweep(capsys, file(TINY), tmp_path / "out")
    assert code == 2
    assert "is not empty, and is no sweep's" in err


def test_gpus_per_run_are_for_ray(capsys, file, tmp_path):
    code, _, err = sweep(capsys, file(TINY), tmp_path / "out", "--gpus-per-run", 1)
    assert code == 2
    assert "gpus_per_run: is for --ray" in err


def test_ray_that_is_not_there(capsys, file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = sweep(capsys, file(TINY), tmp_path / "out", "--ray")
    assert code == 2
    assert "pip install 'gdfq[sweep]'" in err


# ---- runs ----


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two variants with two seeds, from the command: its folder, its file, what it printed."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "sweep.toml").write_text(TINY + TWO)
    said = io.StringIO()
    sys.argv = ["gdfq", "sweep", str(folder / "sweep.toml"), "--out", str(folder / "out")]
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    return folder / "out", folder / "sweep.toml", said.getvalue().splitlines()


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(finished[0], tmp_path / "copy")


@pytest.fixture
def no_more_runs(monkeypatch):
    """No run may begin or go on, and nothing be measured."""

    def forbidden(*_):
        raise AssertionError

    monkeypatch.setattr(session, "start_or_resume", forbidden)
    monkeypatch.setattr(criterion, "measure", forbidden)


def test_runs_are_those_of_quantize(finished, tmp_path):
    out, _, _ = finished
    names = {p.name for p in out.iterdir()}
    runs = {f"{variant}-seed{seed}" for variant in ("plain", "kl") for seed in (0, 1)}
    assert names == {
        "sweep.toml", "sweep.html", "sweep.json", ".lock", *runs, *(f"{run}.toml" for run in runs),
    }  # fmt: skip
    recipe = load_recipe(str(out / "kl-seed1.toml"))
    session.quantize(recipe, tmp_path / "run", Show(), Options())
    for name in ("student.safetensors", "recipe.toml", "metrics.jsonl", "images.png"):
        assert (out / "kl-seed1" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    assert (out / "kl-seed1" / "report.html").is_file()


def test_students_are_compared_on_images_of_all_generators(finished):
    out, _, _ = finished
    runs = [OpenedRun(out / f"{name}-seed1") for name in ("plain", "kl")]
    noise = torch.Generator().manual_seed(1 + criterion.NOISE)
    images = torch.cat([random_images(r.recipe, r.generator, 4, 500, noise) for r in runs])
    assert images.shape == (1000, 2, 8, 8)
    # Training the student moves no generator: of the same one, no image is there twice.
    assert all(map(torch.equal, *(r.generator.state_dict().values() for r in runs)))
    assert len(images.flatten(1).unique(dim=0)) == 1000
    measured = next(m for m in data_of(out)["measured"] if m["seed"] == 1)
    assert measured["images"] == 1000
    for name, run in zip(("plain", "kl"), runs, strict=True):
        with torch.no_grad():
            logits = [net.eval()(images).double().numpy() for net in (run.teacher, run.student)]
        p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in logits)
        found = (p * np.log(p / q)).sum(1).mean()
        assert measured["divergence"][name] == pytest.approx(found, rel=1e-6)
        assert measured["agreement"][name] == pytest.approx(
            100 * (p.argmax(1) == q.argmax(1)).mean()
        )


def test_images_are_none_that_training_drew(finished):
    run = OpenedRun(finished[0] / "plain-seed0")
    drawn, compared = (
        random_images(run.recipe, run.generator, 4, 16, torch.Generator().manual_seed(seed))
        for seed in (0, criterion.NOISE)
    )
    assert not torch.isclose(drawn, compared).all((1, 2, 3)).any()


def test_what_is_said(finished):
    out, _, said = finished
    content = data_of(out)
    group = content["groups"][0]
    assert group["chosen"] in ("plain", "kl")
    rows = {row["name"]: row for row in content["variants"]}
    other = "kl" if group["chosen"] == "plain" else "plain"
    assert rows[group["chosen"]]["divergence"]["mean"] < rows[other]["divergence"]["mean"]
    assert any(
        text.startswith(f"W4A4: {group['chosen']} diverges least on generated images")
        and text.endswith("top-1 was not used to choose")
        for text in said
    )
    assert [row["status"] for row in content["runs"]] == ["finished"] * 4
    page = (out / "sweep.html").read_text()
    assert 'href="plain-seed0/report.html"' in page


def test_what_is_over_is_kept(capsys, finished, no_more_runs):
    out, path, _ = finished
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.parent != out}
    code, said, _ = sweep(capsys, path, out)
    assert code == 0
    assert "4 of 4 runs are over already" in said
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.parent != out} == before
    # The file that was left says the same.
    assert sweep(capsys, out / "sweep.toml", out)[0] == 0


def test_variants_and_seeds_are_added(capsys, copied, file):
    before = {p: p.stat().st_mtime_ns for p in copied.glob("*-seed0/*")}
    text = TINY.replace("[0, 1]", "[0, 2]") + TWO + '[[variant]]\nname = "mse"\nact_ranges = "mse"'
    code, said, err = sweep(capsys, file(text), copied)
    assert code == 0, err
    assert "2 of 6 runs are over already" in said
    assert "run 4 of 4: mse-seed2" in said
    assert {p: p.stat().st_mtime_ns for p in before} == before
    content = data_of(copied)
    assert content["seeds"] == [0, 2]
    # The other students are compared anew, on images of all three generators.
    assert {m["seed"]: set(m["divergence"]) for m in content["measured"]} == {
        0: {"plain", "kl", "mse"},
        1: {"plain", "kl"},
        2: {"plain", "kl", "mse"},
    }
    assert [row["finished"] for row in content["variants"]] == [2, 2, 2]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"kl_only"', '"logit_mse"', "parts.objective is 'logit_mse', but the run in"),
        ("epochs = 3", "epochs = 4", "variant plain: training.epochs is 4, but the run in"),
        ('"tiny"', '"other"', "name is 'other', but the run in"),
        ("[[variant]]", "[recipe.bits]\nx = {weight = 3}\n[[variant]]", "bits is {'x'"),
    ],
)
def test_another_recipe_for_a_run_is_refused(capsys, finished, file, no_more_runs, old, new, told):
    out, _, _ = finished
    before = (out / "sweep.toml").read_bytes()
    code, _, err = sweep(capsys, file((TINY + TWO).replace(old, new, 1)), out)
    assert code == 2
    assert told in err
    assert "give the variant another name" in err
    assert (out / "sweep.toml").read_bytes() == before


def test_a_folder_that_no_sweep_made_is_refused(capsys, copied, finished):
    (copied / "kl-seed0.toml").unlink()
    code, _, err = sweep(capsys, finished[1], copied)
    assert code == 2
    assert "is not of a sweep" in err


class Signal(Show):
    """A progress that sends this process a signal after a step."""

    def __init__(self, signum):
        super().__init__(4, lambda: signal.raise_signal(signum))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_gone_on_with(capsys, finished, file, tmp_path, monkeypatch, signum):
    path = file(TINY + TWO)
    shows = [Show(), Signal(signum)]
    monkeypatch.setattr(COMMAND, "console_progress", lambda console: shows.pop(0))
    code, _, err = sweep(capsys, path, tmp_path / "out")
    assert code == 128 + signum
    assert f"to resume: gdfq sweep {path} --out {tmp_path / 'out'}" in err
    statuses = [row["status"] for row in data_of(tmp_path / "out")["runs"]]
    assert statuses == ["finished", "unfinished", "not started", "not started"]
    page = (tmp_path / "out" / "sweep.html").read_text()
    assert "kl, seed 0:</strong> This run has not finished" in page
    assert "2 runs not started yet" in page
    shows += (second := [Show() for _ in range(3)])
    assert sweep(capsys, path, tmp_path / "out")[0] == 0
    assert second[0].steps[0] == 5
    for run in ("plain-seed0", "kl-seed0", "plain-seed1", "kl-seed1"):
        name = f"{run}/student.safetensors"
        assert (tmp_path / "out" / name).read_bytes() == (finished[0] / name).read_bytes()
    measured = data_of(tmp_path / "out")["measured"]
    assert measured == data_of(finished[0])["measured"]


def test_a_failing_run_leaves_the_others_alone(capsys, file, tmp_path, monkeypatch):
    text = TINY + TWO + '[[variant]]\nname = "blown"\nstudent_lr = 1e30\n'
    path = file(text.replace("[0, 1]", "[0]"))
    code, said, _ = sweep(capsys, path, tmp_path / "out")
    assert code == 1
    assert re.search(r"blown-seed0: failed: the student('s weights| loss) became", said)
    content = data_of(tmp_path / "out")
    statuses = {run["variant"]: run["status"] for run in content["runs"]}
    assert statuses == {"plain": "finished", "kl": "finished", "blown": "failed"}
    assert content["groups"][0]["chosen"] is not None
    assert "runs came to a sound end: blown" in content["groups"][0]["note"]
    # It would fail again, so it is not tried again.
    monkeypatch.setattr(session, "start_or_resume", lambda *_: pytest.fail("again"))
    assert sweep(capsys, path, tmp_path / "out")[0] == 1


def test_a_run_that_cannot_be_done_is_tried_again(capsys, file, tmp_path, monkeypatch):
    path = file((TINY + TWO).replace("[0, 1]", "[0]"))
    start = session.start_or_resume

    def full(recipe, *rest):
        if recipe.parts.objective == "kl_only":
            raise MemoryError("no room")
        return start(recipe, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(session, "start_or_resume", full)
        code, said, err = sweep(capsys, path, tmp_path / "out")
    assert code == 1
    assert "warning: kl-seed0: MemoryError: no room" in err
    assert "kl-seed0: unfinished: MemoryError: no room" in said
    assert data_of(tmp_path / "out")["groups"][0]["chosen"] is None
    assert sweep(capsys, path, tmp_path / "out")[0] == 0


def test_students_that_cannot_be_compared(capsys, copied, finished):
    for path in copied.glob("kl-seed1/checkpoint-*"):
        path.unlink()
    content = data_of(copied)
    content["measured"] = []
    (copied / "sweep.json").write_text(json.dumps(content))
    code, _, err = sweep(capsys, finished[1], copied)
    assert code == 0
    assert "seed 1, W4A4, were not compared on generated images" in err
    content = data_of(copied)
    assert content["groups"][0]["note"] == "Not all students were compared on generated images."
    assert "were not compared on generated images" in (copied / "sweep.html").read_text()


def test_over_ray(capsys, finished, file, tmp_path):
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'gdfq[sweep]'")
    path = file((TINY + TWO).replace("[0, 1]", "[0]"))
    threads = torch.get_num_threads()  # rounding depends on them, and Ray gives a task its CPUs'
    try:
        ray.init(num_cpus=threads, include_dashboard=False, logging_level="warning")
    except Exception as error:  # it waits 30 seconds for itself, which a busy machine may exceed
        pytest.skip(f"ray does not start here: {error}")
    try:
        code, said, err = sweep(capsys, path, tmp_path / "out", "--ray", "--cpus-per-run", threads)
        assert code == 0, said + err
        code, _, err = sweep(capsys, file(TINY), tmp_path / "b", "--ray", "--gpus-per-run", 1)
        assert code == 2
        assert "no machine has the 1 CPUs and 1 GPUs that a run is to have" in err
    finally:
        ray.shutdown()
    for run in ("plain-seed0", "kl-seed0"):
        name = f"{run}/student.safetensors"
        assert (tmp_path / "out" / name).read_bytes() == (finished[0] / name).read_bytes()
    assert data_of(tmp_path / "out")["ray"]
    assert "times cannot be compared" in (tmp_path / "out" / "sweep.html").read_text()


class StandIn:
    """What a sweep uses of Ray, in this process: the first tasks end, others never do.

    ``wait`` sends this process SIGTERM when nothing is left that ends.
    """

    def __init__(self, ending, lost=(), gpus=0.0):
        self.ending, self.lost, self.gpus = ending, lost, gpus
        self.results, self.cancelled, self.given = [], [], {}
        self.exceptions = SimpleNamespace(RayError=LookupError)

    def is_initialized(self):
        return True

    def nodes(self):
        return [
            {"Alive": True, "Resources": {"CPU": 2.0, "GPU": self.gpus}},
            {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
        ]

    def remote(self, function):
        self.function = function
        return self

    def options(self, **given):
        self.given = given
        return SimpleNamespace(remote=self.submit)

    def submit(self, *arguments):
        number = len(self.results)
        runs = number < self.ending and number not in self.lost
        self.results.append(self.function(*arguments) if runs else None)
        return number

    def wait(self, references, num_returns=1, timeout=None):
        ready = [r for r in references if r < self.ending][:num_returns]
        if not ready and not self.cancelled:
            signal.raise_signal(signal.SIGTERM)
        return ready, [r for r in references if r not in ready]

    def get(self, reference):
        if reference in self.lost:
            raise LookupError("the machine is gone\nand a stack of its own")
        return self.results[reference]

    def cancel(self, reference):
        self.cancelled.append(reference)


def test_a_signal_stops_the_tasks_of_ray(capsys, file, tmp_path, monkeypatch):
    ray = StandIn(ending=1)
    monkeypatch.setitem(sys.modules, "ray", ray)
    path = file(TINY + TWO)
    code, _, err = sweep(capsys, path, tmp_path / "out", "--ray", "--cpus-per-run", 2)
    assert code == 128 + signal.SIGTERM
    assert "to resume: gdfq sweep" in err
    assert ray.cancelled == [1, 2, 3]
    assert ray.given == {"num_cpus": 2.0, "num_gpus": 0.0}
    statuses = [row["status"] for row in data_of(tmp_path / "out")["runs"]]
    assert statuses == ["finished", "not started", "not started", "not started"]


def test_a_task_that_ray_gives_up_leaves_the_others_alone(capsys, file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", ray := StandIn(ending=2, lost=[0], gpus=4.0))
    path = file((TINY + TWO).replace("[0, 1]", "[0]"))
    code, said, _ = sweep(capsys, path, tmp_path / "out", "--ray")
    assert code == 1
    assert "plain-seed0: unfinished: LookupError: the machine is gone\n" in said
    assert [row["status"] for row in data_of(tmp_path / "out")["runs"]] == [
        "unfinished", "finished",
    ]  # fmt: skip
    assert (ray.cancelled, ray.given["num_gpus"]) == ([], 1.0)
    # Of machines that are gone, no GPU counts.
    code, _, err = sweep(capsys, path, tmp_path / "out", "--ray", "--gpus-per-run", 8)
    assert code == 2
    assert "there are 2 and 4" in err


# ---- what it comes to ----


@pytest.mark.parametrize("values", [[93.1, 92.7, 93.6], [1.0, 1.0], [5.5]])
def test_mean_and_standard_deviation(values):
    found = spread([None, *values])
    assert found.n == len(values)
    assert found.mean == pytest.approx(np.mean(values))
    if len(values) == 1:
        assert found.std is None
    else:
        assert found.std == pytest.approx(np.std(values, ddof=1))
    assert spread([None, None]) is None


def test_paired_differences():
    ours, reference = {0: 93.0, 1: 92.0, 2: 94.0, 5: 1.0}, {0: 92.5, 1: 92.0, 2: 92.0, 7: 2.0}
    found = paired("plain", ours, reference)
    differences = [0.5, 0.0, 2.0]
    assert list(found.by_seed.values()) == pytest.approx(differences)
    assert (found.to, found.won, found.spread.n) == ("plain", 2, 3)
    assert found.spread.mean == pytest.approx(np.mean(differences))
    assert found.spread.std == pytest.approx(np.std(differences, ddof=1))
    assert paired("plain", ours, {9: 1.0}) is None


def made_up(top1, divergence, bits=(4,), seeds=(0, 1, 2), **changes):
    """A sweep of the variants in ``top1`` and ``divergence``, each a number per seed."""
    tables = {
        "recipe": load_recipe(RECIPE).model_dump(exclude_none=True),
        "seeds": list(seeds),
        "grid": {"widths": [{"weight_bits": b, "act_bits": b} for b in bits]},
        "variant": [{"name": name, "alpha": 1.0 + i} for i, name in enumerate(top1)],
    }
    plan = make_plan(tables, "made up", Path())
    runs, measured = [], []
    for run in plan.runs:
        i = seeds.index(run.seed)
        low = run.variant.recipe.quantization.weight_bits - 4
        row = RunRow(
            run.variant.name, run.seed, run.name, "finished", None, 94.22, 90.0 + i + low,
            top1[run.variant.table][i] + low, "10,000 test images of fashion-mnist", 600, 4.0,
            118.0 + i, report=True, environment="gdfq 0.1.0, torch 2.14, 2 threads",
        )  # fmt: skip
        runs.append(replace(row, **changes.get(run.name.replace("-", "_"), {})))
    for group, variants in plan.groups.items():
        for i, seed in enumerate(seeds):
            done = {
                v.name: (value := divergence[v.table][i])
                and value * 4 / v.recipe.quantization.weight_bits
                for v in variants
                if any((r.variant, r.seed, r.status) == (v.name, seed, "finished") for r in runs)
            }
            agreement = {name: 100 - 100 * (value or 1.0) for name, value in done.items()}
            measured.append(
                Comparison(group, seed, 1000, dict.fromkeys(done, "0"), done, agreement)
            )
    return summarize(plan, runs, measured)


TOP1 = {"plain": [93.4, 93.2, 93.7], "kl": [93.8, 93.1, 93.9], "mse": [92.0, 92.4, 91.7]}
DIVERGENCE = {"plain": [0.05, 0.06, 0.07], "kl": [0.06, 0.07, 0.08], "mse": [0.04, 0.08, 0.03]}


def test_the_choice_is_by_generated_images():
    # The one that is best on test images is not the one that diverges least.
    found = made_up(TOP1, DIVERGENCE)
    (group,) = found.groups
    assert (group.chosen, group.lowest, group.seeds) == ("w4a4-mse", 2, 3)
    # And whatever is measured on test images, the choice is the same.
    for top1 in ({**TOP1, "mse": [0.0] * 3}, {**TOP1, "kl": [100.0] * 3}):
        assert made_up(top1, DIVERGENCE).groups == found.groups


def test_the_choice_is_among_equal_bits():
    found = made_up(TOP1, DIVERGENCE, bits=(4, 3))
    assert [(g.name, g.chosen) for g in found.groups] == [
        ("W4A4", "w4a4-mse"),
        ("W3A3", "w3a3-mse"),
    ]
    assert [row.difference and row.difference.to for row in found.variants] == [
        None, "w4a4-plain", "w4a4-plain", None, "w3a3-plain", "w3a3-plain",
    ]  # fmt: skip


def test_dynamic_ranges_are_other_bits():
    recipe = load_recipe("fashion-mnist-resnet20-paper")
    labels = [
        label_of_bits(recipe.with_options({"dynamic_ranges": kind})) for kind in ("none", "both")
    ]
    assert labels == ["W4A4", "W4A4, dynamic_ranges = both"]


def test_bits_of_dynamic_ranges_count_what_they_cost(tmp_path):
    tables = {
        "recipe": "fashion-mnist-resnet20-paper", "seeds": [0],
        "variant": [{"name": "kept"}, {"name": "dynamic", "dynamic_ranges": "both"}],
    }  # fmt: skip
    plan = make_plan(tables, "here", tmp_path)
    found = []
    for run, kind in zip(plan.runs, ("none", "both"), strict=True):
        (tmp_path / run.name).mkdir()
        result = {
            "dynamic_ranges": kind, "average_weight_bits": 4.0, "effective_weight_bits": 9.5,
        }  # fmt: skip
        (tmp_path / run.name / "result.json").write_text(json.dumps(result))
        (tmp_path / run.name / "recipe.toml").write_text(run.recipe.to_toml())
        found.append(row_of(tmp_path, run).weight_bits)
    assert found == [4.0, 9.5]


def test_no_choice_before_all_runs_are_over():
    found = made_up(TOP1, DIVERGENCE, w4a4_kl_seed2={"status": "unfinished"})
    assert found.groups[0].chosen is None
    assert found.groups[0].note == "Chosen when all runs of these bits are over."


def test_a_variant_with_a_failed_run_is_no_candidate():
    found = made_up(TOP1, DIVERGENCE, w4a4_mse_seed2={"status": "failed", "reason": "NaN"})
    assert found.groups[0].chosen == "w4a4-plain"
    assert found.variants[2].finished == 2
    assert found.variants[2].difference.spread.n == 2
    # Nor is one whose logits are not finite.
    found = made_up(TOP1, {**DIVERGENCE, "mse": [0.04, None, 0.03]})
    assert found.groups[0].chosen == "w4a4-plain"
    assert found.groups[0].note.endswith("to a sound end: w4a4-mse.")
    two = {name: [None, 1.0, 1.0] for name in ("kl", "mse")}
    assert made_up(TOP1, {**DIVERGENCE, **two}).groups[0].chosen is None
    one = made_up({"plain": [1.0]}, {"plain": [1.0]}, seeds=(0,))
    assert one.groups[0].chosen is None
    assert one.groups[0].note == "There is one variant of these bits."


# ---- the page ----


def test_what_the_page_says():
    page = render(made_up(TOP1, DIVERGENCE))
    assert (
        "gdfq:resnet20, quantized without its training data in 3 variants, each with 3 seeds: 9"
        in page
    )
    assert "93.43 ± 0.25" in page  # of plain
    assert "+0.17 ± 0.25" in page  # of kl less plain
    assert "2 of 3" in page
    assert "the teacher&#39;s is 94.22 ± 0.00" in page
    assert page.count('<svg class="chart"') == 3
    assert page.count('class="chosen"') == 1


def test_a_sweep_that_has_not_begun():
    plan = make_plan({"recipe": RECIPE, "seeds": [0]}, "made up", Path())
    page = render(summarize(plan, [RunRow("base", 0, "base-seed0", "not started")], []))
    assert "1 run not started yet." in page
    assert 'id="plots"' not in page
    assert not re.search(r"\b(nan|None)\b", page.partition("<script>")[0])


def test_names_are_escaped():
    found = made_up(TOP1, DIVERGENCE)
    found.recipe = found.model = found.groups[0].name = found.groups[0].note = NASTY
    found.runs[0].status, found.runs[0].reason, found.notes = "failed", NASTY, [NASTY]
    found.variants[0].options["alpha"] = found.variants[0].group = NASTY
    page = render(found)
    assert "<script>throw" not in page
    assert "<img src=x" not in page


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    failed = {"status": "failed", "reason": "the student loss became nan", "after": None}
    long = (
        "a-variant-with-a-very-long-name-that-has-no-space-in-it-at-all-and-goes-on-and-on-and-on"
    )
    contents = {
        "one": made_up(TOP1, DIVERGENCE),
        "bits": made_up(TOP1, DIVERGENCE, bits=(4, 3), w4a4_kl_seed1=failed),
        "long": made_up(
            {long: [93.0] * 8, "b": [0.0] * 8}, {long: [0.1] * 8, "b": [9.0] * 8},
            seeds=tuple(range(8)),
        ),
        "bare": summarize(
            make_plan({"recipe": RECIPE, "seeds": [0]}, "made up", Path()),
            [RunRow("base", 0, "base-seed0", "not started")], [],
        ),
    }  # fmt: skip
    for name, content in contents.items():
        (folder / f"{name}.html").write_text(render(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["one", "bits", "long", "bare"])
@pytest.mark.parametrize("script", [True, False])
def test_a_phone_needs_no_sideways_scrolling(visit, name, script):
    page = visit(name, width=390, java_script_enabled=script)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert all(chart.is_visible() for chart in page.locator("svg.chart").all())


def test_the_table_sorts(visit):
    page = visit("one")
    table = page.locator("table.variants")
    names = table.locator("tbody th")
    assert names.first.inner_text().startswith("w4a4-plain")
    table.locator("thead button").nth(3).click()
    assert names.first.inner_text().startswith("w4a4-kl")
    table.locator("thead button").nth(7).click()
    assert names.first.inner_text().startswith("w4a4-mse")
    assert page.get_by_text("Point at a chart").count() == 0


@pytest.mark.parametrize("name", ["one", "bits", "long"])
def test_charts_stay_within_their_frame(visit, name):
    page = visit(name)
    for chart in page.locator("svg.chart").all():
        frame = chart.bounding_box()
        for part in chart.locator("path, rect, text").all():
            box = part.bounding_box()
            assert box["x"] >= frame["x"] - 1
            assert box["x"] + box["width"] <= frame["x"] + frame["width"] + 1
            assert box["y"] + box["height"] <= frame["y"] + frame["height"] + 1


@pytest.mark.parametrize("name", ["one", "bits"])
def test_printing_cuts_nothing(visit, name):
    page = visit(name)
    page.emulate_media(media="print")
    for millimetres, tables in ((180, "table"), (269, ".wide table")):
        width = int(millimetres / 25.4 * 96)
        page.set_viewport_size({"width": width, "height": 900})
        for table in page.locator(tables).all():
            wide = table.evaluate("t => t.closest('.wide') !== null")
            if table.is_visible() and (tables != "table" or not wide):
                box = table.bounding_box()
                assert box["x"] + box["width"] <= width + 1


@pytest.mark.parametrize("name", ["one", "bits", "bare"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility_rules(visit, name, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    results = axe.Axe().run(visit(name, color_scheme=scheme))
    assert results.response["violations"] == [], results.generate_report()
