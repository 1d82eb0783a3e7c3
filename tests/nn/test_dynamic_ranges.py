import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gdfq
from gdfq.export import export_onnx, export_pt2
from gdfq.export.inspection import inspect_file
from gdfq.export.packed_layers import pack
from gdfq.nn import QAct, QConv2d, QLinear, effective_act_bits, effective_weight_bits, qact
from gdfq.nn.dynamic_ranges import range_axes
from gdfq.recipes import load_recipe
from gdfq.recipes.files import parse_recipe
from gdfq.training import Parts, Start
from tests.helpers.parts import part_of
from tests.helpers.tiny import EACH_PART, Operators, tiny_teacher, tiny_trainer

KINDS = ("act", "weight", "both")
IMAGES = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(3))


def random(*shape):
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 1


def plain(x, bits, dims, zero_in_range=False):
    """The method in PyTorch's own operations, over the minima and maxima of ``dims``."""
    lo, hi = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    if zero_in_range:
        lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    scale = (2**bits - 1) * (1 / (hi - lo).clamp(min=1e-8))
    zero = torch.round(scale * lo)
    return (torch.clamp(torch.round(scale * x - zero), 0, 2**bits - 1) + zero) / scale


def student_of(dynamic, bits=3, **options):
    return gdfq.quantize_model(tiny_teacher(), bits, bits, dynamic_ranges=dynamic, **options)


# ---- quantizers ----


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("zero_in_range", [False, True])
def test_activations_are_plain_pytorchs(bits, zero_in_range):
    q = QAct(bits, "none", zero_in_range=zero_in_range, dynamic_range=True)
    for shape, dims in (
        ((3, 5, 16, 16), (2, 3)),
        ((3, 5, 4, 4), (2, 3) if bits <= 4 else (1, 2, 3)),  # 16 elements, 2**bits levels
        ((3, 5, 1, 1), (1, 2, 3)),
        ((3, 5), (1,)),
        ((40,), (0,)),
    ):
        x = random(*shape)
        torch.testing.assert_close(q(x), plain(x, bits, dims, zero_in_range))
    x = random(3, 5, 16, 16)
    rectified = QAct(bits, "relu", zero_in_range=zero_in_range, dynamic_range=True)
    torch.testing.assert_close(rectified(x), plain(x.relu(), bits, (2, 3), zero_in_range))


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_are_plain_pytorchs(bits):
    layer = QConv2d(4, 6, 5, weight_bits=bits, dynamic_ranges="weight", bias=False)
    x = random(1, 4, 8, 8)
    dims = (2, 3) if bits <= 4 else (1, 2, 3)  # 25 elements
    assert layer.per_kernel == (bits <= 4)
    torch.testing.assert_close(layer(x), F.conv2d(x, plain(layer.weight, bits, dims)))
    assert torch.equal(pack(layer)(x), layer(x))


@pytest.mark.parametrize("bits", [2, 4])
def test_small_kernels_keep_a_range_per_output(bits):
    x = random(2, 6, 8, 8)
    for kernel in (1, 3) if bits == 4 else (1,):
        torch.manual_seed(0)
        layer = QConv2d(6, 5, kernel, weight_bits=bits, dynamic_ranges="both")
        assert not layer.per_kernel
        static = QConv2d.from_float(layer, bits)
        assert torch.equal(layer(x), static(x))
        assert not torch.equal(layer._quantized_weight(), layer.weight)
    linear = QLinear(6, 5, weight_bits=bits, dynamic_ranges="both")
    assert torch.equal(linear(x[:, :, 0, 0]), QLinear.from_float(linear, bits)(x[:, :, 0, 0]))


def test_which_dimensions_have_ranges():
    assert range_axes((4, 2, 3, 3), 3) == (0, 1)
    assert range_axes((4, 2, 3, 3), 4) == (0,)
    assert range_axes((4, 2), 2) == (0,)
    assert range_axes((4,), 2) is None


