"""Every change that a notebook suggests under "Try it" is made, in the smoke profile."""

import matplotlib.pyplot as plt
import pytest

from notebooks import ROOT, list_suggestions, run_cells

SLUGS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
SUGGESTIONS = [(slug, changes) for slug in SLUGS for changes in list_suggestions(slug)]


@pytest.mark.parametrize(("slug", "changes"), SUGGESTIONS, ids=[f"{slug}: {'; '.join(c)}" for slug, c in SUGGESTIONS])
def test_a_suggestion_runs(slug, changes, tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST1D_OUTPUT", str(tmp_path))
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    run_cells(slug, changes)
    assert (tmp_path / f"{slug}.json").is_file() and (tmp_path / f"{slug}.png").is_file()
    plt.close("all")
