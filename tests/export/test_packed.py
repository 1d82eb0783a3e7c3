import copy
import json
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import nn
from torch.nn import functional as F

import gdfq
from gdfq.export import export_onnx, export_pt2, packed
from gdfq.export.packed_layers import PackedConv2d, PackedLinear
from gdfq.nn import QAct
from gdfq.nn.qact import observing_copy
from gdfq.recipes import load_recipe
from gdfq.recipes.networks import build_student, build_teacher
from tests.helpers.tiny import tiny_teacher


def student_of(model, images, weight_bits=4, act_bits=4, channels_last=False, **options):
    """A student whose ranges have seen ``images``."""
    student = gdfq.quantize_model(model, weight_bits, act_bits, **options)
    if channels_last:
        student.to(memory_format=torch.channels_last)
    observed = observing_copy(student)
    observed(images)
    student.load_state_dict(observed.state_dict())
    return student


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_student_comes_back_bit_for_bit(tmp_path, bits, channels_last):
    images = torch.randn(8, 2, 8, 8)
    student = student_of(tiny_teacher(), images, bits, bits, channels_last)
    path = tmp_path / "student.safetensors"
    gdfq.save(student, path)
    loaded = gdfq.load(path, tiny_teacher())
    assert torch.equal(loaded(images), student(images))
    assert isinstance(loaded.get_submodule("0"), PackedConv2d)
    assert isinstance(loaded.get_submodule("8"), PackedLinear)
    for name, value in student.state_dict().items():
        if name in loaded.state_dict():
            assert torch.equal(value, loaded.state_dict()[name])
    assert set(student.state_dict()) - set(loaded.state_dict()) == {
        "0.weight", "3.weight", "8.weight",
    }  # fmt: skip
    # What was loaded can be written again, and is the same file.
    gdfq.save(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


class Calls(nn.Module):
    """Layers called as functions: a weight used twice, one computed, one that more reads."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Parameter(torch.randn(4, 4, 3, 3) / 3)
        self.computed = nn.Parameter(torch.randn(4, 2, 3, 3) / 3)
        self.register_buffer("matrix", torch.randn(5, 4))
        self.read = nn.Parameter(torch.randn(5, 5))

    def forward(self, x):
        x = F.relu(F.conv2d(x, self.computed - self.computed.mean(), padding=1))
        x = F.relu(F.conv2d(x, self.twice, padding=1) + x)
        x = F.relu(F.conv2d(x, weight=self.twice, stride=2))
        x = F.linear(x.mean((2, 3)), self.matrix)
        return F.linear(x, self.read) + self.read.sum()


@pytest.mark.parametrize("channels_last", [False, True])
def test_weights_of_functions_come_back(tmp_path, channels_last):
    images = torch.randn(8, 2, 8, 8)
    student = student_of(Calls().eval(), images, 5, 4, channels_last, first_last_bits=7)
    gdfq.save(student, tmp_path / "s")
    stored = load_file(tmp_path / "s")
    assert {k for k in stored if k.endswith(".codes")} == {
        "conv2d_weight_1.codes", "linear_weight.codes", "linear_weight_1.codes"
    }  # fmt: skip
    assert stored["conv2d_weight_1.codes"].numel() == 4 * 4 * 9 * 5 // 8
    # What is read elsewhere or computed is there as it was; the rest is not.
    assert {"computed", "read"} <= stored.keys()
    assert not {"twice", "matrix"} & stored.keys()
    loaded = gdfq.load(tmp_path / "s", Calls())
    assert torch.equal(loaded(images), student(images))
    assert loaded.conv2d_weight_1 is loaded.conv2d_weight_2
    gdfq.save(loaded, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "s").read_bytes()
    with torch.no_grad():
        student.twice[0] = float("nan")
    with pytest.raises(gdfq.InputError, match="weight of conv2d_weight_1 is not finite"):
        gdfq.save(student, tmp_path / "s")


def test_a_weight_that_two_calls_quantize_to_other_bits_comes_back(tmp_path):
    images = torch.randn(8, 2, 8, 8)
    student = student_of(Calls().eval(), images)
    student.get_submodule("conv2d_weight_2").weight_bits = 6
    gdfq.save(student, tmp_path / "s")
    loaded = gdfq.load(tmp_path / "s", Calls())
    assert torch.equal(loaded(images), student(images))
    calls = [loaded.get_submodule(f"conv2d_weight_{n}") for n in (1, 2)]
    assert [call.weight_bits for call in calls] == [4, 6]


@pytest.mark.parametrize("decompose", [False, True])
def test_weights_of_functions_in_a_program(tmp_path, decompose):
    images = torch.randn(8, 2, 8, 8)
    student = student_of(Calls().eval(), images)
    gdfq.save(student, tmp_path / "s")
    for network in (student, gdfq.load(tmp_path / "s", Calls())):
        export_pt2(network, tmp_path / "p.pt2", images, decompose=decompose)
        program = torch.export.load(tmp_path / "p.pt2").module()
        assert torch.equal(program(images), student(images))


@pytest.mark.parametrize("quantize_inputs", [False, True])
def test_zero_in_range_comes_back(tmp_path, quantize_inputs):
    model, images = tiny_teacher(), torch.rand(8, 2, 8, 8) + 1
    with torch.no_grad():
        model[0].weight[:2] = 0.5 + torch.rand(2, *model[0].weight.shape[1:])
    options = {"zero_in_range": True, "quantize_inputs": quantize_inputs}
    student = student_of(model, images, **options)
    codes, _, zero = student.get_submodule("0").weight_codes()
    assert (zero - 8 <= 0).all()
    gdfq.save(student, tmp_path / "s")
    same = gdfq.quantize_model(model, quantize_inputs=quantize_inputs)
    loaded = gdfq.load(tmp_path / "s", same)
    assert torch.equal(loaded(images), student(images))
    acts = [m for m in loaded.modules() if isinstance(m, QAct)]
    assert all(act.zero_in_range and act.lo <= 0 <= act.hi for act in acts)
    assert torch.equal(loaded.get_submodule("0").weight_codes()[0], codes)


def test_zero_in_range_of_functions_comes_back(tmp_path):
    """Weights above 0, of which a range that contains 0 has other codes."""
    model, images = Calls().eval(), torch.randn(8, 2, 8, 8)
    with torch.no_grad():
        for weight in (model.twice, model.computed, model.matrix, model.read):
            weight.copy_(weight.abs() + 1)
    narrow, student = (student_of(model, images, zero_in_range=zero) for zero in (False, True))
    quantizer = student.get_submodule("conv2d_weight_1")
    half = 2 ** (quantizer.weight_bits - 1)
    _, scale, zero = quantizer.codes_of(model.twice)
    top = model.twice.detach().flatten(1).amax(1)
    torch.testing.assert_close(scale, (2 * half - 1) / top)
    assert (zero == half).all()
    gdfq.save(student, tmp_path / "s")
    loaded = gdfq.load(tmp_path / "s", Calls())
    assert torch.equal(loaded(images), student(images))
    assert not torch.equal(student(images), narrow(images))
    stored = load_file(tmp_path / "s")
    assert torch.equal(stored["conv2d_weight_1.scale"], scale)
    assert torch.equal(stored["linear_weight.zero"], torch.full((5,), float(half)))


def test_zero_in_range_of_computed_weights_comes_back(tmp_path):
    class Computed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(-1, 1, 72).view(4, 2, 3, 3))

        def forward(self, x):
            return F.relu(F.conv2d(x, self.weight.abs() + 1)).mean((2, 3))

    images = torch.randn(8, 2, 8, 8)
    student = student_of(Computed().eval(), images, zero_in_range=True)
    gdfq.save(student, tmp_path / "s")
    loaded = gdfq.load(tmp_path / "s", Computed())
    assert torch.equal(loaded(images), student(images))
    assert not torch.equal(student(images), student_of(Computed().eval(), images)(images))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_come_back(tmp_path, dtype):
    images = torch.randn(8, 2, 8, 8, dtype=dtype)
    student = student_of(tiny_teacher().to(dtype), images)
    gdfq.save(student, tmp_path / "s")
    assert torch.equal(gdfq.load(tmp_path / "s", tiny_teacher().to(dtype))(images), student(images))


def test_an_input_quantizer_and_shared_modules_come_back(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = gdfq.nn.QConv2d(2, 2, 3, padding=1, weight_bits=3, act_bits=5)
            self.twice = nn.Conv2d(2, 2, 3, padding="same", padding_mode="reflect")
            self.also = self.twice
            self.norm = nn.BatchNorm2d(2)
            self.relu = nn.ReLU6()

        def forward(self, x):
            x = self.relu(self.norm(self.twice(self.first(x))))
            return self.relu(self.also(x)).mean((2, 3))

    images = torch.randn(4, 2, 8, 8)
    net = Net().eval()
    student = student_of(net, images, 2, 4)
    gdfq.save(student, tmp_path / "s")
    stored = load_file(tmp_path / "s")
    assert "also.codes" not in stored  # written once
    for model in (net, gdfq.quantize_model(net)):
        loaded = gdfq.load(tmp_path / "s", model)
        assert loaded.twice is loaded.also
        assert torch.equal(loaded(images), student(images))
        assert loaded.first.weight_bits == 3
        assert loaded.first.input_quantizer.act_bits == 5
        assert loaded.relu.act_bits == 4


def test_the_recipe_in_the_file_names_the_architecture(tmp_path, monkeypatch):
    recipe = load_recipe("fashion-mnist-resnet20").with_options({"weight_bits": 3})
    images = torch.randn(4, 1, 28, 28)
    recipe, teacher = build_teacher(recipe)
    student = build_student(recipe, teacher.network).to(memory_format=torch.channels_last)
    observed = observing_copy(student)
    observed(images)
    student.load_state_dict(observed.state_dict())
    gdfq.save(student, tmp_path / "s.safetensors", recipe)
    monkeypatch.setattr("gdfq.sources.registries.EMBEDDED_WEIGHTS", {})
    assert torch.equal(gdfq.load(tmp_path / "s.safetensors")(images), student(images))
    header, _ = packed.read(tmp_path / "s.safetensors")
    assert header.parsed_recipe() == recipe


@pytest.mark.parametrize(("bits", "times"), [(4, 7), (3, 9)])
def test_resnet18_is_small_and_loads_by_its_recipe_alone(tmp_path, bits, times):
    torchvision = pytest.importorskip("torchvision")
    options = {"model": "torchvision:resnet18", "weights": "random", "data": "none", "channels": 3,
               "num_classes": 1000, "image_size": 64, "mean": [0.5] * 3, "std": [0.5] * 3,
               "weight_bits": bits}  # fmt: skip
    recipe = load_recipe("fashion-mnist-resnet20").with_options(options)
    network = torchvision.models.resnet18().eval()
    images = torch.randn(2, 3, 64, 64)
    student = student_of(network, images, bits, 4)
    save_file(network.state_dict(), tmp_path / "float")
    gdfq.save(student, tmp_path / "packed", recipe)
    small, large = ((tmp_path / name).stat().st_size for name in ("packed", "float"))
    assert small <= large / times
    assert torch.equal(gdfq.load(tmp_path / "packed")(images), student(images))


@pytest.fixture(scope="module")
def packed_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "student.safetensors"
    gdfq.save(student_of(tiny_teacher(), torch.randn(8, 2, 8, 8)), path)
    return path


def test_damaged_and_foreign_files_are_named(tmp_path, packed_file):
    raw = packed_file.read_bytes()
    with safe_open(packed_file, "pt") as file:
        header = json.loads(file.metadata()["gdfq"])
    state = load_file(packed_file)

    def attempt(content, match, model=None):
        path = tmp_path / "file.safetensors"
        path.write_bytes(content)
        with pytest.raises(gdfq.InputError, match=match):
            gdfq.load(path, tiny_teacher() if model is None else model)

    with pytest.raises(gdfq.InputError, match="there is no file"):
        gdfq.load(tmp_path / "nothing")
    with pytest.raises(gdfq.InputError, match="there is no file"):
        gdfq.load(tmp_path)
    attempt(b"", "damaged")
    attempt(raw[: len(raw) // 2], "damaged")
    attempt(b"PK\x03\x04" + raw, "damaged")
    attempt(save(state), "not a packed student")
    attempt(save(state, {"gdfq": "{"}), "header of .* is damaged")
    attempt(save(state, {"gdfq": "3"}), "header of .* is damaged")
    attempt(save(state, {"gdfq": json.dumps({**header, "format": 2})}), "format: must be 1, got 2")
    wide = {**header, "layers": {"0": {**header["layers"]["0"], "weight_bits": 9}}}
    expected = "layers.0.weight_bits: must be an int from 2 to 8, got 9"
    attempt(save(state, {"gdfq": json.dumps(wide)}), expected)
    bits = json.loads(json.dumps(header))
    bits["layers"]["0"]["weight_bits"] = 3
    attempt(save(state, {"gdfq": json.dumps(bits)}), "0.codes has another shape")
    kept = {k: v for k, v in state.items() if k != "3.scale"}
    attempt(save(kept, {"gdfq": json.dumps(header)}), "3.scale is missing")
    attempt(
        save({**state, "more": state["3.scale"].clone()}, {"gdfq": json.dumps(header)}),
        "more is not",
    )
    attempt(raw, "0 is conv2d .* in the model", tiny_teacher(channels=3))
    with pytest.raises(gdfq.InputError, match="saved without a recipe"):
        gdfq.load(packed_file)


def test_what_cannot_be_saved_is_refused(tmp_path):
    with pytest.raises(gdfq.InputError, match="must come from"):
        gdfq.save(nn.Linear(2, 2), tmp_path / "s")
    student = gdfq.quantize_model(tiny_teacher())
    with pytest.raises(gdfq.InputError, match="no range yet"):
        gdfq.save(student, tmp_path / "s")
    student = student_of(tiny_teacher(), torch.randn(8, 2, 8, 8))
    student.get_submodule("0").weight.data[0] = float("nan")
    with pytest.raises(gdfq.InputError, match="not finite"):
        gdfq.save(student, tmp_path / "s")
    student.get_submodule("0").weight.data[0] = 1
    with pytest.raises(gdfq.InputError, match="cannot write"):
        gdfq.save(student, tmp_path / "nowhere" / "s")


READERS = {
    "mean": lambda self, x: self.fc(x) * self.fc.weight.mean(),
    "penalty": lambda self, x: self.fc(x) + self.conv.weight.abs().sum(),
    "bias": lambda self, x: self.fc(x) + self.fc.bias,
    "shape": lambda self, x: self.fc(x) * self.fc.weight.shape[0],
    "function": lambda self, x: F.linear(self.fc(x), self.fc.weight),
    "product": lambda self, x: self.fc(x) @ self.fc.weight.t(),
    "tied, transposed": lambda self, x: F.linear(self.fc(x), self.fc.weight.t()),
    "tied, own name": lambda self, x: self.fc(x) @ self.own,
}


class Reader(nn.Module):
    """A network whose forward reads a layer's weight, as ``kind`` says."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 4)
        if "own" in kind:
            self.own = self.fc.weight

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x))).mean((2, 3))
        return READERS[self.kind](self, x)


