"""The MNIST-1D generator: the frozen dataset by default, any size and difficulty on request."""

import difflib
import functools
import hashlib
import numbers
import os
import warnings

import numpy as np
from scipy.ndimage import gaussian_filter1d

from mnist1d.transform import CORRELATION_WIDTH
from mnist1d.utils import ObjectView, from_pickle, to_pickle

__all__ = ["get_dataset", "get_dataset_args", "get_templates", "make_dataset", "reorder", "to_torch", "verify"]

# Table 2 of the paper. `url` is where the frozen pickle was published; nothing is fetched from it.
DEFAULTS = {
    "num_samples": 5000,
    "train_split": 0.8,
    "template_len": 12,
    "padding": [36, 60],
    "scale_coeff": 0.4,
    "max_translation": 48,
    "corr_noise_scale": 0.25,
    "iid_noise_scale": 0.02,
    "shear_scale": 0.75,
    "shuffle_seq": False,
    "final_seq_length": 40,
    "seed": 42,
    "url": "https://github.com/greydanus/mnist1d/raw/master/mnist1d_data.pkl",
}

# Samples transformed at once: their arrays fit into a processor's cache.
CHUNK = 500

# SHA-256 of the little-endian bytes of the dataset of 2020, signals as float32, labels as int64.
FROZEN_SHA256 = {
    "x": "d53506bddd12d3b72c7153b1ae7f34807724b1dd078a7273809bf9d0792319f6",
    "x_test": "30addc43827c82aafa5db8bc97cea63349ca687e87db2f201cc4f5415d9a4ebd",
    "y": "d97dc7aecec8ad6b5d8f143ba3e9c4bd7e25c420d7dfc2eb990591cfc0ed3e15",
    "y_test": "8de99be3ff9dab15ae0dc072c3d6ced7cf6b33d365888ce4a386fc944489452c",
}

# One row a digit, the pen's horizontal position from the top of the digit to its bottom.
TEMPLATES = [
    [5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5],
    [5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5],
    [5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5],
    [5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5],
    [5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5],
    [5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5],
    [5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5],
    [5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5],
    [5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5],
    [5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5],
]


def get_dataset_args(as_dict=False):
    """The default arguments of the generator (paper, Table 2).

    Parameters
    ----------
    as_dict : bool
        A dict instead of an object with attributes.

    Returns
    -------
    ObjectView or dict
        A fresh copy: change it freely.
    """
    args = {**DEFAULTS, "padding": list(DEFAULTS["padding"])}
    return args if as_dict else ObjectView(args)


def get_templates():
    """The ten digit templates (paper, Figure 1).

    Returns
    -------
    dict
        `x` (10, 12) float64, zero at both ends; `t` (12,) float64 positions; `y` (10,) int64 labels.
    """
    x = np.asarray(TEMPLATES)
    x = x - x.mean(1, keepdims=True)
    x = x / x.std(1, keepdims=True)
    x = x - x[:, :1]
    return {"x": x / 6.0, "t": np.linspace(-5, 5, x.shape[1]) / 6.0, "y": np.arange(10)}


def _read_args(args):
    """A dict of every argument, from None, a dict or any object with attributes."""
    if args is None:
        return get_dataset_args(as_dict=True)
    if isinstance(args, dict):
        given = dict(args)
    else:
        given = {name: getattr(args, name) for name in dir(args) if not name.startswith("_")}
    for name in given:
        nearest = difflib.get_close_matches(name, DEFAULTS, n=1, cutoff=0.85)
        if name not in DEFAULTS and nearest:
            warnings.warn(f"args.{name} has no effect; did you mean {nearest[0]!r}?", stacklevel=3)
    return {name: given.get(name, default) for name, default in get_dataset_args(as_dict=True).items()}


def _require(condition, name, value, rule):
    if not condition:
        raise ValueError(f"{name}={value!r}: must be {rule}")


def _is_number(value, kind=numbers.Real):
    return isinstance(value, kind) and not isinstance(value, bool) and np.isfinite(value)


