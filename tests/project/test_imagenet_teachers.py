"""Networks with trained ImageNet weights and real photographs: benchmarks/imagenet_teachers.py."""

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import skimage
import torch
import torchvision

from benchmarks import photographs
from benchmarks.imagenet_teachers import recipe
from gdfq.recipes.networks import build_generator, build_teacher, build_trainer
from gdfq.training.start import NO_START

pytestmark = pytest.mark.thorough

# Photographs in scikit-image's package: no drawings, no text, no second picture of a stereo pair.
PICTURES = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png",
    "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "moon.png",
    "motorcycle_left.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
# What is to be seen on some of them.
SEEN = {
    "camera.png": {"tripod"},
    "chelsea.png": {"Egyptian cat", "tiger cat", "tabby"},
    "coffee.png": {"espresso", "cup"},
    "motorcycle_left.png": {"moped", "motor scooter", "disk brake"},
    "rocket.jpg": {"missile", "projectile", "space shuttle"},
}
# A third of the computation; the network takes any size.
SIZE = 128
SHORT = {"steps_per_epoch": 10, "schedule": "constant", "calibration_batches": 4,
         "memory_format": "channels_last", "image_size": SIZE, "resize": SIZE}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as `gdfq data photographs` writes it, of PICTURES."""
    folder = tmp_path_factory.mktemp("photographs")
    data = Path(skimage.__file__).parent / "data"
    table = ["picture\tclasses", *(f"{data / name}\t" for name in PICTURES)]
    (folder / "labels.tsv").write_text("\n".join(table) + "\n")
    return folder


@torch.no_grad()
def logits_of(network, batches):
    return torch.cat([network(batch) for batch in batches])


def test_the_teacher_has_learnt_what_is_on_photographs(folder):
    _, teacher = build_teacher(recipe("efficientnet_lite0"))
    categories = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    batches = photographs.crops(folder, teacher.preprocessing)
    classes = logits_of(teacher.network, batches).argmax(1).split(photographs.CROPS)
    for name, seen in SEEN.items():
        named = [categories[label] for label in classes[PICTURES.index(name)]]
        assert sum(label in seen for label in named) >= 4, (name, named)


@dataclass
class Agreement:
    """``top1``; ``top5``: share of the teacher's five first classes that are in the student's;
    ``error``: ``|student - teacher| / |teacher - its mean over images|``."""

    top1: float
    top5: float
    error: float


def agreement(student, teacher):
    first, second = student.topk(5).indices, teacher.topk(5).indices
    return Agreement(
        float((first[:, 0] == second[:, 0]).float().mean()),
        float((second[:, :, None] == first[:, None, :]).any(2).float().mean()),
        float((student - teacher).norm() / (teacher - teacher.mean(0)).norm()),
    )


@pytest.fixture(scope="module")
def warmed_up():
    """The recipe without its start, the teacher, and the generator after its warm-up."""
    options = {**SHORT, **NO_START.model_dump(), "epochs": 4, "warmup_epochs": 4}
    shortened, teacher = build_teacher(recipe("efficientnet_lite0").with_options(options))
    generator = build_generator(shortened, teacher.preprocessing)
    trainer = build_trainer(shortened, teacher, generator)
    for _ in range(40):
        trainer.step()
    return shortened, teacher, generator


# Least shares of the teacher's first class and first five, and what the logits' error falls to.
@pytest.mark.parametrize(
    ("bits", "top1", "top5", "falls_to"),
    [(8, 0.85, 0.8, 0.97), (6, 0.55, 0.5, 0.93), (4, 0.08, 0.12, 0.9)],
)
def test_fine_tuning_brings_a_student_nearer(folder, warmed_up, bits, top1, top5, falls_to):
    recipe, teacher, generator = warmed_up
    options = {"weight_bits": bits, "act_bits": bits, "epochs": 1, "warmup_epochs": 0}
    trainer = build_trainer(recipe.with_options(options), teacher, copy.deepcopy(generator))
    batches = [*photographs.crops(folder, teacher.preprocessing)]
    expected = logits_of(teacher.network, batches)
    trainer.calibrate(4)
    before = agreement(logits_of(trainer.student, batches), expected)
    for _ in range(10):
        trainer.step()
    after = agreement(logits_of(trainer.student, batches), expected)
    assert after.error < falls_to * before.error
    assert after.top1 >= top1
    assert after.top5 >= top5


def test_agreement():
    teacher = torch.eye(10)[:4] * 10 - torch.arange(10.0)
    same = agreement(teacher, teacher)
    assert (same.top1, same.top5, same.error) == (1, 1, 0)
    student = teacher.clone()
    student[0] = -student[0]
    assert agreement(student, teacher).top1 == 0.75
    mean = teacher.mean(0).expand_as(teacher)
    assert agreement(mean, teacher).error == pytest.approx(1)
