"""Comparable pictures of what modules and functions hold and read: two of them differ where something has changed."""

import functools
import gc
import itertools
import logging
import random
import types
import weakref
import zlib
from collections import deque
from collections.abc import Iterator
from contextvars import ContextVar

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mnist1d.engine.inspection import (
    BOUND,
    CACHE,
    FUNCTIONS,
    MOST,
    SIMPLE,
    is_library,
    is_own_code,
    is_plain_value,
    list_attributes,
    list_functions,
    list_held,
    list_methods,
    list_names,
    list_own_kinds,
    may_change,
    read_cells,
    read_names,
    unwrap,
)
from mnist1d.engine.keeping import read_bytes

__all__ = [
    "freeze_function", "freeze_held", "freeze_module", "freeze_reads", "freeze_tensors", "identify", "list_unshared",
    "list_watched", "mark_values",
]  # fmt: skip

VIEWS = types.MappingProxyType, *map(type, ({}.keys(), {}.values(), {}.items()))  # of a dict
LARGE = 2**22  # bytes of an array that are not looked at
LINK = "_lru_list_elem"


def list_unshared(modules, template):
    """Functions that give what the modules hold in objects that a template has copies of."""
    shared = {id(v) for part in template.modules() for v in list_attributes(part)}
    own = [part for m in modules for part in m.modules() if is_own_code(part)]
    held = [v for part in own for v in list_attributes(part) if id(v) not in shared]
    held = {id(v): v for v in held if not isinstance(v, (*SIMPLE, *FUNCTIONS, torch.Tensor, nn.Module))}
    return [functools.partial(_freeze, v) for v in held.values()]


def _freeze(value, seen=None):
    """A comparable picture of what a value holds in Python and, where it is code of one's own, of what that reads.

    `seen` holds what the picture has already.
    """
    if isinstance(value, SIMPLE):
        return value
    if isinstance(value, torch.Tensor) and not vars(value):
        return _mark(value), _read_values(value)
    if seen is None:
        try:
            return _freeze(value, {})
        except RecursionError:  # a chain of hundreds of links
            return object()
    if id(value) in seen:
        return "seen", seen[id(value)][0]
    if len(seen) > MOST:  # it may always have changed
        return object()
    seen[id(value)] = len(seen), value  # held, so that nothing else gets its address

    def every(values):
        return tuple(_freeze(v, seen) for v in values)

    if isinstance(value, torch.Tensor):  # a mask of a parameter, say
        return _mark(value), _read_values(value), every([vars(value)])
    if isinstance(value, (list, tuple, deque, set, frozenset, dict, *VIEWS)):
        items = value.items() if isinstance(value, (dict, types.MappingProxyType)) else value
        if len(value) > MOST:
            try:
                return hash(tuple(items))
            except TypeError:
                return object()
        parts = every([*items, *([vars(value)] if getattr(value, "__dict__", None) else [])])
        return frozenset(parts) if isinstance(value, (set, frozenset)) else parts
    if isinstance(value, nn.Module):
        return freeze_module(value, seen=seen), freeze_held(value)
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            return every(value.ravel().tolist())
        held = every([vars(value)] if getattr(value, "__dict__", None) else [])
        return id(value), zlib.crc32(value.tobytes()) if value.nbytes < LARGE else object(), held
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        _, keys, *rest = value.get_state()  # an array made anew, whose address means nothing
        return keys.tobytes(), *rest
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, itertools.count):
        return repr(value)
    if isinstance(value, Iterator):  # where it stands cannot be seen: it may always have moved
        return object()
    if isinstance(value, ContextVar):
        return every([value.get(None)])
    if isinstance(value, weakref.ref):
        return every([value()])
    if isinstance(value, CACHE):
        return id(value), value.cache_info().misses, every(_list_cached(value))
    if isinstance(value, functools.partial):
        return every([value.func, value.args, value.keywords])
    if isinstance(value, types.MethodType):
        return every([value.__func__, value.__self__])
    if callable(value) and hasattr(type(value), "__self__"):  # of C: torch's, or a dict's `get`, made anew each time
        return getattr(value, "__qualname__", None), every([value.__self__])
    if isinstance(value, (staticmethod, classmethod)):
        return every([value.__func__])
    if isinstance(value, property):
        return every([value.fget])
    if isinstance(value, type) and is_library(value) and not all(map(is_library, value.__mro__)):
        return id(value), every(k for k in value.__mro__[1:] if not is_library(k))  # one made by parametrize
    if isinstance(value, (types.ModuleType, logging.Logger)) or (isinstance(value, FUNCTIONS) and is_library(value)):
        return id(value)
    if isinstance(value, types.FunctionType):
        return id(value), *every([*read_names(value), vars(value)])
    if isinstance(value, type):
        held = {k: v for k, v in vars(value).items() if not k.startswith("__") or isinstance(v, types.FunctionType)}
        held.pop("__init__", None)
        return id(value), tuple(held), every(held.values()), every(value.__bases__)
    if held := list_held(value):
        return every(held), every([type(value)])
    return id(value), read_bytes(value)


