"""What a check of the engine needs: modules copied and left as they were, pictures of Python state, closeness."""

import copy
import datetime
import decimal
import dis
import fractions
import functools
import hashlib
import importlib
import io
import itertools
import logging
import random
import sys
import types
import weakref
import zlib
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import PurePath

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

__all__ = [
    "Finder", "catches_errors", "copy_module", "encloses_itself", "find_shared_memory", "freeze_function",
    "freeze_held", "freeze_module", "freeze_tensors", "get_python_random", "has_forward_hooks", "has_hooks",
    "have_same_numbers", "hold_alike", "holds_parameters", "identify", "is_answer_close", "is_close", "is_code_same",
    "is_library", "keep_attributes", "keep_code", "keep_function", "keep_random_state", "keep_slots", "list_attributes",
    "list_globals", "list_held", "list_modules", "list_names", "list_settings", "list_unshared", "list_variables",
    "list_watched", "names_autograd", "reads_iterator", "remember_caches", "remember_code", "remember_function",
    "set_python_random", "share_objects",
]  # fmt: skip

INTERNAL = frozenset(vars(nn.Module()))
FUNCTIONS = types.FunctionType, types.BuiltinFunctionType, type
BOUND = types.MethodType, functools.partial, nn.Module, torch.Tensor  # these may lead back to the module
LIBRARIES = "torch", "numpy", "math", "builtins", "mnist1d"
SIMPLE = (
    int, float, str, bytes, bool, complex, type(None), range, slice, decimal.Decimal, fractions.Fraction,
    datetime.date, datetime.time, datetime.timedelta, np.number, np.bool_, np.datetime64,
)  # fmt: skip

VIEWS = types.MappingProxyType, *map(type, ({}.keys(), {}.values(), {}.items()))  # of a dict
CACHE = functools._lru_cache_wrapper
CACHED = CACHE, functools.cached_property
GLOBAL_TOO = "LOAD_NAME", "STORE_NAME", "IMPORT_NAME"  # what instructions that say so in their name leave
MAY_FAIL = {
    "cholesky", "cond", "eig", "eigh", "eigvals", "eigvalsh", "inv", "inverse", "ldl_factor", "logdet", "lstsq", "lu",
    "lu_factor", "matrix_power", "matrix_rank", "pinv", "pinverse", "qr", "slogdet", "solve", "svd", "svdvals",
    "tensorinv", "tensorsolve",
}  # fmt: skip
MOST = 10_000  # things in a picture of what Python holds

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


def _is_plain(value, depth=8, tensors=False):
    """Whether a value holds no module and no tensor, so that a copy of a module may share it.

    With `tensors` it may hold such as need no gradient, but be none.
    """
    if isinstance(value, (*SIMPLE, *FUNCTIONS, torch.device, torch.dtype, np.ndarray, PurePath)):
        return True
    if isinstance(value, torch.Tensor):
        return tensors and depth < 8 and not value.requires_grad and not isinstance(value, nn.Parameter)
    if isinstance(value, (list, tuple, set, deque)):
        return depth > 0 and all(_is_plain(v, depth - 1, tensors) for v in value)
    if isinstance(value, dict):
        return depth > 0 and all(_is_plain(v, depth - 1, tensors) for pair in value.items() for v in pair)
    is_object = hasattr(value, "__dict__") and not isinstance(value, BOUND)
    return is_object and depth > 0 and _is_plain(vars(value), depth - 1, tensors)


def _is_own(part):
    """Whether a part is of one's own code: its class, one that this is made from, or a function that it holds."""
    if any(not kind.__module__.startswith(("torch.", "builtins")) for kind in type(part).__mro__):
        return True
    held = [v for v in list_attributes(part) if callable(v) and not isinstance(v, nn.Module)]
    return not all(is_library(_unwrap(v)) for v in held)


def _unwrap(value):
    """The function of a bound method or a partial; anything else as it is."""
    bound = isinstance(value, types.MethodType), isinstance(value, functools.partial)
    return value.__func__ if bound[0] else value.func if bound[1] else value


def list_attributes(part):
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
                memo[id(value)] = _mirror(value, value.detach().clone())
        memo |= {id(t): t.detach().clone() for t in _find_results(vars(part).values())}
        if share:
            memo |= {id(v): v for v in list_attributes(part) if _is_plain(v, tensors=True)}
    copied = copy.deepcopy(module, memo)
    for own, other in zip(module.parameters(), copied.parameters(), strict=False):
        _mirror(own, other)
    return copied


