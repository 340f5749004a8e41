"""MNIST and CIFAR-10 for the notebooks that compare with them: from a folder, the cache, or a mirror."""

import functools
import gzip
import hashlib
import http.client
import io
import math
import os
import queue
import tarfile
import threading
import time
import warnings
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import platformdirs

from mnist1d.utils import expand, open_for_rename

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
# Of the arrays of the npz files, labels as int64, in the order of KEYS: others have no claim to the name.
CONTENT_SHA256 = {
    "MNIST": "1e35582d42a90940c55b956deb61875c020b567ed20e3c5b174f52bf7809ed9b",
    "CIFAR-10": "43c2d3963f7316ad0ebacbd41025fb57d6cb4d12f561732593e2dd08771a1253",
}
CIFAR10_MIRRORS = ["https://www.cs.toronto.edu/~kriz/"]
CIFAR10_SHA256 = {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"}
SILENCE = 5  # seconds without a byte, after which a mirror is given up
PAUSE = 60  # seconds in which a mirror that has failed is not asked again: a sweep loads images for every task
KEYS = ("x_train", "y_train", "x_test", "y_test")
MOST = 100_000  # images a split of a file that somebody put there


_failed = {}  # mirror: until when it is not asked


def _cache():
    return Path(platformdirs.user_cache_dir("mnist1d"))


def find_data(name: str) -> Path | None:
    """The path of a data file: in the folder MNIST1D_DATA if it is there, else in the user's cache, else None.

    Parameters
    ----------
    name : str

    Returns
    -------
    pathlib.Path or None

    Raises
    ------
    ValueError
        If MNIST1D_DATA names no folder.
    """
    folder = os.environ.get("MNIST1D_DATA")
    if folder and not expand(folder).is_dir():
        raise ValueError(f"MNIST1D_DATA={folder!r}: must be a folder that is there")
    paths = [expand(folder) / name] if folder else []
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


def _fetch(files, mirrors, seconds, archive):
    """The contents of files, given as name to SHA-256 sum: from the folder, the cache, or a mirror.

    A mirror has `seconds` for all. A file whose sum is wrong is reported and never used; in the cache it is replaced.
    """
    folder = os.environ.get("MNIST1D_DATA")
    found, reasons = {}, []
    for name, digest in files.items():
        for path in ([expand(folder) / name] if folder else []) + [_cache() / name]:
            if name not in found and path.is_file():
                found[name] = path.read_bytes()
                if hashlib.sha256(found[name]).hexdigest() != digest:
                    del found[name]
                    warnings.warn(f"{path} is damaged; another is looked for", stacklevel=3)
    if folder and (lacking := [name for name in files if name not in found]):
        lacking = [name + " undamaged" * (expand(folder) / name).is_file() for name in lacking]
        reasons.append(f"{folder} holds neither {archive} nor {', '.join(lacking)}")
    for mirror in mirrors:
        if time.monotonic() < _failed.get(mirror, -math.inf):
            reasons.append(f"{mirror} has just failed")
            continue
        deadline = time.monotonic() + seconds
        try:
            for name in [name for name in files if name not in found]:
                content = _receive(mirror + name, deadline)
                if hashlib.sha256(content).hexdigest() != files[name]:
                    raise OSError(f"{name} has a wrong SHA-256 sum")
                found[name] = content
                try:
                    with open_for_rename(_cache() / name) as file:
                        file.write(content)
                except OSError as error:
                    warnings.warn(f"{name} cannot be kept in the cache ({error})", stacklevel=3)
        except OSError as error:
            reasons.append(f"{mirror}: {error}")
            _failed[mirror] = time.monotonic() + PAUSE
    if len(found) < len(files):
        raise OSError("; ".join(reasons))
    return [found[name] for name in files]


def _read_npz(path, shape, name):
    """A dataset from a file that somebody put there, read and checked once a process; its name, if it is that one."""
    state = path.stat()
    data, digest = _read_checked(path.resolve(), shape, (state.st_mtime_ns, state.st_size, state.st_ino))
    name = name if digest == CONTENT_SHA256[name] else f"images of {path.name}"
    return {**{key: array.copy() for key, array in data.items()}, "name": name}


@functools.lru_cache(maxsize=2)
def _read_checked(path, shape, _):
    """The arrays of a file as it was at one time, and their digest. Their sizes are checked before one is read."""
    rule = f"an npz file of {', '.join(KEYS)}: uint8 images {shape}, as many labels from 0 to 9, {MOST} at most"
    with open(path, "rb") as opened:
        try:
            with np.load(opened, allow_pickle=False) as archive:
                headers = {key: _read_header(archive.zip, key) for key in KEYS}
                for split in ("train", "test"):
                    (x_shape, x_type), (y_shape, y_type) = headers[f"x_{split}"], headers[f"y_{split}"]
                    n = math.prod(y_shape)
                    good = x_type == np.uint8 and y_type.kind in "iu" and 0 < n <= MOST
                    if not good or (x_shape, y_shape) != ((n, *shape), (n,)):
                        raise ValueError(f"x_{split} is {x_type} {x_shape}, y_{split} {y_type} {y_shape}")
                data = {key: archive[key] for key in KEYS}
            for key in ("y_train", "y_test"):
                if not np.isin(data[key], range(10)).all():
                    raise ValueError(f"{key} has other labels")
                data[key] = data[key].astype(np.int64)
        # What a damaged archive raises depends on which byte is wrong.
        except Exception as error:
            raise ValueError(f"{path}: must be {rule} ({type(error).__name__}: {error})") from error
    digest = hashlib.sha256()
    for key in KEYS:
        digest.update(np.ascontiguousarray(data[key]))
    return data, digest.hexdigest()


def _read_header(archive, key):
    """The shape and type that an array of an archive declares, if its size is as they say."""
    with archive.open(f"{key}.npy") as member:
        start = io.BytesIO(member.read(4096))
    if np.lib.format.read_magic(start) != (1, 0):
        raise ValueError(f"{key} is no array of version 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(start)
    size = archive.getinfo(f"{key}.npy").file_size
    if dtype.hasobject or size != start.tell() + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{key} has {size} bytes for {dtype} {shape}")
    return shape, dtype


def _read_idx(content):
    """The array of a gzipped IDX file of bytes: a magic number, the shape as big-endian integers, the values."""
    content = gzip.decompress(content)
    shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
    array = np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    return array.copy() if array.ndim > 1 else array.astype(np.int64)


def load_mnist() -> dict[str, np.ndarray | str]:
    """MNIST, from ``mnist.npz`` or the four original files in the folder MNIST1D_DATA, the cache, or a mirror.

    Returns
    -------
    dict
        `x_train` (60000, 28, 28), `x_test` (10000, 28, 28) uint8; `y_train`, `y_test` int64; `name`, "MNIST".
        Where MNIST cannot be had, a warning says why and these are scikit-learn's 1,797 digits of 8x8 pixels,
        each pixel drawn 3x3 and framed, so that the images are 28x28; `name` then says so, for the figure's title.
        Where the file holds other images, `name` is "images of mnist.npz", and nothing is claimed of MNIST.

    Raises
    ------
    ValueError
        If the file in the folder is not such a dataset, or there is no such folder.
    """
    if path := find_data("mnist.npz"):
        return _read_npz(path, (28, 28), "MNIST")
    try:
        files = _fetch(MNIST_SHA256, MNIST_MIRRORS, 30, "mnist.npz")
        return {**dict(zip(KEYS, map(_read_idx, files), strict=True)), "name": "MNIST"}
    except OSError as error:
        warnings.warn(f"MNIST could not be fetched; 8x8 digits take its place ({error})", stacklevel=2)
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = np.round(digits.images * 255 / 16).astype(np.uint8).repeat(3, 1).repeat(3, 2)
    x, y = np.pad(x, ((0, 0), (2, 2), (2, 2))), digits.target.astype(np.int64)
    return {"x_train": x[:1500], "y_train": y[:1500], "x_test": x[1500:], "y_test": y[1500:], "name": "8x8 digits"}


def load_cifar10() -> dict[str, np.ndarray | str] | None:
    """A part of CIFAR-10, the same wherever it comes from: the first 10,000 training and 1,000 test images.

    It is read from ``cifar10_subset.npz`` or the official binary archive in the folder MNIST1D_DATA or the cache;
    else that archive (170 MB) is fetched.

    Returns
    -------
    dict or None
        `x_train` (10000, 32, 32, 3), `x_test` (1000, 32, 32, 3) uint8; `y_train`, `y_test` int64; `name`,
        "CIFAR-10", or "images of cifar10_subset.npz" where these are others. None where it cannot be had; a warning
        says why.

    Raises
    ------
    ValueError
        If the file in the folder is not such a dataset, or there is no such folder.
    """
    if path := find_data("cifar10_subset.npz"):
        return _read_npz(path, (32, 32, 3), "CIFAR-10")
    try:
        (content,) = _fetch(CIFAR10_SHA256, CIFAR10_MIRRORS, 300, "cifar10_subset.npz")
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
