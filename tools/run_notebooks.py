"""Run notebooks headless and publish what each complete run made.

They run side by side, one on each core, so that no core waits while another ends a sweep, starts a kernel
or draws a figure; a notebook that runs alone has all cores.

A notebook is stale when its results file is missing, damaged, or was made by other code. A run works
in `build/run/<slug>`; only a complete one moves its files to `figures/` and its outputs into the
notebook, each by rename and the results file last. So a run can be killed at any moment and started again.
"""

import argparse
import asyncio
import fcntl
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from tqdm import tqdm
from traitlets.config import Config

from mnist1d.results import code_digest
from mnist1d.settings import get_jobs
from mnist1d.training import KEEP_MEMORY
from mnist1d.utils import open_for_rename

ROOT = Path(__file__).resolve().parent.parent

WIDGET = "application/vnd.jupyter.widget-view+json"

RUNNING = set()  # the clients whose kernels have started
STOP = threading.Event()  # set by an interrupt: no other kernel may start working


class RunError(Exception):
    """A notebook did not complete; the message says why."""


def list_slugs(root):
    return sorted(path.stem for path in (root / "notebooks").glob("*.ipynb"))


def read_results(path):
    """The results file as a dict, or None if it is missing or damaged."""
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return results if isinstance(results, dict) else None


def read_seconds(slug, root):
    """How long a notebook ran when its results were made; a notebook without results may be long."""
    seconds = (read_results(root / "figures" / f"{slug}.json") or {}).get("seconds")
    return seconds if isinstance(seconds, int | float) else math.inf


def is_stale(slug, root):
    """Whether the published results of a notebook are not those of the code as it stands."""
    results = read_results(root / "figures" / f"{slug}.json")
    return results is None or results.get("profile") != "paper" or results.get("code") != code_digest(slug, root)


