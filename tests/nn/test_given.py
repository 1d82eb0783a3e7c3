"""Networks as callers give them: what is around them, what they change, what cannot be trained."""

import threading
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import gdfq
from gdfq.nn.given import call_and_keep_images
from gdfq.sources import load_teacher
from gdfq.training import Start, TrainerCallback
from tests.helpers.tiny import EACH_PART, tiny_teacher, tiny_trainer

QUICK = {"epochs": 1, "warmup_epochs": 0, "steps_per_epoch": 1, "calibration_batches": 1}


def generator(kind=gdfq.models.Generator, **options):
    usual = {"num_classes": 4, "image_size": 8, "channels": 2, "latent_dim": 10, "width": 8}
    return kind(**{**usual, **options})


def trainer_of(teacher=None, student=None, made=None):
    teacher = teacher or tiny_teacher()
    student = student or gdfq.quantize_model(tiny_teacher())
    made = made if made is not None else generator()
    return gdfq.GDFQTrainer(teacher, student, made, 4, 16, memory_format="contiguous", **QUICK)


class Inner(nn.Module):
    """A trained network with something of its own around it."""

    def __init__(self, before=None, behind=None):
        super().__init__()
        self.stem, self.rest = tiny_teacher()[:3], tiny_teacher()[3:]
        self.before, self.behind = before, behind

    def forward(self, x):
        x = x if self.before is None else self.before(x)
        y = self.rest(self.middle(x))
        return y if self.behind is None else self.behind(y)

    def middle(self, x):
        return self.stem(x)


class StemWithoutGradients(Inner):
    def middle(self, x):
        with torch.no_grad():
            return self.stem(x)


class StemInInferenceMode(Inner):
    def middle(self, x):
        with torch.inference_mode():
            return self.stem(x)


class Detached(Inner):
    def middle(self, x):
        return self.stem(x).detach()


class TwoInputs(Inner):
    def forward(self, x, y):
        return super().forward(x) + y.mean()


class WithLock(Inner):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class OnlyInTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return (self.head(y) if self.training else y).mean((2, 3))


def own_norm():
    return nn.Sequential(nn.Conv2d(2, 4, 7), FrozenBatchNorm2d(4), nn.AvgPool2d(2), nn.Flatten())


LOGITS = "in evaluation mode, not one tensor of logits"
TEACHERS = {
    "a dict": (lambda: Inner(behind=lambda y: {"logits": y}), f"returns a dict {LOGITS}"),
    "a tuple": (lambda: Inner(behind=lambda y: (y, y)), f"returns a tuple {LOGITS}"),
    "None": (lambda: Inner(behind=lambda y: None), f"returns None {LOGITS}"),
    "complex": (lambda: Inner(behind=lambda y: y + 0j), "returns a tensor of torch.complex64"),
    "sparse": (lambda: Inner(behind=torch.Tensor.to_sparse), "torch.float32, torch.sparse_coo, in"),
    "classes": (lambda: Inner(behind=lambda y: y.argmax(1)), "returns a tensor of torch.int64"),
    "two inputs": (TwoInputs, "does not take the .* missing 1 required positional argument: 'y'"),
    "NaN": (lambda: Inner(behind=lambda y: y + (y - 1e9).log()), "has NaN or infinite values"),
    "on meta": (lambda: tiny_teacher().to("meta"), "0.weight is on the meta device"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(3, 3)), "0.weight has no shape yet"),
    "not copied": (WithLock, "WithLock cannot be copied .*lock"),
    "float64": (lambda: tiny_teacher().double(), "does not take the generator's images"),
    "detached": (Detached, "there is none: they do not depend on it"),
    "inference mode": (StemInInferenceMode, "there is none: they do not depend on it"),
    "skipped head": (OnlyInTraining, "no batch-norm layer that is called .* the first is 'head'"),
    "own norm": (own_norm, "'1' is a FrozenBatchNorm2d, a kind of batch norm whose statistics"),
    "no module": (lambda: [1], "must be an nn.Module, got list"),
}


