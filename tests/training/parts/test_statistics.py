"""Variants of the batch-norm statistics loss."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gdfq
from gdfq.nn import StatisticsTeacher
from gdfq.training import Parts
from gdfq.training.step import Step
from tests.helpers.parts import part_of, set_up, steps
from tests.helpers.tiny import tiny_teacher, tiny_trainer


def statistics_of(network, images):
    """Mean, biased variance and what is stored, of each batch norm's input."""
    found, handles = [], []

    def hook(module, inputs, output):
        var, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
        found.append((mean, var, module.running_mean, module.running_var))

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_hook(hook))
    network(images)
    for handle in handles:
        handle.remove()
    return found


def mismatch(layers, spread="variance"):
    root = torch.sqrt if spread == "std" else lambda v: v
    terms = [
        F.mse_loss(mean, running_mean) + F.mse_loss(root(var), root(running_var))
        for mean, var, running_mean, running_var in layers
    ]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("spread", ["variance", "std"])
@pytest.mark.parametrize(("patterns", "chosen"), [(["*"], [0, 1]), (["4"], [1]), (["1", "x"], 0)])
def test_which_statistics_are_compared(spread, patterns, chosen):
    teacher = tiny_teacher()
    network, images = StatisticsTeacher(teacher), torch.randn(16, 2, 8, 8)
    parts = Parts(bns_spread=spread, bns_layers=patterns)
    if not chosen:
        with pytest.raises(gdfq.InputError, match="bns_layers: 'x'"):
            set_up("statistics", parts, teacher=network, images=images)
        return
    part = set_up("statistics", parts, teacher=network, images=images)
    _, statistics = network(images)
    layers = statistics_of(teacher, images)
    expected = mismatch([layers[i] for i in chosen], spread)
    torch.testing.assert_close(part.loss(statistics, images, True), expected, rtol=1e-4, atol=1e-6)


def test_a_norm_that_is_called_twice_stores_the_mean_of_both_calls():
    shared = nn.BatchNorm2d(2)
    teacher = nn.Sequential(shared, nn.Conv2d(2, 2, 1), shared).eval()
    network, images = StatisticsTeacher(teacher), torch.randn(16, 2, 8, 8)
    first, second = images, teacher[1](teacher[0](images))
    mean = (first.mean((0, 2, 3)) + second.mean((0, 2, 3))) / 2
    var = sum(x.var((0, 2, 3), correction=0) for x in (first, second)) / 2
    for patterns in ("*",), ("0",):
        part = set_up("statistics", Parts(bns_layers=patterns), teacher=network, images=images)
        _, statistics = network(images)
        expected = mismatch([(mean, var, shared.running_mean, shared.running_var)])
        torch.testing.assert_close(part.loss(statistics, images, True), expected)
        # Without the part too.
        torch.testing.assert_close(Step.paper_bns(None, statistics, images, True), expected)


def test_the_student_s_statistics():
    trainer = tiny_trainer(parts=Parts(bns_of="both"), warmup_epochs=0)
    trainer.calibrate(2)
    images = trainer.images.make(*trainer.images.sample()).detach().requires_grad_()
    _, statistics = trainer.teacher(images)
    layers = statistics_of(tiny_teacher(), images) + statistics_of(trainer.student, images)
    expected = mismatch(layers)
    loss = trainer.algorithm.bns(statistics, images, True)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    actual, wanted = (torch.autograd.grad(value, images)[0] for value in (loss, expected))
    torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-7)
    # In the warm-up the student has no ranges yet, and plays no part.
    _, statistics = trainer.teacher(images)
    alone = trainer.algorithm.bns(statistics, images, False)
    torch.testing.assert_close(alone, mismatch(layers[:2]), rtol=1e-4, atol=1e-6)


def test_the_generator_s_loss_teaches_the_student_nothing():
    trainer = tiny_trainer(parts=Parts(bns_of="both"), warmup_epochs=0)
    trainer.calibrate(2)
    trainer.algorithm.train_generator(tuning=True)
    assert all(p.grad is None for p in trainer.student.parameters())
    recorder = part_of(trainer, "statistics").recorder
    shared = {id(p) for p in recorder.parameters()}
    assert shared <= {id(p) for p in trainer.student.parameters()}
    trainer.step()
    before = trainer.student.get_submodule("1").running_mean
    assert any(buffer is before for buffer in recorder.buffers())


def test_a_student_with_frozen_parameters_trains_with_its_statistics():
    student = gdfq.quantize_model(tiny_teacher(), 4, 4)
    frozen = student.get_submodule("0").weight.requires_grad_(False)
    before = frozen.clone()
    trainer = tiny_trainer(student=student, parts=Parts(bns_of="both"), warmup_epochs=0)
    losses = steps(trainer, 3)
    assert all(math.isfinite(loss) for step in losses for loss in step.values())
    assert torch.equal(frozen, before)
