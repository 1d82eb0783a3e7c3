"""Each part of the loop against a small computation of its own, and none of them against all."""

import inspect
import math
import re
from pathlib import Path

import pytest
import torch

import gdfq
from gdfq.recipes import load_recipe
from gdfq.training import GDFQTrainer, Parts, Start
from gdfq.training.parts import PARTS, Part
from gdfq.training.parts.learned_ranges import LearnedRanges
from gdfq.training.step import Step
from tests.helpers.documents import ROOT
from tests.helpers.parts import same_state, state, steps
from tests.helpers.tiny import EACH_PART, Operators, tiny_teacher, tiny_trainer

# A part's page lists the hooks, and the files that test_page_names_every_file holds.
HOOKS = {
    hook for hook, value in vars(Part).items()
    if inspect.isroutine(value) and not hook.startswith("__")
}  # fmt: skip

every_part = pytest.mark.parametrize("parts", EACH_PART.values(), ids=EACH_PART.keys())


# ---- a part is one module, its line in the list, its settings in Parts, its test file ----


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_a_part_is_whole(part):
    module = inspect.getmodule(part)
    name = module.__name__.rpartition(".")[2]
    text = inspect.getdoc(module)
    assert re.search(r"^Sources?: .*\d{4}", text, re.M | re.S), "where it is from"
    assert re.search(r"\b[Cc]osts?\b", text), "what it costs"
    assert "::\n" in text or "``" in text, "its formula"
    assert part.settings_class.__module__ == module.__name__
    assert issubclass(Parts, part.settings_class)
    page = (ROOT / "docs/parts.md").read_text(encoding="utf-8")
    for field, info in part.settings_class.model_fields.items():
        assert info.description, field
        assert f"`{field}" in page or f'"{field}' in page, field
    assert (ROOT / f"tests/training/parts/test_{name}.py").is_file()
    # A part changes the loop by hooks that Part has, and by nothing else.
    assert {h for h in vars(part) if h in vars(Part)} & HOOKS


def test_every_part_has_an_example():
    tried = {part for part in PARTS for parts in EACH_PART.values() if part.is_on(parts, False)}
    # Learned ranges are on by the student, and have tests of their own.
    assert {part for part in PARTS if part not in tried} == {LearnedRanges}


def test_a_term_behind_the_objective_is_added_to_whichever_is_chosen():
    class Term(Part):
        def student_loss(self, loss):
            return lambda s, t, y: loss(s, t, y) + 2

    s, t = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).unbind()
    y = torch.arange(6) % 4
    for objective in ("kd_ce", "logit_mse", "kl_only"):
        trainer = tiny_trainer(parts=Parts(objective=objective))
        step = trainer.algorithm
        more = Step(
            step.teacher, step.student, step.images, step.update_generator, step.update_student,
            [*trainer.parts, Term(Parts())], step.training,
        )  # fmt: skip
        assert float(more.kd_ce(s, t, y)) == pytest.approx(float(step.kd_ce(s, t, y)) + 2)


def test_the_page_about_parts_names_every_hook():
    page = (ROOT / "docs/add-a-part.md").read_text(encoding="utf-8")
    rows = "".join(re.findall(r"^\| [a-z].*\n", page, re.M))
    named = set(re.findall(r"`(\w+)`", rows))
    assert named | {"check_settings", "is_on"} == HOOKS


def test_every_module_and_every_setting_is_of_one_part():
    folder = Path(inspect.getfile(Part)).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "part"}
    assert modules == {part.__module__.rpartition(".")[2] for part in PARTS}
    fields = [field for part in PARTS for field in part.settings_class.model_fields]
    assert sorted(fields) == sorted(Parts.model_fields)


def test_no_module_of_the_loop_names_a_part():
    names = {part.__name__ for part in PARTS} | {*Parts.model_fields}
    names |= {part.__module__ for part in PARTS}
    for path in Path(inspect.getfile(GDFQTrainer)).parent.glob("*.py"):
        found = set(re.findall(r"[\w.]+", path.read_text(encoding="utf-8")))
        assert not found & names, path.name


# ---- off ----


def test_off_is_the_paper_s_loop_bit_for_bit_and_operator_for_operator():
    plain, off = tiny_trainer(), tiny_trainer(parts=Parts())
    assert steps(plain) == steps(off)
    assert same_state(state(plain.student), state(off.student))
    assert same_state(state(plain.generator), state(off.generator))
    assert torch.equal(plain.rng.get_state(), off.rng.get_state())
    assert off.outcome is off.student
    counts = []
    for trainer in (plain, off):
        with Operators() as operators:
            trainer.step()
        counts.append(operators.counts)
    assert counts[0] == counts[1]


def test_values_that_change_nothing_change_nothing():
    """The code of each part that has a neutral value, run with it."""
    plain = steps(tiny_trainer())
    # A gate that is always open; an average beside, which training never reads.
    for parts in (Parts(ce_gate=1.0), Parts(ema_decay=0.5)):
        for one, other in zip(steps(tiny_trainer(parts=parts)), plain, strict=True):
            assert one == pytest.approx(other, rel=1e-5)
    wide = Parts(low_pass=1e6)
    for one, other in zip(steps(tiny_trainer(parts=wide), 5), plain, strict=False):
        assert one == pytest.approx(other, rel=1e-3)


