"""What only a GPU shows of a training step: ``make gpu-check`` runs it there.

GDFQ_TEST_DEVICE names the device; on "cpu" what has no meaning there is skipped. The rules of a
CUDA graph that show without a GPU are in ``test_step_on_device.py`` and ``test_capture.py``.
"""

import os
import warnings

import pytest
import torch

import gdfq
from gdfq.bench.formulations import Settings
from gdfq.bench.measure import measure
from gdfq.bench.networks import Workload, build
from gdfq.bench.plain import PlainTrainer
from gdfq.training.capture import WARM_UP_STEPS

DEVICE = os.environ.get("GDFQ_TEST_DEVICE")
pytestmark = pytest.mark.skipif(DEVICE is None, reason="needs GDFQ_TEST_DEVICE")
needs_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="needs GDFQ_TEST_DEVICE=cuda")
PRECISIONS = ("fp32", "tf32", "bf16") if DEVICE == "cuda" else ("fp32", "bf16")
SMALL = Workload("gdfq:resnet8", 16, 16, 10, False)


def networks():
    teacher = build(SMALL).to(DEVICE)
    torch.manual_seed(1)
    return teacher, gdfq.models.Generator(10, 16, width=16).to(DEVICE)


def make_trainer(kind=gdfq.GDFQTrainer, **options):
    teacher, generator = networks()
    settings = {
        "epochs": 9, "steps_per_epoch": 6, "warmup_epochs": 1, "calibration_batches": 2,
        "memory_format": "channels_last", "schedule": "cosine",
    }  # fmt: skip
    student = gdfq.quantize_model(teacher)
    return kind(teacher, student, generator, 10, 16, **{**settings, **options})


def run(trainer, steps):
    """Each step's losses, read after the step."""
    return [{k: float(v) for k, v in trainer.step().items()} for _ in range(steps)]


def assert_close(ours, theirs, rtol):
    for step, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert one == pytest.approx(other, rel=rtol, abs=1e-3), f"step {step}"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_captured_steps_are_eager_steps(precision):
    """In both phases, random numbers and learning rates included."""
    captured = make_trainer(precision=precision)
    eager = make_trainer(precision=precision, cuda_graph=False)
    losses = run(captured, 14)
    if DEVICE == "cuda":
        assert captured.execution == "one CUDA graph a step"
    # Rounding is amplified from step to step, at a quantizer's ties the most.
    assert_close(losses, run(eager, 14), rtol=0.02 if precision == "fp32" else 0.1)
    assert len({loss["generator"] for loss in losses}) == 14  # new noise at every step


def test_fused_steps_are_plain_ones():
    fused, plain = make_trainer(warmup_epochs=0), make_trainer(warmup_epochs=0, fuse=False)
    assert_close(run(fused, 8), run(plain, 8), rtol=0.02)


@needs_gpu
def test_the_steady_state_launches_one_graph_a_step():
    trainer = make_trainer(warmup_epochs=0)
    run(trainer, WARM_UP_STEPS + 2)
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(5):
            trainer.step()
        torch.cuda.synchronize()
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["cudaGraphLaunch"] == 5
    # Before a graph, PyTorch writes the generators' seeds and offsets to the device.
    assert {name for name in counts if name.startswith("aten::")} <= {"aten::fill_"}
    assert not any(name.startswith("gdfq::") for name in counts)


@needs_gpu
@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize("warmup_epochs", [0, 9])
def test_no_step_waits_for_the_device(cuda_graph, warmup_epochs):
    trainer = make_trainer(warmup_epochs=warmup_epochs, cuda_graph=cuda_graph)
    run(trainer, WARM_UP_STEPS + 2)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_memory_stands_still(cuda_graph):
    trainer = make_trainer(warmup_epochs=0, cuda_graph=cuda_graph)
    run(trainer, WARM_UP_STEPS + 2)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    run(trainer, 5)
    after = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    assert after[0] == before[0]
    assert after[1] == before[1] or not cuda_graph


@needs_gpu
def test_a_change_of_phase_is_captured_again():
    trainer = make_trainer()
    graphs = []
    for _ in range(2):
        run(trainer, 6)
        (step,) = trainer._captured.values()
        assert step.graph is not None
        graphs.append(step)
    assert [graph.step.__name__ for graph in graphs] == ["_warm_up_step", "_tuning_step"]


class Reading(gdfq.GDFQTrainer):
    """Reads a value in every step, which no graph can."""

    def _record(self, losses):
        float(losses["generator"])
        return super()._record(losses)


@needs_gpu
def test_what_cannot_be_captured_goes_on_without():
    reading, eager = make_trainer(Reading), make_trainer(cuda_graph=False)
    expected = run(eager, 12)
    with pytest.warns(RuntimeWarning, match="capturing the step as a CUDA graph failed"):
        losses = run(reading, 12)
    assert reading.execution.startswith("eager, capturing a CUDA graph failed: ")
    # The failed capture used up no random numbers and changed nothing.
    assert_close(losses, expected, rtol=0.02)
    torch.randn(3, device=DEVICE)  # the process's own generator draws on
    # And a capture after it works.
    trainer = make_trainer()
    run(trainer, WARM_UP_STEPS + 2)
    assert trainer.execution == "one CUDA graph a step"


def test_the_memory_format_is_measured():
    trainer = make_trainer(memory_format="auto")
    assert trainer.memory_format in trainer.memory_format_seconds
    run(trainer, 8)


@needs_gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_plain_step_in_a_graph_is_the_plain_step(precision):
    losses = []
    for captured in (True, False):
        teacher, generator = networks()
        plain = PlainTrainer(
            teacher, generator, 16, 4, 4, frozen_teacher=True, captured=captured,
            precision=precision,
        )  # fmt: skip
        losses.append(run(plain, 8))
        assert not captured or plain.captured.graph is not None
    assert_close(*losses, rtol=0.02 if precision == "fp32" else 0.1)


def test_a_step_is_measured_beside_others():
    settings = Settings(steps=2, device=DEVICE, trainer={"memory_format": "channels_last"})
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        results, trainer = measure(SMALL, settings, ["plain", "frozen"])
    assert all(len(r.seconds) == 2 and min(r.seconds) > 0 for r in results)
    assert all(r.peak_bytes > 1e6 for r in results)
    if DEVICE == "cuda":
        assert trainer.execution == "one CUDA graph a step"
