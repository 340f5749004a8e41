"""MNIST-1D: a procedurally generated dataset for small-scale deep-learning experiments.

The generator needs numpy and scipy alone; `mnist1d.compare` loads torch when it is first used.
`mnist1d.models`, `mnist1d.training`, `mnist1d.figures`, `mnist1d.claims` and `mnist1d.images` are imported by name
when a notebook wants them.
"""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from mnist1d import data, utils
from mnist1d.data import (
    get_dataset,
    get_dataset_args,
    get_templates,
    load_human_answers,
    make_dataset,
    reorder,
    to_torch,
    verify,
)
from mnist1d.transform import transform
from mnist1d.utils import ObjectView, from_pickle, plot_signals, set_seed, to_pickle

try:
    __version__ = version("mnist1d")
except PackageNotFoundError:  # used from a checkout that was never installed
    __version__ = "0+unknown"

# `compare` is public too, and not in this list: a star import would load torch.
__all__ = [
    "ObjectView", "__version__", "data", "from_pickle", "get_dataset", "get_dataset_args", "get_templates",
    "load_human_answers", "make_dataset", "plot_signals", "reorder", "set_seed", "to_pickle", "to_torch", "transform",
    "utils", "verify",
]  # fmt: skip


def __getattr__(name):
    if name == "compare":
        try:
            from mnist1d.comparison import compare
        except ModuleNotFoundError as error:
            raise ImportError(f"mnist1d.compare needs {error.name}: pip install 'mnist1d[all]'") from error

        return compare
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return [*__all__, *(["compare"] if find_spec("torch") and find_spec("joblib") else [])]  # not of the core alone
