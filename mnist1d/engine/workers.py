"""Tasks of a sweep in other processes, with the code, the settings and the place that the caller has now."""

import copy
import dis
import functools
import hashlib
import importlib
import os
import pickle
import sys
import threading
import time
import types
from contextlib import contextmanager, nullcontext, suppress

import numpy as np
import torch
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.backend import reduction
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from mnist1d.engine.inspection import (
    BOUND,
    CACHE,
    FUNCTIONS,
    MOST,
    SIMPLE,
    is_filled,
    is_library,
    list_class,
    list_helpers,
    list_names,
    read_names,
    unwrap,
)
from mnist1d.parts import IMPORTED, read_part, write_part
from mnist1d.settings import KEEP_MEMORY, measure_peak_memory

__all__ = [
    "OtherCodeError", "end_older_workers", "has_global_hooks", "is_in_task", "keep_workers", "list_place",
    "list_settings", "run_task",
]  # fmt: skip

CACHED = CACHE, functools.cached_property
# Random generators and the default dtype belong to a whole process: of its threads one trains at a time.
_turn = threading.RLock()  # a sweep within a sweep has it already
_thread = threading.local()
_ENVIRONMENT = dict(os.environ)
_changed = set()  # variables that some sweep has found changed: workers may have been started then
_running = []  # a None for each sweep of this process that has not ended
_sent = {}  # code that workers were asked for: (module, path) to digest


def is_in_task():
    """Whether this thread runs a task of a sweep."""
    return getattr(_thread, "in_task", False)


def end_older_workers(code):
    """Let workers end that may have imported other code than this, (module, path) to digest."""
    is_reloaded = any(_sent.get(key, digest) != digest for key, digest in code.items())
    if is_reloaded and not _running:  # to be imported anew; another thread's sweep would lose its workers
        get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=True)
    if not (is_reloaded and _running):
        _sent.update(code)


@contextmanager
def keep_workers():
    """Within it workers are not ended by another sweep, and those that start inherit how they keep their memory."""
    added = KEEP_MEMORY.keys() - os.environ.keys()
    os.environ.update({name: KEEP_MEMORY[name] for name in added})
    _running.append(None)
    try:
        yield
    finally:
        _running.pop()
        for name in added:
            os.environ.pop(name, None)


def list_settings(values):
    """What functions and classes among these read in modules of one's own: (module, path) to plain value, and to code.

    Of code there are digests, and one for all of this package.

    Workers import such a module anew: they would not see what was set since, and may import it from an edited file.
    """
    functions, found, seen = [], {}, set()
    patches = _list_patches() if values else {}
    code = {("mnist1d", ""): IMPORTED} | {place: _digest_code(f) for place, f in patches.items()}

    def note(module, path, value):
        is_own = isinstance(value, (types.FunctionType, type, CACHE, *BOUND[:2])) and not is_library(unwrap(value))
        known = sys.modules.get(module)
        # What pytest rewrites and what -O leaves out differs from the file's; what has another's name travels itself.
        is_as_read = not sys.flags.optimize and "@pytest_ar" not in vars(known or types)
        is_as_read = is_as_read and module != "__main__" and getattr(known, "__file__", None)
        if is_own and is_as_read and _find(known, path) is value:
            code[module, path] = _digest_code(value)

    for value in values:  # which grows
        if id(value) in seen or seen.add(id(value)):
            continue
        if isinstance(value, functools.partial):
            values += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, types.MethodType):
            values += [value.__func__, value.__self__ if isinstance(value.__self__, type) else type(value.__self__)]
        elif isinstance(value, (dict, list, tuple)):
            values += value.values() if isinstance(value, dict) else value
        elif isinstance(value, types.FunctionType):
            functions.append(value)
            if "<" not in value.__qualname__:  # else it travels itself
                note(value.__module__, value.__qualname__, value)
        elif not isinstance(value, (*SIMPLE, torch.Tensor, np.ndarray, types.ModuleType)):
            kind = value if isinstance(value, type) else type(value)
            if "<" not in kind.__qualname__:
                note(kind.__module__, kind.__qualname__, kind)
            functions += list_class(kind)
    for _ in range(3):  # functions name classes and modules, whose functions name others
        functions = list_helpers(functions)
        for function in list(functions):
            names, given = list_names(function.__code__), read_names(function)
            modules = [m for m in given if isinstance(m, types.ModuleType) and not is_library(m)]
            for held in (function.__globals__, *map(vars, modules)):
                named = {name: held[name] for name in names if name in held and name[:2] != "__"}
                if held.get("__name__", "__main__") != "__main__":  # whose values travel with the function
                    found |= {(held["__name__"], path): value for path, value in _list_plain(named)}
                    for name, value in named.items():
                        note(held["__name__"], name, value)
                given += named.values()
            functions += [f for f in given if isinstance(f, types.FunctionType)]
            functions += [f for kind in given if isinstance(kind, type) for f in list_class(kind)]
    return found, code