def _find_results(values):
    """Tensors that autograd has made, in lists, tuples and dicts however deep: activations that are collected, say."""
    values, seen, found = list(values), set(), []
    for value in values:  # which grows
        if id(value) not in seen and isinstance(value, (list, tuple, dict)):
            values += value.values() if isinstance(value, dict) else value
        elif isinstance(value, torch.Tensor) and value.grad_fn is not None:
            found.append(value)
        seen.add(id(value))
    return found


def _mirror(tensor, copied):
    """Give the copy of a tensor the attributes that somebody has given the tensor, a mask say."""
    for name, value in vars(tensor).items() if type(tensor) in (torch.Tensor, nn.Parameter) else ():
        setattr(copied, name, copy.deepcopy(value))
    return copied


@contextmanager
def keep_slots(module):
    """Of parts with two names leave the parameters and buffers in place: `functional_call` would not."""
    parts = Counter(part for _, part in module.named_modules(remove_duplicate=False))
    slots = [slot for part, n in parts.items() if n > 1 for slot in (part._parameters, part._buffers)]
    held = [dict(slot) for slot in slots]
    try:
        yield
    finally:
        for slot, own in zip(slots, held, strict=True):
            slot.update(own)


def encloses_itself(module):
    """Whether a module holds a function that reaches it from within: a copy would call the original's."""
    own = {id(t) for part in module.modules() for t in (part, *vars(part).values(), *part._parameters.values())}
    own |= {id(buffer) for buffer in module.buffers()}

    def is_own(value):
        return isinstance(value, (nn.Module, torch.Tensor)) and id(value) in own

    def reaches(value, depth=6):
        if isinstance(value, weakref.ref):
            return is_own(value())
        if isinstance(value, types.FunctionType):
            given = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *_read_cells(value)]
            return any(is_own(v) or reaches(v, depth - 1) for v in given)
        if isinstance(value, functools.partial):
            return reaches(value.func, depth)
        if isinstance(value, types.MethodType):
            return reaches(value.__func__, depth)
        if not depth:
            return False
        if isinstance(value, (list, tuple, set, deque)):
            return any(reaches(v, depth - 1) for v in value)
        if isinstance(value, dict):
            return any(reaches(v, depth - 1) for v in value.values())
        is_object = hasattr(value, "__dict__") and not isinstance(value, (*FUNCTIONS, *BOUND))
        return is_object and any(reaches(v, depth - 1) for v in vars(value).values())

    parts = [part for part in module.modules() if _is_own(part)]
    refs = "_flat_weight_refs"  # which torch's recurrent layers renew
    return any(reaches(v) for part in parts for k, v in vars(part).items() if k not in INTERNAL and k != refs)


def _reaches(value, found, depth=6):
    """Whether a value is, or holds in containers and objects, something that `found` is true of."""
    if found(value):
        return True
    if not depth or isinstance(value, (*SIMPLE, *FUNCTIONS, *BOUND)):
        return False
    if isinstance(value, (list, tuple, set, deque)):
        return any(_reaches(v, found, depth - 1) for v in value)
    held = value.values() if isinstance(value, dict) else list_held(value)
    return any(_reaches(v, found, depth - 1) for v in held)


