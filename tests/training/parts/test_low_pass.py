"""The low-pass filter, against a Fourier transform."""

import copy

import pytest
import torch

from gdfq.training import Parts
from gdfq.training.parts.low_pass import LowPassFilter
from tests.helpers.tiny import tiny_trainer


@pytest.mark.parametrize("shape", [(3, 2, 8, 8), (2, 1, 9, 6), (2, 3, 28, 28)], ids=str)
@pytest.mark.parametrize("width", [0.7, 3.0])
def test_the_filter_is_the_fourier_transform_s(shape, width):
    images = torch.randn(shape)
    v, u = (torch.fft.fftfreq(size, 1 / size) for size in shape[2:])
    gain = torch.exp(-(v[:, None] ** 2 + u**2) / (2 * width**2))
    expected = torch.fft.ifft2(torch.fft.fft2(images.double()) * gain).real
    for format in (torch.contiguous_format, torch.channels_last):
        given = images.contiguous(memory_format=format)
        filtered = LowPassFilter(images.shape[-2:], width)(given)
        torch.testing.assert_close(filtered.double(), expected, rtol=1e-4, atol=1e-5)
        assert filtered.stride() == given.stride()


def test_teacher_student_and_picture_see_filtered_images():
    trainer = tiny_trainer(parts=Parts(low_pass=1.0))
    z, labels = trainer.images.sample()
    generator = copy.deepcopy(trainer.generator)
    made = trainer.images.make(z, labels)
    assert torch.equal(made, LowPassFilter((8, 8), 1.0)(generator(z, labels)))
