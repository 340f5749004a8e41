"""Small helpers that existing code imports: seeding, safe pickles, attribute views, a quick plot."""

import os
import pickle
import random
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

__all__ = ["ObjectView", "from_pickle", "open_for_rename", "plot_signals", "set_seed", "to_pickle"]


class ObjectView:
    """Attribute access to a dict: ``ObjectView({"seed": 42}).seed == 42``."""

    def __init__(self, d):
        self.__dict__ = d


def set_seed(seed):
    """Seed python's, numpy's and, if it is loaded, torch's global random state.

    Parameters
    ----------
    seed : int
    """
    random.seed(seed)
    np.random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


@contextmanager
def open_for_rename(path, mode="wb"):
    """Open a temporary file beside `path` that takes its name when the block ends without an error.

    Readers see the old file or the new one, never a part of it.

    Parameters
    ----------
    path : path-like
    mode : {"wb", "w"}
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, mode) as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def to_pickle(thing, path):
    """Pickle `thing` to `path` in one step.

    Parameters
    ----------
    thing : object
    path : path-like
    """
    with open_for_rename(path) as file:
        pickle.dump(thing, file, protocol=3)


class _DataUnpickler(pickle.Unpickler):
    """Reads numpy arrays and plain containers; refuses every other name before it is imported."""

    ALLOWED = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
        ("collections", "OrderedDict"),
        ("argparse", "Namespace"),
        ("mnist1d.utils", "ObjectView"),
        *(
            (f"numpy.{core}.{module}", name)
            for core in ("core", "_core")
            for module, name in [("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer")]
        ),
        *(("builtins", name) for name in ("set", "frozenset", "complex", "slice", "range", "bytearray")),
    }

    def find_class(self, module, name):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}: only arrays and plain containers are read")
        return super().find_class(module, name)


def from_pickle(path):
    """Read a pickle of arrays and plain containers. No code in the file is ever run.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    object

    Raises
    ------
    pickle.UnpicklingError
        If the file is damaged or names anything but numpy arrays and plain containers.
    """
    with open(path, "rb") as file:
        return _DataUnpickler(file).load()


def plot_signals(xs, t, labels=None, args=None, ratio=2.6, do_transform=False, dark_mode=False, zoom=1):
    """Draw the first ten signals side by side, the position running down the page.

    Parameters
    ----------
    xs : ndarray, shape (n, length)
    t : ndarray, shape (length,)
    labels : sequence of int, optional
    args : object, optional
        As for :func:`mnist1d.transform`; needed with `do_transform`.
    ratio : float
        Height of a panel over its width.
    do_transform : bool
        Draw a random transformation of each signal.
    dark_mode : bool
        White dots on black.
    zoom : float
        Both axes run from -zoom to zoom.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        With `do_transform` and no `args`.
    """
    import matplotlib.pyplot as plt

    from mnist1d.transform import transform

    if do_transform and args is None:
        raise ValueError("args is None: do_transform=True needs the arguments of the transformation")
    columns = min(10, len(xs))
    fig, axes = plt.subplots(1, columns, figsize=(columns * 1.5, 1.5 * ratio), dpi=60, squeeze=False, layout="tight")
    for i, ax in enumerate(axes[0]):
        x, positions = transform(xs[i], t, args) if do_transform else (xs[i], t)
        ax.plot(x, positions, "wo" if dark_mode else "k-", linewidth=6 if dark_mode else 2)
        if dark_mode:
            ax.set_facecolor("k")
        if labels is not None:
            ax.set_title(f"label={labels[i]}", fontsize=22)
        ax.set(xlim=(-zoom, zoom), ylim=(zoom, -zoom), xticks=[], yticks=[])
    plt.show()
    return fig
