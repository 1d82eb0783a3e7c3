import copy
import io

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import gdfq
from gdfq.nn import QAct, QConv2d, QLinear, average_weight_bits


def calibrated(student, x):
    for module in student.modules():
        if isinstance(module, QAct):
            module.train()
    with torch.no_grad():
        student(x)
    return student.eval()


class Everything(nn.Module):
    """Functional and module activations, a shared module, a ModuleList, nesting, a residual."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(nn.BatchNorm2d(8)))
        self.relu = nn.ReLU(inplace=True)
        self.blocks = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)])
        self.shared = nn.Conv2d(8, 8, 1)
        self.alias = self.shared
        self.unused = nn.Conv2d(1, 1, 1)
        self.register_buffer("offset", torch.full((1,), 0.5))
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.relu(self.stem(x))
        for block in self.blocks:
            x = self.relu(block(x)) + x
        x = F.relu6(self.shared(x))
        x = torch.relu(self.alias(x) + self.offset)
        x = F.adaptive_avg_pool2d(x, 1).relu()
        return self.fc(torch.flatten(x, 1))


def test_converts_everything():
    model = Everything().eval()
    student = gdfq.quantize_model(model, weight_bits=3, act_bits=2)
    acts = {name: m.act for name, m in student.named_modules() if isinstance(m, QAct)}
    assert acts == {
        "relu": "relu",
        "relu_1": "relu",
        "relu_2": "relu",
        "relu6": "relu6",
        "relu_3": "relu",
        "relu_4": "relu",
    }
    assert all(
        isinstance(student.get_submodule(n), QConv2d) for n in ("stem.0", "blocks.1", "shared")
    )
    assert student.get_submodule("alias") is student.get_submodule("shared")
    assert isinstance(student.get_submodule("fc"), QLinear)
    assert student.coverage.uncovered == []
    seen = []
    for module in student.modules():
        if isinstance(module, QAct):
            module.register_forward_hook(lambda m, i, o: seen.append(len(o.unique())))
    calibrated(student, torch.randn(2, 3, 8, 8))
    assert len(seen) == 6
    assert max(seen) <= 4


def test_state_dict_keeps_every_name_of_the_teacher():
    model = Everything()
    student = gdfq.quantize_model(model)
    missing = model.state_dict().keys() - student.state_dict().keys()
    assert not missing
    added = student.state_dict().keys() - model.state_dict().keys()
    ranges = {"lo", "hi", "average_lo", "average_hi", "num_batches_tracked"}
    assert {name.rsplit(".", 1)[1] for name in added} == ranges


def test_the_teacher_is_not_modified():
    model = Everything().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    kinds = [type(m) for m in model.modules()]
    student = gdfq.quantize_model(model)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1)
    assert [type(m) for m in model.modules()] == kinds
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_eight_bits_are_close_to_the_teacher():
    torch.manual_seed(0)
    model, x = Everything().eval(), torch.randn(8, 3, 8, 8)
    student = calibrated(gdfq.quantize_model(model, 8, 8), x)
    with torch.no_grad():
        error = (student(x) - model(x)).abs().max() / model(x).abs().max()
    assert error < 0.05


def test_zero_in_range_is_that_of_every_layer():
    model = Everything().eval()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.weight.abs_()
    options = {"zero_in_range": True, "quantize_inputs": True}
    student = calibrated(gdfq.quantize_model(model, **options), torch.rand(8, 3, 8, 8) + 1)
    seen = set()
    for module in student.modules():
        if isinstance(module, QAct):
            assert module.lo <= 0 <= module.hi
        elif isinstance(module, (QConv2d, QLinear)):
            zero = module.weight_codes()[2]
            assert ((zero - 8 <= 0) & (zero + 7 >= 0)).all()
        seen.add((type(module), getattr(module, "zero_in_range", None)))
    assert {(QAct, True), (QConv2d, True), (QLinear, True)} <= seen
    assert not any(zero is False for _, zero in seen)
    plain = gdfq.quantize_model(model)
    assert not any(getattr(module, "zero_in_range", False) for module in plain.modules())


def test_copies_and_pickles():
    x = torch.randn(2, 3, 8, 8)
    student = calibrated(gdfq.quantize_model(Everything()), x)
    expected = student(x)
    stored = io.BytesIO()
    torch.save(student, stored)
    stored.seek(0)
    for other in (copy.deepcopy(student), torch.load(stored, weights_only=False)):
        assert torch.equal(other(x), expected)
        assert other.state_dict().keys() == student.state_dict().keys()
        assert other.coverage == student.coverage
        assert copy.deepcopy(other).state_dict().keys() == student.state_dict().keys()
        assert other.fc.weight is not student.fc.weight


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.thorough)]
)
def test_compiles_without_graph_break(backend):
    x = torch.randn(2, 3, 8, 8)
    student = calibrated(gdfq.quantize_model(Everything(), 8, 8), x)
    compiled = torch.compile(student, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), student(x), rtol=0.1, atol=0.1)
    compiled(x).sum().backward()
    assert student.fc.weight.grad.abs().sum() > 0


def test_exports():
    x = torch.randn(2, 3, 8, 8)
    student = calibrated(gdfq.quantize_model(Everything()), x)
    program = torch.export.export(student, (x,))
    targets = {str(node.target) for node in program.graph.nodes}
    assert "gdfq.fake_quantize.default" in targets
    assert torch.equal(program.module()(x), student(x))


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "mobilenet_v2", "squeezenet1_1"])
def test_torchvision_networks(name):
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None).eval()
    student = gdfq.quantize_model(model, 4, 4, strict=True)
    assert not model.state_dict().keys() - student.state_dict().keys()
    calibrated(student, torch.randn(2, 3, 64, 64))
    assert student(torch.randn(2, 3, 64, 64)).isfinite().all()


def test_resnet_has_one_range_per_use():
    student = gdfq.quantize_model(torchvision.models.resnet18(weights=None))
    assert sum(isinstance(m, QAct) for m in student.modules()) == 17


def test_uncovered_operations_are_listed_and_strict_refuses_them():
    norm = nn.LocalResponseNorm(2)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Conv2d(4, 4, 1), nn.ReLU())
    report = gdfq.quantize_model(model).coverage
    assert [(op.name, op.kind) for op in report.uncovered] == [("1", "LocalResponseNorm")]
    assert report.counts() == {"quantized": 3, "float": 0, "uncovered": 1}
    assert "LocalResponseNorm" in str(report)
    with pytest.raises(gdfq.InputError, match=r"strict=True.*1 \(LocalResponseNorm\)"):
        gdfq.quantize_model(model, strict=True)


class Aliasing(nn.Module):
    """What an in-place activation changes is read again under the old name."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        y = self.relu(x)
        z = self.conv(y) + x
        F.relu(z, inplace=True)
        return z


