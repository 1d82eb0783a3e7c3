"""Compare suggested bits with equal bits, before fine-tuning, on Fashion-MNIST's test images.

``python -m benchmarks.suggested_bits`` writes ``benchmarks/results/suggested-bits.md``. The weights
of the embedded ResNet-20 are quantized, the activations are not.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gdfq.bit_widths.allocation import allocate
from gdfq.bit_widths.sensitivity import Divergence
from gdfq.bit_widths.suggest import suggest_bits
from gdfq.data import open_batches, top1
from gdfq.functional import fake_quantize_minmax
from gdfq.recipes import load_recipe
from gdfq.recipes.networks import build_teacher

RESULTS = Path(__file__).parent / "results"
RECIPE = "fashion-mnist-resnet20"


class _Silent:
    def __getattr__(self, name: str) -> object:
        return lambda *_: None


@torch.no_grad()
def quantized(teacher: nn.Module, bits: dict[str, int]) -> nn.Module:
    """Return a copy with these layers' weights quantized."""
    network = copy.deepcopy(teacher)
    for name, width in bits.items():
        weight = network.get_parameter(f"{name}.weight")
        weight.copy_(fake_quantize_minmax(weight, width, axis=0))
    return network


def row(teacher: nn.Module, bits: dict[str, int], batches: list[tuple[Tensor, Tensor]]) -> str:
    """Return two cells of the table: divergence from the teacher, and top-1."""
    measure = Divergence(teacher, [images for images, _ in batches])
    nats = measure({f"{name}.weight": width for name, width in bits.items()})
    return f"{1000 * nats:.1f} | {top1(quantized(teacher, bits), batches):.2f}%"


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    recipe = load_recipe(RECIPE).with_options({"seed": options.seed})
    recipe, loaded = build_teacher(recipe)
    teacher = loaded.network
    test_set = open_batches(recipe, loaded.preprocessing, workers=0)
    batches = list(itertools.islice(test_set, options.batches))
    pictures = sum(len(labels) for _, labels in batches)
    silent: Any = _Silent()
    layers = suggest_bits(recipe, 3.0, silent, steps=options.steps).layers
    lines = [
        "# Suggested bits and equal bits, before fine-tuning",
        "",
        f"Written by `python -m benchmarks.suggested_bits --batches {options.batches}`. The "
        "embedded ResNet-20 with quantized weights and float activations,",
        f"on {pictures:,} test images of Fashion-MNIST; the teacher has "
        f"{top1(teacher, batches):.2f}%. Sensitivities from 256 images",
        f"of a generator trained for {options.steps} steps, seed {options.seed}. KL: divergence "
        "from the teacher, in 1/1000 nat.",
        "",
        "| bits on average | equal, KL | equal, top-1 | suggested, KL | suggested, top-1 |",
        "|---|---|---|---|---|",
    ]
    for width in (2, 3, 4):
        # At 2 bits there is nothing to choose, so suggest half a bit more.
        budget = 2.5 if width == 2 else float(width)
        equal = row(teacher, {layer.name: width for layer in layers}, batches)
        suggested = row(teacher, allocate(layers, budget), batches)
        lines.append(f"| {width} (suggested: {budget:g}) | {equal} | {suggested} |")
        print(lines[-1], flush=True)
    (RESULTS / "suggested-bits.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
