"""Sensitivity of layers, on networks where it is known."""

import copy

import pytest
import torch
from torch import nn

import gdfq
from gdfq.bit_widths.sensitivity import Divergence, measure_sensitivities
from gdfq.nn import Quantization

SENSITIVE, EXACT = "3", "6"


def planted():
    """Three convolutions: the second is made hard to quantize, the third loses nothing.

    The second one's weights of an input that is always zero are 30 times the others: nothing in
    the network's function, all of the quantizer's range. The third one's weights are 0 or 1/8.
    """
    torch.manual_seed(0)
    layers = []
    for channels in (3, 8, 8):
        layers += [nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    with torch.no_grad():
        for _ in range(10):
            model(torch.randn(32, 3, 12, 12))
        layers[1].bias[0] = -100.0
        layers[3].weight[:, 0] = 30 * layers[3].weight[:, 1:].abs().amax()
        layers[6].weight.copy_((layers[6].weight > 0) / 8)
    return model.eval()


@pytest.fixture
def images():
    return list(torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(1)).split(32))


def test_the_planted_layer_is_the_most_sensitive_and_the_exact_one_the_least(images):
    model = planted()
    before = copy.deepcopy(model.state_dict())
    seen = []
    layers = measure_sensitivities(model, images, on_layer=lambda layer: seen.append(layer.name))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert seen == ["0", SENSITIVE, EXACT, "11"]
    assert [layer.parameters for layer in layers] == [216, 576, 576, 40]
    for width in range(2, 9):
        by_name = {layer.name: layer.sensitivity[width] for layer in layers}
        assert max(by_name, key=by_name.get) == SENSITIVE
        assert by_name[EXACT] < 1e-9
        assert by_name[SENSITIVE] > 20 * by_name["0"]
    # Steps of a layer's quantizer are 64 times finer with 8 bits than with 2.
    for layer in (layers[0], layers[1], layers[3]):
        assert layer.sensitivity[2] > 100 * layer.sensitivity[8] > 0
    again = measure_sensitivities(model, images)
    assert again == layers


def test_a_sensitivity_is_the_divergence_of_that_layer_s_network(images):
    model = planted()
    changed = copy.deepcopy(model)
    with torch.no_grad():
        weight = changed.get_submodule("0").weight
        weight.copy_(gdfq.functional.fake_quantize_minmax(weight, 3, axis=0))
        p = model(torch.cat(images)).double().softmax(1)
        q = changed(torch.cat(images)).double().softmax(1)
    expected = float((p * (p / q).log()).sum(1).mean())
    (measured,) = (
        layer for layer in measure_sensitivities(model, images, [3]) if layer.name == "0"
    )
    assert measured.sensitivity == {3: pytest.approx(expected, rel=1e-3)}
    divergence = Divergence(model, images)
    assert divergence({"0.weight": 3}) == measured.sensitivity[3]
    assert divergence({}) == 0


def test_bad_arguments(images):
    with pytest.raises(gdfq.InputError, match="batches: must hold at least one batch"):
        measure_sensitivities(planted(), [])
    with pytest.raises(gdfq.InputError, match=r"widths: .* got 9"):
        measure_sensitivities(planted(), images, [4, 9])
    with pytest.raises(gdfq.InputError, match="teacher: has no Conv2d or Linear"):
        measure_sensitivities(nn.ReLU(), images)


def test_zero_in_range_is_measured_with_zero_in_it(images):
    model = planted()
    with torch.no_grad():
        model[3].weight.uniform_(1, 1.5)
    narrow, wide = (
        measure_sensitivities(model, images, [3], how=how)[1].sensitivity[3]
        for how in (Quantization(), Quantization(zero_in_range=True))
    )
    assert wide > narrow
    assert Divergence(model, images, Quantization(zero_in_range=True))({"3.weight": 3}) == wide


def test_kernels_are_measured_with_ranges_of_their_own(images):
    model = planted()
    changed = copy.deepcopy(model)
    with torch.no_grad():
        weight = changed.get_submodule("0").weight
        weight.copy_(gdfq.functional.fake_quantize_minmax(weight, 3, axis=(0, 1)))
        p = model(torch.cat(images)).double().softmax(1)
        q = changed(torch.cat(images)).double().softmax(1)
    expected = float((p * (p / q).log()).sum(1).mean())
    fine, coarse = (
        measure_sensitivities(model, images, [3, 4], how=how)[0].sensitivity
        for how in (Quantization(dynamic_ranges="weight"), Quantization())
    )
    assert fine[3] == pytest.approx(expected, rel=1e-3)
    assert fine[3] != coarse[3]
    assert fine[4] == coarse[4]  # 9 elements, 16 levels
