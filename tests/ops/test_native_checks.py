"""Native operators called past their wrappers refuse sizes and names that don't fit."""

import pytest
import torch

from gdfq.ops import _backend

# The reference and Triton kernels stand behind the same wrappers and read nothing out of bounds.
pytestmark = pytest.mark.skipif(
    _backend.chosen() in ("reference", "triton"), reason="checks of the native operators"
)

SHAPE, CHANNELS = (4, 8, 2), 8
BITS, EPS, SLOPE, MOMENTUM = 3, 1e-5, 0.2, 0.9


def x():
    return torch.randn(SHAPE)


def vector():
    return torch.rand(CHANNELS) + 0.5


def number(value=1.0):
    return torch.tensor(value)


def moving_range():
    return {**{name: number() for name in ("average_lo", "average_hi", "lo", "hi")},
            "num_batches_tracked": number(0)}  # fmt: skip


def norm():
    names = ("running_mean", "running_var", "weight", "bias")
    return {**{name: vector() for name in names}, "eps": EPS}


def bounds(make=number):
    return {"lo": -make(), "hi": make(), "bits": BITS}


def bn_act():
    return {**norm(), **bounds(), "act": "relu", "residual": x(), "ste": "clip"}


def batch_affine():
    return {"weight": vector(), "bias": vector(), "eps": EPS, "negative_slope": SLOPE}


def statistics():
    return {"mean": vector(), "running_var": vector(), "weight": vector(), "eps": EPS}


def lists(names):
    return {name: [vector(), vector()] for name in names}


LAYERS = ("means", "vars", "running_means", "running_vars")

OPTIONS = {"ste": "clip", "zero_in_range": True}

# Of each operator, arguments that it takes.
TAKEN = {
    "fake_quantize": lambda: {"x": x(), **bounds(), "axis": None, "ste": "learned"},
    "fake_quantize_backward": lambda: {"grad": x(), "x": x(), **bounds(vector), "axis": 1},
    "fake_quantize_learned_backward": lambda: {"grad": x(), "x": x(), **bounds(vector), "axis": 1},
    "fake_quantize_minmax": lambda: {"w": x(), "bits": BITS, "axis": 0, **OPTIONS},
    "fake_quantize_minmax_list": lambda: {"ws": [x()], "bits": [BITS], **OPTIONS},
    "fake_quantize_minmax_list_backward": lambda: {
        **{name: [torch.randn(300, 4)] for name in ("grads", "ws")},
        **{name: [torch.rand(300)] for name in ("los", "his")},
        "bits": [BITS],
    },
    "count_changed_codes": lambda: {
        **{name: [torch.randn(300, 4)] for name in ("ws", "updates")},
        "factors": torch.ones(1),
        **{name: [torch.rand(300)] for name in ("los", "his")},
        "bits": [BITS],
    },
    "observe_fake_quantize": lambda: {
        "x": x(), **moving_range(), "bits": BITS, "momentum": MOMENTUM, **OPTIONS,
    },
    "quantize_codes": lambda: {"x": x(), **bounds(vector), "axis": 1},
    "batch_norm_stats": lambda: {"x": x(), **norm()},
    "batch_norm_stats_backward": lambda: {
        "grad_y": x(), "grad_mean": vector(), "grad_var": vector(), "x": x(), **statistics(),
    },
    "bn_act_fake_quantize": lambda: {"x": x(), **bn_act()},
    "bn_act_fake_quantize_backward": lambda: {"grad": x(), "x": x(), **bn_act()},
    "observe_bn_act_fake_quantize": lambda: {
        "x": x(), **bn_act(), **moving_range(), "momentum": MOMENTUM, **OPTIONS,
    },
    "bn_leaky_relu": lambda: {"x": x(), **batch_affine()},
    "bn_leaky_relu_backward": lambda: {
        "grad": x(), "x": x(), "mean": vector(), "var": vector(), **batch_affine(),
    },
    "bns_loss": lambda: lists(LAYERS),
    "bns_loss_backward": lambda: {"grad": number(), **lists(LAYERS)},
}  # fmt: skip

FEWER = {"x": lambda: x()[:, :2], "vector": lambda: vector()[:2], "one": lambda: vector()[:1]}