@pytest.mark.parametrize("case", TEACHERS)
def test_teachers_that_cannot_teach_are_refused_at_once(case):
    make, message = TEACHERS[case]
    with pytest.raises(gdfq.InputError, match=f"^teacher: .*{message}"):
        trainer_of(make())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_scripts_are_refused_and_what_is_around_a_network_is_taken_off():
    model = tiny_teacher()
    script = torch.jit.script(model)
    for entrance, name in ((gdfq.quantize_model, "model"), (trainer_of, "teacher")):
        with pytest.raises(gdfq.InputError, match=f"^{name}: is a TorchScript module"):
            entrance(script)
    expected = trainer_of(model).train().state_dict()
    around = (nn.DataParallel, torch.compile, torch.optim.swa_utils.AveragedModel)
    for wrap in around:
        trained = trainer_of(wrap(model), gdfq.quantize_model(wrap(model))).train().state_dict()
        assert trained.keys() == expected.keys()
    with pytest.raises(gdfq.InputError, match="student: is trained in place; give the network in"):
        trainer_of(student=nn.DataParallel(gdfq.quantize_model(model)))


class Threefold(nn.DataParallel):
    def forward(self, x):
        return super().forward(x) * 3


def hooked(wrap, register):
    wrapped = wrap(tiny_teacher())
    getattr(wrapped, register)(lambda *args: None)
    return wrapped


def with_own_forward():
    wrapped = nn.DataParallel(tiny_teacher())
    inner = wrapped.forward
    wrapped.forward = lambda x: inner(x) * 3
    return wrapped


@pytest.mark.parametrize(
    "make",
    [
        *(
            partial(hooked, wrap, register)
            for wrap in (nn.DataParallel, torch.compile, torch.optim.swa_utils.AveragedModel)
            for register in ("register_forward_hook", "register_forward_pre_hook")
        ),
        lambda: Threefold(tiny_teacher()),
        with_own_forward,
    ],
)
def test_what_is_around_a_network_and_computes_something_is_refused(make):
    model = make().eval()
    around = f"the {type(model).__name__} around the network has forward hooks or a forward of its"
    for entrance, name in (
        (gdfq.quantize_model, "model"),
        (trainer_of, "teacher"),
        (partial(gdfq.quantize, image_size=8), "model"),
    ):
        with pytest.raises(gdfq.InputError, match=f"^{name}: {around}"):
            entrance(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_script_within_a_network_is_taken_if_it_has_no_weights():
    layers = tiny_teacher()
    model = nn.Sequential(*layers[:5], torch.jit.script(nn.ReLU()), *layers[6:]).eval()
    student = gdfq.quantize_model(model, 8, 8)
    trained = tiny_trainer(model, student=student, student_lr=1e-9).train()
    x = torch.randn(64, 2, 8, 8)
    with torch.no_grad():
        expected, found = model(x), trained(x)
    assert (found - expected).norm() < 0.05 * expected.norm()
    for made in (torch.jit.script(layers[3]), torch.jit.trace(layers[3], torch.randn(1, 8, 8, 8))):
        model[3] = made
        for entrance, name in ((gdfq.quantize_model, "model"), (trainer_of, "teacher")):
            with pytest.raises(gdfq.InputError, match=f"^{name}: 3 is a TorchScript module"):
                entrance(model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Inner(behind=lambda y: (y,)), f"returns a tuple {LOGITS}"),
        (TwoInputs, "does not take the generator's images .* argument: 'y'"),
        (lambda: gdfq.quantize_model(tiny_teacher()).requires_grad_(False), "has no parameter to"),
    ],
)
def test_students_that_cannot_learn_are_refused_at_once(make, message):
    with pytest.raises(gdfq.InputError, match=f"^student: .*{message}"):
        trainer_of(student=make())


class Pair(gdfq.models.Generator):
    def forward(self, z, labels):
        return super().forward(z, labels), z