def _validate(args, templates, label_noise, validation_split):
    """Raise a ValueError that names the first bad argument, its value and the rule."""
    classes, template_len = templates["x"].shape
    for name in ("num_samples", "template_len", "max_translation", "final_seq_length"):
        _require(_is_number(args[name], numbers.Integral), name, args[name], "an integer")
    for name in ("scale_coeff", "corr_noise_scale", "iid_noise_scale", "shear_scale"):
        _require(_is_number(args[name]) and args[name] >= 0, name, args[name], "a finite number, 0 or more")
    n, length = args["num_samples"], args["final_seq_length"]
    _require(n > 0 and n % classes == 0, "num_samples", n, f"a positive multiple of the {classes} classes")
    _require(
        args["template_len"] == template_len, "template_len", args["template_len"], f"the templates' {template_len}"
    )
    try:
        low, high = args["padding"]
        padding_ok = all(_is_number(p, numbers.Integral) for p in (low, high)) and 0 <= low <= high
    except (TypeError, ValueError):
        padding_ok = False
    _require(padding_ok, "padding", args["padding"], "a pair of integers [low, high] with 0 <= low <= high")
    longest = template_len + high
    rule = f"from 0 (no shift) to {longest}, the length of the padded signal"
    _require(0 <= args["max_translation"] <= longest, "max_translation", args["max_translation"], rule)
    _require(length >= 1, "final_seq_length", length, "1 or more")
    split = args["train_split"]
    _require(_is_number(split) and 0 < split <= 1, "train_split", split, "a fraction in (0, 1]")
    _require(
        isinstance(args["shuffle_seq"], (bool, np.bool_, int)), "shuffle_seq", args["shuffle_seq"], "True or False"
    )
    seed = args["seed"]
    seed_ok = seed is None or (_is_number(seed, numbers.Integral) and 0 <= seed < 2**32)
    _require(seed_ok, "seed", seed, "an integer from 0 to 2**32 - 1, or None for a fresh one")
    _require(_is_number(label_noise) and 0 <= label_noise <= 1, "label_noise", label_noise, "a fraction in [0, 1]")
    ok = _is_number(validation_split) and 0 <= validation_split < 1
    _require(ok, "validation_split", validation_split, "a fraction in [0, 1)")


@functools.lru_cache(maxsize=16)
def _interpolation(sources, n_out):
    """Left neighbours (source, n_out) and weights that resample signals of the given lengths."""
    target = np.linspace(0, 1, n_out)
    lows, steps, offsets = [], [], []
    for n_in in sources:
        grid = np.linspace(0, 1, n_in)
        low = np.searchsorted(grid, target, side="right") - 1
        high = np.minimum(low + 1, n_in - 1)
        lows.append(low)
        steps.append(np.where(high > low, grid[high] - grid[low], 1.0))
        offsets.append(target - grid[low])
    return np.stack(lows), np.stack(steps), np.stack(offsets)


def _interpolate_rows(x, low, step, offset):
    """Linear interpolation of each row of x (n, length) at its own positions (n or 1, n_out)."""
    low = np.broadcast_to(low, (len(x), low.shape[-1]))
    left = np.take_along_axis(x, low, 1)
    right = np.take_along_axis(x, np.minimum(low + 1, x.shape[1] - 1), 1)
    # The order of operations of np.interp: slope first, so that equal neighbours stay equal.
    return (right - left) / step * offset + left


def _draw(rng, n, length, max_translation):
    """The random numbers of n samples, in the published order: a sample's draws follow each other."""
    uniform = np.empty((3, n))  # padding, scale, shear
    shift = np.zeros(n, dtype=np.int64)
    normal = np.empty((n, 2, length))  # correlated, white
    for i in range(n):
        uniform[0, i] = rng.random_sample()
        uniform[1, i] = rng.random_sample()
        if max_translation:
            shift[i] = rng.randint(max_translation)
        normal[i] = rng.standard_normal((2, length))
        uniform[2, i] = rng.random_sample()
    return uniform, shift, normal


def _transform_all(x, args, rng, eps=1e-8):
    """Transform templates x (n, template_len) into signals (n, final_seq_length), all at once."""
    n, template_len = x.shape
    low, high = args["padding"]
    length = template_len + high
    (u_pad, u_scale, u_shear), shift, normal = _draw(rng, n, length, args["max_translation"])

    paddings = np.arange(low, high + 1)
    which = (u_pad * len(paddings)).astype(np.int64)
    table = [part[which] for part in _interpolation(tuple(template_len + paddings), length)]
    x = _interpolate_rows(np.pad(x + eps, ((0, 0), (0, high))), *table)
    x *= 1 + args["scale_coeff"] * (u_scale - 0.5)[:, None]
    x = np.take_along_axis(x, (np.arange(length) - shift[:, None]) % length, 1)

    correlated = gaussian_filter1d(args["corr_noise_scale"] * normal[:, 0], CORRELATION_WIDTH, axis=1)
    x = np.where(x != 0, x, correlated) + args["iid_noise_scale"] * normal[:, 1]
    x -= (args["shear_scale"] * (u_shear - 0.5))[:, None] * np.linspace(-0.5, 0.5, length)
    return _interpolate_rows(x, *_interpolation((length,), args["final_seq_length"]))


