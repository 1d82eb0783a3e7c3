"""Bits per layer in recipes and on the command line."""

import json

import pytest

from gdfq import InputError
from gdfq.recipes import load_recipe
from gdfq.recipes.bits import parse_bits
from gdfq.runs.run import Run
from tests.cli.test_cli import RECIPE, SHORT, gdfq_command


def test_options_are_read():
    assert parse_bits(["layer1.*=w8a6", "fc=w8", "*.relu=a5", "a=b=w2"]) == {
        "layer1.*": {"weight": 8, "act": 6},
        "fc": {"weight": 8},
        "*.relu": {"act": 5},
        "a=b": {"weight": 2},
    }
    # The last that matches wins, so what is given again moves to the end.
    assert list(parse_bits(["fc=w8", "*=w3", "fc=w2"]).items()) == [
        ("*", {"weight": 3}),
        ("fc", {"weight": 2}),
    ]


@pytest.mark.parametrize("option", ["fc", "fc=", "fc=8", "=w8", "fc=w8a", "fc=a8w8", "fc=w8 "])
def test_bad_options(option):
    with pytest.raises(InputError, match="bits: must be PATTERN=wN"):
        parse_bits([option])


def test_the_command_line_s_exceptions_are_behind_the_recipe_s(tmp_path):
    recipe = load_recipe(RECIPE).with_options(
        {"bits": {"fc": {"weight": 8, "act": 7}, "*.relu": {"act": 6}}, "first_last_bits": 5}
    )
    recipe = recipe.with_options({"bits": {"layer1.*": {"weight": 3}, "fc": {"weight": 4}}})
    assert list(recipe.exceptions().items()) == [
        ("*.relu", {"act": 6}),
        ("layer1.*", {"weight": 3}),
        ("fc", {"act": 7, "weight": 4}),
    ]
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())
    again = load_recipe(str(path))
    assert again == recipe
    assert list(again.bits) == list(recipe.bits)
    assert again.quantization.first_last_bits == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"fc" = {weight = 9}', r"bits.fc.weight: must be an int from 2 to 8, got 9"),
        ('"fc" = {weights = 8}', r"bits.fc.weights: unknown key; allowed are weight, act"),
        ('"fc" = {}', r"bits.fc: must have weight or act or both"),
        ('"fc" = 8', r"bits.fc: .*got 8"),
    ],
)
def test_bad_tables(tmp_path, text, message):
    path = tmp_path / "recipe.toml"
    path.write_text(load_recipe(RECIPE).to_toml().replace("[bits]", f"[bits]\n{text}"))
    with pytest.raises(InputError, match=message):
        load_recipe(str(path))


def test_a_run_has_its_layers_bits_and_says_their_average(capsys, tmp_path):
    path = tmp_path / "recipe.toml"
    recipe = load_recipe(RECIPE).with_options({"bits": {"layer3.*": {"weight": 3, "act": 6}}})
    path.write_text(recipe.to_toml())
    arguments = [path if argument == RECIPE else argument for argument in SHORT]
    run = tmp_path / "run"
    code, out, err = gdfq_command(
        capsys, *arguments, "--first-last-bits", 8, "--bits", "layer3.0.*=w2", "--out", run
    )
    assert code == 0, err
    opened = Run(run)
    teacher, student = opened.teacher, opened.student
    widths = {
        path: student.get_submodule(path).weight_bits
        for path in ("conv1", "layer1.0.conv1", "layer3.0.conv2", "layer3.1.conv1", "fc")
    }
    assert list(widths.values()) == [8, 4, 2, 3, 8]
    assert student.get_submodule("layer3.0.relu").act_bits == 6
    total = bits = 0
    for name, parameter in teacher.named_parameters():
        if parameter.ndim > 1:
            path = name.removesuffix(".weight")
            width = 4 - path.startswith("layer3") - path.startswith("layer3.0")
            total += parameter.numel()
            bits += parameter.numel() * (8 if path in ("conv1", "fc") else width)
    average = json.loads((run / "result.json").read_text())["average_weight_bits"]
    assert average == pytest.approx(bits / total)
    assert f"student, W{bits / total:.2f}A4, after fine-tuning" in out


def test_a_pattern_that_matches_nothing_is_found_before_anything_starts(capsys, tmp_path):
    code, _, err = gdfq_command(
        capsys, *SHORT, "--bits", "layer3.0.convv1=w8", "--out", tmp_path / "run"
    )
    assert code == 2
    assert "bits: 'layer3.0.convv1' matches no layer" in err
    assert "layer3.0.conv1" in err
    assert not (tmp_path / "run").exists()