def _list_cached(cache):
    """What a `functools.lru_cache` has kept, but for large arrays, whichever was used last."""
    parts = [p for p in gc.get_referents(cache) if p is not vars(cache) and p is not cache.__wrapped__]
    n = cache.cache_info().currsize
    if cache.cache_parameters()["maxsize"] is None:
        found = [value for part in parts if isinstance(part, dict) for value in part.values()]
    else:  # results lie beside keys, `self` of a method say, and a table of links
        links = [p for p in parts if type(p) is dict and n == len(p) and {_get_kind(v) for v in p.values()} <= {LINK}]
        hidden = {id(key) for table in links for key in table} | set(map(id, links))
        found = [part for part in parts if id(part) not in hidden and not isinstance(part, type)]
    return sorted((v for v in found if getattr(v, "nbytes", 0) < LARGE and _get_kind(v) != LINK), key=id)


def _get_kind(value):
    return type(value).__name__


def freeze_function(function):
    """What a function, a partial or an object that is called, and all that these call, may read besides arguments."""
    if isinstance(function, nn.Module):
        methods = dict.fromkeys(f for part in function.modules() for f in list_methods(type(part)))
        seen = {}
        return freeze_module(function, seen=seen), *(_freeze(f, seen) for f in methods)
    return _freeze(function)


def freeze_tensors(module):
    """Which parameters and attributes of a module are tensors, how often they were changed, what the latter begin with.

    What follows from parameters by autograd, as the weights of weight norm, is made anew at every call.
    """
    held = []
    for part in module.modules():
        made = {getattr(hook, "name", None) for hook in part._forward_pre_hooks.values()}  # anew, by weight norm
        held += [v for name, v in vars(part).items() if isinstance(v, torch.Tensor) and name not in made]
    tensors = [*(v for v in held if not v.requires_grad), *module.parameters()]
    return list(map(_mark, tensors)), [_read_values(v) for v in held if not v.requires_grad]


def freeze_held(module):
    """Of a module that is held by another, or by a loss: its parameters and buffers too, and what they begin with."""
    tensors = [*module.parameters(), *module.buffers()]
    return freeze_tensors(module), list(map(_mark, tensors)), list(map(_read_values, tensors))


def _mark(tensor):
    """What tells that a tensor was replaced or, unless by its `data`, changed."""
    try:
        return id(tensor), tensor.data_ptr(), tensor._version
    except RuntimeError:  # what a `vmap` that has ended left behind, or inference mode
        return id(tensor)


def mark_values(tensor):
    """The same, with what the tensor begins with: numpy may share its memory."""
    return _mark(tensor), _read_values(tensor)


