"""Every number of a report against a computation of its own."""

import copy
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import nn

import gdfq
from gdfq.data import confusion, open_test_set, top1
from gdfq.errors import InputError
from gdfq.recipes import resolve_recipe
from gdfq.recipes.images import class_images
from gdfq.report.confusion import describe
from gdfq.report.contents import Measured
from gdfq.report.layers import places
from gdfq.report.observation import Loss, Moments, observe
from gdfq.report.text import MISSING, fixed
from gdfq.runs import report as reports
from gdfq.runs import session
from gdfq.runs.measures import _Measurement, measure
from gdfq.runs.options import Options
from gdfq.runs.report import contents_of, write_report
from gdfq.runs.run import Run
from tests.cli.test_cli import RECIPE, SHORT, gdfq_command
from tests.helpers import report_networks
from tests.runs.test_resume import Killed, Show, kill

REPORT = Options(report=True)


def recipe_of(factory, **options):
    """With the paper's ranges, the smallest and the largest value, which the tests compute."""
    given = {
        "act_ranges": "minmax", "weight_ranges": "minmax", "bn_reestimate": False,
        "model": f"tests.helpers.report_networks:{factory}", "weights": "random", "image_size": 8,
        "channels": 2, "mean": [0.5, 0.5], "std": [0.25, 0.25], "width": 8, "latent_dim": 10,
        "batch_size": 16, "epochs": 3, "steps_per_epoch": 2, "warmup_epochs": 1,
        "calibration_batches": 2, "student_lr": 1e-2, "memory_format": "contiguous",
        "weight_bits": 3, "act_bits": 2,
    }  # fmt: skip
    return resolve_recipe(None, {**given, **options})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the tiny network, and what was measured at its end."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run = session.quantize(recipe_of("tiny"), folder, Show(), REPORT)
    measured = TypeAdapter(Measured).validate_json((folder / "report.json").read_bytes())
    return run, measured


def rows_of(measured):
    return {row.name: row for row in measured.layers}


def images_of(run):
    """The generated images that layers are measured on."""
    return torch.cat(_Measurement(run, lambda name: None).generate())


def db(values, quantized):
    values, quantized = (x.detach().double().numpy() for x in (values, quantized))
    return 10 * math.log10((values**2).sum() / ((values - quantized) ** 2).sum())


