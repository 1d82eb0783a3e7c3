import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import gdfq
from gdfq.losses import kd_ce_loss
from gdfq.ops.kd_ce_loss import kd_ce_loss_reference
from tests.ops import draws
from tests.ops.cases import check_unknown_label, every_dtype, every_unknown_label, same_bits

SHAPES = ((200, 10), (1, 1), (3, 100), (16, 1000), (2, 21841), (5, 17))
every_logits_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
both_labels = pytest.mark.parametrize("labels", ["hard", "soft"])


def inputs(shape, labels, dtype=torch.float32, spread=3.0, seed=0):
    torch.manual_seed(seed)
    student = (torch.randn(shape) * spread).to(dtype)
    teacher = (torch.randn(shape) * spread).to(dtype)
    if labels == "hard":
        return student, teacher, torch.randint(shape[1], shape[:1])
    return student, teacher, torch.rand(shape).softmax(1)


def formula(student, teacher, labels, temperature, alpha):
    """The loss from PyTorch's own, in float64."""
    student, teacher = student.double(), teacher.double()
    divergence = (
        F.kl_div(
            F.log_softmax(student / temperature, 1),
            F.log_softmax(teacher / temperature, 1),
            reduction="sum",
            log_target=True,
        )
        / student.numel()
    )
    labels = labels.double() if labels.is_floating_point() else labels
    return F.cross_entropy(student, labels) + alpha * temperature**2 * divergence


@every_dtype
@every_logits_shape
@both_labels
@pytest.mark.parametrize(("temperature", "alpha"), [(20.0, 1.0), (1.0, 0.0), (0.5, 3.0)])
def test_loss_and_gradient_agree_with_float64(dtype, shape, labels, temperature, alpha):
    student, teacher, labels = inputs(shape, labels, dtype)
    wide = student.double().requires_grad_()
    expected = formula(wide, teacher, labels, temperature, alpha)
    (expected_grad,) = torch.autograd.grad(expected, wide)

    student.requires_grad_()
    loss = kd_ce_loss(student, teacher, labels, temperature, alpha)
    (grad,) = torch.autograd.grad(loss, student)
    assert loss.dtype == torch.float32
    assert grad.dtype == dtype
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-12)
    tolerance = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    # float16's gradients of many classes are subnormal numbers.
    floor = 6e-8 if dtype == torch.float16 else 1e-14
    torch.testing.assert_close(grad.double(), expected_grad, rtol=tolerance, atol=floor)


@both_labels
def test_equals_the_reference(labels):
    arguments = inputs((50, 33), labels)
    actual = torch.ops.gdfq.kd_ce_loss(*arguments, 20.0, 1.0)
    torch.testing.assert_close(actual, kd_ce_loss_reference(*arguments), rtol=1e-6, atol=1e-12)


def test_divergence_of_nearly_equal_distributions():
    """At T = 20 a float32 log-softmax would leave no correct digit of it."""
    torch.manual_seed(0)
    student = torch.randn(20, 1000)
    teacher = student + 1e-3 * torch.randn(20, 1000)
    labels = torch.zeros(20, 1000)  # no cross-entropy
    expected = formula(student, teacher, labels, 20.0, 1.0)
    actual = kd_ce_loss(student, teacher, labels)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("spread", [100.0, 3e4])
def test_far_logits_are_finite(spread):
    student, teacher, labels = inputs((40, 30), "hard", spread=spread)
    student.requires_grad_()
    loss = kd_ce_loss(student, teacher, labels, 1.0)
    loss.backward()
    expected = formula(student.detach(), teacher, labels, 1.0, 1.0)
    torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-6, atol=0)
    assert student.grad.isfinite().all()


def test_nan_is_not_hidden():
    student, teacher, labels = inputs((4, 20), "hard")
    for position in range(20):
        for which in (student, teacher):
            kept = which[1, position].item()
            which[1, position] = float("nan")
            assert kd_ce_loss(student, teacher, labels).isnan()
            which[1, position] = kept


@both_labels
def test_gradcheck(labels):
    student, teacher, labels = inputs((4, 7), labels, torch.float64)
    student.requires_grad_()
    for function in (kd_ce_loss, lambda *a: kd_ce_loss_reference(*a)[0]):
        assert torch.autograd.gradcheck(
            lambda s, function=function: function(s, teacher, labels, 4.0, 2.0), (student,)
        )


