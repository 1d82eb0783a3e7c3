import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import gdfq
from gdfq import cli, data
from gdfq.data.arrays import ArraySet
from gdfq.recipes import load_recipe
from gdfq.runs.run import Run
from gdfq.sources.registries import EMBEDDED_WEIGHTS

RECIPE = "fashion-mnist-resnet20"
SHORT = [
    "quantize", "--recipe", RECIPE, "--data", "none", "--width", "8", "--batch-size", "8",
    "--epochs", "3", "--steps-per-epoch", "2", "--warmup-epochs", "1", "--calibration-batches", "2",
    "--memory-format", "contiguous", "--no-report",
]  # fmt: skip


def gdfq_command(capsys, *arguments):
    """Exit code, standard output and standard error of the command, run in this process."""
    sys.argv = ["gdfq", *map(str, arguments)]
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def recipe_file(tmp_path):
    """Writes the embedded recipe with one piece of text replaced, and gives its path."""

    def write(old="", new=""):
        text = load_recipe(RECIPE).to_toml()
        assert old in text
        path = tmp_path / "changed.toml"
        path.write_text(text.replace(old, new, 1))
        return path

    return write


def test_a_run_leaves_everything_in_its_folder(capsys, tmp_path):
    code, out, _ = gdfq_command(
        capsys, *SHORT, "--weight-bits", 3, "--seed", 7, "--out", tmp_path / "run"
    )
    assert code == 0
    files = {p.name for p in (tmp_path / "run").iterdir()}
    assert files == {
        "recipe.toml", "environment.json", "metrics.jsonl", "student.safetensors", "images.png",
        "result.json", "checkpoint-6.safetensors",
    }  # fmt: skip
    recipe = load_recipe(str(tmp_path / "run" / "recipe.toml"))
    assert recipe.quantization.weight_bits == 3
    assert recipe.training.seed == 7
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [m["epoch"] for m in metrics] == [1, 2, 3]
    assert ["student" in m for m in metrics] == [False, True, True]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["finished"]
    assert result["steps"] == 6
    assert (
        json.loads((tmp_path / "run" / "environment.json").read_text())["torch"]
        == torch.__version__
    )
    assert Image.open(tmp_path / "run" / "images.png").size[0] > 300
    assert "epoch 3/3  fine-tuning" in out
    assert "images/s" in out
    assert "student, W3A4, after fine-tuning" in out
    # The saved student is the trained one, bit for bit.
    student = Run(tmp_path / "run").student
    stored = load_file(tmp_path / "run" / "student.safetensors")
    assert all(torch.equal(v, stored[k]) for k, v in student.state_dict().items())
    student(torch.randn(2, 1, 28, 28))


def test_same_seed_same_student(capsys, tmp_path):
    students, checkpoints = [], []
    for name, *options in (
        *(("a", "--seed", 3), ("c", "--seed", 4)),
        ("b", "--seed", 3, "--checkpoint-every", 0),
    ):
        folder = tmp_path / name
        code, *_ = gdfq_command(capsys, *SHORT, *options, "--out", folder)
        assert code == 0
        students.append((folder / "student.safetensors").read_bytes())
        checkpoints.append({p.stem for p in folder.glob("checkpoint-*")})
    assert students[0] == students[2]
    assert students[0] != students[1]
    # After every step, of which the last two stay, beside one at the end.
    assert checkpoints == [{"checkpoint-6"}, {"checkpoint-6"}, {"checkpoint-5", "checkpoint-6"}]


def test_the_folder_of_a_run_is_called_by_its_recipe_bits_and_seed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, *options in (
        ("w3a5-seed7", "--weight-bits", 3, "--act-bits", 5, "--seed", 7),
        ("w4a4-mixed-seed0", "--first-last-bits", 8),
    ):
        folder = Path("runs") / f"{RECIPE}-{name}"
        folder.mkdir(parents=True)
        (folder / "mine.txt").touch()
        code, _, err = gdfq_command(capsys, *SHORT, *options)
        assert code == 2
        assert f"{folder} " in err


@pytest.fixture
def small_test_set(monkeypatch):
    """The first 500 test images stand for all, to save time."""
    whole = data.open_test_set

    def shortened(*arguments):
        pictures = whole(*arguments)
        return ArraySet(pictures.name, pictures.images[:500], pictures.labels[:500])

    monkeypatch.setattr("gdfq.data.batches.open_test_set", shortened)


