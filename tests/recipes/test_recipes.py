"""The recipes of the package: the paper's constants, and networks that can be built."""

import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import gdfq
from gdfq.errors import InputError
from gdfq.models import Generator
from gdfq.nn.qact import observing_copy
from gdfq.recipes import load_recipe, recipe_names, resolve_recipe
from gdfq.recipes.files import FOLDER
from gdfq.recipes.networks import build_generator, build_student, build_teacher
from gdfq.recipes.schema import Recipe
from gdfq.settings import Settings
from gdfq.sweeps.plan import read_plan
from gdfq.training.start import NO_START

PAPERS = {
    "cifar10-resnet20": (10, 32),
    "cifar100-resnet20": (100, 32),
    "imagenet-resnet18": (1000, 224),
    "imagenet-resnet50": (1000, 224),
    "imagenet-vgg16-bn": (1000, 224),
    "imagenet-inception-v3": (1000, 299),
    "imagenet-mobilenet-v2": (1000, 224),
}


@pytest.mark.parametrize("name", PAPERS)
def test_the_paper_s_constants(name):
    recipe = load_recipe(f"{name}-paper")
    large = name.startswith("imagenet")
    training = recipe.training
    assert (training.epochs, training.steps_per_epoch) == (400, 200)
    assert (training.batch_size, training.warmup_epochs) == ((16, 50) if large else (200, 4))
    assert (training.student_lr, training.generator_lr) == (1e-6 if large else 1e-4, 1e-3)
    assert (training.momentum, training.weight_decay) == (0.9, 1e-4)
    assert (training.schedule, training.milestones) == ("step", (100, 200, 300))
    assert (training.temperature, training.alpha, training.bns_weight) == (20, 1, 0.1)
    assert (recipe.generator.latent_dim, recipe.generator.width) == (100, 128)
    assert recipe.generator.conditional_bn == large
    assert recipe.quantization.ste == "identity"
    assert recipe.teacher.weights == "pretrained"
    assert not recipe.parts.changed()
    assert recipe.start == NO_START


EMBEDDED = ("fashion-mnist-resnet20", "cifar10-resnet20")
# Networks whose default is the paper's schedule with another start.
WHOLE = [name for name in PAPERS if name not in EMBEDDED]


@pytest.mark.parametrize("name", [*WHOLE, "fashion-mnist-resnet20"])
def test_the_default_differs_from_the_paper_s_in_its_start(name):
    recipe, paper = load_recipe(name), load_recipe(f"{name}-paper")
    same = {"name", "description", "start"}
    assert recipe.model_dump(exclude=same) == paper.model_dump(exclude=same)
    assert recipe.start == load_recipe("fashion-mnist-resnet20").start
    assert recipe.start != paper.start


@pytest.mark.parametrize("name", PAPERS)
def test_quick_is_the_paper_s_in_fewer_epochs_with_the_default_start(name):
    whole, quick = load_recipe(f"{name}-paper"), load_recipe(f"{name}-quick")
    assert (quick.start, quick.parts) == (load_recipe(name).start, whole.parts)
    assert quick.teacher == whole.teacher
    assert quick.generator == whole.generator
    share = quick.training.epochs / whole.training.epochs
    assert quick.training.milestones == tuple(m * share for m in whole.training.milestones)
    assert quick.training.warmup_epochs == int(whole.training.warmup_epochs * share)
    same = whole.training.model_dump(exclude={"epochs", "warmup_epochs", "milestones"})
    assert quick.training.model_dump(exclude={"epochs", "warmup_epochs", "milestones"}) == same


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_recipes_of_the_embedded_networks_share_constants(name):
    """All but the schedule's length and the student's rate."""
    recipe, other = load_recipe(name), load_recipe(EMBEDDED[0])
    assert (recipe.quantization, recipe.generator) == (other.quantization, other.generator)
    assert (recipe.start, recipe.parts) == (other.start, other.parts)
    own = {"epochs", "steps_per_epoch", "warmup_epochs", "student_lr"}
    assert recipe.training.model_dump(exclude=own) == other.training.model_dump(exclude=own)
    assert recipe.training.warmup_epochs * 2 == recipe.training.epochs


def test_there_are_no_others():
    whole = {*PAPERS, "fashion-mnist-resnet20"}
    names = {*whole, *(f"{name}-quick" for name in PAPERS), *(f"{name}-paper" for name in whole)}
    names.add("imagenet-mobilenet-v2-laptop")
    assert set(recipe_names()) == names
    assert all(load_recipe(name).name == name for name in names)


def test_the_laptop_s_images_are_smaller_than_those_it_is_measured_on():
    laptop = load_recipe("imagenet-mobilenet-v2-laptop")
    with torch.device("meta"):
        recipe, loaded = build_teacher(laptop.with_options({"weights": "random"}))
        generator = build_generator(recipe, loaded.preprocessing)
        student = observing_copy(build_student(recipe, loaded.network))
        logits = student(torch.zeros(2, 3, generator.image_size, generator.image_size))
    assert (generator.image_size, logits.shape) == (128, (2, 1000))
    assert recipe.teacher.image_size == 224
    assert laptop.start == load_recipe("fashion-mnist-resnet20").start


