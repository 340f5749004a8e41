"""The runner under faults: nothing half-written, nothing lost, every run resumable.

Most notebooks here write their results file by hand, so that their kernels need not import the package: the digest of
their code lies beside them.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

import agreement
import kernels
import run_notebooks
from mnist1d.results import code_digest
from run_notebooks import Run

ROOT = Path(__file__).parent.parent

SAVE = """
import json, os
from pathlib import Path

folder = Path(os.environ["MNIST1D_OUTPUT"])
(folder / "tsne.png").write_bytes(b"picture")
part = {"part": "", "mean": 50.0 + x, "sd": 2.0, "n": 3}
results = {
    "slug": "tsne", "profile": os.environ["MNIST1D_PROFILE"], "code": Path("tsne.digest").read_text(),
    "jobs": int(os.environ["JOBS"]), "seconds": 0.5, "numbers": {"x": x},
    "claims": [{"id": "tsne.mnist", "verdict": "reproduced" if x < 5 else "partly", "measured": [part]}],
}
(folder / "tsne.json").write_text(json.dumps(results))
""".strip()

SAVE_ANY = SAVE.replace('"mean": 50.0 + x', '"mean": 50.0').replace("x < 5", "True")

# What a digest of the code follows to a function of the package. It is not run: importing scipy takes a second.
USE_PACKAGE = "x = 1\nif not x:\n    from mnist1d.transform import pad"

# The same through the package, as a notebook does it.
SAVE_WITH_PACKAGE = """
import matplotlib.pyplot as plt
from mnist1d.claims import judge
from mnist1d.figures import save_figure
from mnist1d.results import save_results

save_figure(plt.figure(figsize=(1, 1)), "quickstart")
save_results("quickstart", seeds=[0], numbers={"x": x}, verdicts=[])
""".strip()


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    monkeypatch.setenv("MNIST1D_DEVICE", "cpu")


def make_checkout(root):
    shutil.copytree(ROOT / "mnist1d", root / "mnist1d", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "notebooks").mkdir()
    write_notebook(root, [USE_PACKAGE, SAVE])
    return root


@pytest.fixture
def checkout(tmp_path):
    """A checkout of one quick notebook, `tsne`, and this package."""
    return make_checkout(tmp_path / "check out")


@pytest.fixture(scope="module")
def complete_run(tmp_path_factory):
    root = make_checkout(tmp_path_factory.mktemp("complete") / "check out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNIST1D_DEVICE", "cpu")
        assert run(root) == 0
    return root


@pytest.fixture
def finished(complete_run, tmp_path):
    """A copy of a checkout whose notebook has run."""
    return shutil.copytree(complete_run, tmp_path / "check out")


def write_notebook(root, cells, slug="tsne"):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, root / "notebooks" / f"{slug}.ipynb")
    (root / "notebooks" / f"{slug}.digest").write_text(code_digest(slug, root), encoding="utf-8")


def run(root, *arguments):
    return run_notebooks.main(list(arguments), root=root)


def start(root, *arguments, **environment):
    """The runner as a process of its own."""
    code = (
        "import sys, run_notebooks; from pathlib import Path; "
        f"sys.exit(run_notebooks.main({list(arguments)!r}, root=Path({str(root)!r})))"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tools")])
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=root.parent,  # where -c finds no other mnist1d
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def is_alive(pid):
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split()[2] != "Z"  # a zombie is dead
    except ProcessLookupError:
        return False
    except FileNotFoundError:  # no /proc on this system, or the process ended in between
        return not Path("/proc").is_dir()


def start_sleeper(root):
    """The runner as a process, in the middle of a notebook with a worker that waits until `asleep` is gone."""
    (root / "notebooks" / "asleep").touch()
    wait = """
import os, pathlib, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("pids").write_text(f"{os.getpid()} {worker.pid}")
pathlib.Path("started").touch()
while pathlib.Path("asleep").exists():
    time.sleep(0.1)
