import copy
import itertools
import os
import re
import subprocess
import sys
import types
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gdfq
from benchmarks.executed import executed
from gdfq.cli._common import console
from gdfq.data import open_batches
from gdfq.export import export_onnx, export_pt2, runtimes
from gdfq.export.files import Exported, FileOptions, export_file
from gdfq.export.formulas import FORMULAS
from gdfq.export.parity import _parity, compare
from gdfq.export.pooling import POOLING, refuse_indices
from gdfq.export.rewrites import REWRITES
from gdfq.export.source import CheckImages, open_images
from gdfq.nn.qact import observing_copy
from gdfq.recipes import load_recipe
from gdfq.recipes.networks import build_student, build_teacher
from gdfq.runs.folder import save_student
from gdfq.runs.run import Run
from gdfq.training.parts.low_pass import LowPassFilter
from tests.cli.test_cli import gdfq_command
from tests.helpers.tiny import tiny_teacher

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
    run = Run(run_folder)
    recipe, student = run.recipe, run.student
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
    assert "same prediction" in out
    path = run_folder / "student-integer.onnx"
    run = Run(run_folder)
    recipe, student = run.recipe, run.student
    images, _ = embedded_images(recipe, 500)
    nodes = executed("onnxruntime", path, images[:4])
    assert nodes["QLinearConv, uint8"] == 21
    assert nodes["QLinearAdd, uint8"] == 9
    assert not any(kind.startswith("Conv,") for kind in nodes)
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
    nodes = executed("onnxruntime", tmp_path / "x.onnx", images)
    assert nodes["Conv, float"] == 3
    assert not any("QLinear" in kind or "QGemm" in kind for kind in nodes)
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
    assert "no batch norm gives its range" in notes["shared_1"]
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
    nodes = executed("onnxruntime", tmp_path / "x.onnx", images)
    assert nodes["QLinearConv, uint8"] == 2
    for parity in compare(student, tmp_path / "x.onnx", [(images, None)], ["onnxruntime"]):
        assert parity.agreement > 80


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_script_within_a_network_is_written_as_what_it_computes(tmp_path):
    layers, images = tiny_teacher(), torch.randn(64, 2, 8, 8)
    net = nn.Sequential(*layers[:5], torch.jit.script(nn.ReLU()), *layers[6:]).eval()
    student = calibrated(gdfq.quantize_model(net, 8, 8), images)
    export_onnx(student, tmp_path / "x.onnx", images)
    for parity in compare(student, tmp_path / "x.onnx", [(images, None)], ["onnxruntime"]):
        assert parity.agreement == 100


def test_bad_arguments_are_named(tmp_path):
    student, images = awkward_student()
    path = tmp_path / "x.onnx"
    with pytest.raises(
        gdfq.InputError, match="mode: must be one of 'exact' or 'integer', got 'fast'"
    ):
        export_onnx(student, path, images, mode="fast")
    with pytest.raises(
        gdfq.InputError, match="weights: must be one of 'int8' or 'int4', got 'int2'"
    ):
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


class Pooled(nn.Module):
    """Quantized layers around a pooling."""

    def __init__(self, pool):
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.pool = pool
        self.third = nn.Conv2d(8, 8, 1)
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        x = self.pool(torch.relu(self.first(x)))
        return self.last(torch.relu(self.third(x)).mean((2, 3)))


def student_of(net, images, *bits):
    """A calibrated student of ``net``, whose batch norms have seen ``images``."""
    net.train()
    with torch.no_grad():
        for _ in range(10):
            net(images)
    return calibrated(gdfq.quantize_model(net.eval(), *bits), images)


class Poolings(nn.Module):
    """Many functions of one input, as so many outputs."""

    def __init__(self, functions):
        super().__init__()
        self.functions = functions

    def forward(self, x):
        return tuple(function(x) for function in self.functions)


