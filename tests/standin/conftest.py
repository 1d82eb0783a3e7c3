import os
from pathlib import Path

import pytest

from tests.standin import library


@pytest.fixture(scope="session")
def standin():
    """The library that GDFQ_STANDIN names; test_builds.py runs these tests with each."""
    if missing := library.missing_tools():
        pytest.skip(f"the stand-in needs {missing}")
    library.build()
    return library.Standin(os.environ.get("GDFQ_STANDIN", "shuffled"))


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.thorough)  # building the stand-in takes minutes