def test_a_sample_is_quantized_alike_in_any_batch_and_mode():
    q = QAct(3, dynamic_range=True)
    x = random(5, 4, 6, 6)
    alone = torch.cat([q.eval()(x[i : i + 1]) for i in range(5)])
    assert torch.equal(q.train()(x), alone)
    assert not q.state_dict()
    assert q.has_range
    assert copy.deepcopy(q).half().reset_range() is None


def test_inputs_of_layers_too():
    layer = QConv2d(4, 6, 3, weight_bits=8, act_bits=3, dynamic_ranges="act", bias=False)
    x = random(2, 4, 8, 8)
    expected = F.conv2d(plain(x, 3, (2, 3)), layer._quantized_weight())
    torch.testing.assert_close(layer(x), expected)
    assert "dynamic_ranges='act'" in repr(layer)


@pytest.mark.parametrize("ste", ["identity", "clip"])
def test_gradients_take_ranges_as_constant(ste):
    x = random(8, 16, 6, 6).requires_grad_()
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    QAct(3, "none", ste, dynamic_range=True)(x).backward(dy)
    assert torch.equal(x.grad, dy)  # with "clip" too: no value lies outside its own range
    layer = QConv2d(16, 4, 3, weight_bits=3, ste=ste, dynamic_ranges="weight", bias=False)
    y = layer(x.detach())
    y.backward(torch.ones_like(y))
    (wanted,) = torch.autograd.grad(F.conv2d(x.detach(), layer.weight).sum(), layer.weight)
    torch.testing.assert_close(layer.weight.grad, wanted)


@pytest.mark.parametrize("shape", [(0, 3, 6, 6), (2, 3, 0, 0), (0, 3)])
def test_nothing_is_quantized_to_nothing(shape):
    assert QAct(3, dynamic_range=True)(torch.empty(shape)).shape == shape


def test_dtypes_memory_formats_and_constants():
    q = QAct(3, "none", dynamic_range=True)
    x = random(2, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    assert q(x).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(q(x), q(x.contiguous()))
    assert q(x.bfloat16()).dtype == torch.bfloat16
    x[:, 1] = 0
    assert torch.equal(q(x)[:, 1], x[:, 1])  # a dead channel stays 0
    x[1, 2] = 7
    torch.testing.assert_close(q(x)[1, 2], x[1, 2])


# ---- students ----


def test_off_there_is_nothing_of_it():
    plain_student, off = gdfq.quantize_model(tiny_teacher(), 3, 3), student_of("none")
    assert list(off.state_dict()) == list(plain_student.state_dict())
    trainer, on = tiny_trainer(bits=3), tiny_trainer(bits=3, dynamic_ranges="both")
    counts = []
    for each in (trainer, on):
        each.calibrate(1)
        each.steps_done = 4
        with Operators() as operators:
            each.step()
        counts.append(operators.named("gdfq::fake_quantize_minmax"))
    assert set(counts[0]) == {"gdfq::fake_quantize_minmax_list"}
    assert counts[1]["gdfq::fake_quantize_minmax"] == 4  # two activations, two weights


def test_coverage_says_what_has_ranges():
    reasons = {op.name: op.reason for op in student_of("both").coverage.operations}
    assert reasons["0"] == "weight, 3 bits per kernel"
    assert reasons["2"] == "output, 3 bits per sample and channel, on the fly"
    assert reasons["8"] == "weight, 3 bits per output channel"


@pytest.mark.parametrize("dynamic", KINDS)
def test_fused_is_unfused(dynamic):
    fused = tiny_trainer(bits=3, dynamic_ranges=dynamic)
    unfused = tiny_trainer(bits=3, dynamic_ranges=dynamic, fuse=False)
    places = {place.name: place for place in fused.fused.places}
    assert places["2"].fused == (dynamic == "weight")
    with torch.no_grad():
        for trainer in (fused, unfused):
            trainer.calibrate(2)
        assert torch.equal(fused.fused(IMAGES), fused.student(IMAGES))
    for trainer in (fused, unfused):
        trainer.train()
    expected = unfused.student.state_dict()
    for name, value in fused.student.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)


