"""Each part of the loop against a small computation of its own, and none of them against all."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gdfq
from gdfq.nn import StatisticsTeacher
from gdfq.nn.weight import QuantizedWeight
from gdfq.ops.quantize_codes import quantize_codes
from gdfq.recipes import load_recipe
from gdfq.recipes.schema import PartsSection
from gdfq.training import Parts
from gdfq.training.parts.average import Average
from gdfq.training.parts.code_changes import CodeChanges
from gdfq.training.parts.hard_samples import harder_images, teacher_cross_entropy
from gdfq.training.parts.low_pass import LowPass
from gdfq.training.parts.mixed_labels import mixed_labels
from gdfq.training.parts.objective import student_loss
from gdfq.training.parts.replay import Replay
from gdfq.training.parts.statistics import StatisticsLoss
from tests.helpers.tiny import EACH_PART, Operators, tiny_teacher, tiny_trainer

every_part = pytest.mark.parametrize("parts", EACH_PART.values(), ids=EACH_PART.keys())


def steps(trainer, count=9):
    return [{name: float(loss) for name, loss in trainer.step().items()} for _ in range(count)]


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same_state(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


# ---- off ----


def test_off_is_the_paper_s_loop_bit_for_bit_and_operator_for_operator():
    plain, off = tiny_trainer(), tiny_trainer(parts=Parts())
    assert steps(plain) == steps(off)
    assert same_state(state(plain.student), state(off.student))
    assert same_state(state(plain.generator), state(off.generator))
    assert torch.equal(plain.random.get_state(), off.random.get_state())
    assert off.outcome is off.student
    counts = []
    for trainer in (plain, off):
        with Operators() as operators:
            trainer.step()
        counts.append(operators.counts)
    assert counts[0] == counts[1]


def test_values_that_change_nothing_change_nothing():
    """The code of each part that has a neutral value, run with it."""
    plain = steps(tiny_trainer())
    # A gate that is always open; an average beside, which training never reads.
    for parts in (Parts(ce_gate=1.0), Parts(ema_decay=0.5)):
        for one, other in zip(steps(tiny_trainer(parts=parts)), plain, strict=True):
            assert one == pytest.approx(other, rel=1e-5)
    wide = Parts(low_pass=1e6)
    for one, other in zip(steps(tiny_trainer(parts=wide), 5), plain, strict=False):
        assert one == pytest.approx(other, rel=1e-3)


@every_part
def test_every_part_trains_and_changes_something(parts):
    off, on = tiny_trainer(), tiny_trainer(parts=parts)
    expected = steps(off)
    losses = steps(on)
    assert all(math.isfinite(loss) for step in losses for loss in step.values())
    if parts == EACH_PART["ema"]:
        assert losses == expected
        assert not same_state(state(on.outcome), state(on.student))
    else:
        assert losses != expected
    assert on.parts.describe() in on.describe()


@every_part
def test_every_part_trains_in_bf16(parts):
    trainer = tiny_trainer(parts=parts, precision="bf16", warmup_epochs=0)
    assert all(math.isfinite(loss) for step in steps(trainer, 4) for loss in step.values())


@every_part
def test_formats_train_alike(parts):
    one, other = (
        tiny_trainer(parts=parts, memory_format=name, warmup_epochs=0)
        for name in ("channels_last", "contiguous")
    )
    if parts.code_change_share or parts.hard_sample_step:
        pytest.skip("rounding decides about counts and signs")
    for ours, theirs in zip(steps(one, 3), steps(other, 3), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-3)


def test_one_seed_decides_everything():
    one, other = (tiny_trainer(parts=EACH_PART["all"], seed=3) for _ in range(2))
    assert steps(one) == steps(other)
    assert same_state(state(one.outcome), state(other.outcome))


# ---- validation ----


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objective": "mse"}, "objective: must be one of .* got 'mse'"),
        ({"ce_weight": -1}, "ce_weight: must be >= 0 and finite, got -1"),
        ({"ce_gate": 1.5}, r"ce_gate: must be in \[0, 1\], got 1.5"),
        ({"hard_sample_gamma": math.nan}, "hard_sample_gamma: must be >= 0"),
        ({"hard_sample_step": -0.1}, "hard_sample_step: must be >= 0"),
        ({"code_change_share": 1.0}, r"code_change_share: must be in \(0, 1\), got 1.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm: must be > 0 and finite, got 0.0"),
        (
            {"max_grad_norm": 1.0, "code_change_share": 0.1},
            "max_grad_norm: code_change_share decides how long",
        ),
        ({"mix_probability": 1.1}, r"mix_probability: must be in \[0, 1\]"),
        ({"mix_classes": 1}, "mix_classes: must be an int >= 2, got 1"),
        ({"low_pass": 0.0}, "low_pass: must be > 0 and finite, got 0.0"),
        ({"bns_spread": "mad"}, "bns_spread: must be one of"),
        ({"bns_layers": []}, "bns_layers: must be a list of glob patterns"),
        ({"bns_layers": "layer1.*"}, "bns_layers: must be a list of glob patterns"),
        ({"bns_of": "student"}, "bns_of: must be one of"),
        ({"ema_decay": 1.0}, r"ema_decay: must be in \[0, 1\)"),
        ({"replay_batches": 1.5}, "replay_batches: must be an int >= 0, got 1.5"),
        ({"replay_batches": 2, "replay_share": 1.0}, r"replay_share: must be in \(0, 1\)"),
        # What contradicts something else.
        ({"objective": "kl_only", "ce_weight": 0.5}, "ce_weight: objective = 'kl_only' has no"),
        ({"objective": "kl_only", "ce_gate": 0.5}, "ce_gate: with objective = 'kl_only'"),
        ({"ce_weight": 0.0, "ce_gate": 0.5}, "ce_gate: with ce_weight = 0"),
        ({"mix_classes": 3}, "mix_classes: has no effect without mix_probability"),
        ({"replay_share": 0.3}, "replay_share: has no effect without replay_batches"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(gdfq.InputError, match=message):
        Parts(**given)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (Parts(bns_layers=["bn*"]), r"bns_layers: 'bn\*' matches no batch norm; there are: 1, 4"),
        (Parts(mix_probability=0.5, mix_classes=5), "mix_classes: must be <= 4, the number of"),
        ({"ema_decay": 0.9}, "parts: must be gdfq.training.Parts, got dict"),
    ],
)
def test_what_a_trainer_refuses(parts, message):
    with pytest.raises(gdfq.InputError, match=message):
        tiny_trainer(parts=parts)


def test_a_generator_that_takes_no_mixed_labels_is_refused():
    class Own(nn.Module):
        latent_dim = 10

        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(4, 10)
            self.linear = nn.Linear(10, 128)

        def forward(self, z, labels):
            return self.linear(z * self.embedding(labels)).view(-1, 2, 8, 8)

    teacher = tiny_teacher()
    student = gdfq.quantize_model(teacher, 4, 4)
    with pytest.raises(gdfq.InputError, match=r"mix_probability: .* labels \(N, 4\), shares"):
        gdfq.GDFQTrainer(teacher, student, Own(), 4, 8, parts=Parts(mix_probability=0.5))


def test_a_recipe_has_every_part_with_the_same_default():
    assert PartsSection().build() == Parts()
    assert set(PartsSection.model_fields) == set(Parts.__dataclass_fields__)
    recipe = load_recipe("fashion-mnist-resnet20")
    assert recipe.parts.build() == Parts()
    changed = recipe.with_options({"objective": "logit_mse", "bns_layers": ["layer1.*"]})
    assert changed.parts.build() == Parts(objective="logit_mse", bns_layers=["layer1.*"])
    with pytest.raises(gdfq.InputError, match=r"parts.ce_gate: with objective = 'kl_only'"):
        recipe.with_options({"objective": "kl_only", "ce_gate": 0.5})


# ---- the student's objective ----


def logits(seed=0, batch=12, classes=5):
    random = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, batch, classes, generator=random)
    hard = torch.randint(classes, (batch,), generator=random)
    soft = torch.randn(batch, classes, generator=random).softmax(1)
    return student, teacher, hard, soft


def expected_loss(parts, student, teacher, labels, temperature, alpha):
    """The formulas of the objectives, sample by sample, in float64."""
    student, teacher = student.double(), teacher.double()
    batch, classes = student.shape
    divergence = matching = entropy = 0.0
    for s, t, y in zip(student, teacher, labels, strict=True):
        target = F.one_hot(y, classes).double() if y.dim() == 0 else y.double()
        p, q = (t / temperature).softmax(0), (s / temperature).softmax(0)
        divergence += (p * (p.log() - q.log())).mean() / batch
        matching += ((t - s) ** 2).mean() / batch
        distance = 1 - sum(min(a, b) for a, b in zip(target, t.softmax(0), strict=True))
        if parts.ce_gate is None or distance <= parts.ce_gate:
            entropy += -(target * s.log_softmax(0)).sum() / batch
    scaled = alpha * temperature**2 * divergence
    return {
        "kd_ce": parts.ce_weight * entropy + scaled,
        "logit_mse": parts.ce_weight * entropy + matching,
        "kl_only": scaled,
    }[parts.objective]


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("gate", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("objective", ["kd_ce", "logit_mse", "kl_only"])
def test_objectives(objective, weight, gate, labels):
    if (objective == "kl_only" and weight != 1) or (
        gate is not None and (objective == "kl_only" or weight == 0)
    ):
        pytest.skip("refused")
    parts = Parts(objective=objective, ce_weight=weight, ce_gate=gate)
    student, teacher, hard, soft = logits()
    labels = hard if labels == "hard" else soft
    student.requires_grad_()
    loss = student_loss(parts, student, teacher, labels, 4.0, 1.5)
    (gradient,) = torch.autograd.grad(loss, student)
    wide = student.detach().double().requires_grad_()
    expected = expected_loss(parts, wide, teacher, labels, 4.0, 1.5)
    (expected_gradient,) = torch.autograd.grad(expected, wide)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-6)


# ---- the average ----


def test_the_average_is_that_of_all_updates():
    student = nn.Linear(3, 2)
    average = Average(student, 0.8)
    history = []
    for step in range(1, 8):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn(parameter.shape))
        history.append([p.detach().double().clone() for p in student.parameters()])
        average.update()
        weights = [0.8 ** (step - 1 - i) for i in range(step)]
        for index, value in enumerate(average.values.values()):
            total = sum(w * h[index] for w, h in zip(weights, history, strict=True))
            torch.testing.assert_close(value.double(), total / sum(weights), rtol=1e-5, atol=1e-6)


def test_the_outcome_has_the_average_and_the_student_s_ranges():
    trainer = tiny_trainer(parts=Parts(ema_decay=0.9))
    assert trainer.outcome is trainer.student
    returned = trainer.train()
    student, outcome = state(trainer.student), state(trainer.outcome)
    assert same_state(outcome, state(returned))
    names = dict(trainer.student.named_parameters())
    for name, value in outcome.items():
        expected = trainer.average.values[name] if name in names else student[name]
        assert torch.equal(value, expected)
    assert not torch.equal(outcome["0.weight"], student["0.weight"])
    images = torch.randn(4, 2, 8, 8)
    assert returned(images).isfinite().all()


def test_a_loss_that_is_not_finite_puts_the_average_back_too():
    trainer = tiny_trainer(epochs=20, student_lr=1e30, parts=Parts(ema_decay=0.9))
    with pytest.raises(gdfq.NonFiniteLossError):
        trainer.train()
    assert all(p.isfinite().all() for p in trainer.outcome.parameters())


# ---- mixed labels ----


def test_mixed_labels():
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(7, (4000,), generator=random)
    soft = mixed_labels(labels, 7, 0.4, 3, random)
    torch.testing.assert_close(soft.sum(1), torch.ones(4000))
    assert (soft >= 0).all()
    of_one = (soft > 0).sum(1) == 1
    assert torch.equal(soft[of_one], F.one_hot(labels[of_one], 7).float())
    assert ((soft > 0).sum(1)[~of_one] == 3).all()
    assert float((~of_one).float().mean()) == pytest.approx(0.4, abs=0.03)
    # No class is preferred, and shares are those of a softmax of normal numbers.
    mixes = soft[~of_one]
    assert (mixes > 0).float().mean(0).tolist() == pytest.approx([3 / 7] * 7, abs=0.06)
    reference = torch.randn(100_000, 3, generator=random).softmax(1)
    assert float(mixes[mixes > 0].std()) == pytest.approx(float(reference.std()), rel=0.1)


@pytest.mark.parametrize("conditional", [False, True])
def test_the_generator_mixes_embeddings(conditional):
    generator = gdfq.models.Generator(
        4, 8, channels=2, latent_dim=10, width=8, conditional_bn=conditional
    )
    for parameter in generator.parameters():
        nn.init.normal_(parameter, std=0.5)
    z, labels = torch.randn(6, 10), torch.randint(4, (6,))
    one_hot = F.one_hot(labels, 4).float()
    torch.testing.assert_close(
        copy.deepcopy(generator)(z, one_hot), generator(z, labels), rtol=1e-4, atol=1e-5
    )
    # A class whose embeddings are the mean of two others' is their mix by halves.
    with torch.no_grad():
        for module in generator.modules():
            if isinstance(module, nn.Embedding):
                module.weight[3] = (module.weight[0] + module.weight[1]) / 2
    halves = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).expand(6, 4)
    torch.testing.assert_close(
        copy.deepcopy(generator)(z, halves),
        generator(z, torch.full((6,), 3)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_calibration_sees_mixed_labels_too():
    trainer = tiny_trainer(parts=Parts(mix_probability=1.0))
    _, labels = trainer.sample()
    assert labels.shape == (16, 4)
    trainer.calibrate(2)


# ---- the low-pass filter ----


@pytest.mark.parametrize("shape", [(3, 2, 8, 8), (2, 1, 9, 6), (2, 3, 28, 28)], ids=str)
@pytest.mark.parametrize("width", [0.7, 3.0])
def test_the_filter_is_the_fourier_transform_s(shape, width):
    images = torch.randn(shape)
    v, u = (torch.fft.fftfreq(size, 1 / size) for size in shape[2:])
    gain = torch.exp(-(v[:, None] ** 2 + u**2) / (2 * width**2))
    expected = torch.fft.ifft2(torch.fft.fft2(images.double()) * gain).real
    for format in (torch.contiguous_format, torch.channels_last):
        given = images.contiguous(memory_format=format)
        filtered = LowPass(images.shape[-2:], width)(given)
        torch.testing.assert_close(filtered.double(), expected, rtol=1e-4, atol=1e-5)
        assert filtered.stride() == given.stride()


def test_teacher_student_and_picture_see_filtered_images():
    trainer = tiny_trainer(parts=Parts(low_pass=1.0))
    z, labels = trainer.sample()
    generator = copy.deepcopy(trainer.generator)
    made = trainer.make_images(z, labels)
    assert torch.equal(made, trainer.low_pass(generator(z, labels)))


# ---- the statistics' loss ----


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
            StatisticsLoss(parts, network, teacher, images)
        return
    loss = StatisticsLoss(parts, network, teacher, images)
    _, statistics = network(images)
    layers = statistics_of(teacher, images)
    expected = mismatch([layers[i] for i in chosen], spread)
    torch.testing.assert_close(loss(statistics, images, True), expected, rtol=1e-4, atol=1e-6)


def test_a_norm_that_is_called_twice_stores_the_mean_of_both_calls():
    shared = nn.BatchNorm2d(2)
    teacher = nn.Sequential(shared, nn.Conv2d(2, 2, 1), shared).eval()
    network, images = StatisticsTeacher(teacher), torch.randn(16, 2, 8, 8)
    first, second = images, teacher[1](teacher[0](images))
    mean = (first.mean((0, 2, 3)) + second.mean((0, 2, 3))) / 2
    var = sum(x.var((0, 2, 3), correction=0) for x in (first, second)) / 2
    for patterns in ("*",), ("0",):
        loss = StatisticsLoss(Parts(bns_layers=patterns), network, teacher, images)
        _, statistics = network(images)
        expected = mismatch([(mean, var, shared.running_mean, shared.running_var)])
        torch.testing.assert_close(loss(statistics, images, True), expected)


def test_the_student_s_statistics():
    trainer = tiny_trainer(parts=Parts(bns_of="both"), warmup_epochs=0)
    trainer.calibrate(2)
    images = trainer.make_images(*trainer.sample()).detach().requires_grad_()
    _, statistics = trainer.teacher(images)
    layers = statistics_of(tiny_teacher(), images) + statistics_of(trainer.student, images)
    expected = mismatch(layers)
    loss = trainer.statistics_loss(statistics, images, True)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    actual, wanted = (torch.autograd.grad(value, images)[0] for value in (loss, expected))
    torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-7)
    # In the warm-up the student has no ranges yet, and plays no part.
    _, statistics = trainer.teacher(images)
    alone = trainer.statistics_loss(statistics, images, False)
    torch.testing.assert_close(alone, mismatch(layers[:2]), rtol=1e-4, atol=1e-6)


def test_the_generator_s_loss_teaches_the_student_nothing():
    trainer = tiny_trainer(parts=Parts(bns_of="both"), warmup_epochs=0)
    trainer.calibrate(2)
    trainer._generator_step(tuning=True)
    assert all(p.grad is None for p in trainer.student.parameters())
    recorder = trainer.statistics_loss.recorder
    shared = {id(p) for p in recorder.parameters()}
    assert shared <= {id(p) for p in trainer.student.parameters()}
    trainer.step()
    before = trainer.student.get_submodule("1").running_mean
    assert any(buffer is before for buffer in recorder.buffers())


# ---- hard samples ----


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_generator_s_cross_entropy_weighs_hard_samples(gamma):
    _, teacher, hard, soft = logits()
    for labels in (hard, soft):
        target = F.one_hot(hard, 5).float() if labels is hard else soft
        p = teacher.softmax(1)
        sure = torch.minimum(target, p).sum(1)
        entropy = -(target * teacher.log_softmax(1)).sum(1)
        expected = ((1 - sure) ** gamma * entropy).mean()
        torch.testing.assert_close(teacher_cross_entropy(teacher, labels, gamma), expected)


def test_the_exponent_reaches_the_generator_s_loss():
    trainer = tiny_trainer(parts=Parts(hard_sample_gamma=3.0))
    random = trainer.random.get_state()
    z, labels = trainer.sample()
    logits = tiny_teacher()(copy.deepcopy(trainer.generator)(z, labels))
    trainer.random.set_state(random)
    p = logits.softmax(1)[torch.arange(16), labels]
    expected = ((1 - p) ** 3 * -p.log()).mean()
    torch.testing.assert_close(trainer.step()["generator_ce"], expected, rtol=1e-4, atol=1e-6)


def test_the_step_that_hardens_images_is_the_one_that_was_given(monkeypatch):
    given = []

    def recorded(student, images, labels, step):
        given.append(step)
        return images

    monkeypatch.setattr("gdfq.training.trainer.harder_images", recorded)
    steps(tiny_trainer(parts=Parts(hard_sample_step=0.03), warmup_epochs=0), 2)
    assert given == [0.03, 0.03]


def test_a_sample_the_teacher_is_certain_of_has_a_finite_gradient():
    certain = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    teacher_cross_entropy(certain, torch.tensor([0]), 0.5).backward()
    assert certain.grad.isfinite().all()


def test_harder_images_are_harder():
    trainer = tiny_trainer(warmup_epochs=0)
    trainer.calibrate(2)
    z, labels = trainer.sample()
    images = trainer.make_images(z, labels).detach()
    harder = harder_images(trainer.student, images, labels, 0.02)
    moved = (harder - images).abs()
    assert not harder.requires_grad
    assert all(p.grad is None for p in trainer.student.parameters())
    assert float(moved.max()) == pytest.approx(0.02, rel=1e-3)
    losses = [F.cross_entropy(trainer.student(x), labels) for x in (images, harder)]
    assert losses[1] > losses[0]


# ---- replay ----


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_replay(format):
    batch, kept = 50, 3
    replay = Replay(kept, 0.4, batch, torch.Generator().manual_seed(0), torch.device("cpu"))
    older, shares = [], []
    for step in range(10):
        images = torch.randn(batch, 2, 4, 4).contiguous(memory_format=format)
        given = images, torch.arange(batch) + 100 * step, torch.randn(batch, 5)
        got = replay(*given)
        assert got[0].stride() == images.stride()
        # Labels say which batch a row is of: this one or one of the last three.
        of = got[1] // 100
        assert torch.equal(got[1] % 100, torch.arange(batch))
        assert of.min() >= max(0, step - kept)
        assert of.max() <= step
        older.append(given)
        for row in range(batch):
            source = older[int(of[row])]
            assert torch.equal(got[0][row], source[0][row])
            assert torch.equal(got[2][row], source[2][row])
        shares.append(float((of < step).float().mean()))
        if step >= kept:
            counts = [int((of == step - back).sum()) for back in (1, 2, 3)]
            assert min(counts) > 0
    assert shares[0] == 0
    assert sum(shares[1:]) / 9 == pytest.approx(0.4, abs=0.07)


def test_replayed_images_reach_the_student():
    trainer = tiny_trainer(parts=Parts(replay_batches=2, replay_share=0.9), warmup_epochs=0)
    seen = []
    trainer.calibrate(1)
    trainer.student.get_submodule("0").register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    trainer.fused = None
    made, make = [], trainer.make_images

    def recorded(*args):
        made.append(make(*args))
        return made[-1]

    trainer.make_images = recorded
    steps(trainer, 3)
    assert torch.equal(seen[0], made[0])
    assert not torch.equal(seen[2], made[2])
    rows = torch.cat(made)
    for row in seen[2]:
        assert (rows == row).flatten(1).all(1).any()


@pytest.mark.parametrize("mix", [0.0, 0.5])
def test_every_replayed_image_comes_with_its_label_and_the_teacher_s_logits(monkeypatch, mix):
    trainer = tiny_trainer(
        parts=Parts(replay_batches=2, replay_share=0.7, mix_probability=mix), warmup_epochs=0,
        fuse=False,
    )  # fmt: skip
    trainer.calibrate(1)
    seen, made, given = [], [], []
    make, loss = trainer.make_images, student_loss
    trainer.student.get_submodule("0").register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )

    def recorded(z, labels):
        images = make(z, labels)
        made.extend(zip(images.detach(), labels, trainer.teacher(images)[0].detach(), strict=True))
        return images

    def taken(parts, logits, teacher_logits, labels, *constants):
        given.append((teacher_logits, labels))
        return loss(parts, logits, teacher_logits, labels, *constants)

    trainer.make_images = recorded
    monkeypatch.setattr("gdfq.training.trainer.student_loss", taken)
    steps(trainer, 3)
    replayed = 0
    for step, (images, (teacher_logits, labels)) in enumerate(zip(seen, given, strict=True)):
        for row, image in enumerate(images):
            (index,) = (i for i, entry in enumerate(made) if torch.equal(entry[0], image))
            replayed += index < 16 * step
            assert torch.equal(labels[row], made[index][1])
            torch.testing.assert_close(teacher_logits[row], made[index][2])
    assert 10 < replayed < 32


# ---- code changes ----


def layers_with_gradients(seed=0):
    """A student of two layers, one whose gradient is zero, and the learning rate."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(2, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 4))
    student = gdfq.quantize_model(net, 4, 4)
    for parameter in student.parameters():
        parameter.grad = 1e-3 * torch.randn(parameter.shape)
    return student, torch.tensor(1e-2)


