"""What an arm, a variant or a task is, in text that another process gives too: by it results are known again."""

import collections
import copyreg
import functools
import hashlib
import os
import random
import sys
import types
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from mnist1d.engine.inspection import READERS, is_library, list_globals, list_held, list_names, list_variables

__all__ = ["describe"]

# Of a class in Python 3.13 and later: the line where it stands, and what is made when it is first asked for.
PLACES = {"__firstlineno__", "__static_attributes__", "__annotate_func__", "__annotations_cache__"}
GENERATORS = random._inst, np.random.mtrand._rand, torch.default_generator


def _name_code(value):
    """The name of what a library brings, with the version."""
    is_module = isinstance(value, types.ModuleType)
    module = vars(value).get("__name__") if is_module else getattr(value, "__module__", None)
    name = "" if is_module else getattr(value, "__qualname__", "")
    version = getattr(sys.modules.get(str(module).partition(".")[0]), "__version__", "")
    return f"{module}.{name} {version}"


def _digest(value):
    """Of an array's or a tensor's numbers; its type and shape where it has none to read."""
    array = value
    try:
        if isinstance(value, torch.Tensor):
            array = value.detach().cpu()
            array = (array.double() if array.is_floating_point() else array).to_dense().resolve_conj().numpy()
        return f"{value.dtype} {array.dtype.str} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
    except Exception:  # lazy parameters, say
        return f"{value.dtype} {getattr(value, 'layout', '')}"


def _get_name(value):
    try:
        return getattr(value, "__qualname__", None)
    except Exception:  # whatever an object's `__getattr__` raises
        return None


def describe(value: Any, depth: int = 150, seen: dict | None = None) -> str:
    """What a value is and holds; of the functions and classes that a user wrote, what they do, as far as text tells."""
    seen = {} if seen is None else seen  # by id: its number and itself; each is described once
    name = _get_name(value)
    name = name if isinstance(name, str) else type(value).__qualname__  # some answer any name with an object
    is_code = isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType))
    if isinstance(value, (bool, int, float, complex, str, bytes, np.generic, type(None))) and is_library(type(value)):
        return repr(value)
    if isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and not value.dtype.hasobject):
        if isinstance(value, np.ma.MaskedArray) or getattr(value, "is_nested", False):
            parts = value.unbind() if isinstance(value, torch.Tensor) else [value.filled(0), np.ma.getmaskarray(value)]
            return f"{name}({', '.join(map(describe, parts))})"
        held = getattr(value, "__dict__", None)  # a mask of a parameter, say
        return _digest(value) + (describe(held, depth - 1, seen) if held and depth else "")
    if (is_code or isinstance(value, types.ModuleType)) and is_library(value):
        cells = value.__closure__ if depth and id(value) not in seen and isinstance(value, types.FunctionType) else None
        seen[id(value)] = len(seen), value
        encloses = [describe(cell, depth - 1, seen) for cell in cells or ()]  # of what a library has made for the user
        return f"{_name_code(value)}{encloses or ''}"
    if not depth:  # what is cut off here is never known again
        return f"{name} {uuid.uuid4()}"
    if value is os.environ:
        return "environ"  # the variables that a function names are described with it
    if any(value is generator for generator in GENERATORS):
        return f"the {name} of all"  # seeded for every run
    if id(value) in seen:
        return f"{name} {seen[id(value)][0]}"
    seen[id(value)] = len(seen), value
    if isinstance(value, functools.partial):
        parts = [value.func, *value.args, value.keywords]
    elif isinstance(value, (list, tuple)):
        parts = value
    elif isinstance(value, (set, frozenset)):
        parts = sorted(describe(part, depth - 1, dict(seen)) for part in value)  # in whatever order they come
    elif isinstance(value, Mapping):
        factory = value.default_factory if isinstance(value, collections.defaultdict) else None
        parts = [factory, *(part for item in value.items() for part in item)]
    elif isinstance(value, types.CodeType):
        taken = value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags
        parts = [value.co_code, value.co_consts, value.co_names, value.co_varnames, value.co_freevars, *taken]
    elif isinstance(value, types.ModuleType):
        parts = [v for k, v in sorted(vars(value).items()) if k[:2] != "__" and not isinstance(v, types.ModuleType)]
    elif isinstance(value, types.CellType):
        parts = [value.cell_contents] if value != types.CellType() else []
    elif isinstance(value, types.MethodType):
        parts = [value.__func__, value.__self__]
    elif isinstance(value, (property, staticmethod, classmethod)):
        parts = [value.fget, value.fset, value.fdel] if isinstance(value, property) else [value.__func__]
    elif isinstance(value, types.FunctionType):
        named = READERS & {*list_names(value.__code__)}  # by which any name may be read
        read = [v for v in list_globals(value) if named or not isinstance(v, types.ModuleType)]
        read += [(name, os.environ.get(name)) for name in list_variables(value.__code__)]
        parts = [value.__code__, value.__defaults__, value.__kwdefaults__, value.__closure__, read, vars(value)]
    elif isinstance(value, type):
        held = sorted((item for item in vars(value).items() if item[0] not in PLACES), key=lambda item: str(item[0]))
        parts = [type(value), *value.__bases__, dict(held)]  # a worker has another order
    else:
        parts = [type(value), *list_held(value), *_list_ingredients(value)]
    if isinstance(value, (list, tuple, set, frozenset, Mapping)) and not is_library(type(value)):
        parts = [*parts, type(value), *list_held(value)]  # a class of the user's, with attributes of its own
    return f"{name}({', '.join(describe(part, depth - 1, seen) for part in parts)})"


def _list_ingredients(value):
    """What an object whose content is not in its attributes would be made again from: a deque, a generator, a range."""
    if isinstance(value, np.ndarray):
        return [value.shape, value.tolist()]
    if isinstance(value, memoryview):
        return [value.tobytes()]
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        made_of = reduce(value) if reduce else value.__reduce_ex__(4)
        return [list(part) if isinstance(part, Iterator) else part for part in made_of]
    except Exception:  # whatever an object may say to that
        return []
