import itertools
import os
import re
import subprocess
import sys
import warnings
import zipfile

import pytest
import torch
from torch import nn

import gdfq
from gdfq.cli._common import console
from gdfq.export import export_onnx, export_pt2, runtimes
from gdfq.export.parity import compare
from gdfq.export.source import open_images, open_student
from gdfq.nn.qact import observing_copy
from gdfq.recipes import load_recipe
from gdfq.runs.folder import load_run, save_student
from gdfq.runs.measure import open_batches
from gdfq.runs.networks import build_student, build_teacher
from gdfq.training.parts.low_pass import LowPass
from tests.test_cli import gdfq_command
from tests.tiny import tiny_teacher

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

RUNTIMES = runtimes.installed()


def calibrated(student, images):
    observed = observing_copy(student)
    observed(images)
    student.load_state_dict(observed.state_dict())
    return student


def embedded_images(recipe, count=None):
    teacher = build_teacher(recipe)[1]
    batches = list(itertools.islice(open_batches(recipe, teacher.preprocessing), 4))
    return tuple(torch.cat(part)[:count] for part in zip(*batches, strict=True))


@torch.inference_mode()
def logits_of(student, images):
    return student(images)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run folder with the embedded network at 4 bits, calibrated on generated-like noise."""
    folder = tmp_path_factory.mktemp("run")
    recipe = load_recipe("fashion-mnist-resnet20").with_options({"memory_format": "contiguous"})
    recipe, teacher = build_teacher(recipe)
    images, _ = embedded_images(recipe)
    student = calibrated(build_student(recipe, teacher.network), images[-200:])
    (folder / "recipe.toml").write_text(recipe.to_toml())
    save_student(student, recipe, folder / "student.safetensors")
    return folder


def constants_of(model):
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def test_the_exact_file_answers_as_the_student(capsys, run_folder):
    code, out, err = gdfq_command(capsys, "export", run_folder, "--images", 500)
    assert code == 0, err
    assert "21 x Conv, int8, zero point 0" in out
    recipe, _, student = load_run(run_folder)
    batches = [embedded_images(recipe, 500)]
    for parity in compare(student, run_folder / "student.onnx", batches):
        assert parity.images == 500
        assert parity.agreement == 100
        assert parity.median_difference < 1e-5
        assert parity.noticeable < 5
        assert parity.file_top1 == parity.student_top1 > 85
        assert parity.runtime in out
    # Nothing of ours in it, integers where integers should be, and no bias that a runtime rounds.
    model = onnx.load(str(run_folder / "student.onnx"))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 21)]
    constants = constants_of(model)
    large = {name: array.dtype for name, array in constants.items() if array.size > 100}
    assert len(large) == 22
    assert set(map(str, large.values())) == {"int8"}
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Clip") == kinds.count("QuantizeLinear") == 19
    assert all(len(node.input) == 2 for node in model.graph.node if node.op_type == "Conv")
    # A second time nothing is overwritten.
    code, _, err = gdfq_command(capsys, "export", run_folder)
    assert code == 2
    assert "nothing is overwritten" in err


def test_the_integer_file_runs_in_integers(capsys, run_folder):
    code, out, err = gdfq_command(
        capsys, "export", run_folder, "--mode", "integer", "--images", 500
    )
    assert code == 0, err
    assert "same answer" in out
    path = run_folder / "student-integer.onnx"
    recipe, _, student = load_run(run_folder)
    images, _ = embedded_images(recipe, 500)
    executed = runtimes.executed("onnxruntime", path, images[:4])
    assert executed["QLinearConv, uint8"] == 21
    assert executed["QLinearAdd, uint8"] == 9
    assert not any(kind.startswith("Conv,") for kind in executed)
    (parity,) = compare(student, path, [(images, None)], ["onnxruntime"])
    assert 90 < parity.agreement < 100  # it is another network, and says so


class Awkward(nn.Module):
    """What does not fit the plain form, one of each."""

    def __init__(self):
        super().__init__()
        self.first = gdfq.nn.QConv2d(2, 8, 3, padding=1, weight_bits=3, act_bits=5)
        self.norm1 = nn.BatchNorm2d(8)
        self.relu6 = nn.ReLU6()
        self.shared = nn.Conv2d(8, 8, 3, padding="same", padding_mode="reflect")
        self.norm2 = nn.BatchNorm2d(8)
        self.far = nn.Conv2d(8, 8, 1, groups=8)  # its weights are far from 0
        self.eight = nn.Conv2d(8, 8, (1, 3), dilation=(1, 2), bias=False)
        self.norm3 = nn.BatchNorm2d(8, affine=False)
        self.relu = nn.ReLU()
        self.hidden = nn.Linear(8, 6)
        self.norm4 = nn.BatchNorm1d(6)
        self.last = nn.Linear(6, 5)

    def forward(self, x):
        x = self.relu6(self.norm1(self.first(x)))
        x = self.relu(self.shared(x) + x)
        x = self.relu(self.norm2(self.shared(x)))
        x = self.relu(self.far(x))
        x = self.relu(self.norm3(self.eight(x)))
        x = x + self.relu(20 * x)
        x = self.relu(self.norm4(self.hidden(x.mean((2, 3)))))
        return self.last(x)


def awkward_student(zero_in_range=False):
    torch.manual_seed(0)
    net, images = Awkward(), torch.randn(64, 2, 9, 9)
    with torch.no_grad():
        net.far.weight.uniform_(1, 1.01)
        net.norm1.weight[:2] = torch.tensor([-1.0, 0.0])
        net.first.input_quantizer.train()
        for _ in range(30):
            net(images)
    student = gdfq.quantize_model(net.eval(), zero_in_range=zero_in_range)
    state = calibrated(student, images).state_dict()
    student.eight.weight_bits = 8
    state["relu_3.lo"] = torch.tensor(0.5)  # a range without 0 ...
    state["relu_4.lo"] = torch.tensor(2.0)  # ... and one that does not fit uint8 either
    state["relu_4.hi"] = torch.tensor(2.1)
    student.load_state_dict(state)
    return student, torch.randn(500, 2, 9, 9)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_what_does_not_fit_is_said_and_still_right(tmp_path, weights):
    student, images = awkward_student()
    form = export_onnx(student, tmp_path / "x.onnx", images, weights=weights)
    notes = {part.name: part.note for part in form.instead}
    stored = {part.name: part.stored for part in form.parts}
    assert "too far from 0" in notes["far"]
    assert stored["far"] == "float32"
    if weights == "int8":
        assert "zero point per output" in stored["eight"]
        assert "8 bits do not fit" in notes["eight"]
        assert stored["first"] == "int8, zero point 0"
    else:
        assert "int8 instead of int4" in notes["eight"]
        assert stored["first"].startswith("int4")
        model = onnx.load(str(tmp_path / "x.onnx"))
        types = {t.name: t.data_type for t in model.graph.initializer}
        for name in ("first", "shared_1", "hidden", "last"):
            assert types[f"{name}.weight.int4"] == onnx.TensorProto.INT4
        assert types["eight.weight"] == onnx.TensorProto.INT8
    assert "does not contain 0" in notes["relu_3"]
    assert "does not fit uint8" in notes["relu_4"]
    expected = logits_of(student, images)
    assert expected.std(0).min() > 1e-3
    for parity in compare(student, tmp_path / "x.onnx", [(images, None)]):
        assert parity.agreement > 99
        assert parity.median_difference < 1e-6
        assert parity.noticeable < 5


class FarFromZero(nn.Module):
    """Weights that are stored as floats, between quantizers of 8 bits, which need no Clip."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 1, groups=8)
        self.unbiased = nn.Conv2d(8, 8, 1, groups=8, bias=False)
        self.hidden = nn.Linear(8, 6)
        self.last = nn.Linear(6, 5)

    def forward(self, x):
        x = torch.relu(self.depthwise(torch.relu(self.first(x))))
        x = torch.relu(self.unbiased(x)).amax((2, 3))
        return self.last(torch.relu(self.hidden(x)))