def share_changed(layer, gradient, rate, factor):
    low, high = layer.weight_range()
    moved = layer.weight.detach() - float(rate) * factor * gradient
    codes = [quantize_codes(w, low, high, layer.weight_bits, 0)[0]
             for w in (layer.weight.detach(), moved)]  # fmt: skip
    return float((codes[0] != codes[1]).float().mean())


def test_a_share_of_the_codes_changes():
    student, rate = layers_with_gradients()
    weights = [m for m in student.modules() if isinstance(m, QuantizedWeight)]
    before = {name: p.grad.clone() for name, p in student.named_parameters()}
    CodeChanges(student, 0.05).scale_gradients(rate)
    for name, parameter in student.named_parameters():
        if name.endswith("bias"):
            assert torch.equal(parameter.grad, before[name])
    for layer in weights:
        name = next(n for n, p in student.named_parameters() if p is layer.weight)
        factor = float((layer.weight.grad / before[name]).median())
        assert factor > 2
        # The share is met, and by a 32nd of the last doubling less it would not be.
        assert share_changed(layer, before[name], rate, factor * 1.0001) >= 0.05
        doubled = 2.0 ** math.ceil(math.log2(factor))
        assert share_changed(layer, before[name], rate, factor - 1.01 * doubled / 64) < 0.05


