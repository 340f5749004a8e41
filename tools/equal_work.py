"""Equal work: the published recipe as a reader would write it against a notebook's own way, on a slice of its steps.

Plainly: torch's own layers and optimiser, all cores as threads, one model after the other, published batch and sizes.
Ours: what the notebook does, several seeds, one process of one thread on every core. Both sides run in turn.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mnist1d.settings import get_jobs
from mnist1d.training import sweep
from mnist1d.utils import open_for_rename
from notebooks import load_definitions

ROOT = Path(__file__).resolve().parent.parent
REPEATS = 3


@dataclass
class Row:
    """One notebook's slice of work."""

    plain: Callable  # (notebook, steps): one model
    ours: Callable  # (notebook, seeds, steps): these models
    steps: int  # of the slice
    published: int  # steps of one published run, over all of its models
    work: str  # what a step is
    seeds: int = 10
    knobs: dict = field(default_factory=dict)  # of the notebook
    prepare: Callable = lambda notebook: None  # data that the definitions need, once


ROWS = {}


def measure(slug, row):
    """Milliseconds of a model-step, plainly and ours, the ratio, and the minutes of a published run, both ways."""
    notebook = load_definitions(slug, **row.knobs)
    row.prepare(notebook)
    jobs = get_jobs()
    chunk = -(-row.seeds // jobs)

    def run(steps, seeds):
        row.ours(notebook, seeds, steps)
        return np.zeros(len(seeds))

    threads = torch.get_num_threads()
    sweep(run, [2], range(row.seeds), chunk=chunk)  # workers start, data are read
    plain, ours = [], []
    for _ in range(REPEATS):
        torch.set_num_threads(torch.get_num_interop_threads() if threads == 1 else threads)
        start = time.perf_counter()
        row.plain(notebook, row.steps)
        plain.append((time.perf_counter() - start) / row.steps)
        start = time.perf_counter()
        sweep(run, [row.steps], range(row.seeds), chunk=chunk)
        ours.append((time.perf_counter() - start) / row.seeds / row.steps)
    torch.set_num_threads(threads)
    a, b = 1e3 * np.median(plain), 1e3 * np.median(ours)
    minutes = [round(ms * row.published / 6e4, 1) for ms in (a, b)]
    return {
        "work": row.work,
        "plain_ms": a,
        "ours_ms": b,
        "ratio": a / b,
        "plain_minutes": minutes[0],
        "ours_minutes": minutes[1],
    }


def bench_equal_work(slugs=None, root=ROOT):
    """Measure all rows, or some; print them and merge them into figures/equal_work.json."""
    path = root / "figures" / "equal_work.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    print(f"\n{'notebook':22s}{'plain, ms':>10s}{'ours, ms':>10s}{'ratio':>8s}{'one published run, minutes':>28s}")
    for slug in slugs or ROWS:
        known[slug] = r = measure(slug, ROWS[slug])
        minutes = f"{r['plain_minutes']:.1f} / {r['ours_minutes']:.1f}"
        print(f"{slug:22s}{r['plain_ms']:10.3f}{r['ours_ms']:10.3f}{r['ratio']:7.1f}x{minutes:>28s}", flush=True)
    ratios = [r["ratio"] for r in known.values()]
    print(f"geometric mean over {len(ratios)} notebooks: {np.exp(np.mean(np.log(ratios))):.1f}x")
    with open_for_rename(path, "w") as file:
        json.dump(
            {
                slug: {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in r.items()}
                for slug, r in sorted(known.items())
            },
            file,
            indent=1,
        )
        file.write("\n")