def test_onnx_runtime_keeps_weights_that_are_stored_as_floats(tmp_path):
    torch.manual_seed(0)
    net, images = FarFromZero().eval(), torch.randn(64, 2, 9, 9)
    with torch.no_grad():
        for layer in (net.depthwise, net.unbiased, net.hidden):
            layer.weight.uniform_(1, 1.01)
    student = calibrated(gdfq.quantize_model(net, weight_bits=8, act_bits=8), images)
    form = export_onnx(student, tmp_path / "x.onnx", images)
    floats = {part.name for part in form.parts if part.stored == "float32"}
    assert floats == {"depthwise", "unbiased", "hidden"}
    executed = runtimes.executed("onnxruntime", tmp_path / "x.onnx", images)
    assert executed["Conv, float"] == 3
    assert not any("QLinear" in kind or "QGemm" in kind for kind in executed)
    for parity in compare(student, tmp_path / "x.onnx", [(images, None)], ["onnxruntime"]):
        assert parity.agreement > 99
        assert parity.median_difference < 1e-5


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_zero_in_range_leaves_nothing_to_say(tmp_path, weights):
    student, images = awkward_student(zero_in_range=True)
    student.eight.weight_bits = 4
    form = export_onnx(student, tmp_path / "x.onnx", images, weights=weights)
    assert [part for part in form.parts if part.note] == []
    assert not any(part.stored.startswith("float") for part in form.parts)
    for parity in compare(student, tmp_path / "x.onnx", [(images, None)]):
        assert parity.agreement > 99
        assert parity.median_difference < 1e-6


