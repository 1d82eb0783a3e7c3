import copy

import pytest
import torch

import gdfq
from gdfq.distributed import World
from gdfq.functional import activate, fake_quantize
from gdfq.nn import QAct
from gdfq.training import Start
from gdfq.training.start.act_ranges import set_act_ranges
from gdfq.training.start.images import Images
from tests.tiny import tiny_trainer


def images_of(*batches):
    """Batches as a start goes through them."""
    return Images(lambda z, labels: z, [(batch, None) for batch in batches], World())


def calibrated_act(act, bits, *batches):
    q = QAct(bits, act).train()
    for batch in batches:
        q(batch)
    return q.eval()


def squared_error(q, lo, hi, *batches):
    y = activate(torch.cat(batches), q.act)
    lo, hi = torch.tensor(float(lo)), torch.tensor(float(hi))
    return float((fake_quantize(y, lo, hi, q.act_bits) - y).double().square().mean())


def draws(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 8, 16, 16, generator=generator) + 0.2 for _ in range(3)]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_ranges_of_least_error_behind_relu(bits):
    batches = draws()
    q = calibrated_act("relu", bits, *batches)
    before = squared_error(q, q.lo, q.hi, *batches)
    set_act_ranges(q, images_of(*batches), "mse", 99.9)
    assert q.lo == 0
    most = max(float(b.max()) for b in batches)
    least = min(
        squared_error(q, 0, most * share, *batches) for share in torch.linspace(0.01, 1, 500)
    )
    after = squared_error(q, q.lo, q.hi, *batches)
    assert after < 1.01 * least
    assert after <= before


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("shift", [0.0, 1.0, -5.0])
def test_ranges_of_least_error_with_two_ends(bits, shift):
    batches = [b.exp() + shift for b in draws(1)]
    q = calibrated_act("none", bits, *batches)
    before = squared_error(q, q.lo, q.hi, *batches)
    set_act_ranges(q, images_of(*batches), "mse", 99.9)
    least = before
    every = torch.cat(batches)
    low, high = float(every.min()), float(every.max())
    for i in range(25):
        for j in range(25):
            lo, hi = low + (high - low) * i / 50, high - (high - low) * j / 25
            if lo < hi:
                least = min(least, squared_error(q, lo, hi, *batches))
    assert squared_error(q, q.lo, q.hi, *batches) < 1.03 * least
    assert q.lo < q.hi


def test_percentiles():
    x = torch.linspace(0, 1, 10001).reshape(1, 1, 73, 137)
    q = calibrated_act("relu", 4, x)
    set_act_ranges(q, images_of(x), "percentile", 90.0)
    assert float(q.hi) == pytest.approx(0.9, abs=1e-3)
    assert q.lo == 0
    q = calibrated_act("none", 4, x)
    set_act_ranges(q, images_of(x), "percentile", 90.0)
    assert float(q.lo) == pytest.approx(0.1, abs=1e-3)
    assert float(q.hi) == pytest.approx(0.9, abs=1e-3)


def test_a_constant_activation_and_one_that_is_never_reached():
    x = torch.full((2, 2, 4, 4), 3.0)
    q = calibrated_act("relu", 4, x)
    set_act_ranges(q, images_of(x), "mse", 99.9)
    assert torch.isfinite(q(x)).all()
    kept = copy.deepcopy(q.state_dict())
    set_act_ranges(q, images_of(torch.empty(0, 2, 4, 4)), "mse", 99.9)
    assert all(torch.equal(value, kept[name]) for name, value in q.state_dict().items())


def test_a_start_is_part_of_calibration():
    plain, trained = tiny_trainer(bits=3), tiny_trainer(bits=3, start=Start(act_ranges="mse"))
    for trainer in (plain, trained):
        trainer.calibrate(2)
    assert torch.equal(plain.random.get_state(), trained.random.get_state())
    narrower = [
        (float(a.hi), float(b.hi))
        for a, b in zip(plain.student.modules(), trained.student.modules(), strict=True)
        if isinstance(a, QAct)
    ]
    assert all(b < 1.2 * a for a, b in narrower)
    assert any(b < 0.95 * a for a, b in narrower)
    trained.step()


@pytest.mark.parametrize(
    ("name", "value"), [("act_ranges", "best"), ("percentile", 50), ("percentile", 101.0)]
)
def test_what_is_no_start(name, value):
    with pytest.raises(gdfq.InputError, match=name):
        Start(**{name: value})
