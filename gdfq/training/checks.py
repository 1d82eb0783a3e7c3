"""Checks of a trainer's arguments, before anything long starts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gdfq.errors import InputError
from gdfq.nn import StatisticsTeacher
from gdfq.nn.copying import copied
from gdfq.nn.given import (
    call_and_keep_images,
    kind_of,
    one_line,
    require_logits,
    require_values,
)
from gdfq.nn.qact import observing_copy
from gdfq.training.precision import check_precision
from gdfq.training.settings import Training


def check_settings(training: Training, device: torch.device, processes: int) -> None:
    """Raise InputError for the first setting that device or processes do not allow."""
    if training.batch_size % processes:
        raise InputError(
            f"batch_size: must be a multiple of {processes}, the number of processes, "
            f"got {training.batch_size}"
        )
    check_precision(training.precision, device)


def check_type(name: str, settings: Any, wanted: type) -> None:
    """Raise InputError if the argument ``name`` is not of the class ``wanted``."""
    if not isinstance(settings, wanted):
        raise InputError(
            f"{name}: must be gdfq.training.{wanted.__name__}, got {type(settings).__name__}"
        )


def check_finite(name: str, module: nn.Module) -> None:
    """Raise an InputError if a parameter or buffer of ``module`` holds NaN or infinity."""
    for key, tensor in module.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"{name}: {key} in its state_dict is {kind_of(tensor)}; runs keep tensors alone: "
                "have get_extra_state return a tensor, or take it away"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name}: {key!r} holds NaN or infinite values")


def check_networks(**networks: nn.Module) -> None:
    """Raise an InputError unless ``networks``, by argument, are on one device and can be used.

    ``student`` and ``generator`` are trained in place, so that they must have something to train.
    """
    device = next(networks["teacher"].parameters(), torch.empty(0)).device
    for name, network in networks.items():
        require_values(network, name)
        tensors = [*network.parameters(), *network.buffers()]
        for tensor in tensors:
            if tensor.device != device:
                raise InputError(
                    f"{name}: is on {tensor.device}, at least in part, and the teacher on "
                    f"{device}; move all to one device"
                )
        check_finite(name, network)
        if name == "teacher":
            if not tensors:
                raise InputError("teacher: has no parameters")
            continue
        if any(tensor.is_inference() for tensor in tensors):
            raise InputError(
                f"{name}: was made in torch.inference_mode, where nothing can be trained; make it "
                "outside"
            )
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise InputError(
                f"{name}: has no parameter to train (requires_grad=True); call "
                f"{name}.requires_grad_(True)"
            )


def check_shapes(
    teacher: StatisticsTeacher,
    student: nn.Module,
    generator: Any,
    num_classes: int,
) -> Tensor:
    """Return two generated images, after a trial of all three on copies, gradients included.

    Where the teacher changes its images in place, it works on a copy of them from then on.

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
    # A forward moves its running statistics.
    probe: Any = copied(generator, name="generator").train()
    z, labels = example_batch(probe, 2)
    images = _images(probe, z, labels)
    logits = _teacher_logits(teacher, images)
    if logits.dim() != 2 or logits.shape[1] != num_classes:
        raise InputError(
            f"num_classes: {num_classes} given, but the teacher's logits have shape "
            f"(N, {', '.join(map(str, logits.shape[1:]))})"
        )
    trial = observing_copy(student)
    try:
        outputs = require_logits(trial(images), "student")
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"student: does not take the generator's images of shape {tuple(images.shape)}: "
            f"{one_line(error)}"
        ) from error
    if outputs.shape != logits.shape:
        raise InputError(
            f"student: its logits have shape {tuple(outputs.shape)}, the teacher's "
            f"{tuple(logits.shape)}; make it with quantize_model(teacher)"
        )
    if not outputs.requires_grad:
        raise InputError(
            "student: its logits depend on no parameter that is trained (torch.no_grad or detach "
            "in its forward, or the last layers alone are not frozen)"
        )
    return images


def example_batch(generator: nn.Module, count: int) -> tuple[Tensor, Tensor]:
    """Return fixed noise ``(count, latent_dim)`` and labels ``(count,)`` for ``generator``."""
    like = floating_parameter(generator)
    shape = (count, int(generator.latent_dim))  # type: ignore[arg-type]
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    return noise.to(like), torch.zeros(count, dtype=torch.int64, device=like.device)


def floating_parameter(network: nn.Module) -> Tensor:
    """Return the first parameter with a floating-point dtype, which is that of the inputs."""
    return next(p for p in network.parameters() if p.is_floating_point())


def _images(generator: nn.Module, z: Tensor, labels: Tensor) -> Tensor:
    """Return what ``generator`` makes, detached; raise InputError if it is no images."""
    try:
        images = generator(z, labels)
    except Exception as error:
        raise InputError(
            f"generator: generator(z, labels) failed for z {tuple(z.shape)} and labels (N,): "
            f"{one_line(error)}"
        ) from error
    if not isinstance(images, Tensor) or images.dim() != 4 or len(images) != len(z):
        kind = tuple(images.shape) if isinstance(images, Tensor) else kind_of(images)
        raise InputError(
            f"generator: must return images (N, C, H, W) for z {tuple(z.shape)}, got {kind}"
        )
    if not images.requires_grad:
        raise InputError("generator: its images depend on no parameter that is trained")
    images = images.detach()
    if not bool(images.isfinite().all()):
        raise InputError("generator: makes images with NaN or infinite values")
    return images


def _teacher_logits(teacher: StatisticsTeacher, images: Tensor) -> Tensor:
    """Return the teacher's logits of ``images``; raise InputError if they cannot teach."""
    name = f"teacher: does not take the generator's images of shape {tuple(images.shape)}"
    try:
        with torch.no_grad():
            logits, statistics = call_and_keep_images(teacher, images)
        require_logits(logits, "teacher")
        given = images.clone().requires_grad_()
        again, _ = teacher(given)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name}: {one_line(error)}") from error
    finite = logits.isfinite().all()
    for values in (*statistics.means, *statistics.vars):
        finite &= values.isfinite().all()
    if not bool(finite):
        raise InputError(
            "teacher: has NaN or infinite values for the generator's images, in its logits or "
            "its batch norms' inputs; check its weights and running statistics"
        )
    problem = "they do not depend on it (torch.no_grad or detach in its forward)"
    if again.requires_grad:
        try:
            if torch.autograd.grad(again.float().sum(), given, allow_unused=True)[0] is not None:
                return logits
        except RuntimeError as error:
            problem = one_line(error)
    raise InputError(
        "teacher: the generator learns from the gradient of its logits with respect to the images, "
        f"and there is none: {problem}"
    )