def _positions(t, args):
    """The templates' positions t (template_len,), resampled as the signals are."""
    length = args["template_len"] + args["padding"][-1]
    t = _interpolate_rows(t[None], *_interpolation((len(t),), length))
    return _interpolate_rows(t, *_interpolation((length,), args["final_seq_length"]))[0]


def make_dataset(args=None, template=None, *, label_noise=0.0, validation_split=0.0):
    """Generate MNIST-1D. With default arguments this is the frozen dataset of 2020.

    Parameters
    ----------
    args : object or dict, optional
        Any object with the attributes of :func:`get_dataset_args`, or a dict; what is missing takes
        its default. `seed` decides every draw; None draws a fresh seed and reports it in a warning.
    template : dict, optional
        `x` (classes, template_len), `t` (template_len,), `y` (classes,) in place of :func:`get_templates`.
    label_noise : float
        Fraction of the training labels, in [0, 1], that are replaced by a *different* class, uniformly.
        Exactly ``round(label_noise * n)`` labels change; the true ones are returned as `y_clean`.
    validation_split : float
        Fraction of every class of the training set, in [0, 1), that is set aside as `x_val`, `y_val`.

    Returns
    -------
    dict
        `x`, `x_test` (n, final_seq_length) float64, zero mean and unit variance over the dataset;
        `y`, `y_test` (n,) int64; `t` (final_seq_length,) float64; `templates`. With `label_noise`
        also `y_clean`; with `validation_split` also `x_val`, `y_val` (their labels stay clean).

    Raises
    ------
    ValueError
        Names the argument, its value and the rule.

    Notes
    -----
    Global random state is neither read nor changed.
    Source: Section 3 and Table 2 of the paper.
    """
    args = _read_args(args)
    templates = get_templates() if template is None else template
    _validate(args, templates, label_noise, validation_split)
    if args["seed"] is None:
        args["seed"] = int(np.random.SeedSequence().generate_state(1)[0])
        warnings.warn(f"seed=None: this dataset is drawn with seed={args['seed']}", stacklevel=2)
    rng = np.random.RandomState(args["seed"])

    per_class = args["num_samples"] // len(templates["y"])
    x = np.repeat(templates["x"], per_class, axis=0)
    x = np.concatenate([_transform_all(x[i : i + CHUNK], args, rng) for i in range(0, len(x), CHUNK)])
    y = np.repeat(templates["y"], per_class)
    order = rng.permutation(len(y))
    x, y = x[order], y[order]
    if args["shuffle_seq"]:
        x = x[:, rng.permutation(args["final_seq_length"])]
    t = _positions(templates["t"], args) / x.std()
    x = (x - x.mean()) / x.std()

    split = int(len(y) * args["train_split"])
    data = {"x": x[:split], "x_test": x[split:], "y": y[:split], "y_test": y[split:], "t": t, "templates": templates}
    if validation_split:
        data.update(_split_validation(data["x"], data["y"], validation_split, np.random.default_rng([args["seed"], 1])))
    if label_noise:
        data["y_clean"] = data["y"]
        noise_rng = np.random.default_rng([args["seed"], 2])
        data["y"] = _flip_labels(data["y"], templates["y"], label_noise, noise_rng)
    return data


def _split_validation(x, y, fraction, rng):
    """Set aside the same fraction of every class, the order of the rest kept."""
    is_val = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        is_val[rng.choice(members, round(fraction * len(members)), replace=False)] = True
    return {"x": x[~is_val], "y": y[~is_val], "x_val": x[is_val], "y_val": y[is_val]}


def _flip_labels(y, classes, fraction, rng):
    """Replace a fraction of the labels, each by one of the other classes with equal chance."""
    y = y.copy()
    flipped = rng.choice(len(y), round(fraction * len(y)), replace=False)
    index = np.searchsorted(classes, y[flipped]) + rng.integers(1, len(classes), len(flipped))
    y[flipped] = classes[index % len(classes)]
    return y