def test_the_search_is_doubling_and_bisecting():
    """Against the search written with loops that stop, on counts of a given step function."""
    student, _ = layers_with_gradients()
    changes = CodeChanges(student, 0.5)
    thresholds = torch.tensor([0.3, 37.5])
    found = changes._search(lambda f: f >= thresholds)
    for threshold, factor in zip(thresholds.tolist(), found.tolist(), strict=True):
        high = 1.0
        while high < threshold:
            high *= 2
        low = high / 2 if high > 1 else 0.0
        for _ in range(5):
            middle = (low + high) / 2
            low, high = (low, middle) if middle >= threshold else (middle, high)
        assert factor == high
    never = changes._search(lambda f: torch.zeros(2, dtype=torch.bool))
    assert never.tolist() == [1, 1]


def test_a_zero_gradient_ends_the_search():
    student, rate = layers_with_gradients()
    for parameter in student.parameters():
        parameter.grad.zero_()
    CodeChanges(student, 0.05).scale_gradients(rate)
    assert all(not p.grad.any() for p in student.parameters())
    for parameter in student.parameters():
        parameter.grad = None
    CodeChanges(student, 0.05).scale_gradients(rate)
    with pytest.raises(gdfq.InputError, match="code_change_share: the network has no layer"):
        CodeChanges(gdfq.quantize_model(nn.Sequential(nn.BatchNorm2d(2), nn.ReLU())), 0.05)


