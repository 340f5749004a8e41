"""MNIST and CIFAR-10 for the notebooks that compare with them: from a folder, the cache, or a mirror."""

import functools
import gzip
import hashlib
import http.client
import io
import os
import queue
import tarfile
import threading
import time
import warnings
import zipfile
import zlib
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import platformdirs
from sklearn.datasets import load_digits

from mnist1d.utils import open_for_rename

__all__ = ["find_data", "load_cifar10", "load_mnist"]

MNIST_MIRRORS = [
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
]
MNIST_SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
CIFAR10_MIRRORS = ["https://www.cs.toronto.edu/~kriz/"]
CIFAR10_SHA256 = {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"}
SILENCE = 5  # seconds without a byte, after which a mirror is given up
KEYS = ("x_train", "y_train", "x_test", "y_test")


def _cache():
    return Path(platformdirs.user_cache_dir("mnist1d"))


def find_data(name):
    """The path of a data file: in the folder MNIST1D_DATA if it is there, else in the user's cache, else None.

    Parameters
    ----------
    name : str

    Returns
    -------
    pathlib.Path or None
    """
    folder = os.environ.get("MNIST1D_DATA")
    paths = [Path(folder) / name] if folder else []
    return next((path for path in [*paths, _cache() / name] if path.is_file()), None)


def _receive(url, deadline):
    """The content of a URL. A thread receives it: name lookup and connecting obey no timeout of their own."""
    parts = queue.SimpleQueue()

    def receive():
        try:
            with urlopen(url, timeout=SILENCE) as response:
                while part := response.read1(2**20):
                    parts.put(part)
                    if time.monotonic() > deadline:
                        raise TimeoutError("too slow")
            parts.put(b"")
        except (OSError, http.client.HTTPException) as error:
            parts.put(OSError(str(error)))

    threading.Thread(target=receive, daemon=True).start()
    content = []
    try:
        while part := parts.get(timeout=SILENCE):
            if isinstance(part, OSError):
                raise part
            content.append(part)
    except queue.Empty:
        raise TimeoutError(f"silent for {SILENCE} s") from None
    return b"".join(content)


def _fetch(files, mirrors, seconds):
    """The contents of files, given as name to SHA-256 sum, from the cache or a mirror that has `seconds` for all.

    A file whose sum is wrong is never used: in the cache it is reported and replaced.
    """
    found, reasons = {}, []
    for name, digest in files.items():
        path = _cache() / name
        if path.is_file():
            found[name] = path.read_bytes()
            if hashlib.sha256(found[name]).hexdigest() != digest:
                del found[name]
                warnings.warn(f"{path} is damaged; it is fetched again", stacklevel=3)
    for mirror in mirrors:
        deadline = time.monotonic() + seconds
        try:
            for name in [name for name in files if name not in found]:
                content = _receive(mirror + name, deadline)
                if hashlib.sha256(content).hexdigest() != files[name]:
                    raise OSError(f"{name} has a wrong SHA-256 sum")
                with open_for_rename(_cache() / name) as file:
                    file.write(content)
                found[name] = content
        except OSError as error:
            reasons.append(f"{mirror}: {error}")
    if len(found) < len(files):
        raise OSError("; ".join(reasons))
    return [found[name] for name in files]


def _read_npz(path, shape):
    """A dataset from a file that somebody put there, read and checked once a process."""
    return {key: array.copy() for key, array in _read_checked(path, shape, path.stat().st_mtime_ns).items()}


@functools.lru_cache(maxsize=2)
def _read_checked(path, shape, _):
    """The arrays of a file as it was at one time: whatever wrote it, they are checked."""
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            data = {key: file[key] for key in KEYS}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: must be an npz file of {', '.join(KEYS)} ({error})") from error
    for split in ("train", "test"):
        x, y = data[f"x_{split}"], data[f"y_{split}"]
        if (
            x.dtype != np.uint8
            or x.shape != (len(y), *shape)
            or y.dtype.kind not in "iu"
            or not np.isin(y, range(10)).all()
        ):
            raise ValueError(
                f"{path}: x_{split} is {x.dtype} {x.shape}, y_{split} {y.dtype} {y.shape}; "
                f"must be uint8 images {shape} and as many labels from 0 to 9"
            )
        data[f"y_{split}"] = y.astype(np.int64)
    return data


def _read_idx(content):
    """The array of a gzipped IDX file of bytes: a magic number, the shape as big-endian integers, the values."""
    content = gzip.decompress(content)
    shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
    array = np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    return array.copy() if array.ndim > 1 else array.astype(np.int64)


def load_mnist():
    """MNIST, from ``mnist.npz`` in the folder MNIST1D_DATA, else the cache, else a mirror of the original files.

    Returns
    -------
    dict
        `x_train` (60000, 28, 28), `x_test` (10000, 28, 28) uint8; `y_train`, `y_test` int64; `name`, "MNIST".
        Where MNIST cannot be had, a warning says why and these are scikit-learn's 1,797 digits of 8x8 pixels,
        each pixel drawn 3x3 and framed, so that the images are 28x28; `name` then says so, for the figure's title.

    Raises
    ------
    ValueError
        If the file in the folder is not such a dataset.
    """
    if path := find_data("mnist.npz"):
        return {**_read_npz(path, (28, 28)), "name": "MNIST"}
    try:
        files = _fetch(MNIST_SHA256, MNIST_MIRRORS, seconds=30)
        return {**dict(zip(KEYS, map(_read_idx, files), strict=True)), "name": "MNIST"}
    except OSError as error:
        warnings.warn(f"MNIST could not be fetched; 8x8 digits take its place ({error})", stacklevel=2)
    digits = load_digits()
    x = np.round(digits.images * 255 / 16).astype(np.uint8).repeat(3, 1).repeat(3, 2)
    x, y = np.pad(x, ((0, 0), (2, 2), (2, 2))), digits.target.astype(np.int64)
    return {"x_train": x[:1500], "y_train": y[:1500], "x_test": x[1500:], "y_test": y[1500:], "name": "8x8 digits"}


def load_cifar10():
    """A part of CIFAR-10, the same wherever it comes from: the first 10,000 training and 1,000 test images.

    It is read from ``cifar10_subset.npz`` in the folder MNIST1D_DATA, else the cache, else the official binary
    archive (170 MB) is fetched.

    Returns
    -------
    dict or None
        `x_train` (10000, 32, 32, 3), `x_test` (1000, 32, 32, 3) uint8; `y_train`, `y_test` int64; `name`,
        "CIFAR-10". None where it cannot be had; a warning says why.

    Raises
    ------
    ValueError
        If the file in the folder is not such a dataset.
    """
    if path := find_data("cifar10_subset.npz"):
        return {**_read_npz(path, (32, 32, 3)), "name": "CIFAR-10"}
    try:
        (content,) = _fetch(CIFAR10_SHA256, CIFAR10_MIRRORS, seconds=300)
    except OSError as error:
        warnings.warn(f"CIFAR-10 could not be fetched ({error})", stacklevel=2)
        return None
    data = {"name": "CIFAR-10"}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for split, batch, n in (("train", "data_batch_1", 10_000), ("test", "test_batch", 1000)):
            records = archive.extractfile(f"cifar-10-batches-bin/{batch}.bin").read()
            rows = np.frombuffer(records, np.uint8).reshape(-1, 1 + 3 * 32 * 32)[:n]  # label, red, green, blue
            data[f"x_{split}"] = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy()
            data[f"y_{split}"] = rows[:, 0].astype(np.int64)
    return data
