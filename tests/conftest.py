"""Fixtures shared by all tests."""

import hypothesis
import matplotlib
import pytest

from notebooks import load_definitions

matplotlib.use("agg")

# On a busy machine an example may take any time.
hypothesis.settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")

# Modules of tests whose outcome could depend on how a processor rounds: `make test` repeats them as on others.
NUMERIC = {"test_engine", "test_training", "test_zoo"}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in NUMERIC:
            item.add_marker(pytest.mark.numeric)


@pytest.fixture
def notebook():
    """``notebook(slug, **knobs)``: what a notebook imports and defines, without running its experiments."""
    return load_definitions
