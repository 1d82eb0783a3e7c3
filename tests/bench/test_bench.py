import io

import pytest
import torch
from rich.console import Console

import gdfq
from gdfq import memory
from gdfq.bench.formulations import RIVALS, Settings, check_rivals, make
from gdfq.bench.measure import PHASES, Measurement, measure
from gdfq.bench.networks import WORKLOADS, Workload, build
from gdfq.bench.plain import PlainGenerator, PlainTrainer, QuantizedActivation, plain_student
from gdfq.bench.report import traffic_table
from gdfq.distributed import Traffic
from gdfq.errors import InputError
from gdfq.nn import QAct
from tests.training.test_capture import NoHost

SMALL = Workload("gdfq:resnet20", 8, 4, 10, False)


@pytest.fixture(autouse=True)
def allocator(monkeypatch):
    """The tests' process keeps its allocator as it is."""
    monkeypatch.setattr("gdfq.memory._set", lambda settings: True)


def test_ours_and_rivals_are_timed_in_turns():
    settings = Settings(steps=2, trainer={"memory_format": "contiguous"})
    results, trainer = measure(SMALL, settings, ["plain", "frozen"], memory=False)
    assert [r.name for r in results] == ["gdfq", "plain PyTorch", "plain, teacher frozen"]
    assert all(len(r.seconds) == 2 and min(r.seconds) > 0 for r in results)
    ours = results[0]
    assert set(ours.phases) == set(PHASES)
    assert sum(ours.phases.values()) == pytest.approx(ours.median, rel=0.5)
    assert 0 < ours.convolutions < 1
    assert trainer.steps_done == 2 + 2 + 1
    assert not trainer.generator._forward_hooks


@pytest.mark.parametrize("kept", [True, False])
def test_the_allocator_is_left_as_it_was(monkeypatch, kept):
    calls = []
    monkeypatch.setattr("gdfq.memory._set", calls.append)
    (memory.keep_freed_memory if kept else memory.return_freed_memory)()
    before = calls.pop()
    measure(SMALL, Settings(steps=1, trainer={"memory_format": "contiguous"}), [], memory=False)
    assert len(calls) > 1
    assert calls[-1] == before


def test_warm_up_has_no_student():
    settings = Settings(steps=1, warm_up=True, trainer={"memory_format": "contiguous"})
    (ours,), _ = measure(SMALL, settings, [], memory=False)
    assert ours.phases["student"] == 0
    assert ours.phases["generator"] > 0


def test_peak_memory_is_measured():
    settings = Settings(steps=1, trainer={"memory_format": "contiguous"})
    (ours,), _ = measure(Workload("gdfq:resnet20", 32, 64, 10, False), settings, [])
    # One activation of the first layer is 4 MB, and dozens are kept for the backward pass.
    assert 50e6 < ours.peak_bytes < 2e9


def test_plain_is_the_same_algorithm():
    """The plain formulation's losses and updates, for one step, are ours."""
    torch.manual_seed(0)
    teacher = build(SMALL)
    generator = gdfq.models.Generator(10, 8)
    plain = PlainTrainer(teacher, generator, 4, 4, 4, seed=3)
    ours = gdfq.GDFQTrainer(
        teacher,
        gdfq.quantize_model(teacher, 4, 4),
        generator,
        10,
        4,
        warmup_epochs=0,
        memory_format="contiguous",
        seed=3,
    )
    ours.calibrate(1)
    ours.rng.set_state(plain.rng.get_state())
    # One range for all: the plain network has one for each module, ours for each use.
    acts = (QAct, QuantizedActivation)
    for act in (m for t in (ours, plain) for m in t.student.modules() if isinstance(m, acts)):
        act.lo.fill_(0)
        act.hi.fill_(3)
    mine, theirs = ours.step(), plain.step()
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=1e-4)
    for network in ("generator", "student"):
        pairs = zip(
            getattr(ours, network).named_parameters(), getattr(plain, network).parameters(),
            strict=True,
        )  # fmt: skip
        for (name, p), q in pairs:
            error = (p.grad - q.grad).norm() / q.grad.norm().clamp(min=1e-3)
            assert error < 0.05, (name, error)


def test_plain_generator_makes_the_same_images():
    torch.manual_seed(0)
    for conditional in (False, True):
        ours = gdfq.models.Generator(10, 8, conditional_bn=conditional)
        plain = PlainGenerator(10, 8, conditional_bn=conditional)
        plain.load_state_dict(ours.state_dict())
        z, labels = torch.randn(6, 100), torch.arange(6)
        torch.testing.assert_close(ours(z, labels), plain(z, labels), rtol=1e-4, atol=1e-5)