def test_soft_labels_that_are_one_hot_equal_hard_labels():
    student, teacher, labels = inputs((20, 10), "hard")
    one_hot = F.one_hot(labels, 10).float()
    assert same_bits(kd_ce_loss(student, teacher, labels), kd_ce_loss(student, teacher, one_hot))


def test_strided_logits():
    student, teacher, labels = inputs((20, 10), "hard")
    expected = kd_ce_loss(student, teacher, labels)
    turned = student.T.contiguous().T
    expanded = teacher[:1].expand(20, 10)
    apart = kd_ce_loss(student, expanded.contiguous(), labels)
    assert same_bits(kd_ce_loss(turned, expanded, labels), apart)
    assert same_bits(kd_ce_loss(turned, teacher, labels), expected)


@every_dtype
@both_labels
def test_opcheck(dtype, labels):
    student, teacher, labels = inputs((4, 7), labels, dtype)
    opcheck(
        torch.ops.gdfq.kd_ce_loss.default,
        (student.requires_grad_(), teacher, labels, 20.0, 1.0),
    )


def test_compiles_without_graph_break():
    student, teacher, labels = inputs((4, 7), "hard")
    student.requires_grad_()
    compiled = torch.compile(kd_ce_loss, fullgraph=True, backend="aot_eager")
    grads = [
        torch.autograd.grad(f(student, teacher, labels), student) for f in (kd_ce_loss, compiled)
    ]
    assert same_bits(grads[0][0], grads[1][0])


@pytest.mark.values_checked
@pytest.mark.parametrize("label", [-1, 3])
def test_label_out_of_range(label):
    with pytest.raises(IndexError, match=rf"labels\[1\] is {label}, but there are 3 classes"):
        kd_ce_loss(torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0, label]))


with_double = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@pytest.mark.values_unchecked
@every_unknown_label
@with_double
def test_unknown_label_makes_the_loss_nan(label, dtype):
    check_unknown_label(torch.ops.gdfq.kd_ce_loss, label, dtype)


@every_unknown_label
@with_double
def test_unknown_label_makes_the_reference_nan(label, dtype, monkeypatch):
    """As it would be on a GPU, where the reference doesn't look at values either."""
    monkeypatch.setattr("gdfq.ops.kd_ce_loss.check_classes", lambda *_: None)
    check_unknown_label(kd_ce_loss_reference, label, dtype)


L, Y = torch.ones(2, 3), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3), torch.ones(3), Y), r"both must have one shape \(B, K\)"),
        ((L, torch.ones(2, 4), Y), r"got \(2, 3\) and \(2, 4\)"),
        ((L[:0], L[:0], Y[:0]), "student_logits: must not be empty"),
        ((L.int(), L, Y), "student_logits: dtype"),
        ((L, L, torch.zeros(3).long()), r"labels: shape must be \(2,\) or \(2, 3\), got \(3,\)"),
        ((L, L, Y.int()), "labels: dtype of classes must be torch.int64"),
        ((L, L, L.long()), "labels: dtype"),
        ((L, L.to("meta"), Y), "teacher_logits: must be on cpu"),
        ((L, L, Y, 0.0), "temperature: must be > 0 and finite, got 0.0"),
        ((L, L, Y, float("inf")), "temperature: must be > 0 and finite, got inf"),
        ((L, L, Y, 1.0, -1.0), "alpha: must be >= 0, got -1.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(gdfq.InputError, match=message):
        kd_ce_loss(*arguments)


@given(st.data())
def test_agrees_with_float64_on_drawn_tensors(data):
    shape = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 70)))
    dtype = data.draw(draws.dtypes)
    student, teacher = (data.draw(draws.tensors(shape, dtype)) for _ in range(2))
    labels = inputs(shape, data.draw(st.sampled_from(["hard", "soft"])))[2]
    given = (student, teacher, data.draw(draws.strided(labels)))
    temperature, alpha = data.draw(st.floats(0.5, 50)), data.draw(st.floats(0, 5))
    loss = kd_ce_loss(*given, temperature, alpha)
    torch.testing.assert_close(
        loss.double(), formula(*given, temperature, alpha), rtol=1e-6, atol=1e-12
    )


def test_what_float32_cannot_hold_is_infinite():
    student, teacher = torch.tensor([[3e38, -3e38]]), torch.zeros(1, 2)
    assert kd_ce_loss(student, teacher, torch.tensor([1])) == float("inf")
