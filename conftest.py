"""Every notebook is run by nbmake in the smoke profile, and must leave its results file."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent

# Set before any test module or kernel starts. Smoke runs are too short to be worth a second process.
os.environ.update(MNIST1D_PROFILE="smoke", TQDM_DISABLE="1", JOBS="1")
os.environ.pop("MNIST1D_OUTPUT", None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Fail a notebook that nbmake lets pass although it did not reach its last cell."""
    if item.path.suffix != ".ipynb":
        return (yield)
    results = ROOT / "build" / "smoke" / f"{item.path.stem}.json"
    results.unlink(missing_ok=True)
    outcome = yield
    assert results.is_file(), f"{item.path.name} ran without leaving {results.relative_to(ROOT)}"
    return outcome
