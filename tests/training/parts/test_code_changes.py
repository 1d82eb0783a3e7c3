"""Gradients scaled by how many codes change."""

import math

import pytest
import torch
from torch import nn

import gdfq
from gdfq.nn.weight import QuantizedWeight
from gdfq.ops.quantize_codes import quantize_codes
from gdfq.training import Parts
from tests.helpers.parts import set_up
from tests.helpers.tiny import tiny_trainer


def layers_with_gradients(seed=0):
    """A student of two layers, one whose gradient is zero, and the learning rate."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(2, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 4))
    student = gdfq.quantize_model(net, 4, 4)
    for parameter in student.parameters():
        parameter.grad = 1e-3 * torch.randn(parameter.shape)
    return student, torch.tensor(1e-2)


def code_changes(student, share):
    return set_up("code_changes", Parts(code_change_share=share), student=student)


def share_changed(layer, gradient, rate, factor):
    low, high = layer.weight_range()
    moved = layer.weight.detach() - float(rate) * factor * gradient
    codes = [quantize_codes(w, low, high, layer.weight_bits, 0)[0]
             for w in (layer.weight.detach(), moved)]  # fmt: skip
    return float((codes[0] != codes[1]).float().mean())


def test_a_share_of_the_codes_changes():
    student, rate = layers_with_gradients()
    weights = [m for m in student.modules() if isinstance(m, QuantizedWeight)]
    before = {name: p.grad.clone() for name, p in student.named_parameters()}
    code_changes(student, 0.05).gradients([], rate)
    for name, parameter in student.named_parameters():
        if name.endswith("bias"):
            assert torch.equal(parameter.grad, before[name])
    for layer in weights:
        name = next(n for n, p in student.named_parameters() if p is layer.weight)
        factor = float((layer.weight.grad / before[name]).median())
        assert factor > 2
        # The share is met, and by a 32nd of the last doubling less it would not be.
        assert share_changed(layer, before[name], rate, factor * 1.0001) >= 0.05
        doubled = 2.0 ** math.ceil(math.log2(factor))
        assert share_changed(layer, before[name], rate, factor - 1.01 * doubled / 64) < 0.05


def test_the_search_is_doubling_and_bisecting():
    """Against the search written with loops that stop, on counts of a given step function."""
    student, _ = layers_with_gradients()
    changes = code_changes(student, 0.5)
    thresholds = torch.tensor([0.3, 37.5])
    found = changes._search(lambda f: f >= thresholds)
    for threshold, factor in zip(thresholds.tolist(), found.tolist(), strict=True):
        high = 1.0
        while high < threshold:
            high *= 2
        low = high / 2 if high > 1 else 0.0
        for _ in range(5):
            middle = (low + high) / 2
            low, high = (low, middle) if middle >= threshold else (middle, high)
        assert factor == high
    never = changes._search(lambda f: torch.zeros(2, dtype=torch.bool))
    assert never.tolist() == [1, 1]


def test_a_zero_gradient_ends_the_search():
    student, rate = layers_with_gradients()
    for parameter in student.parameters():
        parameter.grad.zero_()
    code_changes(student, 0.05).gradients([], rate)
    assert all(not p.grad.any() for p in student.parameters())
    for parameter in student.parameters():
        parameter.grad = None
    code_changes(student, 0.05).gradients([], rate)
    with pytest.raises(gdfq.InputError, match="code_change_share: the network has no layer"):
        code_changes(gdfq.quantize_model(nn.Sequential(nn.BatchNorm2d(2), nn.ReLU())), 0.05)


def test_gradients_are_scaled_before_the_update():
    trainer = tiny_trainer(
        parts=Parts(code_change_share=0.2), warmup_epochs=0, momentum=0.0, weight_decay=0.0,
        schedule="constant",
    )  # fmt: skip
    trainer.calibrate(2)
    layer = trainer.student.get_submodule("3")
    low, high = layer.weight_range()
    before = layer.weight.detach().clone()
    trainer.step()
    codes = [quantize_codes(w, low, high, 4, 0)[0] for w in (before, layer.weight.detach())]
    assert 0.19 < float((codes[0] != codes[1]).float().mean()) < 0.25
