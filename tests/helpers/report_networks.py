"""Networks for reports, small, with what a table must cope with."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.tiny import tiny_teacher


class Functional(nn.Module):
    """A convolution and a linear layer called as functions, the second one's weight computed."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 2, 3, 3) / 4)
        self.norm = nn.BatchNorm2d(6)
        self.conv = nn.Conv2d(6, 6, 1)
        self.matrix = nn.Parameter(torch.randn(num_classes, 6))

    def forward(self, x):
        x = F.relu(self.norm(F.conv2d(x, self.kernel, padding=1)))
        x = F.relu(self.conv(x))
        return F.linear(x.mean((2, 3)), self.matrix * 0.5)


class Perceptron(nn.Module):
    """Linear layers and a batch norm of vectors; ``num_classes`` classes."""

    def __init__(self, num_classes=120):
        super().__init__()
        self.first = nn.Linear(128, 16)
        self.norm = nn.BatchNorm1d(16)
        self.last = nn.Linear(16, num_classes)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.first(x.flatten(1)))))


class Residual(nn.Module):
    """A residual block behind a stem, one with its activations in front, and a linear layer."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.branch = nn.Conv2d(6, 6, 3, padding=1)
        self.branch_norm = nn.BatchNorm2d(6)
        self.front_norm = nn.BatchNorm2d(6)
        self.behind = nn.Conv2d(6, 6, 1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(6, num_classes)

    def forward(self, x):
        x = self.relu(self.norm(self.conv(x)))
        x = self.relu(x + self.branch_norm(self.branch(x)))
        x = x + self.behind(self.relu(self.front_norm(x)))
        return self.fc(x.mean((2, 3)))


def _trained(model):
    with torch.no_grad():
        for _ in range(10):
            model(torch.randn(32, 2, 8, 8))
    return model.eval()


def tiny(num_classes=4):
    """Two convolutions and a linear layer."""
    return tiny_teacher(num_classes)


def functional(num_classes=4):
    """Layers called as functions."""
    torch.manual_seed(0)
    return _trained(Functional(num_classes))


def perceptron(num_classes=120):
    """No convolution, many classes."""
    torch.manual_seed(0)
    return _trained(Perceptron(num_classes))


def residual(num_classes=4):
    """Sums, and a batch norm that reads one."""
    torch.manual_seed(0)
    return _trained(Residual(num_classes))
