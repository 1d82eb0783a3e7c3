"""Activations of every kind, layers that are functions, subclasses of layers."""

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gdfq
from gdfq.convert.fusion import fuse
from gdfq.nn import QAct, QConv2d, QLinear, StatisticsTeacher
from gdfq.nn.weight import WeightQuantizer
from tests.convert.test_convert import calibrated
from tests.helpers.tiny import Operators

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def close_at_eight_bits(model):
    """The student of ``model``, whose output at 8 bits is the model's but for rounding."""
    model = model.eval()
    student = calibrated(gdfq.quantize_model(model, 8, 8, strict=True), X)
    with torch.no_grad():
        expected = model(X)
        error = (student(X) - expected).abs().max() / expected.abs().max()
    assert error < 0.05
    return student


def names(student, kind=QAct):
    return [name for name, module in student.named_modules() if isinstance(module, kind)]


# ---- activations ----


class OwnSwish(nn.Module):
    """As libraries write it: the flag is about the input."""

    def __init__(self, inplace=False):
        super().__init__()
        self.inplace = inplace

    def forward(self, x):
        return x.mul_(x.sigmoid()) if self.inplace else x * x.sigmoid()


Swish = type("Swish", (OwnSwish,), {})

MODULES = [
    nn.SiLU(), nn.SiLU(inplace=True), nn.Hardswish(), nn.Hardswish(inplace=True), nn.GELU(),
    nn.Hardsigmoid(), nn.Sigmoid(), nn.Tanh(), nn.LeakyReLU(0.2), nn.LeakyReLU(0.2, inplace=True),
    nn.PReLU(), nn.PReLU(4), nn.ELU(), nn.ELU(inplace=True), nn.SELU(), nn.CELU(), nn.Mish(),
    nn.Softplus(), nn.Softsign(), nn.LogSigmoid(), nn.Hardtanh(), nn.Threshold(0.1, 0.1),
    nn.Hardshrink(0.01), nn.Softshrink(), nn.Tanhshrink(), Swish(), Swish(inplace=True),
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_activation_modules(module):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), copy.deepcopy(module), nn.Conv2d(4, 4, 1))
    student = close_at_eight_bits(model)
    assert names(student) == ["1.quantizer"]
    assert student.coverage.counts() == {"quantized": 3, "float": 0, "uncovered": 0}
    with torch.no_grad():
        values = module(student.get_submodule("0")(X))
    quantizer = student.get_submodule("1.quantizer")
    torch.testing.assert_close(quantizer.lo, values.min())
    torch.testing.assert_close(quantizer.hi, values.max())
    assert not model.state_dict().keys() - student.state_dict().keys()


FUNCTIONS = {
    "silu": F.silu,
    "silu in place": lambda x: F.silu(x, inplace=True),
    "silu in place, by position": lambda x: F.silu(x, True),
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "gelu of tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardsigmoid": F.hardsigmoid,
    "F.sigmoid": F.sigmoid,
    "torch.sigmoid": torch.sigmoid,
    "torch.sigmoid_": torch.sigmoid_,
    "sigmoid": lambda x: x.sigmoid(),
    "sigmoid_": lambda x: x.sigmoid_(),
    "tanh": torch.tanh,
    "tanh_": lambda x: x.tanh_(),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "leaky_relu_": lambda x: F.leaky_relu_(x, 0.2),
    "elu": F.elu,
    "elu_": F.elu_,
    "selu": F.selu,
    "celu": F.celu,
    "mish": F.mish,
    "softplus": F.softplus,
    "hardtanh": F.hardtanh,
    "clamp, a ReLU6": lambda x: x.clamp(0, 6),
    "clamp_, a ReLU": lambda x: x.clamp_(min=0),
    "clip, a ReLU6": lambda x: torch.clip(x, min=0.0, max=6.0),
}


class Applied(nn.Module):
    """A function between two convolutions; what it reads is read again afterwards."""

    def __init__(self, function):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.function = function

    def forward(self, x):
        x = self.first(x)
        y = self.function(x)
        return self.second(y) + x


