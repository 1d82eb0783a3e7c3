"""What the documents show, as it is: the README's way to a student, a whole recipe."""

import re
from pathlib import Path

import torch
import torchvision

import gdfq
from gdfq.nn import QAct
from gdfq.recipes.schema import Recipe, parse_recipe, validate

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def test_resnet18_from_nothing_to_a_student(monkeypatch, tmp_path, capsys):
    section = README.read_text().split("## Your own network")[1]
    code = re.search(r"```python\n(.*?)```", section, re.S)[1]
    assert len([line for line in code.splitlines() if line.strip()]) < 10

    # As it is, but for weights that need a network, and for a size and a length that take days.
    assert 'resnet18(weights="DEFAULT")' in code
    assert "image_size=224" in code
    resnet18 = torchvision.models.resnet18
    monkeypatch.setattr(torchvision.models, "resnet18", lambda weights: resnet18(weights=None))
    short = {"epochs": 2, "warmup_epochs": 1, "steps_per_epoch": 1, "calibration_batches": 1}
    trainer = gdfq.GDFQTrainer
    monkeypatch.setattr(
        gdfq,
        "GDFQTrainer",
        lambda *args, **options: trainer(*args, **{**options, **short}),
    )
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(code.replace("image_size=224", "image_size=32"), {})

    assert "layer1.0.relu_1" in capsys.readouterr().out
    stored = torch.load("student.pt", weights_only=True)
    student = gdfq.quantize_model(resnet18(weights=None))
    student.load_state_dict(stored)
    assert all(m.num_batches_tracked == 1 for m in student.modules() if isinstance(m, QAct))
    assert student(torch.randn(2, 3, 32, 32)).isfinite().all()


def test_a_whole_recipe():
    document = (ROOT / "docs" / "teachers.md").read_text()
    recipe = parse_recipe(re.search(r"```toml\n(.*?)```", document, re.S)[1], "teachers.md")
    shown = recipe.model_dump(exclude_unset=True)
    assert set(shown) == set(Recipe.model_fields)
    assert recipe.exceptions()["layer1.*"] == {"weight": 6, "act": 6}
    # All that a recipe has to have.
    least = validate({"name": "mine", "teacher": {"model": "gdfq:resnet20"}}, "here")
    assert least.description == ""
