"""Run notebooks headless and publish what each complete run made.

They run side by side, one on each core, so that no core waits while another ends a sweep, starts a kernel
or draws a figure; a notebook that runs alone has all cores.

What this machine has made is known by its stamps in `build/stamps`: the committed results are the reference,
not a result of this machine. A run works in `build/run/<slug>`; only a complete one moves its files to their
folder and its outputs into the notebook, each by rename, the results file and then the stamp last. So a run
can be killed at any moment and started again: what its sweeps have ended is kept in `build/parts` (see
`mnist1d.parts`), until a complete run no longer uses it.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import filelock
import nbformat
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from tqdm import tqdm

import mnist1d
from agreement import format_markdown, format_text, make_row, read_reference, read_results, summarize
from kernels import Guard, Interrupted, execute
from mnist1d import settings
from mnist1d.claims import digest_cell
from mnist1d.images import CIFAR10_SHA256, MNIST_SHA256, find_data
from mnist1d.results import code_digest, read_processor, read_versions
from mnist1d.utils import open_for_rename

ROOT = Path(__file__).resolve().parent.parent

# What a notebook that names a loader may read its images from.
LOADERS = {"load_mnist": ["mnist.npz", *MNIST_SHA256], "load_cifar10": ["cifar10_subset.npz", *CIFAR10_SHA256]}

# What tells libraries which instructions of the processor they may use.
INSTRUCTIONS = ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA")

WIDGET = "application/vnd.jupyter.widget-view+json"


class RunError(Exception):
    """A notebook did not complete; the message says why."""


@dataclass(frozen=True)
class Run:
    """What is run and where it goes.

    Attributes
    ----------
    root : pathlib.Path
        The checkout.
    profile : str
    offset : int
        Added to every seed; a run with other seeds is a replicate and leaves `figures` alone.
    limit : int
        Seconds a cell may run.
    """

    root: Path
    profile: str = "paper"
    offset: int = 0
    limit: int = 4 * 3600

    @property
    def name(self):
        return "replicate" if self.offset else self.profile

    @property
    def is_published(self):
        return self.name == "paper"

    @property
    def target(self):
        """The folder that complete runs move their files to."""
        return self.root / ("figures" if self.is_published else f"build/{self.name}")

    def stamp(self, slug):
        return self.root / "build" / "stamps" / self.name / f"{slug}.json"

    def notebook(self, slug):
        return self.root / "notebooks" / f"{slug}.ipynb"


def list_slugs(root):
    return sorted(path.stem for path in (root / "notebooks").glob("*.ipynb"))


def digest(content):
    return hashlib.sha256(content).hexdigest()


def find_images(slug, run):
    """Digests of the files that a notebook's loaders of images find here, by name."""
    source = run.notebook(slug).read_text(encoding="utf-8")
    names = [name for loader, files in LOADERS.items() if loader in source for name in files]
    return {name: digest(path.read_bytes()) for name in names if (path := find_data(name))}


def find_device():
    """The name of this run's device. Torch, whose import takes seconds, is not asked where the CPU is wanted."""
    return "cpu" if os.environ.get("MNIST1D_DEVICE") == "cpu" else str(settings.get_device())


def describe(slug, run):
    """What decides the numbers of a notebook here: its code and images, this environment and the way it is run."""
    return {
        "code": code_digest(slug, run.root),
        "images": find_images(slug, run),
        "profile": run.profile,
        "offset": run.offset,
        "device": find_device(),
        "versions": read_versions(),
    }


def find_parts(slug, run, before):
    """The folder of what a notebook's sweeps have ended, named after all that decides numbers but for the code.

    "" where nothing is kept: other profiles are short, and images that are missing may be fetched during the run.
    """
    source = run.notebook(slug).read_text(encoding="utf-8")
    wanted = [names for loader, names in LOADERS.items() if loader in source]
    here = before["images"].keys()
    if run.profile != "paper" or not all(names[0] in here or here >= {*names[1:]} for names in wanted):
        return ""
    environment = {name: os.environ.get(name) for name in ("MNIST1D_REPLAY", *INSTRUCTIONS)}
    known = {**before, "code": None, "processor": read_processor(), **environment}
    folder = run.root / "build" / "parts" / run.name / slug
    return folder / digest(json.dumps(known, sort_keys=True).encode())[:16]


