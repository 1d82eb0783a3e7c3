import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gdfq
from gdfq.data import open_batches
from gdfq.distributed import World
from gdfq.functional import fake_quantize
from gdfq.nn import QAct, QConv2d
from gdfq.nn.qact import activate, observing_copy
from gdfq.nn.weight import QuantizedWeight
from gdfq.recipes import load_recipe
from gdfq.recipes.networks import build_generator, build_teacher, build_trainer
from gdfq.training import Start
from gdfq.training.calibration import observe_ranges
from gdfq.training.start.act_ranges import set_act_ranges
from gdfq.training.start.correction import correct
from gdfq.training.start.equalization import equalize
from gdfq.training.start.images import Images
from gdfq.training.start.rounding import flip_rounding
from gdfq.training.start.weight_ranges import set_weight_ranges
from tests.helpers.tiny import tiny_teacher, tiny_trainer


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


def test_percentiles_of_values_that_are_not_symmetric():
    x = (torch.linspace(0, 1, 10001) ** 2).reshape(1, 1, 73, 137)
    q = calibrated_act("none", 4, x)
    set_act_ranges(q, images_of(x), "percentile", 90.0)
    assert float(q.lo) == pytest.approx(0.01, abs=1e-3)
    assert float(q.hi) == pytest.approx(0.81, abs=1e-3)


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
    assert torch.equal(plain.rng.get_state(), trained.rng.get_state())
    narrower = [
        (float(a.hi), float(b.hi))
        for a, b in zip(plain.student.modules(), trained.student.modules(), strict=True)
        if isinstance(a, QAct)
    ]
    assert all(b < 1.2 * a for a, b in narrower)
    assert any(b < 0.95 * a for a, b in narrower)
    trained.step()


@pytest.mark.parametrize("correction", ["bias_correction", "bn_reestimate"])
def test_ranges_before_and_after_a_correction_are_each_of_all_batches_once(correction, monkeypatch):
    trainer = tiny_trainer(start=Start(**{correction: True}))
    first, second = [], []
    observe = observe_ranges

    def observed(student, fused, images):
        observe(student, fused, images)
        (second if first else first).extend(
            (int(m.num_batches_tracked), float(m.hi))
            for m in trainer.student.modules()
            if isinstance(m, QAct)
        )

    random = trainer.rng.get_state()
    with monkeypatch.context() as patch:
        patch.setattr("gdfq.training.trainer.observe_ranges", observed)
        trainer.calibrate(3)
    assert [count for count, _ in first + second] == [3] * 4
    # The first round's are those of a start that corrects nothing, the second's new ones.
    plain = tiny_trainer()
    plain.rng.set_state(random)
    plain.calibrate(3)
    acts = [m for m in plain.student.modules() if isinstance(m, QAct)]
    assert [float(act.hi) for act in acts] == [hi for _, hi in first]
    assert all(a != b for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("act_ranges", "best"),
        ("percentile", 50),
        ("percentile", 101.0),
        ("weight_ranges", "kl"),
        ("equalize", 2),
        ("rounding", "up"),
    ],
)
def test_what_is_no_start(name, value):
    with pytest.raises(gdfq.InputError, match=name):
        Start(**{name: value})


def test_settings_without_an_effect_are_refused():
    with pytest.raises(gdfq.InputError, match="percentile: has no effect with act_ranges = 'mse'"):
        Start(act_ranges="mse", percentile=99.0)
    with pytest.raises(gdfq.InputError, match="bias_correction: bn_reestimate corrects means too"):
        Start(bias_correction=True, bn_reestimate=True)


def test_a_start_is_told():
    start = Start(act_ranges="percentile", percentile=99.0, equalize=True)
    told = "act_ranges='percentile', percentile=99.0, equalize=True"
    assert start.describe() == told
    assert f"start: {told}" in tiny_trainer(start=start).describe()
    assert "start: none, the paper's ranges" in tiny_trainer().describe()