# What each operator refuses: an argument, what it is instead, and what the error says.
REFUSED = [
    ("fake_quantize", "ste", "bad", "ste must be"),
    ("fake_quantize", "bits", 9, "bits must be 2 to 8, got 9"),
    *[
        (op, "ste", "learned", "ste must be")
        for op, taken in TAKEN.items() if taken().get("ste") == "clip"
    ],
    *[(op, "bits", 1, "bits must be 2 to 8, got 1") for op in TAKEN if "observe" in op],
    *[("fake_quantize", bound, "one", r"lo and hi .* shape \[1\]") for bound in ("lo", "hi")],
    *[
        (op, bound, "one", r"lo and hi .* shape \[1\]")
        for op in ("fake_quantize_backward", "fake_quantize_learned_backward", "quantize_codes",
                   "bn_act_fake_quantize", "bn_act_fake_quantize_backward")
        for bound in ("lo", "hi")
    ],
    *[
        ("fake_quantize_minmax_list_backward", bound, ["one"], r"lo and hi .* shape \[1\]")
        for bound in ("los", "his")
    ],
    ("fake_quantize_minmax_list_backward", "grads", ["one"], "grad must have"),
    *[
        ("count_changed_codes", bound, ["one"], r"lo and hi .* shape \[1\]")
        for bound in ("los", "his")
    ],
    ("count_changed_codes", "updates", ["one"], "update must have"),
    ("count_changed_codes", "factors", "vector", "factors must be one number for each"),
    *[
        (op, "grad", change, "grad must have x's shape")
        for op in ("fake_quantize_backward", "fake_quantize_learned_backward",
                   "bn_act_fake_quantize_backward", "bn_leaky_relu_backward")
        for change in ("one", "x")
    ],
    *[
        (op, argument, change, f"{argument} must be one number for each channel")
        for op, arguments in {
            "batch_norm_stats": ("running_mean", "running_var", "weight", "bias"),
            "batch_norm_stats_backward": ("grad_mean", "grad_var", "running_var", "weight"),
            "bn_act_fake_quantize": ("running_mean", "running_var", "weight", "bias"),
            "bn_act_fake_quantize_backward": ("running_mean", "running_var", "weight", "bias"),
            "observe_bn_act_fake_quantize": ("running_mean", "running_var", "weight", "bias"),
            "bn_leaky_relu_backward": ("mean", "var"),
        }.items()
        for argument in arguments
        for change in ("vector", "one")
    ],
    ("batch_norm_stats_backward", "mean", "vector", "one number for each channel"),
    ("batch_norm_stats_backward", "grad_y", "one", "grad_y must have x's shape"),
    ("batch_norm_stats_backward", "grad_y", "x", "grad_y must have x's shape"),
    *[
        (op, argument, change, r"weight and bias must be \(C\) or \(N, C\)")
        for op in ("bn_leaky_relu", "bn_leaky_relu_backward")
        for argument in ("weight", "bias")
        for change in ("vector", "one")
    ],
    *[
        (op, buffer, "one", f"{buffer} must be one")
        for op in ("observe_fake_quantize", "observe_bn_act_fake_quantize")
        for buffer in moving_range()
    ],
    *[
        (op, argument, ["vector", "one"], "layer 0: statistics must have one shape")
        for op in ("bns_loss", "bns_loss_backward")
        for argument in LAYERS[1:]
    ],
    ("bns_loss_backward", "grad", "vector", "one number|converted to Scalar"),
]  # fmt: skip


@pytest.mark.parametrize("op", TAKEN)
def test_taken(op):
    getattr(torch.ops.gdfq, op)(**TAKEN[op]())


def changed(value, change):
    """A smaller tensor, each tensor of a list made smaller, or what stands for itself."""
    if isinstance(change, list):
        return [FEWER[c]() for c in change]
    return FEWER.get(change, lambda: change)() if isinstance(value, torch.Tensor) else change


@pytest.mark.parametrize(("op", "argument", "change", "message"), REFUSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_refused(op, argument, change, message, dtype):
    given = TAKEN[op]()
    given[argument] = changed(given[argument], change)
    if "x" in given and not op.startswith("bn_leaky_relu"):
        given["x"] = given["x"].to(dtype)
    before = {name: t.clone() for name, t in given.items() if name in moving_range()
              and isinstance(t, torch.Tensor)}  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.gdfq, op)(**given)
    assert all(given[name].equal(t) for name, t in before.items())
