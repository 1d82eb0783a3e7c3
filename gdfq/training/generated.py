"""Generated images, made as a training step makes them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from gdfq.distributed import World
from gdfq.training.checks import floating_parameter
from gdfq.training.parts.part import Part
from gdfq.training.start.images import Images


class GeneratedImages:
    """Noise, labels and the images that a generator makes of them.

    Args:
        generator: ``generator(z, labels)`` returns images; ``latent_dim`` is the length of ``z``.
        num_classes: of the labels.
        batch_size: of each sample.
        rng: source of all random numbers, on the generator's device.
        parts: their hooks ``labels`` and ``images`` are applied; see
            :func:`gdfq.training.parts.make_parts`.
        world: the processes that share a batch; None is this one alone.
    """

    def __init__(
        self,
        generator: nn.Module,
        num_classes: int,
        batch_size: int,
        rng: torch.Generator,
        parts: Sequence[Part] = (),
        world: World | None = None,
    ) -> None:
        self.generator = generator
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.rng = rng
        self.parts = parts
        self.world = world or World()

    @property
    def device(self) -> torch.device:
        """The generator's device."""
        return floating_parameter(self.generator).device

    def noise(self, count: int) -> Tensor:
        """Draw standard normal noise ``(count, latent_dim)``."""
        like = floating_parameter(self.generator)
        shape = (count, int(self.generator.latent_dim))  # type: ignore[arg-type]
        return torch.randn(shape, generator=self.rng, device=like.device, dtype=like.dtype)

    def sample(self) -> tuple[Tensor, Tensor]:
        """Draw noise ``(B, latent_dim)`` and uniform labels ``(B,)``; mixed, ``(B, num_classes)``.

        Every rank draws the whole batch, so that all have the same random state, and returns its
        share of it.
        """
        z = self.noise(self.batch_size)
        y = torch.randint(self.num_classes, (self.batch_size,), generator=self.rng, device=z.device)
        for part in self.parts:
            y = part.labels(y, self.num_classes, self.rng)
        return self.world.shard(z), self.world.shard(y)

    def make(self, z: Tensor, y: Tensor, generator: nn.Module | None = None) -> Tensor:
        """Return the images ``(N, C, H, W)`` of noise ``z`` and labels ``y``.

        A ``generator`` given here is used in place of the own one.
        """
        images = (generator or self.generator)(z, y)
        for part in self.parts:
            images = part.images(images)
        return images

    def batches(self, count: int, generator: nn.Module | None = None) -> Images:
        """Draw ``count`` samples; return their images, which ``generator`` may make instead."""
        samples = [self.sample() for _ in range(count)]
        return Images(partial(self.make, generator=generator), samples, self.world)
