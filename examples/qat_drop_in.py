"""Train quantization-aware in your own training loop, with gdfq's drop-in layers.

    python examples/qat_drop_in.py --weight-bits 3 --act-bits 3

The same network is trained twice, with PyTorch's layers and with quantized ones, on 8,000 of the
package's Fashion-MNIST images, and measured on the other 2,000. The loop does not change.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

import gdfq
from gdfq.data.fashion_mnist import open_fashion_mnist


def make_network(conv: Callable, linear: Callable, act: Callable) -> nn.Sequential:
    return nn.Sequential(
        conv(1, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), act(),
        conv(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), act(),
        conv(32, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64), act(),
        nn.Flatten(), linear(64 * 4 * 4, 10),
    )  # fmt: skip


def train(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
    network.train()
    steps = epochs * (len(images) // 100)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(100):
            loss = F.cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()  # fixes the activation ranges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weight-bits", type=int, default=4)
    parser.add_argument("--act-bits", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, default=8000, help="training images, at most 8,000")
    args = parser.parse_args()

    pictures = open_fashion_mnist()
    images = (torch.tensor(pictures.images).permute(0, 3, 1, 2).float() / 255 - 0.286) / 0.353
    labels = torch.tensor(pictures.labels)
    train_images, train_labels = images[: args.images], labels[: args.images]
    test = list(zip(images[8000:].split(500), labels[8000:].split(500), strict=True))

    quantized = {
        "conv": lambda *a, **k: gdfq.nn.QConv2d(*a, weight_bits=args.weight_bits, **k),
        "linear": lambda *a, **k: gdfq.nn.QLinear(*a, weight_bits=args.weight_bits, **k),
        "act": lambda: gdfq.nn.QAct(args.act_bits, "relu"),
    }
    plain = {"conv": nn.Conv2d, "linear": nn.Linear, "act": nn.ReLU}
    for name, layers in (
        ("float32", plain),
        (f"W{args.weight_bits}A{args.act_bits}", quantized),
    ):
        torch.manual_seed(0)
        network = make_network(**layers)
        train(network, train_images, train_labels, args.epochs)
        print(f"{name}: {gdfq.data.top1(network, test):.2f}% of 2,000 test images")


if __name__ == "__main__":
    main()
