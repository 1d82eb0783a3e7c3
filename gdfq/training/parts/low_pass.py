"""A low-pass filter on the generated images.

Each channel's discrete Fourier coefficients at frequencies ``(u, v)``, in periods per image, are
multiplied by::

    exp(-(u**2 + v**2) / (2 * d**2))

The filter is linear and a product of one along each axis, so it is computed as ``A x B^T`` with two
constant circulant matrices, the product of the forward and inverse transforms. Generated images
have more of high frequencies than photographs, and the student need not learn them. The teacher
sees the filtered images too, and the generator's gradient passes through the filter.

Source: SynQ, ICLR 2025: d from 20 to 100. Costs ``height + width`` multiply-adds a pixel and
channel, less than a hundredth of the generator's, and one pass over the images in memory.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from gdfq.settings import Positive, Settings
from gdfq.training.parts.part import Part


class LowPassSettings(Settings):
    """Settings of the low-pass filter."""

    low_pass: Positive | None = Field(
        None,
        description="width of the Gaussian that damps the images' frequencies, in periods per "
        "image",
    )


class LowPass(Part):
    """The filter on all generated images, made for the size of the first."""

    settings: LowPassSettings

    def __init__(self, settings: LowPassSettings) -> None:
        super().__init__(settings)
        self.filter: LowPassFilter | None = None

    def images(self, images: Tensor) -> Tensor:
        """Return ``images``, filtered."""
        size = images.shape[-2], images.shape[-1]
        if self.filter is None or self.filter.size != size:
            assert self.settings.low_pass is not None
            self.filter = LowPassFilter(size, self.settings.low_pass, images.device)
        return self.filter(images)


class LowPassFilter:
    """The filter for images of one size.

    Args:
        size: height and width of the images.
        width: the Gaussian's standard deviation ``d``, > 0.
        device: of the images.
    """

    def __init__(self, size: tuple[int, int], width: float, device: Any = None) -> None:
        self.size = size
        self.rows, self.columns = (
            gaussian_matrix(length, width).to(device, torch.float32) for length in size
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Return ``images``, filtered, in their dtype and memory format."""
        channels_last = images.is_contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, enabled=False):
            filtered = self.rows @ images.float().contiguous() @ self.columns.T
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return filtered.to(images.dtype).contiguous(memory_format=layout)


def gaussian_matrix(size: int, width: float) -> Tensor:
    """Return the filter along an axis of ``size`` pixels, ``(size, size)`` float64, symmetric."""
    frequencies = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
    kernel = torch.fft.ifft(torch.exp(-(frequencies**2) / (2 * width**2))).real
    at = torch.arange(size)
    return kernel[(at[:, None] - at) % size]
