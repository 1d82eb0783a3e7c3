"""Imports point downwards only. ``python -m tests.project.test_layering`` writes the tree of it."""

import ast
import re
import textwrap
from pathlib import Path

import pytest

import gdfq

PACKAGE = Path(gdfq.__file__).parent
ROOT = Path(__file__).resolve().parents[2]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"

# Lowest first, with what each room holds; a module may import from its own layer and from those
# above it in this list.
LAYERS = [
    {"errors": "InputError, for invalid input"},
    {
        "distributed": "processes of one run; the one place that calls collectives",
        "files": "files written whole or not at all",
        "settings": "the base class of settings",
    },
    {"ops": "operators with their references in plain PyTorch; triton/: their Triton kernels"},
    {
        "environment": "versions, machine and kernels that a result depends on",
        "memory": "settings of the C allocator",
        "nn": "QConv2d, QLinear, QAct; the teacher that reports its statistics",
        "models": "generators, and the embedded teacher's architecture",
    },
    {
        "sources": "teachers from other packages, factories and files, and their preprocessing",
        "convert": "quantize_model: a float network in, its student out; tables.py: the known"
        " operations; comparison.py: whether only quantizers differ; fusion.py: fused layers",
    },
    {
        "training": "step.py: one iteration, readable beside the paper; trainer.py: schedule,"
        " capture, state; updates, learning rates, memory format, precision, checkpoints; parts/:"
        " additions to the algorithm, one module each; start/: what happens to the student before"
        " training",
    },
    {
        "recipes": "*.toml, and their schema; own.py: defaults of a network without a recipe;"
        " networks.py, images.py: a recipe's networks and generated images",
        "bench": "step time beside the same method in plain PyTorch (plain.py)",
    },
    {"data": "test images of data sets, in batches; only measurements import it"},
    {
        "bit_widths": "bits per layer within a budget: sensitivity.py measures, allocation.py"
        " chooses",
        "export": "files for other runtimes: ONNX, pt2, packed.py; stored.py: weights and"
        " activations as integers; form.py: the exported graph; parity.py: whether it equals the"
        " student; inspection.py: what a file holds",
        "report": "pages: contents.py, the data (result.json, report.json); page.py, figures.py,"
        " tables.py, charts.py and template/ draw it",
    },
    {
        "runs": "run.py: Run, a run's folder; folder.py: its files' names; session.py starts and"
        " resumes runs, execution.py is one in progress, interrupts.py its signals; accuracy.py and"
        " measures.py measure it, report.py and picture.py write about it; progress.py, notebook.py"
        " and console.py show it; metrics.py and tensorboard.py log it",
    },
    {
        "api": "quantize, resume, open_run: the command line in Python",
        "sweeps": "many runs: plan.py, the file; running.py and cluster.py, the runs; criterion.py,"
        " students beside their teacher; summary.py and page.py, the result",
    },
    {  # the public face: nothing inside imports functional and losses
        "cli": "commands, one module each, without logic of their own",
        "functional": "public functions without state",
        "losses": "the method's losses",
        "__main__": "python -m gdfq",
    },
]
FACE = ("functional", "losses")
LEVEL = {name: level for level, rooms in enumerate(LAYERS) for name in rooms}
OUTSIDE = {
    "gdfq_command.py": "the gdfq command's first lines: Ctrl-C while the package is imported",
    "csrc/": "kernels for CPU and CUDA; ops.cpp, their schemas, is the table of contents",
}


def tree():
    """Return the rooms, highest first, each with its description."""
    rooms = {}
    for layer in reversed(LAYERS):
        for name, description in layer.items():
            rooms[f"gdfq/{name}{'.py' if (PACKAGE / f'{name}.py').exists() else '/'}"] = description
    first, last = OUTSIDE
    rooms = {first: OUTSIDE[first], **rooms, last: OUTSIDE[last]}
    indent = 23
    lines = (
        textwrap.fill(
            description, 100, initial_indent=f"{path:{indent}}", subsequent_indent=" " * indent
        )
        for path, description in rooms.items()
    )
    return "\n".join(lines) + "\n"


def with_tree(text):
    """Return CONTRIBUTING's text with the tree in its first ``text`` block."""
    head, _, rest = text.partition("```text\n")
    return f"{head}```text\n{tree()}```{rest.partition('```')[2]}"


def test_contributing_has_the_tree():
    text = CONTRIBUTING.read_text(encoding="utf-8")
    assert text == with_tree(text), "run python -m tests.project.test_layering"


def imports(source):
    """Yield what ``source`` imports of the package: rooms, ``gdfq`` for the package itself."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for first, *rest in (name.split(".") for name in names):
            if first == "gdfq":
                yield rest[0] if rest else "gdfq"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import gdfq", ["gdfq"]),
        ("def f():\n    import gdfq as g, os, gdfq.runs.run", ["gdfq", "runs"]),
        ("from gdfq import nn, __version__", ["nn", "__version__"]),
        ("from gdfq.ops._checks import check_bits", ["ops"]),
        ("from gdfqx import nn\nimport torch.nn", []),
    ],
)
def test_imports_are_found_in_every_spelling(source, found):
    assert list(imports(source)) == found


def test_every_module_has_a_layer():
    found = {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in PACKAGE.rglob("*.py")}
    assert found - {"__init__"} == set(LEVEL)


def test_files_in_the_tree_exist():
    named = [
        (name, file)
        for layer in LAYERS
        for name, description in layer.items()
        for file in re.findall(r"\w+\.py\b", description)
    ]
    assert named
    assert [n for n in named if not list((PACKAGE / n[0]).rglob(n[1]))] == []


def test_imports_point_downwards():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for name in imports(path.read_text()):
            # What is no room, the package itself above all, is above all of them.
            if name != "_C" and (LEVEL.get(name, len(LAYERS)) > LEVEL[own] or name in FACE):
                wrong.append(f"{path.relative_to(PACKAGE)} imports gdfq.{name}")
    assert not wrong


if __name__ == "__main__":
    CONTRIBUTING.write_text(with_tree(CONTRIBUTING.read_text(encoding="utf-8")), encoding="utf-8")
