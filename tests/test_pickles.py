"""The reader of pickles: what public files hold is read, hostile and damaged ones are refused, nothing is run."""

import argparse
import collections
import contextlib
import io
import os
import pickle
import pickletools
import random
import stat
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

import mnist1d
from mnist1d import ObjectView, from_pickle, pickles, to_pickle
from mnist1d.utils import open_for_rename

CLASSES = {"argparse.Namespace": argparse.Namespace, "mnist1d.utils.ObjectView": ObjectView}
POSIX = pytest.mark.skipif(os.name != "posix", reason="modes, links and pipes are those of POSIX")
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def load(content):
    return pickles.load(io.BytesIO(content), CLASSES)


def recursive():
    items = [1]
    items.append((items, {"me": items}))
    return items


ARRAYS = [
    np.arange(3.0),
    np.arange(12.0).reshape(3, 4)[:, ::2],
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
    np.arange(3, dtype=">i2"),
    np.array([True, False]),
    np.array(3.0),
    np.zeros((0, 3), np.float32),
    np.array(["ä", "bcd", ""]),
    np.array([1 + 2j, -0.0]),
    np.frombuffer(b"12345678"),  # not writable
    np.float32(1.5),
    np.int64(-3),
    np.bool_(True),
    np.str_("abc"),
    *(np.array([0, 1], kind) for kind in "bBhHiIlLqQefdFD"),
]
PLAIN = [
    [None, True, False, 0, 1, -1, 255, 256, 70_000, -(2**31), 2**70, -(2**70), 1.5, float("inf"), 1j],
    ["", "a", "ä\n\\u0041", "x" * 300, b"", b"a", b"\xff" * 300, bytearray(), bytearray(b"\x00\xff")],
    [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1], {}, {"a": 1, "b": [2]}, {("random", 3): {2: None}}],
    [{1, 2}, set(), frozenset([1, "a"]), frozenset(), slice(1, None), range(3), range(9, 0, -2)],
    collections.OrderedDict([("b", 1), ("a", 2)]),
    {np.int64(3): 1, np.str_("a"): 2, frozenset([1]): 3},
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_and_plain_containers_are_read_as_pickle_reads_them(protocol):
    for array in ARRAYS:
        read = load(pickle.dumps(array, protocol=protocol))
        assert type(read) is type(array) and read.dtype == array.dtype and read.shape == array.shape
        assert repr(read.dtype) == repr(array.dtype)
        np.testing.assert_array_equal(read, array)
        assert isinstance(read, np.generic) or read.flags.writeable
    for thing in PLAIN:
        read = load(pickle.dumps(thing, protocol=protocol))
        assert type(read) is type(thing) and repr(read) == repr(thing)
    for make in (lambda d: argparse.Namespace(**d), ObjectView):
        view = make({"seed": 1, "x": np.ones(2)})
        view.me = view
        read = load(pickle.dumps(view, protocol=protocol))
        assert type(read) is type(view) and read.seed == 1 and read.me is read


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_one_object_stays_one_and_what_is_not_does_not(protocol):
    array = np.arange(3)
    same, again, other, swapped = load(
        pickle.dumps([array, array, array.copy(), array.astype(">i8")], protocol=protocol)
    )
    assert same is again and same is not other
    same[0] = 7
    assert other[0] == swapped[0] == 0 and swapped[1] == 1
    items = load(pickle.dumps(recursive(), protocol=protocol))
    assert items[1][0] is items[1][1]["me"] is items


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("core", [b"core", b"_core"])
def test_names_of_numpy_1_and_2_are_read(protocol, core):
    data = mnist1d.make_dataset(num_samples=100)
    content = pickle.dumps(data, protocol=min(protocol, 3)).replace(b"numpy._core", b"numpy." + core)
    read = load(content)
    for name in ("x", "y", "x_test", "y_test", "t"):
        np.testing.assert_array_equal(read[name], data[name])


# Hostile files


