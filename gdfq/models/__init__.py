"""The generator, and residual networks for small images such as the embedded teacher."""

from gdfq.models.generator import Generator
from gdfq.models.resnet import CifarResNet, cifar_resnet, resnet20

__all__ = ["CifarResNet", "Generator", "cifar_resnet", "resnet20"]
