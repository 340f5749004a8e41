"""Small helpers: seeding, safe pickles, attribute views, a quick plot, files that appear by rename."""

import argparse
import errno
import operator
import os
import pickle
import random
import secrets
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from mnist1d import pickles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ObjectView", "expand", "from_pickle", "open_for_rename", "plot_signals", "set_seed", "to_pickle"]


def __getattr__(name):
    """`transform`, which mnist1d 0.0.2 has here: its module uses this one."""
    if name != "transform":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mnist1d.transform import transform

    return transform


class ObjectView:
    """Attribute access to a dict: ``ObjectView({"seed": 42}).seed == 42``."""

    def __init__(self, d: dict[str, Any]) -> None:
        self.__dict__ = d


def set_seed(seed: int | None) -> None:
    """Seed python's, numpy's and, if it is loaded, torch's global random state.

    Parameters
    ----------
    seed : int or None
        From 0 to 2**32 - 1; None seeds from the system.

    Raises
    ------
    ValueError
        If `seed` lies outside; nothing has been seeded then.
    """
    with suppress(TypeError):
        seed = seed if seed is None else operator.index(seed)
    if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**32):
        raise ValueError(f"seed={seed!r}: must be None or an integer from 0 to 2**32 - 1")
    random.seed(seed)
    np.random.seed(seed)
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        if seed is None:
            torch.seed()
        elif torch.accelerator.current_accelerator() is not None:
            torch.manual_seed(seed)
        else:  # the same, without milliseconds of notes for devices that this torch has not
            torch.default_generator.manual_seed(seed)


def expand(path: str | bytes | os.PathLike) -> Path:
    """A path in which ``~`` is the user's home folder."""
    return Path(os.path.expanduser(os.fsdecode(path)))


@contextmanager
def open_for_rename(path: str | bytes | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """Open a temporary file beside `path` that takes its name when the block ends without an error.

    Readers see the old file or the new one, never a part of it. What a link points to is replaced, not the link.

    Parameters
    ----------
    path : path-like
        Its folder is made if need be.
    mode : {"wb", "w"}
        Text is written as UTF-8, with the same line ends on every system.
    """
    path = Path(os.path.realpath(expand(path)))
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    if path.exists() and not path.is_file():  # a device takes no other name; a folder is an OSError
        with open(path, mode, **text) as file:
            yield file
        return
    if path.exists() and not os.access(path, os.W_OK):  # a rename would ask the folder alone
        raise PermissionError(errno.EACCES, "is write-protected", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}")
    try:
        with open(temporary, mode.replace("w", "x"), **text) as file:
            yield file
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def to_pickle(thing: Any, path: str | bytes | os.PathLike) -> None:
    """Pickle `thing` to `path` in one step, with protocol 5.

    What :func:`from_pickle` will refuse is written too; a warning says so.

    Parameters
    ----------
    thing : object
    path : path-like
    """
    with open_for_rename(path) as file:
        pickle.dump(thing, file, protocol=5)
    if expand(path).is_file():
        try:
            from_pickle(path)
        except pickle.UnpicklingError as error:
            warnings.warn(f"written, but from_pickle will not read it: {error}", stacklevel=2)


def from_pickle(path: str | bytes | os.PathLike, trusted: bool = False) -> Any:
    """Read a pickle of numbers, text, arrays and plain containers. No code in the file is ever run.

    Parameters
    ----------
    path : path-like
    trusted : bool
        Read it as `pickle.load` does, whatever it holds. The file may then run any code: be sure who wrote it.

    Returns
    -------
    object

    Raises
    ------
    pickle.UnpicklingError
        If the file is damaged, or holds anything but numbers, text, numpy arrays of them and plain containers
        (`ObjectView` and `argparse.Namespace` among them). A damaged file that is `trusted` can raise anything.
    OSError
        If there is no such file, or it cannot be read.
    """
    with open(expand(path), "rb") as file:
        if trusted:
            return pickle.load(file)
        classes = {"argparse.Namespace": argparse.Namespace, "mnist1d.utils.ObjectView": ObjectView}
        try:
            return pickles.load(file, classes)
        except pickle.UnpicklingError as error:
            is_old, way_out = "Python 2" in str(error), ""
            if str(error).startswith("refused"):
                reader = "pickle.load(file, encoding='latin1')" if is_old else "from_pickle(path, trusted=True)"
                way_out = f"; {reader} reads any pickle and runs what it names"
            raise pickle.UnpicklingError(f"{path}: {error}{way_out}") from error


def plot_signals(
    xs: np.ndarray,
    t: np.ndarray,
    labels: Sequence[int] | None = None,
    args: Any = None,
    ratio: float = 2.6,
    do_transform: bool = False,
    dark_mode: bool = False,
    zoom: float = 1,
) -> "Figure":
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
        raise ValueError("args=None: do_transform=True needs the arguments of the transformation")
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


def show_written(*paths):
    """Print where files were written, in a notebook with links."""
    try:
        names = [os.path.relpath(path) for path in paths]
    except ValueError:  # on another drive of Windows
        names = [os.path.abspath(path) for path in paths]
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if hasattr(shell, "kernel"):
        links = ", ".join(f'<a href="{name}">{name}</a>' for name in names)
        shell.display_pub.publish({"text/plain": f"wrote {', '.join(names)}", "text/html": f"wrote {links}"})
    else:
        print("wrote", ", ".join(names))
