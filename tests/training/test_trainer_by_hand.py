"""Trainers with no setting at its default, against the algorithm in a few lines of float64."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gdfq
from tests.helpers.tiny import tiny_teacher

EPOCHS, PER_EPOCH, WARM_UP, CALIBRATION = 4, 2, 1, 3
SETTINGS = {
    "student_lr": 0.02, "momentum": 0.6, "weight_decay": 0.4, "generator_lr": 0.02,
    "bns_weight": 0.7, "temperature": 3.0, "alpha": 5.0, "seed": 7,
}  # fmt: skip
BATCH, BITS, ACT_BITS, RANGE_MOMENTUM = 16, 5, 6, 0.7


def trainer_of(generator, **options):
    teacher = tiny_teacher()
    student = gdfq.quantize_model(teacher, BITS, ACT_BITS, range_momentum=RANGE_MOMENTUM)
    return gdfq.GDFQTrainer(
        teacher, student, generator, 4, BATCH, epochs=EPOCHS, steps_per_epoch=PER_EPOCH,
        warmup_epochs=WARM_UP, calibration_batches=CALIBRATION, memory_format="contiguous",
        **{**SETTINGS, **options},
    )  # fmt: skip


class ByHand:
    """The paper's algorithm 1 on ``tiny_teacher``, in float64, with formulas of its own."""

    def __init__(self, generator, schedule, milestones):
        self.teacher = tiny_teacher().double()
        self.weights = {n: p.detach().clone() for n, p in self.teacher.named_parameters()}
        self.generator = copy.deepcopy(generator).double()
        self.random = torch.Generator().manual_seed(SETTINGS["seed"])
        self.schedule, self.milestones = schedule, milestones
        self.adam = torch.optim.Adam(self.generator.parameters(), lr=1.0, betas=(0.5, 0.999))
        self.velocity = {}
        self.ranges = {}

    def draw(self):
        z = torch.randn(BATCH, 10, generator=self.random)
        return z.double(), torch.randint(4, (BATCH,), generator=self.random)

    def rate(self, step, steps, first_epoch):
        """The factor of a learning rate whose first step is that of ``first_epoch``."""
        if self.schedule == "cosine":
            return (1 + math.cos(math.pi * step / steps)) / 2
        return 0.1 ** sum(first_epoch + step // PER_EPOCH >= at for at in self.milestones)

    @staticmethod
    def quantize(x, lo, hi, bits):
        scale = (2**bits - 1) / (hi - lo)
        zero = (scale * lo).round() + 2 ** (bits - 1)
        code = (scale * x - zero).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return x + ((code + zero) / scale - x).detach()

    def forward(self, x, observe=False):
        """The student's logits; with ``observe`` its activation ranges move first."""
        w = self.weights

        def weight(name):
            rows = w[name].detach().flatten(1)
            each = (-1, *[1] * (w[name].dim() - 1))
            ends = rows.amin(1).view(each), rows.amax(1).view(each)
            return self.quantize(w[name], *ends, BITS)

        def act(name, x):
            if observe:
                seen = self.ranges.setdefault(name, [])
                seen.append(torch.stack(torch.aminmax(x)))
            m, seen = RANGE_MOMENTUM, self.ranges[name]
            shares = [m ** (len(seen) - 1 - i) for i in range(len(seen))]
            lo, hi = sum(s * end for s, end in zip(shares, seen, strict=True)) / sum(shares)
            return self.quantize(x, lo, hi, ACT_BITS)

        for conv, norm, stride in (("0", "1", 1), ("3", "4", 2)):
            x = F.conv2d(x, weight(f"{conv}.weight"), stride=stride, padding=1)
            stored = self.teacher.get_submodule(norm)
            x = F.batch_norm(
                x, stored.running_mean, stored.running_var, w[f"{norm}.weight"], w[f"{norm}.bias"]
            )
            x = act(norm, x.relu())
        return F.linear(x.mean((2, 3)), weight("8.weight"), w["8.bias"])

    def teacher_of(self, images):
        found, x = [], images
        for module in self.teacher:
            if isinstance(module, nn.BatchNorm2d):
                var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
                found.append(F.mse_loss(mean, module.running_mean)
                             + F.mse_loss(var, module.running_var))  # fmt: skip
            x = module(x)
        return x, sum(found) / len(found)

    def train(self):
        """Losses of every step."""
        steps, warm = EPOCHS * PER_EPOCH, WARM_UP * PER_EPOCH
        losses = []
        for step in range(steps):
            if step == warm:
                with torch.no_grad():
                    for z, labels in [self.draw() for _ in range(CALIBRATION)]:
                        self.forward(self.generator(z, labels), observe=True)
            z, labels = self.draw()
            images = self.generator(z, labels)
            logits, mismatch = self.teacher_of(images)
            loss = F.cross_entropy(logits, labels) + SETTINGS["bns_weight"] * mismatch
            self.adam.param_groups[0]["lr"] = SETTINGS["generator_lr"] * self.rate(step, steps, 0)
            self.adam.zero_grad()
            loss.backward()
            self.adam.step()
            losses.append({"generator": loss.item(), "bns": mismatch.item()})
            if step >= warm:
                rate = SETTINGS["student_lr"] * self.rate(step - warm, steps - warm, WARM_UP)
                own = self.student_step(images.detach(), labels, logits.detach(), rate)
                losses[-1]["student"] = own
        return losses

    def student_step(self, images, labels, teacher_logits, rate):
        for value in self.weights.values():
            value.requires_grad_()
        logits, t = self.forward(images), SETTINGS["temperature"]
        p, q = (teacher_logits / t).softmax(1), (logits / t).softmax(1)
        divergence = (p * (p / q).log()).mean()
        loss = F.cross_entropy(logits, labels) + SETTINGS["alpha"] * t**2 * divergence
        gradients = torch.autograd.grad(loss, list(self.weights.values()))
        for (name, value), gradient in zip(list(self.weights.items()), gradients, strict=True):
            value = value.detach()
            slope = gradient + SETTINGS["weight_decay"] * value
            before = self.velocity.get(name)
            now = slope if before is None else SETTINGS["momentum"] * before + slope
            self.velocity[name] = now
            self.weights[name] = value - rate * (slope + SETTINGS["momentum"] * now)
        return loss.item()


def tiny_generator():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return gdfq.models.Generator(4, 8, channels=2, latent_dim=10, width=8)


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize(("schedule", "milestones"), [("step", (1, 3)), ("cosine", ())])
def test_training_is_the_algorithm_in_values(schedule, milestones, fuse):
    generator = tiny_generator()
    by_hand = ByHand(generator, schedule, milestones)
    trainer = trainer_of(generator, schedule=schedule, milestones=milestones, fuse=fuse)
    losses = [{n: float(v) for n, v in trainer.step().items()} for _ in range(EPOCHS * PER_EPOCH)]
    for step, (ours, wanted) in enumerate(zip(losses, by_hand.train(), strict=True)):
        for name, value in wanted.items():
            assert ours[name] == pytest.approx(value, rel=1e-3), (step, name)
    start = dict(tiny_teacher().named_parameters())
    for name, value in trainer.student.named_parameters():
        moved = by_hand.weights[name] - start[name].double()
        wrong = value.detach().double() - by_hand.weights[name]
        assert wrong.norm() < 0.005 * moved.norm(), name
    for name, module in (("1", "2"), ("4", "5")):
        act = trainer.student.get_submodule(module)
        m, seen = RANGE_MOMENTUM, by_hand.ranges[name]
        top = sum(m ** (2 - i) * float(ends[1]) for i, ends in enumerate(seen)) / (1 + m + m * m)
        assert float(act.hi) == pytest.approx(top, rel=1e-4)