class Reduced:
    """Pickles as a call of `function`, with a state if one is given."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def dtype_with(code, *state):
    return Reduced(np.dtype, code, False, True, state=state)


def code_of_class_state(name, attribute):
    """A pickle that sets an attribute of a class: GLOBAL, then BUILD with a dict."""
    module, _, cls = name.rpartition(".")
    return f"c{module}\n{cls}\n(dV{attribute}\nI1\nsb.".encode()


SCALAR = np.float64(0).__reduce__()[0]
RECONSTRUCT = np.ones(2).__reduce__()[0]
OBJECT_STATE = (3, "|", None, None, None, -1, -1, 63)


def put(place):
    return b"r" + place.to_bytes(4, "little") + b"0"


def get(place):
    return b"j" + place.to_bytes(4, "little")


def build_tower(first):
    """Frozensets that hold the two before; two such towers are equal, which 60 floors take years to find."""
    tower = b"(K\x00\x91" + put(first) + b"(K\x01\x91" + put(first + 1)
    for floor in range(first + 2, first + 60):
        tower += b"(" + get(floor - 1) + get(floor - 2) + b"\x91" + put(floor)
    return tower


def build_shape(size):
    """An array of no bytes and 64 axes, each an integer of so many bytes."""
    long = b"\x8b" + size.to_bytes(4, "little") + b"\xff" * (size - 1) + b"\x7f" + put(0)
    dtype = b"cnumpy\ndtype\n(Vf8\nI0\nI1\ntR(I3\nV<\nNNNI-1\nI-1\nI0\ntb"
    return long + b"cnumpy._core.numeric\n_frombuffer\n(C\x00" + dtype + b"(" + get(0) * 64 + b"tVC\ntR."


def build_pairs(n):
    """A dict whose keys are pairs of integers of one hash: a tuple's hash has no secret (CPython, 64 bits)."""
    prime_1, prime_2, prime_5, mask = 11400714785074694791, 14029467366897019727, 2870177450012600261, 2**64 - 1
    inverse, keys = pow(prime_2, -1, 2**64), []
    for a in range(10**9):
        lane = (prime_5 + a * prime_2) & mask
        lane = (((lane << 31) | (lane >> 33)) & mask) * prime_1 & mask
        b = ((7 - lane) * inverse) & mask
        keys += [(a, b)] if b < 2**60 else []
        if len(keys) == n:
            assert len({hash(key) for key in keys}) == 1
            return pickle.dumps(dict.fromkeys(keys))


