"""A step needs nothing of the host and leaves nothing behind: what one CUDA graph asks of it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers.tiny import EACH_PART, tiny_trainer


def test_a_step_never_leaves_the_device():
    """Whole steps of both phases on tensors without values; see tests/helpers/deviceless.py."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.helpers.deviceless"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 10
    assert all("7 places fused" in line for line in lines[:6])
    # Unfused; and activations whose ranges are learned or taken in the call are not fused.
    assert all(" 0 places fused" in line for line in lines[6:])


class Made(TorchDispatchMode):
    """What operators allocate: a weak reference to each new storage, with who made it."""

    def __init__(self):
        super().__init__()
        self.storages = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {storage._cdata for storage in storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in storages(result):
            if storage._cdata not in given:
                ref = StorageWeakRef(storage)
                self.storages[ref.cdata] = ref, str(func)
        return result

    def left(self):
        """The storages that are still alive, by address, with the operator that made each."""
        return {cdata: op for cdata, (ref, op) in self.storages.items() if not ref.expired()}


def storages(values):
    tensors = (value for value in tree_leaves(values) if isinstance(value, torch.Tensor))
    return [tensor.untyped_storage() for tensor in tensors]


def state(trainer):
    """Every tensor that carries something from step to step."""
    kept = [*trainer.student.state_dict().values(), *trainer.generator.state_dict().values()]
    kept += trainer.teacher.state_dict().values()
    for optimizer in (trainer.generator_update.optimizer, trainer.student_update.optimizer):
        kept += [v for values in optimizer.state.values() for v in values.values()]
        kept += [group["lr"] for group in optimizer.param_groups]
    for part in trainer.parts:
        kept += [v for v in tree_leaves(part.state_dict()) if isinstance(v, torch.Tensor)]
    rates = (trainer.generator_update.rate, trainer.student_update.rate)
    kept += [*trainer._totals.values(), *(rate.steps for rate in rates)]
    return kept


def gradients(trainer):
    networks = (trainer.student, trainer.generator)
    return [p.grad for network in networks for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fuse": False},
        {"precision": "bf16"},
        {"parts": EACH_PART["all"]},
        {"learned_ranges": "both", "parts": EACH_PART["all"]},
        {"dynamic_ranges": "both", "bits": 3},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
@pytest.mark.parametrize("warm_up", [True, False])
def test_a_step_leaves_nothing_behind(options, warm_up):
    """Of what a step allocates, its losses and the new gradients alone outlive it."""
    trainer = tiny_trainer(epochs=6, warmup_epochs=3 if warm_up else 0, **options)
    for _ in range(3):
        trainer.step()
    places = [tensor.data_ptr() for tensor in state(trainer)]
    count = len(gradients(trainer))
    for _ in range(3):
        with Made() as mode:
            losses = trainer.step()
        assert len(mode.storages) > 50
        allowed = {s._cdata for s in storages((losses, gradients(trainer)))}
        left = mode.left()
        assert set(left) <= allowed, {op for place, op in left.items() if place not in allowed}
        assert len(gradients(trainer)) == count
        del losses
        assert [tensor.data_ptr() for tensor in state(trainer)] == places


def test_what_is_left_behind_is_noticed():
    kept = []
    with Made() as mode:
        kept.append(torch.ones(3) + 1)
        torch.ones(3).add_(1).view(3, 1)
    assert list(mode.left().values()) == ["aten.add.Tensor"]
