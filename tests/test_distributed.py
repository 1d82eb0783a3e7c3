"""Many processes train as one."""

import math
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gdfq
from gdfq.bench.formulations import Settings
from gdfq.bench.measure import measure
from gdfq.bench.networks import WORKLOADS
from gdfq.data import Batches, open_test_set, top1
from gdfq.distributed import World, global_moments
from gdfq.functional import bn_leaky_relu
from gdfq.models import generator as generator_module
from gdfq.nn import QAct, global_batch_norm, qact, statistics
from gdfq.nn.global_batch_norm import global_bn_leaky_relu, globalize_batch_norms
from gdfq.sources import Preprocessing
from gdfq.training import Parts, Start
from tests.helpers.processes import free_port, run_processes
from tests.helpers.tiny import tiny_teacher, tiny_trainer

STEPS, WARM_UP = 10, 4
LOSSES = ("generator", "generator_ce", "bns", "student")
TOLERANCE = 5e-6
# A bias before a batch norm has rounding for a gradient, of which Adam makes a step as of any
# other; the batch norm takes it out of all else but its running mean.
FREE = {
    "small": ("conv1.bias", "conv2.bias", "bn1.running_mean", "bn2.running_mean"),
    "own": ("linear.bias", "convolution.bias", "first.running_mean", "last.running_mean"),
}


class OwnGenerator(nn.Module):
    """A user's: stock layers, two kinds of batch norm, one of them without a fixed momentum."""

    latent_dim = 6

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(4, 6)
        self.linear = nn.Linear(6, 8 * 16)
        self.first = nn.BatchNorm1d(8 * 16, momentum=None)
        self.convolution = nn.Conv2d(8, 2, 3, padding=1)
        self.last = nn.BatchNorm2d(2, affine=False)

    def forward(self, z, labels):
        x = self.first(self.linear(z * self.embedding(labels))).relu()
        x = F.interpolate(x.view(-1, 8, 4, 4), scale_factor=2)
        return self.last(self.convolution(x))


def make_generator(kind):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if kind == "own":
            return OwnGenerator()
        conditional = kind == "conditional"
        return gdfq.models.Generator(
            4, 8, channels=2, latent_dim=10, width=8, conditional_bn=conditional
        )


# Those that rounding does not decide about, as it does about signs and counts of codes.
PARTS = Parts(
    objective="logit_mse", ce_gate=0.5, hard_sample_gamma=2.0, mix_probability=0.4, low_pass=2.0,
    bns_spread="std", bns_of="both", ema_decay=0.9,
)  # fmt: skip


# Each with ranges or starts whose values every rank must have from all of them.
RANGES = {
    "learned ranges": {"learned_ranges": "both"},
    "act_ranges": {"start": Start(act_ranges="mse")},
    "percentile": {"start": Start(act_ranges="percentile", percentile=98.0)},
    "weights": {"start": Start(weight_ranges="mse", rounding="flip")},
    "equalize": {"start": Start(equalize=True)},
    "means": {"start": Start(bias_correction=True)},
    "means and deviations": {"start": Start(bn_reestimate=True)},
    "the end": {"start": Start(bn_reestimate_end=True)},
    "dynamic ranges": {"dynamic_ranges": "both", "bits": 3},
}


