"""A run's parts: its folder, its networks, what is measured and shown of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gdfq import models
from gdfq.convert import QuantizedModel, quantize_model
from gdfq.data import CLASS_NAMES, load_test_images, top1
from gdfq.errors import InputError
from gdfq.files import is_partial, partial, remove, write_file
from gdfq.nn import QAct
from gdfq.picture import image_grid
from gdfq.recipes import Recipe, load_recipe
from gdfq.recipes.schema import Teacher
from gdfq.training import GDFQTrainer
from gdfq.training.memory_format import TORCH_FORMATS

BUILTIN_WEIGHTS = Path(__file__).parent / "assets" / "fashion_mnist" / "resnet20.safetensors"


@dataclass
class Result:
    """The closing table of a run: top-1 in percent, None where it was not measured."""

    name: str
    weight_bits: int
    act_bits: int
    seed: int
    steps: int
    finished: bool
    training_seconds: float
    teacher: float | None = None
    before: float | None = None
    after: float | None = None
    evaluation: str = "not asked for"
    failure: str | None = None


def create_folder(folder: Path) -> None:
    """Make ``folder``, which must not exist or be empty, and be writable."""
    try:
        if folder.is_dir() and not all(map(is_partial, folder.iterdir())):
            raise InputError(f"out: {folder} exists and is not empty; nothing is overwritten")
        folder.mkdir(parents=True, exist_ok=True)
        remove(folder.iterdir())
        probe = partial(folder / "probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"out: cannot write to {folder}: {error.strerror}") from error


def build_network(spec: Teacher) -> nn.Module:
    """The teacher's network without its weights, in evaluation mode."""
    return {"resnet20": models.resnet20}[spec.arch](spec.num_classes, spec.channels).eval()


def build_teacher(spec: Teacher) -> nn.Module:
    """The teacher of a recipe, with its weights, in evaluation mode."""
    path = BUILTIN_WEIGHTS if spec.weights == "builtin" else Path(spec.weights)
    if not path.is_file():
        raise InputError(f"weights: there is no file {path}")
    model = build_network(spec)
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise InputError(f"weights: cannot read {path}: {error}") from error
    except RuntimeError as error:
        problem = str(error).splitlines()[1].strip()
        raise InputError(f"weights: {path} does not fit {spec.arch}: {problem}") from error
    return model


def build_student(recipe: Recipe, teacher: nn.Module) -> QuantizedModel:
    """The quantized copy of ``teacher``, its ranges not yet set."""
    spec = recipe.quantization
    return quantize_model(
        teacher,
        spec.weight_bits,
        spec.act_bits,
        ste=spec.ste,
        momentum=spec.range_momentum,
    )


def _use_format(recipe: Recipe, *networks: nn.Module) -> None:
    """Bring networks into the memory format of a finished recipe, on which rounding depends."""
    name = recipe.training.memory_format
    for network in networks:
        network.to(memory_format=TORCH_FORMATS["channels_last" if name == "auto" else name])


class Measure:
    """Top-1 on the recipe's data set, or None with the reason in the result."""

    def __init__(self, spec: Teacher, result: Result) -> None:
        self.spec = spec
        self.result = result
        self.images: tuple[Tensor, Tensor] | None = None

    def __call__(self, model: nn.Module) -> float | None:
        """Top-1 of ``model`` in percent."""
        if self.spec.data == "none":
            return None
        try:
            self.images = self.images or load_test_images(
                self.spec.data, self.spec.mean, self.spec.std
            )
        except InputError as error:
            self.result.evaluation = f"skipped: {error}"
            return None
        images, labels = self.images
        self.result.evaluation = f"{len(labels):,} test images of {self.spec.data}"
        return top1(model, images, labels)


def save_student(student: nn.Module, recipe: Recipe, path: Path) -> None:
    """Write the student's state as safetensors; loading it gives the same outputs bit for bit."""
    state = {name: value.contiguous() for name, value in student.state_dict().items()}
    # One entry: safetensors writes several in an order that changes from run to run.
    # Written by Python, so that the file gets the permissions of any other.
    write_file(path, save(state, metadata={"recipe": recipe.to_toml()}))


def load_run(folder: Path) -> tuple[Recipe, nn.Module, QuantizedModel]:
    """Recipe, teacher and student of a run folder."""
    if not (folder / "recipe.toml").is_file():
        raise InputError(f"run: {folder} is no run folder: it has no recipe.toml")
    recipe = load_recipe(str(folder / "recipe.toml"))
    teacher = build_teacher(recipe.teacher)
    student = build_student(recipe, teacher)
    _use_format(recipe, teacher, student)
    try:
        student.load_state_dict(load_file(folder / "student.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"run: cannot load {folder / 'student.safetensors'}: {error}") from error
    if not all(m.num_batches_tracked for m in student.modules() if isinstance(m, QAct)):
        raise InputError(
            f"run: the student in {folder} has no activation ranges: its run failed before "
            "fine-tuning began"
        )
    return recipe, teacher, student


@torch.no_grad()
def picture(recipe: Recipe, trainer: GDFQTrainer, columns: int = 10) -> Image.Image:
    """One row of generated images per class, made as in training: in one balanced batch."""
    names = CLASS_NAMES.get(recipe.teacher.data) or tuple(
        f"class {label}" for label in range(recipe.teacher.num_classes)
    )
    names = names[:20]
    random = torch.Generator(trainer.device).manual_seed(recipe.training.seed)
    labels = torch.arange(len(names), device=trainer.device).repeat_interleave(columns)
    z = torch.randn(
        (len(labels), recipe.generator.latent_dim), generator=random, device=trainer.device
    )
    generator = copy.deepcopy(trainer.generator)  # a forward moves its running statistics
    images = generator(z, labels).cpu()
    return image_grid(list(images.split(columns)), names, recipe.teacher.mean, recipe.teacher.std)