# ---- weights ----


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("zero_in_range", [False, True])
def test_weight_ranges_of_least_error(bits, zero_in_range):
    torch.manual_seed(0)
    layer = QConv2d(8, 6, 3, weight_bits=bits, zero_in_range=zero_in_range)
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight) ** 3)
        layer.weight[0] = 1.0
        layer.weight[1].abs_()
    layer.keep_weight_range()
    before = (layer._quantized_weight() - layer.weight).square().sum((1, 2, 3))
    set_weight_ranges(layer, "mse")
    after = (layer._quantized_weight() - layer.weight).square().sum((1, 2, 3))
    assert (after <= before).all()
    for output in range(1, 6):
        w = layer.weight[output]
        for low in torch.linspace(0, 1, 15):
            for high in torch.linspace(0.05, 1, 20):
                ends = (w.min() * low, w.max() * high)
                if ends[0] < ends[1]:
                    error = (fake_quantize(w, *ends, bits) - w).square().sum()
                    assert after[output] < 1.1 * error + 1e-12
    set_weight_ranges(layer, "minmax")
    assert torch.equal((layer._quantized_weight() - layer.weight).square().sum((1, 2, 3)), before)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_weight_ranges_of_least_error_where_weights_are_off_zero(bits):
    torch.manual_seed(0)
    layer = QConv2d(8, 6, 3, weight_bits=bits, zero_in_range=True)
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight).abs() + 1)
    layer.keep_weight_range()
    set_weight_ranges(layer, "mse")
    found = (layer._quantized_weight() - layer.weight).square().sum((1, 2, 3))
    for share in torch.linspace(0.05, 1, 20):
        lo, hi = torch.zeros(6), share * layer.weight.detach().flatten(1).amax(1)
        values = fake_quantize(layer.weight, lo, hi, bits, 0)
        assert (found < 1.02 * (values - layer.weight).square().sum((1, 2, 3))).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("shape", [(8, 5, 3, 3), (8, 5, 1, 1), (8, 1, 3, 3)])
def test_flips_cancel_the_error_of_kernels_and_outputs(bits, shape):
    torch.manual_seed(1)
    layer = QConv2d(shape[1], shape[0], shape[2], weight_bits=bits)
    original = layer.weight.detach().clone()
    codes, scale, zero = (t.double() for t in layer.weight_codes())

    def errors(codes):
        exact = scale.view(-1, 1, 1, 1) * original.double() - zero.view(-1, 1, 1, 1)
        return (codes - exact).reshape(*shape[:2], -1).sum(2)

    before = errors(codes)
    flip_rounding(layer)
    now, *grid = layer.weight_codes()
    assert torch.equal(grid[0].double(), scale)
    assert torch.equal(grid[1].double(), zero)
    moved = now.double() - codes
    assert moved.abs().max() == 1
    assert torch.equal(layer.weight.detach() != original, moved != 0)
    after = errors(now.double())
    assert after.square().sum() <= before.square().sum() + 1e-9 or shape[2] == 1
    assert after.sum(1).abs().mean() < 0.7 * before.sum(1).abs().mean()
    assert (after.sum(1).abs() < 0.51).float().mean() > 0.8


# ---- channels ----


def test_equalization_leaves_the_function_as_it_is():
    teacher = tiny_teacher()
    with torch.no_grad():
        teacher[1].weight.mul_(torch.logspace(-1, 1, 8))
        teacher[1].weight[3] = -teacher[1].weight[3]
        teacher[1].bias.copy_(torch.linspace(0.5, 1.5, 8))
    student = gdfq.quantize_model(teacher, 8, 8)
    for module in student.modules():
        if isinstance(module, QAct):
            module.forward = torch.relu
        if isinstance(module, QuantizedWeight):
            module._quantized_weight = lambda layer=module: layer.weight
    images = torch.randn(4, 2, 8, 8)
    assert equalize(student) == ["2"]
    with torch.no_grad():
        assert torch.equal(student(images), teacher(images))
    assert not torch.equal(student.get_submodule("1").weight, teacher[1].weight)
    scales = student.get_submodule("1").bias / teacher[1].bias
    assert (torch.log2(scales) % 1 == 0).all()
    assert scales.unique().numel() > 1


