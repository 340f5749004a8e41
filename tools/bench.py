"""Speed as ratios, both sides in turn in one process tree: never against another machine's seconds.

The generator against mnist1d 0.0.2.post1, the trainer against a plain loop with two threads, and one
outer step of metalearning with the tabulated activation against direct evaluation.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from torch.nn import functional as F

from equal_work import bench_equal_work
from mnist1d import get_dataset_args, make_dataset
from mnist1d.models import MODELS
from mnist1d.settings import get_device, get_jobs
from mnist1d.training import sweep, train

ROOT = Path(__file__).resolve().parent.parent
OLD = ROOT / "build" / "old"
REPEATS = 5

TIME_OLD = """
import sys, time, types
# The old package imports these at the top; the generator uses neither.
sys.modules["requests"] = types.ModuleType("requests")
plot = types.ModuleType("matplotlib.pyplot"); sys.modules["matplotlib.pyplot"] = plot
sys.path.insert(0, sys.argv[1])
import mnist1d.data
args = mnist1d.data.get_dataset_args()
args.num_samples = int(sys.argv[2])
start = time.perf_counter()
mnist1d.data.make_dataset(args)
print(time.perf_counter() - start)
"""


def fetch_old_package():
    """Unpack mnist1d 0.0.2.post1 into build/old, out of the way of this package."""
    if not (OLD / "mnist1d" / "data.py").is_file():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(OLD)]
        subprocess.run([*command, "mnist1d==0.0.2.post1"], check=True)


def bench_generator():
    fetch_old_package()
    print(f"{'generator':24s}{'0.0.2.post1':>14s}{'this':>10s}{'ratio':>8s}")
    for n in (5000, 51000):
        args = get_dataset_args()
        args.num_samples = n
        old, new = [], []
        for _ in range(REPEATS if n < 10_000 else 2):
            command = [sys.executable, "-c", TIME_OLD, str(OLD), str(n)]
            old.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            start = time.perf_counter()
            make_dataset(args)
            new.append(time.perf_counter() - start)
        ratio = np.median(old) / np.median(new)
        print(f"{n:>9,d} samples       {np.median(old):12.2f} s{np.median(new):8.3f} s{ratio:7.1f}x", flush=True)


def train_plainly(build, data, seeds, steps, device):
    """One model after the other, torch's default Adam, slices as batches, a loss read every step."""
    x, y = torch.tensor(data["x"], dtype=torch.float32, device=device), torch.tensor(data["y"], device=device)
    for seed in seeds:
        torch.manual_seed(seed)
        model = build().to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses = []
        for step in range(steps):
            i = step * 100 % len(x)
            loss = F.cross_entropy(model(x[i : i + 100]), y[i : i + 100])
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def bench_trainer(steps):
    data, device = make_dataset(), get_device()
    small = {**data, "x_test": data["x_test"][:10], "y_test": data["y_test"][:10]}

    def run(build, seeds):
        return train(build, small, seeds, steps=steps, eval_every=steps)

    threads = torch.get_num_threads()
    jobs = get_jobs()
    print(f"\ntrainer, ms per model-step; {device}; plain: {threads} threads; ours: {jobs} processes of one thread")
    print(f"{'model':12s}{'seeds':>6s}{'plain':>10s}{'ours':>10s}{'ratio':>8s}")
    sweep(run, {"warm-up": MODELS["logistic"], "too": MODELS["logistic"]}, range(2), chunk=1)
    ratios, few = {}, -(-steps // 4)  # the plain loop has no start-up to spread over many steps
    for name, build in MODELS.items():
        for n_seeds in (1, 5, 10):
            plain, ours = [], []
            for _ in range(3):
                start = time.perf_counter()
                train_plainly(build, data, range(min(n_seeds, 2)), few, device)
                plain.append((time.perf_counter() - start) / min(n_seeds, 2) / few)
                start = time.perf_counter()
                sweep(run, {name: build}, range(n_seeds), chunk=-(-n_seeds // jobs))
                ours.append((time.perf_counter() - start) / n_seeds / steps)
            a, b = 1e3 * np.median(plain), 1e3 * np.median(ours)
            ratios[name, n_seeds] = a / b
            print(f"{name:12s}{n_seeds:6d}{a:10.3f}{b:10.3f}{a / b:7.1f}x", flush=True)
    several = [ratio for (_, n_seeds), ratio in ratios.items() if n_seeds > 1]
    print(f"geometric mean over 5 and 10 seeds: {np.exp(np.mean(np.log(several))):.1f}x")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slugs", nargs="*", help="the rows of equal work of these notebooks alone")
    parser.add_argument("--steps", type=int, default=2000, help="training steps a measurement")
    parser.add_argument("--publish", action="store_true", help="rows of equal work into figures/, for README")
    options = parser.parse_args()
    if not options.slugs:
        bench_generator()
        bench_trainer(options.steps)
    bench_equal_work(options.slugs, publish=options.publish)
    return 0


if __name__ == "__main__":
    sys.exit(main())
