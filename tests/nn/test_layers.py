import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gdfq
from gdfq.functional import fake_quantize_minmax
from gdfq.nn import QAct, QConv2d, QLinear

CONVOLUTIONS = [
    {"in_channels": 3, "out_channels": 8, "kernel_size": 3},
    {"in_channels": 4, "out_channels": 8, "kernel_size": 3, "stride": 2, "padding": 1},
    {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "groups": 4, "bias": False},
    {"in_channels": 4, "out_channels": 6, "kernel_size": (1, 3), "padding": "same"},
    {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1, "dilation": 2},
    {
        "in_channels": 4,
        "out_channels": 6,
        "kernel_size": 3,
        "padding": 1,
        "padding_mode": "reflect",
    },
    {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "dtype": torch.float64},
]


@pytest.mark.parametrize("arguments", CONVOLUTIONS, ids=str)
def test_conv_is_a_convolution_with_the_quantized_weight(arguments):
    conv = nn.Conv2d(**arguments)
    x = torch.randn(2, conv.in_channels, 9, 9, dtype=conv.weight.dtype)
    for quantized in (QConv2d(**arguments, weight_bits=3), QConv2d.from_float(conv, weight_bits=3)):
        quantized.load_state_dict(conv.state_dict())
        plain = copy.deepcopy(conv)
        plain.weight.data = fake_quantize_minmax(conv.weight.data, 3)
        torch.testing.assert_close(quantized(x), plain(x), rtol=0, atol=0)
        assert quantized.state_dict().keys() == conv.state_dict().keys()


def test_conv_takes_positional_arguments():
    conv, quantized = nn.Conv2d(4, 8, 3, 2, 1, 1, 2, False), QConv2d(4, 8, 3, 2, 1, 1, 2, False)
    assert quantized.weight.shape == conv.weight.shape
    assert quantized.bias is None
    assert quantized.weight_bits == 4


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_a_linear_with_the_quantized_weight(bias):
    linear = nn.Linear(7, 5, bias=bias)
    x = torch.randn(3, 7)
    expected = F.linear(x, fake_quantize_minmax(linear.weight, 2), linear.bias)
    quantized = QLinear.from_float(linear, weight_bits=2)
    torch.testing.assert_close(quantized(x), expected, rtol=0, atol=0)
    made = QLinear(7, 5, bias, weight_bits=2)
    made.load_state_dict(linear.state_dict())
    torch.testing.assert_close(made(x), expected, rtol=0, atol=0)


def test_from_float_shares_parameters_and_mode():
    conv = nn.Conv2d(3, 4, 3).eval()
    quantized = QConv2d.from_float(conv)
    assert quantized.weight is conv.weight
    assert quantized.bias is conv.bias
    assert not quantized.training


def test_gradient_reaches_the_float_weight_unchanged():
    quantized, plain = QLinear(4, 3), nn.Linear(4, 3)
    x = torch.randn(5, 4)
    quantized(x).sum().backward()
    plain(x).sum().backward()
    torch.testing.assert_close(quantized.weight.grad, plain.weight.grad)


@pytest.mark.parametrize(
    "layer", [lambda **k: QConv2d(3, 4, 3, **k), lambda **k: QLinear(9, 4, **k)]
)
def test_act_bits_quantize_the_input(layer):
    module = layer(act_bits=2)
    x = torch.randn(2, 3, 9, 9)
    module(x)
    seen = []
    module.input_quantizer.register_forward_hook(lambda m, i, o: seen.append(o))
    module.eval()(x)
    assert len(seen[0].unique()) <= 4
    assert not any(k.startswith("input_quantizer") for k in layer().state_dict())


def layers():
    return nn.Sequential(QConv2d(3, 8, 3, weight_bits=4), QAct(4), nn.Flatten(), QLinear(8 * 36, 5))


def outputs(model, x):
    with torch.no_grad():
        return model(x)


