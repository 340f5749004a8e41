"""MNIST and CIFAR-10 for the notebooks that compare with them: from a folder, the cache, or a mirror."""

import os
from pathlib import Path

import numpy as np
import platformdirs

__all__ = ["find_data", "load_cifar10", "load_mnist"]


def find_data(name):
    """The path of a data file: in the folder MNIST1D_DATA if it is there, else in the user's cache, else None.

    Parameters
    ----------
    name : str

    Returns
    -------
    pathlib.Path or None
    """
    folders = [os.environ.get("MNIST1D_DATA"), platformdirs.user_cache_dir("mnist1d")]
    paths = [Path(folder) / name for folder in folders if folder]
    return next((path for path in paths if path.is_file()), None)


def load_mnist():
    with np.load(find_data("mnist.npz"), allow_pickle=False) as file:
        return dict(file)


def load_cifar10():
    with np.load(find_data("cifar10_subset.npz"), allow_pickle=False) as file:
        return dict(file)
