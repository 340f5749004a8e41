"""Sweeps: workers, chunks, failures, clusters. One code path on one processor: nothing here depends on rounding."""

import importlib
import itertools
import json
import math
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from joblib.externals.loky import get_reusable_executor
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from mnist1d import make_dataset, settings
from mnist1d.engine import inspection, workers
from mnist1d.engine.inspection import is_library
from mnist1d.models import CNN, GRU, MLP, Logistic
from mnist1d.training import SweepError, sweep, train


@pytest.fixture(scope="module")
def data():
    return make_dataset({"num_samples": 300}, validation_split=0.1)


def double(variant, seeds):
    return {"a": {"b": np.array([[variant * s, s] for s in seeds])}, "seed": torch.tensor(seeds)}


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_sweep_joins_chunks_in_the_order_of_the_seeds(monkeypatch, jobs):
    monkeypatch.setenv("JOBS", jobs)
    results = sweep(double, {"x": 2, "y": 3}, [5, 6, 7], chunk=2)
    np.testing.assert_array_equal(results["y"]["a"]["b"], [[15, 5], [18, 6], [21, 7]])
    np.testing.assert_array_equal(results["x"]["seed"], [5, 6, 7])


def count_threads(variant, seeds):
    counts = [library["num_threads"] for library in threadpool_info()] + [torch.get_num_threads()]
    return {"threads": np.tile(counts, (len(seeds), 1))}


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_task_has_one_thread_wherever_it_runs(monkeypatch, jobs):
    monkeypatch.setenv("JOBS", jobs)
    with threadpool_limits(2):
        results = sweep(count_threads, {"x": None, "y": None}, [0])
        assert {library["num_threads"] for library in threadpool_info()} == {2}
    assert all((result["threads"] == 1).all() for result in results.values())


def fail_for_y(variant, seeds):
    if variant == "y" and 1 in seeds:
        raise KeyError("no such thing")
    return {"seed": np.array(seeds)}


def widen(variant, seeds):
    return np.zeros((len(seeds), 1 + seeds[0] if variant == "ragged" else 1))


def test_results_that_do_not_fit_together_are_named_and_kept(monkeypatch):
    monkeypatch.setenv("JOBS", "1")
    with pytest.raises(SweepError, match=r"variant 'ragged'.*ValueError") as caught:
        sweep(widen, ["ragged", "even"], 2, chunk=1)
    assert [part.shape for part in caught.value.finished["ragged"]] == [(1, 1), (1, 2)]
    assert caught.value.finished["even"].shape == (2, 1)


def test_a_sweep_leaves_the_environment_and_the_processor_as_they_were(monkeypatch):
    monkeypatch.setenv("JOBS", "1")
    before, tiny = dict(os.environ), torch.tensor([1e-39])
    for flush in (True, False):
        torch.set_flush_denormal(flush)
        sweep(double, {"x": 2}, 1)
        assert bool((tiny / 2).item()) != flush
    assert dict(os.environ) == before


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_failing_variant_is_named_and_the_others_are_kept(monkeypatch, jobs):
    monkeypatch.setenv("JOBS", jobs)
    with pytest.raises(SweepError, match=r"variant 'y', seeds \[1\]: KeyError") as caught:
        sweep(fail_for_y, ["x", "y", "z"], 2, chunk=1)
    assert caught.value.finished.keys() == {"x", "z"}
    np.testing.assert_array_equal(caught.value.finished["z"]["seed"], [0, 1])


def stop_at_z(variant, seeds):
    if variant == "z":
        raise KeyboardInterrupt
    return np.array(seeds)