@pytest.mark.parametrize("name", FUNCTIONS)
def test_activation_functions(name):
    torch.manual_seed(0)
    student = close_at_eight_bits(Applied(FUNCTIONS[name]))
    assert len(names(student)) == 1
    assert student.coverage.counts() == {"quantized": 3, "float": 1, "uncovered": 0}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_range_of_an_activation_function_is_that_of_its_values(name):
    """Values far beyond the bounds that some of them have."""
    torch.manual_seed(0)
    student = calibrated(gdfq.quantize_model(Applied(FUNCTIONS[name]), 8, 8), 20 * X)
    (quantizer,) = map(student.get_submodule, names(student))
    with torch.no_grad():
        before = student.first(20 * X)
        assert before.max() > 12
        values = FUNCTIONS[name](before)
    torch.testing.assert_close(quantizer.lo, values.min())
    torch.testing.assert_close(quantizer.hi, values.max())


def test_in_place_activations_change_what_reads_their_input_later():
    """Here, as in the model, the second reader gets the activation's output."""
    student = calibrated(gdfq.quantize_model(Applied(lambda x: x.sigmoid_()), 2, 2), X)
    codes = []
    student.get_submodule("sigmoid").register_forward_hook(lambda m, i, y: codes.append(y))
    with torch.no_grad():
        sum_, product = student(X), student.second(codes[0] if codes else student(X))
    torch.testing.assert_close(sum_, product + codes[0])


def test_an_inplace_flag_that_is_not_about_the_input():
    class HSwish(nn.Module):  # as pytorchcv's
        inplace = True

        def forward(self, x):
            return x * F.relu6(x + 3.0, inplace=self.inplace) / 6.0

    close_at_eight_bits(Applied(HSwish()))


def test_a_clamp_to_other_bounds_is_no_activation():
    student = gdfq.quantize_model(Applied(lambda x: x.clamp(-1, 1)))
    assert [op.kind for op in student.coverage.uncovered] == ["clamp"]


def test_an_activation_used_twice_has_two_ranges():
    silu = nn.SiLU()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), silu, nn.Conv2d(4, 4, 1), silu)
    student = gdfq.quantize_model(model, bits={"1.quantizer_1": {"act": 8}})
    assert names(student) == ["1.quantizer", "1.quantizer_1"]
    assert [op.bits for op in student.coverage.operations] == [4, 4, 4, 8]
    calibrated(student, X)
    ranges = [student.get_submodule(name).hi for name in names(student)]
    assert ranges[0] != ranges[1]


# ---- squeeze and excitation; what layers read ----


class Excited(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.reduce, self.expand = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def forward(self, x):
        x = F.silu(self.first(x))
        batch, channels = x.shape[0], x.size(1)
        gate = F.relu(self.reduce(x.mean((2, 3), keepdim=True)))
        gate = self.expand(gate).sigmoid().view(batch, channels * 1, 1, 1)
        return self.second(x * gate)


def test_squeeze_and_excitation_and_what_its_readers_read():
    torch.manual_seed(0)
    student = close_at_eight_bits(Excited())
    assert names(student) == ["silu", "relu", "sigmoid"]
    report = student.coverage
    assert [(op.name, op.float_input) for op in report.float_inputs] == [
        ("first", "the input"),
        ("second", "mul_1"),
    ]
    reasons = {op.name: op.reason for op in report.operations}
    assert reasons["mul"] == "computes with shapes, not with values"
    assert reasons["mul_1"].startswith("a product: no activation behind it")
    assert "second     Conv2d   quantized" in str(report)
    assert "reads float values, from mul_1" in str(report)
    assert str(report).endswith("2 layers read float values")


def test_inputs_quantized_too():
    torch.manual_seed(0)
    student = gdfq.quantize_model(
        Excited(), 8, 8, quantize_inputs=True, bits={"first.input": {"act": 5}}
    )
    assert names(student) == ["first.input", "second.input", "silu", "relu", "sigmoid"]
    assert student.coverage.float_inputs == []
    read = {}
    for name in ("first", "second"):
        student.get_submodule(name).register_forward_pre_hook(
            lambda m, args, name=name: read.update({name: args[0]})
        )
    calibrated(student, X)
    assert len(read["first"].unique()) <= 32
    assert len(read["second"].unique()) <= 256
    by_name = {op.name: op.bits for op in student.coverage.operations}
    assert (by_name["first.input"], by_name["second.input"]) == (5, 8)


def test_what_is_quantized_already_gets_no_second_quantizer():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1),
    )  # fmt: skip
    student = gdfq.quantize_model(model, quantize_inputs=True)
    assert [op.name for op in student.coverage.operations if op.kind == "input"] == [
        "0.input",
        "6.input",
    ]
    model[4] = QConv2d.from_float(model[4], act_bits=4)
    model[6] = QConv2d.from_float(model[6], act_bits=4)
    student = gdfq.quantize_model(model)
    assert [op.name for op in student.coverage.float_inputs] == ["0"]


