"""Training: batches, histories, bad input. What modules compute is in test_zoo.py, sweeps are in test_sweep.py."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mnist1d import make_dataset
from mnist1d.models import MLP, Logistic
from mnist1d.training import Stack, accuracy, batches, early_stopped, fit, split_tensors, train

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
    lists = {name: values.tolist() for name, values in history.items()}  # of a results file
    np.testing.assert_array_equal(early_stopped(lists), [20, 7])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "random"}, "order='random'"),
        ({"optimizer": "lion"}, "optimizer='lion'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 10**6}, "batch_size=1000000"),
        ({"steps": -1}, "steps=-1: must be an integer of at least 0"),
        ({"eval_every": 0}, "eval_every=0: must be an integer of at least 1"),
        ({"seeds": []}, r"seeds=\[\]"),
        ({"learning_rate": [0.1, 0.1]}, "learning_rate: 2 rates for 1 seeds"),
        ({"learning_rate": "0.1"}, "learning_rate='0.1': must be a number"),
        ({"steps": 3.0}, "steps=3.0: must be an integer"),
        ({"batch_size": 50.0}, "batch_size=50.0: must be an integer"),
        ({"seeds": [0.7, 1.9]}, r"seeds=\[0.7, 1.9\]: must be"),
        ({"seeds": "12"}, "seeds='12': must be"),
        ({"seeds": -3}, "seeds=-3: must be"),
        ({"clip": -1.0}, "clip=-1.0: must be None or a number above 0"),
        ({"schedule": 0.5}, "schedule=0.5: must be callable"),
        ({"loss": "mse"}, "loss='mse': must be callable"),
        ({"seeds": {3, 1}}, r"seeds=\{1, 3\}: must be"),
        ({"learning_rate": [None]}, r"learning_rate=\[None\]: must be a number"),
        ({"weight_decay": "0.1"}, "weight_decay='0.1': must be a number"),
        ({"momentum": "x", "optimizer": "sgd"}, "momentum='x': must be a number"),
        ({"schedule": lambda step: None}, r"schedule\(0\)=None: must be a finite number"),
        ({"replay": "no"}, "replay='no': must be True, False or None"),
        ({"state": [1]}, "state=list: must be a dict"),
        ({"optimizer": torch.optim.SGD([torch.zeros(1)])}, "optimizer: is a SGD; must be what makes one"),
        ({"device": "gpu"}, "device='gpu': must be a device such as"),
        ({"device": "cuda:99"}, "device='cuda:99': must be a device of this machine"),
        ({"device": "meta"}, "device='meta': must be a device of this machine"),
    ],
)
def test_bad_options_are_named(data, options, message):
    with pytest.raises(ValueError, match=message):
        train(MLP, data, **{"steps": 1, "seeds": [0], **options})
    with pytest.raises(ValueError, match="2 datasets for 3 seeds"):
        train(MLP, [data, data], SEEDS, steps=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"x": d["x"]}, "data: has no y; must"),
        (lambda d: {**d, "y": d["y"][:-1]}, "lengths of x, y=.*must be equal"),
        (lambda d: [d["x"], d["y"]], "data='list': must be a dict"),
        (lambda d: None, "data='NoneType': must be a dict"),
        (lambda d: {**d, "x": d["x"].astype(np.longdouble)}, "types of x=.*must be numbers of 64 bits at most"),
        (lambda d: {**d, "y": np.eye(10, dtype=int)[d["y"]]}, r"y='integers \[example, class\]': must be numbers of"),
    ],
)
def test_bad_data_are_named(data, change, message):
    with pytest.raises(ValueError, match=message):
        train(MLP, change(data), 1, steps=1)


def test_early_stopping_knows_diverged_runs():
    history = {"val_acc": np.array([[10, 80, np.nan]]), "test_acc": np.array([[10, 75, np.nan]])}
    assert early_stopped(history).tolist() == [75]


def test_a_diverged_seed_is_nan_from_there_on_and_named(data):
    other = {**data, "x": np.full_like(data["x"], 1e30)}
    with pytest.warns(RuntimeWarning, match=r"seeds \[8\] diverged: NaN from step 4 on"):
        history = train(MLP, [data, other], [7, 8], steps=8, eval_every=4, optimizer="sgd", learning_rate=0.1)
    for name in ("train_loss", "train_acc", "test_acc"):
        assert np.isnan(history[name][1, 1:]).all() and np.isfinite(history[name][0, 1:]).all()
    assert np.isfinite(history["test_acc"][:, 0]).all()


def test_arrays_that_are_views_from_right_to_left_are_taken(data):
    flipped = {name: value[:, ::-1] if name[0] == "x" else value for name, value in data.items()}
    copied = {name: np.array(value) for name, value in flipped.items()}
    np.testing.assert_array_equal(*(train(MLP, d, 2, steps=3)["train_loss"] for d in (flipped, copied)))


def test_arrays_of_the_other_byte_order_are_taken(data):
    turned = {name: value.astype(value.dtype.newbyteorder()) for name, value in data.items() if name[0] in "xy"}
    np.testing.assert_array_equal(*(train(MLP, d, 2, steps=3)["train_loss"] for d in (turned, data)))


def test_training_where_no_gradients_are_computed_is_named(data):
    with torch.no_grad(), pytest.raises(ValueError, match=r"backward: called under torch.no_grad\(\); must be"):
        train(MLP, data, 2, steps=3)


def test_arrays_that_cannot_be_written_are_taken_without_a_warning():
    data = {name: np.asarray(value) for name, value in make_dataset({"num_samples": 100}).items() if name[0] in "xy"}
    for value in data.values():
        value.flags.writeable = False  # as joblib hands large arrays to its workers
    x, _ = split_tensors(data, "", 2)
    assert torch.equal(x[1], torch.tensor(data["x"], dtype=torch.float32))


SMOOTHED = partial(F.cross_entropy, label_smoothing=0.1)


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss(), SMOOTHED])
@pytest.mark.parametrize(
    ("change", "message"),
    [({"y": lambda y: y + 1}, r"labels y=\[10\]: must be from 0 to 9, as a model has 10 outputs"),
     ({"y_test": lambda y: y - 1}, r"labels y_test=\[-1\]: must be from 0 to 9"),
     ({"y": lambda y: y.astype(float)}, "type of y='torch.float32': must be integers"),
     ({"y": lambda y: y[:, None]}, "shape of y=.*must be")],
)  # fmt: skip
def test_labels_that_cross_entropy_cannot_take_are_named(data, loss, change, message):
    changed = data | {name: f(data[name]) for name, f in change.items()}
    with pytest.raises(ValueError, match=message):
        train(MLP, changed, 2, steps=3, loss=loss)


def test_labels_that_cross_entropy_can_take_are_taken(data):
    ignored = data | {"y": np.where(np.arange(len(data["y"])) % 5, data["y"], -100)}
    probabilities = data | {"y": np.eye(10)[data["y"]], "y_test": np.eye(10)[data["y_test"]]}
    for some in (ignored, probabilities):
        assert np.isfinite(train(MLP, some, 2, steps=3)["train_loss"][:, -1]).all()
    own = data | {"y": np.where(np.arange(len(data["y"])) % 5, data["y"], 77)}
    history = train(MLP, own, 2, steps=3, loss=nn.CrossEntropyLoss(ignore_index=77))
    assert np.isfinite(history["train_loss"][:, -1]).all()


def test_what_has_no_validation_split_is_not_stopped_early(data):
    with pytest.raises(ValueError, match=r"history: has no \['val_acc'\].*validation_split"):
        early_stopped(train(Logistic, {k: v for k, v in data.items() if "val" not in k}, 2, steps=3))


def test_batches_and_tensors_name_what_does_not_fit(data):
    x, y = split_tensors(data, "", 2)
    with pytest.raises(ValueError, match=r"shape of x=.*must be \(3,"):
        batches(x, y, 3, steps=1)
    with pytest.raises(ValueError, match="shape of y="):
        batches(x, y[:, :-1], 2, steps=1)
    with pytest.raises(ValueError, match=r"n_seeds=range\(0, 5\): must be"):
        split_tensors(data, "", range(5))


def test_a_stack_takes_a_number_of_seeds_and_no_negative_norm():
    stack = Stack(MLP, 3)
    assert stack.seeds == [0, 1, 2]
    with pytest.raises(ValueError, match=r"max_norm=-1\.0: must be above 0"):
        stack.clip(-1.0)