def test_the_plain_teacher_requires_gradients_unless_frozen():
    settings = Settings()
    assert all(p.requires_grad for p in make("plain", SMALL, settings).teacher.parameters())
    assert not any(p.requires_grad for p in make("frozen", SMALL, settings).teacher.parameters())


def test_rivals_compute_in_our_precision_unless_told():
    bf16 = {"precision": "bf16"}
    assert make("plain", SMALL, Settings()).precision == "fp32"
    assert make("plain", SMALL, Settings(trainer=bf16)).precision == "bf16"
    told = Settings(trainer=bf16, rival_precision="fp32")
    assert make("frozen", SMALL, told).precision == "fp32"


def test_plain_trains_in_bf16():
    torch.manual_seed(0)
    # Of few images, or of 4-bit codes, the rounding of bf16 changes a loss by more than a tenth.
    arguments = build(SMALL), gdfq.models.Generator(10, 8), 32, 8, 8
    exact, rough = (PlainTrainer(*arguments, precision=p).step() for p in ("fp32", "bf16"))
    for name in exact:
        assert exact[name] != rough[name]
        torch.testing.assert_close(rough[name], exact[name], rtol=0.1, atol=0.05)


def test_what_needs_a_gpu_is_refused_without_one():
    with pytest.raises(InputError, match="against: 'max-autotune' needs a CUDA device, got cpu"):
        check_rivals(["plain", "max-autotune"], "cpu")
    assert check_rivals(["max-autotune", "plain", "plain"], "cuda") == ["max-autotune", "plain"]
    with pytest.raises(InputError, match="captured: needs a CUDA device, the teacher is on cpu"):
        make("max-autotune", SMALL, Settings())


class OnCpu(PlainTrainer):
    """What runs inside the rival's CUDA graph, on the CPU."""

    def __init__(self, *arguments, captured, compiled, **options):
        super().__init__(*arguments, **options)
        assert captured
        assert compiled == "max-autotune-no-cudagraphs"
        parameters = self.generator.parameters()
        self.generator_optimizer = torch.optim.Adam(parameters, 1e-3, (0.5, 0.999), fused=True)


def test_the_step_that_is_captured_has_no_host_reads(monkeypatch):
    monkeypatch.setattr("gdfq.bench.formulations.PlainTrainer", OnCpu)
    trainer = make("max-autotune", SMALL, Settings())
    assert not any(p.requires_grad for p in trainer.teacher.parameters())
    for _ in range(2):
        trainer.step()
    networks = trainer.student, trainer.generator
    places = [t.data_ptr() for n in networks for t in n.state_dict().values()]
    with NoHost(trainer.rng) as mode:
        trainer.step()
    assert mode.draws == 2
    assert [t.data_ptr() for n in networks for t in n.state_dict().values()] == places


def test_ranges_are_where_the_network_is():
    teacher = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).to("meta")
    student = plain_student(teacher, 4, 4)
    assert len(list(student.buffers())) == 2
    assert {b.device.type for b in student.buffers()} == {"meta"}


def test_every_rival_has_a_name_of_its_own():
    assert len({label for label, _ in RIVALS.values()}) == len(RIVALS)


@pytest.mark.parametrize("network", WORKLOADS)
def test_networks_have_plausible_statistics(network):
    workload = WORKLOADS[network]
    if workload.image_size == 224:
        workload = Workload(workload.model, 64, 2, 10, True)
    model = build(workload)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert any(not torch.equal(m.running_mean, torch.zeros_like(m.running_mean)) for m in norms)
    assert torch.isfinite(model(torch.randn(2, 3, *(workload.image_size,) * 2))).all()


def test_images_too_small_for_the_network():
    with pytest.raises(
        InputError, match="model: torchvision:vgg16_bn does not take images of 3x4x4"
    ):
        build(Workload("torchvision:vgg16_bn", 4, 2, 10, True))


def test_growth_in_depth_is_of_this_family():
    blocks = len(build(Workload("gdfq:resnet56", 8, 2, 10, False)).layer1)
    assert blocks == 9
    with pytest.raises(InputError, match="depth: must be 6 n \\+ 2 with n >= 1, got 21"):
        gdfq.models.cifar_resnet(21, 10)


def test_collectives_are_added_up_by_purpose():
    traffic = {"first": Traffic(2, 3000), "second": Traffic(1, 500)}
    ours = Measurement(
        "gdfq", [1.0], 1.0, traffic=traffic, calibration_traffic={"x": Traffic(4, 8)}
    )
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(traffic_table(ours, 2))
    rows = [line.replace("│", " ").split() for line in console.export_text().splitlines()]
    assert ["step", "first", "2", "3,000"] in rows
    assert ["step", "all", "3", "3,500"] in rows
    assert ["calibration", "all", "4", "8"] in rows