def test_a_concatenation_is_in_float_if_any_of_its_parts_is():
    class Joined(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(8, 4, 1)
            self.act = act

        def forward(self, x):
            x = self.first(x)
            return self.second(torch.cat([F.relu(x), self.act(x)], 1))

    sources = {}
    for act in (nn.Tanh(), nn.Identity()):
        report = gdfq.quantize_model(Joined(act)).coverage
        sources[type(act)] = {op.name: op.float_input for op in report.float_inputs}
    assert sources == {
        nn.Tanh: {"first": "the input"},
        nn.Identity: {"first": "the input", "second": "first"},
    }


# ---- layers that are functions; subclasses ----


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.matrix = nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        x = F.relu(F.conv2d(x, self.kernel, stride=2))
        return F.linear(x.mean((2, 3)), weight=self.matrix)


def test_functional_layers_have_quantized_weights():
    torch.manual_seed(0)
    model = Functional()
    student = close_at_eight_bits(model)
    assert names(student, WeightQuantizer) == ["conv2d_weight", "linear_weight"]
    assert student.state_dict().keys() >= model.state_dict().keys()
    student = gdfq.quantize_model(
        model, 3, 3, first_last_bits=8, bits={"linear_weight": {"weight": 2}}
    )
    seen = {}
    for name in names(student, WeightQuantizer):
        student.get_submodule(name).register_forward_hook(
            lambda m, i, y, name=name: seen.update({name: max(len(row.unique()) for row in y)})
        )
    calibrated(student, X)
    assert (student.conv2d_weight.weight_bits, student.linear_weight.weight_bits) == (8, 2)
    assert seen["linear_weight"] <= 4 < seen["conv2d_weight"]
    stored = io.BytesIO()
    torch.save(student.state_dict(), stored)
    student(X).sum().backward()
    assert student.kernel.grad.abs().sum() > 0


def pad_by_size(x, weight, stride):
    """Padding as TensorFlow's: it depends on the image's size by control flow."""
    padding = []
    for size, kernel in zip(reversed(x.shape[-2:]), reversed(weight.shape[-2:]), strict=True):
        total = max((math.ceil(size / stride[0]) - 1) * stride[0] + kernel - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding) if any(padding) else x


class SameConv(nn.Conv2d):
    def forward(self, x):
        x = pad_by_size(x, self.weight, self.stride)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Standardized(nn.Conv2d):
    def forward(self, x):
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, self.weight - mean, self.bias)


class Doubled(nn.Linear):
    def forward(self, x):
        torch._assert(x.ndim == 2, "two dimensions")
        return super().forward(x) * 2


class NormAct(nn.BatchNorm2d):
    """As timm's: the norm's forward, checks included, then an activation that it holds."""

    def __init__(self, features, act):
        super().__init__(features, eps=1e-3)
        self.drop = nn.Identity()
        self.act = act

    def forward(self, x):
        torch._assert(x.ndim == 4, "four dimensions")
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training,
            self.momentum, self.eps,
        )  # fmt: skip
        return self.act(self.drop(x))


