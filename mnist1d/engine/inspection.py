"""What code names, reads and holds, and whether it is a library's or somebody's own."""

import datetime
import decimal
import dis
import fractions
import functools
import io
import os
import sys
import sysconfig
import types
from collections import deque
from collections.abc import Iterator
from pathlib import PurePath

import numpy as np
import torch
from torch import nn

__all__ = [
    "catches_errors", "is_filled", "is_library", "is_own_code", "is_plain_value", "list_attributes", "list_class",
    "list_functions", "list_global_names", "list_globals", "list_held", "list_helpers", "list_hooks", "list_methods",
    "list_modules", "list_names", "list_own_kinds", "list_slots", "list_variables", "may_change", "names_autograd",
    "read_cells", "read_names", "reads_iterator", "unwrap",
]  # fmt: skip

INTERNAL = frozenset(vars(nn.Module()))
FUNCTIONS = types.FunctionType, types.BuiltinFunctionType, type
BOUND = types.MethodType, functools.partial, nn.Module, torch.Tensor  # these may lead back to the module
LIBRARIES = "torch", "numpy", "math", "builtins", "mnist1d"
STANDARD = (
    os.path.dirname(functools.__file__),
    sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix}),
    os.path.join(sys.base_exec_prefix, "DLLs"),
)
SIMPLE = (
    int, float, str, bytes, bool, complex, type(None), range, slice, decimal.Decimal, fractions.Fraction,
    datetime.date, datetime.time, datetime.timedelta, np.number, np.bool_, np.datetime64, torch.dtype, torch.device,
    PurePath,
)  # fmt: skip
MOST = 10_000  # things in a picture of what Python holds, or of code
CACHE = functools._lru_cache_wrapper
GLOBAL_TOO = "LOAD_NAME", "STORE_NAME", "IMPORT_NAME"  # what instructions that say so in their name leave
READERS = {"getattr", "setattr", "globals", "vars", "__dict__"}  # to which texts are names


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
    path = os.path.normcase(os.path.abspath(getattr(sys.modules.get(name), "__file__", None) or STANDARD[0]))
    is_standard = any(f"{path}{os.sep}".startswith(os.path.join(os.path.normcase(f), "")) for f in STANDARD)
    if "site-packages" in path or "dist-packages" in path or name in LIBRARIES:
        return True
    return name in sys.stdlib_module_names and is_standard  # or one's own, of the same name


def may_change(value):
    """Whether what a function reads may be other than it was: anything but what libraries bring."""
    return not (isinstance(value, (types.ModuleType, *FUNCTIONS)) and is_library(value))


def unwrap(value):
    """The function of a bound method or a partial; anything else as it is."""
    bound = isinstance(value, types.MethodType), isinstance(value, functools.partial)
    return value.__func__ if bound[0] else value.func if bound[1] else value


def is_plain_value(value, depth=8, tensors=False):
    """Whether a value holds no module and no tensor, so that a copy of a module may share it.

    With `tensors` it may hold such as need no gradient, but be none.
    """
    if isinstance(value, (*SIMPLE, *FUNCTIONS, np.ndarray)):
        return True
    if isinstance(value, torch.Tensor):
        return tensors and depth < 8 and not value.requires_grad and not isinstance(value, nn.Parameter)
    if isinstance(value, (list, tuple, set, deque)):
        return depth > 0 and all(is_plain_value(v, depth - 1, tensors) for v in value)
    if isinstance(value, dict):
        return depth > 0 and all(is_plain_value(v, depth - 1, tensors) for pair in value.items() for v in pair)
    is_object = hasattr(value, "__dict__") and not isinstance(value, BOUND)
    return is_object and depth > 0 and is_plain_value(vars(value), depth - 1, tensors)


def list_own_kinds(kind):
    """A class and those that it is made from, but for torch's and python's."""
    return [k for k in kind.__mro__ if not k.__module__.startswith(("torch.", "builtins"))]


