"""The settings of this run: profile, cores, device, folders, clock. Everything that the environment decides.

| variable | meaning | default |
|---|---|---|
| MNIST1D_PROFILE | paper, quick or smoke | paper |
| MNIST1D_DEVICE | cpu, cuda, cuda:1, mps ... | CUDA where there is one |
| MNIST1D_DATA | folder of MNIST and CIFAR-10 | the user's cache |
| MNIST1D_OUTPUT | folder of figures and results | build/<profile> |
| MNIST1D_PARTS | folder in which the runner keeps what has ended of a notebook's sweeps: see `parts` | none |
| MNIST1D_SEED_OFFSET | what `make replicate` adds to every seed of a notebook | 0 |
| JOBS | worker processes of a sweep | 1 on a GPU, else all usable cores |

`MNIST1D_REPLAY` is the engine's: see :class:`mnist1d.engine.Stack`.
"""

import numbers
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = [
    "KEEP_MEMORY", "earlier_seconds", "find_device", "find_root", "get_device", "get_jobs", "is_seed",
    "measure_peak_memory", "note_peak_memory", "note_seconds", "output_folder", "pick", "profile", "seconds",
    "seed_offset", "shift_seeds", "start_clock",
]  # fmt: skip

PROFILES = ("paper", "quick", "smoke")

# By default glibc gives freed memory back to the system, and each step pays to get it again. With these, workers keep
# it. Replayed steps make no tensors and do not need it; other systems do not know these variables.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**25)}

T = TypeVar("T")

_started = time.perf_counter()
_saved = 0.0  # seconds
_peak_memory = 0  # bytes, the largest of any worker


def profile() -> str:
    """The profile of this run: "paper", "quick" or "smoke".

    Raises
    ------
    ValueError
        If MNIST1D_PROFILE holds anything else.
    """
    value = os.environ.get("MNIST1D_PROFILE") or "paper"
    if value not in PROFILES:
        raise ValueError(f"MNIST1D_PROFILE={value!r}: must be one of {', '.join(PROFILES)}")
    return value


def pick(paper: T, quick: T, smoke: T) -> T:
    """The value of a knob in this run's profile.

    Parameters
    ----------
    paper, quick, smoke
        The published scale; a recognisable figure in a minute; every code path in seconds.
    """
    return {"paper": paper, "quick": quick, "smoke": smoke}[profile()]


def seed_offset() -> int:
    """What is added to every seed of this run: MNIST1D_SEED_OFFSET, or 0.

    Raises
    ------
    ValueError
        If it is not a non-negative integer.
    """
    value = os.environ.get("MNIST1D_SEED_OFFSET") or "0"
    if not (value.isascii() and value.isdigit()):
        raise ValueError(f"MNIST1D_SEED_OFFSET={value!r}: must be a non-negative integer")
    return int(value)


def is_seed(name: str, value: Any) -> bool:
    """Whether a knob of this name and value holds seeds: one of ...SEED, several of ...SEEDS."""
    several = isinstance(value, (range, list, tuple, np.ndarray))
    one = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return name.endswith("SEEDS") if several else name.endswith("SEED") and one


# What the runner adds to the parameters cell of a run with other seeds.
SHIFT = "\n\nfrom mnist1d import settings\n\nsettings.shift_seeds(globals())"


def shift_seeds(namespace: dict) -> None:
    """Add :func:`seed_offset` to every seed: what is named SEED, SEEDS or ends so, but for a number of SEEDS.

    Called at the end of the parameters cell in a run with other seeds (`make replicate`).

    Parameters
    ----------
    namespace : dict
        Of the notebook; changed in place.
    """
    offset = seed_offset()
    for name, seeds in list(namespace.items()):
        if not is_seed(name, seeds):
            continue
        if isinstance(seeds, range):
            namespace[name] = range(seeds.start + offset, seeds.stop + offset, seeds.step)
        elif isinstance(seeds, (list, tuple)):
            namespace[name] = type(seeds)(seed + offset for seed in seeds)
        else:  # one number, or an array
            namespace[name] = seeds + offset


def get_jobs() -> int:
    """Number of worker processes: JOBS if it is set, else 1 on a GPU, else the number of usable cores.

    Raises
    ------
    ValueError
        If JOBS is not a positive integer.
    """
    value = os.environ.get("JOBS")
    if not value:
        if get_device().type != "cpu":
            return 1
        import joblib

        return joblib.cpu_count()
    if not (value.isascii() and value.isdigit() and int(value)):
        raise ValueError(f"JOBS={value!r}: must be a positive integer")
    return int(value)


def get_device() -> "torch.device":
    """The device of this run: MNIST1D_DEVICE if it is set, else CUDA where there is one, else the CPU.

    Raises
    ------
    ValueError
        If MNIST1D_DEVICE is no device of torch's, or none that this machine has.
    """
    import torch

    value = os.environ.get("MNIST1D_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    return find_device(value, "MNIST1D_DEVICE")


def find_device(value: "str | torch.device", name: str = "device") -> "torch.device":
    """A device of torch's that this machine has; a ValueError that names the argument where there is none."""
    import torch

    try:
        device = torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{name}={value!r}: must be a device such as cpu, cuda or cuda:1") from error
    kind = getattr(torch, device.type, None)  # torch.cpu, torch.cuda, torch.mps ...; there is none for meta
    if (device.index or 0) >= (kind.device_count() if hasattr(kind, "device_count") else 0):
        raise ValueError(f"{name}={value!r}: must be a device of this machine; torch finds no such one")
    return device


def find_root() -> Path | None:
    """The nearest folder above the current one that holds `notebooks` and `mnist1d`, or None."""
    folders = (Path.cwd(), *Path.cwd().parents)
    return next((f for f in folders if (f / "notebooks").is_dir() and (f / "mnist1d").is_dir()), None)


def output_folder() -> Path:
    """Where this run writes: MNIST1D_OUTPUT, which the runner sets, else `build/<profile>`.

    A notebook run by hand so changes nothing in `figures`, which holds complete runs of the committed code.
    """
    if os.environ.get("MNIST1D_OUTPUT"):
        return Path(os.environ["MNIST1D_OUTPUT"]).expanduser()
    return (find_root() or Path.cwd()) / "build" / profile()


def start_clock() -> None:
    """Let :func:`seconds` count from now."""
    global _started, _saved
    _started, _saved = time.perf_counter(), 0.0


def note_seconds(saved: float) -> None:
    """Let :func:`seconds` count work that an earlier run has done, seconds."""
    global _saved  # noqa: PLW0603
    _saved += saved


def earlier_seconds() -> float:
    """Seconds of work that an earlier run has done."""
    return _saved


def seconds() -> float:
    """Seconds since the notebook's clock was started, with those of the work that an earlier run has done."""
    return time.perf_counter() - _started + _saved


def measure_peak_memory() -> int:
    """The largest resident size of this process so far, bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def note_peak_memory(worker: int = 0) -> int:
    """Take note of a worker's peak memory; return the largest of all workers and this process, bytes."""
    global _peak_memory  # noqa: PLW0603
    _peak_memory = max(_peak_memory, worker, measure_peak_memory())
    return _peak_memory
