"""What Triton's interpreter cannot show of the kernels' source."""

import ast
from pathlib import Path

import pytest

import gdfq

FOLDER = Path(gdfq.__file__).parent / "ops" / "triton"

# On a GPU these drop NaN, in the interpreter they keep it. Where one may be used nevertheless, the
# NaN is kept by something else.
DROP_NAN = {"min", "max", "argmin", "argmax"}
KEPT_OTHERWISE = {
    "_language.py": {"minimum"},  # looks for NaN beside it, and is what all others call
    "kd_ce_loss.py": {"_rows"},  # NaN stays in the sums of exponentials
}


def uses(source):
    """Functions of ``source``, and what they call of ``tl`` that drops NaN."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if (
                    isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name)
                    and node.value.id == "tl"
                    and node.attr in DROP_NAN
                ):
                    yield function.name, node.attr


@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("*.py")))
def test_minima_and_maxima_keep_nan(file):
    found = {name for name, _ in uses((FOLDER / file).read_text())}
    assert found == KEPT_OTHERWISE.get(file, set())


def test_a_bare_maximum_is_found():
    assert list(uses("def f(x):\n    return tl.max(x, 0)\n")) == [("f", "max")]