def test_in_place_activations_change_what_reads_their_input_later():
    torch.manual_seed(0)
    model, x = Aliasing(), torch.randn(2, 4, 6, 6)
    student = calibrated(gdfq.quantize_model(model, 8, 8), x)
    expected = model(x)
    assert (student(x) - expected).abs().max() < 0.05 * expected.abs().max()


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        if x.sum() > 0:  # the line to name
            return self.conv(x)
        return x


def test_untraceable_names_the_line_and_the_way_out():
    with pytest.raises(
        gdfq.InputError, match=r"test_convert\.py:\d+.*x\.sum\(\) > 0.*leaf_modules"
    ):
        gdfq.quantize_model(nn.Sequential(Branching(), nn.ReLU()))


def test_every_module_that_cannot_be_traced_is_named_at_once():
    inner = nn.Sequential(Branching(), nn.ReLU())
    model = nn.Sequential(inner, nn.Conv2d(4, 3, 1), Branching(), nn.Conv2d(4, 4, 1))
    named = r"x\.sum\(\) > 0.*the modules that hold such lines in leaf_modules=\['0\.0', '2'\] "
    with pytest.raises(gdfq.InputError, match=named):
        gdfq.quantize_model(model)
    with pytest.raises(gdfq.InputError, match=r"the module that holds .* leaf_modules=\['0\.0'\]"):
        gdfq.quantize_model(model, leaf_modules=["2"])
    student = gdfq.quantize_model(model, leaf_modules=["0.0", "2"])
    assert [op.name for op in student.coverage.uncovered] == ["0.0", "2"]


