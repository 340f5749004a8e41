"""The MNIST-1D generator: the frozen dataset by default, any size and difficulty on request."""

import contextlib
import dataclasses
import difflib
import hashlib
import inspect
import json
import numbers
import os
import pickle
import types
import warnings
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import gaussian_filter1d

from mnist1d import pickles
from mnist1d.transform import (
    CORRELATION_WIDTH,
    LARGEST,
    check_integer,
    check_padding,
    check_translation,
    interpolate,
    require,
    transform,  # mnist1d 0.0.2 has it, and four of the next, here too
    unwrap_scalar,
)
from mnist1d.utils import ObjectView, expand, from_pickle, open_for_rename, set_seed, to_pickle

if TYPE_CHECKING:
    from torch.utils.data import TensorDataset

__all__ = [
    "ObjectView", "from_pickle", "get_dataset", "get_dataset_args", "get_templates", "load_human_answers",
    "make_dataset", "reorder", "set_seed", "to_pickle", "to_torch", "transform", "verify",
]  # fmt: skip

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

# What the generator can do beyond Table 2.
OPTIONS = {"label_noise": 0.0, "validation_split": 0.0, "factors": False}
# What people write, where the spelling alone does not tell what they mean.
SYNONYMS = {"length": "final_seq_length", "noise": "iid_noise_scale", "random_state": "seed"}

# Numbers transformed at once, 500 samples of the default length: their arrays fit into a processor's cache.
CHUNK = 36_000

# SHA-256 of the little-endian bytes of the dataset of 2020, signals as float32, labels as int64.
FROZEN_SHA256 = {
    "x": "d53506bddd12d3b72c7153b1ae7f34807724b1dd078a7273809bf9d0792319f6",
    "x_test": "30addc43827c82aafa5db8bc97cea63349ca687e87db2f201cc4f5415d9a4ebd",
    "y": "d97dc7aecec8ad6b5d8f143ba3e9c4bd7e25c420d7dfc2eb990591cfc0ed3e15",
    "y_test": "8de99be3ff9dab15ae0dc072c3d6ced7cf6b33d365888ce4a386fc944489452c",
}
FROZEN_T = np.linspace(-5.387535, 5.387535, DEFAULTS["final_seq_length"])  # its positions

# SHA-256 of the answers of the human quiz as one line of JSON.
ANSWERS_SHA256 = "72d7394081d459e9d4f010aba481b6565781b57a8585170f4e0fb268d7bca3e0"

# A file of get_dataset is a pickle that begins with a text and drops it at once (POP): "mnist1d ", the SHA-256 of the
# arguments, the SHA-256 of what follows. Whatever reads pickles skips it.
CACHE = b"\x80\x05\x8c\x88mnist1d "

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


def get_dataset_args(as_dict: bool = False) -> ObjectView | dict[str, Any]:
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


def get_templates() -> dict[str, np.ndarray]:
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


def _nearest(name, cutoff):
    """The argument that somebody who wrote `name` may have meant, or None."""
    names = [*DEFAULTS, *OPTIONS]
    return SYNONYMS.get(name) or next(iter(difflib.get_close_matches(name, names, n=1, cutoff=cutoff)), None)


def _read_attributes(args, names):
    """Those of an object's attributes that it has, as a dict. Others are not touched: they may be costly, or fail."""
    given = {}
    for name in names:
        with contextlib.suppress(AttributeError, KeyError):
            given[name] = getattr(args, name)
    return given


def _list_fields(args):
    """The names of an object's values: attributes, slots, fields, keys; of no method and no property."""
    fields = set(args if isinstance(args, Mapping) else getattr(type(args), "_fields", ()))
    members = []
    with contextlib.suppress(TypeError):  # names that are no text
        members = inspect.getmembers_static(args)
    for name, value in members:
        is_slot = isinstance(value, types.MemberDescriptorType)
        if is_slot or not (callable(value) or hasattr(type(value), "__get__")):
            fields.add(name)
    return sorted(name for name in fields if isinstance(name, str) and not name.startswith("_"))


