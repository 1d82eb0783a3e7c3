"""gdfq.quantize: the run of the command line, and its result in Python."""

import gc
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import gdfq
from gdfq.recipes import load_recipe
from gdfq.runs.execution import Execution
from gdfq.runs.options import Options
from gdfq.training.checkpoint import checkpoints
from tests.cli.test_cli import gdfq_command
from tests.helpers.tiny import tiny_teacher
from tests.nn.test_given import Inner, halved

SHORT = {
    "width": 8, "latent_dim": 10, "batch_size": 8, "epochs": 3, "steps_per_epoch": 2,
    "warmup_epochs": 1, "calibration_batches": 2, "memory_format": "contiguous",
    "mean": (0.5, 0.5), "std": (0.25, 0.25),
}  # fmt: skip


def quantize(model=None, num_classes=4, image_size=8, **options):
    """A short run of the tiny network, which warns of nothing."""
    model = tiny_teacher() if model is None else model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return gdfq.quantize(
            model, num_classes, image_size, **{**SHORT, "progress": False, **options}
        )


@pytest.fixture(scope="module")
def batches():
    """Batches of noise, with the tiny network's own answers to the first half as labels."""
    images = torch.randn(20, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = tiny_teacher()(images).argmax(1)
    labels[10:] = (labels[10:] + 1) % 4
    return DataLoader(TensorDataset(images, labels), 6)


@pytest.fixture(scope="module")
def result(batches):
    return quantize(evaluate=batches, weight_bits=3, seed=5)


def test_labels_with_several_right_classes(batches):
    images = torch.cat([images for images, _ in batches])
    own = F.one_hot(tiny_teacher()(images).argmax(1), 4).bool()
    labels = own.clone()
    labels[:5] = ~own[:5]
    labels[5:10] = True
    found = quantize(evaluate=DataLoader(TensorDataset(images, labels), 6))
    assert found.metrics["teacher"] == 75
    right = labels.gather(1, found.student(images).argmax(1, keepdim=True))
    assert found.metrics["after"] == 100 * int(right.sum()) / 20


def test_student_and_numbers(result, batches):
    assert isinstance(result.student, gdfq.convert.QuantizedModel)
    assert not result.student.training
    images = torch.cat([images for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    assert torch.equal(result.teacher(images), tiny_teacher()(images))
    numbers = result.metrics
    assert numbers["teacher"] == 50.0
    hits = (result.student(images).argmax(1) == labels).float().mean()
    assert numbers["after"] == pytest.approx(100 * float(hits))
    assert 0 <= numbers["before"] <= 100
    assert (numbers["weight_bits"], numbers["act_bits"]) == (3, 4)
    assert numbers["evaluation"] == "20 images given as batches"
    assert numbers["finished"]
    assert numbers["steps"] == 6
    assert numbers["float_bytes"] == sum(
        value.numel() * value.element_size() for value in tiny_teacher().state_dict().values()
    )
    assert [record["epoch"] for record in result.history] == [1, 2, 3]
    assert result.recipe.quantization.weight_bits == 3
    assert result.recipe.training.seed == 5
    assert result.images.size[0] > 300


def test_a_table_in_text_and_in_a_notebook(result):
    text = repr(result)
    for shown in ("sequential, seed 5", "teacher", "50.00%", "W3A4", "float32", "kB", "6 steps"):
        assert shown in text
    assert "20 images given" in text
    page = result._repr_html_()
    assert page.count("<tr>") == 4
    assert "<td>50.00%</td>" in page
    assert "not measured" not in page


def test_it_is_the_run_of_the_command_line(capsys, tmp_path):
    own = quantize("gdfq:resnet20", 4, 9, **{
        **SHORT, "weights": "random", "mean": None, "std": None,
        "out": tmp_path / "python", "recipe": "cifar10-resnet20", "data": "none", "progress": True,
    })  # fmt: skip
    arguments = []
    for key in ("width", "latent_dim", "batch_size", "epochs", "steps_per_epoch", "warmup_epochs",
                "calibration_batches", "memory_format"):  # fmt: skip
        arguments += [f"--{key.replace('_', '-')}", SHORT[key]]
    code, _, err = gdfq_command(
        capsys, "quantize", "--recipe", "cifar10-resnet20", "--model", "gdfq:resnet20",
        "--weights", "random", "--num-classes", 4, "--image-size", 9, "--data", "none",
        *arguments, "--device", "cpu", "--out", tmp_path / "command",
    )  # fmt: skip
    assert code == 0, err
    for name in ("recipe.toml", "student.safetensors", "metrics.jsonl", "images.png"):
        files = [(tmp_path / run / name).read_bytes() for run in ("python", "command")]
        assert files[0] == files[1], name
    assert own.metrics["after"] is None
    assert gdfq.open_run(tmp_path / "command").student.state_dict().keys() == (
        own.student.state_dict().keys()
    )


def test_the_caller_s_network_and_random_numbers_stay_as_they_are():
    model = tiny_teacher().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    result = quantize(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # In evaluation mode and the same weights, it is the same teacher.
    again = quantize(model.eval()).student.state_dict()
    assert all(torch.equal(v, again[k]) for k, v in result.student.state_dict().items())


def test_a_function_measures_and_cannot_disturb(batches):
    seen = []

    def share(network):
        seen.append(network)
        network.train()(torch.randn(4, 2, 8, 8))
        for parameter in network.parameters():
            parameter.zero_()
        return torch.tensor(12.5)

    measured = quantize(evaluate=share)
    assert len({id(network) for network in seen}) == 3  # teacher, before, after
    assert {measured.metrics[key] for key in ("teacher", "before", "after")} == {12.5}
    assert measured.metrics["evaluation"] == "by share"
    plain = quantize().student.state_dict()
    assert all(torch.equal(v, plain[k]) for k, v in measured.student.state_dict().items())


@pytest.mark.parametrize(("suffix", "format"), [("pt2", None), ("bin", "safetensors")])
def test_export(result, tmp_path, suffix, format):
    for _ in range(2):  # it is replaced
        written = result.export(tmp_path / f"net.{suffix}", format, images=7)
    assert written.difference == 0
    assert "7 of the images given" in str(written)
    assert f"{(tmp_path / f'net.{suffix}').stat().st_size:,} bytes" in repr(written)


def test_export_to_onnx(result, tmp_path):
    pytest.importorskip("onnxruntime")
    written = result.export(tmp_path / "net.onnx")
    assert written.faithful
    assert written.parities[0].images == 20
    assert written.parities[0].agreement == 100
    generated = gdfq.open_run(result.folder, tiny_teacher()).export(tmp_path / "net.onnx", images=9)
    assert "9 generated images" in str(generated)


def test_a_file_that_answers_otherwise_is_warned_of(result, tmp_path, monkeypatch):
    monkeypatch.setattr("gdfq.export.files.difference", lambda *networks: 0.5)
    with pytest.warns(UserWarning, match=r"logits, to 0\.5"):
        result.export(tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["net"],
            "format: must be one of 'onnx', 'pt2' or 'safetensors', where net does not end in one",
        ),
        (["net.pt2", "pth"], "format: must be one of 'onnx', 'pt2' or 'safetensors', got 'pth'"),
    ],
)
def test_export_to_nothing(result, arguments, message):
    with pytest.raises(gdfq.InputError, match=message):
        result.export(*arguments)


def test_report(result, tmp_path):
    assert result.report() == result.folder / "report.html"
    page = (result.folder / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "50.00%" in page
    assert "Confusion" in page
    # Of a folder whose network nobody knows, from what was measured; and measured again.
    opened = gdfq.open_run(result.folder, tiny_teacher())
    assert opened.report(tmp_path / "a.html").read_text() == page
    (result.folder / "report.json").unlink()
    assert "50.00%" in opened.report(tmp_path / "b.html").read_text()
    with pytest.raises(gdfq.InputError, match="out: cannot write"):
        result.report(tmp_path / "none" / "c.html")


def test_save_and_load(result, tmp_path):
    result.save(tmp_path / "small.safetensors")
    images = torch.randn(4, 2, 8, 8)
    with pytest.raises(gdfq.InputError, match="names no network to import: give the float network"):
        gdfq.load(tmp_path / "small.safetensors")
    loaded = gdfq.load(tmp_path / "small.safetensors", tiny_teacher())
    assert torch.equal(loaded(images), result.student(images))
    assert (tmp_path / "small.safetensors").stat().st_size == result.metrics["packed_bytes"]


FACTORY = """
from torch import nn
from tests.helpers.tiny import tiny_teacher

def make():
    network = tiny_teacher()
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return network

def other():
    network = make()
    network[2] = nn.ReLU6()
    return network

def narrow():
    return tiny_teacher(channels=1)
"""


@pytest.fixture
def factory(tmp_path, monkeypatch):
    (tmp_path / "api_nets.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "api_nets:make"
    sys.modules.pop("api_nets", None)


def test_with_a_factory_the_folder_needs_nothing_else(capsys, factory, tmp_path):
    network = tiny_teacher()
    options = {**SHORT, "progress": False, "factory": factory, "leaf_modules": ("3",)}
    with pytest.warns(UserWarning, match=r"81\.82% of the weights stay in float, the largest 3\."):
        result = gdfq.quantize(network, 4, 8, out="run", **options)
    result.save("small.safetensors")
    images = torch.randn(4, 2, 8, 8)
    expected = result.student(images)
    assert torch.equal(gdfq.load("small.safetensors")(images), expected)
    (tmp_path / "run").rename(tmp_path / "moved")
    opened = gdfq.open_run("moved")
    assert torch.equal(opened.student(images), expected)
    assert torch.equal(opened.teacher(images), network(images))
    code, _, err = gdfq_command(capsys, "export", "moved", "--format", "safetensors")
    assert code == 0, err
    # The recipe that was written repeats the run, from where it is now.
    code, _, err = gdfq_command(capsys, "quantize", "--recipe", "moved/recipe.toml", "--out", "2")
    assert code == 0, err
    again = load_file("2/student.safetensors")
    assert all(torch.equal(v, again[k]) for k, v in opened.student.state_dict().items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other", "api_nets:other makes another network: its logits differ for the same weights"),
        ("narrow", r"api_nets:narrow makes another network: size mismatch for 0\.weight"),
        ("none", "api_nets has no 'none'"),
    ],
)
def test_a_factory_of_another_network(factory, tmp_path, name, message):
    with pytest.raises(gdfq.InputError, match=message):
        quantize(factory=f"api_nets:{name}", out="run")
    assert not (tmp_path / "run").exists()


def test_without_a_factory_the_folder_asks_for_the_network(capsys, tmp_path):
    result = quantize(out=tmp_path / "run")
    assert (tmp_path / "run" / "recipe.toml").read_text().count("memory:Sequential")
    for command in ("evaluate", "export", "inspect"):
        code, _, err = gdfq_command(capsys, command, tmp_path / "run")
        assert code == 2
        assert "the network Sequential was given in Python" in err
        assert "factory='package.module:function'" in err
    with pytest.raises(gdfq.InputError, match="was given in Python"):
        gdfq.open_run(tmp_path / "run")
    fresh = tiny_teacher()
    for parameter in fresh.parameters():  # only its architecture counts
        nn.init.ones_(parameter)
    opened = gdfq.open_run(tmp_path / "run", fresh)
    images = torch.randn(4, 2, 8, 8)
    assert torch.equal(opened.student(images), result.student(images))
    assert torch.equal(opened.teacher(images), result.teacher(images))
    with pytest.raises(gdfq.InputError, match="does not fit Sequential"):
        gdfq.open_run(tmp_path / "run", tiny_teacher(5))


# ---- folders ----


def test_a_temporary_folder_goes_with_the_result():
    result = quantize()
    folder = result.folder
    assert (folder / "student.safetensors").exists()
    del result
    gc.collect()
    assert not folder.exists()


def test_a_temporary_folder_goes_when_nothing_began(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(gdfq.InputError):
        quantize(num_classes=7)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists(tmp_path):
    (tmp_path / "empty").mkdir()
    quantize(out=tmp_path / "empty")
    with pytest.raises(gdfq.InputError, match=r"out: .*empty exists and is not empty"):
        quantize(out=str(tmp_path / "empty"))
    (tmp_path / "file").touch()
    with pytest.raises(gdfq.InputError, match=r"out: cannot write to .*file"):
        quantize(out=tmp_path / "file")


# ---- interruptions ----


def interrupting(monkeypatch, after, action):
    """Does something after a step."""
    step = Execution.on_step

    def on_step(self, trainer, losses):
        step(self, trainer, losses)
        if trainer.steps_done == after:
            action()

    monkeypatch.setattr(Execution, "on_step", on_step)


def test_ctrl_c_leaves_what_is_there(monkeypatch, tmp_path):
    undisturbed = quantize().student.state_dict()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with monkeypatch.context() as patch:
        interrupting(patch, 4, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(
            KeyboardInterrupt, match=r"stopped by SIGINT and saved in .*gdfq\.resume"
        ) as stop:
            quantize()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    [folder] = tmp_path.iterdir()
    assert str(folder) in str(stop.value)
    assert checkpoints(folder)
    part = gdfq.open_run(folder, tiny_teacher())
    assert part.metrics["steps"] == 4
    assert "not finished" in repr(part)
    done = gdfq.resume(folder, tiny_teacher(), progress=False)
    assert done.metrics["finished"]
    assert all(torch.equal(v, undisturbed[k]) for k, v in done.student.state_dict().items())
    del part, done
    gc.collect()
    assert folder.exists()


def test_a_second_ctrl_c_is_the_caller_s(monkeypatch):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    interrupting(monkeypatch, 4, twice)
    with pytest.raises(KeyboardInterrupt) as info:
        quantize()
    assert "resume" not in str(info.value)


def test_in_another_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(quantize()))
    thread.start()
    thread.join()
    assert results[0].metrics["finished"]


@pytest.mark.parametrize("out", [None, "run", "file"])
def test_an_error_before_the_folder_exists_is_the_one_that_is_seen(monkeypatch, tmp_path, out):
    def broken(*arguments):
        raise ZeroDivisionError("a bug")

    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("gdfq.runs.session.build_teacher", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        quantize(out=out and tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_evaluate_that_fails_at_the_end_loses_nothing(tmp_path):
    calls = []

    def share(network):
        calls.append(network)
        if len(calls) == 3:
            raise OSError("no data any more")
        return 50

    with (
        pytest.raises(OSError, match="no data any more"),
        pytest.warns(UserWarning, match="the run did not finish but is saved in .*gdfq.resume"),
    ):
        gdfq.quantize(tiny_teacher(), 4, 8, **SHORT, evaluate=share, progress=False,
                      out=tmp_path / "run")  # fmt: skip
    done = gdfq.resume(tmp_path / "run", tiny_teacher(), progress=False, evaluate=lambda n: 25)
    assert done.metrics["after"] == done.metrics["teacher"] == 25
    assert done.metrics["before"] == 50


@pytest.mark.parametrize("function", [gdfq.quantize, gdfq.resume])
def test_the_defaults_are_those_of_a_run_s_options(function):
    parameters = inspect.signature(function).parameters
    for name in {"checkpoint_every", "workers", "tensorboard"} & parameters.keys():
        assert parameters[name].default == Options.model_fields[name].default


def test_a_loss_that_is_not_finite(tmp_path):
    with pytest.raises(gdfq.NonFiniteLossError, match=f"the last good student is in {tmp_path}"):
        quantize(student_lr=1e30, epochs=6, out=tmp_path / "run")


# ---- wrong inputs ----


def flat(side):
    """Takes images of one size only."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * side * side, 4),
    )  # fmt: skip


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = tiny_teacher()

    def forward(self, x):
        return self.body(x) if x.sum() > 0 else self.body(-x)


def meta():
    with torch.device("meta"):
        return flat(8)


USUAL = {"mean": None, "std": None}


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (tiny_teacher, {"num_classes": 7}, "num_classes: 7 given, but Sequential .* has 4 classes"),
        (tiny_teacher, {"num_classes": "4"}, "teacher.num_classes: must be an int >= 2, got '4'"),
        (tiny_teacher, {"num_classes": 1}, "teacher.num_classes: must be an int >= 2"),
        (lambda: flat(8), {"image_size": 9, **USUAL}, "does not take images of 3x9x9 .channels"),
        (tiny_teacher, {"image_size": None}, "image_size: Sequential does not say which images"),
        (tiny_teacher, {"image_size": (8, 8)}, "teacher.image_size: must be an int >= 4, got .8"),
        (tiny_teacher, {"image_size": 2}, "teacher.image_size: must be an int >= 4"),
        (tiny_teacher, {"channels": 3, **USUAL}, "does not take images of 3x8x8"),
        (tiny_teacher, {"mean": [0.5]}, "mean: needs one entry for each of the 2 channels"),
        (tiny_teacher, {"weight_bit": 3}, "weight_bit: no .* key; near matches: weight_bits"),
        (tiny_teacher, {"weight_bits": 9}, "gdfq.quantize: quantization.weight_bits: .* got 9"),
        (
            tiny_teacher,
            {"weight_bits": 4.0},
            "quantization.weight_bits: must be an int from 2 to 8, got 4.0",
        ),
        (tiny_teacher, {"warmup_epochs": 9}, "training.warmup_epochs: must be <= epochs"),
        (tiny_teacher, {"bits": {"nothing.*": {"weight": 8}}}, "nothing"),
        (tiny_teacher, {"bits": ["0=w8"]}, "bits: must be a dict like"),
        (tiny_teacher, {"weights": "w.pt"}, "weights: are for a model given by name"),
        (tiny_teacher, {"recipe": "cifar"}, "recipe: 'cifar' is none of"),
        (tiny_teacher, {"recipe": 3}, "recipe: must be a name, a path or a Recipe, got a int"),
        (tiny_teacher, {"device": "tpu"}, "device: must be auto, cpu, or cuda"),
        (tiny_teacher, {"progress": "no"}, "progress: must be True, False or 'auto', got 'no'"),
        (tiny_teacher, {"checkpoint_every": -1}, "checkpoint_every: must be"),
        (tiny_teacher, {"data": "cifar10"}, "data: cifar10 has 10 classes, Sequential has 4"),
        (meta, USUAL, r"model: 0\.weight is on the meta device, .*: load the weights"),
        (lambda: nn.Sequential(nn.LazyConv2d(3, 3)), {}, "has no shape yet: call the network on"),
        (lambda: tiny_teacher, {}, "model: must be an nn.Module or one of .*, got a function"),
        (lambda: nn.Conv2d, {}, "model: must be an nn.Module or one of .*, got a type"),
        (lambda: None, {}, "recipe: name a recipe .*, or a model to quantize"),
        (lambda: "gdfq:resnet20", {"factory": "a:b"}, "factory: is for a model that is given as"),
        (lambda: "torchvision:resnet", USUAL, "torchvision has no network 'resnet'; near"),
        (lambda: "memory:Net", {}, "the network Net was given in Python"),
        (tiny_teacher, {"bits": {"*": 4}}, r"^gdfq\.quantize: bits\.\*: must be a table, got 4$"),
        (Branching, {}, r"x\.sum\(\) > 0"),
        (lambda: gdfq.quantize_model(tiny_teacher()), {}, "model: is quantized already"),
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 8), nn.Flatten()), {}, "teacher: has no batch-norm"),
    ],
)
def test_wrong_inputs(tmp_path, model, given, message):
    options = {"num_classes": 4, "image_size": 8, **SHORT, "progress": False, **given}
    with pytest.raises(gdfq.InputError, match=message):
        gdfq.quantize(model(), out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_path_is_one(result):
    for call in (gdfq.open_run, gdfq.resume):
        with pytest.raises(gdfq.InputError, match=r"^folder: must be a path, got 3$"):
            call(3)
    with pytest.raises(gdfq.InputError, match=r"^out: must be a path, got 3$"):
        gdfq.quantize(tiny_teacher(), 4, 8, out=3, progress=False)
    for write in (result.export, result.save, result.report):
        with pytest.raises(gdfq.InputError, match=r"^path: must be a path, got 3$"):
            write(3)


IMAGES, LABELS = torch.zeros(3, 2, 8, 8), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ([], "there is no batch"),
        (iter([(IMAGES, LABELS)]), "an iterator can be read once"),
        ([IMAGES], "must be batches of .images, labels.: .*; got a Tensor"),
        ([(IMAGES, [0, 0, 0])], "labels are a list"),
        ([(IMAGES[..., :7], LABELS)], r"got images \(3, 2, 8, 7\) of torch.float32"),
        ([((IMAGES * 255).byte(), LABELS)], "of torch.uint8"),
        ([(IMAGES, LABELS.float())], r"got labels \(3,\) of torch.float32"),
        ([(IMAGES, LABELS + 4)], "labels must be 0 to 3, got 4 to 4"),
        ([(IMAGES, LABELS[:, None].repeat(1, 4))], r"got labels \(3, 4\) of torch.int64"),
        ([(IMAGES, torch.eye(3, 5).bool())], r"got labels \(3, 5\) of torch.bool"),
        ([(IMAGES, torch.zeros(3, 4).bool())], "labels must have one right class or more for each"),
        (3, "batches of .images, labels. or a function of a network, got a int"),
        (lambda network: None, "must return top-1 in percent, got a NoneType"),
        (lambda network: 101, "must return top-1 in percent, 0 to 100, got 101"),
    ],
)
def test_evaluate_that_does_not_measure(tmp_path, evaluate, message):
    with pytest.raises(gdfq.InputError, match=f"^evaluate: .*{message}"):
        quantize(evaluate=evaluate, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_nobody_said_is_warned_of():
    options = {**SHORT, "mean": None, "std": None}
    with pytest.warns(UserWarning, match="gdfq: mean and std: 0.5 and 0.25, because Sequential"):
        result = gdfq.quantize(tiny_teacher(), None, 8, **options, progress=False)
    assert result.recipe.teacher.num_classes == 4
    assert result.recipe.teacher.channels == 2


def test_wrapped_and_half_precision_networks():
    plain = quantize().student.state_dict()
    for model in (nn.DataParallel(tiny_teacher()), torch.compile(tiny_teacher())):
        found = quantize(model)
        assert found.recipe.teacher.model == "memory:Sequential"
        assert all(torch.equal(v, plain[k]) for k, v in found.student.state_dict().items())
    half = quantize(tiny_teacher().bfloat16())
    assert next(half.student.parameters()).dtype == torch.float32


@contextmanager
def float64_by_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def test_in_inference_mode_it_is_the_same_run(batches, result):
    with torch.inference_mode():
        found = quantize(evaluate=batches, weight_bits=3, seed=5)
    state = result.student.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in found.student.state_dict().items())
    assert found.metrics["after"] == result.metrics["after"]


def test_with_float64_by_default_all_is_float32(batches, tmp_path):
    model = tiny_teacher()
    with float64_by_default():
        for parts in ({}, {"replay_batches": 2, "mix_probability": 0.4, "equalize": True}):
            found = quantize(model, evaluate=batches, **parts)
        colors = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "progress": False}
        with pytest.warns(UserWarning, match="weights: random"):
            named = gdfq.quantize("gdfq:resnet20", 4, 9, weights="random", **{**SHORT, **colors})
        assert found.export(tmp_path / "student.onnx").faithful
        assert found.export(tmp_path / "student.pt2").faithful
    for made in (found, named):
        values = made.student.state_dict().values()
        assert {v.dtype for v in values if v.is_floating_point()} == {torch.float32}
        assert all(v.isfinite().all() for v in values)
    assert found.metrics["teacher"] == 50.0
    assert found.metrics["before"] is not None


def test_a_network_that_normalizes_in_place_is_measured_and_exported(tmp_path):
    model, pure = Inner(halved).eval(), Inner(lambda x: (x - 0.5) / 0.25).eval()
    images = torch.rand(40, 2, 8, 8)
    with torch.no_grad():
        batches = [(images, pure(images).argmax(1))]
    kept = images.clone()
    options = {"weight_bits": 8, "act_bits": 8, "student_lr": 1e-6, "evaluate": batches}
    found, expected = quantize(model, **options), quantize(pure, **options)
    assert found.metrics["teacher"] == 100.0
    assert found.metrics["after"] >= 90
    assert [found.metrics[key] for key in ("before", "after")] == (
        [expected.metrics[key] for key in ("before", "after")]
    )
    for suffix in ("onnx", "pt2"):
        assert found.export(tmp_path / f"student.{suffix}").faithful
    program = torch.export.load(tmp_path / "student.pt2").module()
    with torch.no_grad():
        for network in (found.student, program):
            assert torch.equal(network(images), expected.student(images))
    assert torch.equal(images, kept)


class OneNormTwice(nn.Module):
    """A norm behind two layers, whose outputs have different means and deviations."""

    def __init__(self):
        super().__init__()
        self.c1, self.n1 = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.c2, self.n2 = nn.Conv2d(8, 8, 3, padding=1), self.n1
        self.c3, self.n3 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.n1(self.c1(x)).relu()
        x = self.n2(3 * self.c2(x) + 2).relu()
        return 20 * self.fc(self.n3(self.c3(x)).relu().mean((2, 3)))


def test_a_norm_that_is_called_twice_is_reestimated_for_both_calls():
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = OneNormTwice()
        for _ in range(20):
            model(torch.randn(64, 2, 8, 8))
    shares = []
    for reestimated in (True, False):
        found = quantize(
            model.eval(), weight_bits=8, act_bits=8, student_lr=1e-6, bn_reestimate=reestimated
        )
        images = torch.cat([x for x, _ in found.check_images(256).batches])
        with torch.no_grad():
            same = found.student(images).argmax(1) == found.teacher(images).argmax(1)
        shares.append(float(same.float().mean()))
    assert shares[0] >= 0.95
    assert shares[1] >= 0.9


class Calls(nn.Module):
    """Layers called as functions, and nothing else with a weight."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.kernel = nn.Parameter(torch.randn(6, 2, 3, 3) / 4)
        self.norm = nn.BatchNorm2d(6)
        self.matrix = nn.Parameter(torch.randn(4, 6))

    def forward(self, x):
        x = nn.functional.relu(self.norm(nn.functional.conv2d(x, self.kernel, padding=1)))
        return nn.functional.linear(x.mean((2, 3)), 2 * self.matrix)


def test_a_network_without_layers(tmp_path):
    result = quantize(Calls(), channels=2, bits={"linear_weight": {"weight": 8}})
    assert result.metrics["average_weight_bits"] == (4 * 108 + 8 * 24) / 132
    assert "W4.73A4" in repr(result)
    assert result.export(tmp_path / "student.onnx").faithful
    result.save(tmp_path / "packed")
    images = torch.randn(8, 2, 8, 8)
    assert torch.equal(gdfq.load(tmp_path / "packed", Calls())(images), result.student(images))


def test_a_tensor_under_two_names(tmp_path):
    model = tiny_teacher()
    model.register_parameter("again", model[-1].weight)
    result = quantize(model, out=tmp_path / "run")
    assert gdfq.open_run(tmp_path / "run", model).metrics == result.metrics


def test_constants_when_no_recipe_is_named(monkeypatch):
    made = []
    monkeypatch.setattr("gdfq.api._run", lambda run, folder: made.append(run.args[0]) or 1 / 0)
    for size in (32, 224):
        with pytest.raises(ZeroDivisionError):
            gdfq.quantize(tiny_teacher(), 4, size)
    with pytest.raises(ZeroDivisionError):
        gdfq.quantize(
            tiny_teacher(), 4, 32, recipe=load_recipe("cifar10-resnet20-paper"), act_bits=3
        )
    small, large, paper = made
    default = load_recipe("cifar10-resnet20")
    assert small.training == default.training
    assert small.quantization == default.quantization
    assert small.name == "sequential"
    assert small.description == "memory:Sequential, 32x32, with the constants of cifar10-resnet20"
    assert large.training == load_recipe("imagenet-resnet18-quick").training
    assert paper.training == load_recipe("cifar10-resnet20-paper").training
    assert paper.quantization.act_bits == 3
    assert paper.teacher.weights is paper.teacher.mean is None
    assert paper.teacher.data == "none"


def test_lines_where_there_is_no_terminal(capsys):
    quantize(progress="auto")
    out = capsys.readouterr().out
    assert "epoch 3/3  fine-tuning" in out
    quantize(progress=False)
    assert not capsys.readouterr().out


TYPED = """
import gdfq, torch
from torch import nn

result: gdfq.Run = gdfq.quantize(nn.Identity(), 10, 32, weight_bits=3)
logits: torch.Tensor = result.student(torch.zeros(1))
result.save("a")
gdfq.quantize(nn.Identity(), 10, 32, weight_bit=3)
gdfq.quantize(nn.Identity(), 10, 32, weight_bits="3")
gdfq.quantize(nn.Identity(), 10, 32, ste="none")
"""


def test_a_type_checker_knows_the_options(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "use.py").write_text(TYPED)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--ignore-missing-imports", "--follow-imports=silent",
         "--cache-dir", tmp_path / "cache", tmp_path / "use.py"],
        capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "MYPYPATH": os.path.dirname(os.path.dirname(gdfq.__file__))},
    )  # fmt: skip
    lines = [line.split(":")[1] for line in done.stdout.splitlines() if ": error:" in line]
    assert lines == ["8", "9", "10"], done.stdout + done.stderr


def test_the_result_on_disk_is_json(result):
    json.dumps(result.metrics)


class Upsampling(nn.Module):
    """A network most of whose weights are in a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 64, 3)
        self.scale = nn.Parameter(torch.ones(64, 1, 1))
        self.position = nn.Parameter(torch.zeros(64, 10, 10))
        self.spare = nn.Conv3d(2, 2, 3)
        self.fc = nn.Linear(64, 4)

    def forward(self, x):
        x = self.up(nn.functional.relu(self.norm(self.conv(x)))) * self.scale + self.position
        return self.fc(nn.functional.relu(x).mean((2, 3)))


def test_weights_in_float_are_counted_and_said(tmp_path):
    model = Upsampling().eval()
    with pytest.warns(
        UserWarning, match=r"92\.\d+% of the weights stay in float.* up.weight .*4,608"
    ):
        result = gdfq.quantize(model, 4, 8, **{**SHORT, "progress": False, "epochs": 1})
    few, many = 8 * 2 * 9 + 64 * 4, 8 * 64 * 9
    numbers = result.metrics
    assert numbers["average_weight_bits"] == (4 * few + 32 * many) / (few + many)
    assert numbers["float_weight_share"] == many / (few + many)
    ranges = 64 * (8 + 4) / (few + many)
    assert numbers["effective_weight_bits"] == numbers["average_weight_bits"] + ranges
    assert gdfq.nn.float_weights(result.student) == {"up.weight": many}
    share = f"{100 * many / (few + many):.2f}%"
    assert f"{share} of the weights in float" in repr(result)
    assert (
        json.loads((result.folder / "result.json").read_text())["float_weight_share"]
        == (numbers["float_weight_share"])
    )
    page = (result.folder / "report.html").read_text()
    assert "Weights in float" in page
    assert share in page
    assert gdfq.nn.float_weight_share(gdfq.quantize_model(tiny_teacher())) == 0
