"""Imports point downwards only."""

import ast
from pathlib import Path

import gdfq

PACKAGE = Path(gdfq.__file__).parent

# Lowest first; a module may import from its own layer and from those above it in this list.
LAYERS = [
    ["errors"],
    ["distributed", "fields", "files", "settings"],
    ["ops"],
    ["environment", "memory", "nn", "models"],
    ["sources", "convert"],
    ["training"],
    ["recipes", "bench"],
    ["data"],
    ["bit_widths", "export", "report"],
    ["runs"],
    ["api", "sweeps"],
    # The public face: nothing inside imports functional and losses.
    ["cli", "functional", "losses", "__main__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("gdfq"):
            parts = node.module.split(".")
            if len(parts) > 1:
                yield parts[1]
            else:
                yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("gdfq."):
                    yield alias.name.split(".")[1]


def test_every_module_has_a_layer():
    found = {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in PACKAGE.rglob("*.py")}
    assert found - {"__init__"} == set(LEVEL)


def test_imports_point_downwards():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for name in imports(path):
            if name in ("_C", "__version__"):
                continue
            if LEVEL[name] > LEVEL[own]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports gdfq.{name}")
    assert not wrong