@pytest.mark.parametrize("leaf", [Branching, "0"])
def test_leaf_modules_stay_in_float(leaf):
    model = nn.Sequential(Branching(), nn.ReLU(), nn.Conv2d(4, 4, 1))
    student = gdfq.quantize_model(model, leaf_modules=[leaf])
    assert [op.name for op in student.coverage.uncovered] == ["0"]
    assert type(student.get_submodule("0.conv")) is nn.Conv2d


def test_a_leaf_convolution_stays_in_float():
    student = gdfq.quantize_model(Everything(), leaf_modules=["stem.0"])
    assert type(student.get_submodule("stem.0")) is nn.Conv2d
    assert [op.name for op in student.coverage.uncovered] == ["stem.0"]


def test_subclasses_with_their_own_forward_are_not_replaced():
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    student = gdfq.quantize_model(
        nn.Sequential(Doubled(3, 4, 1), nn.ReLU()), leaf_modules=[Doubled]
    )
    assert [op.kind for op in student.coverage.uncovered] == ["Doubled"]


class Calls(nn.Module):
    """Layers called as functions: a weight used twice, one computed, one made of the input."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Parameter(torch.randn(4, 4, 3, 3))
        self.computed = nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        x = F.conv2d(F.relu(F.conv2d(x, self.twice)), self.twice)
        x = F.conv2d(x, x.mean((0, 2, 3)).view(4, 1, 1, 1), groups=4)
        return F.linear(x.mean((2, 3)), self.computed - self.computed.mean())


def test_weights_of_functions_count_once_in_the_average():
    student = gdfq.quantize_model(Calls(), 3, bits={"linear_weight": {"weight": 8}})
    assert average_weight_bits(student) == (3 * 144 + 8 * 12) / 156
    mixed = nn.Sequential(nn.Conv2d(4, 4, 1), Calls())
    student = gdfq.quantize_model(mixed, 3, bits={"0": {"weight": 5}})
    assert average_weight_bits(student) == (5 * 16 + 3 * 156) / 172
    with pytest.raises(gdfq.InputError, match="model: has no quantized weight"):
        average_weight_bits(Calls())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gdfq.quantize_model(Everything(), 1), "weight_bits: .* got 1"),
        (lambda: gdfq.quantize_model(Everything(), 4, 9), "act_bits: .* got 9"),
        (lambda: gdfq.quantize_model("resnet18"), "model: must be an nn.Module, got str"),
        (lambda: gdfq.quantize_model(nn.Sequential(nn.Softmax(1))), "model: has no Conv2d"),
        (lambda: gdfq.quantize_model(Everything(), ste="soft"), "ste: .* got 'soft'"),
        (lambda: gdfq.quantize_model(Everything(), leaf_modules=["nope"]), "no module 'nope'"),
        (
            lambda: gdfq.quantize_model(Everything(), leaf_modules="fc"),
            "leaf_modules: must be a list, each",
        ),
        (lambda: gdfq.quantize_model(Everything(), leaf_modules=None), "got None$"),
        (lambda: gdfq.quantize_model(Everything(), leaf_modules=nn.Conv2d), "got <class 'torch"),
        (lambda: gdfq.quantize_model(Everything(), strict="a"), "strict: must be true or false"),
        (
            lambda: gdfq.quantize_model(Everything(), quantize_inputs=1),
            "quantize_inputs: must be true or false, got 1",
        ),
        (
            lambda: gdfq.quantize_model(Everything(), leaf_modules=[5]),
            "nn.Module class, got the entry 5",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(gdfq.InputError, match=message):
        make()
