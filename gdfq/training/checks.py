"""What a trainer is given, checked before anything long starts."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from gdfq.distributed import World
from gdfq.errors import InputError
from gdfq.nn import QAct, StatisticsTeacher
from gdfq.nn.dynamic_ranges import has_dynamic
from gdfq.nn.qact import observing_copy
from gdfq.nn.weight import QuantizedWeight, WeightQuantizer
from gdfq.ops._checks import check_choice
from gdfq.training.memory_format import MemoryFormat
from gdfq.training.parts import Parts
from gdfq.training.precision import check_precision
from gdfq.training.schedules import Schedule
from gdfq.training.start import Start
from gdfq.training.start.correction import correct
from gdfq.training.start.images import Images


def check_settings(
    device: torch.device,
    processes: int,
    *,
    num_classes: int,
    batch_size: int,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: int,
    calibration_batches: int,
    student_lr: float,
    momentum: float,
    weight_decay: float,
    generator_lr: float,
    bns_weight: float,
    temperature: float,
    alpha: float,
    schedule: str,
    milestones: Sequence[int],
    precision: str,
    memory_format: str,
    fuse: bool,
    cuda_graph: bool,
    seed: int,
    parts: Parts,
) -> None:
    """Raise an InputError for the first setting of a trainer that is out of range."""
    for name, count, minimum in (
        ("num_classes", num_classes, 2),
        ("batch_size", batch_size, 2),
        ("epochs", epochs, 0),
        ("steps_per_epoch", steps_per_epoch, 1),
        ("warmup_epochs", warmup_epochs, 0),
        ("calibration_batches", calibration_batches, 1),
    ):
        if isinstance(count, bool) or not isinstance(count, int) or count < minimum:
            raise InputError(f"{name}: must be an int >= {minimum}, got {count!r}")
    if batch_size % processes:
        raise InputError(
            f"batch_size: must be a multiple of {processes}, the number of processes, "
            f"got {batch_size}"
        )
    if warmup_epochs > epochs:
        raise InputError(f"warmup_epochs: must be <= epochs = {epochs}, got {warmup_epochs}")
    for name, value in (
        ("student_lr", student_lr),
        ("generator_lr", generator_lr),
        ("temperature", temperature),
    ):
        if not 0 < value < math.inf:
            raise InputError(f"{name}: must be > 0 and finite, got {value!r}")
    for name, value in (
        ("weight_decay", weight_decay),
        ("bns_weight", bns_weight),
        ("alpha", alpha),
    ):
        if not 0 <= value < math.inf:
            raise InputError(f"{name}: must be >= 0 and finite, got {value!r}")
    if not 0 <= momentum < 1:
        raise InputError(f"momentum: must be in [0, 1), got {momentum!r}")
    for name, choice, allowed in (
        ("schedule", schedule, get_args(Schedule)),
        ("memory_format", memory_format, ("auto", *get_args(MemoryFormat))),
        ("fuse", fuse, (True, False)),
        ("cuda_graph", cuda_graph, (True, False)),
    ):
        check_choice(name, choice, allowed)
    check_precision(precision, device)
    if not isinstance(parts, Parts):
        raise InputError(f"parts: must be gdfq.training.Parts, got {type(parts).__name__}")
    parts.check_alpha(alpha)
    if parts.mix_classes > num_classes:
        raise InputError(
            f"mix_classes: must be <= {num_classes}, the number of classes, got {parts.mix_classes}"
        )
    if parts.replay_batches and processes > 1:
        raise InputError(
            "replay_batches: older images are kept by one process alone, and this run has "
            f"{processes}"
        )


def check_start(start: Start, student: nn.Module) -> None:
    """Raise an InputError if ``start`` sets ranges that ``student`` takes in each call."""
    if not isinstance(start, Start):
        raise InputError(f"start: must be gdfq.training.Start, got {type(start).__name__}")
    modules = [*student.modules()]
    acts = any(isinstance(m, QAct) and m.dynamic_range for m in modules)
    weights = any(
        (isinstance(m, QuantizedWeight) and has_dynamic(m.dynamic_ranges, "weight"))
        or (isinstance(m, WeightQuantizer) and m.kernel_ranges)
        for m in modules
    )
    names = {(True, True): "both", (True, False): "act", (False, True): "weight"}
    start.check_dynamic_ranges(names.get((acts, weights), "none"))


def check_finite(name: str, module: nn.Module) -> None:
    """Raise an InputError if a parameter or buffer of ``module`` holds NaN or infinity."""
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name}: {key!r} holds NaN or infinite values")


@torch.no_grad()
def check_shapes(
    teacher: StatisticsTeacher,
    student: nn.Module,
    generator: Any,
    num_classes: int,
    start: Start,
    mixed_labels: bool = False,
) -> Tensor:
    """Two generated images, after trying all three on copies.

    Raises:
        InputError: they do not fit each other; the message says how.
    """
    latent_dim = getattr(generator, "latent_dim", None)
    if not isinstance(latent_dim, int):
        raise InputError("generator: must have an int attribute latent_dim, the length of z")
    classes = getattr(generator, "num_classes", num_classes)
    if classes != num_classes:
        raise InputError(
            f"num_classes: {num_classes} given, but the generator was made for {classes}"
        )
    device = next(teacher.parameters()).device
    probe = copy.deepcopy(generator)  # a forward moves its running statistics
    z = torch.zeros(2, latent_dim, device=device)
    images = probe(z, torch.zeros(2, dtype=torch.int64, device=device))
    if mixed_labels:
        try:
            probe(z, torch.full((2, num_classes), 1 / num_classes, device=device))
        except (RuntimeError, IndexError, TypeError) as error:
            raise InputError(
                f"mix_probability: the generator does not take labels (N, {num_classes}), shares "
                f"of each class: {str(error).splitlines()[0]}"
            ) from error
    try:
        logits, _ = teacher(images)
    except RuntimeError as error:
        raise InputError(
            f"teacher: does not take the generator's images of shape {tuple(images.shape)}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if logits.dim() != 2 or logits.shape[1] != num_classes:
        raise InputError(
            f"num_classes: {num_classes} given, but the teacher's logits have shape "
            f"(N, {', '.join(map(str, logits.shape[1:]))})"
        )
    answer = observing_copy(student)(images)
    if answer.shape != logits.shape:
        raise InputError(
            f"student: its logits have shape {tuple(answer.shape)}, the teacher's "
            f"{tuple(logits.shape)}; make it with quantize_model(teacher)"
        )
    if start.corrects or start.bn_reestimate_end:
        trial = Images(lambda images, labels: images, [(images, images)], World())
        correct(observing_copy(student), teacher.model, trial, start.bn_reestimate)
    return images
