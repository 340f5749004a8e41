"""Two smoke runs of a notebook give the same numbers and the same figures, byte for byte."""

import json
from pathlib import Path

import nbformat
import pytest
from tqdm import tqdm

import run_notebooks
from mnist1d.results import code_digest

ROOT = Path(__file__).parent.parent
SMOKE = ROOT / "build" / "smoke"


def run(slug, folder, **environment):
    notebook = nbformat.read(ROOT / "notebooks" / f"{slug}.ipynb", as_version=4)
    environment = {"MNIST1D_PROFILE": "smoke", "MNIST1D_OUTPUT": str(folder), **environment}
    with tqdm(disable=True) as bar:
        run_notebooks.execute(notebook, folder, 300, environment, bar)


def read_numbers(path):
    """The numbers of a results file as text, without durations."""

    def drop_durations(value):
        if isinstance(value, dict):
            return {key: drop_durations(v) for key, v in value.items() if "seconds" not in key}
        return value

    return json.dumps(drop_durations(json.loads(path.read_text())["numbers"]), indent=1)


@pytest.mark.parametrize("slug", run_notebooks.list_slugs(ROOT))
def test_a_second_run_repeats_the_first(slug, tmp_path):
    """Another folder, another hash seed, two workers instead of one. nbmake has made the first run by now."""
    first = run_notebooks.read_results(SMOKE / f"{slug}.json")
    if first is None or first["code"] != code_digest(slug, ROOT):
        SMOKE.mkdir(parents=True, exist_ok=True)
        run(slug, SMOKE, PYTHONHASHSEED="0")
    run(slug, tmp_path, PYTHONHASHSEED="1", JOBS="2")
    assert read_numbers(tmp_path / f"{slug}.json") == read_numbers(SMOKE / f"{slug}.json")
    figures = [path.name for path in tmp_path.iterdir() if path.suffix in (".png", ".pdf", ".gif")]
    assert f"{slug}.png" in figures
    for name in figures:
        assert (tmp_path / name).read_bytes() == (SMOKE / name).read_bytes(), f"{name} differs"
