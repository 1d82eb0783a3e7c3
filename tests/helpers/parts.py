"""Parts of the training loop, one at a time."""

from types import SimpleNamespace

import torch

from gdfq.distributed import World
from gdfq.training.parts import PARTS, Parts

NETWORKS = ("teacher", "student", "generator", "images", "num_classes")


def part_of(trainer, name):
    """Return the trainer's part ``name``."""
    (found,) = (part for part in trainer.parts if part.name == name)
    return found


def set_up(name, settings=None, seed=0, **given):
    """Return the part ``name``, set up for a loop of the networks and training settings given."""
    (kind,) = (part for part in PARTS if part.__module__.endswith(f".{name}"))
    networks = {key: given.pop(key, None) for key in NETWORKS}
    if networks["images"] is None:
        networks["images"] = torch.empty(2, 2, 8, 8)
    rng = torch.Generator().manual_seed(seed)
    part = kind(settings or Parts())
    training = SimpleNamespace(**given)
    loop = SimpleNamespace(**networks, rng=rng, world=World(), training=training)
    part.check(loop)
    part.setup(loop)
    return part


def logits(seed=0, batch=12, classes=5):
    random = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, batch, classes, generator=random)
    hard = torch.randint(classes, (batch,), generator=random)
    soft = torch.randn(batch, classes, generator=random).softmax(1)
    return student, teacher, hard, soft


def steps(trainer, count=9):
    return [{name: float(loss) for name, loss in trainer.step().items()} for _ in range(count)]


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same_state(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())