"""
    write_notebook(root, ["x = 1", wait, SAVE])
    process = start(root)
    wait_until((root / "notebooks" / "started").exists)
    return process


def published(root):
    return {path.name: path.read_bytes() for path in (root / "figures").iterdir()}


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_complete_run_publishes_and_is_not_repeated(checkout, capsys):
    (checkout / "notebooks" / "tsne.ipynb").unlink()
    bar = f"display({{{run_notebooks.WIDGET!r}: {{}}, 'text/plain': 'bar'}}, raw=True)\nx = 1"
    warn = "import sys, pathlib; print(pathlib.Path.cwd().parent / 'mnist1d' / 'training.py', file=sys.stderr)"
    write_notebook(checkout, [bar, SAVE_WITH_PACKAGE, warn], "quickstart")
    assert run(checkout) == 0
    assert sorted(published(checkout)) == ["quickstart.json", "quickstart.pdf", "quickstart.png"]
    results = read_json(checkout / "figures" / "quickstart.json")
    assert results["profile"] == "paper" and results["numbers"] == {"x": 1} and results["code"]
    executed = nbformat.read(checkout / "notebooks" / "quickstart.ipynb", 4)
    assert executed.cells[1].outputs and "execution" not in executed.cells[0].metadata
    assert not executed.cells[0].outputs  # a progress bar says nothing after the run
    assert executed.cells[2].outputs[0].text == f"mnist1d{os.sep}training.py\n"  # wherever the checkout lies
    figure, results = (output.data["text/html"] for output in executed.cells[1].outputs if "text/html" in output.data)
    assert '<a href="../figures/quickstart.png">' in figure and '<a href="../figures/quickstart.json">' in results
    assert "1 notebook to run" in capsys.readouterr().out
    before = published(checkout)
    assert run(checkout) == 0
    output = capsys.readouterr().out
    assert "1 of 1 notebooks are up to date on this machine" in output and "to run" not in output
    assert published(checkout) == before


def test_committed_results_are_the_reference_and_not_a_result_of_this_machine(finished, capsys):
    shutil.rmtree(finished / "build")  # a fresh clone, with results of the same code
    write_notebook(finished, ["x = 6", SAVE])
    assert run(finished) == 0
    output = capsys.readouterr().out
    assert "0 of 1 verdicts are those of the committed results: build/agreement.md" in output
    assert "2.5 (tsne.mnist)" in output and "about 0 s" in output
    assert read_json(finished / "build" / "reference" / "tsne.json")["numbers"] == {"x": 1}
    assert "| tsne | 0.5 | 0.5 | 0 of 1 | 0 of 1 | 2.5 (tsne.mnist) |" in (
        finished / "build" / "agreement.md"
    ).read_text(encoding="utf-8")
    write_notebook(finished, ["x = 2", SAVE])
    assert run(finished) == 0  # the reference stays, whatever this machine has written in its place
    assert "1 of 1 verdicts" in capsys.readouterr().out
    assert read_json(finished / "build" / "reference" / "tsne.json")["numbers"] == {"x": 1}


def test_the_reference_is_what_git_has(checkout):
    (checkout / "figures").mkdir()
    (checkout / "figures" / "tsne.json").write_text('{"committed": true}', encoding="utf-8")
    for command in (["init", "-q"], ["add", "figures"], ["commit", "-q", "-m", "x"]):
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *who, *command], cwd=checkout, check=True)
    (checkout / "figures" / "tsne.json").write_text('{"committed": false}', encoding="utf-8")
    assert agreement.read_reference("tsne", checkout) == {"committed": True}


def test_without_committed_results_there_is_no_reference(checkout, capsys):
    assert run(checkout) == 0
    assert agreement.read_reference("tsne", checkout) is None
    assert "0 of 0 verdicts" in capsys.readouterr().out


def test_other_images_make_a_notebook_stale_that_reads_them(checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("MNIST1D_DATA", str(tmp_path))
    setup = run_notebooks.Run(checkout)
    before = run_notebooks.describe("tsne", setup)
    (tmp_path / "mnist.npz").write_text("images", encoding="utf-8")
    assert run_notebooks.describe("tsne", setup) == before  # it reads none
    write_notebook(checkout, ["from mnist1d.images import load_mnist", SAVE])
    first = run_notebooks.describe("tsne", setup)
    (tmp_path / "mnist.npz").write_text("other images", encoding="utf-8")
    second = run_notebooks.describe("tsne", setup)
    assert [*first["images"]] == ["mnist.npz"] and first["images"] != second["images"]


def edit_package(root):
    with open(root / "mnist1d" / "transform.py", "a", encoding="utf-8") as file:
        file.write("\n\ndef pad(*arguments):\n    return arguments\n")


def damage_stamp(root):
    (root / "build" / "stamps" / "paper" / "tsne.json").write_text("[" * 100_000, encoding="utf-8")


def change_version(root):
    path = root / "build" / "stamps" / "paper" / "tsne.json"
    stamp = read_json(path)
    stamp["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(stamp), encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        lambda root: (root / "figures" / "tsne.png").unlink(),
        lambda root: (root / "figures" / "tsne.png").write_bytes(b"half a pict"),
        lambda root: (root / "figures" / "tsne.json").write_text("[" * 100_000, encoding="utf-8"),
        lambda root: write_notebook(root, ["x = 2", SAVE]),
        edit_package,
        damage_stamp,
        change_version,
    ],
    ids=["no picture", "a damaged picture", "damaged results", "a cell", "a module", "a damaged stamp", "a version"],
)
def test_what_is_missing_damaged_or_changed_is_stale(finished, damage):
    assert not run_notebooks.is_stale("tsne", Run(finished))
    damage(finished)
    assert run_notebooks.is_stale("tsne", Run(finished))


def test_a_damaged_stamp_and_picture_are_made_anew(finished):
    before = published(finished)
    damage_stamp(finished)
    (finished / "figures" / "tsne.png").unlink()
    assert run(finished) == 0 and not run_notebooks.is_stale("tsne", Run(finished))
    assert published(finished) == before


@pytest.mark.parametrize("profile", ["quick", "smoke"])
def test_other_profiles_write_elsewhere(checkout, capsys, profile):
    source = (checkout / "notebooks" / "tsne.ipynb").read_bytes()
    assert run(checkout, "--profile", profile) == 0
    made = {path.name for path in (checkout / "build" / profile).iterdir()}
    assert made == {"tsne.json", "tsne.png", "tsne.ipynb"} and not (checkout / "figures").exists()
    assert (checkout / "notebooks" / "tsne.ipynb").read_bytes() == source
    assert "committed" not in capsys.readouterr().out
    assert run(checkout, "--profile", profile) == 0 and "up to date" in capsys.readouterr().out


def test_a_replicate_has_other_seeds_and_leaves_the_figures(finished, capsys):
    before = published(finished)
    write_notebook(finished, ["SEEDS, FIRST_SEED, OTHER = range(3), 7, 1", "x = [*SEEDS, FIRST_SEED, OTHER]", SAVE_ANY])
    path = finished / "notebooks" / "tsne.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, path)
    assert run(finished, "--offset", "4") == 0
    assert read_json(finished / "build" / "replicate" / "tsne.json")["numbers"] == {"x": [4, 5, 6, 11, 1]}
    assert published(finished) == before
    assert run(finished) == 0
    assert read_json(finished / "figures" / "tsne.json")["numbers"] == {"x": [0, 1, 2, 7, 1]}
    assert "build/replicate/agreement.md" in capsys.readouterr().out
    assert run_notebooks.is_stale("tsne", Run(finished, offset=5))
    assert not run_notebooks.is_stale("tsne", Run(finished, offset=4))


@pytest.mark.xdist_group("side by side")  # four kernels at once would make them wait for each other
@pytest.mark.parametrize("profile", ["smoke", "paper"])
def test_notebooks_run_side_by_side(checkout, monkeypatch, profile):
    monkeypatch.setenv("JOBS", "2")
    meet = "import pathlib, time\npathlib.Path('{}').touch()\nwhile not pathlib.Path('{}').exists(): time.sleep(0.1)"
    write_notebook(checkout, ["x = 1", meet.format("one", "other"), SAVE])
    write_notebook(checkout, ["x = 1", meet.format("other", "one"), SAVE.replace("tsne", "pooling")], "pooling")
    assert run(checkout, "--profile", profile, "--limit", "60") == 0
    results = [read_json(path) for path in Run(checkout, profile).target.glob("*.json")]
    assert {r["slug"]: r["jobs"] for r in results} == {"pooling": 1, "tsne": 1}


def test_a_notebook_alone_has_all_cores(checkout, monkeypatch):
    monkeypatch.setenv("JOBS", "3")
    assert run(checkout) == 0
    assert read_json(checkout / "figures" / "tsne.json")["jobs"] == 3


def test_the_shortest_notebook_comes_first_and_then_the_longest(checkout, capsys):
    (checkout / "figures").mkdir()
    for slug, seconds in {"a": 100, "b": 3, "c": 400, "d": 60}.items():
        results = {"profile": "paper", "seconds": seconds / 2, "jobs": 2}
        (checkout / "figures" / f"{slug}.json").write_text(json.dumps(results), encoding="utf-8")
    slugs = run_notebooks.order(["a", "b", "c", "d"], Run(checkout))
    assert slugs == ["b", "c", "a", "d"]
    run_notebooks.announce(slugs, Run(checkout), 2)
    run_notebooks.announce(["c"], Run(checkout), 2)
    run_notebooks.announce(["b", "tsne"], Run(checkout), 2)
    run_notebooks.announce(["b"], Run(checkout, "quick"), 2)
    output = capsys.readouterr().out
    assert "4 notebooks to run, profile paper: about 7 min on 2 cores" in output and "b, c, a, d" in output
    assert ": about 3 min on 2 cores" in output and ": at least about 3 s on 2 cores" in output
    assert "profile quick: no times are recorded" in output


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("raise RuntimeError('broken')", "RuntimeError: broken"),
        ("import os; os._exit(1)", "the kernel died"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "the kernel died"),
        ("import time; time.sleep(60)", "a cell ran longer than 3 s"),
        ("", "without its results file"),
        (SAVE + "\n(folder / 'tsne.json').write_text('[' * 100_000)", "without its results file"),
    ],
)
def test_a_failed_run_is_reported_and_leaves_everything_as_it_was(checkout, capsys, cell, reason):
    (checkout / "figures").mkdir()
    for name in ("tsne.json", "tsne.png"):
        (checkout / "figures" / name).write_text("{}", encoding="utf-8")
    before = published(checkout)
    figure_first = "import os, pathlib; pathlib.Path(os.environ['MNIST1D_OUTPUT'], 'tsne.png').touch()"
    write_notebook(checkout, ["x = 2", figure_first, cell])
    source = (checkout / "notebooks" / "tsne.ipynb").read_bytes()
    # A short limit where it must strike, none elsewhere: a machine may be busy.
    limit = ["--limit", "3"] if "longer than" in reason else []
    assert run(checkout, *limit) == 1
    assert reason in capsys.readouterr().out
    assert published(checkout) == before and (checkout / "notebooks" / "tsne.ipynb").read_bytes() == source
    assert (checkout / "build" / "tsne.failed.ipynb").exists()
    if "broken" in reason:
        write_notebook(checkout, ["x = 3", SAVE])
        assert run(checkout) == 0 and not (checkout / "build" / "tsne.failed.ipynb").exists()


@pytest.mark.parametrize("content", ["{", '{"cells": 1}', "[" * 100_000])
def test_a_broken_notebook_is_one_failed_row(checkout, capsys, content):
    (checkout / "notebooks" / "broken.ipynb").write_text(content, encoding="utf-8")
    assert run(checkout) == 1
    output = capsys.readouterr().out
    assert "FAILED" in output and "1 of 1" in output and "in all" in output
    assert (checkout / "figures" / "tsne.json").exists()
    assert (checkout / "notebooks" / "broken.ipynb").read_text(encoding="utf-8") == content


def test_an_edit_of_the_notebook_during_its_run_is_kept(checkout, capsys):
    edit = """
