"""Is a model, optimiser, loss or augmentation better than the baseline? One call, tuned alike and tested once.

Every arm chooses its settings on one validation split of the training set, is then trained on all of it with seeds
that took no part in the choice, and meets the test set after its last step.
"""

import contextlib
import difflib
import functools
import hashlib
import inspect
import itertools
import json
import math
import numbers
import os
import time
import types
import warnings
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import special

from mnist1d.claims import confidence_interval
from mnist1d.data import DEFAULTS, draw_validation, make_dataset
from mnist1d.engine.description import describe
from mnist1d.engine.inspection import reads_iterator
from mnist1d.engine.keeping import keep_code, keep_function
from mnist1d.parts import IMPORTED
from mnist1d.settings import get_device
from mnist1d.training import Stack, call_schedule, check_labels, evaluate, fit, split_tensors, sweep
from mnist1d.transform import check_integer, list_seeds, require
from mnist1d.utils import expand, open_for_rename

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Comparison", "Comparisons", "compare", "judge_difference"]

FIRST_TUNING_SEED = 1_000_000
MOST_SEEDS = 10_000  # beyond this no number of seeds is worth naming
POWER = 0.8  # chance that the number of seeds which is named decides
KEYS = "x", "y", "x_test", "y_test"
SYNONYMS = {"lr": "learning_rate", "epochs": "steps", "model": "build"}  # what people write
TINY = 1e-9  # points; rounding is smaller, and one example of a test set more
CACHE_FORMAT = 6
LARGE = 50_000  # parameters; several such models at once leave a processor's cache, and take longer than in turn


def _power(mean, sd, n, margin, level):
    """Chance that an interval of n seeds leaves out zero or lies within the margin, if mean and sd are the truth."""
    tails = (np.arange(500) + 0.5) / 500  # equally likely spreads of a sample, and half the interval of each
    half = special.stdtrit(n - 1, (1 + level) / 2) * sd * np.sqrt(special.chdtri(n - 1, tails) / (n - 1) / n)
    inner = np.maximum(margin - half, 0)  # undecided are means from here on, to either side, up to `half`
    below = special.ndtr((np.stack([-half, -inner, inner, half]) - mean) * math.sqrt(n) / sd)
    return 1 - np.mean(np.where(half > inner, below[1] - below[0] + below[3] - below[2], 0))


def check_margin(margin):
    """A ValueError unless the margin is a finite number of at least 0."""
    good = isinstance(margin, numbers.Real) and not isinstance(margin, bool) and 0 <= margin < math.inf
    require(good, "margin", margin, "a finite number of at least 0")


def judge_difference(difference: ArrayLike, margin: float = 0.5, level: float = 0.95) -> tuple[str, int | None]:
    """What paired differences say.

    Parameters
    ----------
    difference : array, shape (seed,)
        Arm minus baseline, points.
    margin : float
        The largest difference that does not matter, points.
    level : float
        Of the interval, between 0 and 1.

    Returns
    -------
    answer : {"better", "worse", "equivalent", "undecided"}
        "equivalent" where the whole interval lies within the margin, be it off zero or not.
    needed : int or None
        How many *new* seeds would decide what is undecided, four times in five, were mean and spread the true ones.
        Adding seeds to the old ones and judging again, until something shows, finds what is not there.

    Raises
    ------
    ValueError
        If there are fewer than two differences, or one is no finite number.
    """
    is_whole, difference = not np.ma.is_masked(difference), np.asarray(difference)
    good = is_whole and difference.ndim == 1 and difference.size > 1 and difference.dtype.kind in "iuf"
    require(good and np.isfinite(difference).all(), "difference", difference, "two or more finite numbers")
    check_margin(margin)
    mean, low, high = confidence_interval(difference, level)
    if -margin - TINY <= low and high <= margin + TINY:
        return "equivalent", None
    if low > TINY or high < -TINY:
        return ("better" if low > 0 else "worse"), None
    sd = np.std(difference, ddof=1)
    first = min(len(difference) + 1, MOST_SEEDS)
    more = range(first, MOST_SEEDS)  # the first of these that decides often enough, else the end
    return "undecided", first + bisect(more, False, key=lambda n: bool(_power(mean, sd, n, margin, level) >= POWER))


