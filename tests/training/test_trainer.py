import copy
import gc
import inspect
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gdfq
from gdfq.nn import QAct, StatisticsTeacher
from gdfq.recipes import load_recipe
from gdfq.training import TrainerCallback, Training
from gdfq.training.memory_format import TORCH_FORMATS, fastest_memory_format
from gdfq.training.precision import multiplications
from gdfq.training.schedules import learning_rate_factor
from tests.helpers.tiny import Operators, tiny_teacher, tiny_trainer


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def same_state(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(v, second[k]) for k, v in first.items()
    )


def test_one_seed_decides_everything():
    first, second, other = (state(tiny_trainer(seed=s).train()) for s in (5, 5, 6))
    assert same_state(first, second)
    assert not same_state(first, other)


def test_global_random_state_plays_no_part():
    torch.manual_seed(1)
    first = state(tiny_trainer().train())
    torch.manual_seed(2)
    assert same_state(first, state(tiny_trainer().train()))


def test_the_teacher_is_not_modified():
    teacher = tiny_teacher().train()
    teacher[1].weight.requires_grad_(False)
    before = state(teacher)
    tiny_trainer(teacher).train()
    assert same_state(before, state(teacher))
    assert teacher.training
    assert not any(m._forward_hooks for m in teacher.modules())
    assert [p.requires_grad for p in teacher.parameters()].count(False) == 1


def test_warm_up_leaves_the_student_alone_and_fine_tuning_trains_it():
    trainer = tiny_trainer()
    student, generator = state(trainer.student), state(trainer.generator)
    for _ in range(4):
        assert "student" not in trainer.step()
    assert same_state(student, state(trainer.student))
    assert not same_state(generator, state(trainer.generator))
    assert not trainer.calibrated
    assert "student" in trainer.step()
    assert trainer.calibrated
    assert not torch.equal(student["0.weight"], trainer.student.state_dict()["0.weight"])


def test_statistics_and_ranges_stand_still_while_fine_tuning():
    trainer = tiny_trainer()
    for _ in range(5):
        trainer.step()
    before = state(trainer.student)
    for _ in range(4):
        trainer.step()
    after = state(trainer.student)
    still = [k for k in before if "running" in k or k.endswith((".lo", ".hi", "tracked"))]
    assert len(still) == 4 + 2 + 2 * 3  # running statistics, their counters, two ranges
    assert all(torch.equal(before[k], after[k]) for k in still)
    assert not torch.equal(before["1.weight"], after["1.weight"])
    assert not torch.equal(before["1.bias"], after["1.bias"])


def teacher_masks(trainer, operators):
    weights = {p.data_ptr() for p in trainer.teacher.parameters()}
    return [mask for pointer, mask in operators.masks if pointer in weights]


def test_each_phase_computes_only_what_it_needs():
    trainer = tiny_trainer()
    trainer.calibrate(1)  # else the student could not even be run
    students = ("gdfq::fake_quantize", "gdfq::bn_act", "gdfq::kd_ce_loss", "gdfq::observe")

    with Operators() as warm_up:
        assert "student" not in trainer.step()
    assert warm_up.named(*students) == {}
    assert warm_up.named("aten::_fused_") == {"aten::_fused_adam_.tensor_lr": 1}
    assert teacher_masks(trainer, warm_up) == [[True, False, False]] * 2
    assert len(warm_up.masks) == 2 + 3  # the teacher's and the generator's

    while trainer.steps_done < trainer.training.warmup_steps:
        trainer.step()
    with Operators() as tuning:
        assert "student" in trainer.step()
    assert tuning.named(*students) == {
        "gdfq::fake_quantize_minmax_list": 1,
        "gdfq::bn_act_fake_quantize": 2,
        "gdfq::bn_act_fake_quantize_backward": 2,
        "gdfq::kd_ce_loss": 1,
    }
    assert tuning.named("aten::_fused_") == {
        "aten::_fused_adam_.tensor_lr": 1,
        "aten::_fused_sgd_.tensor_lr": 1,
    }
    assert teacher_masks(trainer, tuning) == [[True, False, False]] * 2
    assert len(tuning.masks) == 2 + 3 + 2
    assert all(p.grad is None for p in trainer.teacher.parameters())


