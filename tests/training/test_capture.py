"""What a CUDA graph forbids in a step, as far as it shows without a GPU, and the fallback."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gdfq.errors import InputError
from gdfq.training.capture import WARM_UP_STEPS, CapturedStep, put_back_on_failure
from tests.helpers.tiny import tiny_trainer

# Reads by the host, shapes that depend on values, constants that the host makes.
FORBIDDEN = (
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::lift_fresh",
    "aten::_unique2",
    "aten::pin_memory",
)
RANDOM = ("aten::rand", "aten::normal", "aten::uniform", "aten::bernoulli", "aten::native_dropout")


class NoHost(TorchDispatchMode):
    """Raises where a captured step would; lists the random numbers drawn."""

    def __init__(self, random):
        super().__init__()
        self.random = random
        self.draws = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name
        if name in FORBIDDEN:
            raise AssertionError(f"{name} in the step")
        if name.startswith(RANDOM):
            given = kwargs.get("generator")
            assert given is not None, f"{name} without a generator"
            assert given.initial_seed() == self.random.initial_seed()
            self.draws += 1
        return func(*args, **kwargs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"schedule": "cosine"},
        {"precision": "bf16"},
        {"learned_ranges": "both"},
        {"dynamic_ranges": "both", "bits": 3},
    ],
)
@pytest.mark.parametrize("warm_up", [True, False])
def test_a_step_has_no_host_reads(options, warm_up):
    trainer = tiny_trainer(warmup_epochs=3 if warm_up else 0, **options)
    if not warm_up:
        trainer.calibrate(1)
    trainer.step()  # the optimizers make their state
    with NoHost(trainer.rng) as mode:
        trainer.step()
    assert mode.draws >= 2


def test_the_mode_sees_a_host_read():
    with NoHost(None), pytest.raises(AssertionError, match="_local_scalar_dense"):
        float(torch.ones(()))
    with NoHost(None), pytest.raises(AssertionError, match="lift_fresh"):
        torch.tensor(1.0)
    with NoHost(torch.Generator()), pytest.raises(AssertionError, match="generator"):
        torch.randn(3)


def test_learning_rates_are_tensors_that_move():
    trainer = tiny_trainer(warmup_epochs=0, schedule="cosine")
    rate = trainer.student_update.optimizer.param_groups[0]["lr"]
    first = float(rate)
    trainer.step()
    assert trainer.student_update.optimizer.param_groups[0]["lr"] is rate
    assert 0 < float(rate) < first


class FakeGraph:
    """Runs the step in a graph's place, and like a graph writes into the captured results."""

    def __init__(self, step, results):
        self.step = step
        self.results = results

    def replay(self):
        for name, value in self.step().items():
            self.results[name].copy_(value)


def captured(monkeypatch, capture):
    """A CapturedStep that counts its runs, without a GPU."""
    runs = []

    def step():
        runs.append(len(runs))
        return {"loss": torch.zeros(())}

    made = CapturedStep(step, torch.Generator())
    monkeypatch.setattr(made, "_aside", step)
    monkeypatch.setattr(made, "_capture", lambda: capture(step))
    return made, runs


def test_every_call_is_one_step(monkeypatch):
    results = {"loss": torch.ones(())}
    made, runs = captured(monkeypatch, lambda step: (FakeGraph(step, results), results))
    for call in range(WARM_UP_STEPS + 4):
        losses = made()
        assert len(runs) == call + 1
    assert made.graph is not None
    assert losses is results
    assert float(losses["loss"]) == 0


def test_a_failed_capture_is_said_and_the_step_goes_on(monkeypatch):
    def fail(step):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    made, runs = captured(monkeypatch, fail)
    for _ in range(WARM_UP_STEPS):
        made()
    with pytest.warns(RuntimeWarning, match="it runs without one: operation not permitted"):
        made()
    for _ in range(2):
        made()
    assert len(runs) == WARM_UP_STEPS + 3
    assert made.failure == "operation not permitted when stream is capturing"


def test_the_cause_of_a_failed_capture_is_named(monkeypatch):
    def fail(step):
        try:
            raise RuntimeError("the cause")
        finally:
            raise RuntimeError("ended by a previous error")

    made, _ = captured(monkeypatch, fail)
    for _ in range(WARM_UP_STEPS):
        made()
    with pytest.warns(RuntimeWarning, match="without one: the cause"):
        made()


def test_a_trainer_says_how_it_runs(monkeypatch):
    trainer = tiny_trainer()
    assert trainer.execution == "eager, on cpu"
    assert not trainer.cuda_graph
    monkeypatch.setattr(trainer, "cuda_graph", True)
    step = trainer._compiled(trainer._warm_up_step)
    assert trainer._compiled(trainer._warm_up_step) is step
    assert trainer._compiled(trainer._tuning_step) is not step
    assert len(trainer._captured) == 1  # the other phase's memory is given back


def with_fake_graphs(monkeypatch):
    """Has the trainers' steps captured by :class:`FakeGraph`; returns the names of those steps."""
    captures = []

    def capture(made):
        captures.append(made.step.__name__)
        names = ["generator", "generator_ce", "bns", "student"]
        results = {name: torch.zeros(()) for name in names[: 4 if "tuning" in captures[-1] else 3]}
        return FakeGraph(made.step, results), results

    monkeypatch.setattr(CapturedStep, "_aside", lambda made: made.step())
    monkeypatch.setattr(CapturedStep, "_capture", capture)
    return captures


def test_a_step_is_captured_once_in_each_phase(monkeypatch):
    captures = with_fake_graphs(monkeypatch)
    eager = tiny_trainer(epochs=4, warmup_epochs=2)
    trainer = tiny_trainer(epochs=4, warmup_epochs=2)
    trainer.cuda_graph = True
    eager.train()
    trainer.train()
    assert captures == ["_warm_up_step", "_tuning_step"]
    for (name, value), other in zip(
        trainer.student.state_dict().items(), eager.student.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("name", ["batch_size", "bns_weight", "temperature", "precision"])
def test_what_a_captured_step_depends_on_cannot_change(name):
    training = tiny_trainer().training
    with pytest.raises(InputError, match=rf"^{name}: settings are frozen"):
        setattr(training, name, getattr(training, name))


class GraphGenerator:
    """PyTorch's rules for a CUDA generator that a capture has registered."""

    def __init__(self, offset=0, capturing=False):
        self.offset, self.capturing = offset, capturing

    def clone_state(self):
        return GraphGenerator(self.offset, self.capturing)

    def graphsafe_set_state(self, other):
        self.offset, self.capturing = other.offset, other.capturing


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_capture_puts_its_generators_back(error):
    generators = GraphGenerator(8), GraphGenerator(4)

    def capture(fails):
        with put_back_on_failure(generators):
            for generator in generators:
                generator.offset, generator.capturing = 100, True
            if fails:
                raise error

    with pytest.raises(error):
        capture(fails=True)
    assert [(g.offset, g.capturing) for g in generators] == [(8, False), (4, False)]
    capture(fails=False)
    assert [g.offset for g in generators] == [100, 100]


def test_generators_have_what_putting_back_needs():
    random = torch.Generator().manual_seed(3)
    kept = random.clone_state()
    expected = torch.randn(3, generator=random)
    assert torch.equal(torch.randn(3, generator=kept), expected)
    assert hasattr(random, "graphsafe_set_state")
