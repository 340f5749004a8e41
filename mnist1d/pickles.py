"""Reads pickles of numbers, text, arrays and plain containers without running anything that a file names.

The opcodes are decoded by the standard library's `pickletools` and carried out here. A name in the file is looked up
in a table of stand-ins, never imported; numpy meets only checked type codes and buffers of the right length, never
a state from the file; and what is made is bounded by the size of the file.
"""

import math
import pickletools
from collections import OrderedDict
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np

__all__ = ["load"]

# Kind and bytes of a number, or U and the length of a text. Long doubles differ between machines.
CODES = {"b1", "f2", "f4", "f8", "c8", "c16", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8))}
# Opcodes that push what they carry, and those that push something new.
VALUES = {f"{size}BIN{kind}" for size in ("", "SHORT_") for kind in ("BYTES", "UNICODE", "STRING")}
VALUES |= {"BINUNICODE8", "BINBYTES8", "BYTEARRAY8", "UNICODE", "STRING", "FLOAT", "BINFLOAT"}
VALUES |= {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}
FRESH = {"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False}
FRESH |= {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": set}


class _Name:
    """A name that the file gives: `make` stands in for what it names."""

    def __init__(self, text, make):
        self.text, self.make = text, make


class _Unbuilt:
    """An array or a type whose content the file gives later, and the places of the memo that wait for it."""

    def __init__(self, build):
        self.build, self.places = build, []


class _Arguments(tuple):
    """A tuple that holds one of the two above: good as arguments, never as data."""


def _require(condition, text):
    if not condition:
        raise UnpicklingError(text)


def _read_dtype(code, *_):
    """A stand-in for numpy.dtype: a type code, whose byte order follows as a state."""
    _require(type(code) is str, "damaged: a type code that is no text")
    known = code in CODES or (code[0] == "U" and code[1:].isdecimal() and 0 < int(code[1:]) < 2**28)
    _require(known, f"refused: an array of type {code!r}, only numbers and text are read")

    def build(state):
        order, *fields = state[1:5]
        plain = type(order) is str and order in "<>|=" and all(field is None for field in fields)
        _require(plain, "refused: a numpy type with fields")
        dtype = np.dtype(code).newbyteorder(order)
        return np.dtype(code) if dtype.isnative else dtype

    return _Unbuilt(build)


class _Reader:
    """The machine that a pickle is a program for; a method for each opcode, named as `pickletools` names it."""

    def __init__(self, classes, size):
        self.stack, self.below, self.memo, self.by_hash = [], [], {}, {}
        self.left = 4 * size + 64  # bytes that may be copied or looked at: as text, as an array, for its values
        self.names = {
            "numpy.dtype": _read_dtype,
            "numpy.ndarray": None,
            "_codecs.encode": self.encode,
            "collections.OrderedDict": OrderedDict().copy,
            "copyreg._reconstructor": lambda cls, base, state: cls.make(),
            "builtins.object": None,
            "builtins.set": lambda items: self.collect(set, items),
            "builtins.frozenset": lambda items: self.collect(frozenset, items),
            "builtins.bytearray": lambda *args: self.encode(*args, kind=bytearray),
            "builtins.bytes": lambda: b"",
            "builtins.complex": complex,
            "builtins.slice": slice,
            "builtins.range": range,
        }
        for core in ("numpy.core", "numpy._core"):
            self.names[f"{core}.multiarray._reconstruct"] = lambda *_: _Unbuilt(lambda state: self.rebuild(*state))
            self.names[f"{core}.multiarray.scalar"] = lambda dtype, data: self.array(data, dtype, ())[()]
            self.names[f"{core}.numeric._frombuffer"] = self.array
        for name, cls in classes.items():
            self.names[name] = lambda cls=cls: cls.__new__(cls)
        self.classes = tuple(classes.values())

    def spend(self, n):
        self.left -= n
        _require(self.left >= 0, "refused: more data than the file can hold")

    def check_key(self, key, depth=3):
        """Only what is quickly hashed and compared: a hostile tuple, set or long integer takes hours or the stack.

        Many keys of one hash would take the square of their number.
        """
        if type(key) is tuple and depth and len(key) <= 16:
            self.spend(len(key))
            for part in key:
                self.check_key(part, depth - 1)
        elif type(key) is frozenset:
            self.spend(len(key))
            nested = any(type(part) in (frozenset, tuple) for part in key)  # a comparison doubles with every level
            _require(not nested, "refused: a set of sets or tuples as a key or in a set")
        else:
            plain = type(key) in (str, bytes, int, float, complex, bool, type(None)) or isinstance(key, np.generic)
            _require(plain, f"refused: a {type(key).__name__} as a key or in a set")
            _require(type(key) is not int or key.bit_length() <= 60, "refused: a long integer as a key or in a set")
        if depth == 3:
            same = self.by_hash.setdefault(hash(key), [])
            if not any(other is key or other == key for other in same):
                same.append(key)
                _require(len(same) <= 50, "refused: keys of one hash")  # of floating-point numbers 34 may have one

    # Stand-ins

    def encode(self, content=b"", encoding="latin1", kind=bytes):
        latin = type(content) in (str, bytes) and type(encoding) is str and encoding in ("latin1", "latin-1")
        _require(latin, "refused: bytes that are not given as such or as latin-1")
        self.spend(len(content))
        return kind(content.encode("latin-1") if type(content) is str else content)

    def collect(self, kind, items):
        self.spend(len(items))
        for item in items:
            self.check_key(item)
        return kind(items)

    def array(self, data, dtype, shape, order="C", axes=None):
        known = isinstance(dtype, np.dtype) and type(data) in (bytes, bytearray)
        shaped = type(shape) is tuple and len(shape) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in shape)
        _require(known and shaped, "damaged: an array without type, data or shape")
        _require(math.prod(shape) * dtype.itemsize == len(data), f"damaged: {len(data)} bytes for an array {shape}")
        values = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
        self.spend(len(data) if dtype.kind in "bU" else 0)
        if dtype.kind == "b":
            _require((values.view(np.uint8) < 2).all(), "damaged: booleans other than 0 and 1")
        if dtype.kind == "U":
            characters = values.view(np.dtype("u4").newbyteorder(dtype.byteorder))
            _require((characters <= 0x10FFFF).all(), "damaged: text that is no text")
        if type(data) is bytes:  # which must not be written to
            self.spend(len(data))
            values = values.copy()
        if axes is None:
            return values.reshape(shape, order=order)
        return values.reshape(shape).transpose(axes)

    def rebuild(self, *state):
        shape, dtype, by_columns, data = state[-4:]
        return self.array(data, dtype, shape, "F" if by_columns else "C")

    # Opcodes

    def pop(self, kind=object):
        value = self.stack.pop()
        _require(isinstance(value, kind), f"damaged: a {type(value).__name__} in a wrong place")
        return value

    def top(self, *kinds):
        _require(type(self.stack[-1]) in kinds, f"damaged: a {type(self.stack[-1]).__name__} in a wrong place")
        return self.stack[-1]

    def take(self, mark=True):
        """The values since the last mark, or the last value, which are about to become part of the data."""
        if mark:
            items, self.stack = self.stack, self.below.pop()
        else:
            items = [self.pop()]
        for item in items:
            self.data(item)
        return items

    def data(self, value):
        if isinstance(value, _Name):
            raise UnpicklingError(f"refused: {value.text} as data")
        _require(not isinstance(value, (_Unbuilt, _Arguments)), "damaged: an array without its content")
        return value

    def fill(self, target, pairs):
        _require(len(pairs) % 2 == 0, "damaged: a key without a value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            self.check_key(key)
            target[key] = value

    def PROTO(self, _):
        pass

    FRAME = PROTO

    def MARK(self, _):
        self.below.append(self.stack)
        self.stack = []

    def POP_MARK(self, _):
        self.stack = self.below.pop()

    def POP(self, _):
        if self.stack:
            self.stack.pop()
        else:
            self.POP_MARK(_)

    def PUT(self, place):
        if isinstance(self.stack[-1], _Unbuilt):
            self.stack[-1].places.append(place)
        self.memo[place] = self.stack[-1]

    BINPUT = LONG_BINPUT = PUT

    def MEMOIZE(self, _):
        self.PUT(len(self.memo))

    def GET(self, place):
        value = self.memo[place]
        _require(not isinstance(value, _Unbuilt), "damaged: an array inside itself")
        self.stack.append(value)

    BINGET = LONG_BINGET = GET

    def make_tuple(self, items):
        parts = any(isinstance(item, (_Name, _Unbuilt, _Arguments)) for item in items)
        self.stack.append(_Arguments(items) if parts else tuple(items))

    def TUPLE(self, _):
        items, self.stack = self.stack, self.below.pop()
        self.make_tuple(items)

    def TUPLE1(self, _):
        self.make_tuple([self.pop()])

    def TUPLE2(self, _):
        self.make_tuple([self.pop() for _ in range(2)][::-1])

    def TUPLE3(self, _):
        self.make_tuple([self.pop() for _ in range(3)][::-1])

    def LIST(self, _):
        items = self.take()
        self.stack.append(items)

    def APPENDS(self, _, mark=True):
        items = self.take(mark)
        self.top(list).extend(items)

    def APPEND(self, _):
        self.APPENDS(_, mark=False)

    def DICT(self, _):
        pairs = self.take()
        self.stack.append({})
        self.fill(self.stack[-1], pairs)

    def SETITEMS(self, _):
        pairs = self.take()
        self.fill(self.top(dict, OrderedDict), pairs)

    def SETITEM(self, _):
        value, key = self.take(mark=False) + self.take(mark=False)
        self.fill(self.top(dict, OrderedDict), [key, value])

    def ADDITEMS(self, _):
        items = self.collect(set, self.take())
        self.top(set).update(items)

    def FROZENSET(self, _):
        items = self.collect(frozenset, self.take())
        self.stack.append(items)

    def GLOBAL(self, text):
        module, _, name = text.rpartition(" ")
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        text = f"{module}.{name}".replace("builtins.xrange", "builtins.range")
        _require(text in self.names, f"refused to load {text}: only arrays and plain containers are read")
        self.stack.append(_Name(text, self.names[text]))

    def STACK_GLOBAL(self, _):
        name, module = self.pop(str), self.pop(str)
        self.GLOBAL(f"{module} {name}")

    def REDUCE(self, _):
        arguments, name = self.pop(tuple), self.pop(_Name)
        _require(type(arguments) is tuple or "_reconstruct" in name.text, "damaged: a name among data")
        self.stack.append(name.make(*arguments))

    NEWOBJ = REDUCE

    def BUILD(self, _):
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, _Unbuilt):
            self.stack[-1] = target.build(state)
            for place in target.places:
                self.memo[place] = self.stack[-1]
        else:
            fresh = type(state) is dict and all(type(key) is str for key in state)
            _require(fresh and self.classes, "damaged: a state that is no dict of attributes")
            self.top(*self.classes).__dict__.update(state)


class _Bounded:
    """A file of which no more is asked for, and no more memory set aside, than it holds."""

    def __init__(self, file):
        start = file.tell()
        self.file, self.size = file, file.seek(0, 2) - start
        file.seek(start)
        self.tell, self.readline = file.tell, file.readline

    def read(self, n):
        return self.file.read(min(n, self.size))


def load(file: BinaryIO, classes: dict[str, type]) -> Any:
    """Read a pickle, of any protocol, of arrays and plain containers. Nothing that it names is imported or called.

    Parameters
    ----------
    file : binary file
    classes : dict of type
        Classes of plain attributes that may occur, by ``"module.name"``.

    Returns
    -------
    object

    Raises
    ------
    pickle.UnpicklingError
        If the file is damaged, or holds anything but numbers, text, numpy arrays of them, `classes` and containers.
    OSError
        If it cannot be read.
    """
    bounded = _Bounded(file)
    reader = _Reader(classes, bounded.size)
    try:
        for opcode, argument, _ in pickletools.genops(bounded):
            if opcode.name == "STOP":
                return reader.data(reader.pop())
            if opcode.name in VALUES:
                is_old = opcode.name in ("STRING", "BINSTRING", "SHORT_BINSTRING")
                _require(not is_old or argument.isascii(), "refused: text of Python 2 beyond ASCII, or its arrays")
                reader.stack.append(argument)
            elif opcode.name in FRESH:
                reader.stack.append(FRESH[opcode.name]())
            else:
                carry_out = getattr(reader, opcode.name, None)
                _require(carry_out, f"refused: the opcode {opcode.name}")
                carry_out(argument)
    except (UnpicklingError, OSError):
        raise
    # What a damaged pickle raises depends on which byte is wrong.
    except Exception as error:
        raise UnpicklingError(f"damaged: {type(error).__name__}: {error}") from error