@dataclass(eq=False, repr=False)
class Comparison:
    """What :func:`compare` found on one dataset.

    Attributes
    ----------
    accuracy : dict of str to ndarray, shape (seed,)
        Of each arm after its last step on the test set, percent; chance where a run diverged. The first arm is the
        baseline.
    difference : dict of str to ndarray, shape (seed,)
        Arm minus baseline with the same seed, points.
    answer : dict of str to str
        As of :func:`judge_difference`.
    needed : dict of str to (int or None)
    chosen, tried, validation : dict
        Of each arm the chosen values; all combinations; and their mean validation accuracy, percent, NaN where there
        is only one and -inf where a run diverged.
    train_accuracy, parameters, seconds, diverged : dict
        Percent, after the last step; trainable numbers; CPU seconds of training one seed, where all are trained
        together as far as they can be, or on a CPU above 50,000 parameters in turn; the seeds that diverged.
    margin, level : float
        The level of each interval of a difference: together, over arms and datasets, given the chosen values, they hold
        with 95%.
    """

    name: str
    accuracy: dict
    train_accuracy: dict
    parameters: dict
    seconds: dict
    chosen: dict
    validation: dict
    margin: float
    datasets: int = 1  # of the call
    tried: dict = field(default_factory=dict)
    diverged: dict = field(default_factory=dict)

    def __post_init__(self):
        baseline, *others = self.accuracy
        # Bonferroni: no arm is better by chance because there are many of them, or many datasets.
        self.level = 1 - 0.05 / (max(len(others), 1) * self.datasets)
        self.difference = {arm: self.accuracy[arm] - self.accuracy[baseline] for arm in others}
        judged = {arm: judge_difference(d, self.margin, self.level) for arm, d in self.difference.items()}
        lost = {arm: len(self.diverged.get(arm, ())) == len(values) for arm, values in self.accuracy.items()}
        judged |= {arm: ("undecided", None) for arm in others if lost[arm] and lost[baseline]}  # chance against chance
        self.answer = {arm: answer for arm, (answer, _) in judged.items()}
        self.needed = {arm: needed for arm, (_, needed) in judged.items()}

    def describe(self, arm: str) -> str:
        """The answer for one arm in words."""
        if arm not in self.answer:
            return "baseline"
        if self.answer[arm] == "equivalent":
            return f"equivalent within {self.margin:g}"
        more = f"more than {MOST_SEEDS:,}" if self.needed[arm] == MOST_SEEDS else f"about {self.needed[arm]}"
        return f"undecided: {more} new seeds would tell" if self.needed[arm] else self.answer[arm]

    def _tell(self, arm, name):
        """A chosen value in words, with its place among those tried where the words do not tell it from them."""
        value = self.chosen[arm][name]
        tried = list({id(t[name]): t[name] for t in self.tried.get(arm, [])}.values())
        if len(set(map(_name, tried))) == len(tried):
            return _name(value)
        return f"{_name(value)}, number {1 + [id(v) for v in tried].index(id(value))} of {len(tried)}"

    def __repr__(self):
        return f"<Comparison, {self.name}: {', '.join(f'{arm} {self.describe(arm)}' for arm in self.accuracy)}>"

    def __str__(self):
        head = ["arm", "test accuracy (%), ± 95%", "parameters", "CPU s", "minus baseline (points)", "answer", "chosen"]
        rows = [head, ["---"] * len(head)]
        for arm, values in self.accuracy.items():
            mean, low, high = confidence_interval(self.difference[arm], self.level) if arm in self.answer else (0, 0, 0)
            difference = f"{mean:+.2f} ({low:+.2f} to {high:+.2f})" if arm in self.answer else ""
            chosen = ", ".join(f"{k}={self._tell(arm, k)}" for k in self.chosen[arm])
            cost = f"{self.parameters[arm]:,}", f"{self.seconds[arm]:.1f}"
            center, least, _ = confidence_interval(values)
            accuracy = f"{center:.2f} ± {center - least:.2f}"
            if self.diverged.get(arm):
                accuracy += f", {len(self.diverged[arm])} diverged"
            rows.append([" ".join(str(arm).split()), accuracy, *cost, difference, self.describe(arm), chosen])
        n = len(next(iter(self.accuracy.values())))
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
        note = f"{n} seeds, 95% intervals given the chosen values"
        if self.level != 0.95:
            note += f"; those of the differences hold together, each at {100 * self.level:.2f}%"
        note += "; the test set was used once for each arm, after its last step."
        if any(self.needed.values()):
            note += " New seeds, all judged at once: so many would decide in"
            note += f" {POWER:.0%} of cases, were this the truth."
        alike = {str(arm): np.ptp(d) < TINY < abs(d[0]) for arm, d in self.difference.items() if len(d) > 1}
        if equal := [arm for arm, is_alike in alike.items() if is_alike]:
            note += f" With equal differences for all seeds ({', '.join(equal)}) an interval says nothing of chance."
        return f"**{self.name}**\n\n{table}\n\n{note}"

    def draw(self) -> "Figure":
        """A figure: accuracies, and differences to the baseline beside the margin."""
        import matplotlib.pyplot as plt

        fig, axes = plt.subplots(1, 2, figsize=(6.75, 0.9 + 0.3 * len(self.accuracy)), layout="constrained")
        for y, (arm, values) in enumerate(self.accuracy.items()):
            axes[0].plot(values, np.full(len(values), y), "|", color="#999999")
            for ax, sample, level in ((axes[0], values, 0.95), (axes[1], self.difference.get(arm), self.level)):
                if sample is not None:
                    mean, low, high = confidence_interval(sample, level)
                    ax.errorbar(mean, y, xerr=[[mean - low], [high - mean]], fmt="o", color="#0072B2", capsize=2)
        axes[1].axvspan(-self.margin, self.margin, color="#999999", alpha=0.25, label="margin", linewidth=0)
        axes[1].axvline(0, color="black", linewidth=0.6)
        axes[1].legend(loc="best")
        names = [str(arm).replace("$", r"\$") for arm in self.accuracy]  # no formula
        axes[0].set_yticks(range(len(names)), names)
        axes[0].set(xlabel="test accuracy (%)")
        axes[1].set(xlabel=f"minus {next(iter(self.accuracy))} (points)", yticks=[])
        for ax in axes:
            ax.set_ylim(len(self.accuracy) - 0.5, -0.5)
        axes[0].set_title(self.name, loc="left")
        return fig

    def _ipython_display_(self):
        import matplotlib.pyplot as plt
        from IPython.display import display

        display({"text/markdown": str(self), "text/plain": str(self)}, raw=True)  # in a terminal the latter
        fig = self.draw()
        display(fig)
        plt.close(fig)