def subclasses():
    torch.manual_seed(0)
    model = nn.Sequential(
        SameConv(3, 4, 3, stride=2), NormAct(4, nn.ReLU(inplace=True)), Standardized(4, 4, 1),
        NormAct(4, nn.SiLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Doubled(4, 5),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, NormAct):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.eval()


def test_subclasses_become_the_layers_that_they_are():
    model = subclasses()
    student = gdfq.quantize_model(model, 8, 8, first_last_bits=7)
    assert isinstance(student.get_submodule("0"), QConv2d)
    assert isinstance(student.get_submodule("6"), QLinear)
    assert names(student, WeightQuantizer) == ["2.conv2d_weight"]
    assert [type(student.get_submodule(n)) for n in ("1", "3")] == [nn.BatchNorm2d] * 2
    assert student.get_submodule("1").eps == 1e-3
    assert names(student) == ["1.act", "3.act.quantizer"]
    assert [student.get_submodule(n).weight_bits for n in ("0", "6")] == [7, 7]
    # The function that pads is one operation; it is not known to compute nothing.
    assert [op.kind for op in student.coverage.uncovered] == ["pad_by_size"]
    assert not any(op.kind in ("_assert", "eq") for op in student.coverage.operations)
    assert student.state_dict().keys() >= model.state_dict().keys()
    calibrated(student, X)
    with torch.no_grad():
        for size in (8, 9):
            x = torch.randn(2, 3, size, size)
            assert (student(x) - model(x)).abs().max() < 0.1 * model(x).abs().max()


def test_subclasses_are_fused_and_train_as_without():
    student = calibrated(gdfq.quantize_model(subclasses(), 4, 4), X)
    fused = fuse(student, X)
    assert {place.name: place.fused for place in fused.places} == {
        "1.act": True, "3.act.quantizer": False, "3": False,
    }  # fmt: skip
    twin = copy.deepcopy(student)
    y, expected = fused(X), twin(X)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad)
    for (name, p), q in zip(student.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q[1].grad, rtol=1e-4, atol=1e-4, msg=name)


class Scaled(nn.BatchNorm2d):
    """With a parameter more than the plain layer has."""

    def __init__(self, features):
        super().__init__(features)
        self.gain = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x):
        return super().forward(x) * self.gain


def test_a_subclass_with_more_parameters_keeps_them():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Scaled(4), nn.ReLU()).eval()
    nn.init.normal_(model[1].running_mean)
    student = close_at_eight_bits(model)
    assert "1.gain" in student.state_dict()
    assert [op.kind for op in student.coverage.operations][1:] == ["batch_norm", "mul", "ReLU"]


def test_a_subclass_used_twice_is_one_layer():
    shared = NormAct(4, nn.ReLU())
    conv = Standardized(4, 4, 1)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), shared, conv, shared, conv, Doubled(6, 2))
    student = gdfq.quantize_model(nn.Sequential(*model[:5]))
    assert type(student.get_submodule("1")) is nn.BatchNorm2d
    assert student.get_submodule("3") is student.get_submodule("1")
    assert names(student) == ["1.act", "1.act_1"]


# ---- the teacher's statistics ----