class Averaged(nn.Module):
    """Averages of some of the pixels, and quantized values that are scaled and clipped."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.last = nn.Linear(128, 4)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(torch.relu(20 * x)))
        return self.last(self.pool(x).flatten(1))


def test_openvino_computes_with_values_where_codes_would_be_rounded(tmp_path):
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    images = torch.randn(300, 1, 16, 16)
    student = calibrated(gdfq.quantize_model(Averaged().eval(), 4, 3), images)
    state = student.state_dict()
    for name in [name for name in state if name.startswith("relu_1.")]:
        state[name] = state[name] / 3 if name.endswith("hi") else state[name]
    student.load_state_dict(state)
    export_onnx(student, tmp_path / "x.onnx", images)
    expected = logits_of(student, images)
    assert expected.std(0).min() > 1e-2
    for parity in compare(student, tmp_path / "x.onnx", [(images, None)], ["openvino"]):
        assert parity.median_difference < 1e-6
        assert parity.noticeable < 5


def test_integer_mode_says_what_stays_in_float(tmp_path):
    student, images = awkward_student()
    form = export_onnx(student, tmp_path / "x.onnx", images, mode="integer")
    notes = {part.name: part.note for part in form.instead}
    # "shared" without a batch norm behind it: nothing tells its range.
    assert "no batch norm tells its range" in notes["shared_1"]
    assert "rounded to int8" in notes["eight"]
    runner = runtimes.open_model("onnxruntime", tmp_path / "x.onnx")
    assert torch.from_numpy(runner(images.numpy())).isfinite().all()


def test_convolutions_behind_zero_padding_run_in_integers(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(2, 8, 3, 2, bias=False), nn.BatchNorm2d(8)),
        *(nn.ReLU(), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, 2, bias=False)),
        *(nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 5)),
    )
    images = torch.rand(64, 2, 16, 16)
    student = calibrated(gdfq.quantize_model(net.eval()), images)
    form = export_onnx(student, tmp_path / "x.onnx", images, mode="integer", input_range=(0.0, 1.0))
    assert form.instead == []
    executed = runtimes.executed("onnxruntime", tmp_path / "x.onnx", images)
    assert executed["QLinearConv, uint8"] == 2
    for parity in compare(student, tmp_path / "x.onnx", [(images, None)], ["onnxruntime"]):
        assert parity.agreement > 80


def test_bad_arguments_are_named(tmp_path):
    student, images = awkward_student()
    path = tmp_path / "x.onnx"
    with pytest.raises(gdfq.InputError, match="mode: must be 'exact' or 'integer'"):
        export_onnx(student, path, images, mode="fast")
    with pytest.raises(gdfq.InputError, match="weights: must be 'int8' or 'int4'"):
        export_onnx(student, path, images, weights="int2")
    with pytest.raises(gdfq.InputError, match="must be 'int8' in integer mode"):
        export_onnx(student, path, images, mode="integer", weights="int4")
    with pytest.raises(gdfq.InputError, match="input_range"):
        export_onnx(student, path, images, input_range=(1, 0))
    with pytest.raises(gdfq.InputError, match="no range yet"):
        export_onnx(gdfq.quantize_model(tiny_teacher()), path, images)
    with pytest.raises(gdfq.InputError, match="cannot write"):
        export_pt2(student, tmp_path / "nowhere" / "x.pt2", images)
    (tmp_path / "no.onnx").write_bytes(b"no model")
    for runtime in RUNTIMES:
        with pytest.raises(gdfq.InputError, match="refuses"):
            runtimes.open_model(runtime, tmp_path / "no.onnx")


@pytest.mark.parametrize("decompose", [False, True])
def test_pt2_gives_the_same_logits_in_another_process(tmp_path, decompose):
    images = torch.randn(7, 2, 8, 8)
    student = calibrated(gdfq.quantize_model(tiny_teacher(), 3, 4), images)
    export_pt2(student, tmp_path / "s.pt2", torch.randn(1, 2, 8, 8), decompose=decompose)
    torch.save((images, logits_of(student, images)), tmp_path / "expected.pt")
    with zipfile.ZipFile(tmp_path / "s.pt2") as file:  # no paths of this machine
        assert not any(b"/nn/" in file.read(name) for name in file.namelist())
    # None in sys.modules makes an import of it fail.
    load = "sys.modules['gdfq'] = None" if decompose else "import gdfq"
    program = f"""
