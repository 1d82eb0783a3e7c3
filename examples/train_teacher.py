"""Train a network on Fashion-MNIST: the ResNet-20 that ships in ``gdfq/assets/``, or ``--model``.

    python examples/train_teacher.py --data FOLDER --out teacher.safetensors --bf16

``FOLDER`` has the four ``*-ubyte.gz`` files: Debian's ``dataset-fashion-mnist`` puts them into
``/usr/share/datasets/fashion-mnist``, torchvision into ``FashionMNIST/raw`` under its root. The
last epoch's weights are written: the test images only report, they never choose.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from gdfq.data import top1
from gdfq.data.fashion_mnist import read_idx
from gdfq.sources import find_source

MEAN, STD = 0.2860, 0.3530  # of the 60,000 training images, scaled to [0, 1]


def load_split(folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(read_idx(folder / f"{split}-images-idx3-ubyte.gz").copy())
    labels = torch.from_numpy(read_idx(folder / f"{split}-labels-idx1-ubyte.gz").copy())
    return (images.unsqueeze(1).float() / 255 - MEAN) / STD, labels.long()


def augment(images: torch.Tensor) -> torch.Tensor:
    """A random shift by up to 2 pixels and a random horizontal flip, per image."""
    batch, _, height, width = images.shape
    padded = F.pad(images, (2, 2, 2, 2), value=-MEAN / STD)
    dy, dx = torch.randint(0, 5, (2, batch, 1))
    rows = (torch.arange(height) + dy)[:, None, :, None]
    columns = torch.arange(width) + dx
    flip = torch.rand(batch, 1) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)[:, None, None, :]
    index = torch.arange(batch)[:, None, None, None]
    return padded[index, torch.zeros_like(index), rows, columns]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="gdfq:resnet20", help="or package.module:factory")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 activations (faster)")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    train_images, train_labels = load_split(args.data, "train")
    test_images, test_labels = load_split(args.data, "t10k")
    model = find_source(args.model).build(None, {"num_classes": 10, "channels": 1})
    model = model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=args.lr, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    steps = len(train_labels) // args.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=args.epochs * steps, pct_start=0.2
    )

    for epoch in range(args.epochs):
        start = time.time()
        order = torch.randperm(len(train_labels))
        total = 0.0
        for step in range(steps):
            batch = order[step * args.batch_size : (step + 1) * args.batch_size]
            images = augment(train_images[batch]).contiguous(memory_format=torch.channels_last)
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
        state = {k: v.contiguous() for k, v in model.state_dict().items()}
        save_file(state, args.out, metadata={"epoch": str(epoch + 1), "top1": f"{hits:.2f}"})


if __name__ == "__main__":
    main()
