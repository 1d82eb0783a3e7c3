"""The calibration's images, made anew as often as they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

from gdfq.distributed import World


class Images:
    """Generated batches that can be gone through several times; each time they are the same.

    What is kept is the noise and the labels, not the images.

    Args:
        generator: in training mode, so that a batch depends on its own noise and labels alone.
        samples: noise and labels of this rank's share of each batch.
        world: the processes that have the others.
    """

    def __init__(
        self, generator: Callable[..., Tensor], samples: Sequence[tuple[Tensor, ...]],
        world: World,
    ) -> None:  # fmt: skip
        self.generator = generator
        self.samples = samples
        self.world = world

    def __iter__(self) -> Iterator[Tensor]:
        for z, labels in self.samples:
            yield self.generator(z, labels)

    def through(self, network: nn.Module | Callable[[Tensor], object]) -> None:
        """Have ``network`` see all batches."""
        for images in self:
            network(images)
