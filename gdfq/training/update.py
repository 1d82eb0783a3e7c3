"""A network's update: gradients, their mean over all ranks, the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gdfq.distributed import World
from gdfq.training.parts.part import Part
from gdfq.training.schedules import LearningRate, learning_rate_factor
from gdfq.training.settings import Training
from gdfq.training.state import optimizer_parameters

# Finishes an update and returns the losses it was for.
Finish = Callable[[], dict[str, Tensor]]


class Update:
    """The updates of one network.

    Args:
        optimizer: of the network's parameters, with ``rate.value`` as its learning rate.
        rate: advanced after each update.
        world: the processes whose gradients are averaged.
        parts: whose hooks ``gradients`` and ``after_update`` are called.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rate: LearningRate,
        world: World,
        parts: Sequence[Part] = (),
    ) -> None:
        self.optimizer = optimizer
        self.rate = rate
        self.world = world
        self.parts = parts

    def start(self, losses: dict[str, Tensor]) -> Finish:
        """Compute the gradients of the first of ``losses``; return what finishes the update.

        Alone, the update is finished here. With other ranks, gradients travel until it is
        finished: the generator's while the student computes its own.
        """
        name, loss = next(iter(losses.items()))
        self.optimizer.zero_grad()
        parameters = optimizer_parameters(self.optimizer)
        # A loss teaches this network alone, whatever else it depends on.
        loss.backward(inputs=[p for p in parameters if p.requires_grad])
        finish_averaging = self.world.start_averaging(parameters, losses, f"{name}'s gradients")

        def finish() -> dict[str, Tensor]:
            means = finish_averaging()
            for part in self.parts:
                part.gradients(parameters, self.rate.value)
            self.optimizer.step()
            for part in self.parts:
                part.after_update()
            self.rate.advance()
            return means

        if self.world.parallel:
            return finish
        done = finish()
        return lambda: done


def generator_update(generator: nn.Module, training: Training, world: World) -> Update:
    """Return the updates of ``generator``: Adam, as in the paper."""
    device = next(generator.parameters()).device
    factor = learning_rate_factor(
        training.schedule, training.steps, training.steps_per_epoch, training.milestones
    )
    rate = LearningRate(training.generator_lr, factor, device)
    optimizer = torch.optim.Adam(
        generator.parameters(),
        lr=rate.value,
        betas=(0.5, 0.999),
        fused=True,
        capturable=device.type == "cuda",
    )
    return Update(optimizer, rate, world)


def student_update(
    student: nn.Module, training: Training, world: World, parts: Sequence[Part]
) -> Update:
    """Return the updates of ``student``: Nesterov SGD, as in the paper."""
    # The schedule is counted from the student's first step; milestones are the run's epochs.
    steps = training.steps - training.warmup_steps
    milestones = [epoch - training.warmup_epochs for epoch in training.milestones]
    factor = learning_rate_factor(training.schedule, steps, training.steps_per_epoch, milestones)
    rate = LearningRate(training.student_lr, factor, next(student.parameters()).device)
    groups: list[dict[str, Any]] = [{"params": list(student.parameters())}]
    for part in parts:
        groups = part.parameter_groups(groups, rate)
    optimizer = torch.optim.SGD(
        groups,
        lr=rate.value,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.momentum > 0,
        fused=True,
    )
    return Update(optimizer, rate, world, parts)
