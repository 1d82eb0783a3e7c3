"""The race checker, on loops that have a race or none, and on every operator."""

import pytest
import torch

from tests.ops.cases import LAYOUTS
from tests.ops.examples import EXAMPLES, mapped, results

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.gdfq_races, "lost_update"), reason="needs -p tests.races.operators"
)


@pytest.mark.parametrize(
    ("loop", "what"),
    [
        ("lost_update", "race: a load at planted.cpp:.*, by another task a store"),
        ("plain_and_atomic", "race: a load at planted.cpp:.*, by another task an atomic access"),
        ("shared_scratch", "race: a store at .*, by another task a store"),
        ("shared_copy", "race: a store at .*, by another task a store"),
    ],
)
def test_a_race_is_an_error(loop, what):
    with pytest.raises(RuntimeError, match=what):
        getattr(torch.ops.gdfq_races, loop)(torch.zeros(8, dtype=torch.int64))


@pytest.mark.parametrize("loop", ["kept_update", "own_scratch"])
def test_a_loop_without_one_runs(loop):
    getattr(torch.ops.gdfq_races, loop)(torch.zeros(8, dtype=torch.int64))


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_an_operator_has_none(name, layout):
    torch.manual_seed(0)
    given = EXAMPLES[name].make((8, 20, 41, 47), torch.float32)
    results(EXAMPLES[name], mapped(given, lambda t: LAYOUTS[layout](t) if t.dim() == 4 else t))
