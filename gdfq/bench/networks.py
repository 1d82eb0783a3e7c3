"""The networks of the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gdfq.sources import load_teacher


@dataclass(frozen=True)
class Workload:
    """A teacher, by its name in a recipe, with its images and the generator's kind."""

    model: str
    image_size: int
    batch_size: int
    num_classes: int
    conditional_bn: bool


# As in the paper: small images with batch 200; ImageNet with 16 and the conditional generator.
WORKLOADS = {
    "resnet20": Workload("gdfq:resnet20", 32, 200, 10, False),
    "resnet18": Workload("torchvision:resnet18", 224, 16, 1000, True),
    "mobilenet_v2": Workload("torchvision:mobilenet_v2", 224, 16, 1000, True),
    "vgg16_bn": Workload("torchvision:vgg16_bn", 32, 200, 10, False),
    "resnet50": Workload("torchvision:resnet50", 224, 16, 1000, True),
}


def build(workload: Workload) -> nn.Module:
    """Build the network with random weights, and batch-norm statistics of random images."""
    size = workload.image_size
    classes = workload.num_classes
    model = load_teacher(workload.model, "random", image_size=size, num_classes=classes).network
    if workload.model == "torchvision:vgg16_bn" and size == 32:
        # As usual for small images: a single linear layer after the last pooling.
        model.avgpool = nn.Identity()
        model.classifier = nn.Linear(512, classes)
    return model