def is_own_code(part):
    """Whether a part is of one's own code: its class, one that this is made from, or a function that it holds."""
    if list_own_kinds(type(part)):
        return True
    held = [v for v in list_attributes(part) if callable(v) and not isinstance(v, nn.Module)]
    return not all(is_library(unwrap(v)) for v in held)


def list_attributes(part):
    """What a module holds besides its parameters, buffers, parts and hooks."""
    return [value for name, value in vars(part).items() if name not in INTERNAL]


def list_hooks(part):
    """Somebody's hooks, none of torch's own, that wait for forward passes of a module."""
    hooks = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
    owners = [getattr(hook, "__module__", None) or type(hook).__module__ for hook in hooks]
    return [hook for hook, owner in zip(hooks, owners, strict=True) if owner.partition(".")[0] != "torch"]


def list_held(value):
    """What an object holds: the values of its slots, and the dict of its attributes if it has one."""
    held = [getattr(value, name, None) for name in list_slots(value)]
    return held + ([vars(value)] if hasattr(value, "__dict__") else [])


def list_slots(value):
    """The names of an object's slots, as attributes."""
    slots = [(kind, vars(kind).get("__slots__", ())) for kind in type(value).__mro__]
    named = [(kind, name) for kind, group in slots for name in ([group] if isinstance(group, str) else group)]
    names = [f"_{k.__name__.lstrip('_')}{n}" if n[:2] == "__" != n[-2:] else n for k, n in named]  # as Python has it
    return [name for name in names if name not in ("__dict__", "__weakref__")]


@functools.lru_cache(1000)
def _list_codes(code):
    """Code, and that of what is defined within it."""
    return (code, *(inner for c in code.co_consts if isinstance(c, types.CodeType) for inner in _list_codes(c)))


def _list_texts(code, readers):
    """The texts, in tuples too, of code that names one of the readers."""
    codes = _list_codes(code)
    if not any(readers & {*each.co_names} for each in codes):
        return []
    constants = [c for each in codes for c in each.co_consts]
    held = [text for c in constants if isinstance(c, (tuple, frozenset)) for text in c]
    return [c for c in (*constants, *held) if isinstance(c, str)]


@functools.lru_cache(1000)
def list_names(code):
    """What a function names, in texts too where it may read by these, and what is defined within it."""
    names = [name for each in _list_codes(code) for name in each.co_names]
    return tuple(dict.fromkeys([*names, *_list_texts(code, READERS)]))


@functools.lru_cache(1000)
def list_global_names(code):
    """Of these, what is read or set as a global, or imported: no attributes."""
    made = [i for each in _list_codes(code) for i in dis.get_instructions(each)]
    own = [i.argval for i in made if "GLOBAL" in i.opname or i.opname in GLOBAL_TOO]
    return tuple(dict.fromkeys([*own, *_list_texts(code, {"globals"})]))


@functools.lru_cache(1000)
def list_variables(code):
    """Variables of the environment that code may read: the texts in it, where it names what reads one."""
    return tuple(text for text in _list_texts(code, {"getenv", "environ"}) if text.isascii())  # in every locale


def list_globals(function):
    """The values of the globals that a function names, and what it names of the modules among them.

    A module may be imported within, or be named as `sys.modules["name"]`.
    """
    names, known = list_names(function.__code__), function.__globals__
    is_of_itself = {"modules", "__name__"} <= {*names}  # `sys.modules[__name__]`
    own = names if is_of_itself else list_global_names(function.__code__)
    found = [known[name] for name in own if name in known]
    package, places = known.get("__package__") or "", [""]
    while package:  # from `. import config` or `.config import RATE` within
        places.append(f"{package}.")
        package = package.rpartition(".")[0]
    inner = dict.fromkeys((place + name).rstrip(".") for name in own for place in places if name not in known)
    inner |= dict.fromkeys(_list_texts(function.__code__, {"modules", "import_module", "__import__"}))
    found += [sys.modules[name] for name in inner if name in sys.modules]  # imported within
    for value in found:  # which grows
        if isinstance(value, types.ModuleType) and not is_library(value):
            held = [vars(value)[name] for name in names if name in vars(value)]
            found += [v for v in held if not (isinstance(v, types.ModuleType) and any(v is f for f in found))]
    return [value for value in found if value is not sys.modules]


