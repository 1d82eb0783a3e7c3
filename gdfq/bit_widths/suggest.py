"""Suggest bits for each layer: a recipe with the least sensitive choice under a budget."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from gdfq.bit_widths.allocation import Layer, allocate
from gdfq.bit_widths.sensitivity import Divergence, measure_sensitivities, names_of_layers
from gdfq.errors import InputError
from gdfq.recipes import Recipe
from gdfq.recipes.bits import with_exceptions
from gdfq.recipes.networks import build_generator, build_teacher, build_trainer
from gdfq.sources import LoadedTeacher
from gdfq.training import GDFQTrainer, TrainerCallback
from gdfq.training.memory_format import MemoryFormat, MemoryFormatError
from gdfq.training.progress import LayerProgress

STEPS_PER_LINE = 20


@dataclass(frozen=True)
class Suggestion:
    """Bits by layer, and the measurements they were chosen by.

    Attributes:
        layers: each with its sensitivities.
        bits: of each layer's weights.
        average_weight_bits: what of the budget they take, over the layers whose bits are chosen:
            weights that stay in float, :func:`gdfq.nn.float_weights`, are not in it.
        divergence: measured with all layers at these bits.
        uniform: divergence measured with all layers at the same width: the budget, or the whole
            widths on both sides of it.
        recipe: the recipe with these bits.
    """

    layers: list[Layer]
    bits: dict[str, int]
    average_weight_bits: float
    divergence: float
    uniform: dict[int, float]
    recipe: Recipe


def check_budget(budget: float) -> None:
    """Raise an InputError unless ``budget`` is an average of possible widths."""
    if not 2 <= budget <= 8:
        raise InputError(f"budget: must be average bits from 2 to 8, got {budget!r}")


def suggest_bits(
    recipe: Recipe,
    budget: float,
    progress: LayerProgress,
    steps: int = 200,
    batches: int = 4,
    device: str = "cpu",
) -> Suggestion:
    """Choose the bits of each layer's weights that cost least, ``budget`` on average.

    The recipe's generator learns for ``steps`` steps of its warm-up, with the recipe's parts; then
    each layer's sensitivity is measured on ``batches`` batches of its images
    (:mod:`gdfq.bit_widths.sensitivity`), and the bits are allocated
    (:mod:`gdfq.bit_widths.allocation`). What the recipe itself says about bits of weights is
    replaced, bits of activations stay. The same recipe on the same machine gives the same
    suggestion.

    Raises:
        InputError: ``budget`` is not from 2 to 8, ``steps`` or ``batches`` is too small, the recipe
            does not fit its teacher, or that has no layer with a weight.
        NonFiniteLossError: the generator's loss became NaN.
    """
    check_budget(budget)
    for name, value, least in (("steps", steps, 0), ("batches", batches, 1)):
        if value < least:
            raise InputError(f"{name}: must be >= {least}, got {value}")
    recipe, loaded = build_teacher(recipe)
    for note in loaded.notes:
        progress.on_status(note)
    teacher = loaded.network.to(device)
    names = names_of_layers(teacher, recipe.quantization.leaf_modules)
    images = _generate(recipe, loaded, steps, batches, progress, device)
    progress.on_layers(len(names))
    try:
        layers = measure_sensitivities(
            teacher,
            images,
            on_layer=lambda layer: progress.on_layer(layer.name),
            how=recipe.quantization,
        )
    finally:
        progress.on_stop()
    bits = allocate(layers, budget)
    parameters = sum(layer.parameters for layer in layers)
    sides = sorted({math.floor(budget), math.ceil(budget)})
    measure = Divergence(teacher, images, recipe.quantization)
    return Suggestion(
        layers,
        bits,
        sum(bits[layer.name] * layer.parameters for layer in layers) / parameters,
        measure({f"{name}.weight": width for name, width in bits.items()}),
        {width: measure({f"{name}.weight": width for name in bits}) for width in sides},
        with_weight_bits(recipe, f"{recipe.name}-{budget:g}bits", bits, layers),
    )


def _generate(
    recipe: Recipe,
    teacher: LoadedTeacher,
    steps: int,
    batches: int,
    progress: LayerProgress,
    device: str,
) -> list[Tensor]:
    """Generate the images of the recipe's run after ``steps`` steps of the warm-up."""
    lines = max(1, -(-steps // STEPS_PER_LINE))
    settings: dict[str, Any] = {
        "epochs": lines,
        "warmup_epochs": lines,
        "steps_per_epoch": STEPS_PER_LINE,
        "schedule": "constant",
        # The student is not trained, and at widths yet to be found kernels may be large enough.
        "dynamic_ranges": "none",
    }
    generator = build_generator(recipe, teacher.preprocessing).to(device)
    # Timing decides about "auto", and rounding depends on the format.
    named = recipe.training.memory_format
    first, *others = get_args(MemoryFormat) if named == "auto" else [named]
    try:
        recipe = recipe.with_options({**settings, "memory_format": first})
        trainer = build_trainer(recipe, teacher, generator)
    except MemoryFormatError:
        if not others:
            raise
        recipe = recipe.with_options({"memory_format": others[0]})
        trainer = build_trainer(recipe, teacher, generator)

    class _Steps(TrainerCallback):
        def on_step(self, trainer: GDFQTrainer, losses: dict[str, Tensor]) -> None:
            progress.on_step(trainer, losses)

        def on_epoch(self, trainer: GDFQTrainer, losses: dict[str, float]) -> None:
            progress.on_epoch(trainer, losses)

        def should_stop(self) -> bool:
            return trainer.steps_done >= steps

    progress.on_start(trainer)
    try:
        if steps:
            trainer.train(_Steps())
    finally:
        progress.on_stop()
    with torch.no_grad():
        return [trainer.images.make(*trainer.images.sample()) for _ in range(batches)]


def with_weight_bits(
    recipe: Recipe, name: str, bits: Mapping[str, int], layers: list[Layer]
) -> Recipe:
    """Return ``recipe`` under ``name``, with ``bits`` for each layer's weights.

    ``weight_bits`` is the width that most weights have; the other layers are exceptions.
    """
    elements: Counter[int] = Counter()
    for layer in layers:
        elements[bits[layer.name]] += layer.parameters
    usual = elements.most_common(1)[0][0]
    tables = recipe.model_dump()
    tables["name"] = name
    tables["quantization"].update(weight_bits=usual, first_last_bits=None)
    acts = {p: {"act": w["act"]} for p, w in recipe.exceptions().items() if "act" in w}
    weights = {layer: {"weight": width} for layer, width in bits.items() if width != usual}
    tables["bits"] = with_exceptions(acts, weights)
    return Recipe.read(tables, "suggestion")
