"""``gdfq suggest-bits``, end to end."""

import itertools
import re
import signal
import subprocess
import sys

import pytest
import torch

from gdfq.bit_widths.allocation import allocate
from gdfq.bit_widths.sensitivity import Divergence, measure_sensitivities
from gdfq.bit_widths.suggest import suggest_bits
from gdfq.data import open_batches
from gdfq.nn import average_weight_bits
from gdfq.recipes import load_recipe
from gdfq.recipes.networks import build_generator, build_student, build_teacher, build_trainer
from tests.cli.test_cli import RECIPE, gdfq_command

TINY = [
    "suggest-bits", "--recipe", RECIPE, "--width", "8", "--batch-size", "8", "--steps", "3",
    "--batches", "1",
]  # fmt: skip


def _teacher(recipe):
    """The recipe in full, and its network."""
    recipe, loaded = build_teacher(recipe)
    return recipe, loaded.network


class Silent:
    def __getattr__(self, name):
        return lambda *a: None


def test_the_recipe_that_comes_out_is_one_that_goes_in(capsys, tmp_path):
    path = tmp_path / "mixed.toml"
    code, out, err = gdfq_command(capsys, *TINY, "--budget", 3.4, "--act-bits", 5, "--out", path)
    assert code == 0, err
    assert "measured fc  0 layers left" in out
    assert f"gdfq quantize --recipe {path}" in out
    recipe = load_recipe(str(path))
    assert (recipe.name, recipe.quantization.act_bits) == (f"{RECIPE}-3.4bits", 5)
    student = build_student(*_teacher(recipe))
    achieved = average_weight_bits(student)
    assert 3.2 < achieved <= 3.4
    number = r"[\d.]+"
    assert re.search(
        rf"{number} at these bits \({round(achieved, 3):g} on average, budget 3.4\), "
        rf"{number} at 3 everywhere, {number} at 4 everywhere\.",
        out,
    )
    rows = {row.split()[0]: row.split() for row in out.splitlines() if row.split()}
    for name in ("conv1", "layer2.0.downsample.0", "layer3.2.conv2", "fc"):
        layer = student.get_submodule(name)
        assert rows[name][1] == f"{layer.weight.numel():,}"
        assert rows[name][-1] == str(layer.weight_bits)
    code, _, err = gdfq_command(
        capsys, "quantize", "--recipe", path, "--data", "none", "--epochs", 1, "--warmup-epochs", 0,
        "--steps-per-epoch", 1, "--calibration-batches", 1, "--memory-format", "contiguous",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert code == 0, err


def test_the_recipe_s_own_bits_of_weights_are_replaced_and_those_of_activations_kept():
    bits = {"layer1.*": {"weight": 8, "act": 6}, "fc": {"weight": 8}}
    options = {"bits": bits, "first_last_bits": 8, "width": 8, "batch_size": 8}
    recipe = load_recipe(RECIPE).with_options(options)
    suggestion = suggest_bits(recipe, 2.5, Silent(), steps=2, batches=1)
    student = build_student(*_teacher(suggestion.recipe))
    widths = {name: student.get_submodule(name).weight_bits for name in suggestion.bits}
    assert widths == suggestion.bits
    assert average_weight_bits(student) == pytest.approx(suggestion.average_weight_bits)
    assert student.get_submodule("layer1.0.relu").act_bits == 6
    assert student.get_submodule("layer2.0.relu").act_bits == 4
    # The same seed on the same machine gives the same to the last bit, another seed does not.
    assert suggest_bits(recipe, 2.5, Silent(), steps=2, batches=1) == suggestion
    other = suggest_bits(recipe.with_options({"seed": 1}), 2.5, Silent(), steps=2, batches=1)
    assert other.layers != suggestion.layers


PARTS = {
    "nothing": {},
    "low_pass": {"low_pass": 2.0},
    "statistics": {"bns_spread": "std", "bns_layers": ["bn1", "layer1.*"]},
    "mixed labels": {"mix_probability": 0.5},
    "hard samples": {"hard_sample_gamma": 2.0},
}


@pytest.mark.parametrize("name", PARTS)
def test_images_are_those_of_the_run_s_warm_up(monkeypatch, name):
    options = {"width": 8, "batch_size": 8, "memory_format": "contiguous", "schedule": "constant"}
    recipe = load_recipe(RECIPE).with_options({**options, **PARTS[name]})
    measured = []

    def keep(teacher, images, **others):
        measured.extend(images)
        raise KeyboardInterrupt

    monkeypatch.setattr("gdfq.bit_widths.suggest.measure_sensitivities", keep)
    with pytest.raises(KeyboardInterrupt):
        suggest_bits(recipe, 3, Silent(), steps=2, batches=2)
    recipe, loaded = build_teacher(recipe)
    trainer = build_trainer(recipe, loaded, build_generator(recipe, loaded.preprocessing))
    for _ in range(2):
        assert "student" not in trainer.step()
    with torch.no_grad():
        expected = [trainer.images.make(*trainer.images.sample()) for _ in range(2)]
    assert all(map(torch.equal, measured, expected))
    assert len(measured) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "1.9"], "budget: must be average bits from 2 to 8, got 1.9"),
        (["--budget", "8.1"], "budget: must be average bits from 2 to 8, got 8.1"),
        (["--budget", "nan"], "budget: must be average bits from 2 to 8, got nan"),
        (["--budget", "3", "--steps", "-1"], "steps: must be >= 0, got -1"),
        (["--budget", "3", "--batches", "0"], "batches: must be >= 1, got 0"),
        (["--budget", "3", "--out", "here.txt"], "out: must be a .toml file, got here.txt"),
        (["--budget", "3", "--out", "no/such.toml"], "out: there is no folder no"),
        (["--budget", "3", "--recipe", "none-such"], "recipe: 'none-such' is none of"),
    ],
)
def test_bad_input(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = gdfq_command(capsys, *TINY, *arguments)
    assert code == 2
    assert message in err
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(capsys, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("mine")
    code, _, err = gdfq_command(capsys, *TINY, "--budget", 3, "--out", path)
    assert code == 2
    assert "exists; nothing is overwritten" in err
    assert path.read_text() == "mine"


def test_ctrl_c_ends_it_with_one_line_and_no_file(tmp_path):
    command = [sys.executable, "-m", "gdfq", *TINY, "--steps", "100000", "--budget", "3"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.strip() == "gdfq: interrupted; no recipe was written"
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def teacher_and_images():
    """The embedded network and eight batches of test images."""
    recipe, loaded = build_teacher(load_recipe(RECIPE))
    test_set = open_batches(recipe, loaded.preprocessing, workers=0)
    return loaded.network, [images for images, _ in itertools.islice(test_set, 8)]


def ratio_to_equal_bits(teacher, batches, layers, width):
    """The divergence of bits chosen by sensitivity, by that of ``width`` bits in each layer."""
    chosen = allocate(layers, width)
    measure = Divergence(teacher, batches)
    return measure({f"{n}.weight": w for n, w in chosen.items()}) / measure(
        {f"{n}.weight": width for n in chosen}
    )


@pytest.mark.thorough
def test_a_budget_spent_by_sensitivity_beats_equal_bits_on_other_images(teacher_and_images):
    """Nothing here is trained, so that the number of threads changes the ratio by rounding alone.

    With the batches 4, 6, 8 and 10 of the test set as the measured one, the ratios are 0.80, 0.86,
    0.67 and 0.72 at 3 bits, and 0.20, 0.12, 0.25 and 0.15 at 4.
    """
    teacher, batches = teacher_and_images
    layers = measure_sensitivities(teacher, [batches[4][:200]], widths=range(2, 6))
    assert ratio_to_equal_bits(teacher, batches[:4], layers, 3) < 0.9
    assert ratio_to_equal_bits(teacher, batches[:4], layers, 4) < 0.3


@pytest.mark.thorough
def test_a_budget_spent_by_sensitivity_beats_equal_bits_on_real_images(teacher_and_images):
    """On test images, which neither saw, and before any fine-tuning.

    A generator of 40 steps differs with the number of threads and the processor, as training
    amplifies rounding, and with it which of a few allocations is found. Of six, the ratios were
    0.77, 0.79, 0.79, 0.82, 0.97 and 0.97 at 3 bits, where all that holds is that the chosen bits
    are better, and 0.10 to 0.17 at 4.
    """
    teacher, batches = teacher_and_images
    suggestion = suggest_bits(load_recipe(RECIPE), 3.0, Silent(), steps=40, batches=1)
    assert suggestion.average_weight_bits <= 3
    assert suggestion.divergence < suggestion.uniform[3]
    assert list(suggestion.uniform) == [3]
    assert ratio_to_equal_bits(teacher, batches[:4], suggestion.layers, 3) < 1
    assert ratio_to_equal_bits(teacher, batches[:4], suggestion.layers, 4) < 0.6
