"""Train many seeds of one architecture together, and run sweeps over all cores.

On the CPU as many processes as cores, of one thread each, train most for networks of this size, so parallelism
comes from processes (:func:`sweep`) and from computing the seeds of one process together (:func:`train`).
"""

import inspect
import math
import multiprocessing
import numbers
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import joblib
import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from mnist1d.engine import ReplayError, Stack
from mnist1d.engine.checks import is_answer_close
from mnist1d.engine.inspection import reads_iterator
from mnist1d.engine.keeping import (
    get_python_random,
    keep_random_state,
    remember_caches,
    remember_code,
    remember_function,
    set_python_random,
)
from mnist1d.engine.stack import BUILT
from mnist1d.engine.workers import (
    OtherCodeError,
    end_older_workers,
    has_global_hooks,
    is_in_task,
    keep_workers,
    list_place,
    list_settings,
    run_task,
)
from mnist1d.parts import name_parts
from mnist1d.settings import (
    find_device,
    get_device,
    get_jobs,
    note_peak_memory,
    note_seconds,
)
from mnist1d.transform import check_integer, list_seeds, require

__all__ = ["Stack", "SweepError", "accuracy", "batches", "early_stopped", "fit", "split_tensors", "sweep", "train"]


def list_datasets(data: dict | Sequence[dict]) -> list:
    """One dataset, or the datasets of a sequence."""
    datasets = [data] if isinstance(data, Mapping) else list(data) if isinstance(data, Iterable) else []
    good = bool(datasets) and all(isinstance(d, Mapping) for d in datasets)
    require(good, "data", type(data).__name__, "a dict, as make_dataset gives it, or a sequence of them")
    for split in ("_val", "_test"):
        found = [{"x" + split, "y" + split} & d.keys() for d in datasets]
        require(all(f == found[0] and len(f) != 1 for f in found), f"x{split}, y{split}", found, "both or none in each")
    return datasets


