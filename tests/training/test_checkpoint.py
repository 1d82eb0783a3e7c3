"""A trainer's state, and the file that holds it."""

import copy
import errno
import itertools
import math
import os
import pickle
import random
import resource
import stat
from pathlib import Path

import pytest
import torch

import gdfq
from gdfq.files import write_file
from gdfq.nn import QAct
from gdfq.training import Parts, TrainerCallback
from gdfq.training.checkpoint import (
    checkpoint_path,
    checkpoints,
    newest_valid,
    read_checkpoint,
    write_checkpoint,
)
from tests.helpers.tiny import EACH_PART, tiny_trainer

STEPS = 12  # of tiny_trainer: warm-up to 4, an epoch every 4


class Recorder(TrainerCallback):
    """Keeps the epochs' losses, and stops after a step."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after
        self.epochs = []
        self.calibrated = 0
        self.steps = 0

    def on_calibrated(self, trainer):
        self.calibrated += 1

    def on_epoch(self, trainer, losses):
        self.epochs.append((trainer.steps_done, losses))

    def between_steps(self, trainer, losses):
        self.steps = trainer.steps_done

    def should_stop(self):
        return self.steps == self.stop_after


def everything(trainer):
    """All tensors and numbers of a trainer, copied, under flat names."""
    flat = {}

    def walk(path, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{path}/{key}", inner)
        else:
            flat[path] = value.clone() if isinstance(value, torch.Tensor) else value

    walk("", trainer.state_dict())
    return flat


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        same = torch.equal(value, second[key]) if torch.is_tensor(value) else value == second[key]
        assert same, key


def another_trainer(**options):
    """One with other weights and another seed than tiny_trainer's: loading must replace all."""
    trainer = tiny_trainer(**{**options, "seed": 99})
    with torch.no_grad():
        for parameter in (*trainer.student.parameters(), *trainer.generator.parameters()):
            parameter.add_(0.1)
    return trainer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"memory_format": "channels_last", "schedule": "cosine"},
        {"fuse": False, "momentum": 0.0, "precision": "bf16"},
        {"warmup_epochs": 0},
        {"warmup_epochs": 3},
        {"parts": EACH_PART["all"]},
        {"parts": EACH_PART["replay"], "memory_format": "channels_last", "precision": "bf16"},
    ],
    ids=str,
)
def test_going_on_from_a_file_is_not_having_stopped(tmp_path, options):
    whole, undisturbed = tiny_trainer(**options), Recorder()
    whole.train(undisturbed)
    expected = everything(whole)
    # In an epoch, at the end of the warm-up, in the first tuned epoch, and everywhere else once.
    for stop in (3, 4, 6) if options else (0, 1, 3, 4, 5, 6, 8, 11, 12):
        first, before = tiny_trainer(**options), Recorder(stop)
        if stop:
            first.train(before)
        assert first.steps_done == stop
        path = write_checkpoint(tmp_path, stop, {"trainer": first.state_dict()})
        second, after = another_trainer(**options), Recorder()
        second.load_state_dict(read_checkpoint(path)["trainer"])
        second.train(after)
        assert_same(everything(second), expected)
        assert before.epochs + after.epochs == undisturbed.epochs


def test_stopped_ten_times():
    expected = tiny_trainer()
    expected.train()
    trainer = tiny_trainer()
    for stop in range(1, STEPS):
        trainer.train(Recorder(stop))
        state = trainer.state_dict()
        trainer = another_trainer()
        trainer.load_state_dict(state)
    trainer.train()
    assert_same(everything(trainer), everything(expected))


def test_steps_by_hand_and_epochs_agree():
    by_hand, trained, recorder = tiny_trainer(), tiny_trainer(), Recorder()
    trained.train(recorder)
    for _ in range(6):
        by_hand.step()
    rest = Recorder()
    by_hand.train(rest)
    assert rest.epochs == recorder.epochs[1:]
    assert_same(everything(by_hand), everything(trained))


def test_the_last_sound_student_is_part_of_the_state():
    def fail(trainer):
        with pytest.raises(gdfq.NonFiniteLossError):
            trainer.train()
        return trainer.student.state_dict()

    options = {"student_lr": 1e30, "epochs": 4}
    expected = fail(tiny_trainer(**options))
    first = tiny_trainer(**options)
    first.train(Recorder(4))
    first.step()  # after which the student is not sound
    second = another_trainer(**options)
    second.load_state_dict(first.state_dict())
    kept = fail(second)
    weights = [name for name in kept if name.endswith("weight")]
    assert all(torch.equal(kept[name], expected[name]) for name in weights)
    assert all(value.isfinite().all() for value in kept.values())


