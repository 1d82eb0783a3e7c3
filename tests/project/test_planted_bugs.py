"""The list of planted bugs is of this tree."""

import shlex

import pytest

from tests.planted_bugs import BUGS, ROOT


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.file}: {bug.new.strip()[:40]}")
def test_a_planted_bug_replaces_one_text_and_names_tests_that_are_there(bug):
    assert (ROOT / bug.file).read_text(encoding="utf-8").count(bug.old) == 1
    assert bug.new != bug.old
    files = [word for word in shlex.split(bug.tests) if word.startswith("tests/")]
    assert files
    assert all((ROOT / file).is_file() for file in files)
