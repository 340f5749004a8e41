"""Equal work: the published recipe as a reader would write it against a notebook's own way, on a slice of its steps.

Plainly: torch's own layers and optimiser, all cores as threads, one model after the other, published batch and sizes.
Ours: what the notebook does, several seeds, one process of one thread on every core. Both sides run in turn, the slice
and a quarter of it: the difference is the cost of its steps, without what is paid once, such as sending the data to
the workers.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from mnist1d import make_dataset, reorder
from mnist1d.claims import to_json
from mnist1d.results import write_json
from mnist1d.settings import get_jobs
from mnist1d.training import sweep, train
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
    sets: tuple = ()  # names of the notebook that hold the number of steps: workers get functions with their own copies
    knobs: dict = field(default_factory=dict)  # of the notebook
    prepare: Callable = lambda notebook: None  # data that the definitions need, once
    rest: tuple = ()  # of a run whose steps cost differently: (published steps, knobs) of each further slice


def train_all(notebook, steps):
    """The four models of Table 1, one after the other, evaluated at the end alone."""
    for build in notebook["MODELS"].values():
        notebook["train_one"](build, notebook["data"], steps)


def make_data(notebook):
    notebook["data"] = make_dataset(num_samples=5000, validation_split=0.02)


def make_shuffled(notebook):
    make_data(notebook)
    notebook["data"] = reorder(notebook["data"], np.random.RandomState(42).permutation(40))


def run_all(notebook, seeds, steps):
    for build in notebook["MODELS"].values():
        train(build, notebook["data"], seeds, steps=steps, eval_every=None)


def draw_noisy(notebook):
    data = notebook["make_noisy"](16_000, 0.15, 0)
    notebook["data"] = data | {"x_test": data["x_test"][:100], "y_test": data["y_test"][:100]}


DESCENT = [("mlp", 10), ("mlp", 50), ("mlp", 300), ("CNN", 10), ("CNN", 25), ("CNN", 60)]  # of the published sizes


def build_size(notebook, kind, size):
    return notebook["mlp"](size) if kind == "mlp" else notebook["CNN"](channels=size)


def descend_plainly(notebook, steps):
    for kind, size in DESCENT:
        notebook["train_one"](build_size(notebook, kind, size), notebook["data"], steps // 40)


def descend(notebook, seeds, steps):
    options = {"order": "shuffled", "optimizer": "sgd", "learning_rate": 1e-2, "momentum": 0.9}
    for kind, size in DESCENT:
        train(lambda kind=kind, size=size: build_size(notebook, kind, size), notebook["data"], seeds, steps=steps,
              eval_every=None, **options)  # fmt: skip


def prepare_pooling(notebook):
    notebook["draws"] = {seed: notebook["draw_data"](seed) for seed in range(10)}
    notebook["max"] = lambda: notebook["PoolingCNN"](torch.nn.MaxPool1d(2))


def run_pooling(notebook, seeds, steps):
    notebook["run"]((notebook["max"], 5000), seeds)


def prepare_simclr(notebook):
    notebook["x"] = torch.tensor(make_dataset()["x"], dtype=torch.float32)


def run_simclr(notebook, seeds, steps):
    notebook["pretrain"](notebook["get_head"](2), notebook["info_nce"], notebook["x"], seeds, steps)


def prepare_lottery(notebook):
    notebook["FROZEN"] = make_dataset()


def run_lottery(notebook, seeds, steps):
    weights, masks = notebook["draw_weights"](seeds)
    data = [notebook["FROZEN"]] * len(seeds)
    notebook["train_rows"](weights, masks, data, steps, notebook["BATCH_SIZE"], steps)


def prepare_lr(notebook):
    data, steps, size = make_dataset(), notebook["INNER_STEPS"], notebook["BATCH_SIZE"]
    order = np.arange(steps * size) % len(data["x"])
    notebook["batches_x"] = data["x"][order].reshape(steps, size, -1).astype(np.float32)
    notebook["batches_y"] = data["y"][order].reshape(steps, size)


def metalearn_plainly(notebook, steps):
    notebook["metalearn"](torch.full((1, 1, 1), 0.15), [0], notebook["OUTER_RATE"])


def metalearn(notebook, seeds, steps):
    notebook["run"](((0.15,), (1, 1), notebook["OUTER_RATE"]), seeds)


def prepare_activation(notebook):
    notebook["data"] = make_dataset(num_samples=10_000)


def make_published_activation(notebook, seed):
    return notebook["make_activation"](seed, notebook["RECIPES"][notebook["PUBLISHED"]]["layers"])


def differentiate_plainly(notebook, steps):
    activation = make_published_activation(notebook, 0)
    notebook["meta_gradient"](activation, activation, 0, steps=steps)


def differentiate(notebook, seeds, steps):
    for seed in seeds:
        activation = make_published_activation(notebook, seed)
        notebook["meta_gradient"](activation, notebook["tabulate"](activation, frozen=False), seed, steps=steps)


def prepare_subspaces(notebook):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2560, 28, 28), np.uint8), rng.integers(0, 10, 2560)
    notebook["images"] = {"x": images[0], "y": images[1], "x_test": images[0][:100], "y_test": images[1][:100]}
    notebook["network"] = lambda: notebook["ImageCNN"](10, 20, 5, 50)


def project_plainly(notebook, steps):
    notebook["train_plainly"](notebook["network"], notebook["images"], 1000, 0, steps, notebook["BATCH"])


def project(notebook, seeds, steps):
    options = {"batch_size": notebook["BATCH"], "learning_rate": notebook["LEARNING_RATE"], "group": 1}
    notebook["train_subspace"](notebook["network"], notebook["images"], [1000], seeds, steps=steps, **options)


def prepare_transfer(notebook):
    rng = np.random.default_rng(0)
    parts = {"": 400, "_test": 100}
    notebook["images"] = {"images": {f"x{part}": rng.normal(size=(n, 1, 28, 28)) for part, n in parts.items()}
                          | {f"y{part}": rng.integers(0, 10, n) for part, n in parts.items()}}  # fmt: skip


def transfer_plainly(notebook, steps):
    notebook["train_one"](notebook["ACTIVATIONS"]["learned"], notebook["images"]["images"], max(1, steps // 4), 1e-3, 0)


def transfer(notebook, seeds, steps):
    notebook["run"]((notebook["ACTIVATIONS"]["learned"], "images", 1e-3, "_test", (max(1, steps // 4),)), seeds)


ROWS = {
    "benchmarks": Row(train_all, run_all, 1000, 6000, "a step of each of the four models", sets=("EVAL_EVERY",),
                      prepare=make_data),
    "shuffling": Row(train_all, run_all, 1000, 6000, "a step of each of the four models, shuffled data",
                     sets=("EVAL_EVERY",), prepare=make_shuffled),
    "double_descent": Row(descend_plainly, descend, 960, 20_000 * 67 // 6, "a step of six sizes, MLP and CNN", 5,
                          prepare=draw_noisy),
    "lottery_tickets": Row(lambda n, steps: n["search_plainly"](0, 0, steps), run_lottery, 600, 2 * 99 * 1500,
                           "a step of the dense network, batch 100", prepare=prepare_lottery,
                           rest=((15 * 6000, {"BATCH_SIZE": 500}),)),
    "metalearn_lr": Row(metalearn_plainly, metalearn, 4, 2 * 51, "an outer step from one start",
                        sets=("OUTER_STEPS",), prepare=prepare_lr),
    "metalearn_activation": Row(differentiate_plainly, differentiate, 80, 301 * 301,
                                "an inner step and its part of the meta-gradient", 2, prepare=prepare_activation),
    # What was published has no public code: a run of ours on MNIST.
    "activation_transfer": Row(transfer_plainly, transfer, 400, 7 * 2000, "a step of the CNN on MNIST, learned", 5,
                               prepare=prepare_transfer),
    "random_subspaces": Row(project_plainly, project, 60, 4 * 100 * 234, "a step of the CNN in 1000 dimensions", 4,
                            prepare=prepare_subspaces),
    "simclr": Row(lambda n, steps: n["pretrain_one"](n["get_head"](2), n["x"], steps), run_simclr, 500, 24_000,
                  "a step of the default head, 100 pairs", prepare=prepare_simclr),
    "pooling": Row(lambda n, steps: n["train_one"](n["max"], n["take"](0, 5000), steps), run_pooling, 1500, 180_000,
                   "a step of the max-pooled network, batch 100", sets=("STEPS", "EVAL_EVERY"),
                   knobs={"TEST_EXAMPLES": 100}, prepare=prepare_pooling),
}  # fmt: skip


def measure_slice(slug, row, repeats):
    """Milliseconds of a model-step, plainly and ours."""
    notebook = load_definitions(slug, **row.knobs)
    row.prepare(notebook)
    jobs = get_jobs()
    chunk = -(-row.seeds // jobs)

    def run(steps, seeds):
        row.ours(notebook, seeds, steps)
        return np.zeros(len(seeds))

    threads = torch.get_num_threads()
    notebook.update(dict.fromkeys(row.sets, min(40, row.steps)))
    sweep(run, [min(40, row.steps)], range(row.seeds), chunk=chunk)  # workers start, data are read
    lengths = row.steps, max(1, row.steps // 4)
    plain, ours = np.zeros((2, repeats, 2))  # [repeat, length], seconds
    for i in range(repeats):
        for j, steps in enumerate(lengths):
            notebook.update(dict.fromkeys(row.sets, steps))
            torch.set_num_threads(threads)
            start = time.perf_counter()
            row.plain(notebook, steps)
            plain[i, j] = time.perf_counter() - start
            start = time.perf_counter()
            sweep(run, [steps], range(row.seeds), chunk=chunk)
            ours[i, j] = (time.perf_counter() - start) / row.seeds
    torch.set_num_threads(threads)
    return [-1e3 * np.diff(np.median(side, 0)).item() / (lengths[0] - lengths[1]) for side in (plain, ours)]


def measure(slug, row, repeats=REPEATS):
    """Milliseconds of a step of the first slice, and minutes of a published run with their ratio, plainly and ours."""
    slices = [(row.published, row), *((steps, replace(row, knobs=row.knobs | knobs)) for steps, knobs in row.rest)]
    published, ms = zip(*((steps, measure_slice(slug, part, repeats)) for steps, part in slices), strict=True)
    plain, ours = np.array(published) @ np.array(ms) / 6e4
    return {
        "work": row.work,
        "plain_ms": ms[0][0],
        "ours_ms": ms[0][1],
        "ratio": plain / ours,
        "plain_minutes": float(f"{plain:.3g}"),
        "ours_minutes": float(f"{ours:.3g}"),
    }


def bench_equal_work(slugs=None, root=ROOT, publish=False):
    """Measure all rows, or some; print them and merge them into build/equal_work.json, or that of figures/."""
    if unknown := sorted(set(slugs or ()) - ROWS.keys()):
        raise SystemExit(f"there is no row of {', '.join(unknown)}: must be of {', '.join(ROWS)}")
    path = root / ("figures" if publish else "build") / "equal_work.json"
    path.parent.mkdir(exist_ok=True)
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    print(f"\n{'notebook':22s}{'plain, ms':>10s}{'ours, ms':>10s}{'ratio':>8s}{'one published run, minutes':>28s}")
    for slug in slugs or ROWS:
        known[slug] = r = measure(slug, ROWS[slug])
        minutes = f"{r['plain_minutes']:.2g} / {r['ours_minutes']:.2g}"
        print(f"{slug:22s}{r['plain_ms']:10.3f}{r['ours_ms']:10.3f}{r['ratio']:7.1f}x{minutes:>28s}", flush=True)
        write_json(path, to_json(dict(sorted(known.items()))))
    ratios = [r["ratio"] for r in known.values()]
    print(f"geometric mean over {len(ratios)} notebooks: {np.exp(np.mean(np.log(ratios))):.1f}x")