class Frozen(gdfq.models.Generator):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(generator, Pair), r"must return images \(N, C, H, W\) .*, got a tuple"),
        (partial(generator, Frozen), "has no parameter to train"),
        (lambda: generator().to("meta"), "is on the meta device"),
        (nn.Identity, "has no parameter to train"),
        (lambda: nn.Linear(10, 4), "must have an int attribute latent_dim"),
        (lambda: "none", "must be an nn.Module, got str"),
    ],
)
def test_generators_that_cannot_learn_are_refused_at_once(make, message):
    with pytest.raises(gdfq.InputError, match=f"^generator: .*{message}"):
        trainer_of(made=make())


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_gradients_are_on_whatever_the_caller_has_switched_off(without):
    made = generator()
    expected = trainer_of(made=generator()).train().state_dict().keys()
    with without():
        trained = trainer_of(tiny_teacher(), None, made).train()
    assert trained.state_dict().keys() == expected
    assert any(p.grad is not None for p in trained.parameters())
    with torch.inference_mode(), pytest.raises(gdfq.InputError, match="generator: was made in"):
        trainer_of()


def by_torch(n, x):
    return torch.batch_norm(
        x, n.weight, n.bias, n.running_mean, n.running_var, False, 0.1, n.eps, True
    )


def by_aten(n, x):
    args = (n.weight, n.bias, n.running_mean, n.running_var, False, 0.1, n.eps, False)
    return torch.ops.aten.batch_norm(x, *args)


def by_arithmetic(n, x):
    scale = n.weight / (n.running_var + n.eps).sqrt()
    return x * scale.view(-1, 1, 1) + (n.bias - n.running_mean * scale).view(-1, 1, 1)


class OwnNorm(Inner):
    """The second batch norm is computed by ``norm``, and ``first`` leaves the first one out."""

    def __init__(self, norm, first=True):
        super().__init__()
        self.norm, self.first = norm, first

    def forward(self, x):
        x = self.stem(x) if self.first else self.stem[0](x).relu()
        return self.rest[2:](self.norm(self.rest[1], self.rest[0](x)))


def trained_with_norms(model):
    start = Start(bn_reestimate=True, bn_reestimate_end=True)
    trainer = tiny_trainer(model, 8, student_lr=1e-9, start=start)
    return trainer, trainer.train().state_dict()


@pytest.mark.parametrize("norm", [by_torch, by_aten])
def test_batch_norms_are_learned_from_and_corrected_by_whichever_operator(norm):
    _, expected = trained_with_norms(Inner().eval())
    trainer, found = trained_with_norms(OwnNorm(norm).eval())
    assert "batch norms:" not in trainer.describe()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
    tiny_trainer(OwnNorm(norm, first=False).eval()).train()


def test_batch_norms_of_other_operations_are_named():
    model = OwnNorm(by_arithmetic).eval()
    trainer, _ = trained_with_norms(model)
    line = "batch norms: the statistics of 1 of 2 are neither learned from nor corrected, "
    assert line in trainer.describe()
    with pytest.raises(
        gdfq.InputError, match=r"batch norm 'rest\.4' cannot be recorded: other oper"
    ):
        tiny_trainer(OwnNorm(by_arithmetic, first=False).eval())
    with pytest.warns(UserWarning, match=line):
        gdfq.quantize(
            model, 4, 8, progress=False, device="cpu", memory_format="contiguous", **QUICK
        )


def test_a_network_frozen_as_a_whole_is_trained_and_what_stays_frozen_is_said():
    usual, frozen = tiny_teacher(), tiny_teacher().requires_grad_(False)
    first, second = (trainer_of(t, gdfq.quantize_model(t), seeded()) for t in (usual, frozen))
    for name, value in first.train().state_dict().items():
        assert torch.equal(value, second.train().state_dict()[name])
    assert "frozen" not in second.describe()
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    usual[0].weight.requires_grad_(False)
    trainer = trainer_of(usual, gdfq.quantize_model(usual))
    assert trainer.describe().endswith("frozen: 1 of 8 parameters: 0.weight")
    assert torch.equal(trainer.train().get_submodule("0").weight, usual[0].weight)


def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return generator()


def test_a_stem_without_gradients_teaches_as_one_with():
    states = []
    for model in (Inner().eval(), StemWithoutGradients().eval()):
        trainer = trainer_of(model, gdfq.quantize_model(model), seeded())
        trainer.train()
        states.append({**trainer.student.state_dict(), **trainer.generator.state_dict()})
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def halved(x):
    x -= 0.5
    x /= 0.25
    return x


