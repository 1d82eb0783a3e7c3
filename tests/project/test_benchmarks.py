"""The benchmarks' sizes are those of the networks they name; their tables say what was measured."""

import gzip

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from benchmarks import accuracy, gpu_check, sizes, step, table
from benchmarks.photographs import crops
from examples.train_teacher import FASHION_MNIST, load_split
from gdfq.models.resnet import resnet20
from gdfq.recipes import load_recipe
from gdfq.sources import Preprocessing
from gdfq.training import GDFQTrainer, Parts, Start
from gdfq.training.start import NO_START
from tests.helpers.tiny import tiny_trainer

NETWORKS = {
    "resnet20": lambda: resnet20(10),
    "resnet18": torchvision.models.resnet18,
    "mobilenetv2": torchvision.models.mobilenet_v2,
}


@pytest.mark.parametrize("name", sizes.NETWORKS)
def test_sizes_are_the_network_s(name):
    with torch.device("meta"):
        network = NETWORKS[name]()
    modules = list(network.modules())
    weighted = (torch.nn.Conv2d, torch.nn.Linear)
    weights = [tuple(m.weight.shape) for m in modules if isinstance(m, weighted)]
    norms = [m.num_features for m in modules if isinstance(m, torch.nn.BatchNorm2d)]
    assert sorted(sizes.NETWORKS[name]) == sorted(weights)
    assert sorted(sizes.NORMS[name]) == sorted(norms)


def test_means_and_the_rows_that_lose():
    rows = [
        table.Row("a", "small", 1e-3, 8, {"eager": 2.0, "torch.compile": 0.5, "copy": 0.25}),
        table.Row("a", "large", 1e-3, 8, {"eager": 8.0, "torch.compile": 2.0}),
        table.Row("b", "", 1e-3, None, {"eager": 4.0}),
    ]
    means = table.means(rows)
    assert means == pytest.approx({"eager": 4.0, "torch.compile": 1.0, "aten": None, "copy": 0.25})
    assert [row.name for row in table.slower_than_compiled(rows)] == ["a[small]"]
    text = table.markdown(rows, "cpu", None)
    assert "| a | 4.00 | 1.00 |  | 0.25 |" in text
    assert "| **all 3 rows** | 4.00 | 1.00 |  | 0.25 |" in text
    assert "Slower than `torch.compile`: 1 of 2 rows. a[small] (0.50)" in text


def test_crops_are_the_centre_and_the_corners(tmp_path):
    pixels = (np.arange(20 * 30 * 3) % 256).astype(np.uint8).reshape(20, 30, 3)
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(pixels).save(tmp_path / name)
        pixels = pixels[::-1]
    rows = "a.png\t7\nb.png\t\nc.png\t1 2\n"
    (tmp_path / "labels.tsv").write_text(f"picture\tclasses\n{rows}")
    how = Preprocessing(1000, 16, 3, [0.5, 0.25, 0.0], [0.5, 0.25, 1.0], 16)
    first, second = crops(tmp_path, how, photographs=2)
    assert first.shape == (10, 3, 16, 16)
    assert first.dtype == torch.float32
    square = (pixels[::-1, 5:25] / 255 - how.mean) / how.std
    for image, (top, left) in zip(second, [(2, 2), (0, 0), (0, 4), (4, 0), (4, 4)], strict=True):
        expected = square[top : top + 16, left : left + 16].transpose(2, 0, 1)
        assert np.allclose(image, expected, atol=1e-6)
    assert torch.equal(first[:5], second)


def kept_part(machine, ratios, peak=None):
    seconds = {"gdfq": 1.0, **ratios}
    results = [
        {"name": name, "median": median, "images_per_second": 16 / median, "peak_bytes": peak,
         "convolutions": 0.8, "phases": {"generator": 0.5, "teacher": 0.5}}
        for name, median in seconds.items()
    ]  # fmt: skip
    return {"date": "2026-01-01", "network": "resnet18", "results": results, "fusion": None,
            "machine": machine, "memory_format": "contiguous", "execution": "eager"}  # fmt: skip


def machine(cpu):
    return {"cpu": cpu, "threads": 2, "torch": "2.14", "gdfq": "0.1", "gpu": None}


def test_a_step_s_row_says_what_was_not_measured():
    kept = {"parts": {"resnet18": kept_part(machine("A"), {"plain PyTorch": 2.5}, 10**9)}}
    row = step.table(kept, "cpu").splitlines()[-1]
    assert row == "| ResNet-18, 224x224, b16 | 16 | 2.50 | - | - | 80% | 1000 MB (1000 MB) |"
    assert "max-autotune" not in step.table(kept, "cpu")
    assert "max-autotune" in step.table(kept, "cuda")
    assert step.markdown(kept, "cpu").startswith(
        "# A training step on A, 2 threads, torch 2.14, gdfq 0.1\n"
    )