class Comparisons(dict):
    """Name of a dataset to its :class:`Comparison`; shown and printed one after the other."""

    def __str__(self):
        return "\n\n".join(map(str, self.values()))

    def _ipython_display_(self):
        for comparison in self.values():
            comparison._ipython_display_()


def _name(value):
    if isinstance(value, functools.partial):
        given = [*map(_name, value.args), *(f"{k}={_name(v)}" for k, v in value.keywords.items())]
        return f"{_name(value.func)}({', '.join(given)})"
    return " ".join(getattr(value, "__name__", str(value)).strip("<>").split())  # a lambda is no tag


def _make_cache(folder):
    """The folder, made if need be, or None for None; a ValueError before work starts if it cannot be."""
    if folder is None:
        return None
    require(isinstance(folder, (str, os.PathLike)) and folder != "", "cache", folder, "the path of a folder")
    try:
        expand(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cache={str(folder)!r}: must be a folder, or a place for one ({error})") from None
    return expand(folder)


def _remember(folder, key, compute, is_sound):
    """What `compute()` returns, lists and numbers; from the folder's file of this key if there is a sound one."""
    digest = hashlib.sha256(f"{CACHE_FORMAT} {torch.__version__} {IMPORTED} {key}".encode()).hexdigest()[:24]
    path = folder / f"{digest}.json" if folder else None
    if path and path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            require(is_sound(known), "content", known, "what was written")
            return known
        except (OSError, ValueError, RecursionError) as error:
            warnings.warn(f"cache: {path} is damaged and computed again ({error})", stacklevel=2)
    result = compute()
    if path:
        try:
            with open_for_rename(path, "w") as file:
                json.dump(result, file)
        except OSError as error:  # a full disk takes no result with it
            warnings.warn(f"cache: {path} cannot be written ({error})", stacklevel=2)
    return result


def _keep_makers(arm):
    """Leave as it was what makes models and optimisers, and what the models' classes count: each use starts there."""
    return keep_code([arm.get("build"), arm.get("optimizer")])


def _train(arm, data, seeds, rates=None):
    """Train an arm's models on x and y of `data`, which holds nothing to evaluate on; `rates` [seed] if any."""
    options = {"order": "shuffled", "eval_every": None, **arm}
    if rates is not None:
        options["learning_rate"] = rates
    with contextlib.ExitStack() as kept:
        for name in {"loss", "schedule"} & arm.keys():  # which may count, from the start each time
            kept.enter_context(keep_function(arm[name]))
        return fit(options.pop("build"), {k: data[k] for k in "xy"}, seeds, **options)


def _score(stack, x, y):
    """Accuracy [seed], percent; NaN for a model that gives NaN."""
    n = len(stack)
    kind, values = evaluate(stack, *split_tensors({"x": x, "y": y}, "", n, next(iter(stack.params.values())).device))
    if kind != "acc":
        raise ValueError("arms: a model must return logits (example, class) for integer labels")
    return values.tolist()


def _measure(arm, data, seeds, splits, rates=None):
    """Train and test on (x, y) of each split.

    Returns accuracies [split][seed], chance where a run diverged; CPU seconds a seed; parameters; who diverged [seed].
    """
    example = split_tensors({k: data[k][:2] for k in "xy"}, "", 1)  # for layers that take their shapes from it
    with _keep_makers(arm):
        params = Stack(arm["build"], seeds[:1], example=example).params.values()
    parameters = sum(p.numel() for p in params if p.requires_grad)
    size = 1 if parameters > LARGE and get_device().type == "cpu" else len(seeds)
    if rates is None and np.ndim(arm.get("learning_rate")):  # one for each seed
        rates = list(arm["learning_rate"])
    scores, used, diverged, chance = [[] for _ in splits], 0.0, [], 100 / len(np.unique(np.asarray(data["y"])))
    with _keep_makers(arm):
        for i in range(0, len(seeds), size):
            start = time.thread_time()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*diverged")  # said by the arm's name, or the choice's loss
                stack, history = _train(arm, data, seeds[i : i + size], rates and rates[i : i + size])
            used += time.thread_time() - start
            trained = [p.detach().reshape(len(p), -1) for p in stack.params.values() if p.requires_grad]
            finite = torch.stack([p.isfinite().all(1) for p in trained]).all(0)
            scored = np.array([_score(stack, x, y) for x, y in splits])  # [split, seed], percent
            lost = ~(finite.cpu().numpy() & np.isfinite(history["train_loss"][:, -1]) & np.isfinite(scored).all(0))
            diverged += lost.tolist()
            for found, values in zip(scores, scored, strict=True):
                found += np.where(lost, chance, values).tolist()
    return scores, used / len(seeds), parameters, diverged


def _list_factors(schedule, steps):
    """What a schedule gives at every step, which leaves it as it was."""
    with keep_function(schedule):
        return [call_schedule(schedule, step) for step in range(steps)] if callable(schedule) else []


def _fingerprint(arm, data):
    """Text that tells one arm from another: settings, schedule, and what its first steps and evaluation give."""
    first = {k: data[k][:500] for k in "xy"}
    with warnings.catch_warnings(), _keep_makers(arm):
        warnings.simplefilter("ignore")
        short = {**arm, "steps": min(arm["steps"], 3), "batch_size": min(arm.get("batch_size", 100), len(first["x"]))}
        rates = list(arm["learning_rate"])[:1] if np.ndim(arm.get("learning_rate")) else None
        stack, history = _train(short, first, [0], rates)
        out = stack.evaluate(lambda model, x: model(x), *split_tensors(first, "", 1, get_device())[:1])
    settings = sorted((k, describe(v)) for k, v in arm.items() if k != "device")
    schedule = describe(_list_factors(arm.get("schedule"), arm["steps"]))
    held = joblib.hash([out.cpu().numpy(), *(data[k] for k in ("x", "y", "x_test", "y_test"))])
    return repr((settings, schedule, history["train_loss"].tolist(), held))


def _split(data, validation):
    """What a choice is trained and what it is measured on, the same for every arm."""
    is_val = draw_validation(data["y"], validation, np.random.default_rng(0), "validation")
    return [{k: data[k][mask] for k in "xy"} for mask in (~is_val, is_val)]


def _choose(name, arm, grid, data, validation, tune_seeds, cache):
    """The best of the grid by mean validation accuracy: (values, accuracy of every combination)."""
    part, held = _split(data, validation)
    places = list(itertools.product(*(range(len(values)) for values in grid.values())))
    tries = [{k: values[i] for (k, values), i in zip(grid.items(), place, strict=True)} for place in places]
    rates = grid.get("learning_rate")
    others = [[i for k, i in zip(grid, place, strict=True) if k != "learning_rate"] for place in places]
    scores = [None] * len(tries)
    for first in [i for i, other in enumerate(others) if other not in others[:i]]:
        alike = [i for i, other in enumerate(others) if other == others[first]]  # but for the learning rate
        other = {k: v for k, v in tries[first].items() if k != "learning_rate"}

        def measure(other=other, n=len(alike)):
            each = [rate for rate in rates for _ in tune_seeds] if rates else None
            (found,), _, _, diverged = _measure(arm | other, part, tune_seeds * n, [(held["x"], held["y"])], each)
            return np.reshape(np.where(diverged, -np.inf, found), (n, -1)).mean(1).tolist()

        mark = (name, _fingerprint(arm | other, data)) if cache else ""
        key = repr((mark, rates, tune_seeds, validation))
        known = _remember(cache, key, measure, lambda known, n=len(alike): _are_numbers(known, n))
        for i, score in zip(alike, known, strict=True):
            scores[i] = score
    return tries, scores


def _are_numbers(values, n):
    return isinstance(values, list) and len(values) == n and all(isinstance(v, (int, float)) and v == v for v in values)


def _run_arm(variant, seeds):
    """One arm on one dataset: choose, train anew on all training examples, test once."""
    name, arm, grid, data, validation, tune_seeds, cache = variant
    if _has_choice(grid):
        tries, scores = _choose(name, arm, grid, data, validation, tune_seeds, cache)
    else:  # nothing to choose
        tries, scores = [{k: values[0] for k, values in grid.items()}], [math.nan]
    best = int(np.argmax(scores))
    final = arm | tries[best]

    def measure():
        splits = [(data[f"x{split}"], data[f"y{split}"]) for split in ("", "_test")]  # the only use of the test set
        (train, test), used, parameters, diverged = _measure(final, data, seeds, splits)
        lost = [seed for seed, is_lost in zip(seeds, diverged, strict=True) if is_lost]
        return {"accuracy": test, "train": train, "seconds": used, "parameters": parameters, "diverged": lost}

    def is_sound(known):
        kept = {"accuracy": len(seeds), "train": len(seeds)}
        return (
            isinstance(known, dict)
            and known.keys() == {*kept, "seconds", "parameters", "diverged"}
            and all(_are_numbers(known[k], n) for k, n in kept.items())
            and _are_numbers([known["seconds"], known["parameters"]], 2)
            and isinstance(known["diverged"], list)
        )

    result = _remember(cache, repr(((name, _fingerprint(final, data)) if cache else "", seeds)), measure, is_sound)
    return [(result, tries, scores, best)] * len(seeds)


def _get_number(value):
    """Python's own number of one that an array or a tensor holds, which as text has all its digits."""
    return value.item() if isinstance(value, (np.generic, np.ndarray, torch.Tensor)) and not value.ndim else value


def _check_arms(arms, tune, budget):
    """Each arm's arguments of :func:`fit` and its own grid."""
    known, checked = set(inspect.signature(fit).parameters) - {"data", "seeds", "eval_every", "state"}, {}
    require(isinstance(arms, Mapping) and len(arms) > 0, "arms", arms, "a dict of name to arm, of at least one")
    require(tune is None or isinstance(tune, Mapping), "tune", tune, "a dict of argument to values")
    used = {}  # iterators by id, each with what it gave
    for name, arm in arms.items():
        arm = dict(arm) if isinstance(arm, Mapping) else {"build": arm}
        grid = arm.pop("tune", tune) or {}
        require(isinstance(grid, Mapping), f"tune of the arm {name!r}", grid, "a dict of argument to values")
        for k, values in grid.items():
            good = isinstance(values, Iterable) and not isinstance(values, (str, Mapping, set, frozenset))
            good = good and getattr(values, "ndim", 1) > 0
            require(good, f"tune[{k!r}]", values, "a sequence of values, in an order")
            if isinstance(values, Iterator):  # several arms may share one
                used[id(values)] = used.get(id(values)) or (values, list(values))
        lists = {k: used[id(values)][1] if isinstance(values, Iterator) else values for k, values in grid.items()}
        grid = {k: list(map(_get_number, values)) for k, values in lists.items()}
        for rate in grid.get("learning_rate", ()):
            require(np.ndim(rate) == 0 and rate is not None, "tune['learning_rate']", rate, "numbers")
        if np.ndim(arm.get("learning_rate")) and _has_choice(grid):
            raise ValueError(f"arms: {name!r} has a learning rate for each seed; must have one, as {[*grid]} is tuned")
        bad = sorted((arm.keys() | grid.keys()) - known, key=str)
        if bad or not callable(arm.get("build", (grid.get("build") or [None])[0])):
            rule = f"`build`, which makes a model, and arguments of train: {', '.join(sorted(known - {'build'}))}"
            near = [SYNONYMS.get(k) or next(iter(difflib.get_close_matches(str(k), known, 1)), None) for k in bad]
            meant = f" (did you mean {', '.join(filter(None, near))}?)" if any(near) else ""
            raise ValueError(
                f"arms: {name!r} has {bad or 'no build'}{meant}; must have {rule}; others go into build or loss"
            )
        if any(isinstance(build, torch.nn.Module) for build in (arm.get("build"), *grid.get("build", ()))):
            raise ValueError(f"arms: {name!r} is a model; must be what makes one: the class, or `lambda: ...`")
        for k in sorted({"build", "loss", "optimizer", "schedule"} & arm.keys()):
            if reads_iterator(arm[k]):
                rule = "which no run can set back for the next one: count in attributes of an object"
                warnings.warn(f"arms: the {k} of {name!r} reads an iterator, {rule}", stacklevel=3)
        if both := sorted(arm.keys() & grid.keys()):
            raise ValueError(f"tune: {both} are fixed in the arm {name!r}; must be tuned or fixed")
        if empty := [k for k, values in grid.items() if not values]:
            raise ValueError(f"tune: {empty} in the arm {name!r} is empty; must hold values")
        checked[name] = ({"steps": budget} | arm, grid)
    known = {}
    own = {name: arm for name, arm in checked.items() if isinstance(arm[0].get("build"), types.FunctionType)}
    for other, arm in own.items():
        one, build = known.setdefault(describe(arm), (other, arm[0]["build"]))
        if build is not arm[0]["build"]:
            rule = "a function made in a loop reads the loop's last value: functools.partial keeps each"
            warnings.warn(f"arms: {one!r} and {other!r} do the same; {rule}", stacklevel=3)
    sizes = {name: math.prod(map(len, grid.values())) for name, (_, grid) in checked.items()}
    if len(set(sizes.values())) > 1:
        warnings.warn(f"tune: the arms try different numbers of combinations: {sizes}", stacklevel=3)
    return checked


def _list_trials(grid):
    """What differs from the first values: nothing, any one value, and any two, which may not go together."""
    yield {}
    for n in (1, 2):
        for names in itertools.combinations(grid, n):
            for values in itertools.product(*(grid[name][1:] for name in names)):
                yield dict(zip(names, values, strict=True))


def _try_arms(checked, data, validation, seeds):
    """Train every arm with all values, and pairs, that it may choose for one step: what is bad is said first."""
    for name, (arm, grid) in checked.items():
        part = _split(data, validation)[0] if _has_choice(grid) else {k: data[k] for k in "xy"}
        first = {k: values[0] for k, values in grid.items()}
        for one in _list_trials(grid):
            tried = arm | first | one | {"steps": 1}
            size = tried.get("batch_size", 100)
            some = {k: v[: max(size, 200)] if isinstance(size, int) else v for k, v in part.items()}
            try:
                steps = check_integer((arm | first | one)["steps"], "steps", 1, 10**9)
                _list_factors(tried.get("schedule"), steps)
                with warnings.catch_warnings(), _keep_makers(tried):
                    warnings.filterwarnings("ignore", ".*diverged")
                    stack, _ = _train(tried, some, seeds if np.ndim(tried.get("learning_rate")) else seeds[:2])
                    _score(stack, some["x"][:2], some["y"][:2])
                    x = split_tensors(some, "", len(stack), get_device())[0]
                    for split in ("", "_test"):
                        check_labels(stack, x, torch.as_tensor(data[f"y{split}"])[None], split)
            except ValueError as error:
                raise ValueError(f"arms: {name!r}: {error}") from error
            except Exception as error:
                error.add_note(f"in the arm {name!r}")
                raise


def _has_choice(grid):
    return math.prod(map(len, grid.values())) > 1


def _find_scale(name, values):
    """What a grid goes through, and its values: the keyword in which partials of one function differ, else itself."""
    if not all(isinstance(v, functools.partial) and v.func is values[0].func and not v.args for v in values):
        return name, values

    def differs(key):
        first, *others = (v.keywords.get(key) for v in values)
        simple = numbers.Real, str
        return any(
            v is not first and not (isinstance(v, simple) and isinstance(first, simple) and v == first) for v in others
        )

    keys = [key for key in set().union(*(v.keywords for v in values)) if differs(key)]
    return (f"{name}'s {keys[0]}", [v.keywords.get(keys[0]) for v in values]) if len(keys) == 1 else (name, values)


def _warn_of_edges(arm, dataset, grid, chosen):
    for k, value in chosen.items():
        name, scale = _find_scale(k, list(grid[k]))
        value = next((s for s, v in zip(scale, grid[k], strict=True) if v is value), value)
        tried = sorted({float(v) for v in scale if isinstance(v, numbers.Real) and not isinstance(v, bool)})
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if len(tried) > 1 and is_number and value in (tried[0], tried[-1]) and value != 0:
            text = f"{name}={value:g} is the edge of {', '.join(f'{v:g}' for v in tried)}"
            warnings.warn(f"{arm}, {dataset}: {text}; try values beyond it", stacklevel=3)


def _is_dataset(item):
    return isinstance(item, Mapping) and bool({"x", "x_test", "y_test"} & item.keys())


def _list_datasets(data):
    """Name to dataset, and whether there may be several."""
    rule = "a dataset, make_dataset's arguments, or several of either"
    require(not isinstance(data, (str, bytes, os.PathLike)), "data", data, rule)

    def label(item, otherwise):
        is_arguments = isinstance(item, Mapping) and not _is_dataset(item)
        return (", ".join(f"{k}={v}" for k, v in item.items()) or "MNIST-1D") if is_arguments else otherwise

    is_mapping = isinstance(data, Mapping)
    given = [data.get(name) if is_mapping else getattr(data, name, None) for name in DEFAULTS]
    are_arguments = any(v is not None and not isinstance(v, Mapping) and not hasattr(v, "__dict__") for v in given)
    holds_several = is_mapping and any(isinstance(v, Mapping) or hasattr(v, "__dict__") for v in data.values())
    by_name = holds_several and not _is_dataset(data) and not are_arguments
    several = by_name or (isinstance(data, Iterable) and not is_mapping and not are_arguments)
    if several:
        named = list(data.items()) if by_name else [(label(d, f"dataset {i}"), d) for i, d in enumerate(data, start=1)]
    else:
        named = [("MNIST-1D" if data is None else label(data, "data"), data)]
    for _, item in named:
        good = item is None or isinstance(item, Mapping) or hasattr(item, "__dict__") or are_arguments
        require(good, "data", data, rule)
    names = [name for name, _ in named]
    require(names and len(set(names)) == len(names), "data", names, "one dataset, or several that differ")
    datasets = {name: item if _is_dataset(item) else make_dataset(item) for name, item in named}
    for name, item in datasets.items():
        if lacking := [k for k in KEYS if not hasattr(item.get(k), "__len__") or not len(item[k])]:
            hint = " (what is called x_train and y_train elsewhere is x and y here)" if "x_train" in item else ""
            raise ValueError(f"data: {name!r} has no {lacking}; must have examples to train and to test on{hint}")
        try:
            arrays = {k: np.asarray(item[k]) for k in KEYS if not np.ma.is_masked(item[k])}
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"data: {name!r} must hold arrays ({error})") from None
        require(len(arrays) == len(KEYS), "data", f"{name!r} with masked numbers", "whole")
        datasets[name] = item = arrays
        for split in ("", "_test"):
            kind, lengths = item[f"y{split}"].dtype, [len(item[f"{k}{split}"]) for k in "xy"]
            rule = "integers, as accuracy is compared"
            require(np.issubdtype(kind, np.integer), f"labels y{split} of {name!r}", str(kind), rule)
            require(lengths[0] == lengths[1], f"lengths of x{split}, y{split} of {name!r}", lengths, "equal")
            bad = f"x{split} of {name!r}"
            is_finite = item[f"x{split}"].dtype.kind not in "fc" or np.isfinite(item[f"x{split}"]).all()
            require(is_finite, bad, "with numbers that are not", "finite")
            item[f"y{split}"] = item[f"y{split}"].astype(np.int64)  # whatever their byte order
        shapes = [item[k].shape[1:] for k in ("x", "x_test")]
        require(shapes[0] == shapes[1], f"shapes of an example of x, x_test of {name!r}", shapes, "the same")
        types = [item[k].dtype for k in ("x", "x_test")]
        one, other = ({"f": "f", "i": "i", "u": "i"}.get(t.kind, str(t)) for t in types)  # as tensors
        require(one == other, f"types of x, x_test of {name!r}", [*map(str, types)], "of one kind")
        shapes = [item[k].shape[1:] for k in ("y", "y_test")]
        require(shapes[0] == shapes[1], f"shapes of a label of y, y_test of {name!r}", shapes, "the same")
    return datasets, several


