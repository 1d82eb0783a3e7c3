"""The command on networks and data sets from elsewhere, end to end and small."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from gdfq.nn import QConv2d
from gdfq.recipes import load_recipe
from gdfq.runs.run import Run
from gdfq.sources import load_teacher
from tests.cli.test_cli import gdfq_command
from tests.data.test_data import CLASSES, cifar_file, class_folders

NETS = """
from torch import nn

def make_net(num_classes=30):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )

class Switch(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x

def make_branching(num_classes=30):
    net = make_net(num_classes)
    net.insert(3, Switch())
    return net
"""
SHORT = [
    "--width", 8, "--batch-size", 8, "--epochs", 2, "--steps-per-epoch", 2, "--warmup-epochs", 1,
    "--calibration-batches", 2, "--memory-format", "contiguous", "--no-report",
]  # fmt: skip


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A module of one's own in the working directory."""
    (tmp_path / "cli_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv("GDFQ_DATA", raising=False)
    yield tmp_path
    sys.modules.pop("cli_nets", None)


OWN = ["quantize", "--model", "cli_nets:make_net", "--image-size", 9]


def test_a_network_of_one_s_own_without_a_recipe(capsys, nets):
    code, out, err = gdfq_command(
        capsys, *OWN, "--weights", "random", *SHORT, "--seed", 3, "--out", "run"
    )
    assert code == 0, err
    assert "cli_nets:make_net, 9x9, with the constants of cifar10-resnet20" in out
    assert "weights: random ones; good for trying out" in out
    assert "mean and std: ImageNet's, because cli_nets:make_net does not say" in out
    recipe = load_recipe("run/recipe.toml")
    assert recipe.name == "cli-nets-make-net"
    assert recipe.teacher.model_dump(exclude_none=True) == {
        "model": "cli_nets:make_net", "weights": "random", "data": "none", "num_classes": 30,
        "image_size": 9, "channels": 3, "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225), "resize": 9, "crop": "center", "interpolation": "bilinear",
    }  # fmt: skip
    assert recipe.training.student_lr == load_recipe("cifar10-resnet20").training.student_lr
    run = Run(nets / "run")
    teacher, student = run.teacher, run.student
    assert student(torch.zeros(2, 3, 9, 9)).shape == (2, 30)
    # The first 20 classes, ten images of each.
    width, height = Image.open("run/images.png").size
    assert (height - 4) / 20 == 54 + 4
    assert width > 10 * (54 + 4)
    # The recipe that was written repeats the run.
    code, *_ = gdfq_command(capsys, "quantize", "--recipe", "run/recipe.toml", "--out", "again")
    assert code == 0
    files = [(nets / run / "student.safetensors").read_bytes() for run in ("run", "again")]
    assert files[0] == files[1]
    again = Run(nets / "again").teacher.state_dict()
    assert all(torch.equal(v, again[k]) for k, v in teacher.state_dict().items())


def test_a_module_that_cannot_be_traced_is_left_in_float(capsys, nets):
    own = ["--model", "cli_nets:make_branching", "--image-size", 9, "--weights", "random", *SHORT]
    code, _, err = gdfq_command(capsys, "quantize", *own, "--out", "run")
    assert code == 2
    assert re.search(r"cli_nets\.py:\d+.*x\.sum\(\) > 0.*--leaf-modules PATH", err), err
    code, _, err = gdfq_command(capsys, "quantize", *own, "--leaf-modules", 33, "--out", "run")
    assert code == 2
    assert "leaf_modules: the model has no module '33'" in err
    own += ["--leaf-modules", 3]
    code, _, err = gdfq_command(capsys, "quantize", *own, "--out", "run")
    assert code == 0, err
    assert load_recipe("run/recipe.toml").quantization.leaf_modules == ("3",)
    student = Run(nets / "run").student
    assert type(student.get_submodule("3.conv")) is torch.nn.Conv2d
    assert isinstance(student.get_submodule("4"), QConv2d)
    own.remove("--no-report")
    code, out, err = gdfq_command(
        capsys, "suggest-bits", *own, "--budget", 3, "--steps", 1, "--batches", 1, "--out", "b.toml"
    )
    assert code == 0, err
    assert "3.conv" not in out
    assert load_recipe("b.toml").quantization.leaf_modules == ("3",)


def test_its_own_weights_from_a_file_measured_on_cifar(capsys, nets):
    with torch.random.fork_rng():
        network = load_teacher("cli_nets:make_net", "random", num_classes=10, image_size=32).network
    save_file(network.state_dict(), nets / "w.safetensors")
    raw, images = cifar_file(count=10)
    (nets / "sets" / "cifar-10-batches-py").mkdir(parents=True)
    (nets / "sets" / "cifar-10-batches-py" / "test_batch").write_bytes(raw)
    code, out, err = gdfq_command(
        capsys, "quantize", "--model", "cli_nets:make_net", "--weights", "w.safetensors",
        "--num-classes", 10, "--data", "cifar10", "--data-path", "sets", *SHORT, "--out", "run",
    )  # fmt: skip
    assert code == 0, err
    assert "10 test images of cifar10" in " ".join(out.split())
    spec = load_recipe("run/recipe.toml").teacher
    assert spec.weights == str(nets / "w.safetensors")
    assert spec.data_path == str(nets / "sets")
    assert (spec.image_size, spec.mean) == (32, (0.4914, 0.4822, 0.4465))
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)
    hits = (network(x).argmax(1) == torch.arange(10)).float().mean()
    result = json.loads((nets / "run" / "result.json").read_text())
    assert result["teacher"] == pytest.approx(100 * float(hits))
    code, out, _ = gdfq_command(capsys, "evaluate", "run")
    assert code == 0
    assert f"{result['teacher']:.2f}%" in out
    assert f"{result['after']:.2f}%" in out


def test_a_missing_data_set_only_skips_the_evaluation(capsys, nets, monkeypatch):
    monkeypatch.setenv("GDFQ_DATA", str(nets / "nowhere"))
    arguments = [*OWN, "--weights", "random", *SHORT, "--data", "imagenet", "--out", "run"]
    code, out, _ = gdfq_command(capsys, *arguments)
    assert code == 0
    told = "".join(out.split())
    warning = "accuracywillnotbemeasured:data:thereis"
    assert warning in told.partition("execution:")[0]  # before training
    assert f"skipped:data:thereisno{nets}/nowhere/imagenet;" in told
    assert (nets / "run" / "student.safetensors").is_file()
    code, _, err = gdfq_command(capsys, "evaluate", "run")
    assert code == 2
    assert f"data: there is no {nets}/nowhere/imagenet; set data_path or GDFQ_DATA" in err


def test_photographs_with_several_right_classes(capsys, nets):
    (nets / "photographs").mkdir()
    for number in range(3):
        picture = Image.fromarray(np.full((9, 9, 3), 80 * number, np.uint8))
        picture.save(nets / "photographs" / f"{number}.png")
    rows = [f"{number}.png\t{'0-999' if number else '0'}\n" for number in range(3)]
    (nets / "photographs" / "labels.tsv").write_text("picture\tclasses\n" + "".join(rows))
    options = ["--weights", "random", "--num-classes", 1000, *SHORT, "--workers", 0]
    options += ["--data", "photographs", "--data-path", ".", "--out", "run"]
    code, _, err = gdfq_command(capsys, *OWN, *options)
    assert code == 0, err
    result = json.loads((nets / "run" / "result.json").read_text())
    assert result["evaluation"] == "3 test images of photographs"
    assert result["teacher"] in (pytest.approx(200 / 3), 100)
    code, out, err = gdfq_command(capsys, "evaluate", "run", "--workers", 0)
    assert code == 0, err
    assert f"{result['after']:.2f}%" in out
    assert "top-1 on 3 test images of photographs" in " ".join(out.split())


def test_evaluate_on_another_data_set(capsys, nets):
    options = ["--weights", "random", "--num-classes", 3, *SHORT, "--out", "run"]
    assert gdfq_command(capsys, *OWN, *options)[0] == 0
    code, _, err = gdfq_command(capsys, "evaluate", "run")
    assert code == 2
    assert "names no data set" in err
    class_folders(nets / "pictures")
    code, out, err = gdfq_command(
        capsys, "evaluate", "run", "--data", "imagenet", "--data-path", "pictures", "--workers", 2
    )
    assert code == 0, err
    assert "top-1 on 6 test images of imagenet" in " ".join(out.split())
    shares = [float(share) for share in re.findall(r"([\d.]+)%", out)]
    assert all(np.isclose(share * 6 / 100, round(share * 6 / 100), atol=0.01) for share in shares)
    assert err == ""
    for name, number in zip(CLASSES, (8, 9, 10), strict=True):
        (nets / "pictures" / name).rename(nets / "pictures" / str(number))
    code, numbered, err = gdfq_command(
        capsys, "evaluate", "run", "--data", "imagenet", "--data-path", "pictures", "--workers", 0
    )
    assert code == 0
    assert re.match(
        "warning: class folders in the order of their numbers, 8 before 10, where .* 10 first$", err
    )
    assert re.findall(r"([\d.]+)%", numbered) == [f"{share:.2f}" for share in shares]


def test_the_installed_command_finds_the_working_directory(nets):
    """As ``python -m gdfq`` has it, and without that."""
    program = "import sys; sys.path.pop(0); from gdfq.cli import main; main()"
    arguments = [str(a) for a in [*OWN, "--weights", "random", *SHORT, "--out", "run"]]
    path = os.pathsep.join(p for p in sys.path if p)
    subprocess.run(
        [sys.executable, "-c", program, *arguments, "--epochs", "0", "--warmup-epochs", "0"],
        check=True, cwd=nets, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert (nets / "run" / "result.json").is_file()


@pytest.mark.parametrize(
    ("name", "kind", "norms"),
    [
        ("efficientnet_lite0", "BatchNormAct2d", 49),
        ("resnet18d", "BatchNorm2d", 22),
        ("mobilenetv3_large_100", "BatchNormAct2d", 46),
    ],
)
def test_a_network_of_timm_by_the_default_recipe(capsys, monkeypatch, tmp_path, name, kind, norms):
    pytest.importorskip("timm")
    # The search for ranges takes the time: among fewer it is the same search.
    for module in ("act_ranges", "weight_ranges"):
        monkeypatch.setattr(f"gdfq.training.start.{module}.CANDIDATES", 4)
    run = tmp_path / "run"
    code, out, err = gdfq_command(
        capsys, "quantize", "--model", f"timm:{name}", "--weights", "random", "--num-classes", 10,
        "--image-size", 32, "--data", "none", *SHORT, "--steps-per-epoch", 1, "--batch-size", 2,
        "--calibration-batches", 1, "--checkpoint-every", 1000, "--out", run,
    )  # fmt: skip
    assert code == 0, err
    assert "bn_reestimate=True" in out
    opened = Run(run)
    network, student = opened.teacher, opened.student
    found = {n: m for n, m in network.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert len(found) == norms
    assert {type(m).__name__ for m in found.values()} == {kind}
    for path, norm in found.items():
        corrected = student.get_submodule(path)
        assert not torch.equal(corrected.running_mean, norm.running_mean), path
        assert corrected.running_var.isfinite().all()
    if name == "resnet18d":
        # Answers of random weights at 4 bits hang by a rounding, and are not compared.
        _, out, err = gdfq_command(capsys, "export", run, "--images", 4)
        assert "22 x Conv, int8" in out
        assert re.fullmatch(
            r"(.*: ([\w ]+: [\d.]+% equal predictions, below 99.9%(; )?)*)?", err.strip()
        )


BAD = {
    "typo": (["--model", "torchvision:resnet81"], "near matches: resnet18"),
    "no file": (["--model", "gdfq:resnet20", "--weights", "w.pt"], "there is no file w.pt"),
    "no size": (
        ["--model", "cli_nets:make_net", "--weights", "random"],
        "image_size: cli_nets:make_net does not say which images it takes",
    ),
    "data": (
        [*OWN[1:], "--weights", "random", "--data", "mnist"],
        "data: .*'imagenet', 'photographs' or 'none'",
    ),
    "workers": (
        [*OWN[1:], "--weights", "random", "--workers", -1],
        "Invalid value for '--workers'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line(capsys, nets, case):
    arguments, message = BAD[case]
    if "torchvision" in str(arguments):
        pytest.importorskip("torchvision")
    code, _, err = gdfq_command(capsys, "quantize", *arguments, "--out", "run")
    assert code == 2
    assert re.search(message, err), err
    assert len(err.strip().splitlines()) == 1
    assert not (nets / "run").exists()
