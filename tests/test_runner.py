"""The runner under faults: nothing half-written, nothing lost, every run resumable."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest

import run_notebooks

ROOT = Path(__file__).parent.parent

SAVE = (
    "import matplotlib.pyplot as plt\n"
    "from mnist1d.claims import judge\n"
    "from mnist1d.results import save_results\n"
    "from mnist1d.figures import save_figure\n"
    "save_figure(plt.figure(figsize=(1, 1)), 'tsne')\n"
    "verdicts = [judge('tsne.mnist', 95.0), judge('tsne.mnist1d', 99.0)]\n"
    "save_results('tsne', seeds=[0], numbers={'x': x}, verdicts=verdicts)"
)


@pytest.fixture
def checkout(tmp_path):
    """A checkout of one quick notebook, `tsne`, and this package."""
    shutil.copytree(ROOT / "mnist1d", tmp_path / "mnist1d", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "notebooks").mkdir()
    write_notebook(tmp_path, ["from tqdm.auto import tqdm\nx = [1 for _ in tqdm(range(1))][0]", SAVE])
    return tmp_path


def write_notebook(root, cells, slug="tsne"):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, root / "notebooks" / f"{slug}.ipynb")


def run(root, *arguments):
    return run_notebooks.main(list(arguments), root=root)


def start(root, *arguments):
    """The runner as a process of its own, to be killed."""
    code = (
        "import sys, run_notebooks; from pathlib import Path; "
        f"sys.exit(run_notebooks.main({list(arguments)!r}, root=Path({str(root)!r})))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tools")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.05)


def start_sleeper(root):
    """The runner as a process, in the middle of a notebook that waits until `asleep` is gone."""
    (root / "notebooks" / "asleep").touch()
    wait = (
        "import pathlib, time\npathlib.Path('started').touch()\nwhile pathlib.Path('asleep').exists(): time.sleep(0.1)"
    )
    write_notebook(root, ["x = 1", wait, SAVE])
    process = start(root)
    wait_for(root / "notebooks" / "started")
    return process


def published(root):
    return {path.name: path.read_bytes() for path in (root / "figures").iterdir()}


def test_a_complete_run_publishes_and_is_not_repeated(checkout, capsys):
    assert run(checkout) == 0
    assert sorted(published(checkout)) == ["tsne.json", "tsne.pdf", "tsne.png"]
    results = json.loads((checkout / "figures" / "tsne.json").read_text())
    assert results["profile"] == "paper" and results["numbers"] == {"x": 1} and results["code"]
    assert "1 of 2" in capsys.readouterr().out
    executed = nbformat.read(checkout / "notebooks" / "tsne.ipynb", 4)
    assert executed.cells[1].outputs and "execution" not in executed.cells[0].metadata
    assert not executed.cells[0].outputs  # a progress bar says nothing after the run
    before = published(checkout)
    assert run(checkout) == 0 and "up to date" in capsys.readouterr().out
    assert published(checkout) == before
    write_notebook(checkout, ["x = 2", SAVE])
    assert run(checkout) == 0
    assert json.loads((checkout / "figures" / "tsne.json").read_text())["numbers"] == {"x": 2}


def test_smoke_runs_write_elsewhere(checkout):
    assert run(checkout, "--profile", "smoke") == 0
    assert not (checkout / "figures").exists() and (checkout / "build" / "smoke" / "tsne.json").exists()


@pytest.mark.parametrize("profile", ["smoke", "paper"])
def test_notebooks_run_side_by_side(checkout, monkeypatch, profile):
    monkeypatch.setenv("JOBS", "2")
    meet = "import pathlib, time\npathlib.Path('{}').touch()\nwhile not pathlib.Path('{}').exists(): time.sleep(0.1)"
    write_notebook(checkout, ["x = 1", meet.format("one", "other"), SAVE])
    save = "from mnist1d.results import save_results\nsave_results('quickstart', seeds=[0], numbers={}, verdicts=[])"
    write_notebook(checkout, [meet.format("other", "one"), save], "quickstart")
    assert run(checkout, "--profile", profile, "--limit", "60") == 0
    target = checkout / ("figures" if profile == "paper" else "build/smoke")
    results = {path.stem: json.loads(path.read_text()) for path in target.glob("*.json")}
    assert {slug: r["jobs"] for slug, r in results.items()} == {"quickstart": 1, "tsne": 1}


def test_a_notebook_alone_has_all_cores(checkout, monkeypatch):
    monkeypatch.setenv("JOBS", "3")
    assert run(checkout) == 0
    assert json.loads((checkout / "figures" / "tsne.json").read_text())["jobs"] == 3


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("raise RuntimeError('broken')", "RuntimeError: broken"),
        ("import os; os._exit(1)", "the kernel died"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "the kernel died"),
        ("import time; time.sleep(60)", "a cell ran longer than 3 s"),
        ("", "without its results file"),
    ],
)
def test_a_failed_run_is_reported_and_leaves_everything_as_it_was(checkout, capsys, cell, reason):
    assert run(checkout) == 0
    before = published(checkout)
    save_figure_first = SAVE.split("verdicts")[0]
    write_notebook(checkout, ["x = 2", save_figure_first, cell])
    source = (checkout / "notebooks" / "tsne.ipynb").read_bytes()
    # A short limit where it must strike, none elsewhere: on a busy machine importing torch takes seconds.
    limit = ["--limit", "3"] if "longer than" in reason else []
    assert run(checkout, *limit) == 1
    assert reason in capsys.readouterr().out
    assert published(checkout) == before and (checkout / "notebooks" / "tsne.ipynb").read_bytes() == source
    assert (checkout / "build" / "tsne.failed.ipynb").exists()
    write_notebook(checkout, ["x = 3", SAVE])
    assert run(checkout) == 0 and not (checkout / "build" / "tsne.failed.ipynb").exists()


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_runner_resumes(checkout, kill):
    process = start_sleeper(checkout)
    process.send_signal(kill)
    output, _ = process.communicate(timeout=30)
    assert process.returncode != 0 and (kill == signal.SIGKILL or "interrupted; run again to go on" in output)
    assert not (checkout / "figures").exists()
    (checkout / "notebooks" / "asleep").unlink()
    assert run(checkout) == 0
    assert sorted(published(checkout)) == ["tsne.json", "tsne.pdf", "tsne.png"]


def test_a_kernel_that_starts_after_an_interrupt_does_no_work(checkout, monkeypatch):
    monkeypatch.setattr(run_notebooks, "STOP", threading.Event())
    run_notebooks.STOP.set()
    write_notebook(checkout, ["import pathlib; pathlib.Path('started').touch()"])
    with pytest.raises(run_notebooks.RunError, match="interrupted"):
        run_notebooks.run_notebook("tsne", checkout, "paper", 60, 1, None)
    assert not (checkout / "notebooks" / "started").exists() and not run_notebooks.RUNNING


def test_two_runners_at_once(checkout):
    first = start_sleeper(checkout)
    second = start(checkout)
    output, _ = second.communicate(timeout=30)
    assert second.returncode != 0 and "another run is under way" in output
    (checkout / "notebooks" / "asleep").unlink()
    first.communicate(timeout=60)
    assert first.returncode == 0


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"profile": "smoke"}', '{"profile": "paper", "code": "of another version"}']
)
def test_a_damaged_or_foreign_results_file_is_stale(checkout, damage):
    (checkout / "figures").mkdir()
    (checkout / "figures" / "tsne.json").write_text(damage)
    assert run_notebooks.is_stale("tsne", checkout)
    assert run(checkout) == 0 and not run_notebooks.is_stale("tsne", checkout)


def test_a_full_disk_is_reported_and_leaves_the_old_figure(checkout, capsys, monkeypatch):
    assert run(checkout) == 0
    before = published(checkout)
    write_notebook(checkout, ["x = 2", SAVE])

    def no_space(path, mode="wb"):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(run_notebooks, "open_for_rename", no_space)
    assert run(checkout) == 1
    assert "No space left on device" in capsys.readouterr().out
    assert published(checkout) == before


def test_bad_input_stops_before_any_kernel_starts(checkout, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(checkout, "nonsense")
    assert "no such notebook: nonsense; there are tsne" in capsys.readouterr().err
    monkeypatch.setenv("JOBS", "0")
    with pytest.raises(ValueError, match="JOBS='0'"):
        run(checkout)


def test_nbmake_fails_a_notebook_that_leaves_no_results(tmp_path):
    """The check of conftest.py, on a notebook that nbmake itself lets pass."""
    shutil.copy(ROOT / "conftest.py", tmp_path)
    (tmp_path / "notebooks").mkdir()
    write_notebook(tmp_path, ["x = 1"])
    command = [sys.executable, "-m", "pytest", "--nbmake", "-q", "-p", "no:cacheprovider", "notebooks"]
    process = subprocess.run(
        command, check=False, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTEST_ADDOPTS": ""}
    )
    assert process.returncode == 1 and "ran without leaving build/smoke/tsne.json" in process.stdout