def test_an_interrupt_keeps_what_had_ended(monkeypatch):
    monkeypatch.setenv("JOBS", "1")
    with pytest.raises(KeyboardInterrupt) as caught:
        sweep(stop_at_z, ["x", "y", "z"], 2)
    assert caught.value.finished.keys() == {"x", "y"}


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_has_ended_is_read_by_the_next_run(monkeypatch, tmp_path, jobs):
    monkeypatch.setenv("JOBS", str(jobs))
    monkeypatch.setenv("MNIST1D_PARTS", str(tmp_path))
    monkeypatch.setattr("mnist1d.parts._open", lambda: tmp_path / "parts")
    log, ready = tmp_path / "log", tmp_path / "ready"
    names = str(log), str(ready)  # a path remembers what it was asked for

    def run(variant, seeds):
        with open(names[0], "a", encoding="utf-8") as file:
            file.write(f"{variant}{seeds[0]} ")
        time.sleep(0.2)
        if variant == "late" and not os.path.exists(names[1]):
            raise RuntimeError("not yet")
        by_columns = np.asfortranarray(np.arange(6.0).reshape(1, 2, 3)) + seeds[0]
        few = np.array([seeds[0] + 0.1], dtype=np.float32)
        result = {"x": by_columns, "pair": (few, [len(variant)]), 3: [np.float64(seeds[0])], "text": [f"é{variant}"]}
        return result | ({"tensor": torch.zeros(1)} if variant == "tensor" else {})

    def sweep_all():
        log.write_text("", encoding="utf-8")
        settings.start_clock()
        try:
            return sweep(run, ["early", "tensor", "late"], 2, chunk=1)
        finally:
            assert settings.seconds() > 6 * 0.2 / jobs  # with those that another run has spent

    with pytest.raises(SweepError, match="not yet"):
        sweep_all()
    assert sorted(log.read_text(encoding="utf-8").split()) == [
        f"{v}{i}" for v in ("early", "late", "tensor") for i in (0, 1)
    ]
    ready.touch()
    for path in (tmp_path / "parts").iterdir():  # one of them damaged
        if b"early" in (content := path.read_bytes()) and b"tensor" not in content:
            path.write_bytes(content[:-20])
            break
    found = sweep_all()
    made = sorted(log.read_text(encoding="utf-8").split())
    assert made[0] in ("early0", "early1") and made[1:] == ["late0", "late1", "tensor0", "tensor1"]  # no tensor is read
    monkeypatch.delenv("MNIST1D_PARTS")
    plain = sweep_all()
    np.testing.assert_equal(found, plain)
    assert repr(found) == repr(plain)
    found["early"]["x"] += 1  # may be written to


def test_a_sweep_takes_whatever_a_function_returns_per_seed(data):
    results = sweep(lambda build, s: train(build, data, s, steps=2, batch_size=50), [Logistic, MLP], 3, chunk=2)
    assert results.keys() == {"Logistic", "MLP"} and results["MLP"]["test_acc"].shape == (3, 2)
    mixed = sweep(lambda v, s: ([str(i) for i in s], [0.5 * i for i in s], np.array(s)), {"a": 0}, 3, chunk=2)["a"]
    assert mixed[0] == ["0", "1", "2"] and mixed[1].tolist() == [0, 0.5, 1] and mixed[2].tolist() == [0, 1, 2]


def show_dtype(variant, seeds):
    in_worker = multiprocessing.current_process().name != "MainProcess"
    return [str(torch.zeros(1).dtype)] * len(seeds), [float(in_worker)] * len(seeds)


def test_the_default_dtype_reaches_the_workers(monkeypatch):
    monkeypatch.setenv("JOBS", "2")
    torch.set_default_dtype(torch.float64)
    try:
        results = sweep(show_dtype, ["x", "y"], [0])
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(dtypes == ["torch.float64"] and where.tolist() == [1.0] for dtypes, where in results.values())


class Noisy(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(40, 10), nn.Dropout(0.5), nn.Linear(10, 10))


@pytest.mark.parametrize("build", [CNN, GRU, Noisy])
def test_numbers_do_not_depend_on_the_workers(monkeypatch, data, build):
    def run(rate, seeds):
        return train(build, data, seeds, steps=6, batch_size=50, learning_rate=rate)

    results = []
    for jobs in ("1", "2"):
        monkeypatch.setenv("JOBS", jobs)
        results.append(sweep(run, [0.01, 0.02], 2))
    for rate in (0.01, 0.02):
        for name, values in results[0][rate].items():
            np.testing.assert_array_equal(values, results[1][rate][name])


def test_bad_sweeps_are_refused():
    for variants, seeds, chunk, message in (
        ({}, [0], 1, "variants is empty"),
        ({"x": 1}, [], None, "seeds"),
        ({"x": 1}, [0], 0, "chunk=0"),
        ({"x": 1}, [0], 1.5, "chunk=1.5"),
        ([Logistic, Logistic], [0], 1, "not all different"),
    ):
        with pytest.raises(ValueError, match=message):
            sweep(double, variants, seeds, chunk=chunk)