def _read_args(args, changes):
    """A dict of every argument, from None, a mapping or any object with attributes, and from keywords."""
    given, names = {}, [*DEFAULTS, "label_noise", "validation_split"]
    if isinstance(args, Mapping):  # some make up an attribute for every name
        names = [name for name in names if name in args or inspect.getattr_static(args, name, None) is not None]
    if isinstance(args, Mapping) and not _read_attributes(args, DEFAULTS.keys() & names):
        given = dict(args)
    elif args is not None:
        rule = "a mapping, or an object with at least one argument as its attribute"
        require(not (isinstance(args, type) and dataclasses.is_dataclass(args)), "args", args, "an instance of it")
        given = _read_attributes(args, names)
        require(given, "args", args, rule)
        for name in sorted(given.keys() - DEFAULTS.keys()):
            value = given.pop(name)  # code written for 0.0.2 may mean something of its own by it
            value = value.item() if isinstance(value, np.generic | np.ndarray) and value.size == 1 else value
            if isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 <= value <= 1:
                given[name] = value
            if np.size(value) > 1 or value:
                effect = "changes the data: it is an argument here" if name in given else "has no effect: no fraction"
                warnings.warn(f"args.{name}={value!r} {effect}", stacklevel=4)
        for name in _list_fields(args):
            if name not in DEFAULTS and name not in OPTIONS and (meant := _nearest(name, 0.75)):
                warnings.warn(f"args.{name} has no effect; did you mean {meant!r}?", stacklevel=4)
            elif name == "factors" and _read_attributes(args, [name]).get(name) is True:
                warnings.warn("args.factors=True has no effect; give factors=True as a keyword", stacklevel=4)
    given |= changes
    for name in given:
        if name not in DEFAULTS and name not in OPTIONS:
            meant = _nearest(str(name), 0.6)
            known = f"did you mean {meant!r}?" if meant else f"known are {', '.join([*DEFAULTS, *OPTIONS])}"
            raise ValueError(f"unknown argument {name!r}; {known}")
    defaults = {**get_dataset_args(as_dict=True), **OPTIONS}
    return defaults | {name: value for name, value in given.items() if value is not None or name not in OPTIONS}


def _read_template(template):
    """A template's arrays `x` (classes, length) and `t` (n,), float64, and `y` (classes,), checked."""
    if not isinstance(template, Mapping) or not template.keys() >= {"x", "t", "y"}:
        raise ValueError(f"template={type(template).__name__}: must be a dict of x, t and y")
    arrays = {}
    for name, ndim in (("x", 2), ("t", 1), ("y", 1)):
        try:
            array = np.asarray(template[name])
        except (ValueError, TypeError, RuntimeError):
            raise ValueError(f"template[{name!r}]: must be one array, its rows of the same length") from None
        shape = f"template[{name!r}] has shape {array.shape} and type {array.dtype}"
        if array.ndim != ndim or not array.size:
            raise ValueError(f"{shape}: must have {ndim} axes, none of them empty")
        if name == "y" and array.dtype.kind == "O":  # texts of pandas, say
            array = np.asarray(array.tolist())
        if array.dtype.kind not in ("biuf" if name != "y" else "biufU"):
            raise ValueError(f"{shape}: must be numbers{' or text' if name == 'y' else ''}")
        if name != "y" or array.dtype.kind == "f":
            array = array.astype(np.float64)
            if not (np.abs(array) <= 1e50).all():
                raise ValueError(f"{shape}: must be finite numbers of at most 1e50")
        if array.dtype.kind == "u":
            require(array.max() <= np.iinfo(np.int64).max, f"template[{name!r}]", array.max(), "below 2**63")
        arrays[name] = array.astype(np.int64) if array.dtype.kind in "iu" else array
    if len(arrays["y"]) > len(arrays["x"]):
        raise ValueError(f"template['y'] has {len(arrays['y'])} labels: must be at most the {len(arrays['x'])} shapes")
    return arrays


