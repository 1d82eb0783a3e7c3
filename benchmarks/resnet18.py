"""Train a ResNet-18: ``python -m benchmarks.resnet18 --out resnet18.safetensors``.

torchvision's network for one channel and ten classes, trained on Fashion-MNIST enlarged to 64x64
for 300 steps, a few minutes on two cores; ``--data`` is the folder that
``examples/train_teacher.py`` describes. ``benchmarks/export_networks.py`` quantizes it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from examples.train_teacher import FASHION_MNIST, load_split
from gdfq.data import top1

IMAGE_SIZE = 64
CLASSES = 10
TEST_IMAGES = Path(__file__).parents[1] / "gdfq" / "assets" / "fashion_mnist"
# The range of a normalized pixel.
(_MEAN,), (_STD,) = FASHION_MNIST.mean, FASHION_MNIST.std
RANGE = (-_MEAN / _STD, (1 - _MEAN) / _STD)


def resnet18(weights: Path | None = None) -> nn.Module:
    network = torchvision.models.resnet18(num_classes=CLASSES)
    network.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    if weights is not None:
        network.load_state_dict(load_file(weights))
    return network.eval()


def enlarged(images: Tensor) -> Tensor:
    return F.interpolate(images, size=IMAGE_SIZE, mode="bilinear", antialias=True)


def batches(count: int = 10_000, size: int = 200) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the first test images ``(N, 1, 64, 64)``, with labels."""
    images, labels = load_split(FASHION_MNIST, TEST_IMAGES, "test")
    for part, answers in zip(images[:count].split(size), labels[:count].split(size), strict=True):
        yield enlarged(part), answers


def train(data: Path, steps: int, batch_size: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    images, labels = load_split(FASHION_MNIST, data, "train")
    network = resnet18().train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps, pct_start=0.2)
    start = time.perf_counter()
    for step in range(steps):
        chosen = torch.randint(0, len(labels), (batch_size,))
        batch = enlarged(FASHION_MNIST.augment(images[chosen]))
        logits = network(batch.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            print(f"step {step}: {loss:.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    return network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    network = train(arguments.data, arguments.steps, arguments.batch_size, arguments.seed)
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, arguments.out)
    print(f"top-1 on the test images: {top1(network, batches()):.2f}%")


if __name__ == "__main__":
    main()
