"""What has ended of a notebook's sweeps is kept for its next run, where `tools/run_notebooks.py` asks for it.

A part is read again only where all is as it was: the cells up to the sweep and what they reach in the package, what the
task's function and variant hold, the settings, and what the runner knows (versions, images, processor). Parts are
pickles of numbers, text, arrays and plain containers; reading them runs no code.
"""

import contextlib
import hashlib
import itertools
import os
import pickle
import sys
import tokenize
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mnist1d import settings
from mnist1d.utils import from_pickle, open_for_rename

__all__ = ["IMPORTED", "Part", "name_parts", "read_package", "read_part", "write_part"]


def read_package(root: str | os.PathLike) -> tuple[tuple[str, str], ...]:
    """(module, source) of every module of the package."""
    paths = sorted((Path(root) / "mnist1d").rglob("*.py"))
    return tuple((p.parent.name if p.stem == "__init__" else p.stem, p.read_text(encoding="utf-8")) for p in paths)


def _digest(thing):
    return hashlib.sha256(repr(thing).encode()).hexdigest()[:16]


# The package as this process imports it: its files may be edited while a notebook runs.
_PACKAGE = read_package(Path(__file__).resolve().parent.parent)
IMPORTED = _digest(_PACKAGE)
_count = itertools.count()


class Part(NamedTuple):
    """The file of a task's result, and a digest of the package that the sweep was started with."""

    path: Path
    package: str


def _open():
    """The folder of the sweep that now begins; None outside of a kernel."""
    shell = "IPython" in sys.modules and sys.modules["IPython"].get_ipython()
    if not shell:
        return None
    from mnist1d.results import digest_source  # a later module, which imports scipy

    cells = "\n".join(f"{cell}\n" for cell in shell.history_manager.input_hist_raw)
    device = settings.get_device()
    if device.type == "cuda":
        device = f"{device} {sys.modules['torch'].cuda.get_device_name(device)}"
    known = digest_source(cells, _PACKAGE), settings.profile(), settings.seed_offset(), str(device)
    return Path(os.environ["MNIST1D_PARTS"]) / f"{_digest(known)}-{next(_count)}"


def name_parts(run: Callable, variants: Mapping[Any, Any], tasks: Sequence[tuple], about: tuple) -> list[Part | None]:
    """For each task (name, seeds) of a sweep its part; None for each where nothing is kept.

    Parameters
    ----------
    run : callable
    variants : dict
    tasks : sequence of (name, seeds)
    about : tuple
        What else tells the sweep from others.
    """
    none = [None] * len(tasks)
    if not os.environ.get("MNIST1D_PARTS"):
        return none
    from mnist1d.engine.description import describe  # here, as it imports torch

    try:
        folder = _open()
        held = {name: describe(variant) for name, variant in variants.items()}
        does = describe(run)
    except (SyntaxError, tokenize.TokenError, RecursionError):  # a cell in another language; objects without an end
        return none
    keys = [(about, does, i, name, held[name], seeds) for i, (name, seeds) in enumerate(tasks)]
    return [Part(folder / _digest(key), IMPORTED) for key in keys] if folder else none


def read_part(part: Part | None) -> tuple[Any, float] | None:
    """What a task has returned in an earlier run, and its seconds; None where it has to be run."""
    if not part or part.package != IMPORTED:  # a worker that was started after an edit of the package
        return None
    try:
        result, seconds = from_pickle(part.path)
    except (OSError, TypeError, ValueError, pickle.UnpicklingError):  # none, damaged, or of objects only code can make
        return None
    with contextlib.suppress(OSError):
        part.path.touch()  # it is in use
    return result, seconds


def write_part(part: Part | None, result: Any, seconds: float) -> None:
    """Keep what a task has returned, if it can be kept."""
    if part and part.package == IMPORTED:
        # A full disk, or what cannot be pickled, takes no result with it.
        with contextlib.suppress(Exception), open_for_rename(part.path) as file:
            pickle.dump((result, seconds), file, protocol=5)
