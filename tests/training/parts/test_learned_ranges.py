import copy

import pytest
import torch
from torch import nn

import gdfq
from gdfq.export.packed_layers import pack
from gdfq.functional import fake_quantize
from gdfq.nn import QAct, QConv2d
from gdfq.nn.qact import observing_copy
from gdfq.ops.fake_quantize import fake_quantize_learned_backward_reference
from gdfq.recipes import load_recipe
from gdfq.training.parts import Parts
from tests.helpers.parts import part_of, set_up
from tests.helpers.tiny import tiny_teacher, tiny_trainer

LEARNED = ("act", "weight", "both")


def student_of(learned, **options):
    return gdfq.quantize_model(tiny_teacher(), 3, 3, learned_ranges=learned, **options)


def test_names_stay_and_only_ranges_become_parameters():
    plain, act, both = student_of("none"), student_of("act"), student_of("both")
    assert set(act.state_dict()) == set(plain.state_dict())
    more = set(both.state_dict()) - set(plain.state_dict())
    assert more == {f"{i}.weight_{end}" for i in (0, 3, 8) for end in ("lo", "hi")}
    new = {n for n, _ in act.named_parameters()} - {n for n, _ in plain.named_parameters()}
    assert new == {"2.hi", "5.hi"}  # behind ReLU the lower end stays


def test_gradients_of_a_learned_activation():
    q = QAct(3, "none").train()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    q.learn_range()
    with torch.no_grad():
        q(x)
    q.eval()
    with torch.no_grad():
        q.hi.mul_(0.5)
    dy = torch.ones_like(x)
    inputs = x.clone().requires_grad_()
    y = q(inputs)
    y.backward(dy)
    assert torch.equal(y, fake_quantize(x, q.lo.detach(), q.hi.detach(), 3))
    expected = fake_quantize_learned_backward_reference(dy, x, q.lo.detach(), q.hi.detach(), 3)
    for given, wanted in zip((inputs.grad, q.lo.grad, q.hi.grad), expected, strict=True):
        torch.testing.assert_close(given, wanted)


def test_a_kept_range_decides_about_values_codes_and_packed_layers():
    layer = QConv2d(4, 6, 3, weight_bits=3)
    x = torch.randn(1, 4, 8, 8)
    before = layer(x)
    layer.keep_weight_range()
    assert torch.equal(layer(x), before)
    layer.weight_hi.mul_(0.6)
    codes, scale, zero = layer.weight_codes()
    values = (codes + zero.view(-1, 1, 1, 1)) / scale.view(-1, 1, 1, 1)
    assert torch.equal(values, layer._quantized_weight())
    assert not torch.equal(layer(x), before)
    assert torch.equal(pack(layer)(x), layer(x))
    layer.half()
    assert layer.weight_lo.dtype == torch.float32


@pytest.mark.parametrize("learned", LEARNED)
def test_training_moves_them(learned):
    trainer = tiny_trainer(bits=3, learned_ranges=learned)
    trainer.calibrate(2)
    ranges = [end.detach().clone() for end in part_of(trainer, "learned_ranges").parameters]
    assert len(ranges) == {"act": 2, "weight": 6, "both": 8}[learned]
    places = {place.name: place for place in trainer.fused.places}
    assert places["2"].fused == (learned == "weight")
    trainer.train()
    moved = [
        not torch.equal(a, b)
        for a, b in zip(ranges, part_of(trainer, "learned_ranges").parameters, strict=True)
    ]
    assert all(moved)
    groups = trainer.student_update.optimizer.param_groups
    assert groups[1]["weight_decay"] == 0
    assert groups[0]["lr"] is not groups[1]["lr"]
    total = sum(len(group["params"]) for group in groups)
    assert total == len(list(trainer.student.parameters()))


def test_their_rate_follows_the_student_s_schedule():
    trainer = tiny_trainer(learned_ranges="act", parts=Parts(range_lr=0.04), student_lr=1e-3)
    rates = []
    for _ in range(12):
        trainer.step()
        rates.append([float(g["lr"]) for g in trainer.student_update.optimizer.param_groups])
    # Warm-up to step 4; divided by 10 after 8.
    assert [r for r, _ in rates] == pytest.approx([1e-3] * 7 + [1e-4] * 5)
    assert [r for _, r in rates] == pytest.approx([0.04] * 7 + [0.004] * 5)