COMPLEX = b"".join(b"g1\n(F%d\nF%d\ntRN" % (-1000003 * i, i) for i in range(1, 4000))  # keys of one hash
HOSTILE = {
    "a call": pickle.dumps(Reduced(os.system, "true")),
    "an object scalar of raw addresses": pickle.dumps(Reduced(SCALAR, dtype_with("O8", *OBJECT_STATE), b"\x10" * 8)),
    # Long doubles are numbers of 8 bytes on some machines.
    "long doubles": pickle.dumps(np.ones(2, np.longdouble)).replace(b"f8", b"f16"),
    "an object dtype": pickle.dumps(np.dtype("O")),
    "an object array": pickle.dumps(np.array([{}, None])),
    "a structured dtype": pickle.dumps(np.ones(2, [("a", "f4"), ("b", "i4")])),
    "a field with an offset": pickle.dumps(
        Reduced(SCALAR, dtype_with("V8", 3, "|", None, ("a",), {"a": (np.dtype("i8"), -64)}, 8, 1, 16), b"\x10" * 8)
    ),
    "fields in a number": pickle.dumps(dtype_with("f8", 3, "<", None, ("a",), {"a": (np.dtype("f8"), 64)}, 8, 8, 0)),
    "a subarray in a number": pickle.dumps(dtype_with("f8", 3, "<", (np.dtype("f8"), (9,)), None, None, 8, 8, 0)),
    "a state of a state": b"cnumpy\ndtype\n(Vf8\nI0\nI1\ntR(I3\nV<\nNNNI-1\nI-1\nI0\ntb(I3\nV<\nNNNI-1\nI-1\nI0\ntb.",
    "dates": pickle.dumps(np.array(["2020-01-01"], "M8[D]")),
    "state of a class": code_of_class_state("argparse.Namespace", "__eq__"),
    "state of ObjectView": code_of_class_state("mnist1d.utils.ObjectView", "__init__"),
    "state of a type": code_of_class_state("numpy.ndarray", "shape"),
    "state of a function": code_of_class_state("numpy._core.multiarray._reconstruct", "__doc__"),
    "state of a list": b"](dVa\nI1\nsb.",
    "a name with dots": b"\x80\x04\x8c\x08builtins\x8c\x0dset.__class__\x93.",
    "a class as data": pickle.dumps([np.ndarray]),
    "a class hidden in a slice": b"cbuiltins\nslice\n(cnumpy\nndarray\ntR.",
    "an array before its content": b"(lcnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntRa.",
    "a subclass of arrays": pickle.dumps(np.ma.masked_array([1, 2], [0, 1])),
    "an extension": b"\x82\x01.",
    "a persistent object": b"Pid\n.",
    "an out-of-band buffer": b"\x97.",
    "another codec": b"c_codecs\nencode\n(Va\nVrot13\ntR.",
    # Bombs
    "booleans that are none": pickle.dumps(np.array([True])).replace(b"C\x01\x01", b"C\x01\x07"),
    "text beyond Unicode": pickle.dumps(np.array(["a"])).replace(b"a\0\0\0", b"\xff\xff\xff\x7f"),
    "a memo of 2**32 places": b"Nr\xff\xff\xff\xff0" + b"N\x94" + b"\x8e" + (2**62).to_bytes(8, "little") + b".",
    "bytes of 2**40": b"\x8e" + (2**40).to_bytes(8, "little") + b"a.",
    "a bytearray of 2**40": b"\x96" + (2**40).to_bytes(8, "little") + b"a.",
    "a text of 2**40": b"\x8d" + (2**40).to_bytes(8, "little") + b"a.",
    "a frame of 2**60": b"\x80\x04\x95" + (2**60).to_bytes(8, "little") + b"N",
    "a bytearray by its length": pickle.dumps(Reduced(bytearray, 10**9)),
    "a set of a range": pickle.dumps(Reduced(set, range(10**9))),
    "an array of less than its shape": pickle.dumps(np.ones(2)).replace(b"K\x02\x85", b"J\xff\xff\xff\x7f\x85"),
    "an array of negative length": pickle.dumps(
        Reduced(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (-1,), np.dtype("f8"), False, b""))
    ),
    "one text for many arrays": (
        b"(X" + (10**6).to_bytes(4, "little") + b"a" * 10**6 + b"q\x001"
        + b"(" + b"c_codecs\nencode\n(h\x00Vlatin1\ntR" * 1000 + b"t."
    ),
    "two towers of sets": build_tower(0) + build_tower(1000) + b"(" + get(59) + get(1059) + b"\x91.",
    "a key of nested tuples": b"(d" + b"(" * 200_000 + b"t" * 200_000 + b"Ns.",
    "a key of a tuple of itself many times": b"(dI1\n" + b"\x85p0\n0g0\ng0\n\x86" * 60 + b"Ns.",
    "a key of long integers": pickle.dumps({(1 << 800_000, 1): None}),
    "keys of one hash": pickle.dumps({k * (2**61 - 1): None for k in range(1, 4000)}),
    "complex keys of one hash": b"cbuiltins\ncomplex\np1\n0(" + COMPLEX + b"d.",
    "pairs of one hash": build_pairs(100),
    "a key of tuples many times": b"(" + b"I1\n" * 16 + b"t" + put(0) + b"(" + get(0) * 16 + b"t" + put(1)
    + b"(" + get(1) * 16 + b"t" + put(2) + b"(" + (get(2) + b"N") * 20_000 + b"d.",
    "a key of a large set many times": b"(" + b"".join(b"I%d\n" % i for i in range(9000)) + b"\x91" + put(0)
    + b"(" + (get(0) + b"N") * 9000 + b"d.",
    "an array of endless axes": build_shape(100_000),
    "text of Python 2 beyond ASCII": b"U\x02\xc3\xa9.",
    "a type code of nested tuples": b"cnumpy\ndtype\n(" + b"(" * 200_000 + b"t" * 200_000 + b"tR.",
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_by_name_without_memory_or_traces(kind, tmp_path):
    path = tmp_path / "hostile.pkl"
    path.write_bytes(HOSTILE[kind])
    before = [vars(cls).copy() for cls in (argparse.Namespace, ObjectView)]
    tracemalloc.start()
    try:
        with pytest.raises(pickle.UnpicklingError, match=r"hostile\.pkl: (refused|damaged)"):
            from_pickle(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 80 * 2**20
    assert before == [vars(cls) for cls in (argparse.Namespace, ObjectView)]


def test_the_refusal_names_the_way_out_and_to_pickle_warns_of_it(tmp_path):
    path = tmp_path / "trials.pkl"
    things = [
        {"weight": torch.ones(2)},
        collections.defaultdict(list, a=[1]),
        Path("figures"),
        np.array([None]),
        {"dtype": np.float64},
    ]
    for thing in things:
        with pytest.warns(UserWarning, match=r"from_pickle will not read it: .*trusted=True") as record:
            to_pickle(thing, path)
        assert record[0].filename == __file__
        with pytest.raises(pickle.UnpicklingError, match=r"trials\.pkl: refused.*from_pickle\(path, trusted=True\)"):
            from_pickle(path)
        read = from_pickle(path, trusted=True)
        assert type(read) is type(thing)


def test_protocol_5_is_written_and_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    to_pickle({"a": 1}, "~/folder/thing.pkl")
    assert (tmp_path / "folder" / "thing.pkl").read_bytes()[:2] == b"\x80\x05"
    assert from_pickle("~/folder/thing.pkl") == from_pickle(os.fsencode(tmp_path / "folder" / "thing.pkl")) == {"a": 1}
    with pytest.raises(FileNotFoundError):
        from_pickle("~/none.pkl")


NAMES = [
    *("numpy dtype", "numpy ndarray", "numpy.core.multiarray scalar", "numpy.core.multiarray _reconstruct"),
    *("numpy._core.numeric _frombuffer", "argparse Namespace", "_codecs encode", "builtins set", "__builtin__ object"),
    *("copy_reg _reconstructor", "collections OrderedDict", "os system"),
]
PIECES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
PIECES += [b"c" + name.replace(" ", "\n").encode() + b"\n" for name in NAMES]
PIECES += [b"V" + text + b"\n" for text in (b"f8", b"O8", b"U3", b"b1", b"<", b"latin1")]
PIECES += [
    b"I0\n",
    b"I8\n",
    b"I-1\n",
    b"I3\n",
    b"C\x08abcdefgh",
    b"tR",
    b"tb",
    b"p0\n",
    b"g0\n",
    b"(",
    b"(",
    b"t",
    b"N",
]


def mutate(content, sources, draw):
    content = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 5])):
        i, other = draw.randrange(len(content)), draw.choice(sources)
        start = draw.randrange(len(other))
        change = draw.choice(["byte", "byte", "byte", "piece", "delete", "insert", "splice"])
        if change == "byte":
            content[i] = draw.randrange(256)
        elif change == "piece":
            content[i : i + 1] = draw.choice(PIECES)
        elif change == "delete" and len(content) > 20:
            del content[i : i + draw.choice([1, 2, 8])]
        elif change == "insert":
            content[i:i] = draw.choice(PIECES)
        else:
            content[i:i] = other[start : start + draw.randrange(60)]
    return bytes(content)


