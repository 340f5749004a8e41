"""Train many seeds of one architecture together, and run sweeps over all cores.

On the CPU one thread a process is fastest for networks of this size, so parallelism comes from
processes (:func:`sweep`) and from stacking the seeds of one process (:func:`train`).
"""

import os
import warnings

import joblib
import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch.nn import functional as F
from tqdm.auto import tqdm

from mnist1d.models import ModelStack
from mnist1d.recording import record_backward
from mnist1d.settings import get_device, get_jobs, measure_peak_memory, note_peak_memory

__all__ = [
    "accuracy",
    "cross_entropy",
    "early_stopped",
    "split_tensors",
    "sweep",
    "train",
]

# glibc gives the memory of a freed tensor back to the system and faults it in again at the next step.
# Workers keep it instead, for what runs outside of recordings: a replay makes no tensors and is as fast without.
# Elsewhere these variables mean nothing.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**25)}


def cross_entropy(logits, targets):
    """Mean cross-entropy of each model.

    Parameters
    ----------
    logits : Tensor, shape (seed, batch, class)
    targets : Tensor, shape (seed, batch), int64

    Returns
    -------
    Tensor, shape (seed,)
    """
    # With the classes on the middle axis the softmax is vectorised over examples, and twice as fast.
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1)


def split_tensors(data, split, n_seeds, device):
    """One split of a dataset, or of one dataset per seed, as tensors with a leading seed axis.

    Parameters
    ----------
    data : dict or list of dict
        From :func:`mnist1d.make_dataset`; a list holds one dataset of the same shape per seed.
    split : {"", "_val", "_test"}
        The suffix of the arrays' names.
    n_seeds : int
    device : torch.device or str

    Returns
    -------
    x : Tensor, shape (seed, n, ...), of torch's default dtype
    y : Tensor, shape (seed, n), int64
        Views of one copy when all seeds share their data.
    """
    datasets = data if isinstance(data, list) else [data]
    if len(datasets) not in (1, n_seeds):
        raise ValueError(f"data: {len(datasets)} datasets for {n_seeds} seeds; must be one, or one per seed")
    x = torch.stack([torch.tensor(d["x" + split], dtype=torch.get_default_dtype()) for d in datasets]).to(device)
    y = torch.stack([torch.tensor(d["y" + split], dtype=torch.int64) for d in datasets]).to(device)
    return x.expand(n_seeds, *x.shape[1:]), y.expand(n_seeds, -1)


@torch.no_grad()
def accuracy(model, x, y, chunk=500):
    """Accuracy of every model of a stack, in percent.

    Parameters
    ----------
    model : callable
        Maps (seed, batch, ...) to logits (seed, batch, class).
    x : Tensor, shape (seed, n, ...)
    y : Tensor, shape (seed, n)
    chunk : int
        Examples evaluated at once.

    Returns
    -------
    Tensor, shape (seed,), float64
    """
    parts = zip(x.split(chunk, 1), y.split(chunk, 1), strict=True)
    correct = sum((model(xs).argmax(-1) == ys).sum(1) for xs, ys in parts)
    return 100.0 * correct.double() / y.shape[1]


def _batches(order, n, batch_size, steps, seeds, device):
    """Yield the indices of each batch: (batch,) when all seeds share them, else (seed, batch)."""
    if order == "cyclic":
        for step in range(steps):
            yield (torch.arange(batch_size, device=device) + step * batch_size) % n
    else:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        per_epoch = n // batch_size
        for step in range(steps):
            if step % per_epoch == 0:
                epoch = torch.stack([torch.randperm(n, generator=g) for g in generators]).to(device)
            start = step % per_epoch * batch_size
            yield epoch[:, start : start + batch_size]