def quantized(x, lo, hi, bits):
    """Fake quantization of numbers, one after the other as the method's formulas are written."""
    lo, hi = np.float32(lo), np.float32(hi)
    scale = np.float32(2**bits - 1) * (np.float32(1) / max(hi - lo, np.float32(1e-8)))
    zero = np.round(scale * lo) + 2 ** (bits - 1)
    code = np.clip(np.round(scale * x.numpy() - zero), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return torch.from_numpy((code + zero) / scale)


# ---- the table ----


def test_rows_say_what_belongs_together(finished):
    _, measured = finished
    named = [(r.name, r.kind, r.norm, r.act, r.weight_bits, r.act_bits) for r in measured.layers]
    assert named == [
        ("0", "Conv2d", "1", "2", 3, 2),
        ("3", "Conv2d", "4", "5", 3, 2),
        ("8", "Linear", "", "", 3, None),
    ]
    assert [row.shape for row in measured.layers] == [[8, 2, 3, 3], [12, 8, 3, 3], [4, 12]]


def test_rows_of_sums_and_of_batch_norms_in_front():
    student = gdfq.quantize_model(report_networks.residual())
    rows = [place.row for place in places(student)]
    assert [(r.name, r.norm, r.act) for r in rows] == [
        ("conv", "norm", "relu"),
        ("branch", "branch_norm", "relu_1"),
        ("front_norm", "front_norm", "relu_2"),
        ("behind", "", ""),
        ("fc", "", ""),
    ]
    assert rows[2].kind == "BatchNorm2d"


def test_a_quantizer_of_an_input_has_its_own_row():
    student = gdfq.quantize_model(report_networks.residual(), quantize_inputs=True)
    rows = {place.row.name: place.row for place in places(student)}
    assert rows["conv.input"].act == "conv.input"
    assert rows["fc.input"].weight_bits is None
    assert rows["conv"].act == "relu"


def test_layers_within_leaf_modules_are_in_the_table():
    class Leaf(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = gdfq.nn.QConv2d(2, 4, 3, weight_bits=5, act_bits=6)

        def forward(self, x):
            return self.conv(x) if x.sum() > 0 else self.conv(-x)

    model = nn.Sequential(Leaf(), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    student = gdfq.quantize_model(model, leaf_modules=["0"])
    rows = {place.row.name: place.row for place in places(student)}
    assert rows["0.conv"].weight_bits == 5
    assert rows["0.conv.input_quantizer"].act_bits == 6


def test_weight_sqnr_is_the_formula(finished):
    run, measured = finished
    rows = rows_of(measured)
    for name in ("0", "3", "8"):
        weight = run.student.get_submodule(name).weight.detach()
        channels = [quantized(w, w.min(), w.max(), 3) for w in weight]
        assert rows[name].weight_sqnr == pytest.approx(db(weight, torch.stack(channels)), rel=1e-5)


def test_what_loses_nothing_has_no_ratio():
    lost = Loss()
    lost.add(torch.ones(4), torch.ones(4))
    assert lost.sqnr is None
    assert Loss().clipped is None


@torch.no_grad()
def test_activations_are_counted_one_by_one(finished):
    run, _ = finished
    run = copy.copy(run)
    run.kept_student = copy.deepcopy(run.student), None
    for name, factor in (("2", 2), ("5", 8)):
        run.student.get_submodule(name).hi /= factor
    measured = measure(run)
    rows = rows_of(measured)
    assert measured.images == 256
    x = images_of(run)
    modules = dict(run.student.named_children())
    for name, module in modules.items():
        if not isinstance(module, gdfq.nn.QAct):
            x = module(x)
            continue
        row = next(row for row in rows.values() if row.act == name)
        values = x.clamp(min=0)
        lo, hi = float(module.lo), float(module.hi)
        assert (row.act_low, row.act_high) == (lo, hi)
        outside = sum(value < lo or value > hi for value in values.flatten().tolist())
        assert row.clipped == outside / values.numel() > 0
        x = quantized(values, lo, hi, 2)
        assert row.act_sqnr == pytest.approx(db(values, x), rel=1e-5)


def test_images_are_those_that_teacher_and_student_see(finished):
    """Filtered ones, where the recipe filters them."""
    run, _ = finished
    plain = images_of(run)
    width = 2.0
    run = copy.copy(run)
    run.recipe = run.recipe.with_options({"low_pass": width})
    filtered = images_of(run)
    frequencies = torch.fft.fftfreq(8, 1 / 8)
    damping = torch.exp(-(frequencies[:, None] ** 2 + frequencies**2) / (2 * width**2))
    expected = torch.fft.ifft2(torch.fft.fft2(plain) * damping).real
    assert torch.allclose(filtered, expected, atol=1e-5)


@torch.no_grad()
def mismatches(network, teacher, images):
    """Of the tiny network's batch norms, computed from all images at once."""
    found = {}
    x = images
    for name, module in network.named_children():
        if isinstance(module, nn.BatchNorm2d):
            stored = teacher.get_submodule(name)
            values = x.double().transpose(0, 1).flatten(1)
            mean = F.mse_loss(values.mean(1), stored.running_mean.double())
            var = F.mse_loss(values.var(1, unbiased=False), stored.running_var.double())
            found[name] = float(mean + var)
        x = module(x)
    return found


def test_mismatch_of_the_teacher_and_of_both_students(finished):
    run, measured = finished
    teacher, images = run.teacher, images_of(run)
    generator = run.generator
    fresh = gdfq.GDFQTrainer(
        teacher, gdfq.quantize_model(teacher, 3, 2), generator, 4,
        **run.recipe.training.model_dump(),
    )  # fmt: skip
    state = {name: value.clone() for name, value in generator.state_dict().items()}
    fresh.calibrate(2)
    generator.load_state_dict(state)
    wanted = [mismatches(n, teacher, images) for n in (teacher, fresh.student, run.student)]
    for row in measured.layers[:2]:
        for network, found in zip(
            wanted,
            (row.mismatch_teacher, row.mismatch_before, row.mismatch_after),
            strict=True,
        ):
            assert found == pytest.approx(network[row.norm], rel=1e-4)
    second = measured.layers[1]
    assert second.mismatch_before != second.mismatch_after
    assert measured.layers[2].mismatch_after is None


@torch.no_grad()
def test_moments_of_vectors_and_over_batches():
    norm = nn.BatchNorm1d(3).eval()
    x = torch.randn(10, 3) * 2 + 1
    seen = Moments()
    observe(norm, [x[:4], x[4:]], {norm: seen})
    expected = x.mean(0).square().mean() + (x.var(0, unbiased=False) - 1).square().mean()
    assert seen.mismatch(norm.running_mean, norm.running_var) == pytest.approx(float(expected))
    assert not norm._forward_pre_hooks
    assert Moments().mismatch(norm.running_mean, norm.running_var) is None


@torch.no_grad()
def test_sensitivity_is_the_divergence_with_that_layer_alone_quantized(finished):
    run, measured = finished
    images = images_of(run)[: measured.sensitivity_images]
    assert len(images) == 128
    expected = F.log_softmax(run.teacher(images), 1)
    for row in measured.layers:
        network = report_networks.tiny()
        network.load_state_dict(run.teacher.state_dict())
        weight = network.get_submodule(row.name).weight
        weight.copy_(torch.stack([quantized(w, w.min(), w.max(), 3) for w in weight]))
        found = F.log_softmax(network(images), 1)
        divergence = (expected.exp() * (expected - found)).sum(1).mean()
        assert row.sensitivity == pytest.approx(float(divergence), rel=1e-3)


# ---- images and statistics ----


def test_images_by_class_are_those_of_the_picture_and_their_mean(finished):
    run, measured = finished
    assert [(c.label, c.name) for c in measured.classes] == [(i, f"class {i}") for i in range(4)]
    made = class_images(run.recipe, run.generator, 4, 32)
    pixels = ((made[:, :, 0] * 0.25 + 0.5).clamp(0, 1) * 255).round()  # the first of two channels
    for shown, wanted in zip(measured.classes, pixels, strict=True):
        assert shown.averaged == 32
        assert len(shown.images) == 10
        for image, one in zip(shown.images, wanted, strict=False):
            assert np.array_equal(image, one.numpy().astype(np.uint8))
        assert np.array_equal(shown.mean, wanted.mean(0).round().numpy().astype(np.uint8))


@torch.no_grad()
def test_norm_statistics_are_means_over_the_images_of_a_class(finished):
    run, measured = finished
    made = class_images(run.recipe, run.generator, 4, 32)
    teacher = run.teacher
    assert [norm.name for norm in measured.norms] == ["1", "4"]
    for norm, layers in zip(measured.norms, (1, 4), strict=True):
        stored = teacher[layers]
        assert norm.channels == stored.num_features
        assert norm.running_mean == pytest.approx(stored.running_mean.tolist())
        assert norm.running_std == pytest.approx(stored.running_var.sqrt().tolist())
        for label in range(4):
            x = teacher[:layers](made[label])
            assert norm.by_class[label] == pytest.approx(x.mean((0, 2, 3)).tolist(), abs=1e-5)
        assert norm.generated == pytest.approx(np.mean(norm.by_class, 0).tolist())


# ---- confusion ----


class Remembered(nn.Module):
    """Takes images for the classes that their first values name."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return F.one_hot(x[:, 0].long(), self.classes).float()


def test_confusion_counts_pairs():
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, 5, (2, 97))
    batches = [
        (torch.from_numpy(predicted[part]).float()[:, None], torch.from_numpy(labels[part]))
        for part in (slice(0, 40), slice(40, 97))
    ]
    counts = [[0] * 5 for _ in range(5)]
    for label, found in zip(labels, predicted, strict=True):
        counts[label][found] += 1
    assert confusion(Remembered(5), batches).tolist() == counts
    assert top1(Remembered(5), batches) == 100 * (labels == predicted).sum() / 97
    with pytest.raises(InputError, match=r"data: has images of class 4, .* network 3 classes"):
        confusion(Remembered(3), [(torch.zeros(1, 1), torch.tensor([4]))])


def test_any_of_several_right_classes_counts():
    images = torch.tensor([[0.0], [1.0], [2.0], [3.0], [2.0]])  # the predicted classes
    right = torch.zeros(5, 4, dtype=torch.bool)
    for image, classes in enumerate(([0], [0, 1, 3], [1, 3], [3, 2], [2])):
        right[image, classes] = True
    expected = torch.zeros(4, 4, dtype=torch.int64)
    for label, predicted in ((0, 0), (1, 1), (1, 2), (3, 3), (2, 2)):
        expected[label, predicted] += 1
    batches = [(images[:2], right[:2]), (images[2:], right[2:])]
    assert torch.equal(confusion(Remembered(4), batches), expected)
    assert top1(Remembered(4), batches) == 80
    with pytest.raises(InputError, match=r"^data: has labels of 4 classes, and the network 3$"):
        confusion(Remembered(3), batches)
    right[4] = False
    with pytest.raises(InputError, match=r"^data: has an image without a right class$"):
        confusion(Remembered(4), batches)


def test_the_most_frequent_mistakes_of_many_classes():
    classes = 1000
    teacher = torch.zeros(classes, classes, dtype=torch.int64)
    student = torch.eye(classes, dtype=torch.int64) * 50
    mistakes = {(7, 3): 9, (999, 0): 12, (0, 999): 9, (5, 6): 1}
    for (label, found), count in mistakes.items():
        student[label, found] = count
    teacher[999, 0] = 4
    described = describe("none", teacher, student)
    assert not described.student
    assert not described.teacher
    assert len(described.classes) == classes
    pairs = [(p.label, p.predicted, p.teacher, p.student) for p in described.pairs]
    assert pairs == [
        ("class 999", "class 0", 4, 12),
        ("class 0", "class 999", 0, 9),
        ("class 7", "class 3", 0, 9),
        ("class 5", "class 6", 0, 1),
    ]


class FewPictures:
    """The first pictures of the test set."""

    name, decodes, note = "fashion-mnist", False, ""

    def __init__(self):
        self.all = open_test_set("fashion-mnist", None, 10)

    def __len__(self):
        return 300

    def __getitem__(self, index):
        return self.all[index]


def test_confusion_of_a_run_is_that_of_its_networks(tmp_path, monkeypatch):
    monkeypatch.setattr("gdfq.data.batches.open_test_set", lambda *given: FewPictures())
    folder = tmp_path / "run"
    recipe = gdfq.recipes.load_recipe(RECIPE).with_options(
        {
            "width": 4, "batch_size": 4, "epochs": 2, "steps_per_epoch": 1, "warmup_epochs": 1,
            "calibration_batches": 1, "memory_format": "contiguous",
        }
    )  # fmt: skip
    run = session.quantize(recipe, folder, Show(), Options())
    result = run.result
    teacher, student = (run.counts[name] for name in ("teacher", "student"))
    pictures = FewPictures()
    labels = torch.tensor([pictures[i][1] for i in range(300)])
    assert teacher.sum(1).tolist() == student.sum(1).tolist() == labels.bincount().tolist()
    assert 100 * int(teacher.diag().sum()) / 300 == result.teacher > 85
    assert 100 * int(student.diag().sum()) / 300 == result.after
    described = describe("fashion-mnist", teacher, student)
    assert described.student == student.tolist()
    assert described.classes[0] == "T-shirt"
    first = described.pairs[0]
    assert first.student == int((student - student.diag().diag()).max())


# ---- any network ----


@pytest.mark.parametrize(
    ("factory", "classes"), [("functional", 4), ("perceptron", 120), ("residual", 4)]
)
def test_networks_of_all_kinds_are_measured_in_full(tmp_path, factory, classes):
    folder = tmp_path / "run"
    show = Show()
    session.quantize(recipe_of(factory), folder, show, REPORT)
    content = contents_of(Run(folder), "run")
    measured = content.measured
    assert not measured.notes
    assert not [line for line in show.lines if "warning" in line and "report" in line]
    assert len(measured.classes) == min(classes, 20)
    for row in measured.layers:
        if row.weight_bits is not None:
            assert row.weight_sqnr > 5
            computed = row.name == "linear_weight"  # its weight is no tensor of the network's
            assert (row.sensitivity is None) == computed
            assert (row.shape is None) == computed
        if row.norm:
            assert row.mismatch_after >= 0
        if row.act:
            assert 0 <= row.clipped < 1
            assert row.act_sqnr > 0
    assert sum(row.weight_bits is not None for row in measured.layers) >= 2
    assert sum(bool(row.norm) for row in measured.layers) >= 1


# ---- from the folder ----


def test_a_folder_gives_what_was_measured_at_the_run_s_end(finished, tmp_path):
    run, measured = finished
    again = measure(Run(run.folder, on_warning=pytest.fail))
    json_of = TypeAdapter(Measured).dump_json
    assert json_of(again) == json_of(measured)


def test_measuring_leaves_the_networks_as_they_are(finished):
    run, _ = finished
    networks = (run.teacher, run.student, run.generator)
    before = [{k: v.clone() for k, v in n.state_dict().items()} for n in networks]
    training = [[module.training for module in n.modules()] for n in networks]
    assert not measure(run).notes
    for network, state, modes in zip(networks, before, training, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
        assert [module.training for module in network.modules()] == modes
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_a_stored_measurement_needs_no_network(finished, monkeypatch):
    run, measured = finished
    monkeypatch.setattr("gdfq.runs.run.build_teacher", pytest.fail)
    content = contents_of(Run(run.folder), "first")
    assert content.name == "first"
    assert content.measured.layers == measured.layers
    assert content.result.finished
    assert content.result.steps == 6
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").open()]
    curves = {curve.name: curve for curve in content.curves}
    assert curves["bns"].values == [record["bns"] for record in records]
    assert curves["bns"].kind == "loss"
    assert curves["student"].steps == [4, 6]
    assert curves["student_lr"].kind == "rate"
    assert "torch" in content.environment
    assert "3-bit weights and 2-bit activations" in content.sentence
    assert "6 steps" in content.sentence


def test_a_run_can_be_measured_again(finished, tmp_path):
    run, _ = finished
    folder = tmp_path / "copy"
    shutil.copytree(run.folder, folder)
    stored = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps({**stored, "notes": ["No test images."]}))
    assert contents_of(Run(folder), "x").measured.notes == ["No test images."]
    assert contents_of(Run(folder), "x", again=True).measured.notes == []
    assert json.loads((folder / "report.json").read_text()) == stored


def test_sizes_are_those_of_files(finished, tmp_path):
    run, _ = finished
    folder = tmp_path / "copy"
    shutil.copytree(run.folder, folder)
    values = sum(v.numel() * v.element_size() for v in run.teacher.state_dict().values())
    gdfq.save(run.student, tmp_path / "p.safetensors", run.recipe)
    packed = (tmp_path / "p.safetensors").stat().st_size
    sizes = [(size.name, size.bytes, size.exists) for size in contents_of(Run(folder), "x").sizes]
    assert sizes == [("float", values, False), ("packed safetensors", packed, False)]
    (folder / "packed.safetensors").write_bytes(b"123")
    (folder / "student.onnx").write_bytes(b"1234")
    sizes = [(size.name, size.bytes, size.exists) for size in contents_of(Run(folder), "x").sizes]
    assert sizes[1:] == [("packed safetensors", 3, True), ("student.onnx", 4, True)]


def test_a_measurement_of_another_student_is_not_used(finished, tmp_path):
    run, measured = finished
    folder = tmp_path / "copy"
    shutil.copytree(run.folder, folder)
    stored = json.loads((folder / "report.json").read_text())
    for broken in (json.dumps({**stored, "step": 3}), json.dumps({"step": 6, "images": "x"}), "{"):
        (folder / "report.json").write_text(broken)
        assert contents_of(Run(folder), "x").measured.layers == measured.layers
        assert json.loads((folder / "report.json").read_text()) == stored


def test_a_generator_that_was_not_kept(finished, tmp_path):
    run, measured = finished
    folder = tmp_path / "copy"
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("checkpoint*", "report*"))
    content = contents_of(Run(folder), "x")
    assert "no checkpoint with the generator" in content.measured.notes[0]
    assert [r.weight_sqnr for r in content.measured.layers] == [
        r.weight_sqnr for r in measured.layers
    ]
    assert content.measured.layers[0].clipped is None
    assert not content.measured.classes


@pytest.mark.parametrize("after", [1, 5])
def test_an_unfinished_run_is_reported_as_far_as_it_is(tmp_path, after):
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        session.quantize(recipe_of("tiny"), folder, Show(after, kill), Options(checkpoint_every=0))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 9, "st')
    content = contents_of(Run(folder), "x")
    if after == 1:  # the step of the kill has no checkpoint yet
        assert content.result.steps == 0
        assert content.measured.layers[0].weight_sqnr is not None
        assert content.measured.layers[0].clipped is None
    else:
        assert content.result.steps == 4
        assert content.measured.layers[0].clipped is not None
        assert [curve.steps for curve in content.curves if curve.name == "bns"] == [[2, 4]]
    assert not content.result.finished
    assert "of 6 steps so far" in content.sentence
    assert not (folder / "report.json").exists()


# ---- at the end of a run, and the command ----


def test_a_report_that_fails_is_a_warning(tmp_path, monkeypatch):
    def fail(run):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("gdfq.runs.execution.write_run_report", fail)
    show = Show()
    run = session.quantize(recipe_of("tiny"), tmp_path / "run", show, REPORT)
    assert run.result.finished
    assert "warning: no report: ZeroDivisionError: planted" in show.lines


def test_what_cannot_be_measured_is_a_note(finished, monkeypatch):
    run, measured = finished

    def fail(*arguments):
        raise RuntimeError("planted")

    monkeypatch.setattr("gdfq.runs.measures.Divergence", fail)
    found = measure(run)
    assert found.notes == ["No sensitivity: planted"]
    assert found.layers[0].clipped == measured.layers[0].clipped


def test_the_command_reports_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = [option for option in SHORT if option != "--no-report"]
    code, out, err = gdfq_command(capsys, *short, "--out", "a/run")
    assert code == 0, err
    assert "Report: a/run/report.html" in out.replace("\n", "")
    page = (tmp_path / "a/run/report.html").read_text()
    assert "resnet20" in page
    (tmp_path / "a/run/report.html").unlink()
    shutil.copytree("a/run", "b/run")
    code, out, err = gdfq_command(capsys, "report", "a/run")
    assert (code, err) == (0, "")
    assert (tmp_path / "a/run/report.html").read_text() == page
    code, out, err = gdfq_command(capsys, "report", "a/run", "b/run", "--out", "both.html")
    assert code == 0, err
    both = (tmp_path / "both.html").read_text()
    assert "a/run" in both
    assert "b/run" in both
    for arguments, problem in (
        (["missing"], "run: there is no folder missing"),
        (["a"], "run: a is not a run folder: it has no recipe.toml"),
        (["a/run", "--out", "missing/x.html"], "out: cannot write missing/x.html: No such file"),
    ):
        code, _, err = gdfq_command(capsys, "report", *arguments)
        assert code == 2
        assert problem in err


def test_names_differ():
    names = reports._names
    assert names([Path("/x/w3"), Path("/x/w4")]) == ["w3", "w4"]
    assert names([Path("/x/1/w3"), Path("/x/2/w3")]) == ["1/w3", "2/w3"]
    assert names([Path("/x/w3"), Path("/x/w3")]) == ["w3 (1)", "w3 (2)"]


def test_no_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="runs: at least one run folder"):
        write_report([], tmp_path / "x.html")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-0.001, "0.00"),
        (-0.01, "\u22120.01"),
        (1234.567, "1,234.57"),
        (None, MISSING),
        (math.nan, MISSING),
    ],
)
def test_numbers_in_tables(value, text):
    assert fixed(value, 2) == text