def test_rows_of_several_machines_name_theirs():
    kept = {
        "parts": {
            "resnet18": kept_part(machine("A"), {"plain PyTorch": 2.5}),
            "resnet50": kept_part(machine("B"), {}) | {"network": "resnet50"},
        }
    }
    assert len(step.machines(kept, "cpu")) == 2
    first, second = step.table(kept, "cpu").splitlines()[-2:]
    assert first.startswith("| ResNet-18, 224x224, b16 (A, 2 threads, torch 2.14, gdfq 0.1) |")
    assert second.startswith("| ResNet-50, 224x224, b16 (B, ")
    assert "| - | - | - | 80% | - |" in second


def test_a_gpu_check_ends_in_25_minutes():
    assert gpu_check.BUILD + sum(gpu_check.PARTS.values()) < 25 * 60
    assert all(gpu_check.BUILD + limit < 10 * 60 for limit in gpu_check.PARTS.values())


def test_parts_of_a_gpu_check_leave_what_others_found(monkeypatch, tmp_path):
    def run(check, name, command, limit, **environment):
        check.steps.append(gpu_check.Step(name, "passed", 1.0, output=f"output of {name}"))
        return check.steps[-1]

    monkeypatch.setattr(gpu_check.Check, "run", run)
    common = ["gpu_check", "--rehearse", "--skip-build", "--out", str(tmp_path)]
    for part in ("fp32", "bf16", "fp32"):
        monkeypatch.setattr("sys.argv", [*common, "--only", part])
        gpu_check.main()
    (table_of_it,) = tmp_path.glob("*.md")
    text = table_of_it.read_text()
    for precision in ("fp32", "bf16"):
        assert text.count(f"output of gdfq bench, {precision}\n") == 1
        assert text.count(f"| gdfq bench, {precision} | passed | 1 |") == 1
    assert text.count("compiled | not run: rehearsal") == 2


def accuracy_trainer(kind, **options):
    return tiny_trainer(
        kind=kind,
        epochs=4,
        parts=Parts(ema_decay=0.5, low_pass=3.0),
        start=Start(act_ranges="mse", bn_reestimate=True, bn_reestimate_end=True),
        **options,
    )


def test_students_of_recorded_images_are_those_of_the_run():
    whole = accuracy_trainer(GDFQTrainer)
    trained = whole.train()
    recorder = accuracy_trainer(accuracy.Recorder)
    recorder.start = NO_START  # as the benchmark makes it
    recording = recorder.record()
    calibrated = []
    player = accuracy_trainer(accuracy.Player)
    watched = accuracy.Watched(lambda: calibrated.append(player.steps_done))
    played = player.play(recording, watched)
    assert calibrated == [whole.training.warmup_steps]
    assert len(recording.held_out) == accuracy.HELD_OUT * 16
    for name, value in trained.state_dict().items():
        assert torch.equal(value, played.state_dict()[name]), name
    assert not torch.equal(
        torch.cat([p.flatten() for p in played.parameters()]),
        torch.cat([p.flatten() for p in accuracy_trainer(GDFQTrainer).student.parameters()]),
    )


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def test_real_images_take_the_place_of_the_generator_s(tmp_path):
    images, labels = np.arange(5 * 8 * 8, dtype=np.uint8).reshape(5, 8, 8), np.arange(5)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", labels)
    generated = torch.zeros(3, 1, 8, 8).contiguous(memory_format=torch.channels_last)
    steps = [(generated, torch.zeros(3, dtype=torch.long), torch.zeros(3, 4)) for _ in range(2)]
    recording = accuracy.Recording({}, {}, steps, torch.empty(0))
    teacher = torch.nn.Flatten()
    accuracy.take_real_images(recording, teacher, tmp_path, seed=0)
    real, _ = load_split(FASHION_MNIST, tmp_path, "train")
    for batch, classes, logits in recording.steps:
        assert torch.equal(batch, real[classes])
        assert batch.stride() == generated.stride()
        assert torch.equal(logits, teacher(batch))
    assert not torch.equal(recording.steps[0][1], recording.steps[1][1])


@pytest.mark.parametrize(
    ("option", "same"),
    [
        ({"objective": "logit_mse"}, True),
        ({"act_ranges": "mse"}, True),
        ({"weight_bits": 2}, True),
        ({"student_lr": 1e-2}, True),
        ({"low_pass": 3.0}, False),
        ({"bns_weight": 3.0}, False),
        ({"seed": 1}, False),
        ({"width": 32}, False),
    ],
)
def test_what_a_generator_s_training_depends_on(option, same):
    recipe = load_recipe("fashion-mnist-resnet20")
    changed = recipe.with_options(option)
    assert (accuracy.generator_key(changed) == accuracy.generator_key(recipe)) == same