def train(
    world, kind="small", seed=0, bits=4, learned_ranges="none", dynamic_ranges="none", **options
):
    """Ten steps through warm-up, calibration and fine-tuning, and what came of them."""
    teacher = tiny_teacher()
    student = gdfq.quantize_model(
        teacher, bits, bits, learned_ranges=learned_ranges, dynamic_ranges=dynamic_ranges
    )
    settings = {"epochs": 5, "steps_per_epoch": 2, "warmup_epochs": WARM_UP // 2}
    settings |= {"calibration_batches": 2, "student_lr": 1e-3, "memory_format": "contiguous"}
    trainer = gdfq.GDFQTrainer(
        teacher, student, make_generator(kind), num_classes=4, batch_size=16, seed=seed,
        **{**settings, **options}, world=world,
    )  # fmt: skip
    losses = []
    for _ in range(STEPS):
        losses.append({name: float(loss) for name, loss in trainer.step().items()})
    return {
        "losses": losses,
        "student": trainer.student.state_dict(),
        "generator": trainer.generator.state_dict(),
        "outcome": trainer.outcome.state_dict(),
        "random": trainer.rng.get_state(),
    }


def loss_difference(first, second):
    """The largest difference of any loss at any step."""
    pairs = list(zip(first["losses"], second["losses"], strict=True))
    return max(abs(a[n] - b[n]) for a, b in pairs for n in LOSSES if n in a)


def _local_backward(ctx, *grads):
    ctx.world = World()
    return GLOBAL_BACKWARD(ctx, *grads)


GLOBAL_BACKWARD = global_batch_norm._GlobalBatchNorm.backward
ALONE = {"joined_world": lambda: None}
# What of the global batch is made local, the generator, and what is planted where.
LOCAL = {
    "the generator's batch norms": ("small", generator_module, ALONE),
    "conditional batch norms": ("conditional", generator_module, ALONE),
    "a batch norm of the user's": ("own", global_batch_norm, ALONE),
    "the batch norms' gradient": (
        "small", global_batch_norm._GlobalBatchNorm, {"backward": staticmethod(_local_backward)},
    ),
    "the teacher's statistics": ("small", statistics, ALONE),
    "activation ranges": ("small", qact, ALONE),
}  # fmt: skip


def planted(world, kind, where, changes):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changes.items():
            patch.setattr(where, name, value)
        # Unfused: the fused pass would ask for the joined world before the quantizer does.
        return train(world, kind, fuse=False)


def batch_norm_errors(world):
    """Largest errors of the operator's outputs and gradients, by what its scale and shift are."""
    errors = {}
    for dtype, name in ((torch.float64, "float64"), (torch.float32, "float32")):
        for form in ("none", "channel", "sample"):
            random = torch.Generator().manual_seed(3)
            x = 5 + 2 * torch.randn(8, 6, 3, 2, generator=random, dtype=dtype)
            x += torch.arange(8, dtype=dtype).view(8, 1, 1, 1)  # ranks see different means
            grad = torch.randn(x.shape, generator=random, dtype=dtype)
            shape = {"none": None, "channel": (6,), "sample": (8, 6)}[form]
            affine = [None, None]
            if shape:
                affine = [torch.randn(shape, generator=random, dtype=dtype) for _ in range(2)]
            whole = _bn_results(
                lambda n, x, w, b: bn_leaky_relu(
                    x, n.running_mean, n.running_var, w, b, n.eps, 0.1, 0.2
                ),
                x, affine, grad,
            )  # fmt: skip
            parts = [p if form == "channel" else p if p is None else world.shard(p) for p in affine]
            ours = _bn_results(
                lambda n, x, w, b: global_bn_leaky_relu(n, x, w, b, world, 0.2),
                world.shard(x), parts, world.shard(grad),
            )  # fmt: skip
            if form == "channel":  # the trainer averages gradients: of a sum, times the ranks
                for key in ("weight", "bias"):
                    world.sum(ours[key], "test")
            sliced = {
                key: value if value.shape == ours[key].shape else world.shard(value)
                for key, value in whole.items()
            }
            errors[f"{name}, {form}"] = max(
                float((ours[key] - sliced[key]).abs().max()) for key in whole
            )
    return errors


def _bn_results(function, x, affine, grad):
    norm = nn.BatchNorm2d(6, dtype=x.dtype)
    x = x.clone().requires_grad_()
    weight, bias = (None if p is None else p.clone().requires_grad_() for p in affine)
    y = function(norm, x, weight, bias)
    y.backward(grad)
    results = {"y": y.detach(), "x": x.grad, "mean": norm.running_mean, "var": norm.running_var}
    if weight is not None:
        results |= {"weight": weight.grad, "bias": bias.grad}
    return results


def moments_far_from_zero(world):
    """Relative error of the variance of values whose mean is 1e4 of their deviations."""
    x = 1e4 + torch.randn(4096, generator=torch.Generator().manual_seed(0))
    part = world.shard(x)
    var, mean = torch.var_mean(part, correction=0)
    _, (var,) = global_moments(world, [mean.view(1)], [var.view(1)], "test")
    true = torch.var(x.double(), correction=0)
    return abs(float(var) - float(true)) / float(true)


def ranges_with_nan(world):
    act = QAct(4).train()
    x = torch.rand(4, 4)
    if world.rank == 1:
        x[1, 1] = math.nan
    with world.joined():
        act(x)
    return bool(act.hi.isfinite())


def traffic_of_a_step(world):
    """What a fine-tuning step gave to collectives, and what it should have."""
    trainer = tiny_trainer(warmup_epochs=0, world=world)
    trainer.step()
    world.traffic.clear()
    trainer.step()
    floats = {
        name: sum(p.numel() for p in network.parameters())
        for name, network in (("generator", trainer.generator), ("student", trainer.student))
    }
    expected = {
        "generator's gradients": (1, 4 * (floats["generator"] + 3)),  # with its three losses
        "student's gradients": (1, 4 * (floats["student"] + 1)),
        "teacher's statistics": (1, 8 * 2 * (8 + 12)),
        # Four layers of 8, 8, 4 and 2 channels, forward and backward.
        "generator's batch norms": (8, 2 * 8 * 2 * (8 + 8 + 4 + 2)),
    }
    return _pairs(world.traffic), expected


def traffic_of_dynamic_ranges(world):
    """Traffic of a calibration, by which ranges are dynamic."""
    sent = {}
    for dynamic in ("none", "act"):
        trainer = tiny_trainer(dynamic_ranges=dynamic, world=world)
        world.traffic.clear()
        trainer.calibrate(1)
        sent[dynamic] = set(world.traffic)
    return sent


def _pairs(traffic):
    return {purpose: (given.calls, given.bytes) for purpose, given in traffic.items()}


def benchmark(world):
    workload = replace(WORKLOADS["resnet20"], batch_size=4, image_size=8)
    settings = Settings(steps=1, trainer={"memory_format": "contiguous"})
    ours = measure(workload, settings, [], False, world)[0][0]
    return _pairs(ours.traffic), _pairs(ours.calibration_traffic)


def accuracies(world):
    """Of all ranks together, and of this one with all images; and what a broken picture does."""
    images = Preprocessing(num_classes=4, image_size=8, channels=1, resize=8, mean=[0.0], std=[1.0])
    test_set = open_test_set("fashion-mnist", None, 10)
    results = []
    for w in (world, World()):
        batches = Batches(test_set, images, rank=w.rank, ranks=w.size)
        results += [top1(tiny_teacher(10, channels=1), batches, w), w.total(batches.pictures)]
    try:
        top1(tiny_teacher(channels=1), broken(world.rank), world)
    except gdfq.InputError as error:
        results.append(str(error))
    return results


def broken(rank):
    yield torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    if rank == 1:
        raise gdfq.InputError("data: cannot read it")


def in_two_processes(world):
    return {
        "runs": {
            **{kind: train(world, kind) for kind in ("small", "conditional", "own")},
            "unfused": train(world, fuse=False),
            "channels_last": train(world, memory_format="channels_last"),
            "parts": train(world, parts=PARTS),
            **{name: train(world, **options) for name, options in RANGES.items()},
            # Rank 0's seed counts, and its networks.
            "other seeds": train(world, seed=world.rank),
        },
        "planted": {name: planted(world, *local) for name, local in LOCAL.items()},
        "batch_norm": batch_norm_errors(world),
        "moments": moments_far_from_zero(world),
        "nan": ranges_with_nan(world),
        "format": tiny_trainer(memory_format="auto", world=world).memory_format,
        "any": [world.any(world.rank == 1), world.any(False)],
        "total": world.total(world.rank + 5),
        "traffic": traffic_of_a_step(world),
        "dynamic traffic": traffic_of_dynamic_ranges(world),
        "benchmark": benchmark(world),
        "accuracy": accuracies(world),
    }


def in_four_processes(world):
    return {"runs": {kind: train(world, kind) for kind in ("small", "conditional")}}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run_processes(in_two_processes, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return run_processes(in_four_processes, 4, tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module")
def one():
    kinds = {kind: train(World(), kind) for kind in ("small", "conditional", "own")}
    return {
        **kinds,
        "unfused": train(World(), fuse=False),
        "channels_last": train(World(), memory_format="channels_last"),
        "parts": train(World(), parts=PARTS),
        **{name: train(World(), **options) for name, options in RANGES.items()},
        "other seeds": kinds["small"],
    }


def assert_trained_alike(one, ranks, name, size):
    first, free = ranks[0]["runs"][name], FREE["own" if name == "own" else "small"]
    difference = loss_difference(one, first)
    print(f"{size} processes, {name}: largest difference of losses {difference:.1e}")
    assert difference < TOLERANCE
    for network in ("student", "generator", "outcome"):
        for key, value in one[network].items():
            if network != "generator" or key not in free:
                torch.testing.assert_close(
                    first[network][key], value, rtol=1e-4, atol=1e-5, msg=f"{network}: {key}"
                )
    assert torch.equal(one["random"], first["random"])
    for other in ranks[1:]:  # ranks do not drift apart: they are equal, bit for bit
        other = other["runs"][name]
        assert other["losses"] == first["losses"]
        assert torch.equal(other["random"], first["random"])
        for network in ("student", "generator", "outcome"):
            assert all(torch.equal(other[network][k], v) for k, v in first[network].items())


@pytest.mark.parametrize(
    "name",
    ["small", "conditional", "own", "unfused", "channels_last", "other seeds", "parts", *RANGES],
)
def test_two_processes_train_as_one(one, two, name):
    assert_trained_alike(one[name], two, name, 2)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["small", "conditional"])
def test_four_processes_train_as_one(one, four, name):
    assert_trained_alike(one[name], four, name, 4)


@pytest.mark.parametrize("name", LOCAL)
def test_what_is_local_instead_of_global_is_noticed(one, two, name):
    difference = loss_difference(one[LOCAL[name][0]], two[0]["planted"][name])
    print(f"{name} local: largest difference of losses {difference:.1e}")
    assert difference > 20 * TOLERANCE


def test_batch_norm_over_processes_is_batch_norm_of_the_whole(two):
    for rank in two:
        for name, error in rank["batch_norm"].items():
            assert error < (1e-12 if "64" in name else 2e-5), name


def test_variances_are_sound_far_from_zero(two):
    assert two[0]["moments"] < 1e-5


def test_a_nan_on_one_rank_spoils_the_range_on_all(two):
    assert [rank["nan"] for rank in two] == [False, False]


def test_processes_agree(two):
    assert two[0]["format"] == two[1]["format"]
    assert [rank["any"] for rank in two] == [[True, False]] * 2
    assert [rank["total"] for rank in two] == [11, 11]


def test_collectives_are_counted(two):
    for rank in two:
        counted, expected = rank["traffic"]
        assert counted == expected


def test_dynamic_ranges_send_nothing(two):
    for rank in two:
        assert "activation ranges" in rank["dynamic traffic"]["none"]
        assert not rank["dynamic traffic"]["act"]


def test_the_benchmark_tells_what_a_step_and_a_calibration_batch_send(two):
    step, calibration = two[0]["benchmark"]
    assert {purpose: calls for purpose, (calls, _) in step.items()} == {
        "generator's batch norms": 8, "teacher's statistics": 1, "generator's gradients": 1,
        "student's gradients": 1,
    }  # fmt: skip
    # 19 activations, two float32 each; the generator's forward passes.
    assert calibration["activation ranges"] == (19, 19 * 8)
    assert calibration["generator's batch norms"][0] == 4
    assert len(calibration) == 2


def test_evaluation_is_shared_and_its_result_the_same(two):
    for rank in two:
        shared, pictures, alone, all_pictures, _ = rank["accuracy"]
        assert shared == alone
        assert pictures == all_pictures == 10_000


def test_a_picture_that_one_rank_cannot_read_ends_measuring_on_all(two):
    assert [rank["accuracy"][-1] for rank in two] == [
        "data: another process cannot read its test images", "data: cannot read it",
    ]  # fmt: skip


def test_a_process_alone_calls_no_collective(monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("a collective was called")

    for name in ("all_reduce", "broadcast", "all_gather", "barrier", "init_process_group"):
        monkeypatch.setattr(f"torch.distributed.{name}", refused)
    monkeypatch.delenv("RANK", raising=False)
    world = gdfq.distributed.start()
    assert (world.rank, world.size) == (0, 1)
    trainer = tiny_trainer(memory_format="auto", world=world)
    trainer.train()
    assert not any(isinstance(m, global_batch_norm._Global) for m in trainer.generator.modules())
    gdfq.distributed.stop(world)


def test_the_batch_must_be_divisible():
    with pytest.raises(gdfq.InputError, match=r"batch_size: must be a multiple of 3, .* got 16"):
        tiny_trainer(world=World(0, 3))


def test_one_process_keeps_older_images():
    with pytest.raises(gdfq.InputError, match=r"replay_batches: .* one process alone, .* has 2"):
        tiny_trainer(world=World(0, 2), parts=Parts(replay_batches=2))


def test_batch_norms_of_another_class_are_refused():
    class Whitening(nn.BatchNorm2d):
        pass

    network = nn.Sequential(nn.Conv2d(2, 3, 1), Whitening(3))
    with pytest.raises(gdfq.InputError, match="generator: '1' is a Whitening"):
        globalize_batch_norms(network, "generator")


def test_globalized_batch_norms_are_as_before_outside_of_a_joined_world():
    network = OwnGenerator()
    names = list(network.state_dict())
    z, labels = torch.randn(8, 6), torch.arange(8) % 4
    expected = network(z, labels)
    globalize_batch_norms(network, "generator")
    globalize_batch_norms(network, "generator")  # once more changes nothing
    assert isinstance(network.first, nn.BatchNorm1d)
    assert list(network.state_dict()) == names
    assert torch.equal(network(z, labels), expected)


HUNG = """
import signal, sys, time, torch
from gdfq import distributed

distributed.SECONDS_TO_LEAVE = 1.0
world = distributed.start()
signal.signal(signal.SIGTERM, lambda *_: None)  # as the command's: it waits for the step's end
print("started", flush=True)
if world.rank:
    time.sleep(600)
world.sum(torch.ones(3), "test")
"""


def test_a_process_that_waits_for_one_that_hangs_leaves_when_told():
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", HUNG], stdout=subprocess.PIPE,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for rank in ranks:
            assert rank.stdout.readline() == b"started\n"
        ranks[0].send_signal(signal.SIGTERM)
        assert ranks[0].wait(60) == 128 + signal.SIGTERM
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
            rank.stdout.close()


def test_half_an_environment_is_refused(monkeypatch):
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(gdfq.InputError, match="environment: RANK is set, but LOCAL_RANK, MASTER_A"):
        gdfq.distributed.start()


TORCHRUN = {
    "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("WORLD_SIZE", "x", "WORLD_SIZE must be a whole number >= 1, got 'x'"),
        ("WORLD_SIZE", "0", "WORLD_SIZE must be a whole number >= 1, got '0'"),
        ("WORLD_SIZE", "-2", "WORLD_SIZE must be a whole number >= 1, got '-2'"),
        ("WORLD_SIZE", "", "WORLD_SIZE must be a whole number >= 1, got ''"),
        ("RANK", "2", "RANK must be from 0 to 1, got '2'"),
        ("RANK", "-1", "RANK must be from 0 to 1, got '-1'"),
        ("RANK", "1.0", "RANK must be from 0 to 1, got '1.0'"),
        ("LOCAL_RANK", "two", "LOCAL_RANK must be from 0 to 1, got 'two'"),
        ("MASTER_PORT", "99999", "MASTER_PORT must be from 1 to 65535, got '99999'"),
        ("MASTER_PORT", "http", "MASTER_PORT must be from 1 to 65535, got 'http'"),
        ("MASTER_ADDR", "", "RANK is set, but MASTER_ADDR is not"),
    ],
)
def test_an_environment_that_is_not_torchrun_s_is_refused_in_a_line(
    monkeypatch, name, value, message
):
    for key, usual in {**TORCHRUN, name: value}.items():
        monkeypatch.setenv(key, usual)
    with pytest.raises(gdfq.InputError, match=f"^environment: {message}; use torchrun$"):
        gdfq.distributed.start()


def test_a_port_that_is_taken_is_named(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for key, value in {**TORCHRUN, "MASTER_PORT": port}.items():
            monkeypatch.setenv(key, value)
        with pytest.raises(gdfq.InputError, match=f"cannot meet .* 127.0.0.1:{port}") as caught:
            gdfq.distributed.start()
    assert "\n" not in str(caught.value)
