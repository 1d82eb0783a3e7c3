"""A run that is interrupted in any way ends as the one that is not."""

import errno
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import gdfq
from gdfq.files import locked, write_file
from gdfq.recipes import load_recipe
from gdfq.runs import session
from gdfq.runs.interrupts import Interrupted, Interrupts
from gdfq.runs.options import Options
from gdfq.runs.run import Run
from gdfq.sources.registries import EMBEDDED_WEIGHTS
from gdfq.training.checkpoint import checkpoint_path, checkpoints, read_checkpoint
from tests.cli.test_cli import RECIPE, SHORT, gdfq_command

STEPS = 6  # of the recipe: warm-up to 2, an epoch every 2
EVERY_STEP = Options(checkpoint_every=0)
NEVER = Options(checkpoint_every=1e9)


@pytest.fixture(scope="module")
def recipe():
    return load_recipe(RECIPE).with_options(
        {
            "data": "none", "width": 4, "latent_dim": 10, "batch_size": 4, "epochs": 3,
            "steps_per_epoch": 2, "warmup_epochs": 1, "calibration_batches": 1,
            "memory_format": "contiguous",
        }
    )  # fmt: skip


class Show:
    """A run's progress, as text; does something after a step."""

    def __init__(self, after=None, action=lambda: None):
        self.after = after
        self.action = action
        self.lines = []
        self.steps = []

    def on_step(self, trainer, losses):
        self.steps.append(trainer.steps_done)
        if trainer.steps_done == self.after:
            self.action()

    def on_status(self, text):
        self.lines.append(text)

    def on_warning(self, text):
        self.lines.append(f"warning: {text}")

    def __getattr__(self, name):
        return lambda *a: None


class Killed(BaseException):
    """Ends a run where it stands, as SIGKILL would."""


def kill():
    raise Killed


FILES = ("student.safetensors", "images.png", "metrics.jsonl", "recipe.toml")


def left(folder):
    """What a run leaves that is the same each time."""
    result = json.loads((folder / "result.json").read_text())
    result.pop("training_seconds")
    return {name: (folder / name).read_bytes() for name in FILES} | {"result": result}


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    session.quantize(recipe, folder, Show(), NEVER)
    return left(folder)


@pytest.mark.parametrize("after", range(1, STEPS + 1))
def test_killed_after_a_step(recipe, undisturbed, tmp_path, after):
    with pytest.raises(Killed):
        session.quantize(recipe, tmp_path / "run", Show(after, kill), EVERY_STEP)
    show = Show()
    session.resume(tmp_path / "run", show, NEVER)
    # The step of the kill has no checkpoint yet.
    assert show.steps == list(range(after, STEPS + 1))
    assert left(tmp_path / "run") == undisturbed


