"""Training and sweeps: batches, histories, bad input, failures. What modules compute is in test_zoo.py."""

import multiprocessing
import warnings

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from mnist1d import make_dataset, settings
from mnist1d.models import CNN, GRU, MLP, Logistic
from mnist1d.training import (
    SweepError,
    accuracy,
    batches,
    early_stopped,
    fit,
    split_tensors,
    sweep,
    train,
)

SEEDS = [3, 5, 8]


@pytest.fixture(scope="module")
def data():
    return make_dataset({"num_samples": 300}, validation_split=0.1)


def test_accuracy_is_in_percent_of_each_model():
    logits = torch.eye(4).expand(2, 4, 4)
    assert accuracy(logits, torch.tensor([[0, 1, 2, 3], [0, 0, 2, 0]])).tolist() == [100.0, 50.0]


def test_a_history_holds_arrays_by_seed_and_evaluation(data):
    history = train(MLP, data, SEEDS, steps=5, batch_size=50, eval_every=2)
    assert history.keys() == {"train_loss", "train_acc", "test_acc", "val_acc"}
    assert all(h.shape == (3, 4) and h.dtype == np.float64 for h in history.values())  # steps 0, 2, 4, 5
    assert np.isnan(history["train_loss"][:, 0]).all() and np.isfinite(history["train_loss"][:, 1:]).all()
    stack, again = fit(MLP, data, SEEDS, steps=5, batch_size=50, eval_every=2)
    for name in history:
        np.testing.assert_array_equal(history[name], again[name])
    x = torch.as_tensor(data["x_test"], dtype=torch.float32)
    for i in range(3):
        right = stack.get_module(i)(x).argmax(1).numpy() == data["y_test"]
        assert history["test_acc"][i, -1] == pytest.approx(100 * right.mean())


@pytest.mark.parametrize("seeds", [3, np.arange(3), range(3), (0, 1, 2)])
@pytest.mark.parametrize("order", ["cyclic", "shuffled"])
def test_seeds_may_be_any_sequence_or_their_number(data, seeds, order):
    options = {"steps": 2, "batch_size": 50, "order": order}
    expected = train(Logistic, data, [0, 1, 2], **options)
    np.testing.assert_array_equal(train(Logistic, data, seeds, **options)["train_loss"], expected["train_loss"])


def test_the_schedule_multiplies_the_learning_rate(data):
    options = {"optimizer": "sgd", "learning_rate": 0.1}
    scheduled, _ = fit(MLP, data, SEEDS, steps=6, schedule=lambda step: 1.0 if step < 4 else 0.0, **options)
    shorter, _ = fit(MLP, data, SEEDS, steps=4, **options)
    for name, value in shorter.params.items():
        assert torch.equal(scheduled.params[name], value)


def test_one_dataset_per_seed_equals_separate_runs(data):
    other = make_dataset({"num_samples": 300, "seed": 1}, validation_split=0.1)
    n = min(len(data["x"]), len(other["x"]))
    first, second = ({**d, "x": d["x"][:n], "y": d["y"][:n]} for d in (data, other))
    n_val = min(len(data["x_val"]), len(other["x_val"]))
    for d in (first, second):
        d["x_val"], d["y_val"] = d["x_val"][:n_val], d["y_val"][:n_val]
    together = train(MLP, [first, second], [0, 1], steps=10, eval_every=5)
    alone = train(MLP, second, [1], steps=10, eval_every=5)
    np.testing.assert_allclose(together["train_loss"][1], alone["train_loss"][0], rtol=1e-5)
    np.testing.assert_array_equal(together["val_acc"][1], alone["val_acc"][0])


def test_shuffled_order_visits_every_example_once_an_epoch_and_depends_on_the_seed():
    x = torch.arange(10.0).expand(2, 10)
    drawn = [xb for xb, _ in batches(x, x, [0, 1], steps=4, batch_size=5, order="shuffled")]
    for epoch in (torch.cat(drawn[:2], 1), torch.cat(drawn[2:], 1)):
        assert (epoch.sort(1).values == torch.arange(10)).all()
    assert not torch.equal(drawn[0][0], drawn[0][1]) and not torch.equal(drawn[0], drawn[2])
    late = [xb for xb, _ in batches(x, x, [0, 1], steps=4, batch_size=5, order="shuffled", start=3)]
    assert len(late) == 1 and torch.equal(late[0], drawn[3])


def test_cyclic_order_wraps_around():
    x = torch.arange(10).expand(1, 10)
    drawn = [xb[0].tolist() for xb, _ in batches(x, x, [0], steps=3, batch_size=4)]
    assert drawn == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]


