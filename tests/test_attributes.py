"""What hangs on tensors, and what changes through their `data`, counts as in a plain loop, or is refused."""

import itertools
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mnist1d.comparison import compare
from mnist1d.engine import Stack
from mnist1d.training import accuracy, batches, fit, split_tensors, train
from test_later_batches import check, cross_entropy
from test_state import draw_batches
from zoo import CLASSES, LENGTH, Base

pytestmark = pytest.mark.filterwarnings("ignore:.*one seed after the other", "ignore:training steps are not replayed")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, LENGTH)).astype(np.float32)
DATA = {"x": X, "y": np.abs(X[:, :CLASSES]).argmax(1)}
DATA |= {"x_test": X, "y_test": DATA["y"]}


def linear():
    return nn.Linear(LENGTH, CLASSES)


# Attributes of tensors


class Marked(Base):
    """Parameters that carry what says how they count: a mark, a mask, a number."""

    def __init__(self):
        super().__init__()
        for p in self.parameters():
            p.is_decayed = p.ndim > 1
        self.ids = {id(p) for p in self.parameters() if p.ndim > 1}
        self.held = torch.ones(1)
        self.held.factor = 0.5


class Masked(nn.Linear):
    def __init__(self):
        super().__init__(LENGTH, CLASSES)
        self.weight.mask = (torch.arange(LENGTH) % 3 > 0).float()

    def forward(self, x):
        return F.linear(x, self.weight * getattr(self.weight, "mask", 1.0), self.bias)


class Careless(Base):
    """Its copies forget."""

    def __init__(self):
        super().__init__()
        self.factor = 3.0

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "factor"}

    def forward(self, x):
        return super().forward(x) * getattr(self, "factor", 1.0)


def decay_what_is_marked(model, x, y, strength=0.1):
    marked = [p for p in model.parameters() if getattr(p, "is_decayed", False)]
    return cross_entropy(model, x, y) + strength * sum(p.square().sum() for p in marked)


def decay_a_little(model, x, y):
    return decay_what_is_marked(model, x, y, 1e-3)


def decay_by_id(model, x, y):
    return cross_entropy(model, x, y) + 0.1 * sum(p.square().sum() for p in model.parameters() if id(p) in model.ids)


def scale_by_attribute(model, x, y):
    return cross_entropy(model, x, y) * getattr(model.held, "factor", 1.0)


def decay_in_single_precision(model, x, y):
    penalty = sum(p.square().sum() for p in model.parameters()) if x.dtype == torch.float32 else 0.0
    kind = type(next(model.parameters()))  # other together than one by one
    return cross_entropy(model, x, y) + (0.1 * penalty if kind is nn.Parameter else 0.0)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    ("build", "objective"),
    [
        (Marked, decay_what_is_marked),
        (Marked, decay_a_little),
        (Marked, decay_by_id),
        (Marked, scale_by_attribute),
        (Marked, decay_in_single_precision),
        (Masked, cross_entropy),
        (Careless, cross_entropy),
    ],
)
def test_what_a_copy_may_lack_counts(build, objective, n):
    check(build, n, objective, batches=draw_batches(n, 30))


def test_a_module_that_is_given_out_keeps_what_its_tensors_carry():
    stack = Stack(Masked, [0, 1])
    module = stack.get_module(1)
    assert torch.equal(module.weight.mask, stack.modules[1].weight.mask)
    assert module.weight.mask is not stack.modules[1].weight.mask


# Other memory


def replace_data(stack):
    stack.params["weight"].data = torch.zeros_like(stack.params["weight"])


def replace_tensor(stack):
    stack.params["weight"] = torch.zeros_like(stack.params["weight"])


def replace_all(stack):
    stack.params = {name: torch.zeros_like(p) for name, p in stack.params.items()}


@pytest.mark.parametrize("replace", [replace_data, replace_tensor, replace_all])
@pytest.mark.parametrize("n", [1, 2])
def test_parameters_that_are_replaced_are_refused_and_what_is_changed_in_place_counts(n, replace):
    x, y = split_tensors(DATA, "", n)
    stack = Stack(linear, n)
    for xb, yb in batches(x, y, n, steps=5, batch_size=20):
        stack.backward(xb, yb)
        stack.step()
    with torch.no_grad():
        for p in stack.params.values():
            p.copy_(torch.zeros_like(p))
    assert not stack.evaluate(lambda model, x: model(x), x).any()
    replace(stack)
    for call in (
        lambda: stack.evaluate(lambda model, x: model(x), x),
        lambda: stack.backward(x, y),
        stack.step,
    ):
        with pytest.raises(ValueError, match=r"params, buffers: .*; must be changed in place, with `copy_`"):
            call()


# Changes through `data`