NEAREST = "nearest-exact"
POOLINGS = [
    *(
        lambda x, a=a: F.avg_pool2d(x, *a)
        for a in [
            (3, 2, 1, True), (3, 2, 1, True, False), (2, 3, 1, True), ((3, 2), (2, 1), (1,), True),
            (2, 2, 0, False, True, 3), (3, 2, 1, True, True, 5), (4, 3, 2, True), (3, 1, 1, False),
        ]
    ),
    *(
        lambda x, a=a: F.max_pool2d(x, *a)
        for a in [(2, 3, 1, 1, True), (3, 2, 1, 2, True), ((3, 2), (2, 1), (1, 0), 1, True), (2,)]
    ),
    lambda x: F.max_pool2d(x, (2, 3), (3, 2), 1, 1, True, return_indices=True)[1].float(),
    lambda x: F.max_pool2d(x, 2, return_indices=True)[1].float(),
    *(lambda x, n=n: F.adaptive_avg_pool2d(x, n) for n in [4, (3, None), (12, 5), (5, 7), 1]),
    *(lambda x, n=n: F.adaptive_max_pool2d(x, n) for n in [4, (3, None), (12, 5), (5, 7), 1]),
    lambda x: F.lp_pool2d(x, 2.0, 3, 2, True),
    *(
        lambda x, a=a, mode=mode: F.interpolate(x, **a, mode=mode, antialias=mode != NEAREST)
        for a in [{"size": (7, 30)}, {"size": (25, 5)}, {"scale_factor": (0.7, 1.3)}]
        for mode in [NEAREST, "bilinear", "bicubic"]
    ),
    lambda x: F.interpolate(x, (4, 20), mode="bicubic", antialias=True, align_corners=True),
    lambda x: x.clamp(0.1, 2),
    lambda x: F.avg_pool1d(x.flatten(2), 3, 2, 1, True),
    lambda x: F.max_pool1d(x.flatten(2), 2, 3, 1, 1, True),
    lambda x: F.adaptive_avg_pool1d(x.flatten(2), 9),
    lambda x: F.adaptive_max_pool1d(x.flatten(2), 9),
    lambda x: F.avg_pool3d(x.unsqueeze(1), (2, 3, 3), 2, 1, True),
    lambda x: F.max_pool3d(x.unsqueeze(1), (2, 3, 2), (2, 2, 3), 1, 1, True),
    lambda x: F.adaptive_avg_pool3d(x.unsqueeze(1), (2, 4, 7)),
    lambda x: F.adaptive_avg_pool3d(x.unsqueeze(1), (1, 5, 7)),
    lambda x: F.adaptive_max_pool3d(x.unsqueeze(1), (2, 4, 7)),
    lambda x: F.adaptive_max_pool3d(x.unsqueeze(1), (1, 5, 7)),
]  # fmt: skip


def test_every_pooling_and_resampling_is_what_pytorch_computes_in_each_runtime(tmp_path):
    torch.manual_seed(0)
    network, images = Poolings(POOLINGS), torch.randn(3, 3, 10, 14)
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network, (images,), dynamic_shapes=batch)
    program = program.run_decompositions(FORMULAS | POOLING | REWRITES)
    refuse_indices(program)
    path = tmp_path / "x.onnx"
    torch.onnx.export(program, dynamo=True, opset_version=21, verbose=False).save(str(path))
    images = torch.randn(5, 3, 10, 14)
    expected = network(images)
    session = runtimes._session(path, 1)
    answers = {"onnxruntime": session.run(None, {session.get_inputs()[0].name: images.numpy()})}
    if "openvino" in RUNTIMES:
        answers["openvino"] = list(runtimes._compile(path, 1)(images.numpy()).values())
    for runtime, found in answers.items():
        for i, (got, wanted) in enumerate(zip(found, expected, strict=True)):
            assert got.shape == wanted.shape, (runtime, i)
            torch.testing.assert_close(torch.from_numpy(got.copy()), wanted, msg=f"{runtime}, {i}")


@pytest.mark.parametrize(
    "pool",
    [nn.AvgPool2d(3, 2, 1, ceil_mode=True), nn.AdaptiveAvgPool2d(4), nn.AdaptiveMaxPool2d(4)],
)
def test_a_student_with_a_pooling_answers_the_same_in_each_runtime(tmp_path, pool):
    torch.manual_seed(0)
    images = torch.randn(32, 2, 10, 10)
    student = student_of(Pooled(pool), images)
    export_onnx(student, tmp_path / "x.onnx", images)
    assert [p.wrong for p in compare(student, tmp_path / "x.onnx", [(images, None)])] == [
        "" for _ in RUNTIMES
    ]


