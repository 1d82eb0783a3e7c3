"""Real images, for measuring a finished network; nothing that trains imports this module."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gdfq.distributed import World
from gdfq.errors import InputError

FASHION_MNIST = Path(__file__).parent / "assets" / "fashion_mnist"
CLASS_NAMES = {
    "fashion-mnist": (
        "T-shirt", "trouser", "pullover", "dress", "coat",
        "sandal", "shirt", "sneaker", "bag", "ankle boot",
    )
}  # fmt: skip


def read_idx(path: Path) -> np.ndarray:
    """An array in the IDX format of MNIST: unsigned bytes, gzipped."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"data: cannot read {path}: {error}") from error
    try:
        dims = raw[3]
        shape = np.frombuffer(raw, ">u4", count=dims, offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)
    except (IndexError, ValueError) as error:
        raise InputError(f"data: {path} is not an IDX file: {error}") from error


def load_test_images(name: str, mean: list[float], std: list[float]) -> tuple[Tensor, Tensor]:
    """Normalized test images ``(N, C, H, W)`` float32 and labels ``(N,)`` int64.

    Raises:
        InputError: there is no such data set, or it cannot be read.
    """
    if name != "fashion-mnist":
        raise InputError(f"data: must be 'fashion-mnist', got {name!r}")
    images = read_idx(FASHION_MNIST / "t10k-images-idx3-ubyte.gz")
    labels = read_idx(FASHION_MNIST / "t10k-labels-idx1-ubyte.gz")
    pixels = torch.from_numpy(images.copy()).unsqueeze(1).float() / 255
    shift, scale = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return (pixels - shift) / scale, torch.from_numpy(labels.astype(np.int64))


@torch.inference_mode()
def top1(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    world: World | None = None,
    batch_size: int = 250,
) -> float:
    """Share of ``images`` that ``model`` classifies as ``labels``, in percent.

    The ranks of ``world`` take the batches in turns; all must call it, and all get the answer.
    """
    world = world or World()
    device = next(model.parameters()).device
    hits = 0
    batches = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
    for x, y in batches[world.rank :: world.size]:
        x = x.to(device)
        hits += int((model(x).argmax(1).cpu() == y).sum())
    return 100.0 * world.total(hits) / len(labels)
