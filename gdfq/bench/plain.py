"""The method in plain PyTorch, the baseline of the benchmarks.

Forward hooks take batch statistics; quantizers are tensor operations with an identity
straight-through estimator; the generator upsamples, then convolves; optimizers are PyTorch's
defaults; tensors are contiguous. The teacher is in evaluation mode, with parameters that require
gradients, as in most scripts, unless ``frozen_teacher``. Weights are quantized at every forward;
activation ranges are frozen, as after a run's first steps. On a GPU there is also the strongest
variant without custom kernels: compiled, channels last, fused optimizers, one CUDA graph per step.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gdfq.errors import InputError
from gdfq.models import Generator
from gdfq.models.generator import ConditionalBatchNorm2d
from gdfq.training.capture import CapturedStep
from gdfq.training.precision import Precision, autocast, multiplications


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, lo: Tensor, hi: Tensor, bits: int) -> Tensor:
        levels, half = 2**bits - 1, 2 ** (bits - 1)
        inv_scale = levels / (hi - lo).clamp(min=1e-8)
        zero = torch.round(inv_scale * lo) + half
        codes = torch.round(inv_scale * x - zero).clamp(-half, half - 1)
        return (codes + zero) / inv_scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return grads[0], None, None, None


class QuantizedActivation(nn.Module):
    """An activation followed by fake quantization over a range observed once."""

    lo: Tensor
    hi: Tensor

    def __init__(self, act: nn.Module, bits: int) -> None:
        super().__init__()
        self.act = act
        self.bits = bits
        self.register_buffer("lo", torch.zeros(()))
        self.register_buffer("hi", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Activate and quantize ``x``."""
        y = self.act(x)
        if self.training:
            self.lo.copy_(torch.minimum(self.lo, y.detach().min()))
            self.hi.copy_(torch.maximum(self.hi, y.detach().max()))
        return _FakeQuantize.apply(y, self.lo, self.hi, self.bits)


class _QuantizedWeight(nn.Module):
    def __init__(self, layer: nn.Conv2d | nn.Linear, bits: int) -> None:
        super().__init__()
        self.layer = layer
        self.bits = bits

    def quantized(self) -> Tensor:
        weight = self.layer.weight
        rows = weight.detach().flatten(1)
        shape = (-1, *(1,) * (weight.dim() - 1))
        lo, hi = rows.min(1).values.view(shape), rows.max(1).values.view(shape)
        return _FakeQuantize.apply(weight, lo, hi, self.bits)


class QuantizedConv2d(_QuantizedWeight):
    """A convolution whose weight is quantized per output channel at each forward."""

    layer: nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``."""
        layer = self.layer
        return F.conv2d(
            x, self.quantized(), layer.bias, layer.stride, layer.padding, layer.dilation,
            layer.groups,
        )  # fmt: skip


class QuantizedLinear(_QuantizedWeight):
    """A linear layer whose weight is quantized per output at each forward."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x``."""
        return F.linear(x, self.quantized(), self.layer.bias)


def plain_student(teacher: nn.Module, weight_bits: int, act_bits: int) -> nn.Module:
    """Copy ``teacher`` and replace convolutions, linear layers and ReLUs by their class."""
    student = copy.deepcopy(teacher).eval()
    for name, module in list(student.named_modules()):
        if type(module) is nn.Conv2d:
            student.set_submodule(name, QuantizedConv2d(module, weight_bits))
        elif type(module) is nn.Linear:
            student.set_submodule(name, QuantizedLinear(module, weight_bits))
        elif type(module) in (nn.ReLU, nn.ReLU6):
            student.set_submodule(name, QuantizedActivation(module, act_bits))
    return student.to(next(teacher.parameters()).device)  # the ranges too


