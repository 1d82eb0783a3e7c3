"""Bits per layer."""

import pytest
import torch
import torchvision
from torch import nn

import gdfq
from gdfq.nn import QAct, QConv2d, QLinear
from tests.convert.test_convert import Everything


def widths(student):
    """Bits by path: of weights, of activations."""
    weights = {
        path: module.weight_bits
        for path, module in student.named_modules()
        if isinstance(module, (QConv2d, QLinear))
    }
    acts = {path: m.act_bits for path, m in student.named_modules() if isinstance(m, QAct)}
    return weights, acts


def test_patterns_of_weights_and_activations():
    bits = {
        "layer1.*": {"weight": 8, "act": 6},
        "layer1.1.*": {"weight": 5},
        "*.relu_1": {"act": 7},
        "layer1.0.relu_1": {"act": 3},
        "fc": {"weight": 2},
    }
    student = gdfq.quantize_model(torchvision.models.resnet18(), 4, 4, bits=bits)
    weights, acts = widths(student)
    special = {f"layer1.{i}.conv{j}": (8, 5)[i] for i in range(2) for j in (1, 2)}
    assert weights == {**dict.fromkeys(weights, 4), **special, "fc": 2}
    assert {name for name in acts if acts[name] == 7} == {
        f"layer{i}.{j}.relu_1" for i in range(1, 5) for j in range(2)
    } - {"layer1.0.relu_1"}
    assert (acts["layer1.0.relu"], acts["layer1.1.relu"], acts["layer1.0.relu_1"]) == (6, 6, 3)
    assert acts["relu"] == 4
    reported = {op.name: op.bits for op in student.coverage.operations if op.bits is not None}
    assert reported == {**weights, **acts}
    assert "8 bits per output channel" in str(student.coverage)


def test_the_bits_of_a_layer_are_those_it_computes_with():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU())
    student = gdfq.quantize_model(model, 8, 8, bits={"1": {"act": 2}, "3": {"act": 3}})
    student.train()
    levels = {}
    for name in ("1", "3"):
        student.get_submodule(name).register_forward_hook(
            lambda m, i, y, name=name: levels.update({name: len(y.unique())})
        )
    student(x)
    assert levels == {"1": 4, "3": 8}


def test_functional_activations_have_names():
    student = gdfq.quantize_model(Everything(), bits={"relu6": {"act": 5}, "relu_4": {"act": 6}})
    assert widths(student)[1] == {
        "relu": 4, "relu_1": 4, "relu_2": 4, "relu6": 5, "relu_3": 4, "relu_4": 6,
    }  # fmt: skip


def test_an_activation_with_its_quantizer_behind_it_has_its_module_s_name_too():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 4, 1))
    for pattern in ("2", "2.quantizer"):
        assert widths(gdfq.quantize_model(model, bits={pattern: {"act": 7}}))[1] == {
            "2.quantizer": 7
        }
    with pytest.raises(gdfq.InputError, match=r"'9' matches no quantized activation; .*2.quant"):
        gdfq.quantize_model(model, bits={"9": {"act": 7}})


def test_a_shared_layer_is_found_under_each_of_its_names():
    student = gdfq.quantize_model(Everything(), bits={"alias": {"weight": 7}})
    assert student.get_submodule("shared").weight_bits == 7


def test_first_and_last_layer():
    student = gdfq.quantize_model(torchvision.models.resnet18(), 3, 3, first_last_bits=8)
    weights, acts = widths(student)
    assert weights == {**dict.fromkeys(weights, 3), "conv1": 8, "fc": 8}
    assert set(acts.values()) == {3}
    student = gdfq.quantize_model(
        Everything(), 3, 3, first_last_bits=8, bits={"stem.*": {"weight": 5}}
    )
    weights, _ = widths(student)
    assert (weights["stem.0"], weights["fc"], weights["shared"]) == (5, 8, 3)


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (
            {"layer1.0.convv1": {"weight": 8}},
            r"'layer1.0.convv1' matches no layer .*layer1.0.conv1",
        ),
        ({"layer9.*": {"act": 8}}, r"'layer9.\*' matches no quantized activation; near"),
        ({"zzz": {"act": 8}}, r"'zzz' matches no quantized activation; there are: relu, "),
        ({"fc": {"weight": 8, "act": 8}}, "'fc' matches no quantized activation"),
        ({"fc": {"weight": 9}}, r"bits.fc.weight: must be an int from 2 to 8, got 9"),
        ({"fc": {"weights": 8}}, r"bits.fc.weights: unknown key; allowed are weight, act"),
        ({"fc": {}}, r"bits.fc: must have weight or act or both, got {}"),
        ({"fc": 8}, r"bits.fc: must be a table, got 8"),
        (["fc"], "bits: must be a table"),
    ],
)
def test_bad_bits(bits, message):
    with pytest.raises(gdfq.InputError, match=message):
        gdfq.quantize_model(torchvision.models.resnet18(), bits=bits)


def test_bad_first_last_bits():
    with pytest.raises(gdfq.InputError, match=r"first_last_bits: .* got 1"):
        gdfq.quantize_model(Everything(), first_last_bits=1)