def compare(
    arms: Mapping[str, Callable | Mapping[str, Any]],
    data: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    *,
    seeds: int | Sequence[int] = 10,
    budget: int = 6000,
    tune: Mapping[str, Sequence] | None = None,
    tune_seeds: int = 2,
    validation: float = 0.2,
    margin: float = 0.5,
    cache: str | os.PathLike | None = None,
) -> "Comparison | Comparisons":
    """Compare models, optimisers, losses or whatever else :func:`mnist1d.training.train` takes.

    Parameters
    ----------
    arms : dict
        Name to ``build``, or to a dict of ``build`` and arguments of `train`; the first is the baseline.
        The key "tune" of such a dict takes the place of `tune` for this arm.
    data : dict or sequence of dict, optional
        A dataset, by default the frozen one; arguments of :func:`mnist1d.make_dataset`; or several of either, in a
        sequence or by name, for one comparison each. A dataset's own `x_val` is not used.
    seeds : int or sequence of int
        Of the final runs.
    budget : int
        Steps of every run, unless an arm has `steps`.
    tune : dict, optional
        Argument of `train` to values. Each arm takes the combination of the best mean accuracy on the validation split.
        What `train` does not know is tuned by `build` or `loss`: ``{"build": [partial(MLP, hidden=h) for h in ...]}``.
    tune_seeds : int
        Runs of each combination, as long as the final one, with seeds from 1,000,000 on.
    validation : float
        Fraction of every class of the training examples that the choice is made on. The final run trains on all.
    margin : float
        Largest difference that does not matter, points.
    cache : path-like, optional
        Folder that keeps what has ended, for a call that goes on after an interruption. An arm is known again by its
        name, its arguments, what its functions do, read and hold, its schedule and the outcome of its first three
        steps: empty the folder where one name means two arms that differ in none of these, as in a file that they read
        later, or in torch's own switches.

    Returns
    -------
    Comparison, or Comparisons, a dict by name, for several datasets
        Shows itself as a table and a figure in a notebook; ``print`` gives the table.

    Notes
    -----
    Intervals are t-intervals over seeds, for this one test set and the chosen values; arms are paired by seed. That
    another split or other tuning seeds might have chosen otherwise is not in them, so that of equal arms that choose
    for themselves more than 5% are called better or worse, the more the fewer `tune_seeds` there are.
    Examples are shuffled in every epoch unless an arm has another `order`. Augmentation belongs into the model, under
    ``if self.training:``. What loss and schedule count or collect is set back after every run, and what `build`, the
    optimiser and a model's class do, a generator of one's own say, after every arm. Workers are joblib's,
    as for :func:`mnist1d.training.sweep`. A run that diverges counts as chance, and a combination in which one did is
    not chosen while another is left.
    """
    for name, value in (("budget", budget), ("tune_seeds", tune_seeds)):
        check_integer(value, name, 1, 10**9, "an integer of at least 1")
    check_margin(margin)
    cache = _make_cache(cache)
    is_fraction = isinstance(validation, numbers.Real) and 0 < validation < 1
    require(is_fraction, "validation", validation, "a number between 0 and 1")
    seeds, tuned_on = list_seeds(seeds), list(range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + tune_seeds))
    if len(set(seeds)) < max(2, len(seeds)) or set(seeds) & set(tuned_on):
        raise ValueError(f"seeds={seeds}: must be two or more, all different and none of {tuned_on}")
    checked, (datasets, several) = _check_arms(arms, tune, budget), _list_datasets(data)
    for dataset in datasets.values():
        _try_arms(checked, dataset, validation, seeds)
    variants = {
        (name, arm): (arm, options, grid, dataset, validation, tuned_on, cache)
        for name, dataset in datasets.items()
        for arm, (options, grid) in checked.items()
    }
    ended = {key: results[0] for key, results in sweep(_run_arm, variants, seeds, desc="compare").items()}
    comparisons = Comparisons()
    for name in datasets:
        results, tries, scores, best = zip(*(ended[name, arm] for arm in checked), strict=True)
        chosen = {arm: t[i] for arm, t, i in zip(checked, tries, best, strict=True)}
        for arm, (_, grid) in checked.items():
            _warn_of_edges(arm, name, grid, chosen[arm])
        part = {k: dict(zip(checked, [r[k] for r in results], strict=True)) for k in results[0]}
        for arm, lost in part["diverged"].items():
            if lost:
                warnings.warn(f"{arm}, {name}: seeds {lost} diverged and count as chance", RuntimeWarning, stacklevel=2)
        comparisons[name] = Comparison(
            name, *({arm: np.array(v) for arm, v in part[k].items()} for k in ("accuracy", "train")),
            part["parameters"], part["seconds"], chosen, dict(zip(checked, scores, strict=True)), margin,
            len(datasets), dict(zip(checked, tries, strict=True)), part["diverged"],
        )  # fmt: skip
    return comparisons if several else comparisons[next(iter(datasets))]