def test_calibrate_sets_ranges_from_generated_images():
    trainer = tiny_trainer()
    trainer.calibrate(3)
    acts = [m for m in trainer.student.modules() if isinstance(m, QAct)]
    assert all(a.num_batches_tracked == 3 and a.hi > a.lo for a in acts)
    assert not any(a.training for a in acts)
    ranges = [a.hi.clone() for a in acts]
    trainer.train()
    # A calibration asked for by hand is not repeated.
    assert all(torch.equal(a.hi, hi) for a, hi in zip(acts, ranges, strict=True))


def plain_step(teacher, student, generator, z, labels, bns_weight):
    """One step as one writes it from the paper with stock PyTorch: hooks, no fused operators."""
    mismatches = []

    def hook(module, inputs, output):
        var, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
        mismatches.append(
            F.mse_loss(mean, module.running_mean) + F.mse_loss(var, module.running_var)
        )

    handles = [
        m.register_forward_hook(hook) for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)
    ]
    images = generator(z, labels)
    teacher_logits = teacher(images)
    for handle in handles:
        handle.remove()
    generator_loss = F.cross_entropy(teacher_logits, labels) + bns_weight * (
        sum(mismatches) / len(mismatches)
    )
    adam = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    generator_loss.backward()
    adam.step()

    logits = student(images.detach())
    log_p = torch.log_softmax(teacher_logits.detach() / 20, 1)
    log_q = torch.log_softmax(logits / 20, 1)
    divergence = (log_p.exp() * (log_p - log_q)).mean() * 20**2
    student_loss = F.cross_entropy(logits, labels) + divergence
    sgd = torch.optim.SGD(
        student.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    student_loss.backward()
    sgd.step()
    return generator_loss, student_loss


def test_a_step_is_the_algorithm_written_plainly():
    trainer = tiny_trainer(warmup_epochs=0)
    trainer.calibrate(2)
    student, generator = copy.deepcopy((trainer.student, trainer.generator))
    random = trainer.rng.get_state()
    z, labels = trainer.images.sample()
    trainer.rng.set_state(random)
    losses = trainer.step()
    expected = plain_step(tiny_teacher(), student, generator, z, labels, 0.1)
    torch.testing.assert_close(losses["generator"], expected[0].detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["student"], expected[1].detach(), rtol=1e-5, atol=1e-6)
    for (name, p), q in zip(trainer.student.named_parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6, msg=name)
    # Adam divides by the gradient's size, so rounding decides where the true gradient is 0.
    for (name, p), q in zip(
        trainer.generator.named_parameters(), generator.parameters(), strict=True
    ):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_the_generator_learns():
    trainer = tiny_trainer(epochs=100, warmup_epochs=100, generator_lr=3e-3)
    losses = [float(trainer.step()["generator"]) for _ in range(150)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_callback_sees_the_run_and_can_stop_it():
    class Recorder(TrainerCallback):
        def __init__(self, stop_after=10**9):
            self.events, self.stop_after = [], stop_after

        def on_step(self, trainer, losses):
            self.events.append("step")

        def on_calibrated(self, trainer):
            self.events.append("calibrated")

        def on_epoch(self, trainer, losses):
            assert all(math.isfinite(v) for v in losses.values())
            self.events.append("epoch")

        def should_stop(self):
            return self.events.count("step") >= self.stop_after

    recorder = Recorder()
    tiny_trainer().train(recorder)
    epoch = ["step"] * 4 + ["epoch"]
    assert recorder.events == [*epoch, "calibrated", *epoch, *epoch]

    stopped, whole = tiny_trainer(), tiny_trainer()
    stopped.train(Recorder(stop_after=6))
    assert stopped.steps_done == 6
    stopped.train()
    assert same_state(state(stopped.student), state(whole.train()))


def test_an_epoch_s_losses_are_the_means_of_its_steps():
    class Recorder(TrainerCallback):
        steps, epochs = [], []

        def on_step(self, trainer, losses):
            self.steps.append({name: float(loss) for name, loss in losses.items()})

        def on_epoch(self, trainer, losses):
            self.epochs.append(losses)

    recorder = Recorder()
    tiny_trainer(epochs=2, steps_per_epoch=5).train(recorder)
    for epoch, means in enumerate(recorder.epochs):
        steps = recorder.steps[5 * epoch : 5 * epoch + 5]
        assert means.keys() == steps[0].keys()
        for name, mean in means.items():
            assert mean == pytest.approx(sum(step[name] for step in steps) / 5, rel=1e-5)


def test_no_fine_tuning_still_calibrates():
    trainer = tiny_trainer(epochs=1, warmup_epochs=1)
    trainer.train()
    assert trainer.calibrated


@pytest.mark.parametrize(
    ("option", "key"), [("student_lr", "student"), ("generator_lr", "generator")]
)
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_sound_student(option, key):
    trainer = tiny_trainer(epochs=20, **{option: 1e30})
    with pytest.raises(gdfq.NonFiniteLossError, match=f"the {key}.* loss became .* Lower {option}"):
        trainer.train()
    assert all(p.isfinite().all() for p in trainer.student.parameters())


def test_a_loss_that_is_not_finite_keeps_the_calibrated_ranges():
    trainer = tiny_trainer(epochs=2, warmup_epochs=1, student_lr=1e30)
    with pytest.raises(gdfq.NonFiniteLossError):
        trainer.train()
    assert trainer.student(torch.randn(2, 2, 8, 8)).isfinite().all()


def test_stopping_on_a_loss_that_is_not_finite_is_a_failure_too():
    class StopLate(TrainerCallback):
        def should_stop(self):
            return trainer.steps_done == 7

    trainer = tiny_trainer(student_lr=1e30)
    with pytest.raises(gdfq.NonFiniteLossError):
        trainer.train(StopLate())
    assert all(p.isfinite().all() for p in trainer.student.parameters())


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("step", [1, 1, 0.1, 0.1, 0.01, 0.01]),
        ("constant", [1] * 6),
        ("cosine", [0.5 * (1 + math.cos(math.pi * i / 6)) for i in range(6)]),
    ],
)
def test_schedules(schedule, factors):
    factor = learning_rate_factor(schedule, 6, 2, milestones=(1, 2))
    assert [float(factor(torch.tensor(step))) for step in range(6)] == pytest.approx(factors)


