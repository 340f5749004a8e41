"""A comparison answers rightly, tests once, goes on after an interruption, and chooses without the test set."""

import collections
import functools
import importlib
import io
import json
import logging
import random
import re
import subprocess
import sys
import types
import warnings
from typing import NamedTuple

import joblib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mnist1d
from mnist1d import comparison
from mnist1d.claims import confidence_interval
from mnist1d.comparison import Comparison, compare, judge_difference
from mnist1d.engine.description import describe
from mnist1d.models import CNN, MLP, Logistic
from mnist1d.training import SweepError, fit, train
from mnist1d.utils import ObjectView
from notebooks import run_parameters

DATA = mnist1d.make_dataset(num_samples=500)


def make_comparison(accuracy, margin=0.5):
    """What `compare` would return for accuracies [seed] by arm."""
    rest = [dict.fromkeys(accuracy, value) for value in (0.0, 1, 1.0, {}, [])]
    return Comparison("made up", accuracy, *rest, margin)


def repeat(difference, sd, others=1, seeds=10, margin=0.5):
    """100 repetitions of arms whose accuracies differ from the baseline's by a known amount: the answers."""
    answers = []
    for repetition in range(100):
        rng = np.random.default_rng([repetition, round(100 * abs(difference)), others])
        shared = 90 + rng.normal(0, 1, seeds)  # what the seed gives all arms
        accuracy = {"baseline": shared + rng.normal(0, sd, seeds)}
        accuracy |= {f"arm {i}": shared + difference + rng.normal(0, sd, seeds) for i in range(others)}
        answers.append(make_comparison(accuracy, margin).answer)
    return answers


@pytest.mark.parametrize(
    ("difference", "sd", "answer"),
    [(1.0, 0.5, "better"), (-1.0, 0.5, "worse"), (0.0, 0.25, "equivalent"), (0.1, 0.2, "equivalent")],
)
def test_known_differences_are_found(difference, sd, answer):
    assert sum(answers["arm 0"] == answer for answers in repeat(difference, sd)) >= 93


@pytest.mark.parametrize("others", [1, 5])
def test_equal_arms_are_seldom_called_better(others):
    answers = repeat(0.0, 1.0, others, margin=0.0)
    assert sum("better" in a.values() for a in answers) <= 5
    assert sum("better" in a.values() or "worse" in a.values() for a in answers) <= 10


def test_the_interval_is_the_usual_one():
    values = np.array([1.0, 2.0, 4.0])
    mean, low, high = confidence_interval(values)
    assert mean == pytest.approx(7 / 3)
    half = 4.30265 * values.std(ddof=1) / np.sqrt(3)  # the 97.5% quantile of t with two degrees of freedom
    assert (low, high) == (pytest.approx(mean - half, abs=1e-4), pytest.approx(mean + half, abs=1e-4))


