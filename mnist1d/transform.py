"""The transformations that turn a template into a sample, one signal at a time.

This is the plain form of the generator (paper, Section 3 and Figure 1), for reading and for use on
signals of your own. It draws from numpy's global random state. :func:`mnist1d.make_dataset` does
the same for all samples at once, and a test holds the two against each other.
"""

import numpy as np
from scipy.ndimage import gaussian_filter1d

# Width of the Gaussian that turns white noise into correlated noise, in positions.
CORRELATION_WIDTH = 2

__all__ = ["corr_noise_like", "iid_noise_like", "interpolate", "pad", "shear", "transform", "translate"]


def pad(x, padding):
    """Append a random number of zeros to the last axis.

    Parameters
    ----------
    x : ndarray, shape (length,) or (n, length)
    padding : pair of int
        Least and largest number of zeros, both included.

    Returns
    -------
    ndarray, shape (length + zeros,) or (n, length + zeros)
    """
    low, high = padding
    zeros = low + int(np.random.rand() * (high - low + 1))
    return np.concatenate([x, np.zeros((*x.shape[:-1], zeros))], axis=-1)


def shear(x, scale=10):
    """Subtract a straight line whose slope is uniform in [-scale / 2, scale / 2].

    Parameters
    ----------
    x : ndarray, shape (length,)
    scale : float

    Returns
    -------
    ndarray, shape (length,)
    """
    slope = scale * (np.random.rand() - 0.5)
    return x - slope * np.linspace(-0.5, 0.5, len(x))


def translate(x, max_translation):
    """Shift a signal to the right, around the end, by fewer than `max_translation` positions.

    Parameters
    ----------
    x : ndarray, shape (length,)
    max_translation : int
        0 leaves the signal where it is.

    Returns
    -------
    ndarray, shape (length,)
    """
    shift = np.random.randint(max_translation) if max_translation else 0
    return np.roll(x, shift)


def corr_noise_like(x, scale):
    """Gaussian noise of the shape of `x`, smoothed along the signal.

    Parameters
    ----------
    x : ndarray, shape (length,)
    scale : float
        Standard deviation before smoothing.

    Returns
    -------
    ndarray, shape (length,)
    """
    return gaussian_filter1d(scale * np.random.randn(*x.shape), CORRELATION_WIDTH)


def iid_noise_like(x, scale):
    """White Gaussian noise of the shape of `x` with standard deviation `scale`.

    Parameters
    ----------
    x : ndarray, shape (length,)
    scale : float

    Returns
    -------
    ndarray, shape (length,)
    """
    return scale * np.random.randn(*x.shape)


def interpolate(x, N):
    """Resample a signal linearly at `N` evenly spaced positions, its ends kept.

    Parameters
    ----------
    x : ndarray, shape (length,)
    N : int

    Returns
    -------
    ndarray, shape (N,)
    """
    return np.interp(np.linspace(0, 1, N), np.linspace(0, 1, len(x)), x)


def transform(x, y, args, eps=1e-8):
    """Turn one template into one sample: pad, dilate, scale, translate, add noise, shear, subsample.

    Parameters
    ----------
    x : ndarray, shape (template_len,)
        Template, zero at both ends.
    y : ndarray, shape (template_len,)
        Its positions; they are only resampled.
    args : object
        Needs the attributes of :func:`mnist1d.get_dataset_args` from `padding` to `final_seq_length`.
    eps : float
        Lifts the template off zero, so that noise fills the padding alone.

    Returns
    -------
    x, y : ndarray, shape (final_seq_length,)
    """
    length = args.template_len + args.padding[-1]
    x = interpolate(pad(x + eps, args.padding), length)
    y = interpolate(y, length)
    x = x * (1 + args.scale_coeff * (np.random.rand() - 0.5))
    x = translate(x, args.max_translation)

    # The correlated noise is drawn at every position, so that the number of draws is fixed.
    x = np.where(x != 0, x, corr_noise_like(x, args.corr_noise_scale))
    x = x + iid_noise_like(x, args.iid_noise_scale)

    x = shear(x, args.shear_scale)
    return interpolate(x, args.final_seq_length), interpolate(y, args.final_seq_length)