import nbformat
notebook = nbformat.read("tsne.ipynb", 4)
notebook.cells[0].source = "x = 7"
nbformat.write(notebook, "tsne.ipynb")
"""
    write_notebook(checkout, ["x = 1", edit, SAVE])
    assert run(checkout) == 1
    assert "the edit is kept and nothing is published" in capsys.readouterr().out
    assert nbformat.read(checkout / "notebooks" / "tsne.ipynb", 4).cells[0].source == "x = 7"
    assert not published(checkout) and (checkout / "build" / "tsne.failed.ipynb").exists()


@pytest.mark.parametrize("revert", ["", "path.write_text(source, encoding='utf-8')"], ids=["kept", "taken back"])
def test_results_of_a_package_that_was_edited_during_the_run_are_not_published(checkout, capsys, revert):
    edit = """
path = Path("../mnist1d/transform.py")
source = path.read_text(encoding="utf-8")
path.write_text(source + "\\n\\ndef pad(*arguments):\\n    return arguments\\n", encoding="utf-8")
"""
    save = SAVE.replace('Path("tsne.digest").read_text()', 'code_digest("tsne", Path.cwd().parent)')
    imports = "from pathlib import Path\nfrom mnist1d.results import code_digest"
    write_notebook(checkout, [USE_PACKAGE, imports, edit + save + "\n" + revert])
    assert run(checkout) == 1
    assert "mnist1d was edited during the run; nothing is published" in capsys.readouterr().out
    assert not published(checkout)


def test_a_package_of_another_checkout_is_noticed(checkout):
    """As where a checkout is copied with its .venv, whose mnist1d is the original's."""
    shutil.copytree(ROOT / "tools", checkout / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "tools/run_notebooks.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, check=False, cwd=checkout, env=environment, capture_output=True, encoding="utf-8")
    assert process.returncode == 1 and not (checkout / "build").exists()
    assert process.stderr.startswith(f"mnist1d is imported from {ROOT / 'mnist1d'}, not from {checkout}")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("kill", ["SIGKILL", "SIGINT", "SIGTERM", "SIGHUP"])
def test_a_killed_runner_leaves_no_process_and_resumes(checkout, kill):
    process = start_sleeper(checkout)
    pids = [int(pid) for pid in (checkout / "notebooks" / "pids").read_text(encoding="utf-8").split()]
    assert all(map(is_alive, pids))
    process.send_signal(getattr(signal, kill))
    output, _ = process.communicate(timeout=30)  # returns when nobody holds the pipe any more
    assert process.returncode != 0 and (kill == "SIGKILL" or "interrupted; run again to go on" in output)
    wait_until(lambda: not any(map(is_alive, pids)), 10)
    assert not published(checkout)
    (checkout / "notebooks" / "asleep").unlink()
    assert run(checkout) == 0
    assert sorted(published(checkout)) == ["tsne.json", "tsne.png"]


SWEEP = """
from pathlib import Path

from mnist1d.training import sweep

scale = float(Path("scale").read_text())


def run(variant, seeds):
    with open("log", "a") as file:
        file.write(f"{variant} ")
    if variant == "last" and not Path("ready").exists():
        raise RuntimeError("not yet")
    return [scale for _ in seeds]


x = len(sweep(run, ["first", "last"], 1))
""".strip()


def test_what_sweeps_have_ended_is_not_computed_again(checkout, capsys, monkeypatch):
    monkeypatch.setenv("JOBS", "1")
    log, notebooks = "", checkout / "notebooks"

    def run_cells(*cells, status=0):
        nonlocal log
        write_notebook(checkout, cells)
        assert run(checkout, "tsne") == status
        before, log = log, (notebooks / "log").read_text(encoding="utf-8")
        return log.removeprefix(before).split()

    (notebooks / "scale").write_text("1", encoding="utf-8")
    assert run_cells(SWEEP, SAVE_ANY, status=1) == ["first", "last"]
    assert "not yet" in capsys.readouterr().out
    (notebooks / "ready").touch()
    assert run_cells(SWEEP, SAVE_ANY) == ["last"]
    assert run_cells(SWEEP, "y = 0  # another figure", SAVE_ANY) == []
    assert read_json(checkout / "figures" / "tsne.json")["numbers"] == {"x": 2}
    (notebooks / "scale").write_text("2", encoding="utf-8")  # a function may read what no cell shows
    assert run_cells(SWEEP, "y = 1", SAVE_ANY) == ["first", "last"]
    assert run_cells(SWEEP, "y = 1", SAVE_ANY) == ["first", "last"]  # up to date, and asked for by name
    assert len(list((checkout / "build" / "parts").rglob("*-0/*"))) == 2  # what is not used any more is gone


def test_a_worker_that_outlives_its_kernel_is_ended(checkout):
    leave = """
import pathlib, subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("pids").write_text(str(worker.pid))
"""
    write_notebook(checkout, ["x = 1", leave, SAVE])
    assert run(checkout) == 0
    pid = int((checkout / "notebooks" / "pids").read_text(encoding="utf-8"))
    wait_until(lambda: not is_alive(pid), 10)


def test_a_kernel_that_starts_after_an_interrupt_does_no_work(checkout):
    write_notebook(checkout, ["import pathlib; pathlib.Path('started').touch()"])
    with kernels.Guard() as guard:
        guard.close()
        with pytest.raises(run_notebooks.RunError, match="interrupted"):
            run_notebooks.run_notebook("tsne", Run(checkout), 1, guard)
    assert not (checkout / "notebooks" / "started").exists()


def test_two_runners_at_once(checkout):
    first = start_sleeper(checkout)
    second = start(checkout)
    output, _ = second.communicate(timeout=30)
    assert second.returncode != 0 and "another run is under way" in output
    (checkout / "notebooks" / "asleep").unlink()
    first.communicate(timeout=60)
    assert first.returncode == 0


def test_a_full_disk_is_reported_and_leaves_the_old_figure(finished, capsys, monkeypatch):
    before = published(finished)
    write_notebook(finished, ["x = 2", SAVE])
    write = run_notebooks.write

    def no_space(path, content):
        if path.suffix != ".md":
            raise OSError(28, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(run_notebooks, "write", no_space)
    assert run(finished) == 1
    assert "No space left on device" in capsys.readouterr().out
    assert published(finished) == before


def test_sockets_need_no_short_folder_for_temporary_files(checkout, monkeypatch, tmp_path):
    long = tmp_path / ("a" * 104)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    assert run(checkout) == 0


def test_settings_of_the_user_do_not_reach_a_kernel(checkout, monkeypatch, tmp_path):
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-mine.py").write_text("mine = True", encoding="utf-8")
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 77\n", encoding="utf-8")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path / "matplotlibrc"))
    look = "import matplotlib\nassert matplotlib.rcParams['lines.linewidth'] < 77 and 'mine' not in globals()\nx = 1"
    write_notebook(checkout, [look, SAVE])
    assert run(checkout) == 0


def test_files_are_utf_8_whatever_the_locale_is(checkout):
    write_notebook(checkout, ["x = 1\nprint('5 ± 1 ≥ 4 ✓')", SAVE])
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = start(checkout, **locale)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "5 ± 1 ≥ 4 ✓" in (checkout / "notebooks" / "tsne.ipynb").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JOBS", "0"),
        ("JOBS", "²"),
        ("JOBS", "two"),
        ("MNIST1D_DEVICE", "gpu"),
        ("MNIST1D_DEVICE", "cuda:99"),
        ("MNIST1D_PROFILE", "fast"),
        ("MNIST1D_SEED_OFFSET", "-1"),
        ("MNIST1D_DATA", "nowhere"),
    ],
)
def test_a_bad_variable_is_named_before_any_kernel_starts(checkout, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=f"^{name}='{value}': must be [^\n]+$"):
        run(checkout)
    assert not (checkout / "build").exists()


