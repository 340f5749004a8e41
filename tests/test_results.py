"""Results files, digests of code, and figures."""

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from mnist1d import claims, figures, results, settings, training
from mnist1d.claims import CLAIMS, judge
from mnist1d.results import code_digest, save_results


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST1D_OUTPUT", str(tmp_path))
    monkeypatch.setenv("MNIST1D_PROFILE", "paper")
    return tmp_path


@pytest.fixture
def judged(monkeypatch):
    """The claims of `tsne`, judged on made-up samples; this process may record verdicts."""
    monkeypatch.setattr(results, "no_verdict", lambda slug: "")
    monkeypatch.setattr(claims, "no_verdict", lambda slug: "")
    values = [0.8, 0.81, 0.82, 0.8, 0.81]
    return [
        judge("tsne.mnist", values),
        judge("tsne.mnist1d", values),
        judge("tsne.knn", {"MNIST": values, "MNIST-1D": values}),
    ]


def test_results_file_holds_what_the_contract_asks_for(folder, judged, capsys):
    numbers = {"a": np.array([1.23456789, np.nan]), "b": range(2)}
    table = save_results("tsne", seeds=[0, 1], numbers=numbers, verdicts=judged, images=["MNIST"])
    results = json.loads((folder / "tsne.json").read_text(encoding="utf-8"))
    names = (
        "slug profile no_verdict code versions processor device jobs threads images seconds earlier_seconds "
        "peak_memory_mib seeds seed_offset numbers claims parts_differ missing"
    )
    assert results.keys() == set(names.split())
    assert results["numbers"] == {"a": [1.23457, None], "b": [0, 1]} and results["processor"]
    assert {"python", "mnist1d", "torch"} <= results["versions"].keys() and results["images"] == ["MNIST"]
    assert [claim["verdict"] for claim in results["claims"]] == ["reproduced", "not reproduced", "partly"]
    part = results["claims"][0]["measured"][0]
    assert part["interval"] == pytest.approx([0.7976, 0.8184], abs=1e-3) and part["outcome"] == "holds"
    assert "tsne.mnist1d" in table._repr_markdown_() and "**reproduced**" in table._repr_markdown_()
    assert "tsne.json" in capsys.readouterr().out


def test_verdicts_that_come_one_by_one_are_kept_and_a_text_is_no_list_of_images(folder, judged):
    save_results("tsne", seeds=[0, 1], numbers={}, verdicts=iter(judged), images=["MNIST"])
    assert len(json.loads((folder / "tsne.json").read_text(encoding="utf-8"))["claims"]) == 3
    with pytest.raises(ValueError, match="images='MNIST'"):
        save_results("tsne", seeds=[0, 1], numbers={}, verdicts=judged, images="MNIST")


def test_results_in_a_checkout_without_the_notebook_have_no_code(folder, judged, tmp_path, monkeypatch):
    for name in ("notebooks", "mnist1d"):
        (tmp_path / "other" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "other")
    save_results("tsne", seeds=[0, 1], numbers={}, verdicts=judged)
    assert json.loads((folder / "tsne.json").read_text(encoding="utf-8"))["code"] is None


def test_results_of_a_checkout_that_was_never_installed(folder, judged, monkeypatch):
    def find(name):
        if name == "mnist1d":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(results, "version", find)
    save_results("tsne", seeds=[0], numbers={}, verdicts=judged)
    assert json.loads((folder / "tsne.json").read_text(encoding="utf-8"))["versions"]["mnist1d"]


@pytest.mark.parametrize("installed", [True, False])
def test_versions_are_of_what_is_installed(monkeypatch, installed):
    def find(name):
        if name == "openTSNE" and not installed:
            raise PackageNotFoundError(name)
        return f"{name} 1.0"

    monkeypatch.setattr(results, "version", find)
    versions = results.read_versions()
    assert versions["scikit-learn"] == "scikit-learn 1.0"
    assert versions.get("openTSNE") == ("openTSNE 1.0" if installed else None)


def test_every_claim_of_a_notebook_must_be_judged_or_missing(folder, judged):
    with pytest.raises(ValueError, match=r"tsne\.knn"):
        save_results("tsne", seeds=[0], numbers={}, verdicts=judged[:2])
    save_results("tsne", seeds=[0], numbers={}, verdicts=judged[:2], missing={"tsne.knn": "why"})
    assert json.loads((folder / "tsne.json").read_text(encoding="utf-8"))["missing"] == {"tsne.knn": "why"}


def test_what_cannot_be_measured_is_recorded_with_its_reason(folder):
    of_shuffling = {claim_id: "why" for claim_id, claim in CLAIMS.items() if claim.slug == "shuffling" and claim.bound}
    save_results("shuffling", seeds=[0], numbers={}, verdicts=[], missing=of_shuffling)
    missing = json.loads((folder / "shuffling.json").read_text(encoding="utf-8"))["missing"]
    assert missing["shuffle.human"] == CLAIMS["shuffle.human"].why