def test_equalization_of_a_depthwise_convolution_and_of_groups():
    class Grouped(nn.Module):
        def __init__(self, groups):
            super().__init__()
            self.conv = nn.Conv2d(2, 8, 3)
            self.norm = nn.BatchNorm2d(8)
            self.relu = nn.ReLU()
            self.pool = nn.MaxPool2d(2)
            self.next = nn.Conv2d(8, 8, 3, groups=groups)
            self.clipped = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 4, 1))

        def forward(self, x):
            return self.clipped(self.next(self.pool(self.relu(self.norm(self.conv(x)))))).mean(2)

    for groups in (1, 2, 8):
        teacher = Grouped(groups).eval()
        with torch.no_grad():
            teacher.norm.weight.copy_(torch.logspace(-1, 1, 8))
            teacher.norm.bias.copy_(torch.linspace(-0.5, 1.5, 8))
        student = gdfq.quantize_model(teacher, 8, 8)
        assert equalize(student) == ["relu"]
        for module in student.modules():
            if isinstance(module, QAct):
                act = module.act
                module.forward = lambda x, act=act: activate(x, act)
            if isinstance(module, QuantizedWeight):
                module._quantized_weight = lambda layer=module: layer.weight
        images = torch.randn(4, 2, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(student(images), teacher(images), rtol=1e-6, atol=1e-6)


def moments_of_norms(model, images):
    """Mean and deviation per channel of what comes out of each batch norm."""
    seen = {}
    handles = [
        m.register_forward_hook(lambda m, x, y, n=n: seen.update({n: torch.std_mean(y, (0, 2, 3))}))
        for n, m in model.named_modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        logits = model(images)
    for handle in handles:
        handle.remove()
    return seen, logits


@pytest.mark.parametrize("spread", [False, True])
def test_corrected_batch_norms_give_the_teachers_moments(spread):
    teacher = tiny_teacher()
    images = torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(5))
    student = gdfq.quantize_model(teacher, 2, 8)
    student.load_state_dict({**student.state_dict(), **_observed(student, images).state_dict()})
    assert correct(student, teacher, images_of(images), spread)[:2] == ["1", "4"]
    mine, logits = moments_of_norms(student, images)
    theirs, wanted = moments_of_norms(teacher, images)
    for name, (std, mean) in theirs.items():
        torch.testing.assert_close(mine[name][1], mean, rtol=0, atol=2e-3)
        if spread:
            torch.testing.assert_close(mine[name][0], std, rtol=5e-3, atol=1e-3)
    # The last layer has no batch norm behind it: its bias is corrected.
    torch.testing.assert_close(logits.mean(0), wanted.mean(0), rtol=0, atol=1e-2)
    # Once more changes nothing to speak of.
    before = copy.deepcopy(student.state_dict())
    correct(student, teacher, images_of(images), spread)
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-3, atol=1e-3)