class Following(Base):
    """An average in a dict, of which no version tells that it moves."""

    def __init__(self):
        super().__init__()
        self.held = {"mean": torch.zeros(1), "count": torch.zeros(1)}

    def forward(self, x):
        if self.training:
            self.held["count"].data.add_(1.0)
            self.held["mean"].data.mul_(0.9).add_(0.1 * x.detach().mean())
        return super().forward(x) * (1 + 0.01 * self.held["count"]) + self.held["mean"]


class WithTeacher(Base):
    def __init__(self):
        super().__init__()
        self.hidden = [linear()]

    def forward(self, x):
        for p in self.hidden[0].parameters():
            p.data.mul_(0.95)
        return super().forward(x) + self.hidden[0](x).detach()


class Annealed:
    def __init__(self):
        self.state = {"temperature": torch.ones(1)}

    def __call__(self, model, x, y):
        self.state["temperature"].data.add_(0.1)
        return F.cross_entropy(model(x) / self.state["temperature"], y)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("build", [Following, WithTeacher])
def test_what_moves_without_a_version_moves_once_a_step(build, n):
    check(build, n, batches=draw_batches(n, 30))


def test_a_loss_that_anneals_itself_without_a_version_does_so_once_a_step():
    temperature = torch.ones(1)

    def loss(out, y):
        temperature.data.add_(1.0)
        return F.cross_entropy(out / temperature, y)

    train(linear, DATA, 1, steps=40, batch_size=20, loss=loss, eval_every=1000)
    assert temperature.item() == 41
    objective = Annealed()
    stack = Stack(linear, 1, objective=objective)
    for x, y in draw_batches(1, 30):
        stack.backward(x, y)
        stack.step()
    assert objective.state["temperature"].item() == pytest.approx(4.0, abs=1e-4)


# Names


def test_a_module_that_is_imported_within_a_function_is_watched(monkeypatch):
    config = types.ModuleType("a_config_of_ones_own")
    config.alpha = 1.0
    monkeypatch.setitem(sys.modules, "a_config_of_ones_own", config)

    class Configured(Base):
        def forward(self, x):
            import a_config_of_ones_own

            return super().forward(x) * a_config_of_ones_own.alpha

    def change(step):
        config.alpha = 3.0 if 25 <= step < 32 else 1.0

    check(Configured, 2, batches=draw_batches(2, 40), before=change)


def test_an_old_stack_under_the_name_of_an_attribute_does_no_harm(monkeypatch):
    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts, self.gate = linear(), linear()

        def forward(self, x):
            weights = self.gate(x).softmax(1)
            self.aux = weights.mean(0).square().sum()
            return self.experts(x) * weights

    stack = Stack(Mixture, 2, objective=lambda m, x, y: cross_entropy(m, x, y) + 0.5 * m.aux)
    monkeypatch.setitem(globals(), "models", stack)
    for x, y in draw_batches(2, 5):
        stack.backward(x, y)
        stack.step()

    class Ensemble(nn.Module):
        def __init__(self):
            super().__init__()
            self.models = nn.ModuleList(linear() for _ in range(3))

        def forward(self, x):
            return sum(model(x) for model in self.models)

    check(Ensemble, 2)


# Runs that begin anew


def count_calls():
    n = 0

    def schedule(step):
        nonlocal n
        n += 1
        return float(n <= 20)

    return schedule


def test_a_closure_that_counts_begins_anew_for_every_run():
    options = {"seeds": 2, "budget": 20, "tune": {"learning_rate": [0.03, 0.01, 0.003]}}
    found = compare({"a": {"build": linear, "batch_size": 20, "schedule": count_calls()}}, DATA, **options)
    rate = found.chosen["a"]["learning_rate"]
    once = {"steps": 20, "batch_size": 20, "order": "shuffled", "learning_rate": rate, "schedule": count_calls()}
    np.testing.assert_allclose(found.accuracy["a"], train(linear, DATA, 2, **once)["test_acc"][:, -1])


def test_an_iterator_that_a_schedule_reads_is_told():
    count = itertools.count()
    with pytest.warns(UserWarning, match="the schedule of 'a' reads an iterator"):
        compare(
            {"a": {"build": linear, "batch_size": 20, "schedule": lambda step: next(count)}}, DATA, seeds=2, budget=2
        )


# Bad input


def test_what_cannot_be_used_is_named():
    stack = Stack(linear, 2)
    with pytest.raises(ValueError, match="clip: there are no gradients; must come after `backward`"):
        stack.clip(1.0)
    with pytest.raises(ValueError, match="batch: holds ndarray; must be tensors"):
        stack.backward(X[None], torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"shape of y=\(6, 1\): must be \(6,\), one label for each"):
        accuracy(torch.zeros(6, 4), torch.zeros(6, 1))
    for bad in ({"x_test": X}, {"y_val": DATA["y"]}):
        part = {"x": X, "y": DATA["y"], **bad}
        with pytest.raises(ValueError, match=r"x_(test|val), y_(test|val)=.*: must be both or none in each"):
            train(linear, part, 1, steps=1)
    with pytest.raises(ValueError, match=r"x_test, y_test=.*: must be both or none in each"):
        train(linear, [{"x": X, "y": DATA["y"]}, DATA], 2, steps=1)