def _list_patches():
    """Functions that torch has under another name than their own, or from elsewhere: (module, path) to each."""
    kinds = {k for m in (nn, torch.optim, torch.optim.lr_scheduler) for k in vars(m).values() if isinstance(k, type)}
    kinds = {k for kind in (*kinds, torch.Tensor) for k in kind.__mro__ if k.__module__.partition(".")[0] == "torch"}
    owners = [(m, m.__name__, "") for m in (torch, F, nn.init)]
    owners += [(kind, kind.__module__, f"{kind.__qualname__}.") for kind in kinds]
    return {
        (module, prefix + name): value
        for owner, module, prefix in owners
        for name, value in list(vars(owner).items())
        if isinstance(value, types.FunctionType)
        and (value.__name__ != name or str(value.__module__).partition(".")[0] != "torch")
    }


def has_global_hooks():
    """Whether hooks wait for the passes of all modules or the steps of all optimisers of this process."""
    of_modules = [
        hooks for name, hooks in vars(nn.modules.module).items() if name[:8] == "_global_" and name[-6:] == "_hooks"
    ]
    return any((*of_modules, _global_optimizer_pre_hooks, _global_optimizer_post_hooks))


def _find(module, path):
    return functools.reduce(lambda owner, name: getattr(owner, name, None), path.split("."), module)


def _digest_code(value):
    """What a function, or those of a class and of its bases, do: equal in every process that has the same."""

    def picture(code):
        constants = [
            picture(c)
            if isinstance(c, types.CodeType)
            else sorted(map(repr, c))  # in whatever order they come
            if isinstance(c, frozenset)
            else repr(c)
            for c in code.co_consts
        ]
        return code.co_code, code.co_names, code.co_varnames, constants

    found, pictures, seen = [value], [], {}
    for f in found:  # which grows: a function, what it wraps, encloses and takes by default
        if id(f) in seen or len(seen) > MOST:
            continue
        seen[id(f)], held = f, []
        if isinstance(f, functools.partial):
            held = [*f.args, *f.keywords.values()]
            found.append(f.func)
        elif isinstance(f, type):
            cached = [v for k in f.__mro__ if not is_library(k) for v in vars(k).values() if isinstance(v, CACHED)]
            found += [*list_class(f), *cached]
        elif isinstance(f, types.FunctionType):
            counts = {i.argval for i in dis.get_instructions(f.__code__) if i.opname == "STORE_DEREF"}
            cells = zip(f.__code__.co_freevars, f.__closure__ or (), strict=True)
            held = [cell.cell_contents for name, cell in cells if name not in counts and is_filled(cell)]
            held += [*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()]
            pictures.append(picture(f.__code__))
            found.append(getattr(f, "__wrapped__", None))
        elif isinstance(f, (types.MethodType, *CACHED)):
            found.append(getattr(f, "__func__", None) or getattr(f, "func", None) or f.__wrapped__)
        pictures.append([repr(v) for v in held if isinstance(v, SIMPLE)])
        found += [v for v in held if isinstance(v, (types.FunctionType, functools.partial))]
    return hashlib.sha256(repr(pictures).encode()).hexdigest()


def _is_code_same(module, path, digest):
    """Whether this process, where it imports the module, has what the digest is of."""
    try:
        return _digest_code(_find(importlib.import_module(module), path)) == digest
    except Exception:  # whatever a module may raise that is half edited
        return False


def _list_plain(named):
    """(path, value) of the settings among named values, and of those that plain objects and classes among them hold."""
    for name, value in named.items():
        if _is_setting(value):
            yield name, value
        elif hasattr(value, "__dict__") and not isinstance(value, (*FUNCTIONS[:2], *BOUND, types.ModuleType)):
            kind = value if isinstance(value, type) else type(value)
            if kind is types.SimpleNamespace or not is_library(kind):
                yield from ((f"{name}.{k}", v) for k, v in vars(value).items() if k[:2] != "__" and _is_setting(v))


def _is_setting(value, depth=4):
    """Whether a value is a number, a text, a path, an array or a tensor of numbers, or a container of such."""
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        held = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        return depth > 0 and len(held) <= 10**5 and all(_is_setting(v, depth - 1) for v in held)
    if type(value) is np.ndarray:
        return value.size <= 10**6 and not value.dtype.hasobject
    if type(value) is torch.Tensor:
        is_plain = value.layout == torch.strided and value.device.type == "cpu" and not value.requires_grad
        return is_plain and value.numel() <= 10**6
    return isinstance(value, SIMPLE)


