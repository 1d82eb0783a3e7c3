"""A training step on tensors of a device that isn't there: ``python -m tests.helpers.deviceless``.

The tensors are fake: shapes, dtypes and a device, but no values. So whatever looks at a value
raises, as does whatever mixes devices, and :class:`OnDevice` raises where a tensor of the host
takes part at all. PyTorch's backward pass refuses fake CUDA tensors where there is no GPU, so the
device is one registered from Python, on which nothing can be computed; what gdfq does on "cuda"
alone (capturable optimizers, precision) is set by hand here or tested elsewhere. Registering it
changes the process for good: hence a process of its own.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gdfq
from gdfq.models.resnet import cifar_resnet
from gdfq.training import Parts, checks, trainer
from tests.helpers.tiny import EACH_PART

DEVICE = "nowhere"


class Values(FakeTensorMode):
    """Tensors without values; copies of modules stay in the same mode."""

    avoid_device_init = True

    def __deepcopy__(self, memo):
        return self


class OnDevice(TorchDispatchMode):
    """Raises where a tensor of the host goes into an operator or comes out of one."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, Tensor) and tensor.device.type != DEVICE:
                raise AssertionError(f"{func} on a tensor of {tensor.device}")
        return result


class BackendModule(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self):  # a disabled torch.autocast asks too
        return [torch.bfloat16]


def register_device():
    backend_registration._setup_privateuseone_for_python_backend(DEVICE, BackendModule())
    # PyTorch's in-place optimizer kernels, the only operators of a step without a fake one.
    for name in ("_fused_adam_", "_fused_sgd_"):
        torch.library.register_fake(f"aten::{name}.tensor_lr", lambda *args, **kwargs: None)


def _is_zero(number):
    return isinstance(number, float) and number == 0.0


def make_constructors_blind():
    """Have a trainer made without values: it checks some before the first step."""
    checks.check_finite = lambda *args: None
    less, at_least = Tensor.__lt__, Tensor.__ge__
    # Optimizers compare their learning rate with 0.0.
    FakeTensor.__lt__ = lambda x, y: False if _is_zero(y) else less(x, y)
    FakeTensor.__ge__ = lambda x, y: True if _is_zero(y) else at_least(x, y)
    nn.Module.to = to_memory_format
    generator = torch.Generator
    torch.Generator = lambda device="cpu": generator()  # one registered from Python has none
    checks.check_shapes = two_images
    trainer.require_same = trainer.require_channels_last = lambda *args: None


def two_images(teacher, student, generator, *others):
    z, labels = torch.randn(2, generator.latent_dim), torch.zeros(2, dtype=torch.int64)
    return copy.deepcopy(generator)(z, labels).detach()


def to_memory_format(module, memory_format):
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None and p.dim() == 4:
                changed = p.detach().contiguous(memory_format=memory_format)
                part._parameters[name] = nn.Parameter(changed, p.requires_grad)
    return module


def make_trainer(
    warmup_epochs, conditional_bn, bits=4, learned_ranges="none", dynamic_ranges="none", **options
):
    with torch.device(DEVICE):
        teacher = cifar_resnet(8, 4)
        generator = gdfq.models.Generator(
            4, 8, latent_dim=10, width=8, conditional_bn=conditional_bn
        )
        student = gdfq.quantize_model(
            teacher, bits, bits, learned_ranges=learned_ranges, dynamic_ranges=dynamic_ranges
        )
        made = gdfq.GDFQTrainer(
            teacher, student, generator, 4, 16, epochs=3, steps_per_epoch=4,
            warmup_epochs=warmup_epochs, **options,
        )  # fmt: skip
    made.generator_update.optimizer.param_groups[0]["capturable"] = True
    return made


def run(warmup_epochs, **options):
    """Prints how many operators the fourth step called, and the places fused."""
    trainer = make_trainer(warmup_epochs, **options)
    for _ in range(3):
        trainer.step()
    with OnDevice() as mode:
        losses = trainer.step()
    assert {loss.device.type for loss in losses.values()} == {DEVICE}
    assert ("student" in losses) == (warmup_epochs == 0)
    fused = sum(place.fused for place in trainer.fused.places) if trainer.fused else 0
    print(f"{warmup_epochs} {options}: {mode.calls} operators, {fused} places fused", flush=True)


def planted():
    """What the step must not do is noticed, inside the step's backward pass too."""

    class Faulty(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, fault):
            ctx.fault = fault
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            ctx.fault(grad)
            return grad, None

    faults = {
        "a value read": (lambda x: float(x.sum()), DataDependentOutputException),
        "a size that depends on values": (lambda x: x.nonzero(), Exception),
        "a constant of the host": (lambda x: x * torch.tensor(2.0), AssertionError),
        "a copy from the host": (lambda x: torch.ones(3).to(x.device), AssertionError),
        "a copy to the host": (lambda x: x.cpu(), AssertionError),
    }
    for name, (fault, error) in faults.items():
        x = torch.ones(3, device=DEVICE, requires_grad=True)
        for place in (lambda: fault(x), lambda: Faulty.apply(x, fault).sum().backward()):  # noqa: B023
            try:
                with OnDevice():
                    place()
            except error:
                continue
            raise SystemExit(f"not noticed: {name}")


def main():
    register_device()
    with torch.autograd.set_multithreading_enabled(False), Values():
        planted()
        make_constructors_blind()
        for warmup_epochs in (0, 3):
            run(warmup_epochs, conditional_bn=False, memory_format="channels_last")
            run(warmup_epochs, conditional_bn=True, memory_format="contiguous", schedule="cosine")
        parts = Parts(**{**dict(EACH_PART["all"]), "bns_layers": ["layer*"]})
        for warmup_epochs in (0, 3):
            run(warmup_epochs, conditional_bn=True, memory_format="channels_last", parts=parts)
        run(0, conditional_bn=True, memory_format="channels_last", fuse=False)
        for ranges in (
            {"learned_ranges": "both"},
            {"learned_ranges": "both", "parts": parts},
            {"dynamic_ranges": "both", "bits": 3, "parts": parts},
        ):
            run(0, conditional_bn=False, memory_format="channels_last", **ranges)


if __name__ == "__main__":
    main()
