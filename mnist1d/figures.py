"""The look of every figure."""

import platform
import string
from collections.abc import Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from mnist1d.settings import get_device, get_jobs, output_folder, profile, start_clock
from mnist1d.utils import open_for_rename, show_written

__all__ = [
    "ACTIVATION_COLORS", "COLORS", "DOUBLE", "SINGLE", "assign_colors", "label_panels", "plot_mean", "save_figure",
    "setup",
]  # fmt: skip

SINGLE, DOUBLE = 3.25, 6.75  # widths of one and of two columns of the paper, inches

# One colour per model in the whole collection (the Okabe-Ito palette), and for the roles that recur.
COLORS = {
    "logistic": "#D55E00", "MLP": "#009E73", "CNN": "#0072B2", "GRU": "#E69F00", "human": "#999999", "train": "#999999",
    "test": "#0072B2", "dense": "#000000", "random": "#D55E00", "ticket": "#0072B2", "other": "#CC79A7",
}  # fmt: skip

# Of activation functions, whose notebooks have colour maps for everything else.
ACTIVATION_COLORS = {
    "learned": "#000000", "ReLU": "#0072B2", "ELU": "#E69F00", "Swish": "#009E73", "GELU": "#D55E00", "tanh": "#CC79A7",
    "sigmoid": "#56B4E9", "softplus": "#8C564B",
}  # fmt: skip

SPARE = ["#CC79A7", "#56B4E9", "#F0E442", "#000000", "#D55E00", "#009E73", "#0072B2", "#E69F00"]  # for other names

STYLE = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.6, "lines.linewidth": 1.2, "figure.dpi": 110, "savefig.dpi": 200,
    "figure.constrained_layout.use": True, "pdf.fonttype": 42,
}  # fmt: skip


def setup() -> None:
    """Set the style of all plots and one thread a process, start the notebook's clock, print versions and device."""
    start_clock()
    plt.rcParams.update(STYLE)
    torch.set_num_threads(1)  # sweeps have a process on each core; and sums round alike on any number of cores
    versions = f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    print(f"{versions}, matplotlib {matplotlib.__version__}; {get_device()}, {get_jobs()} jobs; profile {profile()}")


def save_figure(fig: Figure, name: str, alt: str | None = None) -> None:
    """Write a figure as PNG and PDF, without dates, each in one step, and say where.

    Parameters
    ----------
    fig : matplotlib.figure.Figure
    name : str
        The notebook's slug, or the slug and a suffix, without folder or extension.
    alt : str, optional
        What the picture shows, for those who cannot see it: becomes the files' description.
    """
    dateless = {
        "png": {"Software": None, "Description": alt},
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None, "Subject": alt},
    }
    paths = [output_folder() / f"{name}.{kind}" for kind in dateless]
    for path, (kind, metadata) in zip(paths, dateless.items(), strict=True):
        with open_for_rename(path) as file:
            fig.savefig(file, format=kind, metadata=metadata)
    show_written(*paths)


def plot_mean(ax: Axes, x: ArrayLike, samples: ArrayLike, **style: Any) -> Line2D:
    """Draw the mean over seeds as a line and one standard deviation on either side as a band.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    x : array, shape (n,)
    samples : array, shape (seed, n)
    **style
        Passed to ``ax.plot``.

    Returns
    -------
    matplotlib.lines.Line2D
    """
    samples = np.ma.filled(np.ma.asarray(samples, dtype=float), np.nan)  # a mask leaves a gap
    mean = samples.mean(0)
    spread = samples.std(0, ddof=1) if len(samples) > 1 else np.zeros_like(mean)
    (line,) = ax.plot(x, mean, **style)
    ax.fill_between(x, mean - spread, mean + spread, color=line.get_color(), alpha=0.2, linewidth=0)
    return line


def assign_colors(names: Sequence[str]) -> dict[str, str]:
    """A colour for every name: that of `COLORS` where it has one, else one of its own as long as there are any.

    Parameters
    ----------
    names : sequence of str

    Returns
    -------
    dict of str to color
    """
    known = {name: COLORS[name] for name in names if name in COLORS}
    spare = [*SPARE, *map(matplotlib.colors.to_hex, plt.get_cmap("tab20b").colors)]
    free = [color for color in spare if color not in known.values()]
    others = [name for name in names if name not in COLORS]
    return known | {name: free[i % len(free)] for i, name in enumerate(others)}


def label_panels(axes: Axes | Sequence[Axes] | np.ndarray) -> None:
    """Write a, b, c ... at the upper left of each panel."""
    for letter, ax in zip(string.ascii_lowercase, np.ravel(axes), strict=False):
        ax.set_title(letter, loc="left", fontweight="bold")