def test_only_the_published_run_records_verdicts_and_only_the_runner_writes_to_figures(tmp_path, monkeypatch):
    judged = [judge("tsne.mnist", 1), judge("tsne.mnist1d", 1), judge("tsne.knn", {"MNIST": 1, "MNIST-1D": 1})]
    monkeypatch.delenv("MNIST1D_OUTPUT", raising=False)
    (tmp_path / "notebooks").mkdir(), (tmp_path / "mnist1d").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setattr(results, "code_digest", lambda slug, root: "x")
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(SEEDS=range(99)))
    for profile, reason in (("smoke", "the smoke profile: no verdict"), ("paper", "parameters differ")):
        monkeypatch.setenv("MNIST1D_PROFILE", profile)
        save_results("tsne", seeds=[0], numbers={"a": 1}, verdicts=judged)
        saved = json.loads((tmp_path / "build" / profile / "tsne.json").read_text(encoding="utf-8"))
        assert saved["claims"] == [] and saved["no_verdict"].startswith(reason) and saved["numbers"] == {"a": 1}
    assert not (tmp_path / "figures").exists()


def test_a_figure_carries_its_alternative_text_and_says_where_it_is(folder, capsys):
    fig, _ = plt.subplots()
    figures.save_figure(fig, "some", alt="A line that rises")
    plt.close(fig)
    assert all(b"A line that rises" in (folder / f"some.{kind}").read_bytes() for kind in ("png", "pdf"))
    written = capsys.readouterr().out
    assert "some.png" in written and "some.pdf" in written


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
    assert digest('x = "3 5 10"\n') != digest('x = "35 10"\n') and digest("x = 'a b'  # c\n") == digest("x  =  'a b'\n")
    blanks, none = (f"x = f\"{{a{s}+{s}1}} b {{d['c{s}d']}}\"\n" for s in (" ", ""))
    assert digest(blanks) == digest(none)  # which Python 3.11 cannot tell from a blank in the text


def test_cells_with_magics_have_a_digest_and_so_have_lines_that_begin_with_an_operator():
    found = {results.digest_source(source, ()) for source in ("x = (1\n     % 2)\n", "%time x\nx = 1\n", "x = 1\n")}
    assert len(found) == 3


PACKAGE = {
    "__init__.py": "from mnist1d.data import load\n",
    "data.py": "from mnist1d import utils\n\nSIZE = 5\n\ndef load():\n    return utils.fill(SIZE)\n\n"
    "def unused():\n    return 1\n",
    "utils.py": "TABLE = {}\n\ndef fill(n):\n    from mnist1d.engine import run\n    return run(n)\n\n"
    "def other():\n    return 2\n",
    "engine/__init__.py": "from mnist1d.engine.core import run\nimport mnist1d.engine.kernels as k\n",
    "engine/core.py": "LIMIT, WIDTH = 3, 4\n\nclass Run:\n    def go(self):\n        return LIMIT\n\n"
    "def run(n):\n    return Run().go() * n\n\ndef walk():\n    return WIDTH\n",
    "engine/kernels.py": "REGISTRY = {}\n\ndef add(f):\n    REGISTRY[f.__name__] = f\n\n"
    "@add\ndef swap(x):\n    return x\n",
    "claims.py": "CLAIMS = 1\n",
}


@pytest.fixture
def package(tmp_path):
    """Write a made-up package, one text changed, and return the digest of a notebook that uses it."""

    def write(
        old="", new="", cell="from mnist1d import load\nfrom mnist1d.claims import CLAIMS\nx = load()\n%pip list"
    ):
        assert not old or any(old in text for text in PACKAGE.values())
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        for name, text in PACKAGE.items():
            (tmp_path / "mnist1d" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "mnist1d" / name).write_text(text.replace(old, new) if old else text, encoding="utf-8")
        cells = [{"cell_type": "code", "source": [cell]}, {"cell_type": "markdown", "source": ["text"]}]
        (tmp_path / "notebooks" / "a.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
        return code_digest("a", tmp_path)

    return write


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SIZE = 5", "SIZE = 6"),  # a constant, through a re-export
        ("fill(SIZE)", "fill(SIZE + 1)"),
        ("return run(n)", "return run(n + 1)"),  # through a module used as a value
        ("return Run().go() * n", "return Run().go() + n"),  # through an import in a function
        ("LIMIT, WIDTH = 3", "LIMIT, WIDTH = 2"),  # through a method
        ("return x", "return -x"),  # registered by its decorator when its module is imported
        ("REGISTRY[f.__name__] = f", "REGISTRY[f.__name__] = None"),
    ],
)
def test_a_changed_definition_that_a_notebook_reaches_changes_its_digest(package, old, new):
    assert package() != package(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def unused():\n    return 1", "def unused():\n    return 2"),
        ("def other():\n    return 2\n", ""),
        ("return WIDTH", "return 1"),
        ("CLAIMS = 1", "CLAIMS = 2"),  # what judges numbers does not make them
        ("SIZE = 5", "# five\nSIZE = 5"),
    ],
)
def test_a_change_that_a_notebook_does_not_reach_leaves_its_digest(package, old, new):
    assert package() == package(old, new)


