"""Networks: the generator, and those of the embedded teacher's kind."""

from gdfq.models.generator import Generator
from gdfq.models.resnet import CifarResNet, cifar_resnet, resnet20

__all__ = ["CifarResNet", "Generator", "cifar_resnet", "resnet20"]
