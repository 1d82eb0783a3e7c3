"""A run's student.safetensors in a student that a program makes and trains on."""

import pytest
import torch
from safetensors.torch import load_file

import gdfq
from gdfq.nn.weight import QuantizedWeight
from gdfq.recipes import load_recipe
from gdfq.runs.folder import save_student
from gdfq.training import Start
from tests.helpers.tiny import tiny_teacher, tiny_trainer

IMAGES = torch.randn(8, 2, 8, 8, generator=torch.Generator().manual_seed(0))
KINDS = {
    "none": {},
    "kept": {"start": Start(weight_ranges="mse", act_ranges="mse")},
    "learned weights": {"learned_ranges": "weight"},
    "learned acts": {"learned_ranges": "act"},
    "learned": {"learned_ranges": "both"},
    "dynamic weights": {"dynamic_ranges": "weight", "bits": 3},
    "dynamic acts": {"dynamic_ranges": "act"},
}


def ready(kind):
    """A trainer whose student's ranges are set, its weights and ranges moved."""
    trainer = tiny_trainer(**KINDS[kind], warmup_epochs=0)
    for _ in range(2):
        trainer.step()
    return trainer


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """By kind: a student's file, and what the student answers."""
    folder, made = tmp_path_factory.mktemp("students"), {}
    for kind in KINDS:
        student = ready(kind).outcome
        save_student(student, load_recipe("fashion-mnist-resnet20"), folder / kind)
        made[kind] = load_file(folder / kind), student(IMAGES).detach()
    return made


def fresh(kind):
    """A student as that of ``kind`` is made, without what a start adds."""
    options = {k: v for k, v in KINDS[kind].items() if k not in ("start", "bits")}
    bits = KINDS[kind].get("bits", 4)
    return gdfq.quantize_model(tiny_teacher(), bits, bits, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_loads_into_what_quantize_model_makes_and_trains_on(files, kind):
    state, expected = files[kind]
    student = fresh(kind)
    assert str(student.load_state_dict(state)) == "<All keys matched successfully>"
    assert torch.equal(student(IMAGES), expected)
    trainer = tiny_trainer(**KINDS[kind], warmup_epochs=0)
    trainer.student.load_state_dict(state)
    for _ in range(2):
        trainer.step()
    assert any(
        not torch.equal(value, state[name]) for name, value in trainer.student.state_dict().items()
    )


STATIC = ["none", "kept", "learned weights", "learned acts", "learned"]


@pytest.mark.parametrize("source", STATIC)
@pytest.mark.parametrize("target", STATIC)
def test_with_ranges_of_weights_or_without_a_student_answers_the_same(files, source, target):
    state, expected = files[source]
    student = tiny_trainer(**KINDS[target]).student
    student.load_state_dict(state)
    assert torch.equal(student(IMAGES), expected)
    for name, layer in student.named_modules():
        if isinstance(layer, QuantizedWeight) and layer.weight_lo is not None:
            known = state.get(f"{name}.weight_hi", layer.weight.detach().flatten(1).amax(1))
            assert torch.equal(layer.weight_hi, known)


MISFITS = [
    ("dynamic acts", "none", "it has no range of 2: it is of the float network .*"),
    ("none", "dynamic acts", "it has a range of 2, whose ranges are dynamic"),
    ("kept", "dynamic weights", "it has a range of 0, whose ranges are dynamic"),
]


@pytest.mark.parametrize(("source", "target", "message"), MISFITS)
def test_what_does_not_fit_is_said_in_a_line(files, source, target, message):
    with pytest.raises(gdfq.InputError, match=f"^state_dict: .*: {message}") as caught:
        fresh(target).load_state_dict(files[source][0])
    assert "\n" not in str(caught.value)


def test_other_networks_are_named_in_a_line(files):
    state, _ = files["kept"]
    for change, message in [
        ({"0.weight_lo": torch.zeros(3)}, "size mismatch for 0.weight_lo"),
        ({"9.weight": torch.zeros(3)}, "Unexpected key.*9.weight"),
    ]:
        with pytest.raises(gdfq.InputError, match=f"^state_dict: .*{message}") as caught:
            fresh("none").load_state_dict({**state, **change})
        assert "\n" not in str(caught.value)
    half = {key: value for key, value in state.items() if key != "0.weight_lo"}
    with pytest.raises(gdfq.InputError, match=r"Missing key.*0\.weight_lo"):
        fresh("none").load_state_dict(half)
    with pytest.raises(gdfq.InputError, match="is of the float network"):
        fresh("none").load_state_dict(tiny_teacher().state_dict())
    found = fresh("none").load_state_dict(tiny_teacher().state_dict(), strict=False)
    assert "2.hi" in found.missing_keys
