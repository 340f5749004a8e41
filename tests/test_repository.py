"""The repository agrees with itself: requirements, notebooks, addresses, results and documents."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from itertools import chain

import pytest

import colab
import report
import run_notebooks
from mnist1d.claims import CLAIMS
from notebooks import ROOT, read_notebook

SLUGS = run_notebooks.list_slugs(ROOT)
PYPROJECT = (ROOT / "pyproject.toml").read_text()
RESULTS = report.read_all(ROOT)


def version_tuple(text):
    return tuple(int(part) for part in re.findall(r"\d+", text))


def test_pins_lie_within_the_ranges_and_name_the_same_packages():
    project = tomllib.loads(PYPROJECT)["project"]
    ranges = dict(
        re.fullmatch(r"([\w-]+)>=([\d.]+)", dependency).groups()
        for dependency in chain(project["dependencies"], *project["optional-dependencies"].values())
    )
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert pins.keys() == ranges.keys()
    for name, low in ranges.items():
        assert version_tuple(pins[name]) >= version_tuple(low)
    assert pins["torch"] == "2.13.0"


def test_environment_holds_python_pip_and_the_requirements():
    text = (ROOT / "environment.yml").read_text()
    dependencies = re.findall(r"^ +- (.+)$", text.split("dependencies:")[1], flags=re.M)
    assert dependencies == ["python=3.11", "pip", "pip:", "-r requirements.txt", "-e ."]


def test_lower_bounds_do_not_exceed_what_colab_ships():
    shipped = {"torch": "2.11", "numpy": "2.1.3", "scipy": "1.16.3", "scikit-learn": "1.6.1", "matplotlib": "3.10"}
    for name, version in shipped.items():
        low = re.search(rf'"{name}>=([\d.]+)"', PYPROJECT)[1]
        assert version_tuple(low) <= version_tuple(version), name


def test_there_is_a_notebook_for_every_figure_and_claim():
    assert set(SLUGS) == set(report.FIGURES) and {claim.slug for claim in CLAIMS.values()} <= set(SLUGS)


@pytest.mark.parametrize("slug", SLUGS)
def test_notebook_keeps_the_skeleton(slug):
    cells = read_notebook(slug)
    code = [(source, tags) for kind, source, tags in cells if kind == "code"]
    repository = report.read_repository(ROOT)
    guard = next(source for kind, source, _ in read_notebook("quickstart") if kind == "code")
    badge = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{slug}.ipynb"
    assert badge in cells[0][1] and cells[1][1].startswith("# ")
    assert code[0][0] == guard and f"git+https://github.com/{repository}" in guard
    assert [tags for _, tags in code].count(["parameters"]) == 1
    for source, tags in code:
        assert len(source.splitlines()) <= 45
        assert ("SMOKE =" in source) == (tags == ["parameters"])
    whole = "\n".join(source for source, _ in code)
    assert whole.count("%pip") == 1 and f'save_figure(fig, "{slug}")' in whole
    assert re.search(rf'save_results\(\s*"{slug}"', whole)
    assert any(
        kind == "markdown" and re.search(r"^## (Takeaways|Where to go on)", source, re.M) for kind, source, _ in cells
    )
    for forbidden in ("sys.path", "drive.mount", "except:", "TAKEAWAYS", "READING", "MINUTES", "TODO"):
        assert forbidden not in "\n".join(source for _, source, _ in cells)
    assert run_notebooks.WIDGET not in (ROOT / "notebooks" / f"{slug}.ipynb").read_text()


@pytest.mark.parametrize("slug", SLUGS)
def test_knobs_are_used(slug):
    cells = read_notebook(slug)
    (parameters,) = [source for _, source, tags in cells if tags == ["parameters"]]
    rest = "\n".join(source for kind, source, tags in cells if kind == "code")
    names = {node.id for node in ast.walk(ast.parse(parameters)) if isinstance(node, ast.Name) and node.id.isupper()}
    unused = [name for name in names if len(re.findall(rf"\b{name}\b", rest)) < 2]
    assert not unused


def test_package_imports_in_one_direction():
    order = ["utils", "transform", "data", "models", "training", "images", "figures", "claims"]
    for i, module in enumerate(order):
        source = (ROOT / "mnist1d" / f"{module}.py").read_text()
        top = [line for line in source.splitlines() if re.match(r"(from|import) ", line)]
        for later in order[i + 1 :]:
            assert not any(re.search(rf"mnist1d(\.| import .*\b){later}\b", line) for line in top), (module, later)


def test_one_address_and_it_can_be_restamped(tmp_path):
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    for name in tracked:
        if name.startswith("mnist1d/") or not name.endswith((".toml", ".md", ".cff", ".ipynb")):
            continue
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    changed = colab.restamp(tmp_path, "someone/elsewhere")
    assert {"pyproject.toml", "README.md", *(f"{slug}.ipynb" for slug in SLUGS)} <= set(changed)
    left = [path for path in tmp_path.rglob("*.*") if report.read_repository(ROOT) in path.read_text()]
    assert not left and report.read_repository(tmp_path) == "someone/elsewhere"


# The committed results


def test_every_notebook_has_its_results_and_pictures():
    assert set(RESULTS) == set(SLUGS)
    for slug in SLUGS:
        assert all((ROOT / "figures" / f"{slug}.{kind}").is_file() for kind in ("png", "pdf"))


def test_files_are_small_and_say_nothing_of_this_machine():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    for name in tracked:
        content = (ROOT / name).read_bytes()
        limit = 600_000 if name.startswith(("figures/", "notebooks/")) else 100_000
        assert len(content) <= limit, name
        assert b"/" + b"work/" not in content and b"/ro" + b"ot/" not in content, name


@pytest.mark.parametrize("slug", ["quickstart"])
def test_a_notebook_alone_in_an_empty_folder_installs_the_package(slug, tmp_path):
    """The guard cell, pointed at this checkout, in an environment that has the libraries but not mnist1d."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    site = next((venv / "lib").glob("python*")) / "site-packages"
    libraries = next(path for path in sys.path if path.endswith("site-packages"))
    # The libraries of this environment without its editable mnist1d, whose finder is a .pth file and so not followed.
    (site / "libraries.pth").write_text(libraries + "\n")
    before = versions(venv)
    guard, *rest = [source for kind, source, _ in read_notebook(slug) if kind == "code"]
    script = guard.replace("%pip install --quiet {source}", "install(source)")
    install = (
        "import subprocess, sys\n"
        "def install(source):\n"
        "    command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-build-isolation', source]\n"
        "    subprocess.run(command, check=True)\n"
    )
    (tmp_path / "notebook.py").write_text("\n".join([install, script, *rest]))
    environment = {
        "MNIST1D_SOURCE": str(ROOT), "MNIST1D_PROFILE": "smoke", "MPLBACKEND": "agg", "TQDM_DISABLE": "1",
        "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }  # fmt: skip
    work = tmp_path / "empty"
    work.mkdir()
    subprocess.run([str(venv / "bin" / "python"), "../notebook.py"], cwd=work, env=environment, check=True)
    assert json.loads((work / "build" / "smoke" / f"{slug}.json").read_text())["slug"] == slug
    assert (site / "mnist1d" / "data.py").is_file() and versions(venv) == before


def versions(venv):
    """Versions that an interpreter sees of the libraries a notebook must not change."""
    names = ["numpy", "torch", "scipy", "scikit-learn", "matplotlib"]
    code = f"import importlib.metadata as m; print([m.version(name) for name in {names}])"
    return subprocess.run([str(venv / "bin" / "python"), "-c", code], check=True, capture_output=True, text=True).stdout