@every_part
def test_every_part_trains_and_changes_something(parts):
    off, on = tiny_trainer(), tiny_trainer(parts=parts)
    expected = steps(off)
    losses = steps(on)
    assert all(math.isfinite(loss) for step in losses for loss in step.values())
    if parts == EACH_PART["ema"]:
        assert losses == expected
        assert not same_state(state(on.outcome), state(on.student))
    else:
        assert losses != expected
    assert parts.describe() in on.describe()


@every_part
def test_every_part_trains_in_bf16(parts):
    trainer = tiny_trainer(parts=parts, precision="bf16", warmup_epochs=0)
    assert all(math.isfinite(loss) for step in steps(trainer, 4) for loss in step.values())


@every_part
def test_formats_train_alike(parts):
    one, other = (
        tiny_trainer(parts=parts, memory_format=name, warmup_epochs=0)
        for name in ("channels_last", "contiguous")
    )
    if parts.code_change_share or parts.hard_sample_step:
        pytest.skip("rounding decides about counts and signs")
    for ours, theirs in zip(steps(one, 3), steps(other, 3), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-3)


def test_one_seed_decides_everything():
    one, other = (tiny_trainer(parts=EACH_PART["all"], seed=3) for _ in range(2))
    assert steps(one) == steps(other)
    assert same_state(state(one.outcome), state(other.outcome))


# ---- validation ----


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objective": "mse"}, "objective: must be one of .* got 'mse'"),
        ({"ce_weight": -1}, "ce_weight: must be a number >= 0 and finite, got -1"),
        ({"ce_gate": 1.5}, r"ce_gate: must be a number in \[0, 1\], got 1.5"),
        ({"hard_sample_gamma": math.nan}, "hard_sample_gamma: must be a number >= 0"),
        ({"hard_sample_step": -0.1}, "hard_sample_step: must be a number >= 0"),
        ({"code_change_share": 1.0}, r"code_change_share: must be a number in \(0, 1\), got 1.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm: must be a number > 0 and finite, got 0.0"),
        (
            {"max_grad_norm": 1.0, "code_change_share": 0.1},
            "max_grad_norm: code_change_share decides how long",
        ),
        ({"mix_probability": 1.1}, r"mix_probability: must be a number in \[0, 1\]"),
        ({"mix_classes": 1}, "mix_classes: must be an int >= 2, got 1"),
        ({"low_pass": 0.0}, "low_pass: must be a number > 0 and finite, got 0.0"),
        ({"bns_spread": "mad"}, "bns_spread: must be one of"),
        ({"bns_layers": []}, r"bns_layers: must be a non-empty list, .* got \[\]"),
        ({"bns_layers": "layer1.*"}, "bns_layers: must be a non-empty list, .* got 'layer1"),
        ({"bns_of": "student"}, "bns_of: must be one of"),
        ({"ema_decay": 1.0}, r"ema_decay: must be a number in \[0, 1\)"),
        ({"replay_batches": 1.5}, "replay_batches: must be an int >= 0, got 1.5"),
        ({"replay_batches": 2, "replay_share": 1.0}, r"replay_share: must be a number in \(0, 1\)"),
        # What contradicts something else.
        ({"objective": "kl_only", "ce_weight": 0.5}, "ce_weight: objective = 'kl_only' has no"),
        ({"objective": "kl_only", "ce_gate": 0.5}, "ce_gate: with objective = 'kl_only'"),
        ({"ce_weight": 0.0, "ce_gate": 0.5}, "ce_gate: with ce_weight = 0"),
        ({"mix_classes": 3}, "mix_classes: has no effect without mix_probability"),
        ({"replay_share": 0.3}, "replay_share: has no effect without replay_batches"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(gdfq.InputError, match=message):
        Parts(**given)


@pytest.mark.parametrize(
    "parts",
    [Parts(bns_layers=["bn*"]), Parts(mix_probability=0.5, mix_classes=5), Parts(range_lr=0.1)],
)
def test_what_is_refused_leaves_the_student_as_it_was(parts):
    teacher = tiny_teacher()
    student = gdfq.quantize_model(teacher, 4, 4)
    before = student.state_dict()
    with pytest.raises(gdfq.InputError):
        GDFQTrainer(
            teacher, student, gdfq.models.Generator(4, 8, 2, latent_dim=5, width=8), 4, 4,
            parts=parts, start=Start(weight_ranges="mse"),
        )  # fmt: skip
    after = student.state_dict()
    assert after.keys() == before.keys()  # without the buffers that the start would fill
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (Parts(bns_layers=["bn*"]), r"bns_layers: 'bn\*' matches no batch norm; there are: 1, 4"),
        (Parts(mix_probability=0.5, mix_classes=5), "mix_classes: must be <= 4, the number of"),
        ({"ema_decay": 0.9}, "parts: must be gdfq.training.Parts, got dict"),
    ],
)
def test_what_a_trainer_refuses(parts, message):
    with pytest.raises(gdfq.InputError, match=message):
        tiny_trainer(parts=parts)


def test_a_recipe_has_every_part_with_the_same_default():
    recipe = load_recipe("fashion-mnist-resnet20")
    assert recipe.parts == Parts()
    changed = recipe.with_options({"objective": "logit_mse", "bns_layers": ["layer1.*"]})
    assert changed.parts == Parts(objective="logit_mse", bns_layers=["layer1.*"])
    with pytest.raises(gdfq.InputError, match=r"parts.ce_gate: with objective = 'kl_only'"):
        recipe.with_options({"objective": "kl_only", "ce_gate": 0.5})