def test_a_digest_follows_the_cells_and_is_careful_when_in_doubt(package):
    assert package() != package(cell="from mnist1d import load\nx = load() + 1\n%pip list")
    whole = "import mnist1d.data as data\nf = getattr(data, 'unused')"
    assert package(cell=whole) != package("return 1", "return 3", cell=whole)
    named = "import mnist1d.data as data\nf = data.unused()"
    assert package(cell=named) != package("return 1", "return 3", cell=named)
    assert package(cell=named) == package("SIZE = 5", "SIZE = 6", cell=named)


@pytest.mark.parametrize("slug", ["quickstart", "pooling"])
def test_the_digest_of_a_notebook_of_the_collection_follows_the_generator(slug, tmp_path):
    root = settings.find_root()
    for path in [*(root / "mnist1d").rglob("*.py"), root / "notebooks" / f"{slug}.ipynb"]:
        target = tmp_path / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    first = code_digest(slug, tmp_path)
    assert first == code_digest(slug, root)
    generator = tmp_path / "mnist1d" / "data.py"
    text = generator.read_text(encoding="utf-8")
    generator.write_text(text + "\n\ndef nobody_calls_this():\n    return 1\n", encoding="utf-8")
    assert code_digest(slug, tmp_path) == first
    assert "eps=1e-8" in text
    generator.write_text(text.replace("eps=1e-8", "eps=1e-7"), encoding="utf-8")
    assert code_digest(slug, tmp_path) != first


def test_peak_memory_of_workers_is_recorded(monkeypatch):
    monkeypatch.setattr(settings, "_peak_memory", 0)
    training.sweep(lambda variant, seeds: {"x": np.zeros(len(seeds))}, {"a": 0}, [0, 1])
    assert settings._peak_memory > 50 * 2**20


def test_every_name_has_a_colour_of_its_own():
    names = [*figures.COLORS, *map(str, range(40))]
    assert figures.assign_colors(["CNN", "mine", "GRU"])["CNN"] == figures.COLORS["CNN"]
    colors = figures.assign_colors(["CNN", "mine", "other"])
    assert len(set(colors.values())) == 3
    assert set(figures.assign_colors(names)) == set(names)


def test_the_committed_results_of_a_notebook_are_there_and_nothing_elsewhere(tmp_path, monkeypatch):
    assert results.load_results("quickstart")["slug"] == "quickstart"
    assert results.load_results("no notebook") is None
    monkeypatch.chdir(tmp_path)
    assert results.load_results("quickstart") is None


def test_seeds_and_numbers_of_any_kind_are_saved(folder, judged, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    numbers = {"tensor": torch.tensor([[1.0, 2.0]]), "scalar": torch.tensor(3), "array": np.array(4.5)}
    save_results("tsne", seeds=np.arange(3), numbers=numbers, verdicts=judged)
    saved = json.loads((folder / "tsne.json").read_text(encoding="utf-8"))
    assert (saved["seeds"], saved["threads"]) == ([0, 1, 2], 4)
    assert saved["numbers"] == {"tensor": [[1.0, 2.0]], "scalar": 3, "array": 4.5}


def test_a_claim_of_several_parts_asks_for_them():
    with pytest.raises(ValueError, match=r"bench\.fit has parts, must be a dict of"):
        judge("bench.fit", [100.0] * 5)


def test_lists_of_different_lengths_become_json():
    assert claims.to_json([[1, 2], [3], ("a", [1.5])]) == [[1, 2], [3], ["a", [1.5]]]


def test_what_lies_under_a_mask_is_neither_stored_nor_drawn():
    values = np.ma.array([[1.0, 2.0], [3.0, 1e6]], mask=[[0, 0], [0, 1]])
    assert claims.to_json({"a": values}) == {"a": [[1.0, 2.0], [3.0, None]]}
    fig, ax = plt.subplots()
    drawn = figures.plot_mean(ax, [0, 1], values).get_ydata()
    plt.close(fig)
    assert drawn[0] == 2 and np.isnan(drawn[1])


@pytest.mark.parametrize("numbers", [{"a": {1, 2}}, {"a": 1j}, {1: 0, "1": 0}, {"a": b"text"}])
def test_what_is_no_json_is_named(numbers):
    with pytest.raises(ValueError, match=r"(numbers|keys)=.*: must be"):
        claims.to_json(numbers)