def test_defaults_are_the_paper_s_for_cifar10():
    signature = inspect.signature(gdfq.GDFQTrainer).parameters
    defaults = {name: p.default for name, p in signature.items() if p.default is not p.empty}
    recipe = load_recipe("cifar10-resnet20-paper").training.model_dump()
    shared = {name: value for name, value in defaults.items() if name in recipe}
    assert shared == {name: recipe[name] for name in shared}
    assert set(recipe) - set(shared) == {"batch_size"}
    assert recipe == {
        "batch_size": 200, "epochs": 400, "steps_per_epoch": 200, "warmup_epochs": 4,
        "calibration_batches": 16, "student_lr": 1e-4, "momentum": 0.9, "weight_decay": 1e-4,
        "generator_lr": 1e-3, "bns_weight": 0.1, "temperature": 20.0, "alpha": 1.0,
        "schedule": "step", "milestones": (100, 200, 300), "precision": "fp32",
        "memory_format": "auto", "seed": 0,
    }  # fmt: skip


def test_every_setting_is_an_argument_that_help_lists():
    signature = inspect.signature(gdfq.GDFQTrainer)
    for name, field in Training.model_fields.items():
        parameter = signature.parameters[name]
        if name != "batch_size":
            assert (parameter.kind, parameter.default) == (parameter.KEYWORD_ONLY, field.default)
        assert f"    {name}: {field.description}" in inspect.getdoc(Training).splitlines()
    assert "training" not in signature.parameters
    rows = inspect.getdoc(gdfq.GDFQTrainer)
    own = signature.parameters.keys() - Training.model_fields.keys()
    assert [name for name in own if not re.search(rf"^    {name}: ", rows, re.M)] == []
    with pytest.raises(gdfq.InputError, match="epoch: unknown key; allowed are batch_size, epochs"):
        tiny_trainer(epoch=3)


def test_milestones_are_epochs_of_the_whole_run():
    trainer = tiny_trainer(schedule="step", milestones=(2,))
    rates = []
    for _ in range(12):
        rates.append(
            [
                float(o.param_groups[0]["lr"])
                for o in (trainer.generator_update.optimizer, trainer.student_update.optimizer)
            ]
        )
        trainer.step()
    assert [g for g, _ in rates] == pytest.approx([1e-3] * 8 + [1e-4] * 4)
    assert [s for _, s in rates[4:]] == pytest.approx([1e-3] * 4 + [1e-4] * 4)


