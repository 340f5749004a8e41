"""Every change that a notebook suggests under "Try it" is made, in the smoke profile."""

import itertools
import os
import re

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from mnist1d import parts, training
from notebooks import ROOT, list_suggestions, read_notebook, run_cells

SLUGS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
# The first of each notebook on every run of the tests; a weekly workflow makes all of them.
MOST = None if os.environ.get("MNIST1D_REPEAT") == "all" else 1
SUGGESTIONS = [(slug, changes) for slug in SLUGS for changes in list_suggestions(slug)[:MOST]]


def shorten(change, most=40):
    """The same change with counts of steps, epochs and points that a smoke run has time for."""
    name, _, value = change.partition(" = ")
    is_count = re.search(r"(STEPS|EPOCHS|POINTS)$", name) and value.isdigit()
    return f"{name} = {min(int(value), most)}" if is_count else change


def keep_parts(monkeypatch, folder):
    """Keep what the tasks of all sweeps return, as in a kernel; the list grows with every sweep."""
    numbers, name_parts, kept = itertools.count(), parts.name_parts, []

    def remember(*args):
        found = name_parts(*args)
        kept.extend(found)
        return found

    monkeypatch.setenv("MNIST1D_PARTS", str(folder))
    monkeypatch.setattr(parts, "_open", lambda: folder / str(next(numbers)))
    monkeypatch.setattr(training, "name_parts", remember)
    return kept


@pytest.mark.filterwarnings("ignore:.*could not be fetched")
@pytest.mark.parametrize(("slug", "changes"), SUGGESTIONS, ids=[f"{slug}: {'; '.join(c)}" for slug, c in SUGGESTIONS])
def test_a_suggestion_runs(slug, changes, tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST1D_OUTPUT", str(tmp_path))
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    kept = keep_parts(monkeypatch, tmp_path / "parts")
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: save(figure, file, format="png", dpi=20))  # fast
    run_cells(slug, [shorten(change) for change in changes])
    assert (tmp_path / f"{slug}.json").is_file() and (tmp_path / f"{slug}.png").is_file()
    assert kept or "sweep(" not in "".join(source for _, source, _ in read_notebook(slug))
    assert all(map(parts.read_part, kept)), "what a task of a sweep returns is not kept for a later run"
    plt.close("all")
