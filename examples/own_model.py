"""Quantize a network of your own without data. This one is trained here; any trained one will do.

    python examples/own_model.py --out student.onnx

Training and measuring use the package's Fashion-MNIST images; `gdfq.quantize` sees only the
network. Quantizing is one call, and so is writing each file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import gdfq
from gdfq.data.fashion_mnist import open_fashion_mnist
from gdfq.export.files import options_for


class Net(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.tail = nn.Sequential(nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU())
        self.classifier = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.tail(self.body(self.stem(x))).mean((2, 3)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weight-bits", type=int, default=3)
    parser.add_argument("--act-bits", type=int, default=3)
    parser.add_argument("--images", type=int, default=8000, help="training images, at most 8,000")
    parser.add_argument("--epochs", type=int, default=10, help="of 20 steps, half of them warm-up")
    parser.add_argument("--out", help="file to export to: .onnx, .pt2 or .safetensors")
    parser.add_argument("--report", help="HTML file to write")
    args = parser.parse_args()
    if args.out:
        options_for(Path(args.out))  # raises before training if the name is invalid

    pictures = open_fashion_mnist()
    images = (torch.tensor(pictures.images).permute(0, 3, 1, 2).float() / 255 - 0.286) / 0.353
    labels = torch.tensor(pictures.labels)
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(4):
        for batch in torch.randperm(args.images).split(100):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    test = list(zip(images[8000:].split(500), labels[8000:].split(500), strict=True))
    result = gdfq.quantize(
        model,
        num_classes=10,
        image_size=28,
        mean=[0.286],
        std=[0.353],
        weight_bits=args.weight_bits,
        act_bits=args.act_bits,
        epochs=args.epochs,
        steps_per_epoch=20,
        warmup_epochs=args.epochs // 2,
        evaluate=test,
    )
    print(result)
    if args.out:
        print(result.export(args.out))
    if args.report:
        print(result.report(args.report))


if __name__ == "__main__":
    main()