def test_statistics_teacher_reports_every_use_in_order():
    shared = nn.BatchNorm2d(3)
    model = nn.Sequential(shared, nn.Conv2d(3, 3, 1), shared, nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5))
    x = torch.randn(4, 3, 5, 5)
    logits, statistics = StatisticsTeacher(model)(x)
    assert [len(m) for m in statistics.means] == [3, 3, 5]
    torch.testing.assert_close(statistics.means[0], x.mean((0, 2, 3)))
    torch.testing.assert_close(logits, model.eval()(x))


NO_BATCH_NORM = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
UNTRACKED = nn.Sequential(
    nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()
)
NAN = tiny_teacher()
NAN[3].weight.data[0, 0, 0, 0] = float("nan")


@pytest.mark.parametrize(
    ("teacher", "options", "message"),
    [
        (NO_BATCH_NORM, {}, "teacher: has no batch-norm layer"),
        (UNTRACKED, {}, "teacher: batch norm '1' keeps no running statistics"),
        (NAN, {}, "teacher: '3.weight' holds NaN"),
        (tiny_teacher(num_classes=7), {}, r"num_classes: 4 given, .* shape \(N, 7\)"),
        (tiny_teacher(channels=3), {}, r"teacher: does not take .* shape \(2, 2, 8, 8\)"),
        (None, {"epochs": -1}, "epochs: must be an int >= 0, got -1"),
        (None, {"steps_per_epoch": 0}, "steps_per_epoch: must be an int >= 1, got 0"),
        (None, {"warmup_epochs": 1.5}, "warmup_epochs: must be an int >= 0, got 1.5"),
        (None, {"calibration_batches": 0}, "calibration_batches: .* got 0"),
        (None, {"schedule": "warm"}, "schedule: .* got 'warm'"),
        (None, {"warmup_epochs": 9}, "warmup_epochs: must be <= epochs = 3, got 9"),
        (
            None,
            {"student_lr": float("nan")},
            "student_lr: must be a number > 0 and finite, got nan",
        ),
        (None, {"temperature": 0.0}, "temperature: must be a number > 0 and finite, got 0.0"),
        (None, {"alpha": -1.0}, "alpha: must be a number >= 0 and finite, got -1.0"),
    ],
)
def test_bad_arguments(teacher, options, message):
    with pytest.raises(gdfq.InputError, match=message):
        tiny_trainer(teacher, **options)


def test_a_number_of_classes_has_the_bounds_of_a_recipe():
    def trainer(num_classes):
        teacher = tiny_teacher()
        student = gdfq.quantize_model(teacher, 4, 4)
        generator = gdfq.models.Generator(4, 8, channels=2, latent_dim=5, width=8)
        return gdfq.GDFQTrainer(teacher, student, generator, num_classes, 4)

    for given in (1, True, "4"):
        message = f"^num_classes: must be an int >= 2, got {given!r}"
        with pytest.raises(gdfq.InputError, match=message):
            trainer(given)
    assert type(trainer(np.int64(4)).images.num_classes) is int


def test_calibration_takes_some_batches():
    trainer = tiny_trainer()
    for batches in (0, -1, "2"):
        message = f"^batches: must be an int >= 1, got {batches!r}$"
        with pytest.raises(gdfq.InputError, match=message):
            trainer.calibrate(batches)
    assert not trainer.calibrated


def test_a_world_is_one():
    with pytest.raises(gdfq.InputError, match=r"^world: must be of gdfq.distributed.start, got 3$"):
        tiny_trainer(world=3)


def test_a_student_of_another_teacher_is_refused():
    student = gdfq.quantize_model(tiny_teacher(num_classes=7))
    generator = gdfq.models.Generator(4, 8, channels=2)
    with pytest.raises(gdfq.InputError, match=r"student: its logits have shape \(2, 7\)"):
        gdfq.GDFQTrainer(tiny_teacher(), student, generator, 4, 8)


def test_batch_of_one_is_refused():
    teacher = tiny_teacher()
    generator = gdfq.models.Generator(4, 8, channels=2)
    with pytest.raises(gdfq.InputError, match="batch_size: must be an int >= 2, got 1"):
        gdfq.GDFQTrainer(teacher, gdfq.quantize_model(teacher), generator, 4, 1)
    with pytest.raises(
        gdfq.InputError, match="num_classes: 5 given, but the generator was made for 4"
    ):
        gdfq.GDFQTrainer(teacher, gdfq.quantize_model(teacher), generator, 5, 4)