def halved_by_methods(x):
    return x[:].sub_(0.5).div_(0.25)


@pytest.mark.parametrize("before", [halved, halved_by_methods])
def test_a_network_that_normalizes_in_place_leaves_its_images_to_the_student(before):
    model, pure = Inner(before).eval(), Inner(lambda x: (x - 0.5) / 0.25).eval()
    states = []
    for network in (model, pure):
        trainer = tiny_trainer(
            network,
            student=gdfq.quantize_model(network, 8, 8),
            start=Start(act_ranges="mse", bn_reestimate=True, bn_reestimate_end=True),
        )
        states.append(trainer.train())
    images = torch.randn(16, 2, 8, 8)
    kept = images.clone()
    with torch.no_grad():
        answers = [student(images) for student in states]
    assert torch.equal(images, kept)
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)


def test_an_evaluation_leaves_its_images_as_they_are():
    model = Inner(halved).eval()
    images = torch.randn(64, 2, 8, 8)
    with torch.no_grad():
        labels = model(images.clone()).argmax(1)
    kept = images.clone()
    loaded = load_teacher("memory:Inner", network=model, image_size=8)
    for _ in range(2):
        with torch.no_grad():
            assert torch.equal(loaded.network(images).argmax(1), labels)
    assert torch.equal(images, kept)
    assert not model._forward_pre_hooks


def test_only_a_network_that_changes_its_images_gets_copies():
    model, images = tiny_teacher(), torch.randn(2, 2, 8, 8)
    call_and_keep_images(model, images)
    assert not model._forward_pre_hooks


def test_modes_that_a_callback_leaves_behind_change_nothing():
    class Careless(TrainerCallback):
        def on_step(self, trainer, losses):
            trainer.student.train()
            trainer.teacher.train()
            trainer.generator.eval()

    careless, careful = tiny_trainer(), tiny_trainer()
    student, expected = careless.train(Careless()), careful.train()
    assert not any(module.training for module in student.modules())
    for name, value in expected.state_dict().items():
        assert torch.equal(value, student.state_dict()[name]), name


@pytest.fixture(params=[torch.float64, torch.bfloat16])
def other_default(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(before)


def trained_with_default(dtype):
    torch.set_default_dtype(torch.float32)
    teacher = tiny_teacher()
    student, made = gdfq.quantize_model(teacher, 3, 3, learned_ranges="both"), seeded()
    torch.set_default_dtype(dtype)
    start = Start(act_ranges="mse", bn_reestimate=True, equalize=True)
    trainer = gdfq.GDFQTrainer(
        *(teacher, student, made, 4, 16), memory_format="contiguous", start=start,
        parts=EACH_PART["all"], **QUICK,
    )  # fmt: skip
    return trainer.train().state_dict()


def test_another_default_dtype_changes_nothing(other_default):
    found = trained_with_default(torch.get_default_dtype())
    for name, value in trained_with_default(torch.float32).items():
        assert torch.equal(value, found[name]), name


def test_a_run_with_another_default_dtype_is_in_float32(other_default, tmp_path):
    model = tiny_teacher().float()
    result = gdfq.quantize(
        model, 4, 8, batch_size=16, epochs=2, warmup_epochs=1, steps_per_epoch=1, progress=False,
        weight_bits=8, act_bits=8, calibration_batches=2, memory_format="contiguous", device="cpu",
    )  # fmt: skip
    x = torch.randn(64, 2, 8, 8, dtype=torch.float32)
    with torch.no_grad():
        expected, found = model(x), result.student(x)
    assert (found - expected).norm() < 0.05 * expected.norm()
    result.save(tmp_path / "student.safetensors")
    assert torch.equal(gdfq.load(tmp_path / "student.safetensors", model)(x), found)
    assert gdfq.open_run(result.folder, model).report(tmp_path / "report.html").is_file()


def test_networks_by_name_are_in_float32_whatever_is_the_default(other_default):
    network = load_teacher("gdfq:resnet20", "random", image_size=8, num_classes=4).network
    assert {p.dtype for p in network.parameters()} == {torch.float32}