def split_tensors(
    data: dict | Sequence[dict], split: str, n_seeds: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """One split of a dataset, or of one dataset per seed, as tensors with a leading seed axis.

    Parameters
    ----------
    data : dict or sequence of dict
        From :func:`mnist1d.make_dataset`; a sequence holds one dataset of the same shape per seed.
    split : {"", "_val", "_test"}
        The suffix of the arrays' names.
    n_seeds : int
    device : torch.device or str

    Returns
    -------
    x : Tensor, shape (seed, n, ...)
    y : Tensor, shape (seed, n, ...)
        Floating-point arrays take torch's default dtype, integers become int64; complex and bool stay.
        Views of one copy when all seeds share their data.
    """
    datasets, n_seeds = list_datasets(data), check_integer(n_seeds, "n_seeds", 1)
    if len(datasets) not in (1, n_seeds):
        raise ValueError(f"data: {len(datasets)} datasets for {n_seeds} seeds; must be one, or one per seed")
    for d in datasets:
        if missing := [name + split for name in "xy" if name + split not in d]:
            raise ValueError(f"data: has no {' and no '.join(missing)}; must hold signals and their targets")
        lengths = [len(np.atleast_1d(_get_array(d[name + split], name + split))) for name in "xy"]
        require(lengths[0] == lengths[1] > 0, f"lengths of x{split}, y{split}", lengths, "equal, and at least 1")

    for name in (f"x{split}", f"y{split}"):
        arrays = [_get_array(d[name], name) for d in datasets]
        shapes = sorted({array.shape for array in arrays})
        require(len(shapes) == 1, f"shapes of {name}", shapes, "the same for all seeds")
        require(not any(map(np.ma.is_masked, (d[name] for d in datasets))), name, "an array with a mask", "whole")
        others = sorted({str(array.dtype) for array in arrays if array.dtype.kind not in "biufc"})
        require(not others, f"types of {name}", others, "numbers; number the labels to train on them")
        large = sorted({str(a.dtype) for a in arrays if a.dtype.char in "gG" and a.dtype.itemsize > 8})
        require(not large, f"types of {name}", large, "numbers of 64 bits at most")

    def convert(name):
        arrays = [_get_array(d[name + split], name + split) for d in datasets]
        native = [np.require(a, a.dtype.newbyteorder("="), "CW") for a in arrays]
        tensor = torch.stack([torch.as_tensor(a) for a in native])
        floating = tensor.is_floating_point()
        kept = tensor.is_complex() or tensor.dtype == torch.bool
        dtype = torch.get_default_dtype() if floating else tensor.dtype if kept else torch.int64
        return tensor.to(device, dtype).expand(n_seeds, *tensor.shape[1:])

    return convert("x"), convert("y")


def _get_array(value, name):
    """A dataset's entry as an array, or a ValueError that names it."""
    try:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            value = value.float() if value.dtype == torch.bfloat16 else value
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: must be an array of numbers ({error})") from None
    require(array.ndim > 0, name, value, "an array of numbers, one entry for each example")
    return array


def accuracy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Share of examples whose largest logit is that of their label, in percent; NaN for a model with a NaN among them.

    Parameters
    ----------
    logits : Tensor, shape (..., n, class)
    y : Tensor, shape (..., n), int64

    Returns
    -------
    Tensor, shape (...), float64

    Raises
    ------
    ValueError
        If there is not one label for each example.
    """
    shape = tuple(logits.shape[:-1])
    require(shape[len(shape) - y.ndim :] == y.shape, "shape of y", tuple(y.shape), f"{shape}, one label for each")
    share, bad = 100.0 * (logits.argmax(-1) == y).double().mean(-1), logits.isnan().any(-1)
    return torch.where(bad.any(-1) if bad.ndim else bad, torch.nan, share)  # argmax takes NaN for the largest


def _draw_indices(order, n, batch_size, steps, seeds, device):
    """Yield the indices of each batch: (1, batch) when all seeds share them, else (seed, batch)."""
    if order == "cyclic":
        for step in range(steps):
            yield ((torch.arange(batch_size, device=device) + step * batch_size) % n)[None]
    else:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        per_epoch = n // batch_size
        for step in range(steps):
            if step % per_epoch == 0:
                epoch = torch.stack([torch.randperm(n, generator=g) for g in generators]).to(device)
            start = step % per_epoch * batch_size
            yield epoch[:, start : start + batch_size]


def batches(
    x: torch.Tensor,
    y: torch.Tensor,
    seeds: int | Sequence[int],
    *,
    steps: int,
    batch_size: int = 100,
    order: str = "cyclic",
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the batches of a training run, one part for each seed.

    Parameters
    ----------
    x, y : Tensor, shape (seed, n, ...)
        From :func:`split_tensors`.
    seeds : int or sequence of int
        Decide the order of the examples when it is "shuffled".
    steps, batch_size : int
    order : {"cyclic", "shuffled"}
        "cyclic" takes the examples in their stored order, again and again, as the public code does;
        "shuffled" draws a new order every epoch, decided by the seed, and drops the last partial batch.

    Yields
    ------
    x, y : Tensor, shape (seed, batch, ...)

    Raises
    ------
    ValueError
        If `order` or `batch_size` cannot be.
    """
    seeds, n = list_seeds(seeds), x.shape[1]
    for name, t in (("x", x), ("y", y)):
        require(t.shape[:2] == (len(seeds), n), f"shape of {name}", tuple(t.shape), f"({len(seeds)}, {n}, ...)")
    if order not in ("cyclic", "shuffled"):
        raise ValueError(f"order={order!r}: must be 'cyclic' or 'shuffled'")
    check_integer(batch_size, "batch_size", 1, n, f"an integer from 1 to {n}, the number of training examples")
    check_integer(steps, "steps", 0)
    # Batches are taken from one table of all examples: faster than by an index of seeds and one of examples.
    tables = []
    for t in (x, y):
        shared = t.stride(0) == 0
        first = torch.arange(len(seeds), device=t.device)[:, None] * (0 if shared else n)  # each seed's first row
        tables.append((t[0] if shared else t.flatten(0, 1), first[:1] if shared else first))

    def generate():
        for index in _draw_indices(order, n, batch_size, steps, seeds, x.device):
            parts = []
            for table, first in tables:
                rows = index + first  # [1 or seed, example]
                part = table.index_select(0, rows.flatten()).unflatten(0, rows.shape)
                parts.append(part.expand(len(seeds), *part.shape[1:]))
            yield tuple(parts)

    return generate()


def _answer(model, x):
    """A model's answer if it is a tensor, else one number: a distribution, say, or a tuple with gaps."""
    out = model(x)
    return out if isinstance(out, torch.Tensor) else x.new_zeros(())


def _mixes_examples(stack, x, whole, few=10):
    """Whether what the models say of an example depends on those beside it, as with batch statistics."""
    if not getattr(stack, "mixes_examples", False):  # a head of zeros would hide it: it is asked each time
        first, last = (stack.evaluate(_answer, xs) for xs in (x[:, :few], x[:, -few:]))
        pairs = ((whole[:, :few], first), (whole[:, -few:], last)) if whole.shape[:2] == x.shape[:2] else ()
        stack.mixes_examples = not (pairs and all(is_answer_close(*pair) for pair in pairs))
    return stack.mixes_examples


def evaluate(stack, x, y, chunk=500):
    """Accuracy of every model where targets are classes, else its loss: (name, values [seed], float64)."""
    chunk += x.shape[1] % chunk == 1  # no last chunk of one example, whose axis a model may squeeze
    if y.ndim == 2 and not (y.is_floating_point() or y.is_complex()):
        chunks = x.split(chunk, 1)
        first = stack.evaluate(_answer, chunks[0])
        if len(chunks) > 1 and _mixes_examples(stack, chunks[0], first):
            chunks, chunk, first = (x,), x.shape[1], stack.evaluate(_answer, x)
        answers = [first, *(stack.evaluate(_answer, xs) for xs in chunks[1:])]
        logits = list(zip(answers, y.split(chunk, 1), strict=True))
        if all(out.shape[:2] == ys.shape and _is_logits(out) for out, ys in logits):
            return "acc", sum(accuracy(out, ys) * ys.shape[1] for out, ys in logits) / y.shape[1]
    return "loss", stack.evaluate(stack.compute_loss, x, y).double()


def _is_logits(out):
    return out.ndim == 3 and out.shape[-1] > 1  # one number is no choice between classes


def _fails(stack, x):
    try:
        stack.evaluate(_answer, x)
    except RuntimeError:
        return True
    return False


def _check_dtype(stack, x):
    """A ValueError where models of another floating-point type do not take x [seed, n, ...]."""
    kinds = {p.dtype for p in stack.params.values()}
    is_other, few = x.is_floating_point() and x.dtype not in kinds, x[:, :2]
    if is_other and _fails(stack, few) and not all(_fails(stack, few.to(kind)) for kind in kinds):
        rule = f"{', '.join(map(str, kinds))}, as the models are: cast x in forward, or call torch.set_default_dtype"
        raise ValueError(f"x: is {x.dtype}, torch's default; must be {rule}")


def check_labels(stack, x, y, split=""):
    """A ValueError where cross-entropy cannot take labels y [seed, ...] for the models' outputs; x [seed, n, ...]."""
    loss = getattr(stack.loss, "func", stack.loss)  # of a partial
    if loss is not F.cross_entropy and type(loss) is not torch.nn.CrossEntropyLoss:
        return
    try:
        out, name = stack.evaluate(_answer, x[:, :500]), "y" + split  # as many as in evaluations
    except RuntimeError:  # of a forward pass that differentiates, say; if it is no good, the first step says so
        return
    if not _is_logits(out) or y.is_complex():
        return
    shape, is_float = list(y.shape[1:]), y.is_floating_point()
    is_one_hot = shape[-1] == out.shape[-1] and len(shape) > 1 and not is_float and (y.sum(-1) == 1).all()
    require(not is_one_hot, name, "integers [example, class]", "numbers of the classes, or floating-point numbers")
    require(not (shape[-1] == 1 and out.shape[-1] > 1 and len(shape) == 2), f"shape of {name}", shape, "[example]")
    if is_float:
        rule = "integers, the classes, or probabilities [example, class]; a regression has another loss"
        require(shape[-1] == out.shape[-1] and len(shape) > 1, f"type of {name}", str(y.dtype), rule)
        return
    keywords = getattr(stack.loss, "keywords", None) or vars(stack.loss)
    bad = y[(y != keywords.get("ignore_index", -100)) & ((y < 0) | (y >= out.shape[-1]))]
    rule = f"from 0 to {out.shape[-1] - 1}, as a model has {out.shape[-1]} outputs"
    require(not len(bad), f"labels {name}", sorted(set(bad.tolist()))[:5], rule)


def call_schedule(schedule: Callable[[int], float], step: int) -> float:
    """The factor of a step, or a ValueError that names what it is or does."""
    is_looked_at = step < 10 or step % 100 == 0  # which takes as long as a small step
    states = (torch.get_rng_state(), get_python_random()) if is_looked_at else None
    factor, name = schedule(step), f"schedule({step})"
    is_number = isinstance(factor, numbers.Real) or (isinstance(factor, torch.Tensor) and factor.numel() == 1)
    require(is_number and math.isfinite(factor), name, factor, "a finite number")
    if states and not (torch.equal(states[0], torch.get_rng_state()) and states[1] == get_python_random()):
        torch.set_rng_state(states[0])
        set_python_random(states[1])
        raise ValueError(f"{name}: draws random numbers, which belong to no seed; must be decided by the step")
    return factor


def _fit_in_turn(stack, build, data, seeds, learning_rate, state, options):
    """As :func:`fit`, every model built and trained when the one before it has ended; `stack` takes them over.

    What loss and schedule count begins anew for each, and is that of the last one in the end.
    """
    parts, histories = [], []
    restores = [remember_function(options[name]) for name in ("loss", "schedule")]
    for name, function in {"build": build, "loss": options["loss"], "schedule": options["schedule"]}.items():
        if function is not None and reads_iterator(function):
            rule = "which cannot be set back for the next seed: count in attributes of an object"
            warnings.warn(f"{name}: reads an iterator, {rule}", stacklevel=5)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for i, seed in enumerate(seeds):
            rate = learning_rate[i] if np.ndim(learning_rate) else learning_rate
            own = {name: value[i : i + 1] for name, value in state.items()}
            for restore in restores:
                restore()
            part, history = fit(build, data[i % len(data)], [seed], learning_rate=rate, state=own, **options)
            parts.append(part)
            histories.append(history)
    for warning in told:
        warnings.warn(warning.message, warning.category, stacklevel=5)
    stack.adopt(parts)
    return stack, {name: np.concatenate([history[name] for history in histories]) for name in histories[0]}


@keep_random_state()
def fit(
    build: Callable[[], torch.nn.Module],
    data: dict | Sequence[dict],
    seeds: int | Sequence[int],
    *,
    steps: int = 6000,
    batch_size: int = 100,
    learning_rate: float | Sequence[float] | None = None,
    optimizer: str | Callable = "adam",
    momentum: float | None = None,
    weight_decay: float | None = None,
    order: str = "cyclic",
    eval_every: int | None = 250,
    schedule: Callable[[int], float] | None = None,
    loss: Callable = F.cross_entropy,
    clip: float | None = None,
    state: dict | None = None,
    device: torch.device | str | None = None,
    replay: bool | None = None,
) -> tuple[Stack, dict]:
    """As :func:`train`; returns the trained models too.

    Returns
    -------
    stack : Stack
        ``stack.get_module(i)`` is the model of ``seeds[i]``.
    history : dict
    """
    device = get_device() if device is None else find_device(device)
    seeds = list_seeds(seeds)
    check_integer(steps, "steps", 0)
    if eval_every is not None:
        check_integer(eval_every, "eval_every", 1)
    for name, value in (("build", build), ("loss", loss), ("schedule", schedule)):
        require(callable(value) or (name == "schedule" and value is None), name, value, "callable")
    is_norm = clip is None or (isinstance(clip, numbers.Real) and not isinstance(clip, bool) and clip > 0)
    require(is_norm, "clip", clip, "None or a number above 0")
    data = list_datasets(data)
    x, y = split_tensors(data, "", len(seeds), device)
    splits = {"train": (x, y)}
    splits |= {
        name: split_tensors(data, f"_{name}", len(seeds), device) for name in ("test", "val") if f"x_{name}" in data[0]
    }
    if loss is F.cross_entropy:  # whose targets are numbers of classes
        splits = {name: (xs, ys.long() if ys.dtype == torch.bool else ys) for name, (xs, ys) in splits.items()}
        x, y = splits["train"]
    drawn = {"steps": steps, "batch_size": batch_size, "order": order}
    feed = batches(x, y, seeds, **drawn)

    def make_stack(replay):
        stack = Stack(
            build, seeds, loss=loss, optimizer=optimizer, learning_rate=learning_rate, momentum=momentum,
            weight_decay=weight_decay, state=state, device=device, example=(x[:, :2], y[:, :2]), replay=replay,
        )  # fmt: skip
        stack.reuse_grads, stack.keeps_hooks = stack.optimizers.are_of_torch, True
        return stack

    def fit_in_turn():
        stack.part()
        set_back()
        own = {
            "steps": steps, "batch_size": batch_size, "optimizer": optimizer, "momentum": momentum,
            "weight_decay": weight_decay, "order": order, "eval_every": eval_every, "schedule": schedule,
            "loss": loss, "clip": clip, "device": device, "replay": replay,
        }  # fmt: skip
        return _fit_in_turn(stack, build, data, seeds, learning_rate, state or {}, own)

    restores = [remember_code([build, loss, schedule, optimizer])]
    stack = make_stack(replay)
    kinds = {type(part) for module in stack.modules for part in module.modules()}
    restores += [remember_code(kinds), remember_caches(stack.modules)]

    def set_back():
        for restore in reversed(restores):
            restore()

    if stack.remembers:
        name = type(stack.modules[0]).__name__
        warnings.warn(f"{name} is trained one seed after the other, not together: {BUILT}", stacklevel=3)
        return fit_in_turn()
    _check_dtype(stack, x)
    rule = "None, a scheduler of the optimiser sets the rate"
    require(schedule is None or not stack.optimizers.have_schedulers, "schedule", schedule, rule)
    history = {"train_loss": []}
    losses = torch.full((len(seeds),), torch.nan, device=device)
    diverged = torch.zeros(len(seeds), dtype=torch.bool, device=device)
    nothing = losses, diverged
    if schedule is not None and len(seeds) > 1 and stack.reads_model(schedule):
        raise ValueError("schedule: reads a model that is trained; with several seeds it would change one alone")
    in_worker = multiprocessing.current_process().name != "MainProcess"
    bar = tqdm(total=steps, desc="training", delay=10, leave=False, disable=True if in_worker else None)
    step = 0
    for split, (xs, ys) in splits.items():
        check_labels(stack, xs, ys[:1] if ys.stride(0) == 0 else ys, "" if split == "train" else f"_{split}")
    while True:
        if step == steps or (eval_every and step % eval_every == 0):
            bad = ~losses.isfinite() & (step > 0) & ~diverged
            if bad.any():
                names = [seed for seed, is_bad in zip(seeds, bad.tolist(), strict=True) if is_bad]
                text = f"seeds {names} diverged: NaN from step {step} on"
                warnings.warn(text, RuntimeWarning, stacklevel=4)
                diverged = diverged | bad
            for split, (xs, ys) in splits.items() if eval_every else ():
                kind, values = evaluate(stack, xs, ys)
                if (split, kind) != ("train", "loss"):
                    history.setdefault(f"{split}_{kind}", []).append(torch.where(diverged, torch.nan, values))
            history["train_loss"].append(torch.where(diverged, torch.nan, losses.double()))
        if step == steps:
            break
        try:
            factor = 1.0 if schedule is None else call_schedule(schedule, step)
            xb, yb = next(feed)
            stack.check_next = step == steps - 1  # a replay that has gone wrong since the last check is found
            losses = stack.backward(xb, yb)
            if stack.remembers and len(seeds) > 1:  # in a class, a global or a loss, which all share
                bar.close()
                return fit_in_turn()
        except ReplayError as error:
            # What was not seen now may have come and gone before, between two comparisons that held.
            warnings.warn(f"{error}: training begins anew without it", stacklevel=4)
            if stack.remembers and len(seeds) > 1:
                bar.close()
                return fit_in_turn()
            set_back()
            is_together, stack = stack.stacked, make_stack(replay=False)
            if not is_together:
                stack.part()
            bar.reset()
            feed, history, (losses, diverged), step = batches(x, y, seeds, **drawn), {"train_loss": []}, nothing, 0
            continue
        if clip is not None:
            stack.clip(clip)
        stack.step(factor)
        if stack.remembers and len(seeds) > 1:
            bar.close()
            return fit_in_turn()
        step += 1
        bar.update()
    bar.close()
    return stack, {name: torch.stack(values, 1).cpu().numpy() for name, values in history.items()}


def train(
    build: Callable[[], torch.nn.Module], data: dict | Sequence[dict], seeds: int | Sequence[int], **options: Any
) -> dict[str, np.ndarray]:
    """Train one model per seed, all of them together where that gives the same numbers.

    Parameters
    ----------
    build : callable
        ``build()`` returns a fresh ``nn.Module``; model i is built under ``seeds[i]``.
    data : dict or sequence of dict
        From :func:`mnist1d.make_dataset`; a sequence holds one dataset of the same shape per seed.
    seeds : int or sequence of int
        An integer n means the seeds 0 to n - 1.
    steps, batch_size : int
        6000 and 100 by default.
    optimizer, learning_rate, momentum, weight_decay, loss, state, device, replay : optional
        As for :class:`Stack`; by default Adam with a rate of 0.01, and ``F.cross_entropy``.
    order : {"cyclic", "shuffled"}
        As in :func:`batches`.
    eval_every : int or None
        Steps between evaluations, 250 by default; the first is before training, the last after `steps`. With None
        there are none: `train_loss` after `steps` is all that is returned.
    schedule : callable, optional
        Maps a step, from 0, to a factor of the learning rate, by the step alone; by default 1. What it or `loss` counts
        begins anew for every seed where models are trained one after the other.
    clip : float, optional
        Largest norm of a model's gradient.

    Returns
    -------
    dict of ndarray, shape (seed, eval), float64
        `train_acc`, `test_acc`, with a validation split `val_acc`: percent, in evaluation mode;
        where targets are no classes or outputs no logits of several, `test_loss` and `val_loss` in their place.
        Integer targets are classes: those of a regression must be floating-point numbers.
        `train_loss`: the loss of the batch before each evaluation (NaN before training).
        A seed whose loss was not finite is NaN from there on; a warning names it.

    Raises
    ------
    ValueError
        Names the argument, its value and the rule.
    """
    if unknown := sorted(options.keys() - inspect.signature(fit).parameters.keys()):
        known = list(inspect.signature(fit).parameters)[3:]
        raise ValueError(f"{unknown[0]}={options[unknown[0]]!r}: train has no such argument; must be of {known}")
    return fit(build, data, seeds, **options)[1]


def early_stopped(history: Mapping[str, np.ndarray]) -> np.ndarray:
    """Test accuracy at the evaluation where the validation accuracy is highest (the first such one).

    Parameters
    ----------
    history : dict
        Holds `val_acc` and `test_acc`, each (seed, eval), percent.

    Returns
    -------
    ndarray, shape (seed,), percent

    Raises
    ------
    ValueError
        If `history` lacks one of them, or they have not one shape.
    """
    if lacking := sorted({"val_acc", "test_acc"} - history.keys()):
        raise ValueError(f"history: has no {lacking}; must come of data with make_dataset's validation_split")
    val_acc, shapes = np.asarray(history["val_acc"]), [np.shape(history[k]) for k in ("val_acc", "test_acc")]
    require(shapes[0] == shapes[1] and val_acc.ndim == 2, "shapes of val_acc, test_acc", shapes, "(seed, eval), equal")
    best = np.argmax(np.where(np.isnan(val_acc), -np.inf, val_acc), axis=1)
    return np.take_along_axis(np.asarray(history["test_acc"]), best[:, None], 1)[:, 0]


def _concatenate(results, sizes):
    """Join the chunks of one variant, of so many seeds each, through dicts and tuples."""
    first = results[0]
    if isinstance(first, Mapping):
        keys = [sorted(map(str, r)) for r in results]
        require(keys.count(keys[0]) == len(keys), "keys of run's results", keys, "the same for all seeds")
        return {key: _concatenate([r[key] for r in results], sizes) for key in first}
    if isinstance(first, tuple):
        joined = [_concatenate(parts, sizes) for parts in zip(*results, strict=True)]
        return type(first)(*joined) if hasattr(first, "_fields") else tuple(joined)
    entries = [len(r) if isinstance(r, (list, range)) or np.ndim(r) else 1 for r in results]
    rule = f"{sizes}, one for each seed of a call"
    require(len(results) == 1 or entries == sizes, "entries of run's results", entries, rule)
    if isinstance(first, torch.Tensor) and first.ndim:
        return np.concatenate([r.detach().cpu().numpy() for r in results])
    if isinstance(first, np.ndarray) and first.ndim:
        return (np.ma if any(map(np.ma.isMaskedArray, results)) else np).concatenate(results)
    if isinstance(first, (list, range)):
        joined = [item for r in results for item in r]
        return np.asarray(joined) if all(isinstance(item, (int, float, np.number)) for item in joined) else joined
    return first if len(results) == 1 else list(results)


class SweepError(RuntimeError):
    """Some part of a sweep failed.

    Attributes
    ----------
    finished : dict
        Name to result of the variants that ended.
    """

    finished: dict


def sweep(
    run: Callable,
    variants: Mapping[str, Any] | Sequence,
    seeds: int | Sequence[int],
    *,
    chunk: int | None = None,
    desc: str = "sweep",
) -> dict:
    """Call ``run(variant, seeds)`` for every variant, on all cores, and join the results by seed.

    Parameters
    ----------
    run : callable
        ``run(variant, seeds)`` returns arrays whose first axis is the seed, lists with one entry per seed, or
        dicts and tuples of such; what :func:`train` returns, for example. It must be pure, and write no files.
    variants : dict or sequence
        Name to variant, in the order of running: put the longest first. A sequence's items are their own names.
    seeds : int or sequence of int
    chunk : int, optional
        Seeds given to one call; by default all. Results do not depend on the number of cores, as they
        would if the chunk did.
    desc : str
        Label of the progress bar.

    Returns
    -------
    dict
        Name to the joined results.

    Raises
    ------
    SweepError
        If a call failed, after all others have ended; names the variant and the seeds, and keeps in its
        `finished` what the others returned.

    Notes
    -----
    Of a notebook that `make` runs, what has ended is kept and read again if it is run anew, until a cell up to this
    one changes, or what it uses; see :mod:`mnist1d.parts`.

    Workers are joblib's: inside ``joblib.parallel_config(backend="dask")`` the same sweep runs on a cluster, best
    with one thread a worker, as the threads of a process take turns. A sweep within a sweep runs in its place.

    Numbers, texts, paths, arrays and tensors of up to a million numbers that were set in a module of one's own since it
    was imported, or in a class or a plain object of it, are set in the workers too, and so are the working folder and
    the environment. Where a worker would have other functions than this process, because the module was edited or a
    function put in the place of another, one of torch's too, the call runs here, with a warning.
    In a call numbers below 1e-38 count as 0 (denormal numbers, with which a CPU is 100 times slower).
    """
    if not isinstance(variants, Mapping):
        good = isinstance(variants, Iterable) and not isinstance(variants, (str, bytes))
        require(good, "variants", variants, "a dict of name to variant, or a sequence")
        variants = list(variants)
        plain = [v.item() if isinstance(v, (np.generic, torch.Tensor)) and not v.ndim else v for v in variants]
        names = [v if isinstance(v, (str, int, float)) else getattr(v, "__name__", i) for i, v in enumerate(plain)]
        if len(set(names)) < len(names):
            raise ValueError(f"variants: the names {names} are not all different; pass a dict of name to variant")
        variants = dict(zip(names, variants, strict=True))
    require(callable(run), "run", run, "callable")
    seeds = list_seeds(seeds)
    chunk = len(seeds) if chunk is None else check_integer(chunk, "chunk", 1)
    if not variants:
        raise ValueError("variants is empty: must hold at least one")
    tasks = [(name, seeds[i : i + chunk]) for name in variants for i in range(0, len(seeds), chunk)]
    nested = is_in_task()  # its workers are all busy
    jobs = 1 if nested else min(get_jobs(), len(tasks))
    if jobs > 1 and has_global_hooks():
        jobs = 1
        warnings.warn(f"{desc}: runs in this process alone, as hooks of all modules do not reach others", stacklevel=2)
    dtype, place = torch.get_default_dtype(), list_place()
    settings, code = list_settings([run, variants] if jobs > 1 else [])
    end_older_workers(code)
    parts = [None] * len(tasks) if nested else name_parts(run, variants, tasks, (desc, dtype, jobs == 1))
    calls = (
        joblib.delayed(run_task)(run, variants[name], some, dtype, place, settings, code, part, os.getpid())
        for (name, some), part in zip(tasks, parts, strict=True)
    )
    collected, failures, told = {name: [] for name in variants}, [], False

    def join():
        finished, sizes = {}, [len(seeds[i : i + chunk]) for i in range(0, len(seeds), chunk)]
        for name, parts in collected.items():
            try:
                finished |= {name: _concatenate(parts, sizes)} if len(parts) == len(sizes) else {}
            except Exception as error:  # parts that do not fit together are kept as they are
                finished[name] = parts
                failures.append((name, seeds, error))
        return finished

    try:
        with keep_workers(), warnings.catch_warnings():
            # joblib restarts a worker that keeps much memory, and loses nothing by it.
            warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
            results = joblib.Parallel(jobs, "sequential" if nested else None, return_as="generator")(calls)
            progress = tqdm(results, total=len(tasks), desc=desc)
            for (name, part), kept, (result, error, saved, memory) in zip(tasks, parts, progress, strict=True):
                if isinstance(error, OtherCodeError):
                    if not told:
                        text = (
                            f"{desc}: runs in this process alone, as {error} is not what workers import from its file"
                        )
                        warnings.warn(text, stacklevel=2)
                    told = True
                    here = run, variants[name], part, dtype, place, {}, {}, kept, os.getpid()
                    result, error, saved, memory = run_task(*here)
                note_peak_memory(memory)
                note_seconds(saved / jobs)
                if error is None:
                    collected[name].append(result)
                else:
                    failures.append((name, part, error))
                    print(f"{desc}: variant {name!r}, seeds {part} failed: {type(error).__name__}: {error}")
    except BaseException as error:  # an interrupt or a killed worker: what has ended is kept
        error.finished = join()
        error.add_note(f"{desc}: {len(error.finished)} of {len(variants)} variants had ended; they are in `finished`")
        raise
    finished = join()
    if failures:
        text = "; ".join(f"variant {name!r}, seeds {part}: {type(e).__name__}: {e}" for name, part, e in failures)
        failed = SweepError(f"{desc}: {text}")
        failed.finished = finished
        raise failed from failures[0][2]
    return finished
