"""Contents of reports, made up: runs that look like real ones, and awkward ones."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np

from gdfq.report.contents import (
    AccuracyPoint,
    ClassImages,
    ConfusedPair,
    Confusion,
    Contents,
    Curve,
    FileSize,
    LayerRow,
    Measured,
    NormStatistics,
    Result,
)

CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip


def run(
    name="w4a4",
    bits=4,
    *,
    classes=CLASSES,
    layers=9,
    side=28,
    points=True,
    seed=0,
    **changes,
) -> Contents:
    """A finished run on made-up data."""
    random = np.random.default_rng(seed)
    content = {
        "name": name,
        "sentence": f"A ResNet-20 for Fashion-MNIST at {bits} bits, quantized without its data.",
        "sizes": [
            FileSize("float", 1_101_224, False),
            FileSize("packed safetensors", 36_000 * bits, False),
            FileSize("student.onnx", 297_645, True),
        ],
        "curves": _curves(random),
        "points": [AccuracyPoint(s, 94 - 900 / (s + 60)) for s in range(300, 601, 60)]
        if points
        else [],
        "environment": "gdfq 0.1.0, torch 2.14.1, 2 cores",
        "measured": _measured(random, classes, layers, side, bits),
    }
    result = {
        "name": name,
        "finished": True,
        "steps": 600,
        "seed": seed,
        "weight_bits": bits,
        "act_bits": bits,
        "average_weight_bits": bits + 0.37,
        "training_seconds": 118.4,
        "evaluation": "10,000 test images of fashion-mnist",
        "teacher": 94.22,
        "before": 93.01 - 4 + bits,
        "after": 93.49 - 4 + bits,
    }
    known = {f.name for f in fields(Result)} - {"name"}
    result |= {key: changes.pop(key) for key in known & changes.keys()}
    return Contents(**{**content, "result": Result(**result), **changes})


def bare(name="bare", step=0) -> Contents:
    """A run of which nothing is known but its recipe."""
    return run(
        name,
        finished=False,
        steps=step,
        average_weight_bits=None,
        training_seconds=None,
        evaluation="the recipe names no data set to measure on",
        teacher=None,
        before=None,
        after=None,
        sizes=[],
        curves=[],
        points=[],
        environment="",
        measured=Measured(step=step),
    )


def _curves(random) -> list[Curve]:
    steps = list(range(20, 601, 20))
    decay = [math.exp(-s / 150) for s in steps]
    noise = random.normal(1, 0.02, len(steps))
    values = {
        "generator": [n * (1.8 + 3.4 * d) for d, n in zip(decay, noise, strict=True)],
        "generator_ce": [n * (1.6 + 2.6 * d) for d, n in zip(decay, noise, strict=True)],
        "bns": [n * (0.005 + 0.4 * d**3) for d, n in zip(decay, noise, strict=True)],
        "student": [n * (5.4 + 9 * d) for d, n in zip(decay, noise, strict=True)][7:],
        "generator_lr": [5e-4 * (1 + math.cos(math.pi * s / 600)) for s in steps],
        "student_lr": [5e-5 * (1 + math.cos(math.pi * s / 600)) for s in steps][7:],
    }
    return [
        Curve(name, "rate" if name.endswith("lr") else "loss", steps[-len(v) :], v)
        for name, v in values.items()
    ]


def _measured(random, classes, layers, side, bits) -> Measured:
    images = [
        ClassImages(
            i,
            name,
            list(random.integers(0, 256, (10, side, side), dtype=np.uint8)),
            random.integers(90, 160, (side, side), dtype=np.uint8),
            200,
        )
        for i, name in enumerate(classes[:10])
    ]
    norms = [
        NormStatistics(
            f"layer{i}.bn",
            16 * i,
            list(random.normal(0, 1, 16)),
            list(random.uniform(0.2, 1.5, 16)),
            list(random.normal(0, 1.1, 16)),
            [list(random.normal(0, 1.3, 16)) for _ in images],
        )
        for i in range(1, 4)
    ]
    rows = [
        LayerRow(
            f"layer{i}.conv",
            "Conv2d",
            [16, 16, 3, 3],
            f"layer{i}.bn",
            f"layer{i}.relu",
            bits,
            bits,
            random.uniform(14, 22),
            random.uniform(12, 26),
            -0.02 * i,
            random.uniform(1, 9),
            random.uniform(0, 0.02),
            random.uniform(1e-4, 1e-3),
            random.uniform(1e-2, 1e-1),
            random.uniform(1e-3, 1e-2),
            10 ** random.uniform(-5, -2),
        )
        for i in range(layers)
    ]
    rows.append(LayerRow("avgpool", "identity", act="avgpool", act_bits=bits, act_sqnr=21.0))
    rows.append(LayerRow("fc", "Linear", [len(classes), 64], "", "", 8, None, 41.2))
    counts = random.integers(0, 60, (len(classes), len(classes)))
    np.fill_diagonal(counts, 900)
    few = len(classes) <= 100
    pairs = [
        ConfusedPair(classes[i], classes[j], int(counts[i, j]) // 2, int(counts[i, j]))
        for i, j in zip(*np.unravel_index(np.argsort(-counts, None), counts.shape), strict=True)
        if i != j
    ][:30]
    confusion = Confusion(
        list(classes), counts.tolist() if few else [], counts.tolist() if few else [], pairs
    )
    return Measured(600, 1024, 256, images, norms, rows, confusion, 1_101_224, 36_000 * bits, [])
