"""What is added to the paper's loop, as one validated object."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gdfq.errors import InputError
from gdfq.fields import changed_fields, describe_fields
from gdfq.ops._checks import check_choice

Objective = Literal["kd_ce", "logit_mse", "kl_only"]
Spread = Literal["variance", "std"]
StatisticsOf = Literal["teacher", "both"]


@dataclass(frozen=True)
class Parts:
    """Additions to the loop, all off by default; off, a step is the paper's, bit for bit.

    Args:
        objective: the student's loss: ``"kd_ce"`` (the paper's), ``"logit_mse"`` or
            ``"kl_only"``; see :mod:`gdfq.training.parts.objective`.
        ce_weight: of the cross-entropy in ``"kd_ce"`` and ``"logit_mse"``, >= 0.
        ce_gate: samples count in the cross-entropy only where the teacher's probabilities are at
            most so far from the label, in [0, 1]; None counts all.
        hard_sample_gamma: exponent of the weight ``(1 - p)**gamma`` of the generator's
            cross-entropy, >= 0; see :mod:`gdfq.training.parts.hard_samples`.
        hard_sample_step: the student is trained on images moved by so much towards what it gets
            wrong, >= 0. Costs about one more forward and backward pass of the student.
        code_change_share: each weight's gradient is scaled such that this share of its integer
            codes changes, in (0, 1); see :mod:`gdfq.training.parts.code_changes`.
        max_grad_norm: Euclidean norm that all of the student's gradients are shortened to where
            they exceed it, > 0; None leaves them. See :mod:`gdfq.training.parts.clipping`.
        mix_probability: share of images whose label is a mix of classes, in [0, 1]; see
            :mod:`gdfq.training.parts.mixed_labels`.
        mix_classes: classes in a mix, >= 2.
        low_pass: standard deviation, in periods per image, of the Gaussian that damps the images'
            frequencies; None leaves them. See :mod:`gdfq.training.parts.low_pass`.
        bns_spread: what the batch-norm statistics' loss compares beside means: ``"variance"`` or
            ``"std"``, the standard deviation.
        bns_layers: glob patterns of the batch norms that it compares.
        bns_of: ``"teacher"``, or ``"both"``: the student's statistics too, once it is fine-tuned.
            See :mod:`gdfq.training.parts.statistics`.
        ema_decay: of an exponential average of the student's parameters, in [0, 1); 0 keeps none.
            With it, the average is what is measured and saved.
        replay_batches: batches of older images that are kept for the student; 0 keeps none.
        replay_share: share of the student's images taken from these, in (0, 1).
        range_lr: learning rate of the ranges that are learned, > 0; it follows the student's
            schedule. See :mod:`gdfq.training.learned_ranges`.

    Raises:
        InputError: a value is out of range, or two contradict each other.
    """

    objective: Objective = "kd_ce"
    ce_weight: float = 1.0
    ce_gate: float | None = None
    hard_sample_gamma: float = 0.0
    hard_sample_step: float = 0.0
    code_change_share: float | None = None
    max_grad_norm: float | None = None
    mix_probability: float = 0.0
    mix_classes: int = 2
    low_pass: float | None = None
    bns_spread: Spread = "variance"
    bns_layers: Sequence[str] = ("*",)
    bns_of: StatisticsOf = "teacher"
    ema_decay: float = 0.0
    replay_batches: int = 0
    replay_share: float = 0.5
    range_lr: float = 1e-2

    def __post_init__(self) -> None:
        _check_values(self)
        _check_contradictions(self)
        object.__setattr__(self, "bns_layers", tuple(self.bns_layers))

    def check_alpha(self, alpha: float) -> None:
        """Raise an InputError if, with the divergence's weight ``alpha``, no loss is left."""
        without = self._without_cross_entropy()
        if self.objective != "logit_mse" and alpha == 0 and without:
            raise InputError(f"alpha: must be > 0 with {without}: the student's loss is 0 with 0")

    def _without_cross_entropy(self) -> str | None:
        """What leaves the student's loss without a cross-entropy; None where it has one."""
        if self.objective == "kl_only":
            return "objective = 'kl_only'"
        return None if self.ce_weight else "ce_weight = 0"

    def changed(self) -> dict[str, Any]:
        """The fields that are not at their defaults."""
        return changed_fields(self)

    def describe(self) -> str:
        """One line: the fields that are not at their defaults."""
        return describe_fields(self, "none, the paper's loop")


def _check_values(parts: Parts) -> None:
    check_choice("objective", parts.objective, get_args(Objective))
    check_choice("bns_spread", parts.bns_spread, get_args(Spread))
    check_choice("bns_of", parts.bns_of, get_args(StatisticsOf))
    for name, number, minimum in (
        ("mix_classes", parts.mix_classes, 2),
        ("replay_batches", parts.replay_batches, 0),
    ):
        if isinstance(number, bool) or not isinstance(number, int) or number < minimum:
            raise InputError(f"{name}: must be an int >= {minimum}, got {number!r}")
    for name, value, sound, allowed_values in (
        ("ce_weight", parts.ce_weight, 0 <= parts.ce_weight < math.inf, ">= 0 and finite"),
        ("ce_gate", parts.ce_gate, parts.ce_gate is None or 0 <= parts.ce_gate <= 1, "in [0, 1]"),
        (
            "hard_sample_gamma", parts.hard_sample_gamma,
            0 <= parts.hard_sample_gamma < math.inf, ">= 0 and finite",
        ),
        (
            "hard_sample_step", parts.hard_sample_step,
            0 <= parts.hard_sample_step < math.inf, ">= 0 and finite",
        ),
        (
            "code_change_share", parts.code_change_share,
            parts.code_change_share is None or 0 < parts.code_change_share < 1, "in (0, 1)",
        ),
        (
            "max_grad_norm", parts.max_grad_norm,
            parts.max_grad_norm is None or 0 < parts.max_grad_norm < math.inf, "> 0 and finite",
        ),
        ("mix_probability", parts.mix_probability, 0 <= parts.mix_probability <= 1, "in [0, 1]"),
        (
            "low_pass", parts.low_pass,
            parts.low_pass is None or 0 < parts.low_pass < math.inf, "> 0 and finite",
        ),
        ("ema_decay", parts.ema_decay, 0 <= parts.ema_decay < 1, "in [0, 1)"),
        ("range_lr", parts.range_lr, 0 < parts.range_lr < math.inf, "> 0 and finite"),
        ("replay_share", parts.replay_share, 0 < parts.replay_share < 1, "in (0, 1)"),
    ):  # fmt: skip
        if not sound:
            raise InputError(f"{name}: must be {allowed_values}, got {value!r}")
    layers = parts.bns_layers
    if isinstance(layers, str) or not layers or not all(isinstance(p, str) for p in layers):
        raise InputError(f"bns_layers: must be a list of glob patterns, got {layers!r}")


def _check_contradictions(parts: Parts) -> None:
    changed = parts.changed()
    if parts.objective == "kl_only" and "ce_weight" in changed:
        raise InputError("ce_weight: objective = 'kl_only' has no cross-entropy to weight")
    without = parts._without_cross_entropy()
    if parts.ce_gate is not None and without:
        raise InputError(f"ce_gate: with {without} there is no cross-entropy to gate")
    if parts.max_grad_norm is not None and parts.code_change_share is not None:
        raise InputError("max_grad_norm: code_change_share decides how long gradients are")
    for name, needs in (("mix_classes", "mix_probability"), ("replay_share", "replay_batches")):
        if name in changed and needs not in changed:
            raise InputError(f"{name}: has no effect without {needs}")