def test_copies_pickles_and_state_dicts_are_the_same_network():
    model, x = layers(), torch.randn(2, 3, 8, 8)
    model(x)
    model.eval()
    expected = outputs(model, x)
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    fresh = layers()
    fresh.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), torch.load(stored, weights_only=False), fresh.eval()):
        torch.testing.assert_close(outputs(other, x), expected, rtol=0, atol=0)


def test_channels_last_is_kept():
    model = nn.Sequential(QConv2d(3, 8, 3), QAct(4)).to(memory_format=torch.channels_last)
    y = model(torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_autocast():
    model, x = layers(), torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_half_precision_keeps_ranges_in_float32():
    model = layers().bfloat16()
    model(torch.randn(2, 3, 8, 8).bfloat16())
    assert model[1].hi.dtype == torch.float32
    model[1].hi.fill_(100000.7)
    torch.testing.assert_close(model.half().bfloat16()[1].hi, torch.tensor(100000.7))
    assert model[1].num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.thorough)]
)
def test_compiles_without_graph_break(backend):
    model, x = layers(), torch.randn(2, 3, 8, 8)
    model(x)
    model.eval()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(outputs(compiled, x), outputs(model, x), rtol=1e-4, atol=1e-4)


def test_qact_moving_average_is_corrected_on_a_copy():
    act = QAct(4, "none", momentum=0.9)
    average, batches = 0.0, [3.0, 1.0, 2.0, 7.0]
    for t, top in enumerate(batches, start=1):
        act(torch.tensor([0.0, top]))
        average = 0.9 * average + 0.1 * top
        torch.testing.assert_close(act.hi, torch.tensor(average / (1 - 0.9**t)))
        assert act.lo == 0


def test_qact_of_a_constant_never_moves():
    act = QAct(4, "relu")
    for _ in range(200):
        act(torch.ones(5))
        torch.testing.assert_close(act.hi, torch.tensor(1.0), rtol=1e-5, atol=0)


def test_qact_stands_still_in_evaluation_and_refuses_to_guess():
    act = QAct(4).eval()
    with pytest.raises(RuntimeError, match="no batch has set the range yet"):
        act(torch.ones(3))
    act.train()(torch.tensor([0.0, 1.0]))
    act.eval()(torch.tensor([0.0, 100.0]))
    torch.testing.assert_close(act.hi, torch.tensor(1.0))
    act.reset_range()
    with pytest.raises(RuntimeError, match="no batch"):
        act(torch.ones(3))


@pytest.mark.parametrize("module", [nn.ReLU(), nn.ReLU6(), nn.Identity()])
def test_qact_from_float(module):
    x = torch.linspace(-1, 9, 4000)
    act = QAct.from_float(module, act_bits=8)
    top, bottom = module(x).max(), module(x).min()
    torch.testing.assert_close(act(x), module(x), rtol=0, atol=float(top - bottom) / 255)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QConv2d(3, 4, 3, weight_bits=1), "weight_bits: must be an int from 2 to 8, got 1"),
        (lambda: QLinear(3, 4, weight_bits=9), "weight_bits: .* got 9"),
        (lambda: QLinear(3, 4, act_bits=9), "act_bits: .* got 9"),
        (lambda: QAct(1), "act_bits: .* got 1"),
        (lambda: QAct(4, "gelu"), "act: .* got 'gelu'"),
        (lambda: QAct(4, momentum=1.0), "momentum: .* got 1.0"),
        (lambda: QConv2d(3, 4, 3, ste="x"), "ste: .* got 'x'"),
        (lambda: QConv2d.from_float(nn.Linear(2, 2)), "module: must be an nn.Conv2d, got Linear"),
        (lambda: QLinear.from_float(nn.ReLU()), "module: must be an nn.Linear, got ReLU"),
        (lambda: QAct.from_float(nn.GELU()), "module: must be one of .* got GELU"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(gdfq.InputError, match=message):
        make()


# ---- ranges that contain 0 ----


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(lambda **k: QConv2d(3, 4, 3, **k), (2, 3, 9, 9)), (lambda **k: QLinear(9, 4, **k), (5, 9))],
)
def test_layers_with_zero_in_range(layer, shape):
    torch.manual_seed(0)
    module = layer(weight_bits=3, act_bits=3, zero_in_range=True)
    with torch.no_grad():
        shift = torch.tensor([2.0, -2.0, 0.0, 2.0])
        module.weight += shift.view(-1, *[1] * (module.weight.dim() - 1))
    module(torch.rand(shape) + 1)
    codes, scale, zero = module.weight_codes()
    low, high = zero - 4, zero + 3
    assert (low <= 0).all()
    assert (high >= 0).all()
    each = (-1, *[1] * (codes.dim() - 1))
    values = (codes + zero.view(each)) / scale.view(each)
    expected = fake_quantize_minmax(module.weight, 3, zero_in_range=True)
    torch.testing.assert_close(values, expected.detach(), rtol=0, atol=0)
    assert module.input_quantizer.lo == 0
    assert module.input_quantizer.hi > 1
    assert "zero_in_range=True" in repr(module)
    assert "zero_in_range" not in repr(layer(act_bits=3))


