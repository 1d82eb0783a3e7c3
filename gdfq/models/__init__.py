"""Networks: the generator, and the architecture of the embedded teacher."""

from gdfq.models.generator import Generator
from gdfq.models.resnet import ResNet20, resnet20

__all__ = ["Generator", "ResNet20", "resnet20"]
