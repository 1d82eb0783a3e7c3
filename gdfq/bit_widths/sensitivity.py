"""Measure how much worse a network gets if the weights of one layer alone are quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gdfq.bit_widths.allocation import Layer
from gdfq.convert import quantize_model
from gdfq.errors import InputError
from gdfq.nn.copying import copied
from gdfq.nn.quantization import DEFAULTS, Quantization
from gdfq.nn.weight import QuantizedWeight, WeightQuantizer
from gdfq.ops._checks import check_bits

WIDTHS = tuple(range(2, 9))


@torch.no_grad()
def measure_sensitivities(
    teacher: nn.Module,
    batches: Sequence[Tensor],
    widths: Iterable[int] = WIDTHS,
    on_layer: Callable[[Layer], None] = lambda layer: None,
    how: Quantization = DEFAULTS,
) -> list[Layer]:
    """Measure the sensitivity of each layer that :func:`gdfq.quantize_model` quantizes, by width.

    A layer's sensitivity at ``k`` bits is the divergence of the teacher's predictions and of those
    of the same network in which this layer's weight, and nothing else, is quantized per output
    channel::

        mean over images of KL(softmax(teacher(x)) || softmax(quantized(x)))

    Args:
        teacher: the trained network; it is copied, never modified.
        batches: of images ``(N, C, H, W)``, at least one.
        widths: bits to try, each 2 to 8.
        on_layer: called with each layer as soon as it is measured.
        how: the settings of the student that the bits are for.

    Returns:
        The layers in the order of the network's modules, under their first names.

    Raises:
        InputError: ``batches`` is empty, a width is out of range, or the network cannot be
            converted or has no such layer.
    """
    widths = tuple(check_bits(width, "widths") for width in widths)
    measure = Divergence(teacher, batches, how)
    layers = []
    for name in names_of_layers(teacher, how.leaf_modules):
        weight = f"{name}.weight"
        sensitivity = {width: measure({weight: width}) for width in widths}
        layers.append(Layer(name, tensor_at(measure.network, weight).numel(), sensitivity))
        on_layer(layers[-1])
    return layers


def names_of_layers(teacher: nn.Module, leaf_modules: Sequence[str | type] = ()) -> list[str]:
    """Return the layers whose sensitivity :func:`measure_sensitivities` measures.

    Raises:
        InputError: there is none, or the network cannot be converted.
    """
    student = quantize_model(teacher, leaf_modules=leaf_modules)
    names = [n for n, module in student.named_modules() if isinstance(module, QuantizedWeight)]
    if not names:
        raise InputError(
            "teacher: has no Conv2d or Linear whose bits could be chosen; functions that are "
            "called with weights are not measured"
        )
    return names


def summed_divergence(expected: Tensor, found: Tensor) -> Tensor:
    """Return the sum over images of KL(expected || found), log-probabilities ``(N, classes)``."""
    return F.kl_div(found, expected, reduction="sum", log_target=True)


def tensor_at(network: nn.Module, path: str) -> Tensor:
    """Return the parameter or buffer at ``path`` in ``network``."""
    owner, _, name = path.rpartition(".")
    return getattr(network.get_submodule(owner), name)


class Divergence:
    """The divergence of a network's predictions from those with some of its weights quantized.

    Args:
        teacher, batches, how: see :func:`measure_sensitivities`.

    Raises:
        InputError: ``batches`` is empty.
    """

    def __init__(
        self,
        teacher: nn.Module,
        batches: Sequence[Tensor],
        how: Quantization = DEFAULTS,
    ) -> None:
        if not batches:
            raise InputError("batches: must hold at least one batch of images, got none")
        self.network = copied(teacher).eval()
        self.batches = batches
        self.how = how
        self.images = sum(len(images) for images in batches)
        self.expected = [self._predict(images) for images in batches]

    @torch.no_grad()
    def _predict(self, images: Tensor) -> Tensor:
        return F.log_softmax(self.network(images).float(), dim=1)

    @torch.no_grad()
    def __call__(self, bits: Mapping[str, int]) -> float:
        """Return nats, with the weight at each path in ``bits`` quantized to so many bits."""
        trained = {path: tensor_at(self.network, path).clone() for path in bits}
        for path, width in bits.items():
            quantizer = WeightQuantizer(width, self.how)
            tensor_at(self.network, path).copy_(quantizer(trained[path]))
        total = sum(
            summed_divergence(expected, self._predict(images))
            for images, expected in zip(self.batches, self.expected, strict=True)
        )
        for path, weight in trained.items():
            tensor_at(self.network, path).copy_(weight)
        return float(total) / self.images
