"""Show on one CUDA device what a GPU must show, and write it to build/gpu.md."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from mnist1d import make_dataset
from mnist1d.models import MODELS
from mnist1d.training import train
from mnist1d.utils import open_for_rename

ROOT = Path(__file__).resolve().parent.parent

STEPS, SEEDS = 30, range(3)
TOLERANCE = 2e-3  # of a loss after 30 steps: float32 sums in another order
# Tests whose outcome could depend on the device or on how a processor rounds.
NUMERIC_TESTS = [f"tests/test_{name}.py" for name in ("engine", "training", "zoo")]
OTHERS = {
    "numeric tests": ["-m", "pytest", "-q", "-n", "2", *NUMERIC_TESTS],
    "every notebook, quick profile": ["tools/run_notebooks.py", "--profile", "quick"],
    "speed against a plain loop": ["tools/bench.py", "--steps", "300"],
}


def measure_losses(build, data, **environment):
    """Losses [seed] after a short training under some settings, and its seconds."""
    os.environ.update(environment)
    start = time.perf_counter()
    losses = train(build, data, SEEDS, steps=STEPS, eval_every=None)["train_loss"][:, -1]
    return np.asarray(losses), time.perf_counter() - start


def compare_models(device="cuda"):
    """For each model of Table 1 its losses on a device, replayed and eager, against those on the CPU.

    Yields
    ------
    what, outcome : str
    holds : bool
    seconds : float
    """
    data = make_dataset()
    for name, build in MODELS.items():
        cpu, _ = measure_losses(build, data, MNIST1D_DEVICE="cpu", MNIST1D_REPLAY="0")
        eager, _ = measure_losses(build, data, MNIST1D_DEVICE=device, MNIST1D_REPLAY="0")
        graph, seconds = measure_losses(build, data, MNIST1D_DEVICE=device, MNIST1D_REPLAY="1")
        for what, other in (("eager against the CPU", cpu), ("CUDA graph against eager", graph)):
            difference = float(np.abs(eager - other).max())
            holds = difference <= TOLERANCE
            yield f"{name}, {what}", f"losses differ by {difference:.1e}", holds, seconds


def run_others():
    """The tests, notebooks and measurements that are programs of their own."""
    environment = {**os.environ, "MNIST1D_DEVICE": "cuda", "OMP_NUM_THREADS": "1"}
    environment.pop("MNIST1D_REPLAY", None)
    for what, arguments in OTHERS.items():
        print(f"{what} ...", flush=True)
        start = time.perf_counter()
        command = [sys.executable, *arguments]
        process = subprocess.run(
            command, check=False, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        output = process.stdout.decode(errors="replace").strip()
        print(output, flush=True)
        yield what, output.splitlines()[-1] if output else "", process.returncode == 0, time.perf_counter() - start


def main():
    if not torch.cuda.is_available():
        print(f"make gpu needs a CUDA device: torch {torch.__version__} finds none here")
        return 1
    began, rows, failed = time.perf_counter(), [], 0
    for compute in (compare_models, run_others):
        for what, outcome, holds, seconds in compute():
            failed += not holds
            rows.append(f"| {what} | {outcome.replace('|', '/')} | {'yes' if holds else '**no**'} | {seconds:.1f} |")
            print(rows[-1], flush=True)
    lines = [
        f"# {torch.cuda.get_device_name()}",
        "",
        f"torch {torch.__version__}, CUDA {torch.version.cuda}; {time.perf_counter() - began:.0f} s in all.",
        "",
        "| what | outcome | holds | seconds |",
        "|---|---|---|---:|",
        *rows,
    ]
    with open_for_rename(ROOT / "build" / "gpu.md") as file:
        file.write(("\n".join(lines) + "\n").encode())
    print("wrote build/gpu.md")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