@pytest.mark.parametrize("kind", READERS)
def test_a_weight_that_the_network_reads_itself_is_the_float_one_after_packing_too(tmp_path, kind):
    images = torch.randn(8, 2, 8, 8)
    model = Reader(kind).eval()
    student = student_of(model, images)
    answer = student(images)
    if kind == "mean":
        fc = student.get_submodule("fc")
        features = []
        fc.register_forward_hook(lambda layer, inputs, output: features.append(output))
        assert torch.equal(student(images), features[0] * model.fc.weight.mean())
        fc._forward_hooks.clear()
    gdfq.save(student, tmp_path / "s")
    loaded = gdfq.load(tmp_path / "s", model)
    assert isinstance(loaded.fc, PackedLinear)
    for network in (loaded, pickle.loads(pickle.dumps(loaded)), copy.deepcopy(loaded)):
        assert torch.equal(network(images), answer)
    assert ("fc.weight" in load_file(tmp_path / "s")) == (
        kind in ("mean", "shape", "product", "tied, transposed")
    )
    assert not any(p.requires_grad for p in (loaded.fc.codes, *loaded.fc.parameters()))
    gdfq.save(loaded, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "s").read_bytes()
    export_pt2(student, tmp_path / "p.pt2", images)
    assert torch.equal(torch.export.load(tmp_path / "p.pt2").module()(images), answer)
    if kind in ("mean", "penalty", "function", "product", "tied, transposed"):
        with pytest.raises(gdfq.InputError, match=r"the network reads (fc|conv)\.weight itself"):
            export_onnx(student, tmp_path / "n.onnx", images)
