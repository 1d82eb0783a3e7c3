"""Layers' losses: an output's error and its parts, and which layers are the worst."""

import pytest
import torch

from benchmarks import layer_losses


def figures(theirs, own):
    compared = layer_losses.Compared()
    for pair in zip(theirs.split(2), own.split(2), strict=True):
        compared.add(*pair)
    return compared.figures()


def test_a_scale_and_a_shift_of_each_channel_are_the_affine_share():
    theirs = torch.randn(6, 3, 4, 4, generator=torch.manual_seed(0))
    scale, shift = torch.tensor([2.0, 0.5, 1.5]), torch.tensor([0.3, -1.0, 0.0])
    moved = theirs * scale.view(3, 1, 1) + shift.view(3, 1, 1)
    assert figures(theirs, moved)["affine"] == pytest.approx(1, abs=1e-6)
    noise = torch.randn(theirs.shape, generator=torch.manual_seed(1))
    noisy = figures(theirs, theirs + 0.1 * noise)
    assert noisy["affine"] < 0.05
    signal = theirs.square().sum() / (0.1 * noise).square().sum()
    assert noisy["output_sqnr"] == pytest.approx(10 * float(signal.log10()), abs=1e-4)


def test_worst_weights_and_activations_are_chosen_apart():
    layers = [
        {"name": "a", "act": "a.act", "weight_error": 0.3, "act_error": 0.1},
        {"name": "b", "act": "b.act", "weight_error": 0.1, "act_error": 0.5},
        {"name": "c", "act": "", "weight_error": 0.2},
    ]
    bits = layer_losses.worst(layers, 1).options["bits"]
    assert bits == {"a": {"weight": 8}, "b.act": {"act": 8}}
    bits = layer_losses.worst(layers, 2).options["bits"]
    assert bits["c"] == {"weight": 8}
    assert bits["a.act"] == {"act": 8}


def test_photographs_with_much_white_fill_no_frame():
    images = torch.zeros(2, 3, 10, 10)
    images[1, :, :2] = torch.tensor([2.0, 3.0, 4.0]).view(3, 1, 1)
    assert layer_losses.is_full(images, torch.tensor([2.0, 3.0, 4.0])).tolist() == [True, False]