def test_training_reads_no_real_image(capsys, tmp_path, monkeypatch, small_test_set):
    measured = [*SHORT, "--data", "fashion-mnist"]
    code, out, _ = gdfq_command(capsys, *measured, "--out", tmp_path / "with")
    assert code == 0
    assert "500 test images" in " ".join(out.split())
    monkeypatch.setattr(data.fashion_mnist, "FOLDER", tmp_path / "nowhere")
    code, out, _ = gdfq_command(capsys, *measured, "--out", tmp_path / "without")
    assert code == 0
    assert "skipped: data: cannot read" in " ".join(out.split())
    names = ("student.safetensors", "images.png")
    for name in names:
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()


def test_nothing_that_trains_imports_the_data(tmp_path):
    program = (
        "import sys, gdfq\n"
        "assert 'gdfq.training' in sys.modules\n"
        "assert 'gdfq.data' not in sys.modules, 'gdfq.data was imported'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)


def test_evaluate_measures_the_teacher_and_the_student(capsys, tmp_path, small_test_set):
    gdfq_command(capsys, *SHORT, "--data", "fashion-mnist", "--out", tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    code, out, _ = gdfq_command(capsys, "evaluate", tmp_path / "run")
    assert code == 0
    assert f"{result['teacher']:.2f}%" in out
    assert f"{result['after']:.2f}%" in out
    assert result["after"] < result["teacher"]
    assert result["teacher"] >= 93.0


def test_recipes_lists_and_shows(capsys):
    code, out, _ = gdfq_command(capsys, "recipes")
    assert code == 0
    assert RECIPE in out
    code, out, _ = gdfq_command(capsys, "recipes", RECIPE)
    assert code == 0
    assert "weight_bits = 4" in out


def test_a_shown_recipe_is_a_recipe(capsys, recipe_file):
    assert load_recipe(str(recipe_file())) == load_recipe(RECIPE)


def test_version_and_info(capsys):
    assert gdfq_command(capsys, "--version")[1].strip() == f"gdfq {gdfq.__version__}"
    assert torch.__version__ in gdfq_command(capsys, "info")[1]


def test_a_loss_that_is_not_finite_ends_with_advice_and_the_last_student(capsys, tmp_path):
    code, _, err = gdfq_command(
        capsys, *SHORT, "--student-lr", "1e30", "--epochs", 6, "--out", tmp_path / "run"
    )
    assert code == 1
    assert "Lower student_lr" in err
    [line] = err.strip().splitlines()
    assert line.endswith(f"; the last good student is in {tmp_path / 'run'}")
    state = load_file(tmp_path / "run" / "student.safetensors")
    assert all(v.isfinite().all() for v in state.values())
    assert (
        "Lower student_lr" in json.loads((tmp_path / "run" / "result.json").read_text())["failure"]
    )


# ---- bad input: one line, exit code 2, nothing written ----


def changed_weights(tmp_path, change):
    state = load_file(EMBEDDED_WEIGHTS["builtin"][1])
    change(state)
    save_file(state, tmp_path / "changed.safetensors")
    return tmp_path / "changed.safetensors"


def nan_weights(tmp_path):
    return changed_weights(tmp_path, lambda s: s["layer1.0.conv1.weight"].fill_(float("nan")))


def missing_weights(tmp_path):
    return changed_weights(tmp_path, lambda s: s.pop("fc.bias"))


def garbage(tmp_path):
    (tmp_path / "garbage").write_bytes(os.urandom(100))
    return tmp_path / "garbage"


def used_folder(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").touch()
    return tmp_path / "used"


def below_a_file(tmp_path):
    (tmp_path / "file").touch()
    return tmp_path / "file" / "run"


OVERRIDES = {
    "bits of 1": (["--weight-bits", 1], "weight_bits: must be an int from 2 to 8, got 1"),
    "bits of 9": (["--act-bits", 9], "act_bits: must be an int from 2 to 8, got 9"),
    "schedule": (["--schedule", "warm"], "schedule: .*'step', 'cosine' or 'constant', got 'warm'"),
    "ste": (["--ste", "soft"], "ste: .*'identity' or 'clip', got 'soft'"),
    "learning rate": (["--student-lr", -1], "student_lr: must be a number > 0 and finite, got -1"),
    "learning rate nan": (
        ["--student-lr", "nan"],
        "student_lr: must be a number > 0 and finite, got nan",
    ),
    "momentum": (["--momentum", 1.5], "momentum: must be a number in \\[0, 1\\), got 1.5"),
    "batch of one": (["--batch-size", 1], "batch_size: must be an int >= 2, got 1"),
    "warm-up": (["--warmup-epochs", 99], "warmup_epochs: must be <= epochs = 3, got 99"),
    "image size": (["--image-size", 3], "image_size: must be an int >= 4, got 3"),
    "class count": (
        ["--num-classes", 12],
        r"weights: .* does not fit gdfq:resnet20: 'fc.weight' has shape \(10, 64\), not \(12, 64\)",
    ),
    "channels": (
        ["--channels", 3, *["--mean", 0] * 3, *["--std", 1] * 3],
        "'conv1.weight' has shape",
    ),
    "normalization": (["--mean", 0, "--mean", 1], r"mean: needs one entry .* 1 channels, got \(0"),
    "std of zero": (["--std", 0], "std: must be a list, each entry a number > 0 and finite, got "),
    "no weights": (["--weights", "none.safetensors"], "weights: there is no file none.safetensors"),
    "nan weights": (["--weights", nan_weights], "teacher: 'layer1.0.conv1.weight' holds NaN"),
    "missing weights": (
        ["--weights", missing_weights],
        "does not fit gdfq:resnet20: missing key 'fc.bias'",
    ),
    "garbage weights": (["--weights", garbage], "weights: .*garbage cannot be read: "),
    "used folder": (["--out", used_folder], "out: .*used exists and is not empty"),
    "unwritable folder": (["--out", below_a_file], "out: cannot write to .*: Not a directory"),
    "seed": (["--seed", 2**64], "seed: must be an int from 0 to 9223372036854775807"),
    "mean nan": (["--mean", "nan"], "mean: must be a list, each entry a finite number, got "),
    "network": (["--model", "gdfq:vgg"], "model: gdfq has no network 'vgg'"),
}


@pytest.mark.parametrize("case", OVERRIDES)
def test_bad_options(capsys, tmp_path, case):
    options, message = OVERRIDES[case]
    options = [o(tmp_path) if callable(o) else o for o in options]
    out = [] if "--out" in options else ["--out", tmp_path / "run"]
    code, _, err = gdfq_command(capsys, *SHORT, *options, *out)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert re.search(message, err), err
    assert not (tmp_path / "run").exists()


CHANGES = {
    "unknown key": (
        "[training]",
        "[training]\nlr = 1",
        "training.lr: unknown key; allowed are batch",
    ),
    "unknown table": (
        "[training]",
        "[tuning]\n[training]",
        "tuning: unknown key; allowed are name",
    ),
    "wrong type": (
        "weight_bits = 4",
        'weight_bits = "4"',
        "weight_bits: must be an int from 2 to 8, got '4'",
    ),
    "fraction": ("batch_size = 64", "batch_size = 6.5", "batch_size: must be an int >= 2, got 6.5"),
    "missing key": ('model = "gdfq:resnet20"\n', "", "teacher.model: missing"),
    "not TOML": ("[training]", "[training", "is not TOML"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_bad_recipes(capsys, tmp_path, recipe_file, case):
    old, new, message = CHANGES[case]
    path = recipe_file(old, new)
    code, _, err = gdfq_command(capsys, "quantize", "--recipe", path, "--out", tmp_path / "run")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert re.search(message, err), err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quantize", "--recipe", "resnet"], "recipe: 'resnet' is none of cifar10-resnet20, "),
        (["quantize", "--recipe", "none.toml"], "recipe: cannot read none.toml: No such file"),
        (["recipes", "resnet"], "recipe: 'resnet' is none of"),
        (["evaluate", "nowhere"], "run: nowhere is not a run folder"),
        (["quantize"], "recipe: name a recipe (see `gdfq recipes`), or a model to quantize"),
        (["quantize", "--recipe", RECIPE, "--bitwidth", "4"], "No such option: --bitwidth"),
        (["quantize", "--recipe", RECIPE, "--seed", "x"], "Invalid value for '--seed'"),
    ],
)
def test_bad_commands(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = gdfq_command(capsys, *arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_evaluate_a_broken_student(capsys, tmp_path):
    gdfq_command(capsys, *SHORT, "--out", tmp_path / "run")
    code, _, err = gdfq_command(capsys, "evaluate", tmp_path / "run")
    assert code == 2
    assert "names no data set" in err
    (tmp_path / "run" / "student.safetensors").write_bytes(b"broken")
    code, _, err = gdfq_command(capsys, "evaluate", tmp_path / "run")
    assert code == 2
    assert "run: cannot load" in err


def test_bench_prints_times_phases_and_what_is_fused(capsys):
    code, out, _ = gdfq_command(
        capsys, "bench", "--batch-size", 2, "--image-size", 8, "--steps", 1, "--no-memory",
        "--against", "plain",
    )  # fmt: skip
    assert code == 0
    assert re.search(r"plain PyTorch .* \d\.\d\d x", out)
    assert re.search(r"generator \d+%, teacher \d+%, student \d+%, .*convolutions \d+%", out)
    assert re.search(r"memory format: (channels_last|contiguous) \(a step in ", out)
    assert "19 of 21 batch norms and activations fused; layer2.0.downsample.1" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network", "alexnet"], "network: must be one of 'resnet20',.* got 'alexnet'"),
        (
            ["--against", "magic"],
            "against: must be one of 'plain', 'frozen', 'compile' or .* got 'magic'",
        ),
        (
            ["--against", "max-autotune", "--device", "cpu"],
            "against: 'max-autotune' needs a CUDA device, got cpu",
        ),
        (["--rival-precision", "fp4"], "rival_precision: must be one of .* got 'fp4'"),
        (["--device", "tpu"], "device: must be auto, cpu, or cuda where there is a GPU, got 'tpu'"),
        (["--image-size", "3"], "image_size: must be an int >= 4, got 3"),
        (["--batch-size", "1"], "batch_size: must be an int >= 2, got 1"),
        (["--weight-bits", "9"], "weight_bits: must be .* got 9"),
        (["--precision", "fp4"], "gdfq: precision: must be one of"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bench_refuses_what_it_cannot_do(capsys, arguments, message):
    code, _, err = gdfq_command(capsys, "bench", *arguments)
    assert code == 2
    assert re.search(message, err)


def test_a_run_records_the_memory_format_it_chose(capsys, tmp_path):
    code, out, _ = gdfq_command(
        capsys, *SHORT, "--memory-format", "auto", "--out", tmp_path / "run"
    )
    assert code == 0
    chosen = re.search(r"memory format: (\w+) \(a step in channels_last \S+ s", out)[1]
    recipe = load_recipe(str(tmp_path / "run" / "recipe.toml"))
    assert recipe.training.memory_format == chosen


def test_too_large_for_memory_is_one_line(capsys):
    code, _, err = gdfq_command(
        capsys, "bench", "--batch-size", 10**9, "--steps", 1, "--no-memory",
        "--memory-format", "contiguous",
    )  # fmt: skip
    assert code == 1
    assert re.search(r"^gdfq: not enough memory: .*allocate.*smaller batch_size", err, re.M)


def test_a_device_that_is_not_there(capsys, tmp_path):
    code, _, err = gdfq_command(capsys, *SHORT, "--device", "tpu", "--out", tmp_path / "run")
    assert code == 2
    assert "device: must be auto, cpu, or cuda where there is a GPU, got 'tpu'" in err
    assert not (tmp_path / "run").exists()


SIGNALS_ITSELF = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('imported')"
TELLS = "import signal\ndef main():\n    print(signal.getsignal(signal.SIGINT))"
IGNORE = "signal.signal(signal.SIGINT, signal.SIG_IGN)"


@pytest.mark.parametrize(
    ("before", "package", "code", "told"),
    [
        ("", SIGNALS_ITSELF, 130, r""),
        (IGNORE, SIGNALS_ITSELF, 0, r"imported\n.*(SIG_IGN|1)\n"),
        ("", "", 0, r".*default_int_handler.*\n"),
    ],
)
def test_ctrl_c_during_the_imports_ends_without_a_trace(tmp_path, before, package, code, told):
    """With a package of the same name in the place of this one, for a moment that is known."""
    (tmp_path / "gdfq").mkdir()
    (tmp_path / "gdfq" / "__init__.py").write_text(package)
    (tmp_path / "gdfq" / "cli.py").write_text(TELLS)
    root = Path(gdfq.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", f"import signal; {before}\nimport gdfq_command as c; c.main()"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    assert re.fullmatch(told, done.stdout)
    assert done.stderr == ""