class AverageHead(nn.Module):
    """Averages that a linear layer reads as values, none of them a code of the activation."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.pools = nn.ModuleList([
            nn.AvgPool2d(10), nn.AdaptiveAvgPool2d(2), nn.AdaptiveAvgPool2d(3),
            nn.AvgPool2d(3, 4, 1, ceil_mode=True), nn.AvgPool2d(5, divisor_override=20),
        ])  # fmt: skip
        self.last = nn.Linear(8 * (1 + 4 + 9 + 9 + 4 + 1), 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        pooled = [*(pool(x) for pool in self.pools), F.adaptive_avg_pool2d(x, 1)]
        return self.last(torch.cat([y.flatten(1) for y in pooled], 1))


@pytest.mark.parametrize(
    "pool",
    [
        None,
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d((2, 4), (3, 3), (1, 2), ceil_mode=True),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d(2, divisor_override=1),  # sums, outside of what is averaged
    ],
)
def test_integer_mode_averages_as_the_student_in_each_runtime(tmp_path, pool):
    torch.manual_seed(0)
    images = torch.randn(24, 2, 10, 10)
    student = student_of(Pooled(pool) if pool else AverageHead(), images, 4, 2)
    path = tmp_path / "x.onnx"
    export_onnx(student, path, images, mode="integer", input_range=(-5.0, 5.0))
    expected = logits_of(student, images)
    found = [torch.from_numpy(runtimes.open_model(r, path)(images.numpy())) for r in RUNTIMES]
    assert (found[0] - expected).abs().max() < 0.05
    for other in found[1:]:
        assert (other - found[0]).abs().max() < 1e-5


class WithIndices(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def forward(self, x):
        x, indices = self.pool(x)
        return x + indices / 10


def test_indices_of_a_pooling_are_right_or_refused(tmp_path):
    torch.manual_seed(0)
    images = torch.randn(32, 2, 10, 10)
    student = student_of(Pooled(WithIndices(nn.MaxPool2d(3, 2, return_indices=True))), images)
    export_onnx(student, tmp_path / "x.onnx", images)
    assert not any(p.wrong for p in compare(student, tmp_path / "x.onnx", [(images, None)]))
    student = student_of(Pooled(WithIndices(nn.AdaptiveMaxPool2d(4, return_indices=True))), images)
    with pytest.raises(gdfq.InputError, match="reads the indices of an adaptive max pooling"):
        export_onnx(student, tmp_path / "x.onnx", images)


class Tokens(nn.Module):
    """Linear layers over tokens; perhaps with batch norms over the tokens, not the channels."""

    def __init__(self, norm=None, average=lambda x: x.mean(1)):
        super().__init__()
        self.average = average
        self.first = nn.Conv2d(2, 8, 4, 4)
        self.norm1 = nn.BatchNorm2d(8)
        self.hidden = nn.Linear(8, 8)
        self.norm2 = norm or nn.Identity()
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.norm1(self.first(x))).flatten(2).transpose(1, 2)
        return self.last(self.average(torch.relu(self.norm2(self.hidden(x)))))


@pytest.mark.parametrize("size", [(16, 8), (12, 12)])  # 8 tokens, as many as channels, and 9
def test_a_batch_norm_over_tokens_is_not_folded_into_a_linear_layer(tmp_path, size):
    torch.manual_seed(0)
    images = torch.randn(64, 2, *size)
    norm = nn.BatchNorm1d(size[0] * size[1] // 16)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.2, 3, len(norm.weight)))
    student = student_of(Tokens(norm), images)
    export_onnx(student, tmp_path / "x.onnx", images)
    assert logits_of(student, images).std(0).min() > 1e-3
    assert not any(p.wrong for p in compare(student, tmp_path / "x.onnx", [(images, None)]))


@pytest.mark.parametrize(
    "average",
    [
        lambda x: x.mean(1),
        lambda x: F.adaptive_avg_pool1d(x.transpose(1, 2), 1).flatten(1),
        lambda x: F.adaptive_avg_pool2d(x.unflatten(1, (4, 4)).permute(0, 3, 1, 2), 1).flatten(1),
    ],
)
def test_openvino_averages_tokens_in_integer_mode(tmp_path, average):
    """It read memory that was not the tokens' when it averaged their codes."""
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    images = torch.randn(64, 2, 16, 16)
    student = student_of(Tokens(average=average), images)
    path = tmp_path / "x.onnx"
    export_onnx(student, path, images, mode="integer", input_range=(-5.0, 5.0))
    expected = logits_of(student, images)
    runner, other = (runtimes.open_model(name, path) for name in ("openvino", "onnxruntime"))
    for count in (64, 7, 64, 1, 32):
        found = torch.from_numpy(runner(images[:count].numpy()).copy())
        assert abs(found.numpy() - other(images[:count].numpy())).max() < 1e-5
        assert (found - expected[:count]).abs().max() < 0.02
    nodes = executed("openvino", path, images[:4])
    assert nodes["Convolution, u8"] == 1


