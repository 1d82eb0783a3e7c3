"""A run is one object: what its folder holds, read when it is asked for."""

import copy
import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file

import gdfq
from gdfq.recipes.networks import build_trainer
from gdfq.runs import session
from gdfq.runs.folder import device_of
from gdfq.runs.options import Options
from gdfq.runs.run import Run
from gdfq.training.checkpoint import newest_valid
from tests.helpers.tiny import tiny_teacher
from tests.runs.test_resume import Killed, Show, kill
from tests.training.test_outcome import recipe_of, same, states

IMAGES = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def options(**changes):
    return Options(network=tiny_teacher(), checkpoint_every=0, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return session.quantize(
        recipe_of(), tmp_path_factory.mktemp("run") / "run", Show(), options(report=True)
    )


def test_a_finished_run_is_the_one_that_its_folder_holds(finished):
    opened = Run(finished.folder, tiny_teacher())
    for name in ("recipe", "result", "history", "environment", "metrics"):
        assert getattr(opened, name) == getattr(finished, name), name
    for name in ("teacher", "student", "generator"):
        assert same(states(getattr(opened, name)), states(getattr(finished, name))), name
    assert torch.equal(opened.student(IMAGES), finished.student(IMAGES))
    assert torch.equal(opened.generate(5), finished.generate(5))
    assert all(parameter.grad is None for parameter in finished.student.parameters())


@pytest.mark.parametrize(
    "parts", [{}, {"low_pass": 2.0}, {"mix_probability": 0.5, "mix_classes": 3}], ids=str
)
def test_generated_images_are_drawn_and_made_as_training_s_are(finished, parts):
    run = copy.copy(finished)
    run.recipe = finished.recipe.with_options(parts)
    trainer = build_trainer(run.recipe, run.loaded_teacher, copy.deepcopy(run.generator))
    with torch.no_grad():
        drawn = [trainer.images.make(*trainer.images.sample()) for _ in range(2)]
    assert torch.equal(run.generate(13), torch.cat(drawn)[:13])


def test_figures_need_no_network(finished, monkeypatch):
    for name in ("build_teacher", "build_student", "build_generator", "newest_valid"):
        monkeypatch.setattr(f"gdfq.runs.run.{name}", pytest.fail)
    run = Run(finished.folder)
    assert (run.result.finished, run.result.steps, run.recipe.name) == (True, 6, "sequential")
    assert [record["step"] for record in run.history] == [2, 4, 6]
    assert run.environment["torch"] == torch.__version__
    assert run.images.size[0] > 300


def test_a_result_of_an_earlier_version_has_fewer_fields_or_others(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    stored = json.loads((folder / "result.json").read_text())
    for later in ("dynamic_ranges", "effective_weight_bits", "float_weight_share"):
        del stored[later]
    (folder / "result.json").write_text(json.dumps({**stored, "of_another_version": 1}))
    result = Run(folder).result
    assert (result.dynamic_ranges, result.effective_weight_bits) == ("none", None)
    assert (result.float_weight_share, result.average_weight_bits) == (0.0, 4.0)


def test_a_killed_run_is_opened_at_its_newest_checkpoint(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        session.quantize(recipe_of(), folder, Show(5, kill), options())
    assert not (folder / "student.safetensors").exists()
    run = gdfq.open_run(folder, tiny_teacher())
    trained = newest_valid(folder, pytest.fail)[1]["trainer"]
    assert same(states(run.student), trained["student"])
    assert same(states(run.generator), trained["generator"])
    assert (run.result.finished, run.latest_result.steps) == (False, 4)
    assert run.result.average_weight_bits is None
    assert run.latest_result.average_weight_bits == 4.0
    assert (run.metrics["steps"], run.metrics["average_weight_bits"]) == (4, 4.0)
    assert "4 steps, not finished" in repr(run)
    assert "4 steps, not finished" in run._repr_html_()
    # Resumed, it is what the folder holds.
    done = session.start_or_resume(recipe_of(), folder, Show(), options())
    assert (done.result.finished, done.result.steps) == (True, 6)
    assert same(states(done.student), load_file(folder / "student.safetensors"))


def test_a_run_that_was_killed_in_its_warm_up_has_no_student(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        session.quantize(recipe_of(), folder, Show(2, kill), options())
    with pytest.raises(gdfq.InputError, match=r"^run: the student in .* interrupted before fine-"):
        gdfq.open_run(folder, tiny_teacher())
    for checkpoint in folder.glob("checkpoint-*"):
        checkpoint.unlink()
    with pytest.raises(gdfq.InputError, match=r"^run: cannot load .*student\.safetensors"):
        gdfq.open_run(folder, tiny_teacher())
    with pytest.raises(gdfq.InputError, match=r"has no checkpoint with its generator any more"):
        Run(folder, tiny_teacher()).generate(1)


ATTRIBUTES = [
    "recipe", "result", "ended", "history", "environment", "images", "teacher", "preprocessing",
    "student", "loaded_teacher", "calibrated", "generator", "latest_result", "metrics",
]  # fmt: skip


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_folder_without_a_run_is_named(tmp_path, name):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(gdfq.InputError, match=r"^run: .*is not a run folder: it has no recipe"):
            getattr(Run(folder), name)


def test_a_run_can_be_pickled(finished):
    again = pickle.loads(pickle.dumps(finished))
    assert again.metrics == finished.metrics
    assert torch.equal(again.student(IMAGES), finished.student(IMAGES))


def test_damaged_files_are_named_or_count_as_missing(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    for third in (b'{"step": "\xff"}', b"[6]", b'{"step"'):
        (folder / "metrics.jsonl").write_bytes(b"".join(lines[:2]) + third)
        assert [record["step"] for record in Run(folder).history] == [2, 4]
    for content in ("[]", "3", "nul"):
        (folder / "environment.json").write_text(content)
        assert (Run(folder).environment, device_of(folder)) == ({}, "auto")
        (folder / "result.json").write_text(content)
        assert Run(folder).result.steps == 0
    (folder / "environment.json").write_text('{"device": [0]}')
    assert device_of(folder) == "auto"
    (folder / "result.json").write_text('{"after": "x"}')
    with pytest.raises(gdfq.InputError, match=r"^run: cannot read .*result\.json: after is 'x'$"):
        Run(folder).result  # noqa: B018
    picture = (folder / "images.png").read_bytes()
    for damaged in (b"", b"no picture", picture[:-400], picture[:60] + bytes(60) + picture[120:]):
        (folder / "images.png").write_bytes(damaged)
        with pytest.raises(gdfq.InputError, match=r"^run: cannot read .*images\.png, which"):
            Run(folder).images  # noqa: B018
    (folder / "images.png").unlink()
    with pytest.raises(gdfq.InputError, match=r"^run: cannot read .*images\.png, .* No such file"):
        Run(folder).images  # noqa: B018