def _cache_key(args, options):
    """A digest of everything that decides the dataset."""
    digest = hashlib.sha256()
    for name, value in sorted({**args, **options}.items()):
        if name != "url":
            digest.update(f"{name}={value!r};".encode() if not isinstance(value, dict) else name.encode())
            for part in value.values() if isinstance(value, dict) else ():
                digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def get_dataset(args, path=None, verbose=True, download=True, regenerate=False, **kwargs):
    """Read a dataset from its cache file, or generate it and write the file.

    Parameters
    ----------
    args : object or dict
        As for :func:`make_dataset`.
    path : path-like, optional
        The cache file; by default ``./mnist1d_data.pkl``, or ``./mnist1d_data_shuffle.pkl`` with `shuffle_seq`.
        A file that holds another dataset, or that is damaged, is replaced.
    verbose : bool
        Print where the data came from.
    download : bool
        Accepted for compatibility. Nothing is downloaded: the frozen dataset is generated in 40 ms.
    regenerate : bool
        Do not read the cache file.
    **kwargs
        Further arguments of :func:`make_dataset`.

    Returns
    -------
    dict
        As :func:`make_dataset` returns it.
    """
    options = _read_args(args)
    path = f"./mnist1d_data{'_shuffle' if options['shuffle_seq'] else ''}.pkl" if path is None else path
    key = _cache_key(options, kwargs)
    reason = "was to be made anew" if regenerate else "does not exist"
    if os.path.exists(path) and not regenerate:
        try:
            data = from_pickle(path)
            if options["seed"] is not None and (
                data.get("key") == key or (_is_frozen(data) and key == _cache_key(DEFAULTS, {}))
            ):
                data.pop("key", None)
                if verbose:
                    print(f"Read {path}")
                return data
            reason = "holds a dataset of other arguments"
        # What a damaged pickle raises depends on which byte is wrong.
        except Exception as error:
            reason = f"could not be read ({type(error).__name__}: {error})"
            warnings.warn(f"{path} {reason}; it is replaced", stacklevel=2)
    data = make_dataset(options, **kwargs)
    to_pickle({**data, "key": key}, path)
    if verbose:
        print(f"Generated the dataset and wrote {path}, which {reason}")
    return data


def reorder(data, order):
    """The same examples with their positions in another order, the same for every example of every split.

    Parameters
    ----------
    data : dict
        From :func:`make_dataset`.
    order : array of int, shape (final_seq_length,)
        A permutation of the positions. `shuffle_seq` of :func:`make_dataset` draws one of its own.

    Returns
    -------
    dict
        `data` with new `x`, `x_test` and, if there is one, `x_val`.
    """
    return {**data, **{key: x[:, order] for key, x in data.items() if key in ("x", "x_val", "x_test")}}


def _digests(data):
    """SHA-256 of the arrays that make the frozen dataset, as FROZEN_SHA256 has them."""
    kinds = {"x": "<f4", "x_test": "<f4", "y": "<i8", "y_test": "<i8"}
    return {
        name: hashlib.sha256(np.ascontiguousarray(data[name]).astype(kind).tobytes()).hexdigest()
        for name, kind in kinds.items()
    }


def _is_frozen(data):
    return FROZEN_SHA256.keys() <= data.keys() and _digests(data) == FROZEN_SHA256


def verify():
    """Tell whether this installation generates the frozen dataset of 2020, float32-identical.

    Returns
    -------
    bool
    """
    return _is_frozen(make_dataset())


def to_torch(data, split="train"):
    """A torch view of one split, for use with a DataLoader.

    Parameters
    ----------
    data : dict
        From :func:`make_dataset`.
    split : {"train", "val", "test"}

    Returns
    -------
    torch.utils.data.TensorDataset
        Pairs of a float32 signal (length,) and an int64 label.

    Raises
    ------
    ValueError
        If the dataset has no such split.
    """
    import torch

    suffix = {"train": "", "val": "_val", "test": "_test"}.get(split)
    splits = [name for name, key in (("train", "x"), ("val", "x_val"), ("test", "x_test")) if key in data]
    _require(split in splits, "split", split, f"one of {splits}")
    x, y = data["x" + suffix], data["y" + suffix]
    return torch.utils.data.TensorDataset(
        torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y, dtype=torch.int64)
    )
