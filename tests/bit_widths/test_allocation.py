"""Bits under a budget, against trying everything."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gdfq import InputError
from gdfq.bit_widths.allocation import Layer, allocate


def total(layers, bits):
    return sum(layer.sensitivity[bits[layer.name]] for layer in layers)


def size(layers, bits):
    return sum(layer.parameters * bits[layer.name] for layer in layers)


def least_by_trying(layers, budget):
    room = budget * sum(layer.parameters for layer in layers) + 1e-6
    names = [layer.name for layer in layers]
    choices = (
        dict(zip(names, c, strict=True))
        for c in itertools.product(*(layer.sensitivity for layer in layers))
    )
    return min(total(layers, c) for c in choices if size(layers, c) <= room)


@st.composite
def problems(draw):
    layers = []
    for index in range(draw(st.integers(1, 5))):
        widths = draw(st.sets(st.integers(2, 8), min_size=1, max_size=5)) | {2}
        # Whole numbers, of which many are equal, and no order: more bits may measure worse.
        sensitivity = {width: float(draw(st.integers(0, 20))) for width in sorted(widths)}
        layers.append(Layer(f"layer{index}", draw(st.integers(1, 30)), sensitivity))
    return layers, draw(st.floats(2, 8))


# The whole steps of the relaxation are not the best choice here, and several others are better.
GREEDY_IS_NOT_BEST = [
    Layer("layer0", 5, {2: 6.0, 4: 5.0, 8: 1.0}),
    Layer("layer1", 6, {2: 10.0, 4: 5.0, 8: 5.0}),
    Layer("layer2", 5, {2: 19.0, 4: 8.0, 8: 3.0}),
]


@settings(max_examples=4 * settings.default.max_examples)
@example((GREEDY_IS_NOT_BEST, 4.0))
@example(([GREEDY_IS_NOT_BEST[0], Layer("layer1", 1, {2: 12.0, 4: 8.0, 8: 6.0})], 4.0))
@given(problems())
def test_the_least_of_all_choices(problem):
    layers, budget = problem
    bits = allocate(layers, budget)
    assert list(bits) == [layer.name for layer in layers]
    assert size(layers, bits) <= budget * sum(layer.parameters for layer in layers) + 1e-6
    assert total(layers, bits) == least_by_trying(layers, budget)


def falling(rng, count):
    """Layers like a network's: sizes over three decades, sensitivity about 4 times less a bit."""
    for index in range(count):
        scale = 10 ** rng.uniform(-3, 1)
        values = {b: scale * 4.0 ** (2 - b) * rng.uniform(0.5, 2) for b in range(2, 9)}
        yield Layer(str(index), int(10 ** rng.uniform(2, 6)), values)


def test_a_large_network_is_solved_to_its_bound():
    layers = list(falling(np.random.default_rng(0), 60))
    bits = allocate(layers, 4.0)
    parameters = sum(layer.parameters for layer in layers)
    assert size(layers, bits) <= 4 * parameters
    # For any price of a bit, no choice within the budget can be below this (Lagrange).
    bound = max(
        sum(
            min(s + price * layer.parameters * (b - 4) for b, s in layer.sensitivity.items())
            for layer in layers
        )
        for price in np.geomspace(1e-10, 1e-2, 400)
    )
    assert bound <= total(layers, bits) <= bound * 1.01


def test_all_the_bits_and_none_to_spare():
    layers = list(falling(np.random.default_rng(1), 6))
    assert set(allocate(layers, 2).values()) == {2}
    best = {layer.name: min(layer.sensitivity, key=layer.sensitivity.get) for layer in layers}
    assert allocate(layers, 8) == best


def test_equal_layers_at_a_whole_budget_are_uniform():
    layers = [Layer(str(i), 10, {b: 4.0**-b for b in range(2, 9)}) for i in range(5)]
    assert set(allocate(layers, 3).values()) == {3}
    assert sorted(allocate(layers, 3.4).values()) == [3, 3, 3, 4, 4]


@pytest.mark.parametrize("budget", [1.99, -1, float("nan")])
def test_too_small_a_budget(budget):
    with pytest.raises(InputError, match="budget: must be >= 2, "):
        allocate([Layer("a", 3, {2: 1.0, 4: 0.5}), Layer("b", 5, {2: 1.0})], budget)
