"""The loader of MNIST and CIFAR-10 against every way in which a download goes wrong. Nothing leaves this machine."""

import contextlib
import gzip
import hashlib
import http.server
import io
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mnist1d import images


def to_idx(array):
    """Bytes of a gzipped IDX file."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(head + array.tobytes(), mtime=0)


@pytest.fixture
def tiny():
    """A dataset in MNIST's layout, 30 training and 12 test images."""
    rng = np.random.default_rng(0)
    data = {}
    for split, n in (("train", 30), ("test", 12)):
        data[f"x_{split}"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        data[f"y_{split}"] = rng.integers(0, 10, n, dtype=np.uint8)
    return data


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves ``server.files`` in the manner ``server.manner``; notes what it was asked for."""

    def do_GET(self):
        name, server = self.path.strip("/"), self.server
        server.asked.append(name)
        if server.manner == "hangs":
            server.closing.wait(30)
            return
        if server.manner == "fails":
            self.send_error(503)
            return
        content = server.files[name]
        if server.manner == "lies":
            content = content[:-20] + bytes([content[-20] ^ 1]) + content[-19:]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if server.manner == "stops":
            content = content[: len(content) // 2]
        if server.manner == "drips":
            for byte in content:
                if server.closing.wait(0.02):
                    return
                self.wfile.write(bytes([byte]))
            return
        self.wfile.write(content)

    def handle(self):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a client that has given up, as it should
            super().handle()

    def log_message(self, *args):
        pass


@pytest.fixture
def make_mirror():
    """``make_mirror(files, manner)`` starts a mirror on the loopback interface; its ``url`` and ``asked``."""
    servers = []

    def make(files, manner="works"):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
        server.files, server.manner, server.asked, server.closing = files, manner, [], threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}/"
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.closing.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def files(tiny, monkeypatch, tmp_path):
    """The tiny dataset as gzipped IDX files, whose sums the loader takes for MNIST's; an empty cache, no folder."""
    content = dict(zip(images.MNIST_SHA256, map(to_idx, tiny.values()), strict=True))
    sums = {name: hashlib.sha256(c).hexdigest() for name, c in content.items()}
    monkeypatch.setattr(images, "MNIST_SHA256", sums)
    monkeypatch.setattr(images, "SILENCE", 0.4)
    monkeypatch.setattr(images, "_failed", {})
    monkeypatch.delenv("MNIST1D_DATA", raising=False)
    monkeypatch.setattr(images.platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache"))
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    return content


def use(monkeypatch, *mirrors):
    monkeypatch.setattr(images, "MNIST_MIRRORS", [mirror.url for mirror in mirrors])


def assert_equal(loaded, data, name="MNIST"):
    assert loaded["name"] == name
    for key, array in data.items():
        np.testing.assert_array_equal(loaded[key], array)
        assert loaded[key].flags.writeable
        assert loaded[key].dtype == (np.uint8 if key.startswith("x") else np.int64)


def test_the_sums_and_mirrors_are_the_canonical_ones():
    assert list(images.MNIST_SHA256) == [
        f"{split}-{kind}-ubyte.gz" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
    ]
    assert all(len(digest) == 64 for digest in [*images.MNIST_SHA256.values(), *images.CIFAR10_SHA256.values()])
    assert all(mirror.startswith("https://") for mirror in images.MNIST_MIRRORS + images.CIFAR10_MIRRORS)
    assert len(images.MNIST_MIRRORS) == 2


def test_the_folder_comes_first_and_its_labels_become_int64(files, tiny, make_mirror, monkeypatch, tmp_path):
    mirror = make_mirror(files)
    use(monkeypatch, mirror)
    monkeypatch.setenv("MNIST1D_DATA", str(tmp_path))
    np.savez(tmp_path / "mnist.npz", **tiny)
    assert_equal(images.load_mnist(), tiny, name="images of mnist.npz")
    assert mirror.asked == []


def test_a_file_that_changes_is_read_again_and_an_array_that_changes_is_nobody_elses(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("MNIST1D_DATA", str(tmp_path))
    path = tmp_path / "mnist.npz"
    np.savez(path, **tiny)
    images.load_mnist()["x_train"][:] = 0
    assert_equal(images.load_mnist(), tiny, name="images of mnist.npz")
    changed = {**tiny, "y_test": 9 - tiny["y_test"]}
    before = path.stat().st_mtime_ns
    np.savez(path, **changed)
    os.utime(path, ns=(before + 1, before + 1))  # a coarse clock might not tell the two apart
    assert_equal(images.load_mnist(), changed, name="images of mnist.npz")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x_train": np.zeros((30, 27, 28), np.uint8)}, "x_train is uint8"),
        ({"x_test": np.zeros((12, 28, 28))}, "x_test is float64"),
        ({"y_train": np.zeros(29, np.int64)}, "y_train int64"),
        ({"y_test": np.full(12, 10)}, "labels from 0 to 9"),
        ({"y_test": np.full(12, -1)}, "labels from 0 to 9"),
        ({"y_test": np.array([{}] * 12)}, "must be an npz file"),  # would need pickle
    ],
)
def test_a_wrong_array_in_the_folder_is_refused_by_name(tiny, change, message, monkeypatch, tmp_path):
    monkeypatch.setenv("MNIST1D_DATA", str(tmp_path))
    np.savez(tmp_path / "mnist.npz", **{**tiny, **change})
    with pytest.raises(ValueError, match=message):
        images.load_mnist()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_file_in_the_folder_is_an_error_and_stays(tiny, damage, monkeypatch, tmp_path):
    monkeypatch.setenv("MNIST1D_DATA", str(tmp_path))
    path = tmp_path / "mnist.npz"
    np.savez_compressed(path, **tiny)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    before = {"truncated": bytes(content[:500]), "flipped": bytes(content), "empty": b""}[damage]
    path.write_bytes(before)
    with pytest.raises(ValueError, match=r"mnist\.npz: must be an npz file"):
        images.load_mnist()
    assert path.read_bytes() == before


def npy(array, version=(1, 0)):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version)
    return buffer.getvalue()


