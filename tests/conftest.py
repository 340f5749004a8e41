"""Fixtures shared by all tests."""

import os
import signal

import hypothesis
import matplotlib
import pytest

from notebooks import load_definitions

matplotlib.use("agg")
os.environ.pop("MNIST1D_PARTS", None)  # the runner's
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background: tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# On a busy machine an example may take any time.
hypothesis.settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")


@pytest.fixture
def notebook():
    """``notebook(slug, **knobs)``: what a notebook imports and defines, without running its experiments."""
    return load_definitions
