"""What each model holds besides parameters, what one batch in many needs, and hooks of all count as in a plain loop."""

import functools
import operator

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from mnist1d.comparison import compare
from mnist1d.engine.checks import hold_alike, is_answer_close
from mnist1d.training import fit, sweep, train
from mnist1d.utils import set_seed
from zoo import CLASSES, LENGTH, Base

pytestmark = pytest.mark.filterwarnings("ignore:.*one seed after the other", "ignore:training steps are not replayed")
BATCH, N = 20, 600
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, LENGTH)).astype(np.float32)
Y = RNG.integers(CLASSES, size=N)
STEPS = 590  # the example that is odd lies in one batch of thirty
ODD = 505


def make_data(value=None, x_test=None):
    x = X.copy()
    if value is not None:
        x[ODD] = value(x[ODD])
    return {"x": x, "y": Y} | ({} if x_test is None else {"x_test": x_test, "y_test": Y[: len(x_test)]})


def train_plainly(build, data, seed, steps, loss=F.cross_entropy, after=lambda params: None):
    """The model of one seed after a plain loop, and its last loss."""
    set_seed(seed)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.tensor(data["x"]), torch.tensor(data["y"])
    for step in range(steps):
        rows = (torch.arange(BATCH) + BATCH * step) % len(x)
        optimizer.zero_grad()
        value = loss(model(x[rows]), y[rows])
        value.backward()
        optimizer.step()
        after([*model.parameters()])
    return model, value.item()


def check(build, data, seeds, steps=STEPS, loss=F.cross_entropy, **options):
    """Losses and parameters after `fit` are those of plain loops."""
    settings = {"steps": steps, "batch_size": BATCH, "optimizer": "sgd", "learning_rate": 0.1, "eval_every": None}
    stack, history = fit(build, data, seeds, loss=loss, **settings)
    for i, seed in enumerate(seeds):
        model, value = train_plainly(build, data, seed, steps, loss, **options)
        assert history["train_loss"][i, -1] == pytest.approx(value, rel=1e-5)
        for name, p in model.named_parameters():
            torch.testing.assert_close(stack.params[name][i], p, rtol=1e-3, atol=1e-5)
    return stack


# What each seed has drawn for itself


class Filling(Base):
    """Puts numbers of its own in the place of what is missing, which is seldom."""

    def __init__(self):
        super().__init__()
        self.fill = torch.randn(LENGTH)

    def forward(self, x):
        return super().forward(torch.where(x.isnan(), self.fill, x))


def test_what_only_one_batch_in_many_reads_is_that_of_each_seed():
    check(Filling, make_data(lambda x: np.where(np.arange(LENGTH) % 2, x, np.nan)), [0, 1, 2])


def test_what_only_an_evaluation_reads_is_that_of_each_seed():
    x_test = X[:40].copy()
    x_test[::2, ::2] = np.nan
    data = make_data(x_test=x_test)
    history = train(Filling, data, 4, steps=60, batch_size=BATCH, optimizer="sgd", learning_rate=0.1, eval_every=60)
    for seed in range(4):
        model, _ = train_plainly(Filling, data, seed, 60)
        right = (model.eval()(torch.tensor(x_test)).argmax(1) == torch.tensor(Y[:40])).double().mean().item()
        assert history["test_acc"][seed, -1] == pytest.approx(100 * right)