def is_filled(cell):
    """Whether a cell of a closure has a value yet."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def read_cells(function):
    """The values that a function encloses."""
    return [cell.cell_contents for cell in function.__closure__ or () if is_filled(cell)]


def read_names(function):
    """The values of the closure, the defaults, the globals and the environment's variables that a function names."""
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    given = [*read_cells(function), *(value for value in defaults if not isinstance(value, SIMPLE))]
    return given + list_globals(function) + [os.environ.get(name) for name in list_variables(function.__code__)]


def list_functions(kind):
    """The functions that a class itself has, properties and static ones too, but for `__init__`."""
    named = [(k, getattr(v, "fget", None) or getattr(v, "__func__", v)) for k, v in vars(kind).items()]
    return [f for name, f in named if isinstance(f, types.FunctionType) and name != "__init__"]


def list_methods(kind):
    """The functions of a class and of those that it is made from, but for torch's, python's and this package's."""
    own = [k for k in kind.__mro__ if k.__module__.partition(".")[0] not in ("torch", "builtins", "mnist1d")]
    return [f for k in own for f in list_functions(k)]


def list_class(kind):
    """The same and those that make an object; none of a library's class."""
    inits = [vars(k).get("__init__") for k in kind.__mro__ if not is_library(k)]
    return [] if is_library(kind) else [*list_methods(kind), *filter(None, inits)]


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
    near += read_names(function) if isinstance(getattr(function, "__code__", None), types.CodeType) else []
    return list(dict.fromkeys(value for value in near if isinstance(value, nn.Module)))


def list_helpers(found, classes=False):
    """The functions among some values that are no library's, and those that these name, over three levels.

    With `classes` also those of classes of one's own.
    """
    helpers = {}
    for _ in range(4):
        if classes:
            found = [f for value in found for f in (list_class(value) if isinstance(value, type) else [value])]
        new = [f for f in found if isinstance(f, types.FunctionType) and may_change(f) and f not in helpers]
        helpers |= dict.fromkeys(new)
        found = [f for g in new for f in read_names(g)]
    return list(helpers)


def reads_iterator(function):
    """Whether a function, or what it calls, reads an iterator, of which nobody can tell or set where it stands."""
    while isinstance(function, (functools.partial, types.MethodType)):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    read = [value for f in list_helpers([function]) for value in read_names(f)]
    return any(isinstance(v, Iterator) and not isinstance(v, io.IOBase) for v in read)


def names_autograd(module, function):
    """Whether forward passes or loss name what autograd knows of a tensor, which `vmap` does not tell as it is."""
    near = _list_code(module, function)
    return any({"requires_grad", "is_leaf", "Parameter"} & {*list_names(f.__code__)} for f in near)


def catches_errors(module, function):
    """Whether code of forward passes or loss goes on after an error."""
    return any(_catches(f.__code__) for f in _list_code(module, function))


@functools.lru_cache(1000)
def _catches(code):
    made = {instruction.opname for instruction in dis.get_instructions(code)} if code.co_exceptiontable else set()
    catches = "CHECK_EXC_MATCH" in made or ("PUSH_EXC_INFO" in made and "WITH_EXCEPT_START" not in made)
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return catches or "suppress" in code.co_names or any(map(_catches, inner))


def _list_code(module, function):
    """The functions of one's own that forward passes or loss are made of."""
    parts = [part for m in [module, *list_modules(function)] for part in m.modules()]
    objects = {type(value) for part in parts for value in [part, *list_attributes(part)]}
    methods = [f for kind in objects if not is_library(kind) for f in list_methods(kind)]
    held = [unwrap(value) for part in parts for value in list_attributes(part)]
    return list_helpers([*methods, *held, function, unwrap(function)])
