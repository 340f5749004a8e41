"""Every notebook is run by nbmake in the smoke profile, and must leave its results file."""

import json
import os
from pathlib import Path

import joblib
import pytest

ROOT = Path(__file__).parent

# Set before any test module or kernel starts. Smoke runs are too short to be worth a second process, and tests
# run side by side: one thread each. Settings of the user reach neither tests nor kernels.
os.environ.update(MNIST1D_PROFILE="smoke", TQDM_DISABLE="1", JOBS="1", OMP_NUM_THREADS="1")
(ROOT / "build").mkdir(exist_ok=True)
os.environ.update(MATPLOTLIBRC=os.devnull, IPYTHONDIR=str(ROOT / "build" / "ipython"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
for name in ("MNIST1D_OUTPUT", "MNIST1D_SEED_OFFSET"):
    os.environ.pop(name, None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One more than the cores that this process may use, as many tests wait for processes of their own; 1 GiB each."""
    return min(joblib.cpu_count() + 1, 16)


def pytest_collection_modifyitems(items):
    """A notebook and the test that repeats it run in one process, in this order."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Fail a notebook that nbmake lets pass although it did not reach its last cell."""
    if item.path.suffix != ".ipynb":
        return (yield)
    results = ROOT / "build" / "smoke" / f"{item.path.stem}.json"
    results.unlink(missing_ok=True)
    outcome = yield
    assert results.is_file(), f"{item.path.name} ran without leaving {results.relative_to(ROOT)}"
    assert not json.loads(results.read_bytes())["parts_differ"], "a claim is judged without the parts that it has"
    return outcome