class Holding(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.aliases = [self.linear.weight]
        self.value = value


def make_closure(x):
    return lambda: x


class Plain:
    def __init__(self, x):
        self.x, self.me = x, self


def with_weight(x):
    linear = nn.Linear(1, 1, bias=False)
    nn.init.constant_(linear.weight, x)
    return linear


VALUES = {
    "number": float,
    "tensor": lambda x: torch.tensor([x, torch.nan]),
    "array": lambda x: np.array([x, np.nan]),
    "array of objects": lambda x: np.array([x, None, "a"]),
    "list": lambda x: [1, [x]],
    "dict": lambda x: {"a": {"b": x}},
    "set": lambda x: {1.5, x},
    "function": make_closure,
    "partial": lambda x: functools.partial(max, x),
    "method": lambda x: Plain(x).__init__,
    "object": Plain,
    "hidden module": lambda x: [with_weight(x)],
    "dropout": lambda x: [nn.Dropout(x)],
    "torch's generator": lambda x: torch.Generator().manual_seed(round(8 * x)),
    "numpy's generator": lambda x: np.random.default_rng(round(8 * x)),
    "hidden parameter": lambda x: [nn.Parameter(torch.tensor([x]))],
}


@pytest.mark.parametrize("kind", VALUES)
def test_what_modules_hold_is_compared_by_its_content(kind):
    make = VALUES[kind]
    assert hold_alike(Holding(make(0.25)), Holding(make(0.25)))
    assert not hold_alike(Holding(make(0.25)), Holding(make(0.5)))


def test_another_kind_of_value_is_another_value():
    assert not hold_alike(Holding(1), Holding(None)) and not hold_alike(Holding([1]), Holding((1,)))
    assert not hold_alike(Holding([1]), Holding([1, 2]))
    assert not hold_alike(Holding(torch.zeros(2).to_sparse()), Holding(torch.ones(2).to_sparse()))


# What is taken out of torch, one seed


SCALES = {
    "tensor": lambda t: torch.tensor([t]),
    "as_tensor": lambda t: torch.as_tensor([t]),
    "new_tensor": lambda t: t.new_tensor([t]),
    "new": lambda t: t.new([t]),
    "text": lambda t: float(str(t)[7:-1]),
}


@pytest.mark.parametrize("name", SCALES)
def test_a_number_that_is_taken_out_of_torch_is_not_recorded(name):
    class Scaled(Base):
        def forward(self, x):
            largest = torch.as_tensor(SCALES[name](x.abs().max().detach()))
            return super().forward(x) / (largest.clamp(min=8) / 8)

    check(Scaled, make_data(lambda x: 30 * x), [3])


def test_a_split_at_positions_in_a_tensor_is_not_recorded():
    class Split(Base):
        def forward(self, x):
            at = 2 + 3 * (x.abs().max() > 8).long()
            return super().forward(torch.cat([part.flip(1) for part in x.tensor_split(at[None], 1)], 1))

    check(Split, make_data(lambda x: 30 * x), [3])


# Small terms, hooks of all, masks


WAYS = {
    "getattr": lambda p: getattr(p, "requires_grad"),  # noqa: B009
    "attrgetter": operator.attrgetter("requires_grad"),
    "type": lambda p: type(p) is not torch.Tensor,
    "name": lambda p: type(p).__name__ == "Parameter",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_small_penalty_counts_however_parameters_are_told(way):
    class Penalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(LENGTH, 8), nn.Linear(8, CLASSES)

        def forward(self, x):
            penalty = sum((p.square().sum() for p in self.parameters() if WAYS[way](p)), torch.zeros(()))
            return self.b(self.a(x).relu()), 1e-5 * penalty

    def loss(out, y):
        return F.cross_entropy(out[0], y) + out[1]

    data = make_data()
    data["x"][:, :6] = 0  # whose weights the penalty alone changes
    settings = {"steps": 100, "batch_size": BATCH, "loss": loss, "eval_every": None}
    stack, _ = fit(Penalised, data, 2, **settings)
    for i, seed in enumerate((0, 1)):
        set_seed(seed)
        start = Penalised().a.weight[:, :6].abs().mean()
        assert stack.params["a.weight"][i, :, :6].abs().mean() < 0.1 * start  # Adam takes whole steps for it


def test_hooks_of_all_optimisers_see_one_model_each():
    @torch.no_grad()
    def limit(params):
        for p in params:
            p.mul_((1 / p.norm()).clamp(max=1))

    def limit_all(optimizer, *_):
        limit([p for group in optimizer.param_groups for p in group["params"]])

    handle = register_optimizer_step_post_hook(limit_all)
    try:
        check(lambda: nn.Linear(LENGTH, CLASSES), make_data(), [0, 1, 2], 30)
    finally:
        handle.remove()


def test_hooks_of_all_modules_are_called_for_each_model():
    calls = []
    handle = nn.modules.module.register_module_forward_hook(lambda *_: calls.append(1))
    try:
        check(lambda: nn.Linear(LENGTH, CLASSES), make_data(), [0, 1], 10)
    finally:
        handle.remove()
    # Of ours and of the plain loops, of two looks at the outputs, and of two models before one runs after the other.
    assert len(calls) == 2 * (10 + 10) + 2 + 2 * 2


class Transductive(nn.Module):
    """Batch statistics in evaluation too, and logits of which most are masked with a huge number."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Linear(LENGTH, 32), nn.BatchNorm1d(32, track_running_stats=False)
        self.b = nn.Linear(32, CLASSES)

    def forward(self, x):
        return self.b(self.norm(self.a(x)).relu()).masked_fill(torch.arange(CLASSES) >= 3, -1e9)


def test_masked_logits_do_not_hide_that_examples_are_mixed():
    rows = np.argsort(X[:, 0])
    data = {"x": X, "y": Y % 3, "x_test": X[rows], "y_test": Y[rows] % 3}
    stack, history = fit(Transductive, data, 2, steps=60, batch_size=BATCH, eval_every=60)
    for i in range(2):
        model = stack.get_module(i).eval()
        right = (model(torch.tensor(data["x_test"])).argmax(1) == torch.tensor(data["y_test"])).double().mean().item()
        assert history["test_acc"][i, -1] == pytest.approx(100 * right)
    logits = torch.tensor([[[1.0, 0.0, -1e9]]])
    assert not is_answer_close(logits, logits + torch.tensor([0.0, 2.0, 0.0]))


def test_a_frozen_mask_of_infinities_is_no_divergence():
    class Causal(nn.Module):
        def __init__(self):
            super().__init__()
            mask = torch.full((LENGTH, LENGTH), -torch.inf).triu(1)
            self.mask, self.head = nn.Parameter(mask, requires_grad=False), nn.Linear(LENGTH, CLASSES)

        def forward(self, x):
            return self.head(x @ self.mask.softmax(-1))

    data = {"x": X, "y": Y, "x_test": X[:50], "y_test": Y[:50]}
    settings = {"steps": 20, "order": "shuffled"}
    result = compare({"causal": Causal}, data, seeds=2, budget=20)
    alone = train(Causal, data, 2, **settings)["test_acc"][:, -1]
    assert result.diverged["causal"] == []
    np.testing.assert_allclose(result.accuracy["causal"], alone)


def test_masked_arrays_stay_masked_or_are_named():
    def run(_, seeds):
        return np.ma.masked_greater(np.array(seeds), 1)

    assert sweep(run, ["a"], 4, chunk=2)["a"].count() == 2 and sweep(run, ["a"], 4)["a"].sum() == 1
    with pytest.raises(ValueError, match="x='an array with a mask': must be whole"):
        train(Base, {"x": np.ma.masked_greater(X, 1), "y": Y}, 1, steps=1)
