"""Check rows of the speedrun: python tools/records.py [--validate] [--seeds N] [records/FILE.py ...]

A row is a file of fewer than 60 lines that holds `TARGET`, in percent, and ``train(x, y, seed)``, which returns
``predict(x)``: labels of signals. The seconds are those of this process on one thread, for each seed, in executing the
file, in `train` and in `predict`, wherever a row does its work. A row counts if the mean test accuracy of ten seeds or
more is above its target with p < 0.01. With --validate it is trained on four fifths of the training examples and
measured on the others, and the test set is not read: use that to find a row.
"""

import argparse
import hashlib
import json
import runpy
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from mnist1d import make_dataset, to_torch
from mnist1d.claims import confidence_interval, format_interval
from mnist1d.results import read_processor, read_versions, write_json
from mnist1d.utils import open_for_rename

ROOT = Path(__file__).resolve().parent.parent
MOST_LINES, FEWEST_SEEDS, LEVEL = 60, 10, 0.01
TARGETS = (94, 96, 98)  # percent: the paper's CNN, its human, and more


def load_splits(validate):
    """Training and evaluation examples as tensors: (x, y), (x, y)."""
    data = make_dataset()
    x, y = to_torch(data).tensors
    if validate:
        held = torch.arange(len(x)) % 5 == 0
        return (x[~held], y[~held]), (x[held], y[held])
    return (x, y), to_torch(data, "test").tensors


def read_row(path):
    """What a row's file defines; a ValueError, before anything is trained, if the file is not as it must be."""
    if not path.is_file():
        raise ValueError("there is no such file")
    if (n := len(path.read_text(encoding="utf-8").splitlines())) >= MOST_LINES:
        raise ValueError(f"{n} lines, must be fewer than {MOST_LINES}")
    row = runpy.run_path(str(path))
    target = row.get("TARGET")
    if isinstance(target, str) or target not in TARGETS:
        raise ValueError(f"TARGET={target!r}, must be one of {', '.join(map(str, TARGETS))}")
    if not callable(row.get("train")):
        raise ValueError("train is missing, must be a function of x, y and seed")
    return row


def measure(path, seeds, train, test):
    """Train a row with each seed on copies of the examples: accuracy [seed] in percent, CPU seconds [seed]."""
    accuracy, seconds = [], []
    torch.optim.SGD([torch.zeros(1)])  # imports what torch trains with: no work of a row's
    for seed in seeds:
        start = time.process_time()
        predict = runpy.run_path(str(path))["train"](train[0].clone(), train[1].clone(), seed)
        with torch.no_grad():
            labels = torch.as_tensor(predict(test[0].clone()))
        seconds.append(time.process_time() - start)
        if labels.shape != test[1].shape:
            raise ValueError(f"{path.name}: predict returned {tuple(labels.shape)}; must return one label a signal")
        accuracy.append(100 * (labels == test[1]).double().mean().item())
    return np.array(accuracy), np.array(seconds)


def judge(target, accuracy):
    """What keeps a row from counting, as text; empty if nothing does."""
    if len(accuracy) < FEWEST_SEEDS:
        return f"{len(accuracy)} seeds, must be {FEWEST_SEEDS} or more"
    if np.ptp(accuracy) == 0:
        return f"all seeds have the same accuracy, {accuracy[0]:g}: they must decide what is trained"
    p = stats.ttest_1samp(accuracy, target, alternative="greater").pvalue
    return "" if p < LEVEL else f"p = {p:.2g} for a mean above {target}, must be below {LEVEL}"


def is_record(path):
    """Whether a row lies where its results and the table are kept; elsewhere files of these names are the user's."""
    return path.resolve().parent == ROOT / "records"


def digest(path):
    """SHA-256 of a row's file, whatever its line ends."""
    return hashlib.sha256(path.read_text(encoding="utf-8").encode()).hexdigest()


def write_table(folder):
    """The table of all rows of a folder that count, fastest first, as its README.md; no row that has changed since."""
    rows = [["target (%)", "row", "CPU seconds a seed", "test accuracy (%)", "n", "processor", "torch"], ["---"] * 7]
    found = [(json.loads(path.read_text(encoding="utf-8")), path.stem) for path in folder.glob("*.json")]
    sources = {path.stem: digest(path) for path in folder.glob("*.py")}
    found = [(row, name) for row, name in found if row["code"] == sources.get(name)]
    for row, name in sorted(found, key=lambda item: (item[0]["target"], np.mean(item[0]["seconds"]))):
        accuracy = format_interval(row["accuracy"], ".2f")
        cells = row["target"], f"[{name}]({name}.py)", f"{np.mean(row['seconds']):.2f}", accuracy, len(row["accuracy"])
        rows.append([str(cell) for cell in (*cells, row["processor"], row["torch"])])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    how = "Training on one core to a mean test accuracy above the target; [how to send a row](../CONTRIBUTING.md)."
    with open_for_rename(folder / "README.md", "w") as file:
        file.write(f"# The speedrun of MNIST-1D\n\n{how}\n\n{table}\n")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, help="by default all files of records/")
    parser.add_argument("--validate", action="store_true", help="measure on held-out training examples")
    parser.add_argument("--seeds", type=int, default=FEWEST_SEEDS)
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error(f"--seeds={options.seeds}: must be at least 2, for an interval")
    torch.set_num_threads(1)
    train, test = load_splits(options.validate)
    failed = refused = False
    paths = options.paths or sorted((ROOT / "records").glob("*.py"))
    for path in paths:
        try:
            definitions, code = read_row(path), digest(path)
        except ValueError as error:
            print(f"{path}: {error}; nothing was trained")
            refused = True
            if not options.validate and is_record(path):
                write_table(path.parent)
            continue
        target = definitions["TARGET"]
        try:
            accuracy, seconds = measure(path, range(options.seeds), train, test)
        except Exception as error:  # of the row's own code: the other rows are checked all the same
            print(f"{path}: failed, {type(error).__name__}: {error}", flush=True)
            refused = True
            continue
        mean, low, high = confidence_interval(accuracy)
        reason = judge(target, accuracy)
        failed |= bool(reason)
        split = "validation" if options.validate else "test"
        print(
            f"{path.stem}: {split} {mean:.2f} % ({low:.2f} to {high:.2f}), n = {len(accuracy)}, "
            f"{seconds.mean():.2f} CPU seconds a seed; {reason or f'above {target}'}",
            flush=True,
        )
        if not options.validate and not reason:
            row = {"code": code, "target": target, "accuracy": accuracy.tolist(), "seconds": seconds.tolist()}
            row |= {"processor": read_processor(), "torch": read_versions()["torch"]}
            if is_record(path):
                write_json(path.with_suffix(".json"), row)
            else:
                print(f"{path} lies outside of records/: nothing is written")
        if not options.validate and is_record(path):
            if reason and len(accuracy) >= FEWEST_SEEDS:  # it does not hold any more
                path.with_suffix(".json").unlink(missing_ok=True)
            write_table(path.parent)
    return int(refused or (failed and not options.validate))


if __name__ == "__main__":
    sys.exit(main())