def test_a_range_stays_a_range():
    student = student_of("both")
    student.load_state_dict(_observed(student).state_dict())
    ranges = set_up("learned_ranges", student=student)
    widths = ranges.widths()
    with torch.no_grad():
        for lo, hi in zip(ranges.lower, ranges.upper, strict=True):
            hi.copy_(lo - 1)
    ranges.limit(widths)
    for before, after in zip(widths, ranges.widths(), strict=True):
        torch.testing.assert_close(after, before / 2)
    # Very fast, but never NaN.
    trainer = tiny_trainer(bits=2, learned_ranges="both", parts=Parts(range_lr=100.0))
    trainer.train()
    assert all(bool((width > 0).all()) for width in part_of(trainer, "learned_ranges").widths())


def _observed(student):
    copied = observing_copy(student)
    with torch.no_grad():
        copied(torch.randn(8, 2, 8, 8))
    return copied


def test_contained_zero_stays_contained():
    student = student_of("both", zero_in_range=True)
    student.load_state_dict(_observed(student).state_dict())
    ranges = set_up("learned_ranges", student=student)
    widths = ranges.widths()
    with torch.no_grad():
        for parameter in ranges.parameters:
            parameter.add_(10)
    ranges.limit(widths)
    assert all(bool((lo <= 0).all()) for lo in ranges.lower)


@pytest.mark.parametrize("learned", LEARNED)
def test_going_on_is_bit_for_bit(learned):
    whole = tiny_trainer(bits=3, learned_ranges=learned)
    whole.train()
    first = tiny_trainer(bits=3, learned_ranges=learned)
    for _ in range(7):
        first.step()
    second = tiny_trainer(bits=3, learned_ranges=learned)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    while second.steps_done < 12:
        second.step()
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, second.student.state_dict()[name]), name


@pytest.mark.parametrize("learned", LEARNED)
def test_saved_and_loaded(tmp_path, learned):
    trainer = tiny_trainer(bits=3, learned_ranges=learned)
    trainer.train()
    images = torch.randn(4, 2, 8, 8)
    gdfq.save(trainer.student, tmp_path / "student.safetensors")
    loaded = gdfq.load(tmp_path / "student.safetensors", tiny_teacher())
    with torch.no_grad():
        assert torch.equal(loaded(images), trainer.student(images))


@pytest.mark.parametrize("learned", LEARNED)
def test_bf16_learns_float32_ranges(learned):
    exact = tiny_trainer(bits=3, learned_ranges=learned)
    rough = tiny_trainer(bits=3, learned_ranges=learned, precision="bf16")
    starts, ends = [], []
    for trainer in (exact, rough):
        trainer.calibrate(2)
        ranges = part_of(trainer, "learned_ranges").parameters
        starts.append([end.detach().clone() for end in ranges])
        ends.append(ranges)
        trainer.train()
    for start, exact_end, end in zip(starts[1], *ends, strict=True):
        assert end.dtype == torch.float32
        assert bool(end.isfinite().all())
        assert not torch.equal(end, start)
        torch.testing.assert_close(end, exact_end, rtol=0.1, atol=0.05)


def test_what_cannot_be_learned():
    with pytest.raises(gdfq.InputError, match="learned_ranges"):
        gdfq.quantize_model(nn.Sequential(nn.Conv2d(1, 1, 1)), learned_ranges="all")
    with pytest.raises(gdfq.InputError, match="range_lr"):
        Parts(range_lr=0.0)


def test_a_rate_of_ranges_that_are_not_learned_is_refused():
    with pytest.raises(gdfq.InputError, match=r"range_lr: has no effect without learned_ranges"):
        load_recipe("fashion-mnist-resnet20").with_options({"range_lr": 1e-3})
    with pytest.raises(gdfq.InputError, match=r"^range_lr: has no effect without learned_ranges"):
        tiny_trainer(parts=Parts(range_lr=1e-3))
    trainer = tiny_trainer(learned_ranges="weight", parts=Parts(range_lr=1e-3))
    (ranges,) = (g for g in trainer.student_update.optimizer.param_groups if not g["weight_decay"])
    assert float(ranges["lr"]) == pytest.approx(1e-3)