@pytest.mark.parametrize("dynamic", KINDS)
def test_going_on_is_bit_for_bit(dynamic):
    parts = EACH_PART["all"]
    whole, first, second = (
        tiny_trainer(bits=3, dynamic_ranges=dynamic, parts=parts) for _ in range(3)
    )
    start = {name: value.clone() for name, value in whole.student.state_dict().items()}
    whole.train()
    for _ in range(7):
        first.step()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.train()
    for name, value in whole.outcome.state_dict().items():
        assert torch.equal(value, second.outcome.state_dict()[name]), name
    assert not torch.equal(whole.student.state_dict()["0.weight"], start["0.weight"])


def test_changed_codes_are_counted_by_kernel():
    trainer = tiny_trainer(bits=3, dynamic_ranges="weight", parts=Parts(code_change_share=0.05))
    layer = trainer.student.get_submodule("3")
    layer.weight.grad = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    before, weight, gradient = layer._quantized_weight(), layer.weight, layer.weight.grad.clone()
    (lo, hi), rate = layer.weight_range(), torch.tensor(1e-3)
    part_of(trainer, "code_changes").gradients([], rate)
    assert not torch.equal(layer.weight.grad, gradient)
    with torch.no_grad():
        scale = (7 * (1 / (hi - lo)))[..., None, None]
        zero = torch.round(scale * lo[..., None, None])
        moved = torch.round(scale * (weight - rate * weight.grad) - zero).clamp(0, 7)
        changed = (moved + zero) / scale != before
    assert 0.05 <= changed.float().mean() < 0.08


@pytest.mark.parametrize("dynamic", KINDS)
@pytest.mark.parametrize("correction", ["bias_correction", "bn_reestimate"])
def test_corrections_need_no_kept_range(dynamic, correction):
    options = {"bits": 2, "dynamic_ranges": dynamic}
    start = Start(**{correction: True}, bn_reestimate_end=True)
    corrected = tiny_trainer(start=start, **options)
    without = tiny_trainer(**options)
    for trainer in (corrected, without):
        trainer.calibrate(2)
    means = [t.student.get_submodule("4").running_mean for t in (corrected, without)]
    assert not torch.equal(*means)
    assert corrected.train() is not corrected.student


def test_no_process_waits_for_another(monkeypatch):
    def asked():
        raise AssertionError("asked for the other processes")

    monkeypatch.setattr(qact, "joined_world", asked)
    QAct(3, dynamic_range=True).train()(random(2, 3, 6, 6))
    with pytest.raises(AssertionError):
        QAct(3).train()(random(2, 3, 6, 6))


# ---- files ----


@pytest.mark.parametrize("dynamic", KINDS)
@pytest.mark.parametrize("bits", [2, 3])
def test_packed_and_loaded(tmp_path, dynamic, bits):
    trainer = tiny_trainer(bits=bits, dynamic_ranges=dynamic)
    student = trainer.train()
    path = tmp_path / "student.safetensors"
    gdfq.save(student, path)
    for model in (tiny_teacher(), student):
        loaded = gdfq.load(path, model)
        with torch.no_grad():
            assert torch.equal(loaded(IMAGES), student(IMAGES))
    notes = {row.name: row.note for row in inspect_file(path).rows}
    assert ("kernel" in notes["3"]) == (dynamic != "act")
    assert ("dynamic" in notes["2"]) == (dynamic != "weight")
    told = float(inspect_file(path).facts["a weight with its scales"].split()[0])
    assert told == pytest.approx(effective_weight_bits(student), abs=0.02)