def is_stale(slug, run):
    """Whether the files in the target folder are not what this machine makes of the code as it stands."""
    stamp = read_results(run.stamp(slug))
    try:
        if stamp is None or {**describe(slug, run), "files": stamp["files"]} != stamp:
            return True
        files = stamp["files"].items()
        return not files or any(digest((run.target / name).read_bytes()) != made for name, made in files)
    except Exception:  # a file is missing, or the stamp or the notebook cannot be read; its run says why
        return True


def read_core_seconds(slug, run):
    """How long a notebook took on one core when it last ran in this way; one that never did may be long."""
    results = read_results(run.target / f"{slug}.json") or read_results(run.root / "figures" / f"{slug}.json") or {}
    seconds, jobs = results.get("seconds"), results.get("jobs")
    if results.get("profile") != run.profile or not all(isinstance(x, int | float) for x in (seconds, jobs)):
        return math.inf
    return seconds * jobs


def order(slugs, run):
    """The shortest notebook first, for an early picture; then the longest, so that the last ones end together."""
    by_length = sorted(slugs, key=lambda slug: read_core_seconds(slug, run), reverse=True)
    return by_length[-1:] + by_length[:-1]


def format_minutes(seconds):
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def read_cells(slug, run):
    """The sources of a notebook's code cells; none if it cannot be read: its own run says what is wrong with it."""
    try:
        cells = json.loads(run.notebook(slug).read_bytes())["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []


def find_other_cells(slug, run):
    """How many cells of a notebook are not those of the published run."""
    known = (read_results(run.root / "mnist1d" / "published_cells.json") or {}).get(slug, [])
    return sum(bool(cell.strip()) and digest_cell(cell) not in known for cell in read_cells(slug, run))


def announce(slugs, run, jobs):
    """Say what will run, and about how long."""
    known = [seconds for slug in slugs if (seconds := read_core_seconds(slug, run)) < math.inf]
    about = "no times are recorded"
    if known:
        wall = max(sum(known) / jobs, max(known) / (jobs if len(slugs) == 1 else 1))
        at_least = "" if len(known) == len(slugs) else "at least "
        about = f"{at_least}about {format_minutes(wall)} on {jobs} cores by the recorded times"
    count = f"{len(slugs)} notebook{'s' * (len(slugs) > 1)} to run, profile {run.profile}"
    print(f"{count}: {about}; what has finished is kept", flush=True)
    print("  " + ", ".join(slugs), flush=True)
    for slug in slugs if run.profile == "paper" else ():
        if others := find_other_cells(slug, run):
            accept = "`tools/report.py --parameters` accepts what stands there as published"
            print(f"  {slug}: {others} of its cells are not the published ones, no verdict; {accept}", flush=True)


@contextlib.contextmanager
def only_runner(root):
    """Hold the lock of this checkout; a second runner stops with a message."""
    try:
        with filelock.FileLock(root / "build" / "run.lock", timeout=0):
            yield
    except filelock.Timeout:
        raise SystemExit("another run is under way in this checkout; wait for it or stop it") from None


def check_folders(*folders):
    """Exit with a message if a folder cannot be made or written to."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise SystemExit(f"{folder}: cannot be written to: {error.strerror}") from None


def check_package():
    """Exit with a message if the package is that of another checkout, as in a copied .venv."""
    package = Path(mnist1d.__file__).resolve().parent
    if package != ROOT / "mnist1d":
        raise SystemExit(f"mnist1d is imported from {package}, not from {ROOT}: remove .venv, then make setup")


def explain(error, limit):
    """Why a notebook did not complete, in one line."""
    if isinstance(error, CellExecutionError):
        return f"{error.ename}: {error.evalue}"
    if isinstance(error, CellTimeoutError):
        return f"a cell ran longer than {limit} s"
    if isinstance(error, DeadKernelError):
        return "the kernel died"
    return str(error) if isinstance(error, RunError | Interrupted) else f"{type(error).__name__}: {error}"


def check_unchanged(slug, run, source, before, results):
    """What decides the numbers, now that images may have been fetched; RunError if it was edited during the run."""
    if run.notebook(slug).read_bytes() != source:
        raise RunError("the notebook was edited while it ran; the edit is kept and nothing is published, run again")
    after = describe(slug, run)
    if {**before, "images": {}} != {**after, "images": {}} or results.get("code") != before["code"]:
        raise RunError("mnist1d was edited during the run; nothing is published, run again")
    if not before["images"].items() <= after["images"].items():
        raise RunError("a file of images was changed during the run; nothing is published, run again")
    return after


def write(path, content):
    with open_for_rename(path) as file:
        file.write(content)


def to_bytes(notebook):
    return (nbformat.writes(notebook).rstrip("\n") + "\n").encode()


def publish(slug, run, notebook, work, stamp):
    """Move what a complete run made to where it belongs."""
    made = sorted(work.iterdir(), key=lambda path: path.suffix == ".json")
    files = {path.name: path.read_bytes() for path in made}
    if run.is_published:
        results, last = run.target / f"{slug}.json", read_results(run.stamp(slug)) or {"files": {}}
        if results.is_file() and digest(results.read_bytes()) != last["files"].get(results.name):
            write(run.root / "build" / "reference" / results.name, results.read_bytes())
        write(run.notebook(slug), to_bytes(notebook))
    else:
        files = {f"{slug}.ipynb": to_bytes(notebook), **files}
    for name, content in files.items():
        write(run.target / name, content)
    stamp = {**stamp, "files": {name: digest(content) for name, content in files.items()}}
    write(run.stamp(slug), (json.dumps(stamp, indent=1) + "\n").encode())


def run_notebook(slug, run, jobs, guard, on_cell=None):
    """Run one notebook on some cores and publish its files.

    Returns
    -------
    dict
        The results file.

    Raises
    ------
    RunError
    """
    path = run.notebook(slug)
    source = path.read_bytes()
    notebook = nbformat.reads(source.decode(), as_version=4)
    metadata = json.loads(json.dumps(notebook.metadata))
    before = describe(slug, run)
    work = run.root / "build" / "run" / slug
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    began, parts = work.stat().st_mtime, find_parts(slug, run, before)
    if parts and not is_stale(slug, run):  # to be run again all the same
        shutil.rmtree(parts, ignore_errors=True)
    failed = run.root / "build" / f"{slug}.failed.ipynb"
    failed.unlink(missing_ok=True)
    environment = {
        "MNIST1D_PROFILE": run.profile,
        "MNIST1D_SEED_OFFSET": str(run.offset),
        "MNIST1D_OUTPUT": str(work),
        "MNIST1D_PARTS": str(parts),
        "TQDM_DISABLE": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(run.root), os.environ.get("PYTHONPATH")])),
        "JOBS": str(jobs),
        "OMP_NUM_THREADS": "1",
        **settings.KEEP_MEMORY,
    }
    if run.offset:
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source += settings.SHIFT
    try:
        execute(notebook, path.parent, run.limit, environment, guard, on_cell)
        results = read_results(work / f"{slug}.json")
        if results is None:
            raise RunError("the notebook ended without its results file")
        after = check_unchanged(slug, run, source, before, results)
    except Exception as error:  # whatever happened, the cells that ran are kept and the other notebooks go on
        write(failed, to_bytes(notebook))
        raise RunError(f"{explain(error, run.limit)}; see {failed.relative_to(run.root)}") from error

    notebook.metadata = nbformat.from_dict(metadata)
    moved = f"../build/run/{slug}/", "../figures/" if run.is_published else ""
    for cell in notebook.cells:
        if "outputs" in cell:  # a progress bar is dead when its kernel is
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
        for output in cell.get("outputs", []):  # links to where the files are about to be
            for kind in {"text/plain", "text/html"} & output.get("data", {}).keys():
                output.data[kind] = output.data[kind].replace(*moved)
            if "text" in output:  # a warning names a file of the package, wherever the checkout lies
                output.text = output.text.replace(f"{run.root}{os.sep}", "")
    publish(slug, run, notebook, work, after)
    shutil.rmtree(work)
    with contextlib.suppress(OSError):
        for folder in parts.iterdir() if parts else ():
            if all(path.stat().st_mtime < began for path in folder.iterdir()):  # of other code
                shutil.rmtree(folder, ignore_errors=True)
    return results


def run_all(slugs, run, jobs):
    """Run notebooks, in this order; for each that ended its results, or what became of it as text."""

    def work(slug):
        print(f"[{slugs.index(slug) + 1}/{len(slugs)}] {slug}\n", end="", flush=True)  # whole, beside other threads
        try:
            return run_notebook(slug, run, jobs // workers, guard, bar.update)
        except Exception as error:  # one notebook's row, never the end of the others
            return f"FAILED: {explain(error, run.limit)}"

    rows = []
    workers = max(1, min(jobs, len(slugs)))
    total = sum(len(read_cells(slug, run)) for slug in slugs)
    # In the main thread nbclient would take over SIGINT, and stop in an unspecified state.
    with (
        tqdm(desc="cells", total=total, disable=None, leave=False) as bar,
        ThreadPoolExecutor(workers) as pool,
        Guard() as guard,
    ):
        futures = {slug: pool.submit(work, slug) for slug in slugs}
        try:
            for slug, future in futures.items():
                rows.append((slug, future.result()))
                if isinstance(rows[-1][1], str):
                    print(f"{slug} {rows[-1][1]}", flush=True)
        except KeyboardInterrupt:
            rows.append((slug, "interrupted; run again to go on"))
            guard.close()
            pool.shutdown(wait=False, cancel_futures=True)
    return rows


def report(outcomes, run):
    """Print a table of what ran; beside complete runs of the paper's profile that of the committed results."""
    compared = run.profile == "paper"
    rows = [make_row(slug, outcome, read_reference(slug, run.root) if compared else None) for slug, outcome in outcomes]
    if rows:
        print(f"\n{format_text(rows)}")
    if not compared:
        return
    done = dict(outcomes)
    for slug in list_slugs(run.root):
        if slug not in done and not is_stale(slug, run):
            done[slug] = read_results(run.target / f"{slug}.json")
    rows = [make_row(slug, done[slug], read_reference(slug, run.root)) for slug in list_slugs(run.root) if slug in done]
    if not rows:
        return
    path = run.root / "build" / ("agreement.md" if run.is_published else "replicate/agreement.md")
    about = f"Python {platform.python_version()}, torch {version('torch')}, {platform.system()} {platform.machine()}."
    write(path, format_markdown(rows, about).encode())
    print(f"\n{summarize(rows)}: {path.relative_to(run.root).as_posix()}")


def main(arguments=None, root=ROOT):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slugs", nargs="*", help="notebooks to run; by default all that are stale")
    parser.add_argument("--profile", choices=settings.PROFILES, default="paper")
    parser.add_argument("--offset", type=int, default=0, help="added to every seed; results go to build/replicate")
    parser.add_argument("--limit", type=int, default=4 * 3600, help="seconds a cell may run")
    options = parser.parse_args(arguments)
    if options.offset and options.profile != "paper":
        parser.error("--offset replicates the paper profile")
    if options.offset < 0 or options.limit < 1:
        parser.error("--offset must be at least 0 and --limit at least 1")
    known = list_slugs(root)
    if unknown := set(options.slugs) - set(known):
        parser.error(f"no such notebook: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    check_package()
    try:
        settings.profile(), settings.seed_offset(), find_device(), settings.get_jobs(), find_data("mnist.npz")
    except ValueError as error:
        raise SystemExit(str(error)) from None

    run = Run(root, options.profile, options.offset, options.limit)
    check_folders(root / "build", run.target)
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.default_int_handler)
    with only_runner(root):
        wanted = list(dict.fromkeys(options.slugs)) or known
        todo = order([slug for slug in wanted if options.slugs or is_stale(slug, run)], run)
        if len(todo) < len(wanted):
            print(f"{len(wanted) - len(todo)} of {len(wanted)} notebooks are up to date on this machine")
        began = time.monotonic()
        outcomes = []
        if todo:
            jobs = settings.get_jobs()
            announce(todo, run, jobs)
            outcomes = run_all(todo, run, jobs)
        report(outcomes, run)
        if todo:
            print(f"{time.monotonic() - began:.0f} s in all")
    return 0 if all(isinstance(outcome, dict) for _, outcome in outcomes) else 1


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a terminal may lack a letter of a message
    sys.exit(main())