class PlainGenerator(Generator):
    """:class:`gdfq.models.Generator` in plain PyTorch operations."""

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Generate images of the classes ``labels``."""
        if not self.conditional_bn:
            z = z * self.label_embedding(labels)
        x = self.linear(z).view(-1, self.width, self.first_size, self.first_size)
        x = self._norm(self.bn0, x, labels)
        x = F.interpolate(x, scale_factor=2)
        x = F.leaky_relu(self._norm(self.bn1, self.conv1(x), labels), 0.2)
        x = F.interpolate(x, scale_factor=2)
        x = F.leaky_relu(self._norm(self.bn2, self.conv2(x), labels), 0.2)
        images = self.conv3(x)[:, :, : self.image_size, : self.image_size]
        return self.bn3(torch.tanh(images))

    def _norm(self, norm: nn.BatchNorm2d, x: Tensor, labels: Tensor) -> Tensor:
        y = nn.BatchNorm2d.forward(norm, x)
        if isinstance(norm, ConditionalBatchNorm2d):
            shape = (-1, norm.num_features, 1, 1)
            weight, bias = norm.class_weight(labels), norm.class_bias(labels)
            y = y * weight.view(shape) + bias.view(shape)
        return y


class PlainTrainer:
    """Trains with the hyperparameters of :class:`gdfq.GDFQTrainer`.

    Args:
        teacher: the trained network; copied.
        generator: whose architecture and weights are copied.
        batch_size: images per step.
        weight_bits, act_bits: of the student.
        frozen_teacher: whether the teacher's parameters require no gradients.
        compiled: mode of ``torch.compile`` for the networks' losses, or None.
        captured: whether the step is one CUDA graph, with channels-last tensors and fused
            optimizers.
        precision: see :class:`gdfq.GDFQTrainer`.
        warm_up: whether only the generator is trained.
        seed: of noise and labels.

    Raises:
        InputError: ``captured`` without a CUDA device.
    """

    def __init__(
        self,
        teacher: nn.Module,
        generator: Generator,
        batch_size: int,
        weight_bits: int,
        act_bits: int,
        *,
        frozen_teacher: bool = False,
        compiled: str | None = None,
        captured: bool = False,
        precision: Precision = "fp32",
        warm_up: bool = False,
        seed: int = 0,
    ) -> None:
        self.device = next(teacher.parameters()).device
        if captured and self.device.type != "cuda":
            raise InputError(f"captured: needs a CUDA device, the teacher is on {self.device}")
        self.precision = precision
        self.student = plain_student(teacher, weight_bits, act_bits)
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(not frozen_teacher)
        self.generator = PlainGenerator(
            generator.num_classes, generator.image_size, generator.channels,
            latent_dim=generator.latent_dim, conditional_bn=generator.conditional_bn,
            width=generator.width,
        ).to(self.device)  # fmt: skip
        self.generator.load_state_dict(generator.state_dict())
        for module in (self.teacher, self.student, self.generator):
            module.to(memory_format=torch.channels_last if captured else torch.contiguous_format)
        self.batch_size = batch_size
        self.warm_up = warm_up
        self.rng = torch.Generator(self.device).manual_seed(seed)
        # In order of execution, which may differ from that of the modules.
        self.statistics: list[tuple[Any, Tensor, Tensor]] = []
        for module in self.teacher.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(self._take_statistics)
        options: dict[str, Any] = {"fused": True} if captured else {}
        self.generator_optimizer = torch.optim.Adam(
            self.generator.parameters(), lr=1e-3, betas=(0.5, 0.999), capturable=captured, **options
        )
        self.student_optimizer = torch.optim.SGD(
            self.student.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4, nesterov=True,
            **options,
        )  # fmt: skip
        self._set_ranges()
        self.generator_loss, self.student_loss = self._generator_loss, self._student_loss
        if compiled is not None:
            self.generator_loss = torch.compile(self._generator_loss, dynamic=False, mode=compiled)
            self.student_loss = torch.compile(self._student_loss, dynamic=False, mode=compiled)
        self.captured = CapturedStep(self._step, self.rng) if captured else None

    def step(self) -> dict[str, Tensor]:
        """Run one step and return its losses; the next overwrites them if the step is captured."""
        with multiplications(self.precision, self.device):
            return (self.captured or self._step)()

    def _step(self) -> dict[str, Tensor]:
        z, labels = self._sample()
        with autocast(self.precision, self.device):
            loss, images, teacher_logits = self.generator_loss(z, labels)
        self.generator_optimizer.zero_grad()
        loss.backward()
        self.generator_optimizer.step()
        losses = {"generator": loss.detach()}
        if not self.warm_up:
            with autocast(self.precision, self.device):
                student_loss = self.student_loss(images.detach(), teacher_logits.detach(), labels)
            self.student_optimizer.zero_grad()
            student_loss.backward()
            self.student_optimizer.step()
            losses["student"] = student_loss.detach()
        return losses

    def _sample(self) -> tuple[Tensor, Tensor]:
        z = torch.randn(
            self.batch_size, self.generator.latent_dim, generator=self.rng, device=self.device
        )
        labels = torch.randint(
            self.generator.num_classes, (self.batch_size,), generator=self.rng,
            device=self.device,
        )  # fmt: skip
        return z, labels

    def _take_statistics(self, norm: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        x = inputs[0]
        self.statistics.append((norm, x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)))

    def _generator_loss(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.statistics.clear()
        images = self.generator(z, labels)
        logits = self.teacher(images)
        mismatch = torch.zeros((), device=z.device)
        for norm, mean, var in self.statistics:
            mismatch = mismatch + F.mse_loss(mean, norm.running_mean)
            mismatch = mismatch + F.mse_loss(var, norm.running_var)
        loss = F.cross_entropy(logits, labels) + 0.1 * mismatch / len(self.statistics)
        return loss, images, logits

    def _student_loss(self, images: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        logits = self.student(images)
        log_p = F.log_softmax(teacher_logits / 20, 1)
        log_q = F.log_softmax(logits / 20, 1)
        divergence = (log_p.exp() * (log_p - log_q)).mean()
        return F.cross_entropy(logits, labels) + 20**2 * divergence

    @torch.no_grad()
    def _set_ranges(self) -> None:
        z, labels = self._sample()
        quantizers = [m for m in self.student.modules() if isinstance(m, QuantizedActivation)]
        for quantizer in quantizers:
            quantizer.train()
        self.student(copy.deepcopy(self.generator)(z, labels))
        for quantizer in quantizers:
            quantizer.eval()