def test_a_file_with_ranges_does_not_fit_a_dynamic_model(tmp_path):
    gdfq.save(tiny_trainer(bits=3).train(), tmp_path / "student.safetensors")
    with pytest.raises(gdfq.InputError, match="has dynamic ranges in the model"):
        gdfq.load(tmp_path / "student.safetensors", student_of("act"))


@pytest.mark.parametrize("decompose", [False, True])
def test_pt2(tmp_path, decompose):
    student = tiny_trainer(bits=3, dynamic_ranges="both").train()
    export_pt2(student, tmp_path / "student.pt2", IMAGES, decompose=decompose)
    loaded = torch.export.load(tmp_path / "student.pt2").module()
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), student(IMAGES))
        assert torch.equal(loaded(IMAGES[:3]), student(IMAGES[:3]))


@pytest.mark.parametrize("dynamic", KINDS)
def test_onnx_is_refused(tmp_path, dynamic):
    student = student_of(dynamic)
    if dynamic == "weight":
        student = tiny_trainer(bits=3, dynamic_ranges=dynamic).train()
    gdfq.save(student, tmp_path / "student.safetensors")
    for each in (student, gdfq.load(tmp_path / "student.safetensors", tiny_teacher())):
        with pytest.raises(gdfq.InputError, match=r"dynamic_ranges.*inside its sum"):
            export_onnx(each, tmp_path / "student.onnx", IMAGES)
    assert not (tmp_path / "student.onnx").exists()