def fuzz(seed, n):
    """Print how many of n mutated and generated pickles are refused, and read."""
    with contextlib.suppress(ImportError, ValueError):  # where there is such a limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
    draw, counts = random.Random(seed), {"refused": 0, "read": 0}
    sources = [pickle.dumps(thing, protocol=p) for thing in [*ARRAYS, *PLAIN, recursive(), ARRAYS] for p in PROTOCOLS]
    for i in range(n):
        if i % 4:
            content = mutate(draw.choice(sources), sources, draw)
        else:
            content = b"".join(draw.choice(PIECES) for _ in range(draw.randrange(30))) + b"."
        try:
            thing = load(content)
        except pickle.UnpicklingError:
            counts["refused"] += 1
            continue
        counts["read"] += 1
        with contextlib.suppress(ValueError):  # an integer of thousands of digits
            repr(thing), pickle.dumps(thing)
    print(*counts.values())


@pytest.mark.parametrize("seed", range(2))
def test_mutated_and_generated_pickles_are_refused_or_read_and_never_crash(seed):
    code = f"import sys; sys.path[:0] = {sys.path!r}; import {__name__} as tests; tests.fuzz({seed}, 8000)"
    command = [sys.executable, "-W", "error", "-X", "faulthandler", "-c", code]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=120).stdout
    refused, read = map(int, output.split())
    assert refused > 2000 and read > 500 and refused + read == 8000


# Files that appear by rename


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "thing.pkl"
    to_pickle({"a": 1}, path)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        to_pickle({"a": lambda: 0}, path)
    assert from_pickle(path) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_text_is_utf_8_with_the_same_line_ends_everywhere(tmp_path):
    path = tmp_path / ("ä" * 100 + ".txt")
    with open_for_rename(path, "w") as file:
        file.write("± ✓\n")
    assert path.read_bytes() == "± ✓\n".encode()


@POSIX
def test_a_file_keeps_its_mode_and_a_link_its_place(tmp_path):
    path, link = tmp_path / "disk" / "thing.pkl", tmp_path / "thing.pkl"
    to_pickle(1, path)
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    link.symlink_to(path)
    to_pickle(2, link)
    assert link.is_symlink() and from_pickle(path) == 2 and path.stat().st_mode & 0o777 == 0o600


def current_umask():
    umask = os.umask(0)
    os.umask(umask)
    return umask


@POSIX
def test_a_device_is_written_to_and_stays_one(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    received = []
    thread = threading.Thread(target=lambda: received.append(fifo.read_bytes()))
    thread.start()
    to_pickle({"a": 1}, fifo)
    thread.join(10)
    assert load(received[0]) == {"a": 1} and stat.S_ISFIFO(fifo.stat().st_mode)


def test_every_opcode_of_the_standard_picklers_is_known():
    refused = {"DUP", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER"}
    refused |= {"READONLY_BUFFER", "STOP"}
    known = {name for name in dir(pickles._Reader) if name.isupper() or name[:-1].isupper()}
    names = {opcode.name for opcode in pickletools.opcodes}
    assert names - refused == known | pickles.VALUES | pickles.FRESH.keys()