class TwoNorms(nn.Module):
    """Norms whose inputs have different means, and a layer that follows none."""

    def __init__(self, kind=nn.BatchNorm2d, shared=False):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm1 = kind(8)
        self.norm2 = self.norm1 if shared else kind(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.norm1(self.conv1(x)).relu()
        return 20 * self.fc(self.norm2(self.conv2(x) + 2).relu().mean((2, 3)))


class CalledAsFunctions(TwoNorms):
    def forward(self, x):
        def normalized(norm, x):
            stored = norm.running_mean, norm.running_var
            return F.batch_norm(x, *stored, norm.weight, norm.bias, norm.training)

        x = normalized(self.norm1, self.conv1(x)).relu()
        x = normalized(self.norm2, self.conv2(x) + 2).relu().mean((2, 3))
        return 20 * F.linear(x, self.fc.weight, self.fc.bias)


class OfOnesOwn(nn.BatchNorm2d):
    pass


class Wrapping(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)


NORMS = {
    "shared": (partial(TwoNorms, shared=True), None),
    "functions": (CalledAsFunctions, None),
    "subclass": (partial(TwoNorms, OfOnesOwn), None),
    "subclass, shared": (partial(TwoNorms, OfOnesOwn, shared=True), None),
    "wrapped teacher": (TwoNorms, Wrapping),
    "data-parallel teacher": (TwoNorms, nn.DataParallel),
}


def _settled(make, *args):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make(*args)
        with torch.no_grad():
            for _ in range(30):
                model.train()(torch.randn(64, 2, 8, 8))
    return model.eval()


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("case", NORMS)
def test_norms_are_corrected_however_they_are_called(case, spread):
    make, wrap = NORMS[case]
    model = _settled(make)
    teacher = wrap(model) if wrap else model
    student = gdfq.quantize_model(model, 8, 8)
    start = Start(bn_reestimate=spread, bias_correction=not spread)
    options = {"student": student, "start": start, "calibration_batches": 4}
    trainer = tiny_trainer(teacher, **options)
    trainer.calibrate(4)
    names = correct(student, trainer.teacher.model, images_of(torch.randn(16, 2, 8, 8)), spread)
    norms = ["norm1"] if "shared" in case else ["norm1", "norm2"]
    assert names == [*norms, "conv2", "fc"]  # conv2: behind it is a sum
    trainer.calibrate(4)
    images = torch.randn(256, 2, 8, 8)
    with torch.no_grad():
        answers, wanted = student(images), model(images)
    # The last call's moments for both calls, or none for any, would leave ten times as much.
    assert float((answers - wanted).square().mean().sqrt()) < 0.02 * float(wanted.std())


def test_norms_in_leaf_modules_are_corrected():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.conv, self.norm = TwoNorms(), nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x):
            return self.first(x) + self.norm(self.conv(x)).relu().mean((2, 3))[:, :4]

    model = _settled(Outer)
    student = gdfq.quantize_model(model, 4, 4, leaf_modules=["first"])
    student.load_state_dict(_observed(student, torch.randn(16, 2, 8, 8)).state_dict())
    done = correct(student, model, images_of(torch.randn(16, 2, 8, 8)), True)
    assert done == ["first.norm1", "first.norm2", "norm"]


def test_the_bias_of_a_layer_over_tokens_is_corrected_along_its_last_dimension():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc, self.head = nn.BatchNorm2d(2), nn.Linear(8, 5), nn.Linear(5, 4)

        def forward(self, x):
            return self.head(self.fc(self.norm(x).flatten(1, 2)).relu().mean(1))

    model = _settled(Tokens)
    student = gdfq.quantize_model(model, 2, 8)
    images = torch.randn(64, 2, 8, 8)
    student.load_state_dict(_observed(student, images).state_dict())
    assert correct(student, model, images_of(images), False) == ["norm", "fc", "head"]
    seen = []
    for network in (model, student):
        network.fc.register_forward_hook(lambda module, x, y: seen.append(y.mean((0, 1))))
        with torch.no_grad():
            network(images)
    torch.testing.assert_close(seen[1], seen[0], rtol=0, atol=1e-5)


def test_a_student_that_is_not_the_teacher_is_refused_where_it_is_to_be_corrected():
    student = gdfq.quantize_model(_settled(TwoNorms), 8, 8)
    with pytest.raises(gdfq.InputError, match=r"student: batch norms and layers are not called in"):
        tiny_trainer(student=student, start=Start(bn_reestimate=True))
    tiny_trainer(student=student)


def _observed(student, images):
    observed = observing_copy(student)
    with torch.no_grad():
        observed(images)
    return observed


# ---- in a run ----

EVERYTHING = {
    "act_ranges": "mse",
    "weight_ranges": "mse",
    "equalize": True,
    "bn_reestimate": True,
    "bn_reestimate_end": True,
    "rounding": "flip",
}
EACH = {**EVERYTHING, "bias_correction": True}  # of which re-estimation does the same and more


@pytest.mark.parametrize("key", [*EACH, "everything"])
def test_starts_are_exact_in_files(tmp_path, key):
    chosen = EVERYTHING if key == "everything" else {key: EACH[key]}
    trainer = tiny_trainer(bits=3, start=Start(**chosen))
    student = trainer.train()
    assert student is trainer.outcome
    images = torch.randn(64, 2, 8, 8)
    gdfq.save(student, tmp_path / "student.safetensors")
    loaded = gdfq.load(tmp_path / "student.safetensors", tiny_teacher())
    with torch.no_grad():
        assert torch.equal(loaded(images), student(images))
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from gdfq.export import export_onnx
    from gdfq.export.parity import compare

    export_onnx(student, tmp_path / "student.onnx", images[:2])
    (parity,) = compare(student, tmp_path / "student.onnx", [(images, None)], ["onnxruntime"])
    assert parity.agreement == 100
    assert parity.median_difference < 1e-4