def test_without_evaluations_there_is_the_last_loss():
    history = train(linear, DATA, 2, steps=6, batch_size=20, eval_every=None)
    expected = train(linear, DATA, 2, steps=6, batch_size=20, eval_every=2)["train_loss"][:, -1:]
    assert history.keys() == {"train_loss"}
    np.testing.assert_array_equal(history["train_loss"], expected)


# Second findings


class Regularised(nn.Module):
    """Penalises parameters that it holds in a list, by a term that single precision loses among the others."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(LENGTH, 32), nn.Linear(32, CLASSES)
        self.held = [self.a.weight, self.b.weight]

    def forward(self, x):
        return self.b(self.a(x).relu()), 1e-6 * sum(w.square().sum() for w in self.held)


@pytest.mark.parametrize("n", [1, 3])
def test_a_small_penalty_on_parameters_in_a_list_counts(n):
    dead = {**DATA, "x": np.where(np.arange(LENGTH) < LENGTH // 2, X, 0).astype(np.float32)}

    def loss(out, y):
        return F.cross_entropy(out[0], y) + out[1]

    stack, _ = fit(Regularised, {"x": dead["x"], "y": dead["y"]}, n, steps=200, batch_size=20, loss=loss)
    assert stack.params["a.weight"][..., LENGTH // 2 :].abs().mean() < 0.01  # Adam takes any gradient for one


class Configuration:
    __slots__ = ("act", "temperature")


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("kind", [types.SimpleNamespace, Configuration])
def test_a_configuration_that_a_copy_does_not_share_is_watched(n, kind):
    config = kind()
    config.temperature, config.act = 1.0, nn.LeakyReLU()

    class Configured(Base):
        def __init__(self):
            super().__init__()
            self.config = config

        def forward(self, x):
            return super().forward(x) * self.config.temperature

    def schedule(step):
        config.temperature = 3.0 if 150 <= step < 220 else 1.0
        return 1.0

    options = {"steps": 260, "batch_size": 20, "optimizer": "sgd", "learning_rate": 0.01}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # training goes back
        stack, _ = fit(Configured, {"x": X, "y": DATA["y"]}, n, schedule=schedule, eval_every=None, **options)
    torch.manual_seed(0)
    model = Configured()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(260):
        schedule(step)
        index = (torch.arange(20) + 20 * step) % len(X)
        loss = F.cross_entropy(model(torch.tensor(X[index])), torch.tensor(DATA["y"][index]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(stack.params[name][0], p, rtol=1e-3, atol=1e-4)


class Counted:
    """A loss that a schedule heats."""

    temperature = 1.0

    def __call__(self, out, y):
        return F.cross_entropy(out * self.temperature, y)


class Slotted:
    __slots__ = ("n",)


class Tally:
    n = 0


SLOTTED, CENTRE = Slotted(), torch.zeros(1)


def count_in_a_class(step):
    Tally.n += 1
    return max(0.0, 1 - Tally.n / 30)


def count_in_slots(step):
    SLOTTED.n += 1
    return max(0.0, 1 - SLOTTED.n / 30)


def count_in_a_tensor(step):
    globals()["CENTRE"] = CENTRE + 1
    return max(0.0, 1 - CENTRE.item() / 30)


def heat(loss):
    def schedule(step):
        loss.temperature = 1.0 + step
        return 1.0

    return schedule


@pytest.mark.parametrize("with_cache", [False, True])
@pytest.mark.parametrize("how", ["class", "slots", "tensor", "closure", "both"])
def test_what_loss_and_schedule_remember_begins_anew_wherever_it_lies(how, with_cache, tmp_path):
    SLOTTED.n = 0
    loss = Counted()
    arm = {"build": linear, "batch_size": 20, "learning_rate": 0.03}
    if how == "both":
        arm |= {"loss": loss, "schedule": heat(loss)}
    else:
        found = {"class": count_in_a_class, "slots": count_in_slots, "tensor": count_in_a_tensor}
        arm["schedule"] = count_calls() if how == "closure" else found[how]
    ours = compare({"a": arm, "b": arm}, DATA, seeds=2, budget=30, cache=tmp_path if with_cache else None)
    Tally.n, SLOTTED.n, loss.temperature = 0, 0, 1.0
    globals()["CENTRE"] = torch.zeros(1)
    if how == "closure":
        arm["schedule"] = count_calls()
    plain = train(**arm, data=DATA, seeds=2, steps=30, order="shuffled")["test_acc"][:, -1]
    Tally.n = 0
    globals()["CENTRE"] = torch.zeros(1)
    for name in "ab":
        np.testing.assert_allclose(ours.accuracy[name], plain)