def test_loading_is_in_place():
    trainer = tiny_trainer()
    for _ in range(6):
        trainer.step()
    saved = everything(trainer)
    state = read_back(trainer)

    def places():
        held = trainer.state_dict()
        kept = [*held["student"].values(), *held["generator"].values(), *held["totals"].values()]
        for name in ("student_optimizer", "generator_optimizer"):
            kept += [t for tensors in held[name].values() for t in tensors.values()]
        kept += [trainer.student_update.rate.value, trainer.generator_update.rate.value]
        return [t.data_ptr() for t in (*kept, *held["schedules"].values())]

    trainer.step()
    before = places()
    trainer.load_state_dict(state)
    assert places() == before
    assert_same(everything(trainer), saved)


def read_back(trainer):
    """The state as it will be later, the trainer's own tensors going on changing."""
    return copy.deepcopy(trainer.state_dict())


def test_loading_goes_back_to_before_the_student_was_trained():
    trainer, expected = tiny_trainer(), tiny_trainer()
    start = read_back(trainer)
    trainer.train()
    trainer.load_state_dict(start)
    assert not trainer.calibrated
    assert not trainer.student_update.optimizer.state
    quantizer = next(m for m in trainer.student.modules() if isinstance(m, QAct))
    with pytest.raises(RuntimeError, match="no batch has set the range"):
        quantizer.require_range()
    trainer.train()
    expected.train()
    assert_same(everything(trainer), everything(expected))


def test_learning_rates_go_on():
    trainer = tiny_trainer(schedule="cosine")
    for _ in range(7):
        trainer.step()
    second = another_trainer(schedule="cosine")
    second.load_state_dict(trainer.state_dict())
    rate = second.student_update.optimizer.param_groups[0]["lr"]
    assert rate is second.student_update.rate.value
    assert float(rate) == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * 3 / 8)))


