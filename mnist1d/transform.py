"""The transformations that turn a template into a sample, one signal at a time.

This is the plain form of the generator (paper, Section 3 and Figure 1), for reading and for use on
signals of your own. It draws from numpy's global random state. :func:`mnist1d.make_dataset` does
the same for all samples at once, and a test holds the two against each other.

A signal is an array (length,) or (length, channels); positions run along its first axis.
"""

import numbers
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter1d

from mnist1d.utils import ObjectView

# Width of the Gaussian that turns white noise into correlated noise, in positions.
CORRELATION_WIDTH = 2
# No array of an ordinary machine has an axis that is longer; sums of sizes stay exact.
LARGEST = 2**31 - 1
NEEDED = (  # by `transform`
    "template_len", "padding", "scale_coeff", "max_translation", "corr_noise_scale", "iid_noise_scale", "shear_scale",
    "final_seq_length",
)  # fmt: skip

__all__ = ["corr_noise_like", "iid_noise_like", "interpolate", "pad", "shear", "transform", "translate"]


def require(condition: bool, name: str, value: Any, rule: str) -> None:
    """Raise a ValueError that names an argument, its value and the rule, unless the condition holds."""
    if not condition:
        raise ValueError(f"{name}={value!r}: must be {rule}")


def unwrap_scalar(value: Any) -> Any:
    """The number in an array or tensor without axes; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def check_integer(value: Any, name: str, low: int, high: int = 2**63 - 1, rule: str | None = None) -> int:
    """The value as an int, or a ValueError."""
    value = unwrap_scalar(value)
    good = isinstance(value, numbers.Integral) and not isinstance(value, bool) and low <= value <= high
    at_least = f"an integer of at least {low}" if high == 2**63 - 1 else f"an integer from {low} to {high}"
    require(good, name, value, rule or at_least)
    return int(value)


def list_seeds(seeds: int | Sequence[int]) -> list[int]:
    """The seeds 0 to n - 1 of an integer n, or those that are given; a ValueError where there are none."""
    rule = "an integer of at least 1, or a sequence of integers from 0 to 2**32 - 1"
    if isinstance(seeds, numbers.Integral):
        return list(range(check_integer(seeds, "seeds", 1, 2**32 - 1, rule)))
    require(isinstance(seeds, Iterable) and not isinstance(seeds, (str, bytes, Set, Mapping)), "seeds", seeds, rule)
    seeds = np.atleast_1d(seeds).tolist() if hasattr(seeds, "tolist") else list(seeds)
    good = [isinstance(s, numbers.Integral) and not isinstance(s, bool) and 0 <= s < 2**32 for s in seeds]
    require(bool(seeds) and all(good), "seeds", seeds, rule)
    return [int(seed) for seed in seeds]


def check_padding(padding: Any) -> tuple[int, int]:
    """The least and the largest number of zeros, or a ValueError."""
    try:
        low, high = (check_integer(zeros, "padding", 0, LARGEST) for zeros in padding)
        good = low <= high and not isinstance(padding, (Set, Mapping))  # which have no order
    except (TypeError, ValueError):
        good = False
    require(good, "padding", padding, "a pair of integers [low, high] with 0 <= low <= high")
    return low, high


def check_translation(max_translation: Any, length: int) -> int:
    """The number of possible shifts, or a ValueError."""
    rule = f"an integer from 0 (no shift) to {length}, the length of the padded signal"
    return check_integer(max_translation, "max_translation", 0, length, rule)


def pad(x: np.ndarray, padding: Sequence[int]) -> np.ndarray:
    """Append a random number of zeros to the last axis.

    Parameters
    ----------
    x : ndarray, shape (length,) or (n, length)
    padding : pair of int
        Least and largest number of zeros, both included.

    Returns
    -------
    ndarray, shape (length + zeros,) or (n, length + zeros)

    Raises
    ------
    ValueError
        If `padding` is no such pair.
    """
    low, high = check_padding(padding)
    zeros = low + int(np.random.rand() * (high - low + 1))
    return np.concatenate([x, np.zeros((*np.shape(x)[:-1], zeros))], axis=-1)


def shear(x: np.ndarray, scale: float = 10) -> np.ndarray:
    """Subtract a straight line whose slope is uniform in [-scale / 2, scale / 2].

    Parameters
    ----------
    x : ndarray, shape (length,) or (length, channels)
    scale : float

    Returns
    -------
    ndarray of the shape of `x`
    """
    slope = scale * (np.random.rand() - 0.5)
    return x - slope * np.linspace(-0.5, 0.5, len(x)).reshape(-1, *[1] * (np.ndim(x) - 1))


def translate(x: np.ndarray, max_translation: int) -> np.ndarray:
    """Shift a signal to the right, around the end, by fewer than `max_translation` positions.

    Parameters
    ----------
    x : ndarray, shape (length,) or (length, channels)
    max_translation : int
        From 0, which leaves the signal where it is, to its length.

    Returns
    -------
    ndarray of the shape of `x`

    Raises
    ------
    ValueError
        If `max_translation` is out of range.
    """
    max_translation = check_translation(max_translation, len(x))
    return np.roll(x, np.random.randint(max_translation) if max_translation else 0, axis=0)


def corr_noise_like(x: np.ndarray, scale: float) -> np.ndarray:
    """Gaussian noise of the shape of `x`, smoothed along the signal.

    Parameters
    ----------
    x : ndarray, shape (length,) or (length, channels)
    scale : float
        Standard deviation before smoothing.

    Returns
    -------
    ndarray of the shape of `x`
    """
    return gaussian_filter1d(scale * np.random.randn(*np.shape(x)), CORRELATION_WIDTH, axis=0)


def iid_noise_like(x: np.ndarray, scale: float) -> np.ndarray:
    """White Gaussian noise of the shape of `x` with standard deviation `scale`.

    Parameters
    ----------
    x : ndarray
    scale : float

    Returns
    -------
    ndarray of the shape of `x`
    """
    return scale * np.random.randn(*np.shape(x))


def interpolate(x: np.ndarray, N: int) -> np.ndarray:
    """Resample a signal linearly at `N` evenly spaced positions, its ends kept.

    Parameters
    ----------
    x : ndarray, shape (length,) or (length, channels)
    N : int
        1 or more.

    Returns
    -------
    ndarray, shape (N,) or (N, channels)

    Raises
    ------
    ValueError
        If `N` is no such number.
    """
    new, old = np.linspace(0, 1, check_integer(N, "N", 1, LARGEST)), np.linspace(0, 1, len(x))
    return np.apply_along_axis(lambda channel: np.interp(new, old, channel), 0, x)


def transform(x: np.ndarray, y: np.ndarray, args: Any, eps: float = 1e-8) -> tuple[np.ndarray, np.ndarray]:
    """Turn one template into one sample: pad, dilate, scale, translate, add noise, shear, subsample.

    Parameters
    ----------
    x : ndarray, shape (template_len,)
        Template, zero at both ends.
    y : ndarray, shape (template_len,)
        Its positions; they are only resampled.
    args : object or mapping
        Needs the arguments of :func:`mnist1d.get_dataset_args` from `template_len` to `final_seq_length`.
    eps : float
        Lifts the template off zero, so that correlated noise fills the padding alone.

    Returns
    -------
    x, y : ndarray, shape (final_seq_length,)

    Raises
    ------
    ValueError
        If an argument is missing, of another shape or type, or a number of positions is out of range.
    """
    require(args is not None, "args", args, "an object or a mapping of arguments")
    args = ObjectView(dict(args)) if isinstance(args, Mapping) else args
    missing = [name for name in NEEDED if not hasattr(args, name)]
    require(not missing, "missing in args", missing, f"none of {', '.join(NEEDED)}")
    check_integer(args.template_len, "template_len", 1, LARGEST)
    check_integer(args.final_seq_length, "final_seq_length", 1, LARGEST)
    for name in ("scale_coeff", "corr_noise_scale", "iid_noise_scale", "shear_scale"):
        value = unwrap_scalar(getattr(args, name))
        require(isinstance(value, numbers.Real), name, value, "a number")
    for name, values in (("x", x), ("y", y)):
        rule = "(template_len,), one signal without channels" if name == "x" else "(template_len,), its positions"
        require(np.ndim(values) == 1 and np.size(values), f"shape of {name}", np.shape(values), rule)
    length = args.template_len + check_padding(args.padding)[1]
    x = interpolate(pad(np.asarray(x) + eps, args.padding), length)
    y = interpolate(y, length)
    x = x * (1 + args.scale_coeff * (np.random.rand() - 0.5))
    x = translate(x, args.max_translation)

    # The correlated noise is drawn at every position, so that the number of draws is fixed.
    x = np.where(x != 0, x, corr_noise_like(x, args.corr_noise_scale))
    x = x + iid_noise_like(x, args.iid_noise_scale)

    x = shear(x, args.shear_scale)
    return interpolate(x, args.final_seq_length), interpolate(y, args.final_seq_length)
