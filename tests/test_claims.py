"""Bounds, verdicts, results files and figures."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest

from mnist1d import claims, figures, results, settings, training
from mnist1d.claims import CLAIMS, holds, judge
from mnist1d.results import code_digest, save_results


@pytest.mark.parametrize(
    ("bound", "inside", "outside"),
    [
        ("92 to 96", [92, 94.5, 96], [91.99, 96.01]),
        ("-2 to 2", [-2, 0], [-2.1]),
        (">= 30", [30], [29.9]),
        ("> 0", [1e-9], [0]),
        ("< 0.01", [0.009], [0.01]),
        ("<= 3", [3, -10], [3.1]),
        ("= 4", [4], [3, 5]),
    ],
)
def test_bounds(bound, inside, outside):
    assert all(holds(bound, value) for value in inside) and not any(holds(bound, value) for value in outside)


def test_every_bound_of_the_registry_can_be_read():
    for claim in CLAIMS.values():
        for bound in claim.bound.values() if isinstance(claim.bound, dict) else [claim.bound]:
            assert holds(bound, 0.5) in (True, False)
            assert bound in claim.criterion
        assert (settings.find_root() / "notebooks" / f"{claim.slug}.ipynb").is_file()


def test_verdict_is_computed_from_the_mean_of_every_part():
    assert judge("bench.cnn", [93, 95])["verdict"] == "reproduced"
    assert judge("bench.cnn", {"final": [93, 95], "early-stopped": [80, 90]})["verdict"] == "partly"
    judged = judge("bench.cnn", [80, 90, 100])
    assert judged["verdict"] == "not reproduced"
    (part,) = judged["measured"]
    assert (part["mean"], part["sd"], part["n"], part["holds"]) == (90, 10, 3, False)
    assert judge("bench.cnn", 94)["measured"][0]["sd"] is None


@pytest.mark.parametrize("samples", [[], [np.nan], [94, np.inf]])
def test_samples_must_be_finite(samples):
    with pytest.raises(ValueError, match=r"samples: bench\.cnn"):
        judge("bench.cnn", samples)


def test_parts_must_be_those_of_the_claim():
    with pytest.raises(ValueError, match="must be"):
        judge("shuffle.acc", {"CNN": [56]})
    with pytest.raises(ValueError, match="claim_id='bench'"):
        judge("bench", [1])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST1D_OUTPUT", str(tmp_path))
    monkeypatch.setenv("MNIST1D_PROFILE", "paper")
    return tmp_path


def test_results_file_holds_what_the_contract_asks_for(folder):
    verdicts = [judge("tsne.mnist", [95.0, 96.0]), judge("tsne.mnist1d", [50.0, 51.0])]
    table = save_results("tsne", seeds=[0, 1], numbers={"a": np.array([1.23456789, np.nan])}, verdicts=verdicts)
    results = json.loads((folder / "tsne.json").read_text())
    assert {
        "slug",
        "profile",
        "code",
        "versions",
        "device",
        "jobs",
        "seconds",
        "seeds",
        "numbers",
        "claims",
    } <= results.keys()
    assert results["numbers"] == {"a": [1.23457, None]} and results["claims"][0]["verdict"] == "reproduced"
    assert "tsne.mnist1d" in table._repr_markdown_() and "**reproduced**" in table._repr_markdown_()


def test_every_claim_of_a_notebook_must_be_judged_or_missing(folder):
    with pytest.raises(ValueError, match=r"tsne\.mnist1d"):
        save_results("tsne", seeds=[0], numbers={}, verdicts=[judge("tsne.mnist", 95.0)])
    save_results("tsne", seeds=[0], numbers={}, verdicts=[judge("tsne.mnist", 95.0)], missing={"tsne.mnist1d": "why"})
    assert json.loads((folder / "tsne.json").read_text())["missing"] == {"tsne.mnist1d": "why"}


def test_smoke_records_no_verdict_and_only_the_runner_writes_to_figures(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST1D_PROFILE", "smoke")
    monkeypatch.delenv("MNIST1D_OUTPUT", raising=False)
    (tmp_path / "notebooks").mkdir(), (tmp_path / "mnist1d").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setattr(results, "code_digest", lambda slug, root: "x")
    save_results("tsne", seeds=[0], numbers={}, verdicts=[judge("tsne.mnist", 1), judge("tsne.mnist1d", 1)])
    assert json.loads((tmp_path / "build" / "smoke" / "tsne.json").read_text())["claims"] == []
    assert not (tmp_path / "figures").exists()
    monkeypatch.setenv("MNIST1D_PROFILE", "paper")
    assert settings.output_folder() == tmp_path / "build" / "paper"


def test_saved_figures_are_equal_byte_for_byte(folder):
    figures.setup()
    contents = []
    for _ in range(2):
        fig, ax = plt.subplots()
        line = figures.plot_mean(ax, [0, 1], np.array([[1.0, 2.0], [3.0, 4.0]]), color="k", label="x")
        figures.label_panels(ax)
        assert line.get_ydata().tolist() == [2, 3] and ax.get_title(loc="left") == "a"
        figures.save_figure(fig, "some")
        plt.close(fig)
        contents.append([(folder / f"some.{kind}").read_bytes() for kind in ("png", "pdf")])
    assert contents[0] == contents[1] and sorted(p.name for p in folder.iterdir()) == ["some.pdf", "some.png"]


def test_an_unwritable_folder_leaves_the_old_figure(tmp_path, monkeypatch):
    fig, _ = plt.subplots()
    monkeypatch.setenv("MNIST1D_OUTPUT", str(tmp_path))
    figures.save_figure(fig, "some")
    before = (tmp_path / "some.png").read_bytes()
    monkeypatch.setattr(fig, "savefig", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        figures.save_figure(fig, "some")
    assert (tmp_path / "some.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 2
    plt.close(fig)


def test_digest_ignores_comments_docstrings_and_layout_but_nothing_else():
    source = 'def f(x):\n    """Doc."""\n    # why\n    return g(x, 1)\n'
    digest = results._normalize
    assert digest(source) == digest("def f(x):\n\n    return g(\n        x, 1)  # other\n")
    assert digest(source) != digest(source.replace("1", "2"))
    nested, flat = "if a:\n    b\n    c\n", "if a:\n    b\nc\n"
    assert digest(nested) != digest(flat)
    assert digest('x = "a # b"\n') != digest('x = "a"\n')


def test_digest_changes_with_a_cell_and_with_the_package(tmp_path):
    root = settings.find_root()
    (tmp_path / "notebooks").mkdir(), (tmp_path / "mnist1d").mkdir()
    for module in ("transform", "data", "models", "training"):
        (tmp_path / "mnist1d" / f"{module}.py").write_text((root / "mnist1d" / f"{module}.py").read_text())
    path = tmp_path / "notebooks" / "a.ipynb"

    def write(code, markdown):
        cells = [{"cell_type": "code", "source": [code]}, {"cell_type": "markdown", "source": [markdown]}]
        path.write_text(json.dumps({"cells": cells}))
        return code_digest("a", tmp_path)

    first = write("x = 1", "text")
    assert write("x = 1", "other text") == first and write("x = 2", "text") != first
    write("x = 1", "text")
    with open(tmp_path / "mnist1d" / "training.py", "a") as file:
        file.write("\nNEW = 1\n")
    assert code_digest("a", tmp_path) != first


def test_peak_memory_of_workers_is_recorded(monkeypatch):
    monkeypatch.setattr(settings, "_peak_memory", 0)
    training.sweep(lambda variant, seeds: {"x": np.zeros(len(seeds))}, {"a": 0}, [0, 1])
    assert settings._peak_memory > 50 * 2**20


@pytest.mark.parametrize(
    ("mean", "sd", "text"),
    [
        (4.0, None, "CNN 4 (n = 3)"),
        (10_000.0, None, "CNN 10,000 (n = 3)"),
        (94.183, 0.9724, "CNN 94.18 ± 0.97 (n = 3)"),
        (-0.12, 3.13, "CNN -0.1 ± 3.1 (n = 3)"),
        (100.0, 0.0, "CNN 100.00 ± 0.00 (n = 3)"),
        (0.000312, None, "CNN 0.000312 (n = 3)"),
    ],
)
def test_measured_parts_are_shown_with_two_digits_of_their_spread(mean, sd, text):
    assert claims.format_measured({"part": "CNN", "mean": mean, "sd": sd, "n": 3}) == text
