"""Leave modules, functions and random states as they were: `keep_...` for a while, `remember_...` until told."""

import copy
import functools
import os
import queue
import random
import types
from collections import deque
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnist1d.engine.inspection import (
    CACHE,
    FUNCTIONS,
    SIMPLE,
    is_filled,
    is_library,
    is_plain_value,
    list_attributes,
    list_functions,
    list_global_names,
    list_held,
    list_helpers,
    list_hooks,
    list_methods,
    list_modules,
    list_names,
    list_slots,
    may_change,
    read_names,
)

__all__ = [
    "get_python_random", "keep_attributes", "keep_code", "keep_function", "keep_random_state", "read_bytes",
    "remember_caches", "remember_code", "remember_function", "set_python_random",
]  # fmt: skip


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


def _keep_tensor(tensor):
    is_plain = tensor.layout == torch.strided and tensor.device.type != "meta" and not is_lazy(tensor)
    is_shared = any(n > 1 and stride == 0 for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    is_made = tensor.requires_grad and not tensor.is_leaf
    if is_made or not is_plain or is_shared:  # in a place that stands for several nobody writes
        return None
    try:
        kept = tensor.detach().clone()
        grad = tensor.grad if tensor.is_leaf else None
        kept_grad = None if grad is None else grad.clone()
    except RuntimeError:  # what a `vmap` that has ended left in an attribute: it is made anew at every call
        return None

    def restore():
        if tensor.shape != kept.shape:
            tensor.data = kept.clone()
        elif not torch.equal(tensor, kept):
            tensor.data.copy_(kept)
        if tensor.requires_grad and tensor.grad is not grad:  # the same object, which may be a part of another one's
            tensor.grad = grad
        if grad is not None and not torch.equal(grad, kept_grad):
            grad.data.copy_(kept_grad)

    return restore


def read_bytes(value):
    """What an array of any kind holds, or None."""
    try:
        with memoryview(value) as view:
            return None if view.readonly else view.cast("B").tobytes()
    except (TypeError, ValueError):
        return None


def _write_bytes(value, kept):
    with memoryview(value) as view:
        if view.nbytes == len(kept):
            view.cast("B")[:] = kept


def _keep_contents(values, seen, depth=8):
    """Functions that give containers, objects, tensors and generators back what they hold now, each once."""
    kept = []
    for value in values:
        is_fixed = isinstance(value, (*SIMPLE, *FUNCTIONS, types.ModuleType)) or value is os.environ
        if not is_fixed and depth and id(value) not in seen:
            seen[id(value)] = value  # held, so that nothing else gets its address
            if restore := _keep_content(value, seen, depth - 1):
                kept.append(restore)
    return kept


def _keep_content(value, seen, depth):
    if isinstance(value, torch.Tensor):
        return _keep_tensor(value)
    if isinstance(value, nn.Module):
        return _keep_modules([value], seen, depth, buffers=True)
    if isinstance(value, functools.partial):
        within = [value.func, *value.args, *value.keywords.values()]
        return _join(_keep_contents([*within, value.keywords], seen, depth))
    if isinstance(value, types.MethodType):
        return _join(_keep_contents([value.__self__], seen, depth))
    if isinstance(value, torch.Generator):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, (Optimizer, LRScheduler)):
        kept, inner = copy.deepcopy(value.state_dict()), [getattr(value, "optimizer", None)]
        return _join([lambda: value.load_state_dict(copy.deepcopy(kept)), *_keep_contents(inner, seen, depth)])
    if isinstance(value, queue.Queue):
        return _join(_keep_contents([value.queue], seen, depth))
    if isinstance(value, np.random.Generator):
        return functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, random.Random):
        return functools.partial(value.setstate, value.getstate())
    if isinstance(value, (list, deque)):
        held, within, refill = list(value), value, value.extend
    elif isinstance(value, (dict, set)):
        held, within, refill = value.copy(), value.values() if isinstance(value, dict) else (), value.update
    elif isinstance(value, tuple):
        return _join(_keep_contents(value, seen, depth))
    elif isinstance(value, np.ndarray):
        return functools.partial(np.copyto, value, value.copy()) if value.flags.writeable else None
    elif (kept := read_bytes(value)) is not None:
        return functools.partial(_write_bytes, value, kept)
    else:
        return _keep_object(value, seen, depth) if is_plain_value(value) or not is_library(type(value)) else None
    inner = _keep_contents(within, seen, depth)

    def list_ids(items):
        return [*map(id, items), *(map(id, items.values()) if isinstance(items, dict) else ())]

    def restore():
        if list_ids(value) != list_ids(held):  # not while somebody goes through it for nothing
            value.clear()
            refill(held)
        for restore in inner:
            restore()

    return restore


def _keep_object(value, seen, depth):
    slots = {name: getattr(value, name) for name in list_slots(value) if hasattr(value, name)}
    inner = _keep_contents([*list_held(value), *slots.values()], seen, depth)

    def restore():
        for name, kept in slots.items():
            if getattr(value, name, None) is not kept:
                setattr(value, name, kept)
        for restore in inner:
            restore()

    return restore