def train(
    build,
    data,
    seeds,
    *,
    steps=6000,
    batch_size=100,
    learning_rate=1e-2,
    optimizer="adam",
    momentum=0.0,
    weight_decay=0.0,
    order="cyclic",
    eval_every=250,
    schedule=None,
    loss=cross_entropy,
    state=None,
    device=None,
):
    """Train one model per seed, all of them together.

    Parameters
    ----------
    build : callable
        ``build()`` returns a fresh ``nn.Module``; model i is built under ``torch.manual_seed(seeds[i])``.
    data : dict or list of dict
        From :func:`mnist1d.make_dataset`; a list holds one dataset of the same shape per seed.
    seeds : sequence of int
    steps, batch_size : int
    learning_rate, momentum, weight_decay : float
    optimizer : {"adam", "sgd"}
    order : {"cyclic", "shuffled"}
        "cyclic" takes the examples in their stored order, again and again, as the public code does;
        "shuffled" draws a new order every epoch, decided by the model's seed, and drops the last partial batch.
    eval_every : int
        Steps between evaluations; the first is before training, the last after `steps`.
    schedule : callable, optional
        Maps a step, from 0, to a factor of the learning rate; by default 1.
    loss : callable
        Maps logits (seed, batch, class) and targets (seed, batch) to losses (seed,).
    state : tuple of dict, optional
        ``(params, buffers)`` with a leading seed axis that replace the initial ones of the same names.
    device : torch.device or str, optional

    Returns
    -------
    dict
        `train_acc`, `test_acc`, with a validation split `val_acc`: (seed, eval) float64, percent;
        `train_loss`: (seed, eval) float64, the loss of the batch before each evaluation (NaN before training);
        `model`: the trained :class:`ModelStack`.

    Raises
    ------
    ValueError
        Names the argument, its value and the rule.
    FloatingPointError
        If a loss is not finite; names the step and the seed.
    """
    device = get_device() if device is None else device
    seeds = list(seeds)
    if order not in ("cyclic", "shuffled"):
        raise ValueError(f"order={order!r}: must be 'cyclic' or 'shuffled'")
    if optimizer not in ("adam", "sgd"):
        raise ValueError(f"optimizer={optimizer!r}: must be 'adam' or 'sgd'")
    if not seeds:
        raise ValueError("seeds=[]: must hold at least one seed")
    for name, value, least in (("steps", steps, 0), ("eval_every", eval_every, 1)):
        if value < least:
            raise ValueError(f"{name}={value}: must be at least {least}")
    x, y = split_tensors(data, "", len(seeds), device)
    if not 0 < batch_size <= x.shape[1]:
        raise ValueError(f"batch_size={batch_size}: must be from 1 to the {x.shape[1]} training examples")
    first = data[0] if isinstance(data, list) else data
    splits = {"train": (x, y), "test": split_tensors(data, "_test", len(seeds), device)}
    if "x_val" in first:
        splits["val"] = split_tensors(data, "_val", len(seeds), device)

    model = ModelStack(build, seeds, device)
    with torch.no_grad():
        for own, given in zip((model.params, model.buffers), state or ({}, {}), strict=True):
            for name, value in given.items():
                own[name].copy_(value)
    parameters = list(model.params.values())
    if optimizer == "adam":
        opt = torch.optim.Adam(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
    else:
        opt = torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum, weight_decay=weight_decay, fused=True)

    history = {f"{split}_acc": [] for split in splits} | {"train_loss": []}
    # Batches are taken from one table of all examples: faster than by an index of seeds and one of examples.
    shared = x.stride(0) == 0
    rows, labels = (x[0], y[0]) if shared else (x.flatten(0, 1), y.flatten())
    start = torch.arange(len(seeds), device=device)[:, None] * (0 if shared else x.shape[1])  # each seed's first row
    losses = torch.full((len(seeds),), torch.nan, device=device)
    backward = record_backward(lambda params, xb, yb: loss(model.apply(params, xb), yb))
    batches = _batches(order, x.shape[1], batch_size, steps, seeds, device)
    for step in range(steps + 1):
        if step % eval_every == 0 or step == steps:
            for split, (xs, ys) in splits.items():
                history[f"{split}_acc"].append(accuracy(model, xs, ys))
            history["train_loss"].append(losses.double())
            if step and not losses.isfinite().all():
                bad = [seed for seed, ok in zip(seeds, losses.isfinite().tolist(), strict=True) if not ok]
                raise FloatingPointError(f"training diverged: the loss of seeds {bad} is not finite at step {step}")
        if step == steps:
            break
        if schedule is not None:
            opt.param_groups[0]["lr"] = learning_rate * schedule(step)
        index = start + next(batches)  # [seed, example]
        xb, yb = (t.index_select(0, index.flatten()).unflatten(0, index.shape) for t in (rows, labels))
        losses = backward(model.params, xb, yb)
        opt.step()
    return {name: torch.stack(values, 1).cpu().numpy() for name, values in history.items()} | {"model": model}


def early_stopped(history):
    """Test accuracy at the evaluation where the validation accuracy is highest (the first such one).

    Parameters
    ----------
    history : dict
        Holds `val_acc` and `test_acc`, each (seed, eval), percent.

    Returns
    -------
    ndarray, shape (seed,), percent
    """
    best = np.argmax(history["val_acc"], axis=1)
    return np.take_along_axis(history["test_acc"], best[:, None], 1)[:, 0]


def _run_task(run, variant, seeds):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    # Gradients through saturated units are denormal numbers, which a CPU multiplies 100 times slower.
    torch.set_flush_denormal(True)
    try:
        with threadpool_limits(1):  # of numpy and scikit-learn, whose last digits depend on it
            return run(variant, seeds), measure_peak_memory()
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)


def _concatenate(results):
    """Join the chunks of one variant along their first axis, through nested dicts."""
    if isinstance(results[0], dict):
        return {key: _concatenate([r[key] for r in results]) for key in results[0]}
    return np.concatenate([np.asarray(r) for r in results])


def sweep(run, variants, seeds, *, chunk=None, desc="sweep"):
    """Call ``run(variant, seeds)`` for every variant, on all cores, and join the results by seed.

    Parameters
    ----------
    run : callable
        ``run(variant, seeds)`` returns a (nested) dict of arrays whose first axis is the seed. It must be pure.
    variants : dict
        Name to variant, in the order of running: put the longest first.
    seeds : sequence of int
    chunk : int, optional
        Seeds given to one call; by default all. Results do not depend on the number of cores, as they
        would if the chunk did.
    desc : str
        Label of the progress bar.

    Returns
    -------
    dict
        Name to the joined dict of arrays.

    Notes
    -----
    Workers are joblib's: inside ``joblib.parallel_config(backend=...)`` the same sweep runs on dask or ray.
    """
    seeds = list(seeds)
    chunk = len(seeds) if chunk is None else chunk
    if not variants or not seeds:
        raise ValueError(f"variants={variants!r}, seeds={seeds}: neither may be empty")
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: must be at least 1")
    tasks = [(name, seeds[i : i + chunk]) for name in variants for i in range(0, len(seeds), chunk)]
    jobs = min(get_jobs(), len(tasks))
    calls = (joblib.delayed(_run_task)(run, variants[name], part) for name, part in tasks)
    collected = {name: [] for name in variants}
    for name, value in KEEP_MEMORY.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        # joblib restarts a worker that keeps much memory, and loses nothing by it.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
        results = joblib.Parallel(n_jobs=jobs, return_as="generator")(calls)
        for (name, _), (result, memory) in zip(tasks, tqdm(results, total=len(tasks), desc=desc), strict=True):
            collected[name].append(result)
            note_peak_memory(memory)
    return {name: _concatenate(parts) for name, parts in collected.items()}