def test_each_seed_takes_batches_from_its_own_dataset():
    x, y = torch.arange(20).unflatten(0, (2, 10)), torch.arange(10).expand(2, 10)
    xb, yb = next(batches(x, y, [0, 1], steps=1, batch_size=3))
    assert xb.tolist() == [[0, 1, 2], [10, 11, 12]] and yb.tolist() == [[0, 1, 2]] * 2


def test_integers_stay_integers_and_floats_take_the_default_dtype():
    data = {"x": np.arange(6, dtype=np.uint8).reshape(3, 2), "y": np.array([0.5, 1.5, -9.54])}
    x, y = split_tensors(data, "", 2)
    assert x.dtype == torch.int64 and y.dtype == torch.float32 and y[1].tolist() == pytest.approx([0.5, 1.5, -9.54])


def test_given_state_replaces_the_initial_one(data):
    start, _ = fit(MLP, data, [9, 9], steps=0)
    stack, _ = fit(MLP, data, [0, 1], steps=0, state={"linear1.weight": start.params["linear1.weight"]})
    assert torch.equal(stack.params["linear1.weight"], start.params["linear1.weight"])
    assert not torch.equal(stack.params["linear2.weight"], start.params["linear2.weight"])


def test_early_stopping_looks_at_the_validation_set_alone():
    history = {
        "val_acc": np.array([[1, 5, 5, 2], [9, 1, 1, 1]]),
        "test_acc": np.array([[10, 20, 99, 30], [7, 99, 99, 99]]),
    }
    np.testing.assert_array_equal(early_stopped(history), [20, 7])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "random"}, "order='random'"),
        ({"optimizer": "lion"}, "optimizer='lion'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 10**6}, "batch_size=1000000"),
        ({"steps": -1}, "steps=-1: must be at least 0"),
        ({"eval_every": 0}, "eval_every=0: must be at least 1"),
        ({"seeds": []}, r"seeds=\[\]"),
        ({"learning_rate": [0.1, 0.1]}, "learning_rate: 2 rates for 1 seeds"),
    ],
)
def test_bad_options_are_named(data, options, message):
    with pytest.raises(ValueError, match=message):
        train(MLP, data, **{"steps": 1, "seeds": [0], **options})
    with pytest.raises(ValueError, match="2 datasets for 3 seeds"):
        train(MLP, [data, data], SEEDS, steps=1)


def test_a_diverged_seed_is_nan_from_there_on_and_named(data):
    other = {**data, "x": np.full_like(data["x"], 1e30)}
    with pytest.warns(RuntimeWarning, match=r"seeds \[8\] diverged: NaN from step 4 on"):
        history = train(MLP, [data, other], [7, 8], steps=8, eval_every=4, optimizer="sgd", learning_rate=0.1)
    for name in ("train_loss", "train_acc", "test_acc"):
        assert np.isnan(history[name][1, 1:]).all() and np.isfinite(history[name][0, 1:]).all()
    assert np.isfinite(history["test_acc"][:, 0]).all()


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
        ([Logistic, Logistic], [0], 1, "not all different"),
    ):
        with pytest.raises(ValueError, match=message):
            sweep(double, variants, seeds, chunk=chunk)


def test_a_sweep_runs_on_a_dask_cluster_with_the_same_numbers(monkeypatch, data):
    distributed = pytest.importorskip("dask.distributed")
    import joblib

    def run(build, seeds):
        return train(build, data, seeds, steps=3, batch_size=50)

    monkeypatch.setenv("JOBS", "2")
    expected = sweep(run, [Logistic, MLP], 2, chunk=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
        with cluster, distributed.Client(cluster), joblib.parallel_config(backend="dask"):
            results = sweep(run, [Logistic, MLP], 2, chunk=1)
    for name, history in expected.items():
        np.testing.assert_array_equal(results[name]["train_loss"], history["train_loss"])


def test_environment_is_checked(monkeypatch):
    for value in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("JOBS", value)
        with pytest.raises(ValueError, match=f"JOBS='{value}'"):
            settings.get_jobs()
    monkeypatch.setenv("MNIST1D_PROFILE", "full")
    with pytest.raises(ValueError, match="MNIST1D_PROFILE='full'"):
        settings.profile()
    monkeypatch.setenv("MNIST1D_DEVICE", "meta")
    assert settings.get_device().type == "meta"


def test_arrays_that_cannot_be_written_are_taken_without_a_warning():
    data = {name: np.asarray(value) for name, value in make_dataset({"num_samples": 100}).items() if name[0] in "xy"}
    for value in data.values():
        value.flags.writeable = False  # as joblib hands large arrays to its workers
    x, _ = split_tensors(data, "", 2)
    assert torch.equal(x[1], torch.tensor(data["x"], dtype=torch.float32))
