"""A mistake has one wording: in Python, in a recipe and on the command line."""

import pytest
import tomli_w
from torch import nn

import gdfq
from gdfq.errors import InputError
from gdfq.nn import QAct, QConv2d, QLinear
from gdfq.recipes import load_recipe
from gdfq.recipes.files import parse_recipe
from gdfq.recipes.schema import Teacher, fields
from gdfq.training import Parts, Start
from tests.cli.test_cli import gdfq_command
from tests.helpers.tiny import tiny_teacher

SECTIONS = {key: section for section, key, _ in fields()}
PLAIN = load_recipe("fashion-mnist-resnet20").model_dump(exclude_none=True)


def message_of(call, *arguments, **options):
    with pytest.raises(InputError) as error:
        call(*arguments, **options)
    return str(error.value)


def trainer(batch_size=16, **options):
    teacher = tiny_teacher()
    generator = gdfq.models.Generator(4, 8, channels=2, latent_dim=10, width=8)
    student = gdfq.quantize_model(teacher)
    return gdfq.GDFQTrainer(teacher, student, generator, 4, batch_size, **options)


def in_python(**options):
    """What refuses them where they are used."""
    section = SECTIONS[next(iter(options))]
    call = {
        "teacher": lambda **o: Teacher(model="gdfq:resnet20", **o),
        "quantization": lambda **o: gdfq.quantize_model(tiny_teacher(), **o),
        "generator": lambda **o: gdfq.models.Generator(4, 8, **o),
        "training": trainer,
        "parts": Parts,
        "start": Start,
    }[section]
    return message_of(call, **options)


MISTAKES = [
    ({"resize": 3}, "resize: must be an int >= 4, got 3"),
    ({"crop": "left"}, "crop: must be one of 'center' or 'squash', got 'left'"),
    ({"weight_bits": 9}, "weight_bits: must be an int from 2 to 8, got 9"),
    ({"act_bits": 1}, "act_bits: must be an int from 2 to 8, got 1"),
    ({"first_last_bits": 16}, "first_last_bits: must be an int from 2 to 8, got 16"),
    ({"ste": "soft"}, "ste: must be one of 'identity' or 'clip', got 'soft'"),
    ({"range_momentum": 1.0}, "range_momentum: must be a number in [0, 1), got 1.0"),
    (
        {"dynamic_ranges": "all"},
        "dynamic_ranges: must be one of 'none', 'act', 'weight' or 'both', got 'all'",
    ),
    (
        {"learned_ranges": "both", "dynamic_ranges": "act"},
        "dynamic_ranges: 'act' computes on the fly what learned_ranges = 'both' trains; a range is "
        "one or the other",
    ),
    ({"latent_dim": 0}, "latent_dim: must be an int >= 1, got 0"),
    ({"width": 1}, "width: must be an int >= 2, got 1"),
    ({"batch_size": 1}, "batch_size: must be an int >= 2, got 1"),
    ({"student_lr": 0.0}, "student_lr: must be a number > 0 and finite, got 0.0"),
    ({"momentum": 1.0}, "momentum: must be a number in [0, 1), got 1.0"),
    ({"alpha": -1.0}, "alpha: must be a number >= 0 and finite, got -1.0"),
    (
        {"schedule": "warm"},
        "schedule: must be one of 'step', 'cosine' or 'constant', got 'warm'",
    ),
    ({"epochs": 1, "warmup_epochs": 2}, "warmup_epochs: must be <= epochs = 1, got 2"),
    ({"ema_decay": 1.0}, "ema_decay: must be a number in [0, 1), got 1.0"),
    ({"mix_probability": 1.5}, "mix_probability: must be a number in [0, 1], got 1.5"),
    ({"low_pass": 0.0}, "low_pass: must be a number > 0 and finite, got 0.0"),
    ({"mix_classes": 1}, "mix_classes: must be an int >= 2, got 1"),
    ({"mix_classes": 3}, "mix_classes: has no effect without mix_probability"),
    ({"percentile": 50.0}, "percentile: must be a number in (50, 100], got 50.0"),
    ({"rounding": "up"}, "rounding: must be one of 'nearest' or 'flip', got 'up'"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_a_mistake_has_one_wording(capsys, tmp_path, options, message):
    section = SECTIONS[next(iter(options))]
    assert in_python(**options) == message
    quantized = message_of(gdfq.quantize, tiny_teacher(), 4, 8, **options)
    assert quantized == f"gdfq.quantize: {section}.{message}"
    tables = PLAIN | {section: {**PLAIN[section], **options}}
    recipe = message_of(parse_recipe, tomli_w.dumps(tables), "own.toml")
    assert recipe == f"own.toml: {section}.{message}"
    flags = [part for k, v in options.items() for part in (f"--{k.replace('_', '-')}", v)]
    code, _, err = gdfq_command(
        capsys, "quantize", "--recipe", "fashion-mnist-resnet20", *flags, "--out", tmp_path / "run"
    )
    assert (code, err.strip()) == (2, f"gdfq: command line: {section}.{message}")


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda **o: QConv2d(3, 4, 3, **o), {"weight_bits": 9}),
        (lambda **o: QLinear(3, 4, **o), {"ste": "soft"}),
        (lambda **o: QConv2d(3, 4, 3, **o), {"dynamic_ranges": "all"}),
        (lambda **o: QConv2d(3, 4, 3, **o), {"zero_in_range": 1}),
        (lambda **o: QLinear.from_float(nn.Linear(3, 4), **o), {"weight_bits": "4"}),
        (QAct, {"act_bits": 1}),
        (QAct, {"zero_in_range": "no"}),
    ],
)
def test_layers_have_the_same_wording(make, options):
    assert message_of(make, **options) == in_python(**options)


@pytest.mark.parametrize("momentum", ["a", 1.0, float("nan")])
def test_a_layer_s_momentum_has_the_recipe_s_wording(momentum):
    expected = message_of(gdfq.nn.Quantization, range_momentum=momentum)
    for make in (QAct, lambda **o: QAct.from_float(nn.ReLU(), **o)):
        assert f"range_{message_of(make, momentum=momentum)}" == expected


def test_a_layer_s_other_settings_are_checked_alike():
    expected = "dynamic_range: must be true or false, got 1"
    assert message_of(QAct, dynamic_range=1) == expected
    assert (
        message_of(QAct, act="gelu") == "act: must be one of 'relu', 'relu6' or 'none', got 'gelu'"
    )