def test_a_sweep_runs_on_a_dask_cluster_with_the_same_numbers(monkeypatch, data):
    distributed = pytest.importorskip("dask.distributed")
    import joblib

    def run(build, seeds):
        return train(build, data, seeds, steps=3, batch_size=50)

    monkeypatch.setenv("JOBS", "1")
    expected = sweep(run, [Logistic, MLP], 2, chunk=1)
    monkeypatch.setenv("JOBS", "2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
        with cluster, distributed.Client(cluster), joblib.parallel_config(backend="dask"):
            results = sweep(run, [Logistic, MLP], 2, chunk=1)
    for name, history in expected.items():
        np.testing.assert_array_equal(results[name]["train_loss"], history["train_loss"])


def test_results_without_an_entry_for_each_seed_are_named():
    for made, entries in ((lambda seeds: 0.5, "1, 1"), (lambda seeds: np.zeros(3), "3, 3")):
        message = rf"entries of run's results=\[{entries}\]: must be \[2, 1\], one for each"
        with pytest.raises(SweepError, match=message):
            sweep(lambda _, seeds, made=made: {"a": made(seeds)}, ["one"], 3, chunk=2)
    found = sweep(lambda _, seeds: {"acc": np.zeros((3, 4)), "steps": np.arange(4), "a": 0.5}, ["one"], 3)["one"]
    assert found["steps"].tolist() == [0, 1, 2, 3] and found["a"] == 0.5  # of one call nothing is joined


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((3, [1], 1), "run=3: must be callable"), ((len, None, 1), "variants=None: must be a dict of name to variant")],
)
def test_bad_arguments_of_a_sweep_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sweep(*arguments)


OWN = """
import dataclasses
import types

import numpy as np

WIDTH = 1
CONFIG = {"depth": [1]}
UNSET = 5
SPACE = types.SimpleNamespace(rate=1)
TABLE = np.ones(3)
SCRATCH = np.zeros(300_000)

@dataclasses.dataclass(frozen=True)
class Config:
    names: frozenset = frozenset({"a", "b", "c", "d", "e", "f"})
    rate: float = 0.5

FROZEN = Config()

class Wide:
    height = 1

    def __init__(self):
        self.width = WIDTH

def run(factor, seeds):
    SCRATCH[:3] = factor
    held = [Wide.height, SPACE.rate, int(TABLE.sum()) if len(FROZEN.names) == 6 and FROZEN.rate == 0.25 else None]
    return [[factor * Wide().width, CONFIG["depth"][0], UNSET, *held] for _ in seeds]
"""


