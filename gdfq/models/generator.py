"""The conditional image generator (Xu et al., ECCV 2020, section 3.2)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gdfq.distributed import joined_world
from gdfq.nn.global_batch_norm import global_bn_leaky_relu
from gdfq.nn.narrow_conv import narrow_conv2d
from gdfq.ops.bn_leaky_relu import bn_leaky_relu
from gdfq.ops.upsample_conv2d import upsample_conv2d
from gdfq.settings import Settings


class ConditionalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose scale and shift are learned per class.

    Takes ``x`` of shape ``(N, C, H, W)`` and ``labels`` of shape ``(N,)``; returns
    ``weight[label] * normalize(x) + bias[label]``. Soft labels ``(N, num_classes)`` mix the
    classes' scales and shifts. Scales start at 1, shifts at 0.

    Source: Dumoulin et al., "A learned representation for artistic style", ICLR 2017.
    """

    takes_global_batch = True

    def __init__(self, num_features: int, num_classes: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps=eps, affine=False)
        self.class_weight = nn.Embedding(num_classes, num_features)
        self.class_bias = nn.Embedding(num_classes, num_features)
        nn.init.ones_(self.class_weight.weight)
        nn.init.zeros_(self.class_bias.weight)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Normalize ``x`` and apply the scale and shift of each sample's class."""
        return _normalize(self, x, labels)


def _embed(embedding: nn.Embedding, labels: Tensor) -> Tensor:
    """Embed labels: classes ``(N,)`` or soft labels ``(N, num_classes)``."""
    if labels.dim() == 1:
        return embedding(labels)
    with torch.autocast(labels.device.type, enabled=False):
        return labels @ embedding.weight


def _normalize(
    norm: nn.BatchNorm2d, x: Tensor, labels: Tensor | None, negative_slope: float = 1.0
) -> Tensor:
    """Apply ``norm`` to ``x``, then a leaky ReLU; a slope of 1 omits it."""
    weight: Tensor | None = norm.weight
    bias: Tensor | None = norm.bias
    if isinstance(norm, ConditionalBatchNorm2d):
        assert labels is not None
        weight, bias = _embed(norm.class_weight, labels), _embed(norm.class_bias, labels)
    if norm.training:
        world = joined_world()
        if world is not None:
            return global_bn_leaky_relu(norm, x, weight, bias, world, negative_slope)
        assert norm.num_batches_tracked is not None
        assert norm.momentum is not None
        norm.num_batches_tracked.add_(1)
        return bn_leaky_relu(
            x,
            norm.running_mean,
            norm.running_var,
            weight,
            bias,
            norm.eps,
            norm.momentum,
            negative_slope,
        )
    y = F.batch_norm(x, norm.running_mean, norm.running_var, eps=norm.eps)
    shape = (-1, norm.num_features, 1, 1)
    if weight is not None and bias is not None:
        y = torch.addcmul(bias.view(shape), y, weight.view(shape))
    return y if negative_slope == 1 else F.leaky_relu(y, negative_slope)


ImageSize = Annotated[int, Field(ge=4)]
Channels = Annotated[int, Field(ge=1)]


class _Network(Settings):
    latent_dim: int = Field(100, ge=1, description="length of the noise vector")
    width: int = Field(128, ge=2, description="channels of the generator's first stages")
    conditional_bn: bool = Field(
        False, description="class-conditional batch norm, the paper's generator for ImageNet"
    )


class GeneratorSettings(_Network):
    """The generator's shape."""

    generated_size: ImageSize | None = Field(
        None,
        description="height and width of generated images, for teachers that take any size; "
        "otherwise the teacher's image_size",
    )


DEFAULTS = _Network()


class _Shape(_Network):
    num_classes: int = Field(ge=1)
    image_size: ImageSize
    channels: Channels


class Generator(nn.Module):
    """Generates images from noise and class labels.

    Args:
        num_classes: number of classes, >= 1.
        image_size: height and width in pixels, >= 4. Two stages double the resolution; a size that
            is not a multiple of 4 is cropped from the next multiple.
        channels: of the images, >= 1.
        latent_dim: length of the noise vector, >= 1.
        conditional_bn: False is the paper's generator for small images, which multiplies the noise
            by the label's embedding; True is the one for ImageNet, where the label selects scale
            and shift of each batch norm.
        width: channels of the first two stages, >= 2; the third has half as many.

    Raises:
        InputError: an argument is not one of the above.

    Source: Xu et al., ECCV 2020, section 3.2, and the architectures of its experiments.
    """

    num_classes: int
    image_size: int
    channels: int
    latent_dim: int
    conditional_bn: bool
    width: int

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        channels: int = 3,
        latent_dim: int = DEFAULTS.latent_dim,
        conditional_bn: bool = DEFAULTS.conditional_bn,
        width: int = DEFAULTS.width,
    ) -> None:
        super().__init__()
        shape = _Shape(
            num_classes=num_classes,
            image_size=image_size,
            channels=channels,
            latent_dim=latent_dim,
            conditional_bn=conditional_bn,
            width=width,
        )
        for name, value in shape:
            setattr(self, name, value)
        width, latent_dim = self.width, self.latent_dim
        self.first_size = -(-self.image_size // 4)

        def norm(features: int, eps: float) -> nn.BatchNorm2d:
            if self.conditional_bn:
                return ConditionalBatchNorm2d(features, self.num_classes, eps=eps)
            return nn.BatchNorm2d(features, eps=eps)

        if not self.conditional_bn:
            self.label_embedding = nn.Embedding(self.num_classes, latent_dim)
        self.linear = nn.Linear(latent_dim, width * self.first_size**2)
        self.bn0 = norm(width, eps=1e-5)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.bn1 = norm(width, eps=0.8)
        self.conv2 = nn.Conv2d(width, width // 2, 3, padding=1)
        self.bn2 = norm(width // 2, eps=0.8)
        self.conv3 = nn.Conv2d(width // 2, self.channels, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(self.channels, affine=False)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Generate normalized images ``(N, channels, image_size, image_size)``.

        Args:
            z: ``(N, latent_dim)`` standard normal noise.
            labels: ``(N,)`` int64 classes, or ``(N, num_classes)`` soft labels, which mix the
                parameters learned per class.
        """
        if not self.conditional_bn:
            z = z * _embed(self.label_embedding, labels)
        x = self.linear(z)
        x = x.view(-1, self.width, self.first_size, self.first_size)
        if self.conv1.weight.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous(memory_format=torch.channels_last)
        x = _normalize(self.bn0, x, labels)
        x = upsample_conv2d(x, self.conv1.weight, self.conv1.bias)
        x = _normalize(self.bn1, x, labels, 0.2)
        x = upsample_conv2d(x, self.conv2.weight, self.conv2.bias)
        x = _normalize(self.bn2, x, labels, 0.2)
        images = narrow_conv2d(x, self.conv3.weight, self.conv3.bias)
        images = images[:, :, : self.image_size, : self.image_size]
        return _normalize(self.bn3, torch.tanh(images), None)
