"""What a check of the engine needs: modules copied and left as they were, pictures of Python state, closeness."""

import copy
import functools
import itertools
import random
import types
from collections import deque
from contextlib import contextmanager
from pathlib import PurePath

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

__all__ = [
    "HookFinder", "copy_module", "freeze_function", "freeze_module", "freeze_tensors", "get_python_random",
    "has_hooks", "identify", "is_close", "keep_attributes", "keep_random_state", "set_python_random",
]  # fmt: skip

INTERNAL = frozenset(vars(nn.Module()))
FUNCTIONS = types.FunctionType, types.BuiltinFunctionType, type
BOUND = types.MethodType, functools.partial, nn.Module, torch.Tensor  # these may lead back to the module
SIMPLE = int, float, str, bytes, bool, complex, type(None), np.number

# Largest difference between two ways to compute a number, relative to the largest number of its kind in a model.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def get_python_random():
    """The global random states of python and numpy, comparable by ==."""
    name, keys, *rest = np.random.get_state()
    return random.getstate(), (name, keys.tobytes(), *rest)


def set_python_random(states):
    """Go back to what :func:`get_python_random` gave."""
    random.setstate(states[0])
    name, keys, *rest = states[1]
    np.random.set_state((name, np.frombuffer(keys, np.uint32), *rest))


@contextmanager
def keep_random_state():
    """Leave the global random states of python, numpy and torch as they were."""
    states = get_python_random()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            set_python_random(states)


def _is_plain(value, depth=8):
    """Whether a value holds no module and no tensor, so that a copy of a module may share it."""
    if isinstance(value, (*SIMPLE, *FUNCTIONS, torch.device, torch.dtype, np.ndarray, PurePath)):
        return True
    if isinstance(value, (list, tuple, set, deque)):
        return depth > 0 and all(_is_plain(v, depth - 1) for v in value)
    if isinstance(value, dict):
        return depth > 0 and all(_is_plain(v, depth - 1) for pair in value.items() for v in pair)
    is_object = hasattr(value, "__dict__") and not isinstance(value, BOUND)
    return is_object and depth > 0 and _is_plain(vars(value), depth - 1)


def _list_attributes(part):
    """What a module holds besides its parameters, buffers, parts and hooks."""
    return [value for name, value in vars(part).items() if name not in INTERNAL]


def copy_module(module, share=False):
    """A deep copy that shares no memory; what pruning or weight norm left in attributes is copied as values.

    With `share` it holds the same plain Python objects (a configuration, say), so that their changes reach it.
    """
    memo = {}
    for part in module.modules():
        for value in [*vars(part).values(), *part._buffers.values()]:
            if isinstance(value, torch.Tensor):
                memo[id(value)] = value.detach().clone()
        if share:
            memo |= {id(v): v for v in _list_attributes(part) if _is_plain(v)}
    return copy.deepcopy(module, memo)


def _keep_contents(value, depth=8):
    """A function that gives containers, objects and generators back what they hold now; None for other values."""
    if isinstance(value, (*SIMPLE, *FUNCTIONS, *BOUND)) or not depth:
        return None
    if isinstance(value, torch.Generator):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, random.Random):
        return functools.partial(value.setstate, value.getstate())
    if isinstance(value, (list, deque)):
        held, within, refill = list(value), value, value.extend
    elif isinstance(value, (dict, set)):
        held, within, refill = value.copy(), value.values() if isinstance(value, dict) else (), value.update
    else:
        return _keep_contents(vars(value), depth - 1) if hasattr(value, "__dict__") and _is_plain(value) else None
    inner = [restore for v in within if (restore := _keep_contents(v, depth - 1))]

    def restore():
        value.clear()
        refill(held)
        for restore in inner:
            restore()

    return restore


@contextmanager
def keep_attributes(modules):
    """Leave what the modules hold in their attributes, their modes included, as it was."""
    parts = [part for module in modules for part in module.modules()]
    saved = [(part, dict(vars(part)), dict(part._buffers)) for part in parts]
    contents = [restore for part in parts for v in _list_attributes(part) if (restore := _keep_contents(v))]
    try:
        yield
    finally:
        for part, values, buffers in saved:
            vars(part).clear()
            vars(part).update(values)
            part._buffers.clear()
            part._buffers.update(buffers)
        for restore in contents:
            restore()


