"""What a check of the engine needs: modules copied and left as they were, pictures of Python state, closeness."""

import copy
import functools
import random
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

__all__ = ["copy_module", "freeze_function", "freeze_module", "is_close", "keep_attributes", "keep_random_state"]

# Largest difference between two ways to compute a number, relative to the largest number of its kind in a model.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


@contextmanager
def keep_random_state():
    """Leave the global random states of python, numpy and torch as they were."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def copy_module(module):
    """A deep copy that shares no memory; what pruning or weight norm left in attributes is copied as values."""
    memo = {}
    for part in module.modules():
        for value in [*vars(part).values(), *part._buffers.values()]:
            if isinstance(value, torch.Tensor):
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)


@contextmanager
def keep_attributes(modules):
    """Leave what the modules hold in their attributes, their modes included, as it was."""
    saved = [(part, dict(vars(part))) for module in modules for part in module.modules()]
    try:
        yield
    finally:
        for part, values in saved:
            vars(part).clear()
            vars(part).update(values)


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
    if depth and hasattr(value, "__dict__") and not isinstance(value, (type, torch.Tensor)) and not callable(value):
        return _freeze(vars(value), depth - 1)
    return id(value)


def freeze_module(module):
    skip = {"_parameters", "_buffers", "_modules", "forward"}
    return tuple(
        (name, _freeze(value, 1))
        for part in module.modules()
        for name, value in vars(part).items()
        if name not in skip and not name.endswith("_hooks") and not isinstance(value, (nn.Module, torch.Tensor))
    )


def freeze_function(function):
    """What a function may read besides its arguments: its closure, the globals that it names, its object."""
    if isinstance(function, functools.partial):
        return freeze_function(function.func), _freeze((function.args, function.keywords))
    if isinstance(function, nn.Module):
        return freeze_module(function)
    if (getattr(function, "__module__", None) or "").partition(".")[0] == "torch":
        return id(function)
    code = getattr(function, "__code__", None)
    if code is None:
        return _freeze(getattr(function, "__self__", None)), _freeze(getattr(function, "__dict__", None))
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    read = [function.__globals__[name] for name in code.co_names if name in function.__globals__]
    return tuple(_freeze(value) for value in [*cells, *read, getattr(function, "__self__", None)])


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
