"""Fixtures shared by all tests."""

import os

import hypothesis
import matplotlib
import pytest

from notebooks import load_definitions

matplotlib.use("agg")
os.environ.pop("MNIST1D_PARTS", None)  # the runner's

# On a busy machine an example may take any time.
hypothesis.settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")


@pytest.fixture
def notebook():
    """``notebook(slug, **knobs)``: what a notebook imports and defines, without running its experiments."""
    return load_definitions