@pytest.mark.parametrize("key", [*EACH, "everything"])
def test_starts_in_bf16_are_about_those_in_float32(key):
    chosen = EVERYTHING if key == "everything" else {key: EACH[key]}
    images = torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    answers = []
    for precision in ("fp32", "bf16"):
        trainer = tiny_trainer(bits=4, start=Start(**chosen), precision=precision)
        student = trainer.train()
        state = student.state_dict().values()
        assert {t.dtype for t in state if t.is_floating_point()} == {torch.float32}
        with torch.no_grad():
            answers.append(student(images))
    spread = float(answers[0].std())
    assert float((answers[0] - answers[1]).square().mean().sqrt()) < 0.3 * spread


def test_the_end_s_correction_is_of_means_and_deviations_on_new_images():
    trainer = tiny_trainer(bits=3, start=Start(bn_reestimate_end=True))
    trainer.train()
    random, generator = trainer.rng.get_state(), copy.deepcopy(trainer.generator)
    outcome = trainer.outcome
    assert torch.equal(trainer.rng.get_state(), random)
    assert all(
        torch.equal(value, trainer.generator.state_dict()[name])
        for name, value in generator.state_dict().items()
    )
    batches = [generator(*trainer.images.sample()) for _ in range(2)]
    expected = copy.deepcopy(trainer.student)
    correct(expected, tiny_teacher(), images_of(*batches), spread=True)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(outcome.state_dict()[name], value)
    means = copy.deepcopy(trainer.student)
    correct(means, tiny_teacher(), images_of(*batches), spread=False)
    assert not torch.equal(
        means.get_submodule("4").running_var, outcome.get_submodule("4").running_var
    )


def test_another_step_gives_another_outcome():
    trainer = tiny_trainer(start=Start(bn_reestimate_end=True))
    first = trainer.train()
    assert trainer.outcome is first
    trainer.step()
    assert not torch.equal(
        trainer.outcome.get_submodule("1").weight, first.get_submodule("1").weight
    )


def test_going_on_with_a_start_is_bit_for_bit():
    whole, first, second = (tiny_trainer(bits=3, start=Start(**EVERYTHING)) for _ in range(3))
    result = whole.train()
    for _ in range(7):
        first.step()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    again = second.train()
    for name, value in result.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert torch.equal(whole.rng.get_state(), second.rng.get_state())


@pytest.mark.thorough
@pytest.mark.parametrize("learned", ["none", "both"])
def test_the_embedded_network_with_every_start_is_exact_in_onnx(tmp_path, learned):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from gdfq.export import export_onnx
    from gdfq.export.parity import compare

    recipe = load_recipe("fashion-mnist-resnet20").with_options(
        {"act_bits": 3, "weight_bits": 3, "batch_size": 8, "memory_format": "contiguous",
         "epochs": 1, "steps_per_epoch": 2, "warmup_epochs": 0, "calibration_batches": 2,
         "learned_ranges": learned, **EVERYTHING}
    )  # fmt: skip
    recipe, teacher = build_teacher(recipe)
    generator = build_generator(recipe, teacher.preprocessing)
    trainer = build_trainer(recipe, teacher, generator)
    trainer.train()
    student = trainer.outcome
    images, labels = next(iter(open_batches(recipe, teacher.preprocessing)))
    images, labels = images[:100], labels[:100]
    export_onnx(student, tmp_path / "student.onnx", images[:2])
    (parity,) = compare(student, tmp_path / "student.onnx", [(images, labels)], ["onnxruntime"])
    assert parity.agreement == 100
    assert parity.median_difference < 1e-4


def test_weights_that_a_kept_range_hides_are_not_kept():
    """Clipped to the range, weights of any size give finite losses."""
    trainer = tiny_trainer(start=Start(weight_ranges="mse"), student_lr=1e30, epochs=6)
    with pytest.raises(gdfq.NonFiniteLossError, match=r"Lower student_lr"):
        trainer.train()
    assert all(value.isfinite().all() for value in trainer.student.state_dict().values())