def test_the_memory_format_is_measured_and_used(monkeypatch):
    alive = []

    def watched(make_step, uncounted):
        def make_watched_step(name):
            gc.collect()  # what earlier tests left
            alive.append(sum(type(o) is StatisticsTeacher for o in gc.get_objects()))
            return make_step(name)

        return fastest_memory_format(make_watched_step, uncounted)

    monkeypatch.setattr("gdfq.training.trainer.fastest_memory_format", watched)
    trainer = tiny_trainer(memory_format="auto")
    assert len(alive) == 2
    assert alive[0] == alive[1]  # one trial at a time
    assert set(trainer.memory_format_seconds) == {"channels_last", "contiguous"}
    assert trainer.memory_format in trainer.memory_format_seconds
    assert trainer.steps_done == 0
    assert not trainer.calibrated
    assert trainer.memory_format in trainer.describe()


def test_a_format_s_trial_that_diverges_reaches_no_other_trial():
    trainer = tiny_trainer(memory_format="auto", student_lr=1e30)
    assert set(trainer.memory_format_seconds) == {"channels_last", "contiguous"}
    assert all(value.isfinite().all() for value in trainer.student.state_dict().values())
    with pytest.raises(gdfq.NonFiniteLossError, match="Lower student_lr"):
        trainer.train()


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [((1.0, 2.0), "channels_last"), ((1.0, 0.95), "channels_last"), ((1.0, 0.5), "contiguous")],
)
def test_contiguous_must_be_clearly_faster(monkeypatch, seconds, chosen):
    now = [0.0]
    monkeypatch.setattr("gdfq.training.memory_format.time.perf_counter", lambda: now[0])

    def make_step(name):
        def step():
            now[0] += dict(zip(("channels_last", "contiguous"), seconds, strict=True))[name]
            return {"student": torch.zeros(())}

        return step

    got, measured = fastest_memory_format(make_step, uncounted=2)
    assert got == chosen
    assert tuple(measured.values()) == pytest.approx(seconds)


def test_first_steps_of_a_memory_format_are_not_counted(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("gdfq.training.memory_format.time.perf_counter", lambda: now[0])

    def make_step(name):
        takes = iter([0.5, 0.5, 5.0, 4.0, 3.0])

        def step():
            now[0] += next(takes)
            return {"student": torch.zeros(())}

        return step

    assert fastest_memory_format(make_step, uncounted=2)[1]["channels_last"] == pytest.approx(3)


@pytest.mark.parametrize("name", ["channels_last", "contiguous"])
def test_a_given_memory_format_is_taken(name):
    trainer = tiny_trainer(memory_format=name)
    weight = trainer.student.get_submodule("3").weight
    assert weight.is_contiguous(memory_format=TORCH_FORMATS[name])
    assert not trainer.memory_format_seconds


def test_formats_train_alike():
    first, second = (tiny_trainer(memory_format=name) for name in ("channels_last", "contiguous"))
    for _ in range(6):
        ours, theirs = first.step(), second.step()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


def test_bf16_trains_with_float32_ranges_and_parameters():
    exact, trainer = tiny_trainer(), tiny_trainer(precision="bf16")
    for _ in range(6):
        expected, losses = exact.step(), trainer.step()
    assert torch.isfinite(losses["student"])
    assert abs(losses["generator"] - expected["generator"]) < 0.05 * expected["generator"]
    assert losses["generator"] != expected["generator"]
    tensors = {**trainer.student.state_dict(), **trainer.generator.state_dict()}
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float32}


def test_tf32_is_for_gpus():
    with pytest.raises(gdfq.InputError, match="precision: 'tf32' needs a CUDA device"):
        tiny_trainer(precision="tf32")


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("own", ["ieee", "tf32"])
def test_the_process_keeps_its_own_precision(precision, own):
    backends = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = own
        with multiplications(precision, torch.device("cuda")):
            expected = "ieee" if precision == "fp32" else "tf32"
            assert [b.fp32_precision for b in backends] == [expected] * 2
        assert [b.fp32_precision for b in backends] == [own] * 2
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value


@pytest.mark.parametrize(
    ("option", "value"),
    [("precision", "fp8"), ("memory_format", "nhwc"), ("fuse", "yes"), ("cuda_graph", 2)],
)
def test_options_that_are_not_there(option, value):
    with pytest.raises(gdfq.InputError, match=f"{option}: must be one of .* got {value!r}"):
        tiny_trainer(**{option: value})