def broken(change):
    def make():
        trainer = tiny_trainer()
        for _ in range(5):
            trainer.step()
        state = read_back(trainer)
        change(state)
        return state

    return make


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("random"), "state: has no random"),
        (lambda s: s.update(device="cuda"), "state: was saved on cuda, this trainer is on cpu"),
        (lambda s: s["student"].pop("0.weight"), "state: student.0.weight is missing"),
        (
            lambda s: s["generator"].update(more=torch.zeros(1)),
            "state: generator.more is in no such",
        ),
        (
            lambda s: s["student"].update({"1.bias": torch.zeros(3)}),
            r"state: student.1.bias has shape \(3,\), the trainer's has \(8,\)",
        ),
        (
            lambda s: s["student_optimizer"].update({"99": {}}),
            "state: student_optimizer has no parameter 99",
        ),
        (
            lambda s: s["student_optimizer"]["0"].update(momentum_buffer=torch.zeros(3)),
            r"state: student_optimizer.0.momentum_buffer has shape \(3,\), its parameter",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_state_that_does_not_fit_changes_nothing(change, message):
    trainer = tiny_trainer()
    before = everything(trainer)
    with pytest.raises(gdfq.InputError, match=message):
        trainer.load_state_dict(broken(change)())
    assert_same(everything(trainer), before)


@pytest.mark.parametrize(
    ("parts", "keys"),
    [
        (Parts(ema_decay=0.5), ["average", "sound", "updates", "values"]),
        (Parts(replay_batches=1, replay_share=0.5), ["replay", "kept", "stored"]),
    ],
)
def test_the_state_of_a_part_is_whole(parts, keys):
    trainer = tiny_trainer(parts=parts)
    name, *keys = keys
    for key in keys:
        state = trainer.state_dict()
        del state["parts"][name][key]
        with pytest.raises(gdfq.InputError, match=f"^state: parts.{name}.{key} is missing$"):
            trainer.load_state_dict(state)


# ---- the file ----


def test_a_file_keeps_awkward_tensors_and_all_else(tmp_path):
    shared = torch.randn(4, 3)
    state = {
        "tensors": {
            "scalar": torch.tensor(2.5),
            "empty": torch.zeros(0, 3),
            "also empty": torch.zeros(0),
            "half": torch.randn(5).bfloat16(),
            "bytes": torch.Generator().get_state(),
            "layout": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
            "view": shared[1:, 1],
            "shared": shared,
            "the same": shared,
            "its last rows": shared[1:],
            "negative zero and more": torch.tensor([-0.0, math.inf, -math.inf]),
        },
        "none": None,
        "nested": {"list": [1, {"a": None}, 0.1, "text \u00e9"], "int": 2**60, "yes": True},
    }
    back = read_checkpoint(write_checkpoint(tmp_path, 7, state))
    for name, tensor in state.pop("tensors").items():
        loaded = back["tensors"][name]
        assert loaded.dtype == tensor.dtype
        assert torch.equal(loaded, tensor)
    assert torch.equal(
        back["tensors"]["negative zero and more"].signbit(), torch.tensor([True, False, True])
    )
    back.pop("tensors")
    assert back == state


@pytest.fixture
def written(tmp_path):
    """A folder with the checkpoints of steps 3 and 6."""
    trainer, previous = tiny_trainer(), None
    for step in (3, 6):
        while trainer.steps_done < step:
            trainer.step()
        previous = write_checkpoint(tmp_path, step, {"trainer": trainer.state_dict()}, previous)
    return tmp_path


def test_the_last_two_are_kept(written):
    assert [p.name for p in checkpoints(written)] == [
        "checkpoint-6.safetensors",
        "checkpoint-3.safetensors",
    ]
    path = write_checkpoint(written, 10, {"step": 10}, checkpoint_path(written, 6))
    assert checkpoints(written) == [path, checkpoint_path(written, 6)]
    assert {p.name for p in written.iterdir()} == {p.name for p in checkpoints(written)}


@pytest.mark.parametrize("where", ["length", "header", "checksum", "tensors", "end"])
def test_one_changed_bit_is_noticed(written, where):
    path = checkpoint_path(written, 6)
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    checksum = content.index(b"sha256") + 20
    positions = {
        "length": range(8),
        "header": random.Random(0).sample(range(8, header), 60),
        "checksum": range(checksum, checksum + 20),
        "tensors": random.Random(1).sample(range(header, len(content)), 60),
        "end": [len(content) - 1],
    }[where]
    for position in positions:
        for bit in (0, 5):
            content[position] ^= 1 << bit
            path.write_bytes(content)
            with pytest.raises(gdfq.InputError, match=r"checkpoint-6.safetensors is corrupt"):
                read_checkpoint(path)
            content[position] ^= 1 << bit
    path.write_bytes(content)
    read_checkpoint(path)


def test_a_file_cut_short_or_longer_is_noticed(written):
    path = checkpoint_path(written, 6)
    content = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(gdfq.InputError, match="is corrupt"):
            read_checkpoint(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(gdfq.InputError, match="is corrupt"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"", b"garbage" * 50, (20).to_bytes(8, "little") + b'{"__metadata__":[]} ' * 3]
)
def test_the_previous_is_used_and_the_corrupt_one_reported(written, content):
    checkpoint_path(written, 6).write_bytes(content)
    reports = []
    path, state = newest_valid(written, reports.append)
    assert path == checkpoint_path(written, 3)
    assert state["trainer"]["steps_done"] == 3
    assert len(reports) == 1
    assert str(checkpoint_path(written, 6)) in reports[0]
    assert "corrupt" in reports[0]


def test_no_sound_checkpoint(tmp_path, written):
    for path in checkpoints(written):
        path.write_bytes(b"")
    reports = []
    assert newest_valid(written, reports.append) is None
    assert len(reports) == 2
    (tmp_path / "empty").mkdir()
    assert newest_valid(tmp_path / "empty", reports.append) is None


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_previous_checkpoints(written, monkeypatch, failing):
    before = {p: p.read_bytes() for p in written.iterdir()}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "write":
        # What the system itself refuses to write.
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    else:
        target = {"fsync": "gdfq.files.os.fsync", "replace": "pathlib.Path.replace"}[failing]
        monkeypatch.setattr(target, full)
    try:
        with pytest.raises(OSError, match=r"checkpoint-9\.safetensors") as info:
            write_checkpoint(written, 9, {"trainer": tiny_trainer().state_dict()})
    finally:
        if failing == "write":
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        monkeypatch.undo()
    assert info.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert {p: p.read_bytes() for p in written.iterdir()} == before


LACKS = [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOTTY]


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        *itertools.product(["fsync of a folder", "fsync", "rename", "opening", "all"], LACKS),
        *itertools.product(["fsync of a folder", "opening"], [errno.EISDIR]),
        ("opening", errno.EACCES),
        ("opening", errno.EPERM),
    ],
)
def test_a_file_system_without_a_call_gets_the_file(tmp_path, monkeypatch, missing, code):
    fsync, replace, opened = os.fsync, Path.replace, os.open

    def lacking(*names):
        if missing in (*names, "all"):
            raise OSError(code, os.strerror(code))

    def synchronize(descriptor):
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        lacking("fsync", *["fsync of a folder"] * folder)
        fsync(descriptor)

    def rename(path, target):
        lacking("rename")
        return replace(path, target)

    def open_folder(path, *arguments):
        if Path(path) == tmp_path:
            lacking("opening")
        return opened(path, *arguments)

    monkeypatch.setattr("gdfq.files.os.fsync", synchronize)
    monkeypatch.setattr("gdfq.files.os.open", open_folder)
    monkeypatch.setattr("pathlib.Path.replace", rename)
    for content in (b"first", b"second"):
        write_file(tmp_path / "file", content[:2], content[2:])
        assert (tmp_path / "file").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_fails_to_synchronize_a_folder_is_said(tmp_path, monkeypatch):
    def failing(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("gdfq.files.os.fsync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        write_file(tmp_path / "file", b"content")


def test_nothing_in_a_file_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    path = checkpoint_path(tmp_path, 1)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(gdfq.InputError, match="is corrupt"):
        read_checkpoint(path)
    torch.save({"a": Evil()}, path)
    with pytest.raises(gdfq.InputError, match="is corrupt"):
        read_checkpoint(path)
    assert not (tmp_path / "executed").exists()
