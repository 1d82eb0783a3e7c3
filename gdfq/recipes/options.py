"""Fields of a recipe as keyword arguments, for type checkers and editors.

Written by ``python -m tests.recipes.test_options`` from :mod:`gdfq.recipes.schema`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict


class RecipeOptions(TypedDict, total=False):
    """Every field of a recipe by its name alone, see :mod:`gdfq.recipes.schema`.

    ``bits``: ``{"layer1.*": {"weight": 8, "act": 6}, ...}``, exceptions by glob pattern.
    """

    bits: Mapping[str, Mapping[str, int]]
    name: str
    description: str
    # teacher
    weights: str
    data: Literal["fashion-mnist", "cifar10", "cifar100", "imagenet", "photographs", "none"]
    data_path: str
    channels: int
    mean: Sequence[float]
    std: Sequence[float]
    resize: int
    crop: Literal["center", "squash"]
    interpolation: Literal["nearest", "bilinear", "bicubic"]
    # quantization
    weight_bits: int
    act_bits: int
    first_last_bits: int
    ste: Literal["identity", "clip"]
    range_momentum: float
    zero_in_range: bool
    learned_ranges: Literal["none", "act", "weight", "both"]
    dynamic_ranges: Literal["none", "act", "weight", "both"]
    leaf_modules: Sequence[str]
    # generator
    latent_dim: int
    width: int
    conditional_bn: bool
    generated_size: int
    # training
    batch_size: int
    epochs: int
    steps_per_epoch: int
    warmup_epochs: int
    calibration_batches: int
    student_lr: float
    momentum: float
    weight_decay: float
    generator_lr: float
    bns_weight: float
    temperature: float
    alpha: float
    schedule: Literal["step", "cosine", "constant"]
    milestones: Sequence[int]
    precision: Literal["fp32", "tf32", "bf16"]
    memory_format: Literal["auto", "channels_last", "contiguous"]
    seed: int
    # parts
    objective: Literal["kd_ce", "logit_mse", "kl_only"]
    ce_weight: float
    ce_gate: float
    hard_sample_gamma: float
    hard_sample_step: float
    code_change_share: float
    max_grad_norm: float
    mix_probability: float
    mix_classes: int
    low_pass: float
    bns_spread: Literal["variance", "std"]
    bns_layers: Sequence[str]
    bns_of: Literal["teacher", "both"]
    ema_decay: float
    replay_batches: int
    replay_share: float
    range_lr: float
    # start
    act_ranges: Literal["minmax", "mse", "percentile"]
    percentile: float
    weight_ranges: Literal["minmax", "mse"]
    equalize: bool
    bias_correction: bool
    bn_reestimate: bool
    bn_reestimate_end: bool
    rounding: Literal["nearest", "flip"]
