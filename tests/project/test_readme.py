"""What the documents show, as it is: the README's way to a student, a whole recipe."""

import re
from pathlib import Path

import torch
import torchvision

import gdfq
from gdfq.nn import QAct
from gdfq.recipes import Recipe
from gdfq.recipes.files import parse_recipe

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def python_blocks(heading):
    section = README.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.S)


def half_a_resnet18(weights=None):
    """ResNet-18 with one block a stage."""
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])


def test_resnet18_from_nothing_to_a_student(monkeypatch, tmp_path, capsys):
    code, parts, *_ = python_blocks("Your own network")
    assert len([line for line in code.splitlines() if line.strip()]) < 10

    # As it is, but for weights that need a network, and for half of the blocks, and a size and a
    # length, that take long.
    assert 'resnet18(weights="DEFAULT")' in code
    monkeypatch.setattr(torchvision.models, "resnet18", half_a_resnet18)
    short = {"epochs": 2, "warmup_epochs": 1, "steps_per_epoch": 1, "calibration_batches": 1}
    quantize, trainer = gdfq.quantize, gdfq.GDFQTrainer
    monkeypatch.setattr(
        gdfq,
        "quantize",
        lambda *args, **options: quantize(*args, **options, **short, batch_size=4, width=8),
    )
    monkeypatch.setattr(
        gdfq,
        "GDFQTrainer",
        lambda *args, **options: trainer(*args, **{**options, **short}),
    )
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {}
    for block in (code, parts):
        assert "image_size=224" in block
        exec(block.replace("image_size=224", "image_size=32"), names)

    out = capsys.readouterr().out
    assert "student after fine-tuning" in out
    assert "layer1.0.relu_1" in out
    for student in (names["result"].student, names["student"], gdfq.load("student.safetensors",
                    half_a_resnet18())):  # fmt: skip
        assert all(m.num_batches_tracked == 1 for m in student.modules() if isinstance(m, QAct))
        assert student(torch.randn(2, 3, 32, 32)).isfinite().all()
    assert {p.name for p in tmp_path.iterdir()} == {
        "student.onnx", "student.safetensors", "student.html",
    }  # fmt: skip


def test_a_whole_recipe():
    document = (ROOT / "docs" / "teachers.md").read_text()
    recipe = parse_recipe(re.search(r"```toml\n(.*?)```", document, re.S)[1], "teachers.md")
    shown = recipe.model_dump(exclude_unset=True)
    assert set(shown) == set(Recipe.model_fields)
    assert recipe.exceptions()["layer1.*"] == {"weight": 6, "act": 6}
    # All that a recipe has to have.
    least = Recipe.read({"name": "mine", "teacher": {"model": "gdfq:resnet20"}}, "here")
    assert least.description == ""