class OwnTensors(nn.Module):
    """Tensors on the root, called what the file calls its input and output."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3)
        self.last = nn.Linear(8, 5)
        self.images = nn.Parameter(torch.rand(8, 1, 1))
        self.register_buffer("logits", torch.rand(5))
        self.register_buffer("logits_tensor", torch.rand(5))

    def forward(self, x):
        x = torch.relu(self.first(x)) * self.images
        return self.last(x.mean((2, 3))) * self.logits + self.logits_tensor


def test_tensors_that_are_called_as_input_and_output_get_other_names(tmp_path):
    torch.manual_seed(0)
    images = torch.randn(16, 2, 9, 9)
    student = student_of(OwnTensors(), images)
    export_onnx(student, tmp_path / "x.onnx", images)
    onnx.checker.check_model(str(tmp_path / "x.onnx"), full_check=True)
    assert not any(p.wrong for p in compare(student, tmp_path / "x.onnx", [(images, None)]))
    assert "images" in student.state_dict()  # the student keeps its own


def test_parts_whose_names_are_no_python_are_exported(tmp_path):
    torch.manual_seed(0)
    net = tiny_teacher(channels=3)
    names = ["class", "a b", "\ufb01", 'a"b', "a_b"]
    net.append(nn.ModuleDict({name: nn.Linear(4, 4) for name in names}))
    net[-1].forward = types.MethodType(lambda s, x: sum(f(x) for f in s.values()), net[-1])
    net.register_buffer("def", torch.ones(4))
    net.register_forward_hook(lambda module, args, output: output + getattr(module, "def"))
    images = torch.randn(8, 3, 8, 8)
    student = calibrated(gdfq.quantize_model(net, 8, 8), images)
    export_onnx(student, tmp_path / "named.onnx", images)
    for parity in compare(student, tmp_path / "named.onnx", [(images, None)]):
        assert parity.median_difference < 1e-5
    quantized = {layer.name for layer in student.coverage.operations if layer.status == "quantized"}
    assert {f"9.{name}" for name in names} <= quantized


def test_a_file_that_is_too_large_has_its_tensors_in_a_second_one(tmp_path, monkeypatch):
    torch.manual_seed(0)
    images = torch.randn(8, 2, 12, 12)
    net = nn.Sequential(nn.Conv2d(2, 64, 3), nn.ReLU(), nn.Conv2d(64, 128, 3), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 40))  # fmt: skip
    student = student_of(net, images)
    small, path = tmp_path / "small.onnx", tmp_path / "large.onnx"
    export_onnx(student, small, images)
    monkeypatch.setattr(sys.modules["gdfq.export.onnx_file"], "LIMIT", 10_000)
    export_onnx(student, path, images)
    data = tmp_path / "large.onnx.data"
    assert path.stat().st_size < 20_000 < 64 * 128 * 9 <= data.stat().st_size
    whole, loaded = constants_of(onnx.load(str(small))), constants_of(onnx.load(str(path)))
    assert all((loaded[name] == array).all() for name, array in whole.items())
    assert not any(p.wrong for p in compare(student, path, [(images, None)]))


# ---- integer kernels of processors without VNNI ----


def saturated(activations, weights):
    """Sums of products of codes as ``vpmaddubsw`` computes them: pairs of products in 16 bits."""
    pairs = (activations.astype("int64") * weights.astype("int64")).reshape(-1, 2).sum(1)
    return int(pairs.clip(-32768, 32767).sum()), int(pairs.sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_codes_of_integer_mode_do_not_saturate_without_vnni(tmp_path, bits):
    torch.manual_seed(0)
    images = torch.rand(32, 2, 8, 8)
    net = nn.Sequential(nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))  # fmt: skip
    student = student_of(net, images, bits, 4)
    form = export_onnx(student, tmp_path / "x.onnx", images, mode="integer", input_range=(0, 1))
    assert not any("VNNI" in part.note for part in form.parts)
    codes = constants_of(onnx.load(str(tmp_path / "x.onnx")))["0.weight"]
    assert 32 <= abs(codes).max() <= 64
    for kernel in codes:
        brightest = (kernel.reshape(-1) > 0) * 255
        found, exact = saturated(brightest, kernel.reshape(-1))
        assert found == exact


def test_what_may_saturate_without_vnni_is_said(tmp_path):
    torch.manual_seed(0)
    images = torch.rand(32, 2, 8, 8)
    net = nn.Sequential(nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                        nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))  # fmt: skip
    student = student_of(net, images, 7, 8)
    form = export_onnx(student, tmp_path / "x.onnx", images, mode="integer", input_range=(0, 1))
    notes = {part.name: part.note for part in form.parts}
    assert "times activations up to 255: integer kernels of processors without VNNI" in notes["3"]
    # Activations of 4 bits leave the whole of int8 to weights.
    student = student_of(net, images, 7, 4)
    form = export_onnx(student, tmp_path / "x.onnx", images, mode="integer", input_range=(0, 1))
    assert "VNNI" not in {part.name: part.note for part in form.parts}["3"]


# ---- whether a file is its student ----


def test_a_file_with_other_logits_and_the_same_answers_fails(tmp_path):
    torch.manual_seed(0)
    images = torch.randn(40, 2, 8, 8)
    student = student_of(tiny_teacher(), images)
    other = copy.deepcopy(student)
    with torch.no_grad():
        next(m for m in other.modules() if isinstance(m, gdfq.nn.QLinear)).bias += 0.05
    path = tmp_path / "x.onnx"
    options = FileOptions()
    export_onnx(other, path, images)
    for parity in compare(student, path, [(images, None)]):
        assert parity.agreement == 100
        assert parity.noticeable == 100
        assert "logits differ by more than 0.001 on 100.0% of the images" in parity.wrong
        written = Exported(path, 0, options, "images", [parity])
        assert not written.faithful
        assert "FAILED its check" in str(written)


def test_logits_of_another_shape_and_files_that_are_refused_fail(tmp_path):
    images = torch.randn(6, 2, 8, 8)
    student = calibrated(gdfq.quantize_model(tiny_teacher(), 3, 4), images)
    other = calibrated(gdfq.quantize_model(tiny_teacher(num_classes=7), 3, 4), images)
    path = tmp_path / "x.onnx"
    export_onnx(other, path, images)
    for parity in compare(student, path, [(images, torch.zeros(6))]):
        assert "shape (6, 7), the student's have (6, 4)" in parity.wrong
        for mode in ("exact", "integer"):
            written = Exported(path, 0, FileOptions(mode=mode), "images", [parity])
            assert not written.faithful
    path.write_bytes(b"no model")
    for parity in compare(student, path, [(images, None)]):
        assert "refuses" in parity.wrong


def test_an_integer_file_fails_where_one_runtime_is_far_worse_than_another():
    expected = torch.eye(4)
    good = _parity("onnxruntime", expected + 0.005, expected, None)
    for error, fails in ((0.02, False), (0.03, True)):
        other = _parity("openvino", expected + error, expected, None)
        options = FileOptions(mode="integer")
        for parities in ([good, other], [other, good]):
            wrong = Exported(Path("x"), 0, options, "images", parities).wrong
            assert len(wrong) == fails
            assert all("OpenVINO: logits differ by 0.03" in line for line in wrong)
        assert not Exported(Path("x"), 0, options, "images", [other]).wrong


def test_top1_counts_any_of_several_right_classes():
    expected = torch.eye(4)
    labels = torch.eye(4, dtype=torch.bool)
    labels[0, 2] = labels[3, 0] = True
    found = expected[[2, 0, 2, 0]]  # right, wrong, right, right
    parity = _parity("onnxruntime", found, expected, labels)
    assert (parity.student_top1, parity.file_top1, parity.agreement) == (100, 75, 25)


def test_one_image_in_twenty_may_differ_by_rounding(tmp_path):
    expected = torch.zeros(1000, 4)
    expected[:, 1] = 1
    for wrong, fails in ((60, False), (80, True)):
        found = expected.clone()
        found[:wrong, 2] = 0.01
        parity = _parity("onnxruntime", found, expected, None)
        assert parity.agreement == 100
        assert bool(parity.wrong) == fails
    found = expected.clone()
    found[:80, 2] = 0.01
    # Of a student that rounding itself moves as far, it is rounding; a hundred times as far is not.
    rounding = torch.full((1000,), 0.01)
    assert not _parity("onnxruntime", found, expected, None, rounding).wrong
    found[:80, 2] = 0.5
    assert _parity("onnxruntime", found, expected, None, rounding).wrong
    found[:80, 2] = torch.nan
    assert _parity("onnxruntime", found, expected, None, rounding).wrong


def test_a_file_that_fails_its_check_is_deleted_on_request(tmp_path, monkeypatch):
    images = torch.randn(8, 2, 8, 8)
    student = calibrated(gdfq.quantize_model(tiny_teacher(), 3, 4), images)
    test = CheckImages([(images, None)], "8 images", (2, 8, 8), (-4.0, 4.0))
    files = sys.modules["gdfq.export.files"]

    def damaged(student, path, example, **options):
        form = export_onnx(student, path, example, **options)
        (path.parent / f"{path.name}.data").write_bytes(b"")
        path.write_bytes(b"no model")
        return form

    for keep in (True, False):
        path = tmp_path / f"{keep}.onnx"
        monkeypatch.setattr(files, "export_onnx", damaged)
        written = export_file(student, path, FileOptions(), test, None, keep)
        assert "FAILED its check" in str(written)
        assert ("was deleted" in str(written)) is not keep
        assert len(list(tmp_path.glob(f"{keep}*"))) == (2 if keep else 0)
        monkeypatch.undo()
        export_file(student, path, FileOptions(), test, None, False)
        assert path.exists()
    content = path.read_bytes()
    monkeypatch.setattr(files, "export_onnx", damaged)
    written = export_file(student, path, FileOptions(), test, None, False)
    assert "was deleted, and the earlier file put back" in str(written)
    assert path.read_bytes() == content
    assert sorted(tmp_path.iterdir()) == [path, *tmp_path.glob("True*")]


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
    assert (
        f"format: must be one of 'onnx', 'pt2' or 'safetensors', where {tmp_path / 's.bin'}" in err
    )


def test_too_little_agreement_fails(capsys, tmp_path, run_folder, monkeypatch):
    """The file is that of another student."""
    files = sys.modules["gdfq.export.files"]
    other = Run(run_folder).student
    other.fc.bias.data[0] += 1.0

    def export_other(student, path, images, **options):
        return export_onnx(other, path, images, **options)

    monkeypatch.setattr(files, "export_onnx", export_other)
    arguments = ("--images", 100, "--out", tmp_path / "x.onnx")
    code, out, err = gdfq_command(capsys, "export", run_folder, *arguments)
    assert "100.00%" not in out.split("same prediction")[1].split("median")[0]
    assert code == 1
    assert "does not predict" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--format", "tflite"],
            "format: must be one of 'onnx', 'pt2' or 'safetensors', got 'tflite'",
        ),
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
    run = Run(tmp_path / "run")
    plain, filtered = (
        next(iter(open_images(r, run.folder, 8, None, lambda: run.generator).batches))[0]
        for r in (run.recipe, run.recipe.with_options({"low_pass": 2.0}))
    )
    assert torch.equal(filtered, LowPassFilter((28, 28), 2.0)(plain))  # as training saw them
    larger = run.recipe.with_options({"image_size": 40, "resize": 40, "generated_size": 28})
    check = open_images(larger, run.folder, 8, None, lambda: run.generator)
    assert (check.shape, next(iter(check.batches))[0].shape) == ((1, 40, 40), (8, 1, 40, 40))
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        checkpoint.unlink()
    code, _, err = gdfq_command(capsys, *arguments, "--out", tmp_path / "other")
    assert code == 2
    assert "no images to compare on" in err