def hold_alike(module, other):
    """Whether two modules are equal in what they hold besides parameters and buffers: one stands for both."""
    names, names_of_other = (
        {id(t): name for named in (m.named_parameters, m.named_buffers) for name, t in named(remove_duplicate=False)}
        for m in (module, other)
    )
    registered, seen = {id(part) for part in module.modules()}, set()

    def are_alike(a, b, depth=20):
        if a is b or not depth:
            return True
        if isinstance(a, torch.Tensor):
            if id(a) in names or id(b) in names_of_other:
                return names.get(id(a)) == names_of_other.get(id(b))
            return a.grad_fn is not None or have_same_numbers(a, b)  # if not made of parameters, anew at every call
        if isinstance(a, SIMPLE):
            return a == b or (a != a and b != b)
        if (id(a), id(b)) in seen:
            return True
        seen.add((id(a), id(b)))
        if isinstance(a, nn.Module):
            if id(a) not in registered and not are_all_alike(a.state_dict().values(), b.state_dict().values(), depth):
                return False
            parts = zip(a.modules(), b.modules(), strict=False)
            return all(are_all_alike(*map(list_own, pair), depth) for pair in parts)
        if isinstance(a, type):
            return a.__qualname__ == b.__qualname__
        if isinstance(a, np.ndarray):
            if (a.shape, a.dtype) != (b.shape, b.dtype) or not a.dtype.hasobject:
                return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
            return are_all_alike(a.ravel(), b.ravel(), depth)
        if isinstance(a, dict):
            return are_all_alike(a, b, depth) and are_all_alike(a.values(), b.values(), depth)
        if isinstance(a, (list, tuple, deque)):
            return are_all_alike(a, b, depth)
        if isinstance(a, types.FunctionType):
            held = ([*_read_cells(f), f.__defaults__, f.__kwdefaults__, vars(f)] for f in (a, b))
            return a.__code__ == b.__code__ and are_all_alike(*held, depth)
        if isinstance(a, functools.partial):
            return are_all_alike(*([p.func, p.args, p.keywords] for p in (a, b)), depth)
        if isinstance(a, types.MethodType):
            return are_all_alike(*([m.__func__, m.__self__] for m in (a, b)), depth)
        if isinstance(a, torch.Generator):
            return torch.equal(a.get_state(), b.get_state())
        if isinstance(a, np.random.Generator):
            return repr(a.bit_generator.state) == repr(b.bit_generator.state)
        if isinstance(a, random.Random):
            return a.getstate() == b.getstate()
        if isinstance(a, (set, frozenset)):
            simple, others = ({v for v in values if isinstance(v, SIMPLE)} for values in (a, b))
            return len(a) == len(b) and simple == others
        return isinstance(a, types.BuiltinFunctionType) or are_all_alike(list_held(a), list_held(b), depth)

    def list_own(part):
        return [value for name, value in vars(part).items() if name not in INTERNAL]

    def are_all_alike(all_a, all_b, depth):
        pairs = list(zip(all_a, all_b, strict=False))
        is_kind = all(type(a) is type(b) or isinstance(a, (nn.Module, type)) for a, b in pairs)
        return len(all_a) == len(all_b) and is_kind and all(are_alike(a, b, depth - 1) for a, b in pairs)

    return are_alike(module, other)


def have_same_numbers(a, b):
    """Whether two tensors are equal; sparse ones count as different."""
    try:
        return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, 0, 0, equal_nan=True)
    except RuntimeError:  # sparse ones, say
        return False


def holds_parameters(module):
    """Whether parameters carry attributes, or lie in a container too: what is trained together has, and is, neither."""
    own = {id(p) for p in module.parameters()}
    parts = [part for part in module.modules() if _is_own(part)]
    held = [v for part in parts for v in list_attributes(part) if not isinstance(v, torch.Tensor)]
    return any(map(vars, module.parameters())) or any(_reaches(v, lambda v: id(v) in own) for v in held)


def list_unshared(modules, template):
    """Functions that give what the modules hold in objects that a template has copies of."""
    shared = {id(v) for part in template.modules() for v in list_attributes(part)}
    own = [part for m in modules for part in m.modules() if _is_own(part)]
    held = [v for part in own for v in list_attributes(part) if id(v) not in shared]
    held = {id(v): v for v in held if not isinstance(v, (*SIMPLE, *FUNCTIONS, torch.Tensor, nn.Module))}
    return [functools.partial(_freeze, v) for v in held.values()]