def archive_of(members, compression=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def header_of(shape, descr="|u1"):
    """The beginning of an npy file that claims a shape and holds nothing of it."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


DAMAGES = {
    "a text": lambda good: b"not a zip file",
    "a truncated file": lambda good: archive_of(good)[:-900],
    "an array missing": lambda good: archive_of({name: good[name] for name in ("x_train", "y_train", "x_test")}),
    "an empty member": lambda good: archive_of({**good, "y_test": b""}),
    "a member that is no array": lambda good: archive_of({**good, "y_test": b"hello" * 100}),
    "a header of nonsense": lambda good: archive_of({**good, "y_test": npy(np.ones(9))[:10] + b"(" * 400}),
    "a header that never ends": lambda good: archive_of({**good, "y_test": b"\x93NUMPY\x02\x00" + b"\xff" * 9000}),
    "objects": lambda good: archive_of({**good, "y_test": header_of((12,), "|O")}),
    "fields": lambda good: archive_of({**good, "y_test": npy(np.zeros(12, [("a", "i4")]))}),
    "an array of less than it claims": lambda good: archive_of({**good, "x_test": header_of((12, 28, 28)) + b"a"}),
    "an array of more than it claims": lambda good: archive_of({**good, "x_test": good["x_test"] + b"a"}),
    "a negative length": lambda good: archive_of({**good, "y_test": header_of((-12,))}),
    "a scalar": lambda good: archive_of({**good, "y_test": npy(np.array(3))}),
    "no image": lambda good: archive_of({**good, "x_test": header_of((0, 28, 28)), "y_test": header_of((0,))}),
    "a locked member": lambda good: archive_of(good).replace(b"\x14\x03\x14\0\0", b"\x14\x03\x14\0\1"),
    "an unknown compression": lambda good: archive_of(good).replace(b"\0\0\x08\0", b"\0\0\x63\0"),
    "another compression": lambda good: archive_of(good, zipfile.ZIP_LZMA).replace(b"\x5d\0\0\x80", b"\xff\0\0\x80"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damage_is_one_kind_of_error_that_names_the_file_and_the_rule(tiny, kind, monkeypatch, tmp_path):
    monkeypatch.setenv("MNIST1D_DATA", str(tmp_path))
    content = DAMAGES[kind]({name: npy(array) for name, array in tiny.items()})
    (tmp_path / "mnist.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"mnist\.npz: must be an npz file of x_train, .*: uint8 images \(28, 28\)"):
        images.load_mnist()


def test_flipped_bits_are_errors_of_the_same_kind_or_harmless(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("MNIST1D_DATA", str(tmp_path))
    path, rng = tmp_path / "mnist.npz", np.random.default_rng(0)
    good = archive_of({name: npy(array) for name, array in tiny.items()})
    ends = [*range(200), *range(len(good) - 300, len(good))]  # headers and the directory
    for i in [*rng.choice(ends, 300), *rng.choice(len(good), 100)]:
        content = bytearray(good)
        content[i] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        images._read_checked.cache_clear()
        try:
            assert_equal(images.load_mnist(), tiny, name="images of mnist.npz")
        except ValueError as error:
            assert str(error).startswith(f"{path}: must be an npz file")


def test_an_array_that_inflates_is_refused_before_it_is_read(monkeypatch, tmp_path):
    """A file of 0.4 MB whose images would take 0.4 GB."""
    monkeypatch.setenv("MNIST1D_DATA", str(tmp_path))
    n, million = 500_000, bytes(28 * 28 * 1000)
    members = {"x_test": npy(np.zeros((9, 28, 28), np.uint8)), "y_test": npy(np.zeros(9, int))}
    (tmp_path / "mnist.npz").write_bytes(archive_of({**members, "y_train": npy(np.zeros(n, int))}))
    with (
        zipfile.ZipFile(tmp_path / "mnist.npz", "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x_train.npy", "w") as member,
    ):
        member.write(header_of((n, 28, 28)))
        for _ in range(n // 1000):
            member.write(million)
    assert (tmp_path / "mnist.npz").stat().st_size < 500_000
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"x_train is uint8 \({n}, 28, 28\)"):
        images.load_mnist()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_arrays_of_any_order_and_byte_order_are_read(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("MNIST1D_DATA", str(tmp_path))
    other = {**tiny, "x_train": np.asfortranarray(tiny["x_train"]), "y_test": tiny["y_test"].astype(">i4")}
    np.savez(tmp_path / "mnist.npz", **other)
    assert_equal(images.load_mnist(), tiny, name="images of mnist.npz")


def test_a_file_that_may_not_be_read_is_an_error_of_the_system(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("MNIST1D_DATA", str(tmp_path))
    np.savez(tmp_path / "mnist.npz", **tiny)

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError, match=r"mnist\.npz"):
        images.load_mnist()


def test_a_cache_that_cannot_be_written_gives_the_data_and_a_warning(files, tiny, make_mirror, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("not a folder", encoding="utf-8")
    mirror = make_mirror(files)
    use(monkeypatch, mirror)
    with pytest.warns(UserWarning, match="cannot be kept in the cache"):
        assert_equal(images.load_mnist(), tiny)
    assert mirror.asked == list(files)


def test_the_warning_says_that_the_folder_lacks_the_file(files, make_mirror, monkeypatch, tmp_path):
    use(monkeypatch, make_mirror(files, "fails"))
    monkeypatch.setenv("MNIST1D_DATA", str(tmp_path))
    lacks = rf"could not be fetched.*{re.escape(str(tmp_path))} holds neither mnist.npz nor train-images.*; http.*503"
    with pytest.warns(UserWarning, match=lacks):
        images.load_mnist()


def test_the_original_files_may_lie_in_the_folder(files, tiny, make_mirror, monkeypatch, tmp_path):
    mirror = make_mirror(files)
    use(monkeypatch, mirror)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    monkeypatch.setenv("MNIST1D_DATA", str(folder))
    assert_equal(images.load_mnist(), tiny)
    assert mirror.asked == []
    damaged = folder / "train-labels-idx1-ubyte.gz"
    damaged.write_bytes(b"another file")
    with pytest.warns(UserWarning, match=rf"{re.escape(str(damaged))} is damaged; another is looked for"):
        assert_equal(images.load_mnist(), tiny)
    assert mirror.asked == [damaged.name] and damaged.read_bytes() == b"another file"


def test_what_is_fetched_is_cached_and_not_fetched_again(files, tiny, make_mirror, monkeypatch, tmp_path):
    mirror = make_mirror(files)
    use(monkeypatch, mirror)
    assert_equal(images.load_mnist(), tiny)
    assert mirror.asked == list(files)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == set(files)  # no temporary file is left
    assert_equal(images.load_mnist(), tiny)
    assert mirror.asked == list(files)


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_cache_file_is_reported_and_replaced(files, tiny, damage, make_mirror, monkeypatch, tmp_path):
    mirror = make_mirror(files)
    use(monkeypatch, mirror)
    images.load_mnist()
    path = tmp_path / "cache" / "train-labels-idx1-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[15] ^= 4
    path.write_bytes(bytes(content) if damage == "flipped" else bytes(content[:20]))
    mirror.asked.clear()
    with pytest.warns(UserWarning, match=r"train-labels.* is damaged"):
        assert_equal(images.load_mnist(), tiny)
    assert mirror.asked == [path.name]
    assert path.read_bytes() == files[path.name]


@pytest.mark.parametrize("manner", ["hangs", "lies", "stops", "fails"])
def test_the_second_mirror_serves_when_the_first_is_bad(files, tiny, manner, make_mirror, monkeypatch):
    bad, good = make_mirror(files, manner), make_mirror(files)
    use(monkeypatch, bad, good)
    assert_equal(images.load_mnist(), tiny)
    assert len(bad.asked) == 1  # a mirror that failed once is asked no more
    assert good.asked == list(files)


def test_a_mirror_that_has_failed_is_asked_again_after_a_pause(files, tiny, make_mirror, monkeypatch):
    """So that a sweep behind a wall, which loads images for every task, does not wait for each."""
    mirror = make_mirror(files, "fails")
    use(monkeypatch, mirror)
    for reason in ("503", "has just failed"):
        with pytest.warns(UserWarning, match=f"could not be fetched.*{reason}"):
            images.load_mnist()
    assert len(mirror.asked) == 1
    mirror.manner = "works"
    monkeypatch.setattr(images.time, "monotonic", lambda now=time.monotonic: now() + images.PAUSE)
    assert_equal(images.load_mnist(), tiny)


def test_a_mirror_that_drips_has_a_time_limit(files, make_mirror):
    mirror = make_mirror(files, "drips")
    start = time.monotonic()
    with pytest.raises(OSError, match="too slow"):
        images._fetch(dict.fromkeys(files, ""), [mirror.url], 0.3, "mnist.npz")
    assert time.monotonic() - start < 10  # the whole file would take minutes
    assert len(mirror.asked) == 1


@pytest.mark.parametrize("blocked", ["lookup", "connection", "silence"])
def test_without_a_network_the_bundled_digits_take_its_place_and_say_so(files, blocked, monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        if blocked == "silence":  # packets are dropped: nothing ever comes back
            time.sleep(3)
        raise OSError("the network is blocked")

    monkeypatch.setattr("socket.create_connection" if blocked == "connection" else "socket.getaddrinfo", refuse)
    load_digits()  # not the time that its import takes
    start = time.monotonic()
    with pytest.warns(UserWarning, match="MNIST could not be fetched; 8x8 digits take its place"):
        data = images.load_mnist()
    assert time.monotonic() - start < 2.5
    assert data["name"] == "8x8 digits"
    assert data["x_train"].shape == (1500, 28, 28) and data["x_test"].shape == (297, 28, 28)
    assert data["x_train"].dtype == np.uint8 and data["x_train"].max() == 255
    assert set(data["y_train"]) == set(data["y_test"]) == set(range(10))
    assert data["y_train"].dtype == np.int64
    # Each original pixel is 3x3 equal pixels inside a frame of two.
    inner = data["x_train"][:, 2:-2, 2:-2].reshape(-1, 8, 3, 8, 3)
    assert (inner == inner[:, :, :1, :, :1]).all()
    assert data["x_train"].sum(dtype=int) == inner.sum(dtype=int)
    assert not list((tmp_path).rglob("*ubyte*"))


FILL = """
import sys
from mnist1d import images
images.platformdirs.user_cache_dir = lambda name: sys.argv[1]
images.MNIST_MIRRORS = [sys.argv[2]]
images.MNIST_SHA256 = dict(zip(images.MNIST_SHA256, sys.argv[3:]))
data = images.load_mnist()
print(data["name"], int(data["x_train"].sum()), int(data["y_test"].sum()))
"""


def test_two_processes_fill_the_cache_at_once(files, tiny, make_mirror, tmp_path):
    mirror, cache = make_mirror(files), tmp_path / "cache"
    command = [sys.executable, "-W", "error", "-c", FILL, str(cache), mirror.url, *images.MNIST_SHA256.values()]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out.split() == ["MNIST", str(tiny["x_train"].sum()), str(tiny["y_test"].sum())]
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == files


def test_find_data_prefers_the_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(images.platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache"))
    monkeypatch.setenv("MNIST1D_DATA", str(tmp_path / "folder"))
    with pytest.raises(ValueError, match=r"MNIST1D_DATA='.*folder': must be a folder that is there"):
        images.find_data("a.json")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "folder").mkdir()
    for folder in (tmp_path / "folder", "~/folder"):
        monkeypatch.setenv("MNIST1D_DATA", str(folder))
        assert images.find_data("a.json") is None
    for folder in ("cache", "folder"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "a.json").write_text("{}", encoding="utf-8")
        assert images.find_data("a.json") == tmp_path / folder / "a.json"


@pytest.fixture
def cifar(monkeypatch, files):
    """A CIFAR-10 archive in the official binary layout, 60 training and 20 test images, and what is in it."""
    rng = np.random.default_rng(1)
    data, buffer = {}, io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for split, name, n in (("train", "data_batch_1", 60), ("test", "test_batch", 20)):
            x = data[f"x_{split}"] = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
            y = data[f"y_{split}"] = rng.integers(0, 10, n, dtype=np.uint8)
            records = b"".join(bytes([b]) + a.transpose(2, 0, 1).tobytes() for a, b in zip(x, y, strict=True))
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = len(records)
            archive.addfile(member, io.BytesIO(records))
    content = buffer.getvalue()
    sums = {"cifar-10-binary.tar.gz": hashlib.sha256(content).hexdigest()}
    monkeypatch.setattr(images, "CIFAR10_SHA256", sums)
    return data, {"cifar-10-binary.tar.gz": content}


def test_cifar10_is_read_from_the_binary_archive(cifar, make_mirror, monkeypatch):
    data, archive = cifar
    monkeypatch.setattr(images, "CIFAR10_MIRRORS", [make_mirror(archive).url])
    assert_equal(images.load_cifar10(), data, name="CIFAR-10")


def test_cifar10_is_read_from_the_folder(cifar, monkeypatch, tmp_path):
    data, _ = cifar
    monkeypatch.setenv("MNIST1D_DATA", str(tmp_path))
    np.savez(tmp_path / "cifar10_subset.npz", **data)
    assert_equal(images.load_cifar10(), data, name="images of cifar10_subset.npz")


def test_cifar10_that_cannot_be_had_is_none_with_the_reason(cifar, make_mirror, monkeypatch):
    monkeypatch.setattr(images, "CIFAR10_MIRRORS", [make_mirror({}, "fails").url])
    with pytest.warns(UserWarning, match="CIFAR-10 could not be fetched .*503"):
        assert images.load_cifar10() is None
