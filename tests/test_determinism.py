"""Two smoke runs of a notebook give the same numbers and the same figures, byte for byte."""

import os
from pathlib import Path

import nbformat
import pytest

import kernels
import run_notebooks
from agreement import read_numbers, read_results
from mnist1d.results import code_digest

ROOT = Path(__file__).parent.parent
SMOKE = ROOT / "build" / "smoke"

# Three of them on every run of the tests; a weekly workflow repeats all.
ALL = os.environ.get("MNIST1D_REPEAT") == "all"
SLUGS = run_notebooks.list_slugs(ROOT) if ALL else ["double_descent", "metalearn_lr", "pooling"]


def run(slug, folder, **environment):
    notebook = nbformat.read(ROOT / "notebooks" / f"{slug}.ipynb", as_version=4)
    environment = {"MNIST1D_PROFILE": "smoke", "MNIST1D_OUTPUT": str(folder), "PYTHONPATH": str(ROOT), **environment}
    with kernels.Guard() as guard:
        kernels.execute(notebook, ROOT / "notebooks", 300, environment, guard)


@pytest.mark.parametrize("slug", [pytest.param(slug, marks=pytest.mark.xdist_group(slug)) for slug in SLUGS])
def test_a_second_run_repeats_the_first(slug, tmp_path):
    """Another folder, another hash seed, two workers instead of one. nbmake has made the first run by now."""
    first = read_results(SMOKE / f"{slug}.json")
    if first is None or first["code"] != code_digest(slug, ROOT):
        SMOKE.mkdir(parents=True, exist_ok=True)
        run(slug, SMOKE, PYTHONHASHSEED="0")
    run(slug, tmp_path, PYTHONHASHSEED="1", JOBS="2")
    again, first = (read_results(folder / f"{slug}.json") for folder in (tmp_path, SMOKE))
    assert read_numbers(again) == read_numbers(first)
    figures = [path.name for path in tmp_path.iterdir() if path.suffix in (".png", ".pdf", ".gif")]
    assert f"{slug}.png" in figures
    for name in figures:
        assert (tmp_path / name).read_bytes() == (SMOKE / name).read_bytes(), f"{name} differs"