def _read_values(tensor):
    """The first thousand numbers of a tensor, for its `data` may change without a version; None where it cannot be."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or is_lazy(tensor):
        return None
    try:
        few, n = tensor.detach(), 1
        for axis in reversed(range(few.ndim)) if not few.is_contiguous() else ():  # to flatten it would copy it whole
            few = few.narrow(axis, 0, min(few.shape[axis], max(1, 1000 // n)))
            n *= max(1, few.shape[axis])
        return few.flatten()[:1000].resolve_conj().contiguous().view(torch.uint8).numpy().tobytes()
    except RuntimeError:  # what a `vmap` that has ended left behind
        return None


def list_watched(module, shared_with=None):
    """Functions that give what the forward passes of a module of one's own read and a recording would not see change.

    These are globals, and the plain objects, a configuration say, that its parts hold; with `shared_with`, other
    modules, only those that these hold too.
    """
    own = [part for part in module.modules() if is_own_code(part)]
    kinds = {kind for part in own for kind in list_own_kinds(type(part))}
    attributes = [value for part in own for value in list_attributes(part)]

    def reads(function):  # a name may be given another function of a library's, but hardly another module
        return any(may_change(value) or isinstance(value, FUNCTIONS) for value in read_names(function))

    def changes(kind):
        return _holds_values(kind) or any(map(reads, list_functions(kind)))

    functions = {f for f in map(unwrap, attributes) if isinstance(f, types.FunctionType)}
    held = [v for v in attributes if not isinstance(v, (*SIMPLE, *FUNCTIONS, *BOUND))]
    if shared_with is not None:
        others = {id(v) for m in shared_with for part in m.modules() for v in list_attributes(part)}
        held = [v for v in held if id(v) in others]
    return [
        *(functools.partial(_freeze, f) for f in functions if reads(f)),
        *(functools.partial(_freeze, v) for v in held if is_plain_value(v, tensors=True)),
        *(functools.partial(_freeze if changes(kind) else _list_parts, kind) for kind in kinds),
    ]


def freeze_reads(module):
    """What the methods of a module's classes, but for what makes an object, and what it holds read outside of it."""
    own = [part for part in module.modules() if is_own_code(part)]
    attributes = [value for part in own for value in list_attributes(part)]
    seen, found = {}, []
    for kind in dict.fromkeys(kind for part in own for kind in list_own_kinds(type(part))):
        functions = list_functions(kind)
        names = {name for f in functions for name in list_names(f.__code__)}
        read = [v for name, v in vars(kind).items() if name in names and not isinstance(v, FUNCTIONS)]
        found += [_freeze(v, seen) for v in [*read, *(v for f in functions for v in read_names(f))]]
    held = [v for v in attributes if is_plain_value(v, tensors=True) or isinstance(unwrap(v), types.FunctionType)]
    return [*found, *(_freeze(v, seen) for v in held)]


def freeze_module(module, watched=(), seen=None):
    """What the parts of a module hold in Python, but for classes and objects whose ids are in `watched`."""
    skip = {"_parameters", "_buffers", "_modules"}
    seen = {} if seen is None else seen
    kinds = [kind for kind in dict.fromkeys(map(type, module.modules())) if id(kind) not in watched]
    classes = tuple(_freeze(kind, seen) for kind in kinds)
    return classes, tuple(
        (name, _freeze(value, seen))
        for part in module.modules()
        for name, value in vars(part).items()
        if name not in skip
        and not name.endswith("_hooks")
        and not isinstance(value, (nn.Module, torch.Tensor))
        and id(value) not in watched
    )


def identify(function):
    """What tells one function from another, for the keys of a dict: its code and what it encloses; None if nothing."""
    code = getattr(function, "__code__", None)
    if code is None:
        key = function
    else:
        given = function.__defaults__, function.__kwdefaults__, *read_cells(function)
        key = code, tuple(map(_freeze, given)), getattr(function, "__self__", None)
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _list_parts(kind):
    """Which functions a class has."""
    return tuple(map(id, vars(kind).values()))


def _holds_values(kind):
    """Whether a class has attributes besides functions and what describes it."""
    code = types.FunctionType, staticmethod, classmethod, property
    return any(not k.startswith("__") and not isinstance(v, code) for k, v in vars(kind).items())