def _keep_tensor(tensor):
    is_plain = tensor.layout == torch.strided and tensor.device.type != "meta" and not is_lazy(tensor)
    is_shared = any(n > 1 and stride == 0 for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if tensor.requires_grad or not is_plain or is_shared:  # in a place that stands for several nobody writes
        return None
    try:
        kept = tensor.clone()
    except RuntimeError:  # what a `vmap` that has ended left in an attribute: it is made anew at every call
        return None

    def restore():
        if tensor.shape != kept.shape:
            tensor.data = kept
        elif not torch.equal(tensor, kept):
            tensor.data.copy_(kept)

    return restore


def _read_bytes(value):
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
        if not isinstance(value, (*SIMPLE, *FUNCTIONS, types.ModuleType)) and depth and id(value) not in seen:
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
    elif (kept := _read_bytes(value)) is not None:
        return functools.partial(_write_bytes, value, kept)
    else:
        return _keep_object(value, seen, depth) if _is_plain(value) or not is_library(type(value)) else None
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
    slots = {name: getattr(value, name) for name in _list_slots(value) if hasattr(value, name)}
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


def _keep_modules(modules, seen, depth=8, buffers=False):
    """A function that gives the modules back what attributes, and on demand buffers and parameters, hold now."""
    parts = list(dict.fromkeys(part for module in modules for part in module.modules()))
    saved = [(part, dict(vars(part)), dict(part._buffers)) for part in parts]
    held = [v for part in parts for v in list_attributes(part)]
    for part in parts if buffers else ():
        held += [*part._buffers.values(), *(p.data for p in part._parameters.values() if p is not None)]
    contents = _keep_contents(held, seen, depth)

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
def keep_attributes(modules):
    """Leave what the modules hold in their attributes, their modes included, as it was."""
    restore = _keep_modules(modules, {})
    try:
        yield
    finally:
        restore()


def remember_function(function, classes=False):
    """What gives back what a loss or a schedule counts or remembers: in attributes, modules, what its helpers read.

    With `classes` also what the functions of the classes read that it is or names.
    """
    modules = list_modules(function)
    held = []
    while isinstance(function, (functools.partial, types.MethodType)):
        if isinstance(function, functools.partial):
            held += [function.keywords, *function.args]
        function = function.func if isinstance(function, functools.partial) else function.__self__
    if hasattr(function, "__dict__") and not isinstance(function, nn.Module):
        held.append(vars(function))
    cells, names, places = [], [], []
    for f in _list_helpers([function, *_list_methods(type(function))], classes):
        held.append(vars(f))
        cells += [(c, c.cell_contents) for c in f.__closure__ or () if _is_filled(c)]
        known = f.__globals__
        found = [name for name in _list_global_names(f.__code__) if name in known and _may_change(known[name])]
        names += [(known, name, known[name]) for name in found]
        read = list(filter(_may_change, _read_names(f)))
        held += read
        for owner in read:  # a class or a module of one's own
            if isinstance(owner, (type, types.ModuleType)):
                found = {n: vars(owner)[n] for n in list_names(f.__code__) if n in vars(owner) and n[:2] != "__"}
                found = {
                    n: value for n, value in found.items() if not isinstance(value, (*FUNCTIONS, types.ModuleType))
                }
                places += [(owner, name, value) for name, value in found.items()]
                held += found.values()
    restore_held = _remember_places(places, _keep_contents([*modules, *held], {}))

    def restore():
        for cell, value in cells:
            if cell.cell_contents is not value:
                cell.cell_contents = value
        for known, name, value in names:
            if known.get(name) is not value:
                known[name] = value
        restore_held()

    return restore


def _remember_places(places, restores):
    """What gives back attributes, (owner, name, value), and what `restores` do."""

    def restore():
        for owner, name, value in places:
            if vars(owner).get(name) is not value:
                setattr(owner, name, value)
        for give_back in restores:
            give_back()

    return restore


def remember_code(functions):
    """What gives back what several functions, or the classes among them, count or remember."""
    restores = [remember_function(f, classes=True) for f in functions if callable(f)]
    kinds = {kind for f in functions for kind in getattr(f, "__mro__", ()) if not is_library(kind)}
    held = [(k, name, v) for k in kinds for name, v in vars(k).items() if name[:2] != "__" and not callable(v)]
    return _remember_places(held, [*restores, *_keep_contents([value for *_, value in held], {})])


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
        return id(value), zlib.crc32(value.tobytes()) if value.nbytes < 2**22 else object(), held
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
        return id(value), value.cache_info().misses
    if isinstance(value, functools.partial):
        return every([value.func, value.args, value.keywords])
    if isinstance(value, types.MethodType):
        return every([value.__func__, value.__self__])
    if isinstance(value, types.BuiltinFunctionType):  # a dict's `get`, say
        return every([value.__self__])
    if isinstance(value, (staticmethod, classmethod)):
        return every([value.__func__])
    if isinstance(value, property):
        return every([value.fget])
    if isinstance(value, type) and is_library(value) and not all(map(is_library, value.__mro__)):
        return id(value), every(k for k in value.__mro__[1:] if not is_library(k))  # one made by parametrize
    if isinstance(value, (types.ModuleType, logging.Logger)) or (isinstance(value, FUNCTIONS) and is_library(value)):
        return id(value)
    if isinstance(value, types.FunctionType):
        return id(value), *every([*_read_names(value), vars(value)])
    if isinstance(value, type):
        held = {k: v for k, v in vars(value).items() if not k.startswith("__") or isinstance(v, types.FunctionType)}
        held.pop("__init__", None)
        return id(value), tuple(held), every(held.values()), every(value.__bases__)
    if held := list_held(value):
        return every(held), every([type(value)])
    return id(value), _read_bytes(value)


def list_held(value):
    """What an object holds: the values of its slots, and the dict of its attributes if it has one."""
    held = [getattr(value, name, None) for name in _list_slots(value)]
    return held + ([vars(value)] if hasattr(value, "__dict__") else [])


def _list_slots(value):
    slots = [(kind, vars(kind).get("__slots__", ())) for kind in type(value).__mro__]
    named = [(kind, name) for kind, group in slots for name in ([group] if isinstance(group, str) else group)]
    names = [f"_{k.__name__.lstrip('_')}{n}" if n[:2] == "__" != n[-2:] else n for k, n in named]  # as Python has it
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def freeze_function(function):
    """What a function, a partial or an object that is called, and all that these call, may read besides arguments."""
    if isinstance(function, nn.Module):
        methods = dict.fromkeys(f for part in function.modules() for f in _list_methods(type(part)))
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


def _read_values(tensor):
    """The first thousand numbers of a tensor, for its `data` may change without a version; None where it cannot be."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or is_lazy(tensor):
        return None
    try:
        return tensor.detach().flatten()[:1000].resolve_conj().contiguous().view(torch.uint8).numpy().tobytes()
    except RuntimeError:  # what a `vmap` that has ended left behind
        return None


def list_watched(module):
    """Functions that give what the forward passes of a module of one's own read and a recording would not see change.

    These are globals, and the plain objects, a configuration say, that its parts hold.
    """
    own = [part for part in module.modules() if _is_own(part)]
    kinds = {
        kind for part in own for kind in type(part).__mro__ if not kind.__module__.startswith(("torch.", "builtins"))
    }
    attributes = [value for part in own for value in list_attributes(part)]

    def reads(function):
        return any(map(_may_change, _read_names(function)))

    def changes(kind):
        return _holds_values(kind) or any(map(reads, _list_functions(kind)))

    functions = {f for f in map(_unwrap, attributes) if isinstance(f, types.FunctionType)}
    held = [v for v in attributes if not isinstance(v, (*SIMPLE, *FUNCTIONS, *BOUND))]
    return [
        *(functools.partial(_freeze, f) for f in functions if reads(f)),
        *(functools.partial(_freeze, v) for v in held if _is_plain(v, tensors=True)),
        *(functools.partial(_freeze if changes(kind) else _list_parts, kind) for kind in kinds),
    ]


def find_shared_memory(module):
    """The names of two tensors of a module that overlap in memory, or None."""
    named = [*module.named_parameters(), *module.named_buffers()]
    for prefix, part in module.named_modules():
        if not part._forward_pre_hooks:  # as those of spectral norm, which renew what they alias
            tensors = [(k, v) for k, v in vars(part).items() if isinstance(v, torch.Tensor)]
            named += [(f"{prefix}.{name}".lstrip("."), value) for name, value in tensors]
        if _is_own(part):
            named += [
                (f"{prefix}.{name}[{key!r}]".lstrip("."), value)
                for name, held in vars(part).items()
                if name not in INTERNAL and isinstance(held, (list, tuple, dict))
                for key, value in (held.items() if isinstance(held, dict) else enumerate(held))
                if isinstance(value, torch.Tensor)
            ]
    spans = []
    for name, t in {id(t): (name, t) for name, t in reversed(named)}.values():
        if t.numel() and t.layout == torch.strided and not is_lazy(t):
            size = 1 + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
            spans.append((t.device.type, t.data_ptr(), t.data_ptr() + size * t.element_size(), name))
    spans.sort()
    for a, b in itertools.pairwise(spans):
        if a[0] == b[0] and b[1] < a[2]:
            return a[3], b[3]
    return None


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


def list_modules(function):
    """The modules that a loss is, holds, encloses or names."""
    if isinstance(function, nn.Module):
        return [function]
    if isinstance(function, FUNCTIONS) and is_library(function):
        return []
    if isinstance(function, functools.partial):
        near = [function.func, *function.args, *function.keywords.values()]
        return list(dict.fromkeys(module for value in near for module in list_modules(value)))
    near = [getattr(function, "__self__", None), *getattr(function, "__dict__", {}).values()]
    near += vars(near[0]).values() if hasattr(near[0], "__dict__") else []
    near += _read_names(function) if isinstance(getattr(function, "__code__", None), types.CodeType) else []
    return list(dict.fromkeys(value for value in near if isinstance(value, nn.Module)))


def _list_functions(kind):
    """The functions that a class itself has, properties and static ones too, but for `__init__`."""
    named = [(k, getattr(v, "fget", None) or getattr(v, "__func__", v)) for k, v in vars(kind).items()]
    return [f for name, f in named if isinstance(f, types.FunctionType) and name != "__init__"]


def _list_methods(kind):
    """The functions of a class and of those that it is made from, but for torch's and python's."""
    own = [k for k in kind.__mro__ if k.__module__.partition(".")[0] not in ("torch", "builtins", "mnist1d")]
    return [f for k in own for f in _list_functions(k)]


def _list_class(kind):
    """The same and those that make an object; none of a library's class."""
    inits = [vars(k).get("__init__") for k in kind.__mro__ if not is_library(k)]
    return [] if is_library(kind) else [*_list_methods(kind), *filter(None, inits)]


def names_autograd(module, function):
    """Whether forward passes or loss name what autograd knows of a tensor, which `vmap` does not tell as it is."""
    near = _list_code(module, function)
    return any({"requires_grad", "is_leaf", "Parameter"} & {*list_names(f.__code__)} for f in near)


def _list_code(module, function):
    """The functions of one's own that forward passes or loss are made of."""
    parts = [part for m in [module, *list_modules(function)] for part in m.modules()]
    objects = {type(value) for part in parts for value in [part, *list_attributes(part)]}
    methods = [f for kind in objects if not is_library(kind) for f in _list_methods(kind)]
    held = [_unwrap(value) for part in parts for value in list_attributes(part)]
    return _list_helpers([*methods, *held, function, _unwrap(function)])


def catches_errors(module, function):
    """Whether code of forward passes or loss goes on after an error."""
    return any(_catches(f.__code__) for f in _list_code(module, function))


@functools.lru_cache(1000)
def _catches(code):
    made = {instruction.opname for instruction in dis.get_instructions(code)} if code.co_exceptiontable else set()
    catches = "CHECK_EXC_MATCH" in made or ("PUSH_EXC_INFO" in made and "WITH_EXCEPT_START" not in made)
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return catches or "suppress" in code.co_names or any(map(_catches, inner))


def share_objects(modules):
    """Whether modules hold the same objects, besides parts, tensors and what cannot change, in which they may count."""
    held = []
    for module in modules:
        own = [part for part in module.modules() if _is_own(part)]
        values = [v for part in own for v in list_attributes(part)]
        held.append({id(v) for v in values if not isinstance(v, (*SIMPLE, *FUNCTIONS, torch.Tensor, tuple))})
    return any(held[0] & other for other in held[1:])


def remember_caches(modules):
    """What clears each `functools.lru_cache` of the modules' methods, or that these name, if it has got new entries."""
    kinds = {kind for m in modules for part in m.modules() for kind in type(part).__mro__ if not is_library(kind)}
    held = [value for kind in kinds for value in vars(kind).values()]
    named = [value for kind in kinds for f in _list_helpers(_list_functions(kind)) for value in _read_names(f)]
    caches = {value: value.cache_info().misses for value in [*held, *named] if isinstance(value, CACHE)}

    def clear():
        for cache, misses in caches.items():
            if cache.cache_info().misses != misses:
                cache.cache_clear()

    return clear


def reads_iterator(function):
    """Whether a function, or what it calls, reads an iterator, of which nobody can tell or set where it stands."""
    while isinstance(function, (functools.partial, types.MethodType)):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    read = [value for f in _list_helpers([function]) for value in _read_names(f)]
    return any(isinstance(v, Iterator) and not isinstance(v, io.IOBase) for v in read)


def _list_helpers(found, classes=False):
    """The functions among some values that are no library's, and those that these name, over three levels.

    With `classes` also those of classes of one's own.
    """
    helpers = {}
    for _ in range(4):
        if classes:
            found = [f for value in found for f in (_list_class(value) if isinstance(value, type) else [value])]
        new = [f for f in found if isinstance(f, types.FunctionType) and _may_change(f) and f not in helpers]
        helpers |= dict.fromkeys(new)
        found = [f for g in new for f in _read_names(g)]
    return list(helpers)


def identify(function):
    """What tells one function from another, for the keys of a dict: its code and what it encloses; None if nothing."""
    code = getattr(function, "__code__", None)
    if code is None:
        key = function
    else:
        given = function.__defaults__, function.__kwdefaults__, *_read_cells(function)
        key = code, tuple(map(_freeze, given)), getattr(function, "__self__", None)
    try:
        hash(key)
    except TypeError:
        return None
    return key


@functools.lru_cache(1000)
def list_names(code):
    """What a function names, and what is defined within it."""
    inner = [name for c in code.co_consts if isinstance(c, types.CodeType) for name in list_names(c)]
    return tuple(dict.fromkeys([*code.co_names, *inner]))


@functools.lru_cache(1000)
def _list_global_names(code):
    """Of these, what is read or set as a global, or imported: no attributes."""
    own = [i.argval for i in dis.get_instructions(code) if "GLOBAL" in i.opname or i.opname in GLOBAL_TOO]
    inner = [name for c in code.co_consts if isinstance(c, types.CodeType) for name in _list_global_names(c)]
    return tuple(dict.fromkeys([*own, *inner]))


@functools.lru_cache(1000)
def list_variables(code):
    """Variables of the environment that code may read: the texts in it, where it names what reads one."""
    found = [c for c in code.co_consts if isinstance(c, str)] if {"getenv", "environ"} & {*code.co_names} else []
    return (*found, *(name for c in code.co_consts if isinstance(c, types.CodeType) for name in list_variables(c)))


def list_settings(values):
    """What functions and classes among these read in modules of one's own: (module, path) to plain value, and to code.

    Workers import such a module anew: they would not see what was set since, and may import it from an edited file.
    """
    functions, found, code, seen = [], {}, {}, set()

    def note(module, path, value):
        is_own = isinstance(value, (types.FunctionType, type, CACHE, *BOUND[:2])) and not is_library(_unwrap(value))
        known = sys.modules.get(module)
        # What pytest rewrites and what -O leaves out differs from the file's; what has another's name travels itself.
        is_as_read = not sys.flags.optimize and "@pytest_ar" not in vars(known or types)
        is_as_read = is_as_read and module != "__main__" and getattr(known, "__file__", None)
        if is_own and is_as_read and _find(known, path) is value:
            code[module, path] = digest_code(value)

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
            functions += _list_class(kind)
    for _ in range(3):  # functions name classes and modules, whose functions name others
        functions = _list_helpers(functions)
        for function in list(functions):
            names, given = list_names(function.__code__), _read_names(function)
            modules = [m for m in given if isinstance(m, types.ModuleType) and not is_library(m)]
            for held in (function.__globals__, *map(vars, modules)):
                named = {name: held[name] for name in names if name in held and name[:2] != "__"}
                if held.get("__name__", "__main__") != "__main__":  # whose values travel with the function
                    found |= {(held["__name__"], path): value for path, value in _list_plain(named)}
                    for name, value in named.items():
                        note(held["__name__"], name, value)
                given += named.values()
            functions += [f for f in given if isinstance(f, types.FunctionType)]
            functions += [f for kind in given if isinstance(kind, type) for f in _list_class(kind)]
    return found, code


def _find(module, path):
    return functools.reduce(lambda owner, name: getattr(owner, name, None), path.split("."), module)


def digest_code(value):
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
            found += [*_list_class(f), *cached]
        elif isinstance(f, types.FunctionType):
            counts = {i.argval for i in dis.get_instructions(f.__code__) if i.opname == "STORE_DEREF"}
            cells = zip(f.__code__.co_freevars, f.__closure__ or (), strict=True)
            held = [cell.cell_contents for name, cell in cells if name not in counts and _is_filled(cell)]
            held += [*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()]
            pictures.append(picture(f.__code__))
            found.append(getattr(f, "__wrapped__", None))
        elif isinstance(f, (types.MethodType, *CACHED)):
            found.append(getattr(f, "__func__", None) or getattr(f, "func", None) or f.__wrapped__)
        pictures.append([repr(v) for v in held if isinstance(v, SIMPLE)])
        found += [v for v in held if isinstance(v, (types.FunctionType, functools.partial))]
    return hashlib.sha256(repr(pictures).encode()).hexdigest()


def is_code_same(module, path, digest):
    """Whether this process, where it imports the module, has what the digest is of."""
    try:
        return digest_code(_find(importlib.import_module(module), path)) == digest
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
    return isinstance(value, (*SIMPLE, torch.dtype, PurePath))


def list_globals(function):
    """The values of the globals that a function names, and what it names of the modules among them."""
    names, known = list_names(function.__code__), function.__globals__
    own = _list_global_names(function.__code__)
    found = [known[name] for name in own if name in known]
    package, places = known.get("__package__") or "", [""]
    while package:  # from `. import config` or `.config import RATE` within
        places.append(f"{package}.")
        package = package.rpartition(".")[0]
    inner = dict.fromkeys((place + name).rstrip(".") for name in own for place in places if name not in known)
    found += [sys.modules[name] for name in inner if name in sys.modules]  # imported within
    for value in found:  # which grows
        if isinstance(value, types.ModuleType) and not is_library(value):
            held = [vars(value)[name] for name in names if name in vars(value)]
            found += [v for v in held if not (isinstance(v, types.ModuleType) and any(v is f for f in found))]
    return found


def _read_names(function):
    """The values of the closure, the defaults and the globals that a function names."""
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    given = [*_read_cells(function), *(value for value in defaults if not isinstance(value, SIMPLE))]
    return given + list_globals(function)


def _may_change(value):
    """Whether what a function reads may be other than it was: anything but what libraries bring."""
    return not (isinstance(value, (types.ModuleType, *FUNCTIONS)) and is_library(value))


def _list_parts(kind):
    """Which functions a class has."""
    return tuple(map(id, vars(kind).values()))


def _holds_values(kind):
    """Whether a class has attributes besides functions and what describes it."""
    code = types.FunctionType, staticmethod, classmethod, property
    return any(not k.startswith("__") and not isinstance(v, code) for k, v in vars(kind).items())


def is_library(value):
    """Whether code is that of a library, whose values nobody changes."""
    if isinstance(value, types.ModuleType):
        return value.__name__.partition(".")[0] in LIBRARIES
    module = getattr(value, "__module__", None)  # of some of C's types no text
    return _is_installed((module if isinstance(module, str) else "").partition(".")[0])


@functools.lru_cache(1000)
def _is_installed(name):
    """Whether a package is one of Python's own, an installed one or this."""
    if name in ("__main__", "__mp_main__"):  # the user's own, whatever file a worker was started from
        return False
    path = getattr(sys.modules.get(name), "__file__", None) or ""
    is_installed = "site-packages" in path or "dist-packages" in path
    return name in LIBRARIES or name in sys.stdlib_module_names or is_installed


def _read_cells(function):
    return [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]


def has_hooks(module):
    """Whether hooks of a module or of its parameters wait for gradients."""
    hooks = [h for part in module.modules() for h in (part._backward_hooks, part._backward_pre_hooks)]
    hooks += [h for p in module.parameters() for h in (p._backward_hooks, p._post_accumulate_grad_hooks)]
    hooks += [nn.modules.module._global_backward_hooks, nn.modules.module._global_backward_pre_hooks]
    return any(hooks)


def has_forward_hooks(module):
    """Whether somebody's hooks, none of torch's own, wait for forward passes, of these modules or of all."""
    places = [d for part in module.modules() for d in (part._forward_hooks, part._forward_pre_hooks)]
    places += [nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks]
    hooks = [hook for place in places for hook in place.values()]
    owners = [getattr(h, "__module__", None) or type(h).__module__ for h in hooks]
    return any(owner.partition(".")[0] != "torch" for owner in owners)


class Finder(TorchFunctionMode):
    """Notes hooks on a tensor's gradient, the padding of an embedding, and linear algebra that may raise an error."""

    hook = padding = may_fail = False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        self.hook |= name == "register_hook"
        self.may_fail |= name.removeprefix("linalg_") in MAY_FAIL
        if name in ("embedding", "embedding_bag"):
            index = kwargs.get("padding_idx", args[2] if len(args) > 2 and name == "embedding" else None)
            nothing = -1 if function is torch.embedding else None  # torch's own counts from the end before it asks
            self.padding |= isinstance(index, int) and not isinstance(index, bool) and index != nothing
        return function(*args, **kwargs)


def _is_filled(cell):
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def is_close(ours, plain, scale=None, times=1):
    """Whether two tensors [seed, ...] agree to so many times rounding, NaN and infinity included."""
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
    return bool((difference <= times * tolerance * largest[:, None] + 1e-30).all())


def is_answer_close(ours, plain):
    """The same of what models answer. In logits a huge number, which masks a class, would hide what the others say."""
    are_logits = plain.is_floating_point() and plain.ndim > 1 and plain.shape[-1] > 1
    return is_close(ours, plain) and (not are_logits or is_close(ours.softmax(-1), plain.softmax(-1)))
