"""Installed from a wheel: the light core alone, the set-up cell of a notebook, other systems, source distributions."""

import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from notebooks import ROOT, read_notebook
from run_notebooks import list_slugs
from test_repository import list_files

SITE = next(Path(path) for path in sys.path if path.endswith("site-packages"))
# One notebook on every run of the tests; a weekly workflow takes each.
ALONE = list_slugs(ROOT) if os.environ.get("MNIST1D_REPEAT") == "all" else ["quickstart"]
LIBRARIES = ["numpy", "torch", "scipy", "scikit-learn", "matplotlib"]


def run(command, **options):
    return subprocess.run(command, check=False, capture_output=True, encoding="utf-8", **options)


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A copy of the files that git knows, for building: a build leaves files beside its sources."""
    folder = tmp_path_factory.mktemp("source") / "mnist1d"
    for name in list_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def build(source, kind):
    """Build a wheel or an sdist with the setuptools of this environment."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}('dist'))"
    process = run([sys.executable, "-c", code], cwd=source)
    assert process.returncode == 0, process.stderr
    return source / "dist" / process.stdout.splitlines()[-1]


@pytest.fixture(scope="session")
def wheel(source):
    return build(source, "wheel")


def make_environment(folder, *, libraries=None):
    """An environment without pip that sees some libraries of this one, or all; neither sees an editable mnist1d."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    if libraries is None:
        # A .pth file in there, as of an editable install, is not read.
        (site / "libraries.pth").write_text(f"{SITE}\n", encoding="utf-8")
    else:
        for path in SITE.iterdir():
            if path.name.split("-")[0].split(".")[0] in libraries:
                (site / path.name).symlink_to(path)
    return folder / "bin" / "python", site


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_the_core_needs_numpy_and_scipy_alone(wheel, tmp_path):
    python, site = make_environment(tmp_path / "venv", libraries=("numpy", "scipy"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = """
import mnist1d, sys
from mnist1d.data import get_dataset
assert mnist1d.verify() and mnist1d.make_dataset({"num_samples": 100})["x"].shape == (80, 40)
assert len(get_dataset(mnist1d.get_dataset_args(), path="cache.pkl", download=False)["y"]) == 4000
mnist1d.from_pickle("cache.pkl")
from mnist1d import settings
assert settings.profile() == "paper"
for name in ("torch", "matplotlib", "joblib"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(name + " is here: this environment shows nothing")
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MNIST1D", "PYTHON"))}
    process = run([str(python), "-c", code], cwd=tmp_path, env=environment)
    assert process.returncode == 0, process.stderr


def test_the_wheel_asks_for_numpy_and_scipy_and_has_types_and_data(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        headers = email.message_from_bytes(archive.read(metadata))
    page = headers.get_payload()  # README.md, as PyPI shows it
    assert page.startswith("# mnist1d") and "/raw/main/figures/construction.png" in page
    assert not re.search(r'(\]\(|src=")(?!https://|#)', page)
    core = [line for line in headers.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(line.split(">")[0] for line in core) == ["numpy", "scipy"]
    assert set(headers.get_all("Provides-Extra")) == {"all", "notebooks", "cluster", "playground", "dev"}
    package = {name for name in list_files() if name.startswith("mnist1d/") and not name.endswith(".md")}
    assert "mnist1d/py.typed" in names and package <= set(names)
    assert not [name for name in names if not name.startswith("mnist1d")]


def test_the_source_distribution_holds_every_file(source):
    with tarfile.open(build(source, "sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert set(list_files()) - {".gitignore"} <= names


@pytest.mark.skipif(os.name != "posix", reason="the layout of a virtual environment")
@pytest.mark.parametrize("slug", ALONE)
def test_a_notebook_alone_in_an_empty_folder_installs_the_package(wheel, tmp_path, slug):
    """With mnist1d 0.0.2 installed and imported, as readers of its textbook have it; no library is changed."""
    python, site = make_environment(tmp_path / "venv")
    install_old(site)
    before = list_versions(python)
    cells = [source for kind, source, _ in read_notebook(slug) if kind == "code"]
    process = run_cells(python, tmp_path, ["import mnist1d\nassert mnist1d.old", *cells], MNIST1D_SOURCE=str(wheel))
    assert process.returncode == 0, process.stderr
    assert f"was installed from {wheel}\n" in process.stdout
    results = tmp_path / "empty" / "build" / "smoke" / f"{slug}.json"
    assert json.loads(results.read_text(encoding="utf-8"))["slug"] == slug
    assert (site / "mnist1d" / "data.py").is_file() and list_versions(python) == before
    again = run_cells(python, tmp_path, cells[:1], MNIST1D_SOURCE="file:///nowhere")
    assert again.returncode == 0 and "is here: ../venv/lib" in again.stdout


@pytest.mark.skipif(os.name != "posix", reason="the layout of a virtual environment")
def test_a_wrong_address_ends_the_set_up_cell_with_one_sentence(tmp_path):
    python, site = make_environment(tmp_path / "venv")
    install_old(site)
    guard = next(source for kind, source, _ in read_notebook("quickstart") if kind == "code")
    process = run_cells(python, tmp_path, [guard, "print('the next cell')"], MNIST1D_SOURCE="file:///nowhere/mnist1d")
    assert process.returncode == 1 and "the next cell" not in process.stdout
    last = process.stderr.splitlines()[-1]
    assert last.startswith("ImportError: mnist1d cannot be installed from file:///nowhere/mnist1d; set MNIST1D_SOURCE")


def test_on_colab_the_form_decides_the_profile():
    guard = next(source for kind, source, _ in read_notebook("quickstart") if kind == "code")
    colab = "import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')\n"
    code = colab + guard + "\nfrom mnist1d.settings import profile\nprint(profile())"
    process = run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stdout.splitlines()[-1] == "quick", process.stderr
    assert '# @param ["quick", "paper", "smoke"]' in guard


def install_old(site):
    """What an installation of mnist1d 0.0.2.post1 looks like to pip and to python."""
    (site / "mnist1d").mkdir()
    (site / "mnist1d" / "__init__.py").write_text("old = True\n", encoding="utf-8")
    info = site / "mnist1d-0.0.2.post1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mnist1d\nVersion: 0.0.2.post1\n", encoding="utf-8")
    (info / "INSTALLER").write_text("pip\n", encoding="utf-8")
    files = ["mnist1d/__init__.py", *(f"{info.name}/{name}" for name in ("METADATA", "INSTALLER", "RECORD"))]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in files), encoding="utf-8")


def run_cells(python, folder, cells, **environment):
    """Cells as a script in an empty folder, without the variables of this process."""
    (folder / "notebook.py").write_text("\n".join(cells), encoding="utf-8")
    (folder / "empty").mkdir(exist_ok=True)
    environment = {
        "MNIST1D_PROFILE": "smoke", "MPLBACKEND": "agg", "TQDM_DISABLE": "1", "PATH": "/usr/bin:/bin",
        "HOME": str(folder), "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment,
    }  # fmt: skip
    return run([str(python), "../notebook.py"], cwd=folder / "empty", env=environment)


def list_versions(python):
    """Versions that an interpreter sees of the libraries a notebook must not change."""
    code = f"import importlib.metadata as m; print([m.version(name) for name in {LIBRARIES}])"
    return run([str(python), "-c", code]).stdout


def test_every_module_imports_and_trains_without_what_only_posix_has():
    code = """
import sys
import joblib, matplotlib.pyplot, platformdirs, sklearn.datasets, sklearn.manifold, torch, tqdm.auto
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None
import importlib, pkgutil
import mnist1d
names = [m.name for m in pkgutil.walk_packages(mnist1d.__path__, "mnist1d.")]
for name in names:
    importlib.import_module(name)
assert {"mnist1d.training", "mnist1d.claims", "mnist1d.results", "mnist1d.settings"} <= set(names)
assert "torch._dynamo" not in sys.modules  # it takes as long as torch itself, and nobody has asked for it
from mnist1d.models import MODELS
from mnist1d.training import train
history = train(MODELS["logistic"], mnist1d.make_dataset({"num_samples": 1000}), seeds=range(2), steps=5)
assert history["test_acc"].shape[0] == 2
assert mnist1d.settings.measure_peak_memory() == 0
"""
    process = run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(("system", "factor"), [("darwin", 1), ("linux", 1024)])
def test_peak_memory_is_in_bytes_on_every_system(monkeypatch, system, factor):
    resource = pytest.importorskip("resource")
    from mnist1d import settings

    monkeypatch.setattr(resource, "getrusage", lambda _: type("Usage", (), {"ru_maxrss": 5000}))
    monkeypatch.setattr(sys, "platform", system)
    assert settings.measure_peak_memory() == 5000 * factor


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this system")
class TestMakefile:
    """The set-up, with a pip that only notes how it is called."""

    @pytest.fixture
    def checkout(self, tmp_path):
        root = tmp_path / "a folder"
        root.mkdir()
        for name in ("Makefile", "requirements.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, root)
        return root

    def make(self, root, *arguments):
        """Make, where `python -m venv` gives a python that notes its calls and makes what it is asked for."""
        python = root.parent / "python"
        script = f"""#!/bin/sh
'''exec' "{sys.executable}" "$0" "$@"  # a shell's line, since no first line may name a path with a space
' '''
import os, pathlib, shutil, sys
calls = pathlib.Path({str(root)!r}, "calls")
if sys.argv[1:3] == ["-m", "venv"]:
    os.makedirs(".venv/bin")
    shutil.copy(__file__, ".venv/bin/python")
elif sys.argv[1] == "-m":
    with open(calls, "a") as file:
        file.write(" ".join(sys.argv[1:]) + chr(10))
elif sys.argv[1] == "-c":
    exec(sys.argv[2])
"""
        python.write_text(script, encoding="utf-8")
        python.chmod(0o755)
        command = ["make", "--no-print-directory", f"PYTHON={python}", *arguments]
        environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL")}
        process = run(command, cwd=root, env=environment)
        assert process.returncode == 0, process.stderr
        calls = (root / "calls").read_text(encoding="utf-8") if (root / "calls").exists() else ""
        (root / "calls").unlink(missing_ok=True)
        return process.stdout, calls

    def test_set_up_says_its_size_and_is_not_repeated(self, checkout):
        output, calls = self.make(checkout, "setup")
        assert ("1.8 GB" in output) == sys.platform.startswith("linux")
        assert "pip install" in calls and "-r requirements.txt" in calls and "--index-url" not in calls
        assert "--quiet -r" not in calls  # pip's progress is shown
        assert self.make(checkout, "setup")[1] == ""

    def test_torch_without_cuda(self, checkout):
        output, calls = self.make(checkout, "TORCH=cpu", "setup")
        first = calls.splitlines()[0]
        assert "--index-url https://download.pytorch.org/whl/cpu torch==2.13.0" in first and "1.8 GB" not in output

    @pytest.mark.parametrize("damage", ["dangling", "copied"])
    def test_a_broken_or_copied_environment_heals_itself(self, checkout, damage):
        self.make(checkout, "setup")
        (checkout / ".venv" / "old").touch()
        if damage == "dangling":
            (checkout / ".venv" / "bin" / "python").unlink()
            (checkout / ".venv" / "bin" / "python").symlink_to("/nowhere/python")
        else:
            checkout = Path(shutil.copytree(checkout, checkout.parent / "copy"))
        output, calls = self.make(checkout, "setup")
        assert "making .venv anew" in output and "pip install" in calls
        assert not (checkout / ".venv" / "old").exists()
        assert self.make(checkout, "setup")[1] == ""