def test_bad_arguments_are_named_before_any_kernel_starts(checkout, capsys):
    for arguments, message in [
        (["nonsense"], "no such notebook: nonsense; there are tsne"),
        (["--offset", "-1"], "--offset must be at least 0"),
        (["--offset", "5", "--profile", "smoke"], "--offset replicates the paper profile"),
    ]:
        with pytest.raises(SystemExit):
            run(checkout, *arguments)
        assert message in capsys.readouterr().err


def test_a_notebook_that_is_named_twice_runs_once(checkout):
    write_notebook(checkout, ["import os\nopen(f'ran.{os.getpid()}', 'w').close()\nx = 1", SAVE])
    assert run(checkout, "tsne", "tsne") == 0
    assert len(list((checkout / "notebooks").glob("ran.*"))) == 1


@pytest.mark.parametrize("name", ["build", "figures"])
def test_an_unwritable_folder_is_named_before_any_kernel_starts(checkout, name):
    (checkout / name).write_text("a file in the folder's place", encoding="utf-8")
    with pytest.raises(SystemExit, match=f"{name}: cannot be written to"):
        run(checkout)


def test_a_shift_is_measured_in_standard_deviations():
    def part(mean, sd):
        return {"part": "", "mean": mean, "sd": sd}

    assert agreement.measure_shift(part(3.0, 3.0), part(8.0, 4.0)) == pytest.approx(5 / math.sqrt(12.5))
    assert agreement.measure_shift(part(3.0, 0.0), part(3.0, 0.0)) == 0
    assert agreement.measure_shift(part(3.0, 0.0), part(4.0, 0.0)) == math.inf
    assert agreement.measure_shift(part(3.0, None), part(4.0, None)) == math.inf  # two facts
    share = [{"part": "", "mean": mean, "sd": None, "n": 5, "interval": [mean - 40, mean]} for mean in (100.0, 50.0)]
    assert 0.5 < agreement.measure_shift(*share) < 5


def test_claims_that_only_one_side_has_are_not_compared():
    def results(**verdicts):
        measured = [{"part": "", "mean": 1.0, "sd": 1.0}]
        return {"claims": [{"id": name, "verdict": v, "measured": measured} for name, v in verdicts.items()]}

    here, reference = results(a="partly", b="reproduced", c="partly"), results(a="partly", b="partly", d="partly")
    assert agreement.compare(here, reference) == (1, 2, 0.0, "b")
    here["claims"][0]["measured"] = [*here["claims"][0]["measured"], {"part": "new", "mean": 1.0, "sd": 1.0}]
    assert agreement.compare(here, reference) == (1, 2, math.inf, "a new")
    assert agreement.compare(results(), reference) == (0, 0, None, "")


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