def _check(args, template):
    """The arguments as plain numbers, or a ValueError that names the first bad one, its value and the rule."""
    args, classes = dict(args), len(template["y"])

    def check(name, good, rule):
        require(good, name, args[name], rule)

    def check_float(name, high, rule):
        value = args[name]
        if isinstance(value, (np.float16, np.float32)):  # the decimal that was meant: 0.7, not 0.69999999
            value = float(str(value))
        value = unwrap_scalar(value)
        check(name, isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 <= value <= high, rule)
        args[name] = float(value)

    rule = f"an integer, {classes} (one sample a class) or more"
    given = check_integer(args["num_samples"], "num_samples", classes, LARGEST, rule)
    n = args["num_samples"] = given - given % classes
    if n < given:
        warnings.warn(f"num_samples={given} is rounded down to {n}, which {classes} classes divide", stacklevel=4)
    for name in ("template_len", "final_seq_length"):
        args[name] = check_integer(args[name], name, 1, LARGEST)
    args["padding"] = check_padding(args["padding"])
    args["max_translation"] = check_translation(args["max_translation"], args["template_len"] + args["padding"][1])
    for name in ("scale_coeff", "corr_noise_scale", "iid_noise_scale", "shear_scale"):
        check_float(name, 1e50, "a finite number from 0 to 1e50")
    for name in ("train_split", "label_noise", "validation_split"):
        check_float(name, 1, "a fraction from 0 to 1")
    for name in ("shuffle_seq", "factors"):
        args[name] = unwrap_scalar(args[name])
        check(name, isinstance(args[name], (numbers.Integral, np.bool_)) and args[name] in (0, 1), "True or False")
        args[name] = bool(args[name])
    rule = f"a fraction that leaves training samples, of {n} none is left"
    check("train_split", n * args["train_split"] >= 1, rule)
    check("label_noise", not args["label_noise"] or len(np.unique(template["y"])) > 1, "0 where there is one label")
    if args["seed"] is not None:
        rule = "an integer from 0 to 2**32 - 1, or None for a fresh one"
        args["seed"] = check_integer(args["seed"], "seed", 0, 2**32 - 1, rule)
    return args


def _resolve(args, template, changes):
    """Every argument and the templates, checked: what decides a dataset."""
    args = _read_args(args, changes)
    template = _read_template(get_templates() if template is None else template)
    args = _check(args, template)
    url = args["url"]
    if url is not None and not (isinstance(url, str) and url == DEFAULTS["url"]):
        warnings.warn(f"args.url={args['url']!r} has no effect: nothing is downloaded", stacklevel=3)
    return args, template


def _draw_seed(args):
    """The arguments with a seed in place of None."""
    if args["seed"] is not None:
        return args
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    warnings.warn(f"seed=None: this dataset is drawn with seed={seed}", stacklevel=3)
    return args | {"seed": seed}


def _neighbours(n_in, n_out):
    """Where n_out evenly spaced positions lie among n_in (n,) of them: left neighbours, weights (n, n_out)."""
    last = np.asarray(n_in)[:, None] - 1
    step = 1 / np.maximum(last, 1)

    def place(index):  # as np.linspace(0, 1, n_in)[index]
        return np.where(index < last, index * step, np.minimum(last, 1))

    target = np.linspace(0, 1, n_out)
    low = np.minimum((target / step).astype(np.int64), last)
    low += (low < last) & (place(low + 1) <= target)
    low -= place(low) > target
    return low, np.where(low < last, place(low + 1) - place(low), 1), target - place(low)


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
    """Signals (n, final_seq_length) of templates x (n, length), all at once; with `factors` what was drawn, too."""
    n, template_len = x.shape
    low, high = args["padding"]
    length = args["template_len"] + high
    (u_pad, u_scale, u_shear), shift, normal = _draw(rng, n, length, args["max_translation"])
    padding = low + (u_pad * (high - low + 1)).astype(np.int64)
    scale = 1 + args["scale_coeff"] * (u_scale - 0.5)
    shear = args["shear_scale"] * (u_shear - 0.5)

    widths, which = np.unique(template_len + padding, return_inverse=True)
    dilate = [part[which] for part in _neighbours(widths, length)]
    subsample = _neighbours([length], args["final_seq_length"])
    line = shear[:, None] * np.linspace(-0.5, 0.5, length)

    x = _interpolate_rows(np.pad(x + eps, ((0, 0), (0, high))), *dilate)
    x *= scale[:, None]
    clean = np.take_along_axis(x, (np.arange(length) - shift[:, None]) % length, 1)
    correlated = gaussian_filter1d(args["corr_noise_scale"] * normal[:, 0], CORRELATION_WIDTH, axis=1)
    x = np.where(clean != 0, clean, correlated) + args["iid_noise_scale"] * normal[:, 1]
    columns = {"x": _interpolate_rows(x - line, *subsample)}
    if args["factors"]:
        columns["clean"] = _interpolate_rows(clean - line, *subsample)
        columns |= {"padding": padding, "scale": scale, "shift": shift, "shear": shear}
    return columns