def _join(restores):
    return (lambda: [restore() for restore in restores]) if restores else None


def _keep_modules(modules, seen, depth=8, buffers=False, hooks=True):
    """A function that gives the modules back what attributes, and on demand buffers and parameters, hold now."""
    parts = list(dict.fromkeys(part for module in modules for part in module.modules()))
    saved = [(part, dict(vars(part)), dict(part._buffers)) for part in parts]
    held = [v for part in parts for v in list_attributes(part)]
    for part in parts if buffers else ():
        held += [*part._buffers.values(), *(p for p in part._parameters.values() if p is not None)]
    contents = _keep_contents(held, seen, depth)
    for hook in [h for part in parts for h in list_hooks(part)] if hooks else ():
        if id(hook) not in seen and getattr(hook, "__self__", None) not in parts:
            seen[id(hook)] = hook
            contents.append(remember_function(hook, seen=seen))

    def restore():
        for part, values, own in saved:
            vars(part).clear()
            vars(part).update(values)
            part._buffers.clear()
            part._buffers.update(own)
        for restore in contents:
            restore()

    return restore


@contextmanager
def keep_attributes(modules, hooks=True):
    """Leave what the modules hold in their attributes, their modes included, and their hooks count, as it was."""
    restore = _keep_modules(modules, {}, hooks=hooks)
    try:
        yield
    finally:
        restore()


def remember_function(function, classes=False, seen=None):
    """What gives back what a loss or a schedule counts or remembers: in attributes, modules, what its helpers read.

    With `classes` also what the functions of the classes read that it is or names; what `seen` holds is left out.
    """
    modules = list_modules(function)
    held = []
    while isinstance(function, (functools.partial, types.MethodType)):
        if isinstance(function, functools.partial):
            held += [function.keywords, *function.args]
        function = function.func if isinstance(function, functools.partial) else function.__self__
    if not isinstance(function, nn.Module):
        held += [function, getattr(function, "__dict__", None)]
    cells, names, places = [], [], []
    for f in list_helpers([function, *list_methods(type(function))], classes):
        held.append(vars(f))
        cells += [(c, c.cell_contents) for c in f.__closure__ or () if is_filled(c)]
        known = f.__globals__
        found = [name for name in list_global_names(f.__code__) if name in known and may_change(known[name])]
        names += [(known, name, known[name]) for name in found]
        read = list(filter(may_change, read_names(f)))
        held += read
        for owner in read:  # a class or a module of one's own
            if isinstance(owner, (type, types.ModuleType)):
                found = {n: vars(owner)[n] for n in list_names(f.__code__) if n in vars(owner) and n[:2] != "__"}
                found = {
                    n: value for n, value in found.items() if not isinstance(value, (*FUNCTIONS, types.ModuleType))
                }
                places += [(owner, name, value) for name, value in found.items()]
                held += found.values()
    kinds = dict.fromkeys(kind for value in [function, *held] for kind in _list_kinds(value))
    own = [(k, name, v) for k in kinds for name, v in vars(k).items() if name[:2] != "__" and not callable(v)]
    places += own
    held += [value for *_, value in own]
    contents = _keep_contents([*modules, *held], {} if seen is None else seen)

    def restore():
        for cell, value in cells:
            if cell.cell_contents is not value:
                cell.cell_contents = value
        for known, name, value in names:
            if known.get(name) is not value:
                known[name] = value
        for owner, name, value in places:
            if vars(owner).get(name) is not value:
                setattr(owner, name, value)
        for give_back in contents:
            give_back()

    return restore


def _list_kinds(value):
    """The classes of one's own that a value, or what it is bound to, is or is made from."""
    while isinstance(value, (functools.partial, types.MethodType)):
        value = value.func if isinstance(value, functools.partial) else value.__self__
    kind = value if isinstance(value, type) else type(value)
    return [k for k in kind.__mro__ if not is_library(k)]


def remember_code(functions):
    """What gives back what several functions, or the classes among them, count or remember."""
    restores = [remember_function(f, classes=True) for f in functions if callable(f)]
    return lambda: [restore() for restore in restores]


@contextmanager
def keep_code(functions):
    """Leave what several functions, or the classes among them, count or remember as it was."""
    restore = remember_code(functions)
    try:
        yield
    finally:
        restore()


@contextmanager
def keep_function(function):
    """Leave what a loss or a schedule counts or remembers as it was."""
    restore = remember_function(function)
    try:
        yield
    finally:
        restore()


def remember_caches(modules):
    """What clears each `functools.lru_cache` of the modules' methods, or that these name, if it has got new entries."""
    kinds = {kind for m in modules for part in m.modules() for kind in type(part).__mro__ if not is_library(kind)}
    held = [value for kind in kinds for value in vars(kind).values()]
    named = [value for kind in kinds for f in list_helpers(list_functions(kind)) for value in read_names(f)]
    caches = {value: value.cache_info().misses for value in [*held, *named] if isinstance(value, CACHE)}

    def clear():
        for cache, misses in caches.items():
            if cache.cache_info().misses != misses:
                cache.cache_clear()

    return clear