def test_the_number_of_new_seeds_counts_both_ways_to_decide():
    difference = np.array([-0.55, 1.05, -0.15, 0.65, 0.25])  # half a margin off zero: either answer may come
    _, needed = judge_difference(difference, 0.5)
    mean, sd, rng = difference.mean(), difference.std(ddof=1), np.random.default_rng(0)

    def decide(n):
        low, high = np.array([confidence_interval(sample)[1:] for sample in rng.normal(mean, sd, (2000, n))]).T
        return np.mean((low > 0) | (high < 0) | ((low >= -0.5) & (high <= 0.5)))

    assert 0.77 < decide(needed) < 0.83 and decide(needed // 2) < 0.7


def test_equal_differences_are_told_whatever_their_rounding():
    found = make_comparison({"x": np.array([90.1, 88.6, 50.2]), "y": np.array([90.2, 88.7, 50.3])})
    assert np.ptp(found.difference["y"]) > 0 and "With equal differences for all seeds (y)" in str(found)


@pytest.mark.parametrize(("shift", "margin", "right"), [(0.4, 0.1, "better"), (0.0, 0.8, "equivalent")])
def test_four_times_in_five_as_many_new_seeds_as_it_names_decide(shift, margin, right):
    difference = np.array([1.0, -1.0, 0.8, -0.8, 0.3, -0.3]) + shift
    answer, needed = judge_difference(difference, margin)
    assert answer == "undecided" and needed > len(difference)
    rng = np.random.default_rng(0)
    draw = lambda n: rng.normal(difference.mean(), difference.std(ddof=1), n)  # noqa: E731
    decided = [judge_difference(draw(needed), margin)[0] == right for _ in range(1000)]
    assert 0.75 < np.mean(decided) < 0.86
    assert judge_difference(np.array([1.0, -1.0, 0.001]), margin=0.0)[1] == comparison.MOST_SEEDS
    many = np.tile([20.0, -20.0], comparison.MOST_SEEDS)
    assert judge_difference(many, margin=0.0) == ("undecided", comparison.MOST_SEEDS)


def test_without_spread_there_is_no_doubt():
    assert judge_difference(np.zeros(3))[0] == "equivalent" and judge_difference(np.ones(3))[0] == "better"
    assert judge_difference(np.zeros(3), margin=0)[0] == "equivalent"
    same = make_comparison({"a": np.array([90.0, 91.0]), "b": np.array([91.0, 92.0])})
    assert "With equal differences for all seeds (b) an interval says nothing of chance" in str(same)


class Spy:
    """Counts long runs, and evaluations on the test set."""

    def __init__(self, monkeypatch, data):
        self.fits, self.tests = [], 0
        fit, evaluate = comparison.fit, comparison.evaluate
        x_test = torch.as_tensor(data["x_test"], dtype=torch.float32)

        @functools.wraps(fit)
        def counting_fit(build, data, seeds, **options):
            assert set(data) == {"x", "y"}
            if options["steps"] > 3:
                self.fits.append((build, list(seeds), len(data["x"])))
            return fit(build, data, seeds, **options)

        def counting_evaluate(stack, x, y):
            self.tests += x[0].shape == x_test.shape and torch.equal(x[0], x_test)
            return evaluate(stack, x, y)

        monkeypatch.setattr(comparison, "fit", counting_fit)
        monkeypatch.setattr(comparison, "evaluate", counting_evaluate)


SETTINGS = {"seeds": 2, "budget": 20, "tune_seeds": 1, "margin": 0.5}


@pytest.mark.filterwarnings("ignore:.*edge of")
def test_each_arm_meets_the_test_set_once(monkeypatch):
    spy = Spy(monkeypatch, DATA)
    result = compare({"logistic": Logistic, "MLP": MLP}, DATA, tune={"learning_rate": [1e-3, 1e-2]}, **SETTINGS)
    assert spy.tests == 2
    assert "the test set was used once for each arm" in str(result)
    tuned = [(seeds, n) for _, seeds, n in spy.fits]
    assert tuned == [([1_000_000, 1_000_000], 319), ([0, 1], 400)] * 2  # new seeds, all training examples


def test_a_choice_knows_nothing_of_the_test_set():
    spoiled = {**DATA, "x_test": 0 * DATA["x_test"], "y_test": (DATA["y_test"] + 1) % 10}
    settings = SETTINGS | {"tune": {"learning_rate": [1e-6, 1e-2, 1e3]}}
    first, second = (compare({"MLP": MLP}, data, **settings) for data in (DATA, spoiled))
    assert first.chosen == second.chosen == {"MLP": {"learning_rate": 1e-2}}
    assert first.validation == second.validation
    np.testing.assert_array_equal(first.train_accuracy["MLP"], second.train_accuracy["MLP"])
    assert (first.accuracy["MLP"] != second.accuracy["MLP"]).all()


@pytest.mark.parametrize("name", ["adam", "optimizer"])
def test_the_final_run_is_trains(name):
    options = {"optimizer": lambda params: torch.optim.AdamW(params, lr=1.0)} if name == "optimizer" else {}
    result = compare({"CNN": {"build": CNN, "learning_rate": 5e-3, **options}}, DATA, **SETTINGS)
    options = {"optimizer": lambda params: torch.optim.AdamW(params, lr=5e-3)} if options else {"learning_rate": 5e-3}
    history = train(CNN, DATA, 2, steps=20, order="shuffled", **options)
    np.testing.assert_allclose(result.accuracy["CNN"], history["test_acc"][:, -1])
    np.testing.assert_allclose(result.train_accuracy["CNN"], history["train_acc"][:, -1])
    assert result.parameters == {"CNN": 5210} and result.seconds["CNN"] > 0


def test_all_combinations_are_tried():
    tune = {"learning_rate": [1e-6, 1e-2], "weight_decay": [0.0, 1e-4], "optimizer": ["adam", torch.optim.NAdam]}
    with pytest.warns(UserWarning, match="edge of"):
        result = compare({"MLP": MLP}, DATA, tune=tune, **SETTINGS)
    assert len(result.validation["MLP"]) == 8
    assert result.chosen["MLP"]["learning_rate"] == 1e-2
    assert "learning_rate=0.01" in str(result)


def test_loss_and_regularisation_are_arms_too():
    arms = {
        "plain": Logistic,
        "smooth": {"build": Logistic, "loss": nn.CrossEntropyLoss(label_smoothing=0.1)},
        "squares": {"build": Logistic, "loss": lambda out, y: F.mse_loss(out, F.one_hot(y, 10).float())},
        "dropout": {"build": lambda: nn.Sequential(nn.Dropout(0.1), nn.Linear(40, 10)), "steps": 30},
        "rate": {"build": Logistic, "schedule": lambda step: 1 - step / 20, "clip": 1.0},
    }
    result = compare(arms, DATA, **SETTINGS)
    assert all(10 < a.mean() < 60 for a in result.accuracy.values())
    assert result.level == pytest.approx(1 - 0.05 / 4)


def test_a_run_that_diverges_is_never_chosen_and_counts_as_chance(tmp_path):
    three = {**DATA, "y": DATA["y"] % 3, "y_test": np.zeros_like(DATA["y_test"])}  # class 0 would be right
    settings = SETTINGS | {"tune": {"learning_rate": (1e-6, 1e-3, 1e30)}, "cache": tmp_path}
    chosen = compare({"MLP": {"build": MLP, "optimizer": "sgd"}}, three, **settings)
    assert chosen.chosen["MLP"]["learning_rate"] < 1 and np.isneginf(chosen.validation["MLP"][2])
    assert chosen.tried["MLP"][2] == {"learning_rate": 1e30} and chosen.diverged == {"MLP": []}
    arms = {"MLP": MLP, "wild": {"build": MLP, "optimizer": "sgd", "learning_rate": 1e30}}
    for _ in range(2):  # computed, then kept
        with pytest.warns(RuntimeWarning, match=r"wild, data: seeds \[0, 1\] diverged and count as chance"):
            result = compare(arms, three, cache=tmp_path, **SETTINGS)
        assert result.diverged == {"MLP": [], "wild": [0, 1]} and "2 diverged" in str(result)
        np.testing.assert_allclose(result.accuracy["wild"], 100 / 3)


def test_a_damaged_file_of_the_cache_is_computed_again(tmp_path):
    first = compare({"MLP": MLP}, DATA, cache=tmp_path, **SETTINGS)
    (kept,) = tmp_path.glob("*.json")
    kept.write_text(kept.read_text(encoding="utf-8")[:20], encoding="utf-8")
    with pytest.warns(UserWarning, match="is damaged and computed again"):
        again = compare({"MLP": MLP}, DATA, cache=tmp_path, **SETTINGS)
    np.testing.assert_array_equal(first.accuracy["MLP"], again.accuracy["MLP"])
    for content in ("{}", "null", '{"accuracy": [1, 2]}', json.dumps(first.accuracy["MLP"].tolist()), "[" * 10**5):
        kept.write_text(content, encoding="utf-8")
        with pytest.warns(UserWarning, match="is damaged and computed again"):
            again = compare({"MLP": MLP}, DATA, cache=tmp_path, **SETTINGS)
        np.testing.assert_array_equal(first.accuracy["MLP"], again.accuracy["MLP"])
    with pytest.raises(ValueError, match=r"cache=.*must be a folder"):
        compare({"MLP": MLP}, DATA, cache=kept, **SETTINGS)


def test_the_edge_of_a_grid_of_models_is_named():
    def run(builds):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            chosen = compare({"MLP": {}}, DATA, tune={"build": builds}, **SETTINGS).chosen["MLP"]["build"]
        return chosen, [str(w.message) for w in found if "is the edge of" in str(w.message)]

    chosen, (text,) = run([functools.partial(MLP, hidden=width) for width in (1, 64)])
    assert f"build's hidden={chosen.keywords['hidden']} is the edge of 1, 64" in text
    _, texts = run([functools.partial(MLP, hidden=1), lambda: MLP(hidden=64)])  # of which nothing is known
    assert not texts


def test_rates_in_tensors_are_kept_apart_to_their_last_digit(tmp_path):
    def choose(rates, cache):
        tune = {"learning_rate": torch.tensor(rates, dtype=torch.float64)}
        with pytest.warns(UserWarning, match="is the edge of"):
            found = compare({"MLP": MLP}, DATA, tune=tune, cache=cache, **SETTINGS)
        return found.chosen["MLP"], found.validation["MLP"]

    choose([0.00696, 0.01196], tmp_path)  # which as tensors print alike
    assert choose([0.00704, 0.01204], tmp_path) == choose([0.00704, 0.01204], None)


def test_equal_values_of_a_grid_are_each_tried():
    tune = {"weight_decay": [0, 0.0, 1e-3], "learning_rate": [0.01, 0.1]}
    with pytest.warns(UserWarning, match="is the edge of"):
        found = compare({"MLP": MLP}, DATA, tune=tune, **SETTINGS | {"budget": 3})
    scores = found.validation["MLP"]
    assert len(scores) == 6 and scores[:2] == scores[2:4]


@pytest.mark.parametrize(
    ("schedule", "error"),
    [([1.0, 0.1].__getitem__, IndexError), (lambda step: None if step > 2 else 1.0, ValueError)],
)
def test_a_schedule_that_ends_early_is_told_before_anything_is_trained(schedule, error, monkeypatch):
    monkeypatch.setattr(comparison, "_measure", None)
    with pytest.raises(error):
        compare({"MLP": {"build": MLP, "schedule": schedule}}, DATA, **SETTINGS)


def test_a_cache_that_cannot_be_read_is_computed_again(tmp_path, monkeypatch):
    compare({"MLP": MLP}, DATA, cache=tmp_path, **SETTINGS)

    def refuse(*_, **__):
        raise PermissionError("not yours")

    monkeypatch.setattr(comparison.json, "loads", refuse)
    with pytest.warns(UserWarning, match="computed again .not yours"):
        compare({"MLP": MLP}, DATA, cache=tmp_path, **SETTINGS)


class Milestones(collections.deque):
    pass


class Half(float):
    pass


def give(value, **attributes):
    vars(value).update(attributes)
    return value


@pytest.mark.parametrize(
    "make",
    [
        lambda n: Milestones([n]), random.Random, lambda n: re.compile("a" * n),
        lambda n: io.BytesIO(bytes([n])), lambda n: memoryview(bytes([n])), lambda n: give(Half(1), n=n),
        lambda n: give(torch.zeros(1), mask=n), lambda n: torch.eye(n).to_sparse(),
        lambda n: np.ma.array([1, 2], mask=[0, n - 1]),
        lambda n: np.array([lambda: n, None]), np.random.default_rng,
        lambda n: torch.nested.nested_tensor([torch.zeros(n)]), lambda n: collections.defaultdict(lambda: n),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_objects_hold_beside_their_attributes_tells_them_apart(make):
    assert describe(make(1)) == describe(make(1)) != describe(make(2))


def test_the_state_of_the_generators_of_all_is_no_part_of_an_arm():
    described = []
    for seed in range(2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        described.append([describe(f) for f in (random.random, np.random.rand, torch.default_generator)])
    assert described[0] == described[1]


@pytest.mark.parametrize("kind", [">i4", "<u2", "u8", "i1"])
def test_labels_may_be_integers_of_any_kind(kind):
    expected = compare({"MLP": MLP}, DATA, **SETTINGS).accuracy["MLP"]
    data = DATA | {"y": DATA["y"].astype(kind), "y_test": DATA["y_test"].astype(kind)[::-1][::-1]}
    np.testing.assert_array_equal(compare({"MLP": MLP}, data, **SETTINGS).accuracy["MLP"], expected)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (5, "data=5: must be a dataset"),
        (DATA["x"], "data=array"),
        ((DATA["x"], DATA["y"]), r"data=\(array"),
        (DATA | {"x": None}, "data: 'data' has no .'x'."),
        (DATA | {"x": [[1.0], [1.0, 2.0]]}, "data: 'data' must hold arrays"),
        (DATA | {"x": np.ma.array(DATA["x"], mask=DATA["x"] > 1)}, "data=.*masked numbers.*: must be whole"),
        (DATA | {"y": np.ma.array(DATA["y"], mask=DATA["y"] > 8)}, "data=.*masked numbers.*: must be whole"),
    ],
)
def test_data_that_are_none_are_named(data, message):
    with pytest.raises(ValueError, match=message):
        compare({"MLP": MLP}, data, **SETTINGS)


def test_few_examples_need_no_split_where_nothing_is_chosen():
    small = {"build": MLP, "batch_size": 8}
    result = compare({8: small, "a|b": small}, {"num_samples": 20}, **SETTINGS | {"budget": 3})
    assert "a\\|b" in str(result) and len(result.draw().axes) == 2 and "a|b" in repr(result)


def test_a_better_model_is_better():
    result = compare({"logistic": Logistic, "CNN": CNN}, seeds=4, budget=300)
    assert result.answer == {"CNN": "better"} and "better" in str(result)
    fig = result.draw()
    assert len(fig.axes) == 2
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["logistic", "CNN"]


class Other(MLP):
    pass


def test_what_had_ended_is_not_run_again(tmp_path, monkeypatch):
    tune = {"learning_rate": [1e-6, 1e-2, 1e3]}
    arms, measure = {"MLP": MLP, "other": Other}, comparison._measure
    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="division"):
        broken.setattr(comparison, "_measure", lambda arm, *a: measure(arm, *a) if arm["build"] is MLP else 1 / 0)
        compare(arms, DATA, cache=tmp_path, tune=tune, **SETTINGS)
    spy = Spy(monkeypatch, DATA)
    resumed = compare(arms, DATA, cache=tmp_path, tune=tune, **SETTINGS)
    assert {build for build, *_ in spy.fits} == {Other} and spy.tests == 1
    again = compare(arms, DATA, cache=tmp_path, tune=tune, **SETTINGS)
    assert len(spy.fits) == 2 and spy.tests == 1
    fresh = compare(arms, DATA, tune=tune, **SETTINGS)
    for arm in arms:
        np.testing.assert_array_equal(resumed.accuracy[arm], fresh.accuracy[arm])
        np.testing.assert_array_equal(again.accuracy[arm], fresh.accuracy[arm])
    assert resumed.chosen == fresh.chosen


@pytest.mark.parametrize(
    "change",
    [{"build": lambda: nn.Sequential(nn.Linear(40, 20), nn.Tanh(), nn.Linear(20, 10))}, {"learning_rate": 2e-2},
     {"schedule": lambda step: 1.0 if step < 15 else 0.1}, {"steps": 21}, {"weight_decay": 1e-2}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_changed_arm_is_run_again(tmp_path, monkeypatch, change):
    build = lambda: nn.Sequential(nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 10))  # noqa: E731
    compare({"arm": build}, DATA, cache=tmp_path, **SETTINGS)
    spy = Spy(monkeypatch, DATA)
    compare({"arm": {"build": build, **change}}, DATA, cache=tmp_path, **SETTINGS)
    assert len(spy.fits) == 1


def test_other_data_or_seeds_are_run_again(tmp_path, monkeypatch):
    compare({"arm": MLP}, DATA, cache=tmp_path, **SETTINGS)
    spy = Spy(monkeypatch, DATA)
    compare({"arm": MLP}, {**DATA, "y_test": DATA["y_test"] // 2}, cache=tmp_path, **SETTINGS)
    compare({"arm": MLP}, DATA, cache=tmp_path, **SETTINGS | {"seeds": 3})
    assert len(spy.fits) == 2


def test_several_datasets_in_one_call():
    results = compare({"MLP": MLP}, [{"num_samples": 200}, {"num_samples": 300, "seed": 1}], **SETTINGS)
    assert list(results) == ["num_samples=200", "num_samples=300, seed=1"]
    alone = compare({"MLP": MLP}, {"num_samples": 300, "seed": 1}, **SETTINGS)
    np.testing.assert_array_equal(results["num_samples=300, seed=1"].accuracy["MLP"], alone.accuracy["MLP"])
    assert "**num_samples=200**" in str(results) and "**num_samples=300, seed=1**" in str(results)
    small = mnist1d.make_dataset(num_samples=200)
    named = compare({"MLP": MLP, "logistic": Logistic}, {"small": small, "other": {"num_samples": 300}}, **SETTINGS)
    assert list(named) == ["small", "other"] and named["small"].level == pytest.approx(1 - 0.05 / 2)
    np.testing.assert_array_equal(named["small"].accuracy["MLP"], results["num_samples=200"].accuracy["MLP"])
    listed = compare({"MLP": MLP}, (data for data in (small, mnist1d.get_dataset_args())), **SETTINGS | {"budget": 2})
    assert list(listed) == ["dataset 1", "dataset 2"]


@pytest.mark.parametrize(
    ("data", "message"),
    [([], r"data=\[\]: must be one"), ([{"seed": 1}, {"seed": 1}], "must be one dataset, or several that differ"),
     ({k: DATA[k] for k in ("x", "y")}, r"has no \['x_test', 'y_test'\]"), ({"train_split": 1.0}, "has no .*test"),
     ({"x_train": 0, "y_train": 0, "x_test": 0, "y_test": 0}, "what is called x_train and y_train elsewhere"),
     ({**DATA, "y": DATA["y"] + 0.5}, "labels y of 'data'='float64': must be integers")],
)  # fmt: skip
def test_what_is_no_dataset_is_said_first(data, message):
    with pytest.raises(ValueError, match=message):
        compare({"MLP": MLP}, data, **SETTINGS)


def test_two_processes_give_the_same(monkeypatch):
    arms = {"MLP": MLP, "linear": lambda: nn.Linear(40, 10)}
    one = compare(arms, DATA, **SETTINGS)
    monkeypatch.setenv("JOBS", "2")
    with joblib.parallel_config(backend="loky"):
        two = compare(arms, DATA, **SETTINGS)
    for arm in arms:
        np.testing.assert_array_equal(one.accuracy[arm], two.accuracy[arm])


@pytest.mark.parametrize(
    ("arms", "options", "message"),
    [({}, {}, "arms={}: must be"), ({"a": {"biuld": MLP}}, {}, "biuld"), ({"a": {"steps": 3}}, {}, "no build"),
     ({"a": MLP}, {"seeds": 1}, "two or more"), ({"a": MLP}, {"seeds": [3, 3]}, "two or more"),
     ({"a": MLP}, {"seeds": [1, 1_000_000]}, "none of"), ({"a": MLP}, {"tune": {"rate": [1]}}, "rate"),
     ({"a": MLP}, {"tune": {"clip": []}}, "empty"), ({"a": MLP}, {"margin": -1}, "margin=-1"),
     ({"a": {"build": MLP, "clip": 1.0}}, {"tune": {"clip": [1.0]}}, "tuned or fixed"),
     ([MLP], {}, "arms=.*must be a dict"), ({"a": MLP}, {"tune": {"clip": 1.0}}, r"tune\['clip'\]=1.0: must be a seq"),
     ({"a": MLP}, {"validation": 2.0}, "validation=2.0: must"), ({"a": MLP}, {"validation": "x"}, "validation='x'"),
     ({"a": MLP}, {"validation": 1e-4, "tune": {"clip": [1.0, 2.0]}}, "validation=0.0001: must be a fraction that"),
     ({"a": MLP}, {"tune_seeds": 1.5}, "tune_seeds=1.5: must"), ({"a": MLP}, {"budget": 2.0}, "budget=2.0: must"),
     ({"a": {"build": MLP, "order": "x"}}, {}, "'a': order='x': must"),
     ({"a": {"build": MLP, "lr": 0.1}}, {}, r"\['lr'\] \(did you mean learning_rate\?\); must have `build`.*others go"),
     ({"a": MLP}, {"tune": {"optimizer": {"sgd", "adam"}}}, "must be a sequence of values, in an order"),
     ({"a": MLP()}, {}, "'a' is a model; must be what makes one"), ({"a": MLP}, {"margin": np.inf}, "margin=inf: must"),
     ({"a": {"build": MLP, "loss": nn.CrossEntropyLoss(reduction="none")}}, {}, "'a': "),
     ({"a": MLP}, {"tune": {"batch_size": [50, 390]}}, "'a': batch_size=390: must be an integer from 1 to 319")],
)  # fmt: skip
def test_what_cannot_be_is_said_first(arms, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        compare(arms, DATA, **options)
    assert not isinstance(caught.value, SweepError)


def test_an_error_of_the_users_code_names_the_arm_before_work_starts(monkeypatch):
    spy = Spy(monkeypatch, DATA)
    arms = {"MLP": MLP, "two outputs": lambda: nn.Sequential(nn.Linear(40, 10), nn.Unflatten(1, (2, 5)))}
    with pytest.raises(RuntimeError, match="target size") as caught:
        compare(arms, DATA, **SETTINGS)
    assert caught.value.__notes__ == ["in the arm 'two outputs'"] and not spy.fits


class Late(torch.optim.SGD):
    """Another learning rate after the steps by which a cache knows an arm."""

    def __init__(self, params, rate):
        super().__init__(params, lr=0.1)
        self.rate, self.steps = rate, 0

    def step(self, closure=None):
        self.steps += 1
        self.param_groups[0]["lr"] = self.rate if self.steps > 5 else 0.1
        return super().step(closure)


def late_by_default(rate):
    return lambda params, rate=rate: Late(params, rate)


def late_by_closure(rate):
    return lambda params: Late(params, rate)


def late_by_class(rate):
    return type("Late", (Late,), {"__init__": lambda self, params: Late.__init__(self, params, rate)})


def late_by_object(rate):
    class Make:
        def __init__(self):
            self.rate = rate

        def __call__(self, params):
            return Late(params, self.rate)

    return Make()


def late_by_method(rate):
    return late_by_object(rate).__call__


def late_by_base(rate):
    class Base(Late):
        @property
        def later(self):
            return rate

        def __init__(self, params):
            super().__init__(params, self.later)

    class Derived(Base):
        pass

    return functools.partial(Derived)


def late_by_partial(rate):
    return functools.partial(Late, rate=rate)


LATE = [
    late_by_partial, late_by_default, late_by_closure, late_by_class, late_by_object, late_by_method, late_by_base,
]  # fmt: skip


@pytest.mark.parametrize("make", LATE)
def test_arms_that_differ_late_are_told_apart(make, tmp_path):
    accuracy = []
    for rate in (0.1, 5.0):
        arms = {"a": {"build": Logistic, "optimizer": make(rate)}}
        plain, kept, again = (compare(arms, DATA, cache=cache, **SETTINGS) for cache in (None, tmp_path, tmp_path))
        np.testing.assert_array_equal(plain.accuracy["a"], kept.accuracy["a"])
        np.testing.assert_array_equal(plain.accuracy["a"], again.accuracy["a"])
        accuracy.append(plain.accuracy["a"])
    assert (accuracy[0] != accuracy[1]).any() and len(list(tmp_path.iterdir())) == 2


def test_a_class_is_known_whatever_the_order_of_what_it_has():
    """In a worker `__doc__` comes first."""
    held = {"__module__": "__main__", "forward": late_by_global, "width": 3, "__doc__": None}
    assert describe(type("Net", (nn.Module,), held)) == describe(type("Net", (nn.Module,), dict(sorted(held.items()))))


def test_constants_and_globals_of_functions_are_told_apart(monkeypatch):
    assert describe(lambda x: 2 * x) != describe(lambda x: 3 * x)
    described = describe(late_by_global)
    assert described == describe(late_by_global)
    monkeypatch.setitem(globals(), "RATE", 2.0)
    assert describe(late_by_global) != described
    for value in (np.array(["cat"]), np.arange(3)[::-1], np.array([None]), torch.ones(2, dtype=torch.bfloat16)):
        assert describe(value) == describe(value.copy() if hasattr(value, "copy") else value)
    assert describe(torch.nn.LazyLinear(3)) and describe(torch.eye(2).to_sparse())
    weights = [torch.nn.CrossEntropyLoss(torch.full((10,), value)) for value in (1.0, 2.0, 1.0)]
    first, second, third = map(describe, weights)
    assert first == third != second


RATE = 1.0


def late_by_global(params):
    return Late(params, RATE)


class Lost(Logistic):
    """Trains as well as any and answers with NaN."""

    def forward(self, x):
        return super().forward(x) if self.training else (super().forward(x) - 1e4).log()


def test_a_model_that_answers_with_nan_is_never_chosen_and_counts_as_chance():
    arms = {"a": {"build": Logistic}, "b": {"tune": {"build": [Logistic, Lost]}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unequal tuning
        result = compare(arms, DATA, **SETTINGS)
    assert result.chosen["b"]["build"] is Logistic
    np.testing.assert_array_equal(result.accuracy["a"], result.accuracy["b"])
    with pytest.warns(RuntimeWarning, match="diverged and count as chance"):
        assert (compare({"lost": Lost}, DATA, **SETTINGS).accuracy["lost"] == 10).all()


def test_a_lazy_model_is_counted():
    assert compare({"lazy": lambda: torch.nn.LazyLinear(10)}, DATA, **SETTINGS).parameters == {"lazy": 410}


def test_unequal_tuning_is_said():
    arms = {"a": {"build": Logistic, "tune": {}}, "b": {"build": Logistic, "tune": {"clip": [0.5, 1.0, 2.0]}}}
    with pytest.warns(UserWarning) as caught:
        compare(arms, DATA, **SETTINGS)
    assert any("different numbers of combinations: {'a': 1, 'b': 3}" in str(w.message) for w in caught)


def test_the_package_loads_no_torch_until_compare_is_used():
    code = "import sys, mnist1d; assert 'compare' in dir(mnist1d) and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert mnist1d.compare is compare


def test_without_torch_the_core_names_the_extra_that_compare_needs():
    code = """
import inspect, pydoc, sys
for name in ("torch", "joblib", "tqdm", "matplotlib"):
    sys.modules[name] = None  # as where they are not installed
import mnist1d
assert "compare" not in dir(mnist1d) and inspect.getmembers(mnist1d) and pydoc.render_doc(mnist1d)
try:
    mnist1d.compare
except ImportError as error:
    assert "mnist1d[all]" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_build_may_name_the_class_of_functions():
    def build(activation=nn.Tanh):
        middle = activation if isinstance(activation, types.FunctionType) else activation()
        return nn.Sequential(nn.Linear(40, 8), middle, nn.Linear(8, 10))

    assert compare({"a": build}, DATA, **SETTINGS).accuracy["a"].shape == (SETTINGS["seeds"],)
    assert describe(types.FunctionType) == describe(types.FunctionType)


def test_two_values_that_do_not_go_together_are_said_before_work_starts(monkeypatch):
    tune = {"optimizer": ["sgd", "adam"], "momentum": [0.0, 0.9]}
    monkeypatch.setattr(comparison, "sweep", lambda *args, **options: pytest.fail("work has started"))
    with pytest.raises(ValueError, match=r"'b': momentum=0\.9"):
        compare({"b": {"build": Logistic, "tune": tune}}, DATA, **SETTINGS)


@pytest.mark.filterwarnings("ignore:.* is the edge of")
def test_one_iterator_may_serve_two_arms():
    rates = {"learning_rate": iter([0.01, 0.02, 0.03])}
    arms = {name: {"build": Logistic, "tune": rates} for name in "ab"}
    found = compare(arms, DATA, **SETTINGS)
    assert found.tried["a"] == found.tried["b"] == [{"learning_rate": rate} for rate in (0.01, 0.02, 0.03)]


def test_equal_differences_at_the_margin_are_within_it():
    for a, b in ((88.4, 88.1), (94.6, 94.3), (94.3, 94.6)):
        assert judge_difference([a - b] * 3, 0.3)[0] == "equivalent"


@pytest.mark.parametrize(
    ("values", "chosen", "is_edge"),
    [([None, 0.1, 1.0], 0.1, True), ([None, 0.1, 1.0], None, False), ([0.1, 0.1], 0.1, False), ([1, 2, 3], 2, False)],
)
def test_an_edge_is_the_least_or_largest_number(values, chosen, is_edge):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        comparison._warn_of_edges("a", "d", {"clip": values}, {"clip": chosen})
    assert bool(told) == is_edge


def test_a_terminal_shows_the_table_as_text(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda value, **options: shown.append(value))
    found = make_comparison({"a": np.array([90.0, 91.0]), r"a$\foo$": np.array([90.0, 92.0])})
    found._ipython_display_()
    assert shown[0]["text/plain"] == shown[0]["text/markdown"] == str(found)


def test_the_notebooks_lstm_cell_is_torchs(notebook):
    ours, theirs = notebook("compare")["LSTMCell"](4, 6), nn.LSTMCell(4, 6)
    with torch.no_grad():
        for layer, name in ((ours.read, "ih"), (ours.recall, "hh")):
            getattr(theirs, f"weight_{name}").copy_(layer.weight)
            getattr(theirs, f"bias_{name}").copy_(layer.bias)
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    state = ours(x[0])
    for a, b in zip(ours(x[1], state), theirs(x[1], theirs(x[0])), strict=True):
        torch.testing.assert_close(a, b)


def test_the_notebooks_arms_are_trained_together(notebook):
    namespace = notebook("compare")
    builds = [lambda cell=cell: namespace["Recurrent"](cell, 6) for cell in (nn.GRUCell, namespace["LSTMCell"])]
    for build in [*builds, namespace["NormCNN"]]:
        assert fit(build, DATA, 2, steps=2)[0].stacked


def test_a_bad_number_of_seeds_is_named():
    with pytest.raises(ValueError, match="SAME_SEEDS"):
        run_parameters("compare", SAME_SEEDS=range(3))


@pytest.mark.filterwarnings("ignore:.*is the edge of")
def test_large_models_are_trained_in_turn_with_the_same_result(monkeypatch):
    options = {"seeds": 3, "budget": 20, "tune": {"learning_rate": (1e-3, 1e-2), "weight_decay": (0.0, 0.1)}}
    together = compare({"MLP": MLP, "CNN": CNN}, DATA, **options)
    plain, sizes = comparison._train, []
    monkeypatch.setattr(comparison, "LARGE", 1000)

    def train(arm, data, seeds, *rates):
        if arm["steps"] > 1:  # not when it is tried
            sizes.append(len(seeds))
        return plain(arm, data, seeds, *rates)

    monkeypatch.setattr(comparison, "_train", train)
    in_turn = compare({"MLP": MLP, "CNN": CNN}, DATA, **options)
    assert set(sizes) == {1} and in_turn.chosen == together.chosen
    for name, accuracy in together.accuracy.items():
        np.testing.assert_allclose(in_turn.accuracy[name], accuracy, atol=1.01)  # one of 100 examples


HELPERS = types.ModuleType("helpers_of_a_user")


class Dropping(torch.optim.SGD):
    """Its rate falls after as many steps as a module of the user's says."""

    taken = 0

    def step(self, closure=None):
        self.taken += 1
        if self.taken > HELPERS.SWITCH:
            self.param_groups[0]["lr"] = 1e-3
        return super().step(closure)


MILESTONES = range(10)
ROUNDS = collections.deque([10])


class StoppingAt(Dropping):
    def step(self, closure=None):
        HELPERS.SWITCH = len(MILESTONES) + ROUNDS[0]
        return super().step(closure)


@pytest.mark.filterwarnings("ignore:the optimiser counts or remembers")
@pytest.mark.parametrize("place", ["module", "range", "deque"])
def test_the_cache_sees_what_functions_read(place, tmp_path, monkeypatch):
    optimizer = Dropping if place == "module" else StoppingAt
    arms, options = {"a": {"build": MLP, "optimizer": lambda p: optimizer(p, lr=0.5)}}, SETTINGS | {"budget": 60}
    found = []
    for switch in (5, 55):
        monkeypatch.setattr(HELPERS, "SWITCH", switch, raising=False)
        if place == "range":
            monkeypatch.setitem(globals(), "MILESTONES", range(switch))
        if place == "deque":
            monkeypatch.setitem(globals(), "ROUNDS", collections.deque([switch]))
        cached, plain = (compare(arms, DATA, **options, cache=cache).accuracy["a"] for cache in (tmp_path, None))
        np.testing.assert_array_equal(cached, plain)
        found.append(plain)
    assert not np.array_equal(*found)


@pytest.mark.parametrize("folder", ["notes.txt/cache", "notes.txt", True])
def test_a_cache_that_cannot_be_is_said_first(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"cache=.*must be"):
        compare({"a": MLP}, DATA, **SETTINGS, cache=folder)
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_cache_that_takes_nothing_more_loses_no_result(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("mnist1d.comparison.open_for_rename", refuse)
    with pytest.warns(UserWarning, match="no space left"):
        result = compare({"a": MLP}, DATA, **SETTINGS, cache=tmp_path)
    np.testing.assert_array_equal(result.accuracy["a"], compare({"a": MLP}, DATA, **SETTINGS).accuracy["a"])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"x_test": DATA["x_test"][:, :39]}, r"shapes of an example of x, x_test.*\(40,\), \(39,\).*the same"),
     ({"y_test": DATA["y_test"][:50]}, r"lengths of x_test, y_test.*\[100, 50\].*equal"),
     ({"x_test": DATA["x_test"].astype(int)}, r"types of x, x_test.*\['float64', 'int64'\].*of one kind"),
     ({"y_test": DATA["y_test"].astype(float)}, "labels y_test of 'data'='float64'"),
     ({"y_test": DATA["y_test"] + 1}, r"'a': labels y_test=\[10\]: must be from 0 to 9"),
     ({"y": DATA["y"] - 1}, r"'a': labels y=\[-1\]: must be from 0 to 9")],
)  # fmt: skip
def test_a_split_that_does_not_fit_is_said_before_the_training(change, message):
    with pytest.raises(ValueError, match=message):
        compare({"a": MLP}, {**DATA, **change}, **SETTINGS)


def test_lists_are_data_too():
    lists = {k: DATA[k].tolist() for k in ("x", "y", "x_test", "y_test")}
    tuned = SETTINGS | {"tune": {"learning_rate": [1e-3, 1e-2]}}
    with pytest.warns(UserWarning, match="edge"):
        listed, plain = (compare({"a": MLP}, data, **tuned).accuracy["a"] for data in (lists, DATA))
    np.testing.assert_array_equal(listed, plain)


def test_rates_of_each_seed(tmp_path):
    each = {"build": MLP, "learning_rate": [0.01, 0.02]}
    cached, plain = (compare({"a": each}, DATA, **SETTINGS, cache=cache).accuracy["a"] for cache in (tmp_path, None))
    np.testing.assert_array_equal(cached, plain)
    with pytest.raises(ValueError, match="a learning rate for each seed"):
        compare({"a": each}, DATA, **SETTINGS, tune={"clip": [0.5, 1.0]})


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [([5.0], {}, "difference"), ([1.0, np.nan], {}, "difference"), (np.ones((3, 2)), {}, "difference"),
     ([1.0, 2.0], {"level": 95}, "level=95: must be a number between 0 and 1"),
     ([1.0, 2.0], {"margin": -1}, "margin=-1: must be")],
)  # fmt: skip
def test_what_cannot_be_judged_is_named(values, options, message):
    with pytest.raises(ValueError, match=message):
        judge_difference(values, **options)


# Found since by trying what users write -------------------------------------------------------------------------------

LOG = logging.getLogger(__name__)


class Talkative(nn.Linear):
    """Names a logger and plotting, through which a description would come to all of torch."""

    def tell(self):
        LOG.info("a line")
        plt.plot(F.relu(torch.zeros(2)))


@pytest.mark.filterwarnings("ignore:.*one seed after the other")  # a logger may change, for all that one sees
def test_models_that_name_loggers_and_plots_are_cached(tmp_path):
    options = {"seeds": 2, "budget": 3, "cache": tmp_path}
    first = compare({"a": lambda: Talkative(40, 10)}, DATA, **options)
    n_files = len(list(tmp_path.iterdir()))
    again = compare({"a": lambda: Talkative(40, 10)}, DATA, **options)
    np.testing.assert_array_equal(first.accuracy["a"], again.accuracy["a"])
    assert len(list(tmp_path.iterdir())) == n_files


class Config(dict):
    factor = 1.0


def scale():
    return 1.0


def set_attribute_of_a_function(value):
    scale.factor = value
    return scale


def make_config(value):
    return type("Config", (Config,), {"factor": value})(a=1)


def make_list(value):
    items = type("Items", (list,), {})([1, 2])
    items.factor = value
    return items


def make_property(value):
    def write(self, given, value=value):
        self.__dict__["x"] = value * given

    return property(scale, write)


class Slotted:
    __slots__ = ("__factor",)

    def __init__(self, value):
        self.__factor = value


@pytest.mark.parametrize(
    "make", [make_config, make_list, set_attribute_of_a_function, make_property, Slotted], ids=lambda f: f.__name__
)
def test_a_description_sees_what_classes_of_the_users_hold(make):
    first, second, third = (describe(make(value)) for value in (1.0, 2.0, 1.0))
    assert first == third != second


class Falling:
    """A schedule that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, step):
        self.calls += 1
        return float(self.calls <= 10)


def test_a_schedule_that_counts_begins_anew_for_every_run(tmp_path):
    options = {"seeds": 2, "budget": 8}
    found = [
        compare({"a": {"build": Logistic, "schedule": Falling()}}, DATA, cache=cache, **options).accuracy["a"]
        for cache in (None, tmp_path)
    ]
    expected = fit(Logistic, DATA, 2, steps=8, order="shuffled", eval_every=8)[1]["test_acc"][:, -1]
    for values in found:
        np.testing.assert_allclose(values, expected)


def test_data_that_are_not_finite_are_named_and_lost_runs_are_not_equivalent():
    bad = {**DATA, "x_test": DATA["x_test"].copy()}
    bad["x_test"][0, 0] = np.nan
    with pytest.raises(ValueError, match=r"x_test of 'data'.*must be finite"):
        compare({"a": Logistic}, bad, seeds=2, budget=1)
    wild = {"build": Logistic, "learning_rate": 1e38}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lost = compare({"a": wild, "b": wild | {"learning_rate": 2e38}}, DATA, seeds=2, budget=20)
    assert lost.diverged == {"a": [0, 1], "b": [0, 1]}
    assert lost.answer == {"b": "undecided"} and lost.describe("b") == "undecided" and "undecided" in str(lost)


def test_datasets_of_any_kind_by_name():
    named = {"few": ObjectView({"num_samples": 200}), "more": ObjectView({"num_samples": 400})}
    assert compare({"a": Logistic}, named, seeds=2, budget=1).keys() == {"few", "more"}


def make_arms():
    """Two equal arms whose initial weights come from a generator, and whose optimiser's rate from a counter, of all."""
    rng, counter = np.random.default_rng(0), [0]

    def build():
        model = Logistic()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.as_tensor(rng.normal(0, 0.1, p.shape)))
        return model

    def optimizer(params):
        counter[0] += 1
        return torch.optim.SGD(params, lr=0.1 / counter[0])

    return {name: {"build": lambda: build().train(), "optimizer": optimizer} for name in ("a", "b")}


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_what_makes_models_starts_alike_for_every_arm(jobs, monkeypatch, tmp_path):
    """Neither trial steps, nor the choice, nor the arm before leave anything behind."""
    monkeypatch.setenv("JOBS", jobs)
    arms, calls = make_arms(), []
    with pytest.warns(UserWarning, match="'a' and 'b' do the same"):
        for options in ({}, {"cache": tmp_path}, {"cache": tmp_path}, {"tune": {"clip": (1e6, 1e5)}}):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*is the edge of")
                warnings.filterwarnings("ignore", ".*one seed after the other")
                calls.append(compare(arms, DATA, **SETTINGS | options))
    arm, options = make_arms()["a"], {"steps": SETTINGS["budget"], "order": "shuffled"}
    once = fit(arm["build"], DATA, 2, optimizer=arm["optimizer"], **options)[1]["test_acc"][:, -1]
    for call in calls:
        np.testing.assert_array_equal(call.accuracy["a"], call.accuracy["b"])
        np.testing.assert_allclose(call.accuracy["a"], once, atol=1.01)  # one of 100 examples


PACKAGE = {
    "__init__.py": "",
    "config.py": "SWITCH = 5\n",
    "relative.py": """
import os
import torch

class Late(torch.optim.SGD):
    taken = 0
    def step(self, closure=None):
        self.taken += 1
        self.param_groups[0]["lr"] = 1e-3 if self.taken > self.get() else 0.5
        return super().step(closure)

class Name(Late):
    def get(self):
        from .config import SWITCH
        return SWITCH

class Module(Late):
    def get(self):
        from . import config
        return config.SWITCH

class Variable(Late):
    def get(self):
        return int(os.getenv("OWN_SWITCH"))

class Held(Late):
    def __init__(self, params, held):
        super().__init__(params)
        self.held = held
    def get(self):
        return self.held.SWITCH
""",
}


@pytest.mark.parametrize("kind", ["Name", "Module", "Variable", "Held"])
def test_the_cache_sees_modules_and_variables(kind, tmp_path, monkeypatch):
    package = tmp_path / "package_of_a_user"
    package.mkdir()
    for name, text in PACKAGE.items():
        (package / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    relative, config = (importlib.import_module(f"package_of_a_user.{name}") for name in ("relative", "config"))
    optimizer = getattr(relative, kind)
    optimizer = functools.partial(optimizer, held=config) if kind == "Held" else optimizer
    found = []
    for switch in (5, 55):
        monkeypatch.setattr(config, "SWITCH", switch)
        monkeypatch.setenv("OWN_SWITCH", str(switch))
        arms, options = {"a": {"build": MLP, "optimizer": optimizer}}, SETTINGS | {"budget": 60}
        cached, plain = (compare(arms, DATA, **options, cache=c).accuracy["a"] for c in (tmp_path / "cache", None))
        np.testing.assert_array_equal(cached, plain)
        found.append(plain)
    assert not np.array_equal(*found)
    for name in [name for name in sys.modules if name.startswith("package_of_a_user")]:
        del sys.modules[name]


def test_functions_that_differ_in_the_order_of_their_arguments_are_told_apart():
    assert describe(lambda a, b: (a, 1, b)) != describe(lambda b, a: (a, 1, b))
    nested = [functools.reduce(lambda f, _: lambda: (f(),), range(60), lambda n=n: n) for n in (1, 2)]
    assert describe(nested[0]) != describe(nested[1])


def test_a_function_made_in_a_loop_is_told():
    arms = {f"hidden {h}": lambda: MLP(hidden=h) for h in (5, 50)}  # noqa: B023
    with pytest.warns(UserWarning, match="'hidden 5' and 'hidden 50' do the same; a function made in a loop"):
        compare(arms, DATA, **SETTINGS)
    with pytest.raises(ValueError, match=r"shapes of a label of y, y_test"):
        compare({"a": MLP}, {**DATA, "y_test": np.tile(DATA["y_test"][:, None], 4)}, **SETTINGS)


class Attributes(dict):
    """Its keys are attributes, and any other name is a KeyError."""

    __getattr__ = dict.__getitem__


def test_what_build_sets_is_there_when_its_model_is_tested(tmp_path):
    config, seen = Attributes(hidden=8), {}

    class Scaled(nn.Sequential):
        def forward(self, x):
            return super().forward(x - seen["mean"])

    def build():
        seen["mean"] = 0.5
        return Scaled(nn.Linear(40, config.hidden), nn.Linear(config.hidden, 10))

    for cache in (None, tmp_path):
        result = compare({"a": build, "b": Logistic}, DATA, cache=cache, **SETTINGS)
        assert result.parameters["a"] == 418 and not seen


def test_masked_differences_are_refused():
    with pytest.raises(ValueError, match="difference"):
        judge_difference(np.ma.array([1.0, 1.1, 0.9, -89.0], mask=[0, 0, 0, 1]))


class Smoothed(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.inner = nn.CrossEntropyLoss(label_smoothing=by)

    def forward(self, out, y):
        return self.inner(out, y)


@pytest.mark.filterwarnings("ignore:tune. the arms try different numbers of combinations")
def test_a_chosen_value_is_told_from_others_of_its_name_in_one_line():
    arms = {"plain": Logistic, "smooth": {"build": Logistic, "tune": {"loss": [Smoothed(0.1), Smoothed(0.2)]}}}
    text = str(compare(arms, DATA, seeds=2, budget=2, tune_seeds=1))
    (row,) = [line for line in text.splitlines() if line.startswith("| smooth |")]
    assert row.endswith(" |") and re.search(r"number [12] of 2", row)


class Arguments(NamedTuple):
    num_samples: int = 300


def test_arguments_in_a_tuple_with_names_are_one_dataset():
    found = compare({"a": Logistic, "b": Logistic}, Arguments(), seeds=2, budget=2)
    assert isinstance(found, Comparison)