def test_a_student_without_a_loss_is_refused():
    for parts, reason in ((Parts(objective="kl_only"), "kl_only"), (Parts(ce_weight=0.0), "ce_w")):
        with pytest.raises(gdfq.InputError, match=f"alpha: must be > 0 with .*{reason}"):
            tiny_trainer(parts=parts, alpha=0.0)
        given = {**parts.changed(), "alpha": 0.0}
        with pytest.raises(gdfq.InputError, match="alpha: must be > 0"):
            load_recipe("fashion-mnist-resnet20").with_options(given)
    tiny_trainer(parts=Parts(objective="logit_mse", ce_weight=0.0), alpha=0.0)


def test_a_rate_of_ranges_that_are_not_learned_is_refused():
    with pytest.raises(gdfq.InputError, match=r"range_lr: has no effect without learned_ranges"):
        load_recipe("fashion-mnist-resnet20").with_options({"range_lr": 1e-3})


def test_gradients_are_shortened_to_a_norm():
    def after_a_step(**options):
        trainer = tiny_trainer(
            parts=Parts(**options), warmup_epochs=0, momentum=0.0, weight_decay=0.0,
            schedule="constant", student_lr=1.0, learned_ranges="act",
        )  # fmt: skip
        trainer.calibrate(2)
        before = [p.detach().clone() for p in trainer.student.parameters()]
        trainer.step()
        return trainer, before

    plain, _ = after_a_step()
    gradients = [p.grad for p in plain.student.parameters()]
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    for most, factor in ((2 * float(norm), 1.0), (float(norm) / 3, 1 / 3)):
        clipped, before = after_a_step(max_grad_norm=most)
        for parameter, gradient, old in zip(
            clipped.student.parameters(), gradients, before, strict=True
        ):
            assert torch.allclose(parameter.grad, factor * gradient, rtol=1e-5, atol=1e-7)
            if parameter.dim():  # ranges have a rate of their own
                assert torch.allclose(old - parameter, factor * gradient, rtol=1e-3, atol=1e-5)


def test_gradients_are_scaled_before_the_update():
    trainer = tiny_trainer(
        parts=Parts(code_change_share=0.2), warmup_epochs=0, momentum=0.0, weight_decay=0.0,
        schedule="constant",
    )  # fmt: skip
    trainer.calibrate(2)
    layer = trainer.student.get_submodule("3")
    low, high = layer.weight_range()
    before = layer.weight.detach().clone()
    trainer.step()
    codes = [quantize_codes(w, low, high, 4, 0)[0] for w in (before, layer.weight.detach())]
    assert 0.19 < float((codes[0] != codes[1]).float().mean()) < 0.25
