"""The examples run, each as a program of its own, with tiny settings."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gdfq

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*command, cwd):
    """What the program printed; it must end well and warn of nothing."""
    path = os.pathsep.join([str(Path(gdfq.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    given = {"PYTHONPATH": path, "PYTHON": sys.executable, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd,
        env={**os.environ, **given},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def example(name, *arguments, cwd):
    done = run(sys.executable, "-W", "error::UserWarning", EXAMPLES / name, *arguments, cwd=cwd)
    return done.stdout


def test_qat_drop_in(tmp_path):
    out = example(
        "qat_drop_in.py", "--epochs", 1, "--images", 600, "--weight-bits", 5, cwd=tmp_path
    )
    assert re.fullmatch(
        r"float32: [\d.]+% of 2,000 test images\nW5A4: [\d.]+% of 2,000 test images\n", out
    )


def test_own_model(tmp_path):
    out = example(
        "own_model.py", "--images", 400, "--epochs", 2, "--out", "s.safetensors", "--report",
        "r.html", cwd=tmp_path,
    )  # fmt: skip
    assert re.search(r"student after fine-tuning +[\d.]+% +W3A3", out)
    assert "40 steps" in out
    assert "the student's logits, bit for bit" in out
    assert {path.name for path in tmp_path.iterdir()} == {"s.safetensors", "r.html"}


def test_microbenchmark(tmp_path):
    out = example("microbenchmark.py", "--shape", 2, 3, 4, "--repeats", 2, cwd=tmp_path)
    assert out.startswith("(2, 3, 4) on ")
    assert len(re.findall(r"(?:gdfq|plain), \w.* [\d.]+ ms +[\d.]+ G elements/s", out)) == 4


SHORT = [
    "--recipe", "fashion-mnist-resnet20", "--data", "none", "--width", 8, "--batch-size", 8,
    "--epochs", 2, "--steps-per-epoch", 1, "--warmup-epochs", 1, "--calibration-batches", 1,
    "--memory-format", "contiguous", "--device", "cpu",
]  # fmt: skip


@pytest.mark.thorough
def test_torchrun(tmp_path):
    script = EXAMPLES / "torchrun.sh"
    run(script, 2, "run", *SHORT, cwd=tmp_path)
    assert '"processes": 2' in (tmp_path / "run" / "environment.json").read_text()
    # Called again it goes on, here at the end.
    again = run(script, 2, "run", *SHORT, cwd=tmp_path)
    assert "student, W4A4, after fine-tuning" in again.stdout
    few = subprocess.run([script, "2"], capture_output=True, text=True)
    assert (few.returncode, few.stderr[:6]) == (2, "usage:")


def test_train_teacher_explains_itself(tmp_path):
    assert "--bf16" in example("train_teacher.py", "--help", cwd=tmp_path)