def test_statistics_of_subclasses_of_batch_norm():
    """Those of the input of the normalization, and the gradient through them."""
    model = subclasses()
    inputs = []
    original = F.batch_norm

    def record(x, *args, **kwargs):
        inputs.append(x)
        return original(x, *args, **kwargs)

    images = X.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "batch_norm", record)
        expected = model(images)
    teacher = StatisticsTeacher(model)
    mine = X.clone().requires_grad_()
    logits, statistics = teacher(mine)
    torch.testing.assert_close(logits, expected)
    assert len(statistics.means) == 2
    norms = [model[1], model[3]]
    for norm, x, mean, var, stored_mean, stored_var in zip(norms, inputs, *statistics, strict=True):
        torch.testing.assert_close(mean, x.mean((0, 2, 3)))
        torch.testing.assert_close(var, x.var((0, 2, 3), correction=0))
        assert torch.equal(stored_mean, norm.running_mean)
        assert torch.equal(stored_var, norm.running_var)
    sum(v.square().sum() for v in (*statistics.means, *statistics.vars)).backward()
    sum(
        v.square().sum()
        for x in inputs
        for v in (x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0))
    ).backward()
    torch.testing.assert_close(mine.grad, images.grad, rtol=1e-4, atol=1e-5)


def test_a_batch_norm_that_normalizes_by_itself_is_refused():
    class ByHand(nn.BatchNorm2d):
        def forward(self, x):
            return x * self.weight.view(1, -1, 1, 1)

    teacher = StatisticsTeacher(nn.Sequential(nn.Conv2d(3, 4, 1), ByHand(4)))
    with pytest.raises(gdfq.InputError, match=r"'1' is a ByHand.*does not call F.batch_norm"):
        teacher(X)


class CallsBatchNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("mean", torch.randn(3))
        self.register_buffer("var", torch.rand(3) + 0.5)

    def forward(self, x):
        y = self.norm(x) + F.batch_norm(x + 1, None, None, training=True)
        return F.relu(F.batch_norm(y, self.mean, running_var=self.var)) + self.norm(y)


def test_statistics_of_batch_norm_called_as_a_function():
    model = CallsBatchNorm().eval()
    logits, statistics = StatisticsTeacher(model)(X)
    torch.testing.assert_close(logits, model(X))
    y = model.norm(X) + F.batch_norm(X + 1, None, None, training=True)
    assert len(statistics.means) == 3
    for x, mean, var in zip((X, y, y), statistics.means, statistics.vars, strict=True):
        torch.testing.assert_close(mean, x.mean((0, 2, 3)))
        torch.testing.assert_close(var, x.var((0, 2, 3), correction=0))
    for stored, expected in (
        (statistics.running_means, model.mean),
        (statistics.running_vars, model.var),
    ):
        assert torch.equal(stored[1], expected)


class ReadsWhatIsClamped(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.relu6, self.hardtanh = nn.ReLU6(inplace=True), nn.Hardtanh(-0.5, 1.5, inplace=True)

    def forward(self, x):
        y = 4 * self.norm(self.conv(x))
        return self.relu6(y) * 2 + y, self.hardtanh(y - 2)


def test_the_teacher_clamps_in_place_without_copies():
    torch.manual_seed(0)
    model = ReadsWhatIsClamped().eval()
    teacher = StatisticsTeacher(model)
    copies, gradients, outputs = [], [], []
    for network in (model, lambda x: teacher(x)[0]):
        images = X.clone().requires_grad_()
        with Operators() as operators:
            first, second = network(images)
            (first.square().sum() + second.square().sum()).backward()
        copies.append(operators.counts["aten::clone"])
        gradients.append(images.grad)
        outputs.append(torch.cat([first, second]))
    assert copies == [2, 0]
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)


# ---- what torch.fx does not trace ----


def halve_if_large(x):
    return x / 2 if x.abs().max() > 1 else x


class Helped(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.second(halve_if_large(F.relu(self.first(x))))


def test_a_function_with_control_flow_is_one_operation():
    torch.manual_seed(0)
    model = Helped()
    student = gdfq.quantize_model(model, 8, 8)
    assert [op.kind for op in student.coverage.uncovered] == ["halve_if_large"]
    assert [op.float_input for op in student.coverage.float_inputs][1] == "halve_if_large"
    with torch.no_grad():
        for scale in (0.1, 1):  # one that it leaves alone, one that it halves
            expected = model(X * scale)
            y = calibrated(copy.deepcopy(student), X * scale)(X * scale)
            assert (y - expected).abs().max() < 0.05 * expected.abs().max()
