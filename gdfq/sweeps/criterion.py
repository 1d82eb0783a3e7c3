"""Students' divergence from their teacher on generated images, by which a sweep chooses.

Students that are compared see the same images: as many from the last generator of each of their
runs, so that none is measured on its own images alone, and from noise that training has not drawn.
Each generator gets noise of its own: those of runs that differ in the student alone are the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from gdfq.bit_widths.sensitivity import summed_divergence
from gdfq.runs.folder import STUDENT
from gdfq.runs.run import Run
from gdfq.sweeps.contents import Comparison

# Images of up to so many pixels a side, and of larger ones, over all the generators.
SMALL = 64
IMAGES_SMALL, IMAGES_LARGE = 1000, 250
PASS = 50  # images in a forward pass
# Added to a run's seed, from which training's own noise is drawn; of a seed, torch takes 32 bits.
NOISE = 2**31


def measure(
    folders: Mapping[str, Path],
    group: str,
    seed: int,
    device: str,
    on_warning: Callable[[str], None],
) -> Comparison:
    """Compare the finished runs of one seed in ``folders`` with their teacher.

    Args:
        folders: by variant, of runs with the same teacher.
        group: what the variants have in common.
        seed: of the runs.
        device: what is computed on.
        on_warning: called with a line about each file that cannot be used.

    Raises:
        InputError: a run's student or generator cannot be loaded.
    """
    rng = torch.Generator(device).manual_seed((seed + NOISE) % 2**63)
    batches: list[Tensor] = []
    for number, folder in enumerate(folders.values()):
        run = Run(folder, device=device, on_warning=on_warning)
        small = run.preprocessing.image_size <= SMALL
        wanted = IMAGES_SMALL if small else IMAGES_LARGE
        # Where it does not come out even, the first ones make one more.
        count = wanted // len(folders) + (number < wanted % len(folders))
        batches += run.generate(count, rng).split(PASS)
    divergence: dict[str, float | None] = {}
    agreement: dict[str, float] = {}
    for variant, folder in folders.items():
        run = Run(folder, device=device, on_warning=on_warning)
        found, agreement[variant] = compare(run.teacher, run.student, batches)
        divergence[variant] = found if math.isfinite(found) else None
    return Comparison(group, seed, sum(map(len, batches)), students(folders), divergence, agreement)


def students(folders: Mapping[str, Path]) -> dict[str, str]:
    """Return the SHA-256 of each variant's student file; measurements are cached under it."""
    return {
        variant: hashlib.sha256((folder / STUDENT).read_bytes()).hexdigest()
        for variant, folder in folders.items()
    }


@torch.no_grad()
def compare(
    teacher: nn.Module, student: nn.Module, batches: Sequence[Tensor]
) -> tuple[float, float]:
    """Return the divergence of ``student`` from ``teacher`` and their agreement, on images.

    Args:
        teacher, student: ``(N, C, H, W)`` in, logits ``(N, classes)`` out; put into evaluation
            mode.
        batches: of images; at least one.

    Returns:
        The mean over images of ``KL(softmax(teacher(x)) || softmax(student(x)))`` in nats, and the
        percentage of images for which both have the same largest logit.
    """
    total, equal = 0.0, 0
    for images in batches:
        wanted, found = (
            network.eval()(images).double().log_softmax(1) for network in (teacher, student)
        )
        total += float(summed_divergence(wanted, found))
        equal += int((wanted.argmax(1) == found.argmax(1)).sum())
    count = sum(map(len, batches))
    return total / count, 100.0 * equal / count