import sys, torch
{load}
network = torch.export.load({str(tmp_path / "s.pt2")!r}).module()
images, expected = torch.load({str(tmp_path / "expected.pt")!r})
assert torch.equal(network(images), expected)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_loaded_student_is_exported_like_the_one_saved(tmp_path):
    images = torch.randn(8, 2, 8, 8)
    student = calibrated(gdfq.quantize_model(tiny_teacher(), 3, 4), images)
    gdfq.save(student, tmp_path / "s")
    loaded = gdfq.load(tmp_path / "s", tiny_teacher())
    for name, network in (("a", student), ("b", loaded)):
        export_onnx(network, tmp_path / f"{name}.onnx", images)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    export_pt2(loaded, tmp_path / "s.pt2", images, decompose=True)
    network = torch.export.load(tmp_path / "s.pt2").module()
    assert torch.equal(network(images), logits_of(student, images))


@pytest.mark.parametrize("decompose", [False, True])
def test_a_student_in_channels_last_is_a_program_without_warnings(tmp_path, decompose):
    images = torch.randn(8, 2, 8, 8).contiguous(memory_format=torch.channels_last)
    student = calibrated(gdfq.quantize_model(tiny_teacher(), 3, 4), images)
    student.to(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_pt2(student, tmp_path / "s.pt2", images, decompose=decompose)
    network = torch.export.load(tmp_path / "s.pt2").module()
    assert torch.equal(network(images), logits_of(student, images))


# ---- the command line ----


def test_packed_and_inspected_from_the_command_line(capsys, tmp_path, run_folder, monkeypatch):
    path = tmp_path / "small.safetensors"
    code, out, err = gdfq_command(capsys, "export", run_folder, "--out", path, "--images", 100)
    assert code == 0, err
    assert "bit for bit" in out
    for what in (path, run_folder):
        code, out, _ = gdfq_command(capsys, "inspect", what)
        assert code == 0
        assert "64x64x3x3" in out
        assert "18,944" in out
        order = [
            re.search(rf"^│ {name} ", out, re.M).start()
            for name in ("conv1", "layer3.0.conv1", "fc")
        ]
        assert order == sorted(order)  # the network's, not the alphabet's
    # A packed file is exported as its run folder is.
    code, out, err = gdfq_command(
        capsys, "export", path, "--out", tmp_path / "s.onnx", "--weights", "int4", "--images", 100
    )
    assert code == 0, err
    assert "21 x Conv, int4" in out
    code, out, _ = gdfq_command(capsys, "inspect", tmp_path / "s.onnx")
    assert code == 0
    assert "exact" in out
    assert "int4, -8" in out
    # Nothing is wrapped in a pipe; in a terminal that is too narrow, two lines are a layer.
    monkeypatch.setattr(console, "width", 40)
    assert gdfq_command(capsys, "inspect", tmp_path / "s.onnx")[1] == out
    (row,) = (line for line in out.splitlines() if "layer3.0.downsample.0" in line)
    assert [cell.strip() for cell in row.split("│")][2:5] == ["Conv", "4", "64x32x1x1"]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    _, narrow, _ = gdfq_command(capsys, "inspect", tmp_path / "s.onnx")
    lines = re.sub(r"\x1b\[\d*m", "", narrow).splitlines()
    assert max(map(len, lines)) <= 40
    assert lines[lines.index("layer3.0.downsample.0") + 1].startswith("  Conv  4 bits  64x32x1x1")
    monkeypatch.setattr(console, "width", 140)
    assert row in re.sub(r"\x1b\[\d*m", "", gdfq_command(capsys, "inspect", tmp_path / "s.onnx")[1])
    for content, name in ((b"no model", "x.onnx"), (path.read_bytes()[:1000], "x.safetensors")):
        (tmp_path / name).write_bytes(content)
        code, _, err = gdfq_command(capsys, "inspect", tmp_path / name)
        assert code == 2
        assert str(tmp_path / name) in err


def test_what_is_missing_is_said_before_anything_is_read(capsys, tmp_path, monkeypatch):
    for package in ("onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    code, _, err = gdfq_command(capsys, "export", tmp_path / "no run")
    assert code == 2
    assert "needs onnxscript, onnxruntime, not installed: pip install 'gdfq[export]'" in err
    code, _, err = gdfq_command(capsys, "export", tmp_path / "no run", "--out", tmp_path / "s.bin")
    assert code == 2
    assert f"format: must be one of onnx, pt2, safetensors, where {tmp_path / 's.bin'}" in err


def test_too_little_agreement_fails(capsys, tmp_path, run_folder, monkeypatch):
    """The file is that of another student."""
    files = sys.modules["gdfq.export.files"]
    _, _, other = load_run(run_folder)
    other.fc.bias.data[0] += 1.0

    def export_other(student, path, images, **options):
        return export_onnx(other, path, images, **options)

    monkeypatch.setattr(files, "export_onnx", export_other)
    arguments = ("--images", 500, "--out", tmp_path / "x.onnx")
    code, out, err = gdfq_command(capsys, "export", run_folder, *arguments)
    assert "100.00%" not in out.split("same answer")[1].split("median")[0]
    assert code == 1
    assert "does not answer" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "tflite"], "format: must be one of onnx, pt2, safetensors"),
        (["--format", "pt2", "--mode", "integer"], "mode: is for the format onnx only"),
        (["--decompose"], "decompose: is for the format pt2 only"),
        (["--weights", "int4", "--mode", "integer"], "weights: must be 'int8'"),
    ],
)
def test_options_that_do_not_go_together(capsys, run_folder, arguments, message):
    code, _, err = gdfq_command(capsys, "export", run_folder, *arguments)
    assert code == 2
    assert message in err


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    capsys, run_folder, monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = gdfq_command(capsys, "export", run_folder, "--out", tmp_path / "x.onnx")
    assert code == 2
    assert "onnxruntime" in err
    assert "pip install 'gdfq[export]'" in err
    assert not (tmp_path / "x.onnx").exists()