def test_from_float_with_zero_in_range():
    conv = QConv2d.from_float(nn.Conv2d(3, 4, 3), 4, 4, "clip", True)
    linear = QLinear.from_float(nn.Linear(3, 4), 4, 4, zero_in_range=True)
    act = QAct.from_float(nn.ReLU6(), zero_in_range=True)
    layers = (conv, linear, conv.input_quantizer, linear.input_quantizer, act)
    assert all(layer.zero_in_range for layer in layers)


def test_a_stored_range_off_zero_is_widened():
    layer = QLinear(9, 2, weight_bits=3, zero_in_range=True)
    layer.keep_weight_range()
    for bound, values in ((layer.weight_lo, [1.0, -3.0]), (layer.weight_hi, [2.0, -1.0])):
        bound.copy_(torch.tensor(values))
    lo, hi = layer.weight_range()
    assert lo.tolist() == [0, -3]
    assert hi.tolist() == [2, 0]
    layer.zero_in_range = False
    assert [bound.tolist() for bound in layer.weight_range()] == [[1, -3], [2, -1]]


def test_qact_from_float_has_what_was_given():
    act = QAct.from_float(nn.ReLU6().eval(), 3, "clip", 0.5, dynamic_range=True)
    assert (act.act_bits, act.act, act.ste, act.momentum) == (3, "relu6", "clip", 0.5)
    assert (act.zero_in_range, act.dynamic_range, act.training) == (False, True, False)


@pytest.mark.parametrize("sign", [1, -1])
def test_qact_with_zero_in_range(sign):
    act, plain = QAct(4, "none", zero_in_range=True), QAct(4, "none")
    for t in range(3):
        x = sign * (torch.rand(50) + 3 + t)
        y = act(x)
        plain(x)
        assert act.lo <= 0 <= act.hi
        torch.testing.assert_close(act.average_lo, plain.average_lo, rtol=0, atol=0)
        torch.testing.assert_close(act.average_hi, plain.average_hi, rtol=0, atol=0)
    assert act.eval()(torch.zeros(3)).tolist() == [0, 0, 0]
    torch.testing.assert_close(act(x), y, rtol=0, atol=0)


@pytest.mark.parametrize("assign", [False, True])
def test_a_loaded_range_contains_zero(assign):
    plain = QAct(4, "none")
    plain(torch.tensor([2.0, 3.0]))
    state = plain.state_dict()
    act = QAct(4, "none", zero_in_range=True)
    act.load_state_dict(state, assign=assign)
    assert (act.lo, act.hi) == (0, state["hi"])
    assert state["lo"] == plain.lo == 2