def test_killed_before_the_first_checkpoint(recipe, undisturbed, tmp_path):
    with pytest.raises(Killed):
        session.quantize(recipe, tmp_path / "run", Show(5, kill), NEVER)
    assert not checkpoints(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"epoch": 1}\n{"epo')
    show = Show()
    session.resume(tmp_path / "run", show, NEVER)
    assert show.steps[0] == 1
    assert left(tmp_path / "run") == undisturbed


def test_killed_at_any_write(recipe, undisturbed, tmp_path, monkeypatch):
    """Killed before and after each file is renamed, from one run to the next."""
    names = []
    replace = os.replace

    def die_at(target, after):
        def replaced(self, other):
            names.append(other.name)
            if after:
                replace(self, other)
            if len(names) == target:
                raise Killed
            if not after:
                replace(self, other)
            return other

        monkeypatch.setattr("pathlib.Path.replace", replaced)

    # A killed process does not clean up.
    monkeypatch.setattr("pathlib.Path.unlink", lambda self, missing_ok=False: None)
    folder = tmp_path / "run"
    die_at(2, after=False)
    with pytest.raises(Killed):
        session.quantize(recipe, folder, Show(), EVERY_STEP)
    for target in range(2, 9):
        names.clear()
        die_at(target, after=target % 2 == 0)
        try:
            session.resume(folder, Show(), EVERY_STEP)
        except Killed:
            continue
        break
    else:
        pytest.fail("the run never ended")
    monkeypatch.undo()
    assert {"student.safetensors", "images.png"} <= {p.name for p in folder.iterdir()}
    assert left(folder) == undisturbed


@pytest.mark.parametrize("name", ["student.safetensors", "images.png", "result.json"])
def test_killed_while_the_last_files_are_written(recipe, undisturbed, tmp_path, monkeypatch, name):
    folder = tmp_path / "run"

    def write(path, *parts):
        path.with_name(f".{path.name}.partial").write_bytes(b"half")
        if path.name == name:
            raise Killed
        write_file(path, *parts)

    monkeypatch.setattr("gdfq.runs.execution.write_file", write)
    monkeypatch.setattr("gdfq.runs.folder.write_file", write)
    with pytest.raises(Killed):
        session.quantize(recipe, folder, Show(), NEVER)
    monkeypatch.undo()
    show = Show()
    session.resume(folder, show, NEVER)
    assert not show.steps  # the last step's checkpoint comes before the files
    assert left(folder) == undisturbed
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_a_run_that_has_finished_is_not_run_again(recipe, undisturbed, tmp_path):
    folder = tmp_path / "run"
    session.quantize(recipe, folder, Show(), NEVER)
    times = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    show = Show()
    result = session.resume(folder, show, NEVER).result
    assert result.finished
    assert result.steps == STEPS
    assert not show.steps
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == times


@pytest.mark.parametrize(
    "damage", [lambda c: c[: len(c) // 2], lambda c: c[:-1] + bytes([c[-1] ^ 1]), lambda c: b""]
)
def test_a_corrupt_checkpoint_is_reported_and_the_previous_used(
    recipe, undisturbed, tmp_path, damage
):
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        session.quantize(recipe, folder, Show(5, kill), EVERY_STEP)
    path = checkpoint_path(folder, 4)
    path.write_bytes(damage(path.read_bytes()))
    show = Show()
    session.resume(folder, show, EVERY_STEP)
    assert [line for line in show.lines if str(path) in line and "corrupt" in line]
    assert show.steps == [4, 5, 6]
    assert left(folder) == undisturbed


def test_a_full_disk_is_reported_and_training_goes_on(recipe, undisturbed, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    full = []

    def write(path, *parts):
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_file(path, *parts)

    class Fills(Show):
        def on_step(self, trainer, losses):
            super().on_step(trainer, losses)
            full[:] = [True] if trainer.steps_done in (3, 4) else []

    for module in ("runs.execution", "runs.metrics", "runs.folder", "training.checkpoint"):
        monkeypatch.setattr(f"gdfq.{module}.write_file", write)
    show = Fills()
    session.quantize(recipe, folder, show, EVERY_STEP)
    warnings = [line for line in show.lines if line.startswith("warning")]
    assert len(warnings) == 2
    assert str(checkpoint_path(folder, 3)) in warnings[0]
    assert "No space left on device; checkpoint-2.safetensors is kept" in warnings[0]
    assert left(folder) == undisturbed


def test_metrics_that_a_full_disk_delayed(recipe, undisturbed, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    metrics = folder / "metrics.jsonl"
    kept = []

    class Fills(Show):
        def on_step(self, trainer, losses):
            if trainer.steps_done == 2:
                metrics.rename(folder / "away")
                metrics.mkdir()  # neither appended to nor replaced
            if trainer.steps_done == 3:
                metrics.rmdir()
                (folder / "away").rename(metrics)
                kept.append(metrics.read_text())

    show = Fills()
    session.quantize(recipe, folder, show, NEVER)
    assert kept == [""]
    assert any("cannot write" in line and "metrics.jsonl" in line for line in show.lines)
    assert left(folder) == undisturbed


def test_a_student_that_cannot_be_written_is_an_error_and_resumed(
    recipe, undisturbed, tmp_path, monkeypatch
):
    def full(path, *parts):
        if path.name == "student.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_file(path, *parts)

    monkeypatch.setattr("gdfq.runs.folder.write_file", full)
    with pytest.raises(OSError, match=r"student.safetensors"):
        session.quantize(recipe, tmp_path / "run", Show(), NEVER)
    monkeypatch.undo()
    session.resume(tmp_path / "run", Show(), NEVER)
    assert left(tmp_path / "run") == undisturbed


def test_a_run_that_failed_fails_again(recipe, tmp_path):
    failing = recipe.with_options({"student_lr": 1e30, "epochs": 6})
    with pytest.raises(gdfq.NonFiniteLossError) as first:
        session.quantize(failing, tmp_path / "run", Show(), EVERY_STEP)
    student = (tmp_path / "run" / "student.safetensors").read_bytes()
    with pytest.raises(gdfq.NonFiniteLossError) as second:
        session.resume(tmp_path / "run", Show(), EVERY_STEP)
    assert str(first.value) == str(second.value)
    assert (tmp_path / "run" / "student.safetensors").read_bytes() == student


# ---- signals ----


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", [1, 2, 3, 6])
def test_a_signal_leaves_a_checkpoint(recipe, undisturbed, tmp_path, signum, after):
    folder = tmp_path / "run"
    before = signal.getsignal(signum)
    interrupts = Interrupts(signal.SIGINT, signal.SIGTERM)
    show = Show(after, lambda: os.kill(os.getpid(), signum))
    with pytest.raises(Interrupted) as stopped:
        session.quantize(recipe, folder, show, NEVER, interrupts)
    assert stopped.value.exit_code == 128 + signum
    assert signal.getsignal(signum) is before
    assert show.steps[-1] == after
    assert read_checkpoint(checkpoint_path(folder, after))["trainer"]["steps_done"] == after
    result = json.loads((folder / "result.json").read_text())
    assert (result["steps"], result["finished"]) == (after, False)
    if after > 2:
        Run(folder).student(torch.randn(2, 1, 28, 28))
    else:
        assert not (folder / "student.safetensors").exists()
    session.resume(folder, Show(), NEVER)
    assert left(folder) == undisturbed


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_while_measuring_ends_it_at_once(recipe, tmp_path, monkeypatch, when):
    calls = []

    def measure(self, model):
        calls.append(type(model).__name__)
        if len(calls) == {"before": 1, "after": 2}[when] and not resumed:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
            pytest.fail("measuring went on")
        return 50.0

    resumed = []
    monkeypatch.setattr("gdfq.runs.accuracy.Measure.__call__", measure)
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        session.quantize(recipe, folder, Show(), NEVER, Interrupts(signal.SIGTERM))
    resumed.append(True)
    result = session.resume(folder, Show(), NEVER).result
    assert (result.before, result.after, result.teacher) == (50.0, 50.0, 50.0)
    monkeypatch.undo()
    session.quantize(recipe, tmp_path / "other", Show(), NEVER)
    for name in FILES:
        assert (folder / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_second_signal_ends_at_once_and_ignored_ones_stay_ignored():
    own = signal.getsignal(signal.SIGINT), signal.signal(signal.SIGTERM, signal.SIG_IGN)
    noticed = []
    try:
        with Interrupts(
            signal.SIGINT, signal.SIGTERM, notice=lambda: noticed.append(True)
        ) as interrupts:
            os.kill(os.getpid(), signal.SIGTERM)
            assert interrupts.arrived is None
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupts.arrived == signal.SIGINT
            assert noticed == [True]
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # the system's: it kills
            with pytest.raises(Interrupted, match="SIGINT"), interrupts.at_once():
                pytest.fail("a signal that has arrived is raised first")
        assert signal.getsignal(signal.SIGINT) is own[0]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, own[1])


def test_a_signal_and_a_loss_that_is_not_finite(recipe, tmp_path):
    """The failure counts: there is nothing sound to go on from."""
    failing = recipe.with_options({"student_lr": 1e30, "epochs": 6})
    show = Show(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(gdfq.NonFiniteLossError):
        session.quantize(failing, tmp_path / "run", show, NEVER, Interrupts(signal.SIGTERM))
    assert not checkpoints(tmp_path / "run")
    state = load_file(tmp_path / "run" / "student.safetensors")
    assert all(value.isfinite().all() for value in state.values())


def command(*arguments):
    return [sys.executable, "-m", "gdfq", *map(str, arguments)]


def start(*arguments):
    return subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, process):
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_leaves_with_a_line_that_says_how_to_go_on(tmp_path, signum, code):
    folder = tmp_path / "a run"
    process = start(*SHORT, "--epochs", 1000, "--out", folder)
    metrics = folder / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 2, process)
    process.send_signal(signum)
    _, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "Traceback" not in err
    again = f"to resume: gdfq quantize --resume '{folder}'"
    assert err.splitlines()[-1] == f"gdfq: stopped by {signum.name} and saved in {folder}; {again}"
    assert checkpoints(folder)
    assert (folder / "student.safetensors").exists()


@pytest.mark.thorough
def test_killed_for_real(tmp_path, capsys):
    """SIGKILL in the midst of training and of writing, three times; resumed by the command."""
    long = [*SHORT, "--epochs", "8"]
    code, *_ = gdfq_command(capsys, *long, "--out", tmp_path / "whole")
    assert code == 0
    folder = tmp_path / "killed"
    process = start(*long, "--checkpoint-every", 0, "--out", folder)
    for step in (3, 8, 13):
        wait_for(
            lambda step=step: any(
                (folder / f"{dot}checkpoint-{step}.safetensors{end}").exists()
                for dot, end in (("", ""), (".", ".partial"))
            ),
            process,
        )
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        process = start("quantize", "--resume", folder, "--checkpoint-every", 0)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "resuming after step" in out
    assert left(folder) == left(tmp_path / "whole")


# ---- what cannot be resumed ----


@pytest.fixture(scope="module")
def stopped(recipe, tmp_path_factory):
    """A run stopped after step 3; to be copied."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Killed):
        session.quantize(recipe, folder, Show(4, kill), EVERY_STEP)
    return folder


def test_other_options_with_resume(capsys, stopped):
    code, _, err = gdfq_command(
        capsys, "quantize", "--resume", stopped, "--seed", 3, "--weight-bits", 3, "--recipe", "x"
    )
    assert code == 2
    assert "leave out --recipe, --weight-bits, --seed" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "nowhere"], "resume: nowhere is not a run folder: it has no recipe.toml"),
        (["--recipe", RECIPE, "--checkpoint-every", "-1"], "checkpoint_every: must be .* got -1"),
        (["--recipe", RECIPE, "--checkpoint-every", "nan"], "checkpoint_every: must be .* got nan"),
    ],
)
def test_bad_commands(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = gdfq_command(capsys, "quantize", *arguments)
    assert code == 2
    assert re.search(message, err)
    assert not list(tmp_path.iterdir())


def test_another_process_is_at_it(stopped):
    with (
        locked(stopped / "recipe.toml"),
        pytest.raises(gdfq.InputError, match="resume: another process is running in"),
    ):
        session.resume(stopped, Show(), NEVER)


def test_another_teacher(recipe, tmp_path):
    weights = tmp_path / "weights.safetensors"
    shutil.copy(EMBEDDED_WEIGHTS["builtin"][1], weights)
    changed = recipe.with_options({"weights": str(weights)})
    with pytest.raises(Killed):
        session.quantize(changed, tmp_path / "run", Show(4, kill), EVERY_STEP)
    state = load_file(weights)
    state["fc.bias"] += 1
    save_file(state, weights)
    with pytest.raises(gdfq.InputError, match="resume: the teacher's weights are not those"):
        session.resume(tmp_path / "run", Show(), NEVER)


def test_a_recipe_that_was_changed_to_another_network(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("width = 4", "width = 6"))
    with pytest.raises(gdfq.InputError, match=r"state: generator\..* has shape"):
        session.resume(tmp_path / "run", Show(), NEVER)


def test_another_torch_is_warned_of(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    path = tmp_path / "run" / "environment.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "torch": "1.0"}))
    show = Show()
    session.resume(tmp_path / "run", show, NEVER)
    warned = [line for line in show.lines if line.startswith("warning")]
    assert len(warned) == 1
    assert f"torch was '1.0' when the run began and is '{torch.__version__}' now" in warned[0]


# ---- TensorBoard ----


def events(folder):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    accumulator.Reload()
    scalars = {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }
    images = {
        tag: [event.step for event in accumulator.Images(tag)]
        for tag in accumulator.Tags()["images"]
    }
    return scalars, images


def test_tensorboard_has_every_step_once(recipe, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setattr("gdfq.runs.accuracy.Measure.__call__", lambda self, model: 50.0)
    logged = {"tensorboard": True}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    session.quantize(recipe, whole, Show(), Options(checkpoint_every=1e9, **logged))
    with pytest.raises(Killed):  # checkpoints of step 3 and 4, epochs of step 2 and 4
        session.quantize(recipe, killed, Show(5, kill), Options(checkpoint_every=0, **logged))
    checkpoint_path(killed, 4).unlink()  # so that the epoch of step 4 is logged again
    session.resume(killed, Show(), Options(checkpoint_every=1e9, **logged))
    scalars, images = events(whole / "tensorboard")
    assert (scalars, images) == events(killed / "tensorboard")
    metrics = [json.loads(line) for line in (whole / "metrics.jsonl").open()]
    for tag, key in (("loss/generator", "generator"), ("learning_rate/student", "student_lr")):
        assert scalars[tag] == [(m["step"], pytest.approx(m[key])) for m in metrics]
    assert [step for step, _ in scalars["loss/student"]] == [4, 6]
    assert scalars["top-1/before"] == [(3, 50.0)]
    assert scalars["top-1/after"] == scalars["top-1/teacher"] == [(7, 50.0)]
    assert images == {"generated": [2, 4, 6]}
    # Logging changes nothing else.
    session.quantize(recipe, tmp_path / "quiet", Show(), NEVER)
    assert left(whole) == left(tmp_path / "quiet")


def test_tensorboard_that_is_not_installed(capsys, tmp_path, monkeypatch):
    find = gdfq.runs.tensorboard.importlib.util.find_spec
    monkeypatch.setattr(
        "gdfq.runs.tensorboard.importlib.util.find_spec",
        lambda name: None if name == "tensorboard" else find(name),
    )
    code, _, err = gdfq_command(capsys, *SHORT, "--tensorboard", "--out", tmp_path / "run")
    assert code == 2
    assert "tensorboard: needs the package tensorboard; pip install 'gdfq[tensorboard]'" in err
    assert not (tmp_path / "run").exists()


# ---- memory ----


def test_tensors_and_files_do_not_pile_up(recipe, tmp_path):
    """As many live tensors after 60 steps as after 20, with a checkpoint at each."""
    counts = {}

    class Counts(Show):
        def on_step(self, trainer, losses):
            if trainer.steps_done in (20, 60):
                gc.collect()
                counts[trainer.steps_done] = sum(
                    issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()
                )
                counts["files"] = len(os.listdir(tmp_path / "run"))

    longer = recipe.with_options({"epochs": 31, "warmup_epochs": 5})
    session.quantize(longer, tmp_path / "run", Counts(), EVERY_STEP)
    assert counts[20] == counts[60]
    assert counts["files"] == 5  # recipe, environment, metrics and two checkpoints