def test_without_a_data_set_generated_images_are_compared(capsys, tmp_path):
    short = [
        "quantize", "--recipe", "fashion-mnist-resnet20", "--data", "none", "--width", "8",
        "--batch-size", "8", "--epochs", "2", "--steps-per-epoch", "1", "--warmup-epochs", "1",
        "--calibration-batches", "2", "--memory-format", "contiguous", "--no-report",
        "--out", tmp_path / "run",
    ]  # fmt: skip
    code, *_ = gdfq_command(capsys, *short)
    assert code == 0
    arguments = ("export", tmp_path / "run", "--format", "safetensors", "--images", 20)
    code, out, err = gdfq_command(capsys, *arguments)
    assert code == 0, err
    assert "20 generated images, bit for bit" in " ".join(out.split())
    recipe, _ = open_student(tmp_path / "run")
    plain, filtered = (
        next(iter(open_images(tmp_path / "run", r, 8).batches))[0]
        for r in (recipe, recipe.with_options({"low_pass": 2.0}))
    )
    assert torch.equal(filtered, LowPass((28, 28), 2.0)(plain))  # as training saw them
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        checkpoint.unlink()
    code, _, err = gdfq_command(capsys, *arguments, "--out", tmp_path / "other")
    assert code == 2
    assert "no images to compare on" in err