def _freeze(value, depth=2):
    """A comparable picture of what a value holds in Python: numbers, words, truth values, containers of them."""
    if isinstance(value, (int, float, str, bool, complex, type(None), np.number)):
        return value
    if depth and isinstance(value, (list, tuple)):
        return tuple(_freeze(v, depth - 1) for v in value[:100])
    if depth and isinstance(value, dict):
        return tuple((str(k), _freeze(v, depth - 1)) for k, v in list(value.items())[:100])
    if isinstance(value, nn.Module):
        return freeze_module(value)
    if isinstance(value, np.ndarray) and value.size <= 100:
        return value.tobytes()
    if isinstance(value, type) and depth and not value.__module__.startswith("torch"):
        return id(value), tuple((k, v) for k, v in list(vars(value).items())[:100] if isinstance(v, (int, float, str)))
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, itertools.count):
        return repr(value)
    if depth and hasattr(value, "__dict__") and not isinstance(value, (*FUNCTIONS, *BOUND)):
        return _freeze(vars(value), depth - 1)
    return id(value)


def freeze_tensors(module, buffers=False):
    """Which tensors a module holds and how often they were changed: parameters, attributes, on demand buffers.

    What follows from parameters by autograd, as the weights of weight norm, is made anew at every call.
    """
    held = [v for part in module.modules() for v in vars(part).values() if isinstance(v, torch.Tensor)]
    tensors = [*(v for v in held if not v.requires_grad), *module.parameters(), *(module.buffers() if buffers else ())]
    return [(id(v), v.data_ptr(), v._version) for v in tensors]


def freeze_module(module):
    skip = {"_parameters", "_buffers", "_modules", "forward"}
    return tuple(
        (name, _freeze(value, 2))
        for part in module.modules()
        for name, value in vars(part).items()
        if name not in skip and not name.endswith("_hooks") and not isinstance(value, (nn.Module, torch.Tensor))
    )


def freeze_function(function, depth=1):
    """What a function, and those that it calls, may read besides arguments: closures, globals named there, objects."""
    if isinstance(function, functools.partial):
        return freeze_function(function.func, depth), _freeze((function.args, function.keywords))
    if isinstance(function, nn.Module):
        return freeze_module(function)
    if (getattr(function, "__module__", None) or "").partition(".")[0] == "torch":
        return id(function)
    code = getattr(function, "__code__", None)
    if code is None:
        return _freeze(getattr(function, "__self__", None)), _freeze(getattr(function, "__dict__", None))
    cells = _read_cells(function)
    read = [function.__globals__[name] for name in code.co_names if name in function.__globals__]
    called = [freeze_function(f, depth - 1) for f in [*cells, *read] if depth and isinstance(f, types.FunctionType)]
    return tuple(_freeze(value) for value in [*cells, *read, getattr(function, "__self__", None)]), *called


def identify(function):
    """What tells one function from another, for the keys of a dict: its code and what it encloses; None if nothing."""
    code = getattr(function, "__code__", None)
    key = function if code is None else (code, tuple(map(_freeze, _read_cells(function))))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _read_cells(function):
    return [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]


def has_hooks(module):
    """Whether hooks of a module or of its parameters wait for gradients."""
    hooks = [h for part in module.modules() for h in (part._backward_hooks, part._backward_pre_hooks)]
    hooks += [h for p in module.parameters() for h in (p._backward_hooks, p._post_accumulate_grad_hooks)]
    return any(hooks)


class HookFinder(TorchFunctionMode):
    """Notes whether a tensor gets a hook for its gradient."""

    found = False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.found |= getattr(function, "__name__", "") == "register_hook"
        return function(*args, **(kwargs or {}))


def _is_filled(cell):
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def is_close(ours, plain, scale=None):
    """Whether two tensors [seed, ...] agree to rounding, NaN and infinity included."""
    if ours.shape != plain.shape or ours.dtype != plain.dtype:
        return False
    if not (plain.is_floating_point() or plain.is_complex()):
        return bool((ours == plain).all())
    tolerance = TOLERANCE.get(torch.float64 if plain.dtype == torch.complex128 else plain.dtype, 2e-4)
    finite = plain.isfinite()
    if not torch.equal(finite, ours.isfinite()):
        return False
    largest = (
        torch.where(finite, plain, 0).abs().reshape(len(plain), -1).amax(1) if plain[0].numel() else plain.new_zeros(1)
    )
    largest = torch.maximum(largest, scale) if scale is not None else largest
    difference = torch.where(finite, ours - plain, 0).abs().reshape(len(plain), -1)
    return bool((difference <= tolerance * largest[:, None] + 1e-30).all())