@contextmanager
def _keep_to(settings):
    """Within it the modules of this process hold these values, (module, path) to value, as those of the caller do."""
    changed = []
    for (m, path), value in settings.items():
        *owners, name = path.split(".")  # of a module, or of a class or an object in it
        owner = functools.reduce(lambda o, n: getattr(o, n, None), owners, sys.modules.get(m))
        here = getattr(owner, name, value)
        if owner is not None and not _is_same(here, value):
            changed.append((owner, name, here))
            # A large array, as it comes, does not let be written on.
            _set(owner, name, np.array(value) if isinstance(value, np.memmap) else copy.deepcopy(value))
    try:
        yield
    finally:
        for owner, name, here in changed:
            _set(owner, name, here)


def _is_same(here, value):
    if type(here) is not (np.ndarray if isinstance(value, np.memmap) else type(value)):  # as a large one comes
        return False
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return here.dtype == value.dtype and here.shape == value.shape and bool((here == value).all())
    if isinstance(value, dict):
        return list(here) == list(value) and all(_is_same(here[key], value[key]) for key in value)
    if isinstance(value, (list, tuple)):
        return len(here) == len(value) and all(map(_is_same, here, value))
    return bool(here == value)


def _set(owner, name, value):
    put = setattr if isinstance(owner, (type, types.ModuleType)) else object.__setattr__  # a frozen dataclass
    put(owner, name, value)


@functools.cache
def _end_with(parent):
    """End this process when the one that has sent it work is gone, killed say: it would compute on for nobody."""

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class OtherCodeError(RuntimeError):
    """A worker has other code than the process of the sweep."""


def list_place():
    """The working folder, and the variables of the environment that were changed since this package was imported."""
    now = dict(os.environ)
    _changed.update(k for k in now.keys() | _ENVIRONMENT.keys() if now.get(k) != _ENVIRONMENT.get(k))
    return _get_folder(), {k: now.get(k) for k in list(_changed)}


def _get_folder():
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


@contextmanager
def _keep_to_place(folder, environment):
    """Within it a worker, which may be older than the change, has this working folder and these variables."""
    before, here = {k: os.environ.get(k) for k in environment}, _get_folder()

    def put(values):
        for k, value in values.items():
            if value is None:
                os.environ.pop(k, None)
            else:
                os.environ[k] = value

    def enter(folder):
        with suppress(OSError):  # another machine's, or removed
            if folder is not None:
                os.chdir(folder)

    try:
        enter(folder)
        put(environment)
        yield
    finally:
        put(before)
        enter(here)


def _find_other_code(code):
    """The modules of which this process has other code."""
    own = {m for (m, path), digest in code.items() if m != "mnist1d" and not _is_code_same(m, path, digest)}
    return sorted(own | ({"mnist1d"} if code["mnist1d", ""] != IMPORTED else set()))


def run_task(run, variant, seeds, dtype, place, settings, code, part, home):
    """A task's result, its error, the seconds that an earlier run has spent on it, and the peak memory."""
    is_worker = os.getpid() != home
    if is_worker and home == os.getppid():  # that the sweep's process, of this id, has started
        _end_with(home)
    with _turn:
        if known := read_part(part):
            return known[0], None, known[1], measure_peak_memory()
        if is_worker and (other := _find_other_code(code)):
            return None, OtherCodeError(", ".join(other)), 0.0, measure_peak_memory()
        nested, _thread.in_task = is_in_task(), True
        start = time.perf_counter()
        try:
            with _keep_to_place(*place) if is_worker else nullcontext(), _keep_to(settings):
                result, error = _run_alone(run, variant, seeds, dtype)
        finally:
            _thread.in_task = nested
        if is_worker and error is None:
            try:
                reduction.dumps(result)
            except Exception as reason:  # a result that cannot leave the worker would end the sweep
                result, error = None, TypeError(f"run's result cannot be sent to another process: {reason}")
        if error is None:
            write_part(part, result, time.perf_counter() - start)
        return result, error, 0.0, measure_peak_memory()


def _run_alone(run, variant, seeds, dtype):
    """A task's result and its error."""
    flushes = not (torch.tensor([1e-39], dtype=torch.float32) / 2).item()
    before = torch.get_num_threads(), torch.get_default_dtype(), flushes
    torch.set_num_threads(1)
    torch.set_default_dtype(dtype)
    # Gradients through saturated units are denormal numbers, which a CPU multiplies 100 times slower.
    torch.set_flush_denormal(True)
    try:
        with threadpool_limits(1):  # of numpy and scikit-learn, whose last digits depend on it
            return run(variant, seeds), None
    except Exception as error:  # whatever the function raises is reported when the others are done
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # what cannot leave a worker would take it down
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return None, error
    finally:
        torch.set_num_threads(before[0])
        torch.set_default_dtype(before[1])
        torch.set_flush_denormal(before[2])
