r"""Train the ResNet-20 of ``gdfq/assets/``, or ``--model``, on Fashion-MNIST or CIFAR-10.

    python examples/train_teacher.py --data FOLDER --out teacher.safetensors --bf16

``--dataset fashion-mnist``: ``FOLDER`` contains the four ``*-ubyte.gz`` files. Debian's
``dataset-fashion-mnist`` installs them in ``/usr/share/datasets/fashion-mnist``, torchvision in
``FashionMNIST/raw`` under its root. ``--dataset cifar10``: ``FOLDER`` is the output of
``gdfq data cifar10 --out FOLDER``, or torchvision's root.

The embedded teacher of CIFAR-10 was trained for 60 epochs (91.93), then for 16 more::

    python examples/train_teacher.py --dataset cifar10 --data FOLDER --out first.safetensors \
        --epochs 60 --bf16
    python examples/train_teacher.py --dataset cifar10 --data FOLDER --out teacher.safetensors \
        --init first.safetensors --epochs 16 --lr 0.05 --bf16

Each epoch saves the weights and, with ``--checkpoint``, the state from which the same command
resumes. The last epoch's weights are the result; test images are used for reporting only.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from gdfq.data import top1
from gdfq.data.cifar import CIFAR10_SPLITS, open_cifar
from gdfq.data.fashion_mnist import read_idx
from gdfq.sources import find_source


@dataclass(frozen=True)
class Dataset:
    """Mean and standard deviation per channel of the training images in [0, 1]; pixels of shift."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    shift: int

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Normalize images ``(N, C, H, W)`` of unsigned bytes for the network."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images.float() / 255 - mean) / std

    def augment(self, images: torch.Tensor) -> torch.Tensor:
        """Shift each image at random, padding with black, and flip it horizontally at random."""
        batch, channels, height, width = images.shape
        shift = self.shift
        black = self.normalize(torch.zeros(1, channels, 1, 1, dtype=torch.uint8))
        padded = black.repeat(batch, 1, height + 2 * shift, width + 2 * shift)
        padded[..., shift : shift + height, shift : shift + width] = images
        dy, dx = torch.randint(0, 2 * shift + 1, (2, batch, 1))
        rows = (torch.arange(height) + dy)[:, None, :, None]
        columns = torch.arange(width) + dx
        flip = torch.rand(batch, 1) < 0.5
        columns = torch.where(flip, columns.flip(1), columns)[:, None, None, :]
        index = torch.arange(batch)[:, None, None, None]
        return padded[index, torch.arange(channels)[:, None, None], rows, columns]


FASHION_MNIST = Dataset((0.2860,), (0.3530,), 2)
CIFAR10 = Dataset((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 4)
DATASETS = {"fashion-mnist": FASHION_MNIST, "cifar10": CIFAR10}
IDX_FILES = {"train": "train", "test": "t10k"}


def load_split(dataset: Dataset, folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalized images ``(N, C, H, W)`` and labels ``(N,)``."""
    if dataset is CIFAR10:
        files = [open_cifar("cifar10", folder, file) for file in CIFAR10_SPLITS[split]]
        images = torch.cat([torch.from_numpy(file.images.copy()) for file in files])
        images = images.permute(0, 3, 1, 2)
        labels = torch.cat([torch.from_numpy(file.labels) for file in files])
    else:
        images, labels = (
            torch.from_numpy(read_idx(folder / f"{IDX_FILES[split]}-{kind}-ubyte.gz").copy())
            for kind in ("images-idx3", "labels-idx1")
        )
        images = images.unsqueeze(1)
    return dataset.normalize(images), labels.long()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=tuple(DATASETS), default="fashion-mnist")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="weights to start from; else random ones")
    parser.add_argument("--checkpoint", type=Path, help="continue from here, where it exists")
    parser.add_argument("--model", default="gdfq:resnet20", help="or package.module:factory")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 activations (faster)")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    dataset = DATASETS[args.dataset]
    train_images, train_labels = load_split(dataset, args.data, "train")
    test_images, test_labels = load_split(dataset, args.data, "test")
    model = find_source(args.model).build(None, {"num_classes": 10, "channels": len(dataset.mean)})
    if args.init is not None:
        model.load_state_dict(load_file(args.init))
    model = model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=args.lr, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    steps = len(train_labels) // args.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=args.epochs * steps, pct_start=0.2
    )
    stateful: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    first = 0
    if args.checkpoint is not None and args.checkpoint.exists():
        state = torch.load(args.checkpoint)
        for name, part in stateful.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["rng"])
        first = state["epoch"]

    for epoch in range(first, args.epochs):
        start = time.time()
        order = torch.randperm(len(train_labels))
        total = 0.0
        for step in range(steps):
            batch = order[step * args.batch_size : (step + 1) * args.batch_size]
            images = dataset.augment(train_images[batch])
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                logits = model(images)
            loss = F.cross_entropy(logits.float(), train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        batches = zip(test_images.split(250), test_labels.split(250), strict=True)
        hits = top1(model.eval(), batches)
        model.train()
        print(
            f"epoch {epoch + 1}/{args.epochs}  loss {total / steps:.4f}  top-1 {hits:.2f}%  "
            f"{time.time() - start:.0f} s",
            flush=True,
        )
        weights = {k: v.contiguous() for k, v in model.state_dict().items()}
        save_file(weights, args.out, metadata={"epoch": str(epoch + 1), "top1": f"{hits:.2f}"})
        if args.checkpoint is not None:
            saved = {name: part.state_dict() for name, part in stateful.items()}
            saved |= {"rng": torch.get_rng_state(), "epoch": epoch + 1}
            beside = args.checkpoint.with_suffix(".partial")
            torch.save(saved, beside)
            beside.replace(args.checkpoint)


if __name__ == "__main__":
    main()