class Functions(nn.Module):
    """Layers that are called as functions, one of them with a weight that is computed."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(4, 2, 3, 3, generator=generator))
        self.second = nn.Parameter(torch.randn(4, 4, 3, 3, generator=generator))

    def forward(self, x):
        x = F.relu(F.conv2d(x, self.first, padding=1))
        return F.conv2d(x, self.second * 2, padding=1).mean((2, 3))


def test_functions_too(tmp_path):
    student = gdfq.quantize_model(Functions(), 3, 3, dynamic_ranges="both")
    reasons = [op.reason for op in student.coverage.operations if "weight" in op.reason]
    assert reasons[0] == "weight, 3 bits per kernel"
    model = Functions()
    x = plain(F.conv2d(IMAGES, plain(model.first, 3, (2, 3)), padding=1).relu(), 3, (2, 3))
    expected = F.conv2d(x, plain(model.second * 2, 3, (2, 3)), padding=1).mean((2, 3))
    torch.testing.assert_close(student(IMAGES), expected)
    gdfq.save(student, tmp_path / "student.safetensors")
    loaded = gdfq.load(tmp_path / "student.safetensors", Functions())
    assert torch.equal(loaded(IMAGES), student(IMAGES))
    with pytest.raises(gdfq.InputError, match="dynamic_ranges"):
        export_onnx(loaded, tmp_path / "student.onnx", IMAGES)


# ---- bits ----


def test_scales_are_counted():
    # Weights 8x2x3x3, 12x8x3x3 and 4x12; activations 8x8x8 and 12x4x4 a sample.
    elements = 144 + 864 + 48
    assert effective_weight_bits(student_of("none")) == 3 + 64 * (8 + 12 + 4) / elements
    assert effective_weight_bits(student_of("weight")) == 3 + 64 * (16 + 96 + 4) / elements
    assert effective_act_bits(student_of("none"), IMAGES) == 3
    assert effective_act_bits(student_of("act"), IMAGES) == 3 + 64 * (8 + 12) / (512 + 192)
    # 32 levels: the second activation, of 16 elements a channel, has one range a sample.
    assert effective_act_bits(student_of("act", 5), IMAGES) == 5 + 64 * (8 + 1) / (512 + 192)
    assert effective_act_bits(nn.Conv2d(2, 3, 1), IMAGES) is None


def test_a_run_tells_what_it_spends(tmp_path):
    result = gdfq.quantize(
        tiny_teacher(), 4, 8, out=tmp_path / "run", progress=False, width=8, latent_dim=10,
        batch_size=8, epochs=2, steps_per_epoch=2, warmup_epochs=1, calibration_batches=2,
        memory_format="contiguous", mean=(0.5, 0.5), std=(0.25, 0.25), weight_bits=3, act_bits=3,
        recipe="fashion-mnist-resnet20-paper", dynamic_ranges="both",
    )  # fmt: skip
    numbers = result.metrics
    assert numbers["dynamic_ranges"] == "both"
    assert numbers["effective_weight_bits"] == effective_weight_bits(result.student)
    assert numbers["effective_act_bits"] == effective_act_bits(result.student, IMAGES)
    assert "W3A3, dynamic ranges (with scales W10.03A4.82)" in repr(result)
    page = result.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "weights 10.03, activations 4.82 bits" in page
    assert "no integer runtime" in page
    assert "could not" not in page
    with pytest.raises(gdfq.InputError, match="dynamic_ranges"):
        result.export(tmp_path / "student.onnx", "onnx")
    assert result.export(tmp_path / "packed.safetensors", "safetensors").difference == 0


# ---- what goes together ----


@pytest.mark.parametrize(
    ("dynamic", "settings", "both"),
    [
        ("act", {"act_ranges": "mse"}, ("act_ranges", "dynamic_ranges")),
        ("both", {"act_ranges": "percentile"}, ("act_ranges", "dynamic_ranges")),
        ("act", {"equalize": True}, ("equalize", "dynamic_ranges")),
        ("weight", {"weight_ranges": "mse"}, ("weight_ranges", "dynamic_ranges")),
        ("both", {"rounding": "flip"}, ("rounding", "dynamic_ranges")),
        ("act", {"learned_ranges": "both"}, ("learned_ranges", "dynamic_ranges")),
        ("weight", {"learned_ranges": "weight"}, ("learned_ranges", "dynamic_ranges")),
    ],
)
def test_contradictions_name_both_keys(dynamic, settings, both):
    with pytest.raises(gdfq.InputError) as error:
        load_recipe("fashion-mnist-resnet20-paper").with_options(
            {"dynamic_ranges": dynamic, "weight_bits": 3, **settings}
        )
    assert all(key in str(error.value) for key in both)
    options = settings if "learned_ranges" in settings else {"start": Start(**settings)}
    with pytest.raises(gdfq.InputError) as error:
        tiny_trainer(bits=3, dynamic_ranges=dynamic, **options)
    assert all(key in str(error.value) for key in both)


def test_what_goes_together():
    recipe = load_recipe("fashion-mnist-resnet20-paper").with_options(
        {"dynamic_ranges": "act", "learned_ranges": "weight", "weight_ranges": "mse",
         "bn_reestimate": True, "rounding": "flip"}
    )  # fmt: skip
    assert parse_recipe(recipe.to_toml(), "it") == recipe
    trainer = tiny_trainer(
        bits=3, dynamic_ranges="act", learned_ranges="weight",
        start=Start(weight_ranges="mse", bn_reestimate=True, rounding="flip"),
    )  # fmt: skip
    trainer.train()
    assert len(part_of(trainer, "learned_ranges").parameters) == 6


def test_what_is_refused():
    with pytest.raises(gdfq.InputError, match="dynamic_ranges: must be one of"):
        student_of("all")
    with pytest.raises(gdfq.InputError, match="dynamic_ranges: must be one of"):
        QConv2d(1, 1, 1, dynamic_ranges="all")
    with pytest.raises(gdfq.InputError, match=r"the model has none; use 'act'"):
        student_of("both", 4)  # 9 elements, 16 levels
    with pytest.raises(gdfq.InputError, match="dynamic_range"):
        QAct(dynamic_range=True).learn_range()
    with pytest.raises(gdfq.InputError, match="dynamic_ranges"):
        QConv2d(1, 1, 1, dynamic_ranges="weight").keep_weight_range()
    with pytest.raises(gdfq.InputError, match="start"):
        tiny_trainer(start={"equalize": True})
