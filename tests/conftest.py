"""Fixtures shared by all tests."""

import matplotlib
import pytest

from notebooks import load_definitions

matplotlib.use("agg")


@pytest.fixture
def notebook():
    """``notebook(slug, **knobs)``: what a notebook imports and defines, without running its experiments."""
    return load_definitions