def test_what_was_set_in_a_module_reaches_the_workers(monkeypatch, tmp_path):
    (tmp_path / "own_settings.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    get_reusable_executor().shutdown()  # whose workers do not know the new folder
    own = importlib.import_module("own_settings")
    own.WIDTH, own.CONFIG["depth"] = 7, [3]
    own.Wide.height, own.SPACE.rate, own.TABLE = 2, 4, np.zeros(3)
    own.FROZEN = own.Config(rate=0.25)
    monkeypatch.setenv("JOBS", "2")

    def run(factor, seeds):
        return own.run(factor, seeds)

    for each in (own.run, run):
        assert sweep(each, [1, 2], 1) == {1: [[7, 3, 5, 2, 4, 0]], 2: [[14, 3, 5, 2, 4, 0]]}
    own.WIDTH = 9  # the same workers
    assert sweep(own.run, [1, 2], 1) == {1: [[9, 3, 5, 2, 4, 0]], 2: [[18, 3, 5, 2, 4, 0]]}


ENDLESS = """
import os, sys, time
os.environ["JOBS"] = "2"
from mnist1d.training import sweep

def run(variant, seeds):
    print(os.getpid(), flush=True)
    while True:
        time.sleep(0.1)

if __name__ == "__main__":
    sweep(run, [1, 2], 1)
"""


@pytest.mark.skipif(os.name == "nt", reason="a process there does not learn of its parent's end")
def test_workers_end_with_a_process_that_is_killed(tmp_path):
    (tmp_path / "endless.py").write_text(ENDLESS, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "endless.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    process.wait()
    process.stdout.close()
    end = time.monotonic() + 60
    while (left := [pid for pid in workers if is_running(pid)]) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")  # an ended one that nobody has asked for counts as ended
    return not (status.is_file() and status.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z")


def test_threads_of_one_process_train_in_turn_with_the_same_numbers(monkeypatch, data):
    import joblib

    class Noisy(MLP):
        def forward(self, x):
            return super().forward(x + 0.5 * torch.randn_like(x) if self.training else x)

    def run(build, seeds):
        return train(build, data, seeds, steps=30, batch_size=50)

    monkeypatch.setenv("JOBS", "2")
    expected = sweep(run, [Noisy, MLP], 2, chunk=1)
    with joblib.parallel_config(backend="threading"):
        results = sweep(run, [Noisy, MLP], 2, chunk=1)
    for name, history in expected.items():
        np.testing.assert_array_equal(results[name]["train_loss"], history["train_loss"])


def test_a_sweep_within_a_sweep_runs_in_its_place(monkeypatch):
    monkeypatch.setenv("JOBS", "2")

    def place(_, seeds):
        return [(os.getpid(), threading.get_ident()) for _ in seeds]

    def run(variant, seeds):
        inner = sweep(place, ["first", "second"], seeds, chunk=1)
        return [{(os.getpid(), threading.get_ident())} == {*inner["first"], *inner["second"]} for _ in seeds]

    assert all(np.all(same) for same in sweep(run, ["a", "b"], 2, chunk=1).values())


def test_environment_is_checked(monkeypatch):
    for value in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("JOBS", value)
        with pytest.raises(ValueError, match=f"JOBS='{value}'"):
            settings.get_jobs()
    monkeypatch.setenv("MNIST1D_PROFILE", "full")
    with pytest.raises(ValueError, match="MNIST1D_PROFILE='full'"):
        settings.profile()
    monkeypatch.setenv("MNIST1D_DEVICE", "cpu:0")
    assert settings.get_device() == torch.device("cpu:0")
    monkeypatch.setenv("MNIST1D_DEVICE", "meta")
    with pytest.raises(ValueError, match="MNIST1D_DEVICE='meta': must be a device of this machine"):
        settings.get_device()


@pytest.mark.parametrize("make", [np.array, torch.tensor, lambda rates: list(np.float32(rates))])
def test_numbers_of_any_kind_are_their_own_names(make):
    rates = make([2.0, 1.0, 0.5])
    results = sweep(lambda rate, seeds: {"rate": np.full(len(seeds), float(rate))}, rates, 2)
    assert all((result["rate"] == name).all() for name, result in results.items()) and set(results) == {2.0, 1.0, 0.5}


def test_results_of_other_keys_for_some_seeds_are_named():
    def run(variant, seeds):
        return {"a": np.array(seeds)} | ({"b": np.array(seeds)} if 2 in seeds else {})

    with pytest.raises(SweepError, match="the same for all seeds"):
        sweep(run, {"one": 1}, 4, chunk=2)


EDITED = """
import functools
import os
import numpy as np
import torch

WEIGHT, TABLE = torch.tensor(1.0), {"w": np.ones(3)}

def scale(by):
    return lambda function: lambda: by * function()

@scale(1.0)
def factor(added=0.0):
    return 1.0 + added

@functools.cache
def remembered():
    return 0.0

class Model:
    def get(self):
        return float(WEIGHT) + TABLE["w"].sum() + remembered()

def run(variant, seeds):
    place = len(os.getcwd()) + len(os.environ.get("OWN_VARIABLE", ""))
    return np.full(len(seeds), 100.0 * factor() + Model().get() + place)
"""


def test_workers_have_what_this_process_has(tmp_path, monkeypatch):
    """What was set, where it works, and which code it has: also where the file of a module says otherwise."""
    file = tmp_path / "own_module.py"
    file.write_text(EDITED, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    own = importlib.import_module("own_module")
    monkeypatch.setitem(sys.modules, "own_module", own)
    get_reusable_executor().shutdown(wait=True)  # workers that are to find the module

    def run_both():
        found = []
        for jobs in "12":
            monkeypatch.setenv("JOBS", jobs)
            found.append(sweep(own.run, {"a": 0, "b": 1}, 2)["b"].tolist())
        assert found[0] == found[1]
        return found[0]

    seen = [run_both()]
    own.WEIGHT.fill_(5.0)
    own.TABLE["w"][:] = 7.0
    monkeypatch.setenv("OWN_VARIABLE", "some text")
    monkeypatch.chdir(tmp_path)
    seen.append(run_both())
    monkeypatch.delenv("OWN_VARIABLE")  # which running workers have been given
    monkeypatch.chdir("/")
    seen.append(run_both())
    edits = [("return 1.0", "return 2.5"), ("added=0.0", "added=3.0"), ("scale(1.0)", "scale(6.0)")]
    codes = []
    for old, new in [("", ""), *edits, ("return 0.0", "return 19.0")]:
        file.write_text(EDITED.replace(old, new), encoding="utf-8")
        importlib.reload(own)
        codes.append(workers.list_settings([own.run])[1])
    assert all(a != b for a, b in itertools.combinations(codes, 2))  # by which workers are started anew
    seen.append(run_both())
    file.write_text(EDITED, encoding="utf-8")
    get_reusable_executor().shutdown(wait=True)  # new workers read the file, as one that joblib starts does
    with pytest.warns(UserWarning, match="runs in this process alone, as own_module is not what workers import"):
        assert run_both() == seen[-1]
    monkeypatch.setattr(own, "factor", lambda: 9.0)
    with pytest.warns(UserWarning, match="runs in this process alone"):
        seen.append(run_both())
    assert len(set(map(str, seen))) == len(seen)
    get_reusable_executor().shutdown(wait=True)


@pytest.mark.skipif(os.name == "nt", reason="a folder in use cannot be removed there")
def test_a_folder_that_is_gone_stops_no_sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("JOBS", "2")
    get_reusable_executor().shutdown(wait=True)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    found = [sweep(double, [1, 2], 2)[2]["seed"].tolist()]  # its workers start there
    gone.rmdir()
    found.append(sweep(double, [1, 2], 2)[2]["seed"].tolist())
    monkeypatch.chdir(tmp_path)
    found.append(sweep(double, [1, 2], 2)[2]["seed"].tolist())
    assert found == [[0, 1]] * 3
    get_reusable_executor().shutdown(wait=True)


def test_code_of_a_notebook_is_no_library_in_a_worker(monkeypatch):
    """A worker's own `__main__` is a file of joblib's; what the user's functions read is looked at all the same."""
    monkeypatch.setenv("JOBS", "2")

    def of_a_cell():
        return 1

    of_a_cell.__module__ = "__main__"
    found = sweep(lambda variant, seeds: [is_library(variant)] * len(seeds), {"a": of_a_cell, "b": of_a_cell}, 1)
    assert not found["a"][0] and not found["b"][0]


def test_a_module_of_ones_own_may_have_the_name_of_one_of_pythons(monkeypatch, tmp_path):
    (tmp_path / "wave.py").write_text("def height():\n    return 1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "wave", None)
    del sys.modules["wave"]
    inspection._is_installed.cache_clear()
    try:
        assert not is_library(importlib.import_module("wave").height)
        assert all(map(is_library, (json.dumps, math.sqrt, os.getcwd, threading.Thread, torch.relu, nn.ReLU)))
    finally:
        inspection._is_installed.cache_clear()


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_result_that_cannot_be_sent_takes_no_other_with_it(monkeypatch, jobs):
    monkeypatch.setenv("JOBS", jobs)

    def run(variant, seeds):
        return np.array(seeds) if variant else threading.Lock()

    variants = {"a": 1, "b": 0, "c": 1}
    if jobs == "1":
        assert [*sweep(run, variants, 1)] == [*variants]
        return
    with pytest.raises(SweepError, match=r"variant 'b'.*cannot be sent") as caught:
        sweep(run, variants, 1)
    assert [*caught.value.finished] == ["a", "c"]


def test_masks_of_some_seeds_are_kept(monkeypatch):
    monkeypatch.setenv("JOBS", "1")

    def run(variant, seeds):
        x = np.array(seeds, dtype=float)
        return np.ma.array(x, mask=[True]) if seeds[0] == 1 else x

    assert sweep(run, {"a": 0}, 3, chunk=1)["a"].mask.tolist() == [False, True, False]