def _generate(args, template):
    """The dataset of checked arguments."""
    rng = np.random.RandomState(args["seed"])
    per_class = args["num_samples"] // len(template["y"])
    rows = np.repeat(np.arange(len(template["y"])), per_class)
    length = args["template_len"] + args["padding"][1]
    chunk = max(1, CHUNK // length)
    parts = [_transform_all(template["x"][rows[i : i + chunk]], args, rng) for i in range(0, len(rows), chunk)]
    order = rng.permutation(len(rows))
    columns = {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
    del parts
    y = template["y"][rows[order]]
    signals = [name for name in ("x", "clean") if name in columns]
    if args["shuffle_seq"]:
        positions = rng.permutation(args["final_seq_length"])
        columns |= {name: columns[name][:, positions] for name in signals}
    mean, std = columns["x"].mean(), columns["x"].std()
    varies = std > 1e-100 and columns["x"].min() < columns["x"].max()
    require(varies, "iid_noise_scale", args["iid_noise_scale"], "above 0 where nothing else makes the signals vary")
    columns |= {name: (columns[name] - mean) / std for name in signals}
    t = interpolate(interpolate(template["t"], length), args["final_seq_length"]) / std

    split = int(len(y) * args["train_split"])
    x = columns.pop("x")
    data = {"x": x[:split], "x_test": x[split:], "y": y[:split], "y_test": y[split:], "t": t, "templates": template}
    for name, column in columns.items():
        data |= {name: column[:split], f"{name}_test": column[split:]}
    if args["validation_split"]:
        is_val = draw_validation(data["y"], args["validation_split"], np.random.default_rng([args["seed"], 1]))
        for name in ("x", "y", *columns):
            data |= {name: data[name][~is_val], f"{name}_val": data[name][is_val]}
    if args["label_noise"]:
        data["y_clean"] = data["y"]
        noise_rng = np.random.default_rng([args["seed"], 2])
        data["y"] = _flip_labels(data["y"], np.unique(template["y"]), args["label_noise"], noise_rng)
    return data


def make_dataset(args: Any = None, template: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Generate MNIST-1D. With default arguments this is the frozen dataset of 2020.

    Parameters
    ----------
    args : object or mapping, optional
        Any object with the attributes of :func:`get_dataset_args`, of which no other is read, or a mapping; what is
        missing takes its default. `seed` decides every draw; None draws a fresh seed and reports it in a warning.
        Samples that the classes do not divide are left out, with a warning.
    template : mapping, optional
        `x` (classes, length), `t` (length,), `y` (classes,) in place of :func:`get_templates`. Labels are any numbers
        or text, repeated or not; of more shapes than labels the first are used.
    **changes
        Arguments by name, before those in `args`: ``make_dataset(num_samples=100, seed=1)``. Also, in a mapping too:

        label_noise : float
            Fraction of the training labels, in [0, 1], that are replaced by a *different* label, uniformly.
            Exactly ``round(label_noise * n)`` labels change; the true ones are returned as `y_clean`.
        validation_split : float
            Fraction of every class of the training set, in [0, 1), that is set aside as `x_val`, `y_val`.
        factors : bool
            Return what was drawn for each sample, too.

        An object's attributes `label_noise` and `validation_split` count as well.

    Returns
    -------
    dict
        `x`, `x_test` (n, final_seq_length) float64, zero mean and unit variance over the dataset; `y`, `y_test` (n,),
        int64 where the template's labels are integers; `t` (final_seq_length,) float64; `templates`. With
        `label_noise` also `y_clean`; with `validation_split` also `x_val`, `y_val` (their labels stay clean). With
        `factors` for each split (``shear``, ``shear_test``, ``shear_val``) `padding` (n,) int64, the zeros appended
        before the digit was dilated; `scale` (n,) its amplitude; `shift` (n,) int64, positions of the padded signal;
        `shear` (n,) the slope; and `clean` (n, final_seq_length), the signal `x` without either noise, under the same
        standardisation.

    Raises
    ------
    ValueError
        Names the argument, its value and the rule; for an unknown name the nearest.

    Notes
    -----
    Global random state is neither read nor changed.

    Datasets that differ in `scale_coeff`, `corr_noise_scale`, `iid_noise_scale`, `shear_scale`, `final_seq_length`,
    `shuffle_seq`, `train_split`, `factors` or the lower end of `padding` share all their draws, and so do those that
    differ in `label_noise` or `validation_split`: sample for sample they have the same label and differ in that alone,
    up to the standardisation. `template_len`, the upper end of `padding` and `max_translation` change how many numbers
    are drawn, and with that the samples and the order of the labels. With another `num_samples` and the same `seed`
    the first samples that are drawn are the same ones, in another order and other splits: only another `seed` gives
    data that are independent, to test on, say.

    Source: Section 3 and Table 2 of the paper.
    """
    args, template = _resolve(args, template, changes)
    return _generate(_draw_seed(args), template)


def draw_validation(y, fraction, rng, name="validation_split"):
    """A mask (n,) of the same fraction of every class."""
    is_val = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        is_val[rng.choice(members, round(fraction * len(members)), replace=False)] = True
    rule = f"a fraction that sets some samples aside and leaves some, of {len(y)} it sets {is_val.sum()} aside"
    require(0 < is_val.sum() < len(y), name, fraction, rule)
    if lacking := sorted(set(np.unique(y).tolist()) - set(np.unique(y[is_val]).tolist())):
        warnings.warn(f"{name}={fraction}: sets no sample of the classes {lacking} aside", stacklevel=4)
    return is_val


def _flip_labels(y, labels, fraction, rng):
    """Replace a fraction of y (n,), each by one of the other labels (sorted, unique) with equal chance."""
    y = y.copy()
    flipped = rng.choice(len(y), round(fraction * len(y)), replace=False)
    index = np.searchsorted(labels, y[flipped]) + rng.integers(1, len(labels), len(flipped))
    y[flipped] = labels[index % len(labels)]
    return y


def _digest_arguments(args, template):
    """SHA-256 of everything that decides a dataset, as hexadecimal digits."""
    decisive = {name: value for name, value in args.items() if name != "url"}
    digest = hashlib.sha256(repr(sorted(decisive.items())).encode())
    for array in template.values():
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _is_ours(path):
    """Whether get_dataset wrote a file, which may be truncated or have one wrong byte at its start."""
    with open(path, "rb") as file:
        start = file.read(len(CACHE))
    return sum(a != b for a, b in zip(start, CACHE, strict=False)) <= (len(start) == len(CACHE))


def _read_cache(path, key):
    """The dataset in a file that get_dataset wrote, or None, and the reason."""
    try:
        with open(path, "rb") as file:  # what is checked is what is read, whoever replaces the file meanwhile
            start = file.read(len(CACHE)), file.read(64), file.read(64 + 1)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if (start[0], start[2]) != (CACHE, f"{digest}0".encode()):
                raise pickle.UnpicklingError("it is not as it was written")
            if start[1] != key.encode():
                return None, "held a dataset of other arguments"
            file.seek(0)
            return pickles.load(file, {}), "was read"
    except pickle.UnpicklingError as error:
        warnings.warn(f"{path} could not be read ({error}); it is replaced", stacklevel=3)
        return None, "was damaged"


def _read_foreign(path, is_default):
    """The dataset in a file that something else wrote, or None where it is the frozen one and another is wanted.

    What is no dataset is a ValueError: such a file is somebody's, and stays as it is.
    """
    try:
        data = from_pickle(path)
        keys = ("x", "y", "x_test", "y_test")
        good = isinstance(data, dict) and all(isinstance(data.get(key), (np.ndarray, list)) for key in keys)
        if not good or len(data["x"]) != len(data["y"]) or len(data["x_test"]) != len(data["y_test"]):
            raise pickle.UnpicklingError(f"it holds no {', '.join(keys)} that belong together")
    except (pickle.UnpicklingError, TypeError) as error:
        rule = f"a dataset or a new file; this one is left as it is ({error})"
        raise ValueError(f"path={str(path)!r}: must be {rule}") from error
    if _is_frozen(data):
        return data if is_default else None
    text = f"{path} was not written by get_dataset: it is read as it is, whatever the arguments say"
    warnings.warn(text, stacklevel=3)
    return data


def get_dataset(
    args: Any = None,
    path: str | bytes | os.PathLike | None = None,
    verbose: bool = True,
    download: bool = True,
    regenerate: bool = False,
    **kwargs: Any,
) -> dict[str, Any]:
    """Read a dataset from its cache file, or generate it and write the file.

    Parameters
    ----------
    args : object or mapping, optional
        As for :func:`make_dataset`.
    path : path-like, optional
        The cache file; by default ``./mnist1d_data.pkl``, or ``./mnist1d_data_shuffle.pkl`` with `shuffle_seq`.
        It is a pickle of the dataset that any program can load. Where this function wrote it, it belongs to its
        arguments, and is replaced when they change or when it is damaged. A file that it did not write is never
        replaced: a dataset is read as it is, with a warning unless it is the frozen one.
    verbose : bool
        Print where the data came from.
    download : bool
        Accepted for compatibility. Nothing is downloaded: the frozen dataset is generated.
    regenerate : bool
        Do not read the file.
    **kwargs
        Further arguments of :func:`make_dataset`, `template` among them.

    Returns
    -------
    dict
        As :func:`make_dataset` returns it. Where the file cannot be written, a warning says so.

    Raises
    ------
    ValueError
        If an argument is bad, or if there is a file at `path` that is no dataset.
    OSError
        If there is a file at `path` that cannot be read.
    """
    args, template = _resolve(args, kwargs.pop("template", None), kwargs)
    path = expand(f"./mnist1d_data{'_shuffle' if args['shuffle_seq'] else ''}.pkl" if path is None else path)
    key = _digest_arguments(args, template)
    exists = os.path.exists(path)
    ours = not exists or _is_ours(path)
    reason = "was to be made anew" if exists else "did not exist"
    if exists and not regenerate:
        if ours:
            data, reason = _read_cache(path, key)
        else:
            data = _read_foreign(path, key == _digest_arguments(*_resolve(None, None, {})))
        if data is not None:
            if verbose:
                print(f"Read {path}")
            return data
    data = _generate(_draw_seed(args), template)
    if not ours:
        warnings.warn(f"{path} was not written by get_dataset and stays; the new dataset is not kept", stacklevel=2)
        return data
    content = pickle.dumps(data, protocol=5)
    try:
        with open_for_rename(path) as file:
            file.write(CACHE + key.encode() + hashlib.sha256(content).hexdigest().encode() + b"0")
            file.write(content)
            if os.path.exists(path) and not _is_ours(path):
                raise FileExistsError("another program has written it meanwhile")
    except OSError as error:
        warnings.warn(f"{path} cannot be written ({error}): the dataset is not kept", stacklevel=2)
        return data
    if verbose:
        print(f"Generated the dataset and wrote {path}, which {reason}")
    return data


def _check_data(data):
    is_dataset = isinstance(data, Mapping) and {"x", "y"} <= data.keys()
    require(is_dataset, "data", type(data).__name__, "a dict from make_dataset, with x and y")


def reorder(data: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
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
        `data` with new `x`, `x_test` and, if there are any, `x_val`, `clean`, `clean_test`, `clean_val`.

    Raises
    ------
    ValueError
        If `order` does not name every position once, `data` is no such dict, or its signals differ in length.
    """
    _check_data(data)
    try:
        order = np.asarray(order)
    except ValueError as error:
        raise ValueError(f"order={order!r}: must name each position once ({error})") from None
    signals = [name + suffix for name in ("x", "clean") for suffix in ("", "_val", "_test") if name + suffix in data]
    shape = np.shape(data["x"])[1:2]
    for name in signals:
        good = shape and np.shape(data[name])[1:2] == shape and not np.ma.is_masked(data[name])
        require(good, f"shape of {name}", np.shape(data[name]), "(n, final_seq_length), whole, as that of x")
    length = shape[0]
    is_permutation = order.shape == (length,) and order.dtype.kind in "iu" and (np.sort(order) == range(length)).all()
    if not is_permutation:
        raise ValueError(f"order={order.tolist()!r}: must name each of the {length} positions once")
    return {**data, **{name: np.asarray(data[name])[:, order] for name in signals}}


def _is_frozen(data):
    """Whether the arrays are those of FROZEN_SHA256, and the positions `t` theirs."""
    for name, digest in FROZEN_SHA256.items():
        n, length, array = 1000 if name.endswith("_test") else 4000, DEFAULTS["final_seq_length"], data[name]
        shape, kinds, kind = ((n, length), "f", "<f4") if name.startswith("x") else ((n,), "iu", "<i8")
        if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds or array.shape != shape:
            return False
        if hashlib.sha256(array.astype(kind).tobytes()).hexdigest() != digest:
            return False
    t = data.get("t", FROZEN_T)
    is_row = isinstance(t, np.ndarray) and t.shape == FROZEN_T.shape and t.dtype.kind in "fiu"
    return is_row and np.allclose(t, FROZEN_T)


def verify() -> bool:
    """Tell whether this installation generates the frozen dataset of 2020, float32-identical.

    Returns
    -------
    bool
    """
    return _is_frozen(make_dataset())


def load_human_answers() -> dict[str, np.ndarray]:
    """The answers of one person to the public quiz: 400 samples of the frozen test set, 383 answered right.

    Returns
    -------
    dict
        `test_index`, positions in `x_test`, all different; `guess`; `label`; each (400,) int64.

    Raises
    ------
    ValueError
        If the file of the package is damaged.
    """
    file = resources.files("mnist1d").joinpath("human_answers.json")
    try:
        answers = json.loads(file.read_text(encoding="utf-8"))
        good = hashlib.sha256(json.dumps(answers).encode()).hexdigest() == ANSWERS_SHA256
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"{file}: must hold test_index, guess and label of 400 answers; install the package again")
    return {name: np.array(values, dtype=np.int64) for name, values in answers.items()}


def to_torch(data: Mapping[str, Any], split: str = "train") -> "TensorDataset":
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
        If the dataset has no such split, signals that are no real numbers, or labels that are no integers of 64 bits,
        or `data` is no such dict.
    """
    import torch

    _check_data(data)
    suffixes = {"train": "", "val": "_val", "test": "_test"}
    splits = [name for name, suffix in suffixes.items() if "x" + suffix in data]
    require(split in splits, "split", split, f"one of {splits}")
    x, y = data["x" + suffixes[split]], data.get("y" + suffixes[split])
    good = y is not None and len(x) == len(y) and not any(map(np.ma.is_masked, (x, y)))
    require(good, "split", split, "one whose x has a whole y of the same length")

    def convert(value):
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().resolve_conj().resolve_neg()
            value = value.float() if value.dtype == torch.bfloat16 else value
        return np.asarray(value)

    x, y = convert(x), convert(y)
    require(x.dtype.kind in "biuf", "type of the signals", str(x.dtype), "real numbers")
    require(y.dtype.kind in "biu", "type of the labels", str(y.dtype), "integers")
    largest = int(y.max(initial=0))
    require(largest < 2**63, "largest label", largest, "below 2**63")
    return torch.utils.data.TensorDataset(torch.tensor(x.astype(np.float32)), torch.tensor(y.astype(np.int64)))