@pytest.mark.parametrize("name", PAPERS)
def test_teacher_and_student_can_be_built(name):
    """Without memory or arithmetic: shapes alone."""
    pytest.importorskip("pytorchcv")
    classes, size = PAPERS[name]
    paper = load_recipe(f"{name}-paper")
    with torch.device("meta"):
        recipe, loaded = build_teacher(paper.with_options({"weights": "random"}))
        student = build_student(recipe, loaded.network)
        logits = observing_copy(student)(torch.zeros(2, 3, size, size))
    assert logits.shape == (2, classes)
    assert recipe.teacher.num_classes == classes
    assert recipe.teacher.image_size == size
    assert len(recipe.teacher.mean) == len(recipe.teacher.std) == 3
    assert recipe.teacher.resize == (size if size == 32 else -(-size * 8 // 7))
    counts = student.coverage.counts()
    assert counts["quantized"] > 30
    # The comment of the short recipe reckons with the operations of a step.
    comment = (FOLDER / f"{name}-quick.toml").read_text()
    tuning, warm_up = operations(loaded.network, size, recipe.training.batch_size)
    told = re.search(r"([\d,]+) steps of (\d+) GFLOP and ([\d,]+) of (\d+)", comment)
    assert (int(told[2]), int(told[4])) == (round(tuning / 1e9), round(warm_up / 1e9))
    steps, training = [int(told[n].replace(",", "")) for n in (1, 3)], recipe.training
    quick = load_recipe(f"{name}-quick").training
    assert sum(steps) == quick.epochs * training.steps_per_epoch
    assert steps[1] == quick.warmup_epochs * training.steps_per_epoch
    petaflop = (steps[0] * int(told[2]) + steps[1] * int(told[4])) / 1e6
    assert float(re.search(r"([\d.]+) PFLOP", comment)[1]) == round(petaflop, 1)
    minutes = petaflop / 8e-3 / 60 * (3 if "times" in comment.replace("\n# ", " ") else 1)
    assert int(re.search(r"(\d+) minutes", comment)[1]) == round(minutes)
    assert 2 * minutes <= 60


def operations(network, size, batch_size):
    """Of a step and of one in the warm-up: multiplications and additions of the convolutions."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, size, size))
    forward, first = counter.get_total_flops(), Generator(1, size).first_size
    # Upsampling and convolution in one have 16 multiplications a position of their small input.
    generator = 2 * (
        100 * 128 * first**2
        + 16 * 128 * 128 * first**2
        + 16 * 128 * 64 * (2 * first) ** 2
        + 9 * 64 * 3 * (4 * first) ** 2
    )
    # Generator and student: forward, and gradients to input and weights. Teacher: to input only.
    return (
        batch_size * (3 * generator + 2 * forward + 3 * forward),
        batch_size * (3 * generator + 2 * forward),
    )


def test_a_model_without_a_recipe_gets_the_constants_for_its_images():
    small = resolve_recipe(None, {"model": "gdfq:resnet20"})
    assert small.training == load_recipe("cifar10-resnet20").training
    assert small.generator == load_recipe("cifar10-resnet20").generator
    assert small.name == "gdfq-resnet20"
    assert "28x28, with the constants of cifar10-resnet20" in small.description
    options = {"model": "torchvision:resnet18", "weights": "random", "weight_bits": 3}
    large = resolve_recipe(None, options)
    assert large.training == load_recipe("imagenet-resnet18-quick").training
    assert large.generator.conditional_bn
    assert large.teacher.model == "torchvision:resnet18"
    assert not resolve_recipe(None, {**options, "image_size": 32}).generator.conditional_bn
    with pytest.raises(InputError, match="recipe: name a recipe"):
        resolve_recipe(None, {"weights": "random"})


def test_images_of_any_size():
    generator = gdfq.models.Generator(3, 29, width=8, conditional_bn=True)
    images = generator(torch.randn(4, 100), torch.tensor([0, 1, 2, 0]))
    assert images.shape == (4, 3, 29, 29)
    assert images.mean((0, 2, 3)).abs().max() < 1e-5  # the last batch norm sees what is returned
    images.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in generator.parameters())


PLAIN = (FOLDER / "fashion-mnist-resnet20.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "raw",
    [
        b"\xef\xbb\xbf" + PLAIN.encode(),
        PLAIN.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + PLAIN.replace("\n", "\r\n").encode(),
    ],
    ids=["byte-order mark", "CRLF", "both"],
)
def test_a_file_of_another_editor_is_the_same_recipe(tmp_path, raw):
    (tmp_path / "own.toml").write_bytes(raw)
    assert load_recipe(str(tmp_path / "own.toml")) == load_recipe("fashion-mnist-resnet20")


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (PLAIN.encode("utf-16"), "UTF-16"),
        (PLAIN.encode("utf-16-le"), "UTF-16"),
        (b"# one\n# na\xefve\n" + PLAIN.encode(), "another encoding: line 2 has the byte 0xef"),
    ],
    ids=["UTF-16", "UTF-16 without mark", "Latin-1"],
)
def test_a_file_in_another_encoding_is_refused_in_a_line(tmp_path, raw, found):
    (tmp_path / "own.toml").write_bytes(raw)
    message = f"^{{}}: .*own.toml is not TOML: it is not UTF-8 but {found}$"
    with pytest.raises(InputError, match=message.format("recipe")):
        load_recipe(str(tmp_path / "own.toml"))
    with pytest.raises(InputError, match=message.format("sweep")):
        read_plan(tmp_path / "own.toml")


def test_the_page_says_where_each_table_is_declared():
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    for name, info in Recipe.model_fields.items():
        kind = get_args(info.annotation)[1] if name == "bits" else info.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            module = kind.__module__.replace(".", "/")
            declared = "gdfq/training/parts/" if name == "parts" else f"{module}.py"
            (row,) = re.findall(rf"^\| `\[{name}\]` \|([^|]*)\|", page, re.MULTILINE)
            assert f"`{declared}`" in row