@contextmanager
def only_runner(root):
    """Hold the lock of this checkout; a second runner stops with a message."""
    (root / "build").mkdir(exist_ok=True)
    with open(root / "build" / "run.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit("another run is under way in this checkout; wait for it or stop it") from None
        yield


def execute(notebook, folder, limit, environment, bar):
    """Run all cells of a notebook in a fresh kernel, in place.

    The kernel talks over a socket file, not over TCP ports that other kernels race for.
    """

    def started(**_):
        RUNNING.add(client)
        if STOP.is_set():
            raise RunError("interrupted")

    with tempfile.TemporaryDirectory(prefix="nb") as sockets:
        client = NotebookClient(
            notebook,
            config=Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/k"}}),
            kernel_name="python3",
            timeout=limit,
            resources={"metadata": {"path": str(folder)}},
            record_timing=False,
            coalesce_streams=True,
            on_notebook_start=started,
            on_cell_executed=lambda **_: bar.update(),
        )
        try:
            asyncio.run(client.async_execute(env={**os.environ, **environment}))
        finally:
            RUNNING.discard(client)


def run_notebook(slug, root, profile, limit, jobs, bar):
    """Run one notebook on some cores and publish its files.

    Returns
    -------
    dict
        The results file.

    Raises
    ------
    RunError
    """
    path = root / "notebooks" / f"{slug}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    metadata = json.loads(json.dumps(notebook.metadata))
    work = root / "build" / "run" / slug
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    failed = root / "build" / f"{slug}.failed.ipynb"
    failed.unlink(missing_ok=True)
    environment = {
        "MNIST1D_PROFILE": profile,
        "MNIST1D_OUTPUT": str(work),
        "TQDM_DISABLE": "1",
        "PYTHONHASHSEED": "0",
        "JOBS": str(jobs),
        "OMP_NUM_THREADS": "1",
        **KEEP_MEMORY,
    }
    try:
        execute(notebook, path.parent, limit, environment, bar)
        results = read_results(work / f"{slug}.json")
        if results is None:
            raise RunError("the notebook ended without its results file")
    except (CellExecutionError, CellTimeoutError, DeadKernelError, RunError) as error:
        with open_for_rename(failed, "w") as file:
            nbformat.write(notebook, file)
        if isinstance(error, CellExecutionError):
            reason = f"{error.ename}: {error.evalue}"
        else:
            reasons = {CellTimeoutError: f"a cell ran longer than {limit} s", DeadKernelError: "the kernel died"}
            reason = reasons.get(type(error), str(error))
        raise RunError(f"{reason}; see {failed.relative_to(root)}") from error

    notebook.metadata = nbformat.from_dict(metadata)
    for cell in notebook.cells:
        if "outputs" in cell:  # a progress bar is dead when its kernel is
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    target = root / ("figures" if profile == "paper" else "build/smoke")
    target.mkdir(parents=True, exist_ok=True)
    executed = path if profile == "paper" else target / path.name
    with open_for_rename(executed, "w") as file:
        nbformat.write(notebook, file)
    for made in sorted(work.iterdir(), key=lambda p: p.suffix == ".json"):
        with open_for_rename(target / made.name) as file:
            file.write(made.read_bytes())
    shutil.rmtree(work)
    return results


def run_all(slugs, root, profile, limit):
    """Run notebooks; for each that ended its results, or what became of it as text."""

    def work(slug):
        print(f"[{slugs.index(slug) + 1}/{len(slugs)}] {slug}\n", end="", flush=True)  # whole, beside other threads
        try:
            return run_notebook(slug, root, profile, limit, get_jobs() // workers, bar)
        except (RunError, OSError) as error:
            return f"FAILED: {error}"

    rows = []
    STOP.clear()
    workers = max(1, min(get_jobs(), len(slugs)))
    slugs = sorted(slugs, key=lambda slug: read_seconds(slug, root), reverse=True)  # so that the last ones end together
    notebooks = [nbformat.read(root / "notebooks" / f"{slug}.ipynb", as_version=4) for slug in slugs]
    total = sum(cell.cell_type == "code" for notebook in notebooks for cell in notebook.cells)
    # In the main thread nbclient would take over SIGINT, and stop in an unspecified state.
    with tqdm(desc="cells", total=total, disable=None, leave=False) as bar, ThreadPoolExecutor(workers) as pool:
        futures = {slug: pool.submit(work, slug) for slug in slugs}
        try:
            for slug, future in futures.items():
                rows.append((slug, future.result()))
                if isinstance(rows[-1][1], str):
                    print(f"{slug} {rows[-1][1]}", flush=True)
        except KeyboardInterrupt:
            rows.append((slug, "interrupted; run again to go on"))
            STOP.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for client in list(RUNNING):  # a kernel leads a process group of its own, its workers included
                os.killpg(client.km.provisioner.pid, signal.SIGKILL)
    return rows


def format_table(rows):
    """Notebook, seconds, claims held."""
    lines = [f"{'notebook':22s}{'seconds':>9s}  claims reproduced"]
    for slug, outcome in rows:
        if isinstance(outcome, dict):
            verdicts = [claim["verdict"] for claim in outcome["claims"]]
            held = f"{verdicts.count('reproduced')} of {len(verdicts)}" if verdicts else "-"
            lines.append(f"{slug:22s}{outcome['seconds']:9.1f}  {held}")
        else:
            lines.append(f"{slug:22s}{'':9s}  {outcome}")
    return "\n".join(lines)


def main(arguments=None, root=ROOT):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slugs", nargs="*", help="notebooks to run; by default all that are stale")
    parser.add_argument("--profile", choices=("paper", "smoke"), default="paper")
    parser.add_argument("--limit", type=int, default=3600, help="seconds a cell may run")
    options = parser.parse_args(arguments)
    get_jobs()  # a bad JOBS stops here, not in twelve kernels

    known = list_slugs(root)
    if unknown := set(options.slugs) - set(known):
        parser.error(f"no such notebook: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with only_runner(root):
        fresh = options.slugs or options.profile == "smoke"
        wanted = options.slugs or known
        todo = [slug for slug in wanted if fresh or is_stale(slug, root)]
        if len(todo) < len(wanted):
            print(f"{len(wanted) - len(todo)} of {len(wanted)} notebooks are up to date")
        began = time.monotonic()
        rows = run_all(todo, root, options.profile, options.limit)
    if rows:
        print(f"\n{format_table(rows)}\n{time.monotonic() - began:.0f} s in all")
    return 0 if all(isinstance(outcome, dict) for _, outcome in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
