"""What people write every day: targets that follow, norms that are kept, layers that are frozen or fused."""

import copy
import decimal
import logging
import math
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mnist1d.engine import ReplayError, Stack
from mnist1d.engine.inspection import list_globals
from mnist1d.training import fit, train
from zoo import run_plainly

STEPS = 24
logger = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(120, 12)), rng.integers(5, size=120)
    return {"x": x[:80], "y": y[:80], "x_test": x[80:], "y_test": y[80:]}


def make_sgd(params):
    return torch.optim.SGD(params, lr=0.05)


class Target(nn.Module):
    """Its target network follows every seven steps; the step is a buffer, so that a checkpoint holds it."""

    def __init__(self):
        super().__init__()
        self.online, self.head = nn.Linear(12, 8), nn.Linear(8, 5)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.register_buffer("step", torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.step += 1
            if self.step % 7 == 0:
                for p, q in zip(self.online.parameters(), self.target.parameters(), strict=True):
                    q.data = 3 * p.data
        return self.head(self.online(x).relu() - self.target(x).relu())


class Mean(nn.Module):
    """What evaluation subtracts, an attribute, is refreshed every seven steps."""

    def __init__(self):
        super().__init__()
        self.net, self.mean = nn.Linear(12, 5), torch.zeros(12)
        self.register_buffer("step", torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.step += 1
            if self.step % 7 == 0:
                self.mean = x.mean(0) + 2
            return self.net(x)
        return self.net(x - self.mean)


class Shrink(nn.Module):
    """Its weights are shrunk and perturbed every seven steps."""

    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Linear(12, 8), nn.Linear(8, 5)
        self.register_buffer("step", torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.step += 1
            if self.step % 7 == 0:
                with torch.no_grad():
                    self.a.weight.mul_(0.5).add_(0.5 * torch.randn_like(self.a.weight))
        return self.o(self.a(x).relu())


class MaxNorm(nn.Linear):
    """As EEGNet limits its weights."""

    largest = 0.8

    def forward(self, x):
        self.weight.data = torch.renorm(self.weight.data, 2, 0, self.largest)
        return super().forward(x)


def build_frozen_norm():
    """Batch norm stays as it is: `train` is put over on the instance."""
    model = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))

    def train_but_norm(self, mode=True):
        nn.Module.train(self, mode)
        self[1].eval()
        return self

    model.train = types.MethodType(train_but_norm, model)
    return model


class Fused(nn.Module):
    """Evaluation has one layer in the place of two."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.o = nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)

    def train(self, mode=True):
        super().train(mode)
        self._modules.pop("fused", None)
        if not mode:
            self.fused = torch.nn.utils.fuse_linear_bn_eval(self.linear, self.norm)
        return self

    def forward(self, x):
        return self.o((self.norm(self.linear(x)) if self.training else self.fused(x)).relu())


def build_max_norm():
    return nn.Sequential(nn.Linear(12, 8), nn.Tanh(), MaxNorm(8, 5))


@pytest.mark.parametrize("seeds", [[3], [0, 1]])
@pytest.mark.parametrize("build", [Target, Mean, Shrink, build_max_norm, build_frozen_norm, Fused])
@pytest.mark.filterwarnings(
    "ignore:.*one seed after the other", "ignore:.*are not replayed", "ignore:.*begins anew without"
)
def test_training_is_that_of_a_plain_loop(build, seeds, data):
    stack, history = fit(
        build, data, seeds, steps=STEPS, batch_size=20, optimizer="sgd", learning_rate=0.05, eval_every=8
    )
    for i, (loss, test_acc, model) in enumerate(run_plainly(build, seeds, data, STEPS, optimizer=make_sgd)):
        np.testing.assert_allclose(history["train_loss"][i, -1], loss, rtol=1e-5)
        assert history["test_acc"][i, -1] == pytest.approx(test_acc)
        own = stack.get_module(i)
        for name, p in model.named_parameters():
            if not name.startswith("fused"):
                torch.testing.assert_close(own.get_parameter(name), p, rtol=1e-4, atol=1e-6)
        if build is Mean:
            torch.testing.assert_close(own.mean, model.mean)


def test_a_limit_that_acts_in_a_few_steps_alone_is_kept(data):
    """No comparison may fall on these steps."""

    def rate(step):
        return 0.8 * 0.5 * (1 + math.cos(math.pi * min(step, 40) / 40))

    def make_fast(params):
        return torch.optim.SGD(params, lr=1.0, momentum=0.9, weight_decay=0.05)

    def run(build):
        return run_plainly(build, [0], data, 60, schedule=rate, optimizer=make_fast)[0][0]

    class Watched(MaxNorm):
        def forward(self, x):
            norms.append(self.weight.detach().norm(dim=1).max().item())
            return super().forward(x)

    norms = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaxNorm, "largest", 1e9)
        run(lambda: nn.Sequential(nn.Linear(12, 8), nn.Tanh(), Watched(8, 5)))
        patch.setattr(MaxNorm, "largest", sorted(norms)[-6])
        ours = train(build_max_norm, data, 1, steps=60, batch_size=20, optimizer=make_fast, schedule=rate)
        np.testing.assert_allclose(ours["train_loss"][0, -1], run(build_max_norm), rtol=1e-5)


class Logging(nn.Linear):
    def forward(self, x):
        logger.debug("shape %s", x.shape)
        return super().forward(x)


class Spectrum(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.o = nn.Linear(7, 6, dtype=torch.cfloat), nn.Linear(6, 5)

    def forward(self, x):
        return self.o(self.linear(torch.fft.rfft(x)).abs())


class ShortTime(nn.Module):
    def __init__(self):
        super().__init__()
        self.o = nn.Linear(5 * 4, 5)

    def forward(self, x):
        window = torch.hann_window(8, device=x.device)
        return self.o(torch.stft(x, 8, 4, window=window, return_complex=True).abs().flatten(1))


@pytest.mark.parametrize("build", [lambda: Logging(12, 5), Spectrum, ShortTime])
def test_what_remembers_nothing_is_trained_together_and_replayed(build, data, capfd):
    stack, history = fit(build, data, 2, steps=STEPS, batch_size=20, optimizer="sgd", learning_rate=0.05)
    assert stack.stacked and stack._replay
    assert "resized" not in capfd.readouterr().err
    plain = [loss for loss, *_ in run_plainly(build, range(2), data, STEPS, optimizer=make_sgd)]
    np.testing.assert_allclose(history["train_loss"][:, -1], plain, rtol=1e-5)


class Collecting(nn.Module):
    """Keeps its activations in a dict."""

    def __init__(self):
        super().__init__()
        self.a, self.o, self.kept = nn.Linear(12, 8), nn.Linear(8, 5), {}

    def forward(self, x):
        self.kept["hidden"] = [self.a(x).relu()]
        return self.o(self.kept["hidden"][0])


@pytest.mark.filterwarnings("ignore:.*one seed after the other")
def test_a_model_that_collects_activations_is_given_out(data):
    stack, _ = fit(Collecting, data, 2, steps=3, batch_size=20)
    module = stack.get_module(1)
    assert torch.equal(module.kept["hidden"][0], stack.modules[1].kept["hidden"][0])
    assert not module.kept["hidden"][0].requires_grad


@pytest.mark.filterwarnings("ignore:.*one seed after the other")
def test_a_model_that_cannot_be_copied_is_named(data):
    class Locked(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("there is one of it")

    stack, _ = fit(lambda: Locked(12, 5), data, 1, steps=2, batch_size=20)
    with pytest.raises(ValueError, match=r"get_module: Locked cannot be copied \(there is one of it\)"):
        stack.get_module(0)


class Falling:
    """Smooths labels until the loss is low."""

    smooth = 0.3

    def __call__(self, out, y):
        loss = F.cross_entropy(out, y, label_smoothing=self.smooth)
        if loss.item() < 1.58:
            self.smooth = 0.0
        return loss


@pytest.mark.filterwarnings("ignore:.*one seed after the other", "ignore:training steps are not replayed")
def test_a_loss_that_begins_to_remember_is_told_and_begins_anew_for_each_seed(data):
    def run(seeds):
        return train(lambda: nn.Linear(12, 5), data, seeds, steps=STEPS, batch_size=20, loss=Falling())["train_loss"]

    with pytest.warns(UserWarning, match="it begins anew for every seed"):
        together = run(2)
    np.testing.assert_allclose(together[1], run([1])[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_another_type_are_named(dtype, data):
    with pytest.raises(ValueError, match=rf"x: is torch\.float32, .*must be {dtype}, as the models are"):
        train(lambda: nn.Linear(12, 5).to(dtype), data, 2, steps=2, batch_size=20)


counted, named = object(), object()


class Counted(nn.Linear):
    """Has an attribute of the name of a global that has nothing to do with it."""

    counted = 1.0

    def forward(self, x):
        return self.counted * super().forward(x) * bool(named)


def test_an_attribute_is_not_taken_for_the_global_of_its_name():
    read = list_globals(Counted.forward)
    assert named in read and counted not in read


def test_models_that_cast_their_batch_are_trained(data):
    class Casting(nn.Linear):
        def forward(self, x):
            return super().forward(x.double().view(20, 12) if self.training else x.double())

    train(lambda: Casting(12, 5).double(), data, 2, steps=3, batch_size=20, eval_every=None)


def test_a_model_that_holds_a_ring_is_trained_and_given_out(data):
    class Tree(nn.Linear):
        def __init__(self):
            super().__init__(12, 5)
            self.root = {"leaves": [1, 2]}
            self.root["leaves"].append(self.root)

    stack, _ = fit(Tree, data, 2, steps=3, batch_size=20)
    assert stack.stacked
    root = stack.get_module(0).root
    assert root["leaves"][2] is root


class Training(nn.Module):
    """Has a layer in training that evaluation has not."""

    def __init__(self):
        super().__init__()
        self.a, self.act, self.o = nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 5)

    def train(self, mode=True):
        super().train(mode)
        self.act = nn.Tanh() if mode else nn.Identity()
        return self

    def forward(self, x):
        return self.o(self.act(self.a(x)))


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_an_evaluation_leaves_the_parts_of_a_model_in_place(seeds, data):
    options = {"steps": STEPS, "batch_size": 20, "optimizer": "sgd", "learning_rate": 0.05}
    history = train(Training, data, seeds, **options, eval_every=4)
    plain = [loss for loss, *_ in run_plainly(Training, seeds, data, STEPS, optimizer=make_sgd)]
    np.testing.assert_allclose(history["train_loss"][:, -1], plain, rtol=1e-5)


def test_an_evaluation_that_fails_leaves_the_gradients(data):
    stack = Stack(Training, [0], optimizer="sgd")
    batch = torch.as_tensor(data["x"][None], dtype=torch.float32), torch.as_tensor(data["y"][None])
    stack.backward(*batch)
    stack.part()  # one by one from now on
    stack.backward(*batch)
    with pytest.raises(RuntimeError, match="mat1"):
        stack.evaluate(lambda model, x: model(x), torch.zeros(1, 3, 4))
    before = stack.params["a.weight"].clone()
    stack.step()
    assert not torch.equal(stack.params["a.weight"], before)


hidden = decimal.Context(prec=2)  # what no picture of Python objects shows


class Reading(nn.Module):
    """Its loss, its gradients alone, or its buffer depend on what it reads there."""

    def __init__(self, what, dropout):
        super().__init__()
        self.a, self.drop, self.o = nn.Linear(12, 8), nn.Dropout(dropout), nn.Linear(8, 5)
        self.what, self.context = what, hidden
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        share = 2 / self.context.prec
        h = self.drop(self.a(x).tanh())
        if self.what == "buffer":
            self.mean = self.mean + share * (h.detach().mean(0) - self.mean)
        if self.what == "gradient":
            h = h + (share - 1) * (h - h.detach())
        return self.o(h) * (share if self.what == "loss" else 1)


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
@pytest.mark.parametrize(("what", "dropout"), [("loss", 0.2), ("gradient", 0.0), ("gradient", 0.2), ("buffer", 0.0)])
@pytest.mark.filterwarnings("ignore:.*one seed after the other")
def test_double_precision_excuses_nothing_that_the_models_do_not_do(what, dropout, seeds, data, monkeypatch):
    x, y = torch.as_tensor(data["x"][None], dtype=torch.float32), torch.as_tensor(data["y"][None])
    monkeypatch.setattr(hidden, "prec", 2)
    stack = Stack(lambda: Reading(what, dropout), seeds, optimizer="sgd", learning_rate=0.1)
    with pytest.raises(ReplayError, match="steps after the last comparison"):
        for step in range(120):
            hidden.prec = 2 if step < 50 else 20
            stack.check_next = step == 119
            stack.backward(x.expand(len(seeds), -1, -1), y.expand(len(seeds), -1))
            stack.step()


def build_probabilities():
    return nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 5), nn.Sigmoid())


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("seeds", [[0], [0, 1]])
@pytest.mark.filterwarnings("ignore:.*are not replayed")
def test_probabilities_are_trained_as_in_a_plain_loop(seeds, weighted, data, capfd):
    loss = nn.BCELoss(weight=torch.linspace(0.5, 1, 5) if weighted else None)
    some = {"x": data["x"], "y": np.eye(5)[data["y"]]}
    stack, history = fit(
        build_probabilities, some, seeds, steps=1, batch_size=20, loss=loss, optimizer="sgd", learning_rate=0.1
    )
    x, y = (torch.as_tensor(some[name][:20], dtype=torch.float32) for name in "xy")
    for i, seed in enumerate(seeds):
        torch.manual_seed(seed)
        model = build_probabilities()
        plain = loss(model(x), y)
        np.testing.assert_allclose(history["train_loss"][i, -1], plain.item(), rtol=1e-5)
        torch.testing.assert_close(stack.get_module(i)[1].running_mean, model[1].running_mean)
    assert "resized" not in capfd.readouterr().err


class MonteCarlo(nn.Module):
    """Draws in evaluation, and once more where it is not sure."""

    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x):
        if self.training:
            return self.o(self.a(x).relu())
        out = self.o(F.dropout(self.a(x).relu(), 0.5))
        if (out.softmax(1).amax(1) < 0.3).any():
            out = out + self.o(F.dropout(self.a(x).relu(), 0.5))
        return out


def test_an_attempt_that_fails_draws_nothing(data):
    x, y = torch.as_tensor(data["x"][None], dtype=torch.float32), torch.as_tensor(data["y"][None])
    stack = Stack(MonteCarlo, range(3), optimizer="sgd")
    stack.backward(x.expand(3, -1, -1), y.expand(3, -1))
    before = torch.get_rng_state()
    first, second = (stack.evaluate(lambda model, x: model(x), x.expand(3, -1, -1)) for _ in range(2))
    torch.testing.assert_close(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("n", [1, 2])
def test_an_evaluation_may_give_numbers(n, data):
    x, y = torch.as_tensor(data["x"][None], dtype=torch.float32), torch.as_tensor(data["y"][None])
    stack = Stack(lambda: nn.Linear(12, 5), n)
    stack.backward(x.expand(n, -1, -1), y.expand(n, -1))
    found = stack.evaluate(lambda model, x: {"mean": model(x).mean().item()}, x.expand(n, -1, -1))
    means = [model(x[0]).mean() for model in stack.modules]
    torch.testing.assert_close(found["mean"].float(), torch.stack(means).detach())


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_few_test_examples_are_no_axis_of_classes(n, apart, data):
    one = data | {"x_test": data["x_test"][:1], "y_test": data["y_test"][:1]}
    history = train(lambda: nn.Linear(12, 5), [one] * n if apart else one, n, steps=2, batch_size=20)
    assert set(history["test_acc"].ravel()) <= {0.0, 100.0}
    two = data | {"y": data["y"] % 2, "x_test": data["x_test"][:2], "y_test": np.array([0, 1])}
    history = train(lambda: nn.Linear(12, 2), [two] * n if apart else two, n, steps=2, batch_size=20)
    assert set(history["test_acc"].ravel()) <= {0.0, 50.0, 100.0}


STEPS_OF_ALL, STATE = 0, {"n": 0}


class CountsInAGlobal(Target):
    def forward(self, x):
        global STEPS_OF_ALL  # noqa: PLW0603
        if self.training:
            STEPS_OF_ALL += 1
        return super().forward(x) * (1 + 0.01 * STEPS_OF_ALL)


def count_in_a_dict(is_training):
    STATE["n"] += is_training
    return STATE["n"]


class CountsInAHelper(Target):
    def forward(self, x):
        return super().forward(x) * (1 + 0.01 * count_in_a_dict(self.training))


@pytest.mark.parametrize("kind", [CountsInAGlobal, CountsInAHelper])
@pytest.mark.parametrize("wrap", [lambda kind: kind, lambda kind: lambda: kind().train()])
def test_what_a_model_counts_in_a_global_starts_as_in_a_plain_loop(kind, wrap, data, monkeypatch):
    """Several seeds are tried together first: what the trial has counted is set back."""
    monkeypatch.setitem(globals(), "STEPS_OF_ALL", 0)
    monkeypatch.setitem(STATE, "n", 0)
    with pytest.warns(UserWarning, match="one seed after the other"):
        found = train(wrap(kind), data, range(3), steps=5, batch_size=20, eval_every=None)["train_loss"][:, -1]
    monkeypatch.setitem(globals(), "STEPS_OF_ALL", 0)
    monkeypatch.setitem(STATE, "n", 0)
    plain = []
    for seed in range(3):  # none is evaluated between
        torch.manual_seed(seed)
        model = kind()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(5):
            rows = (torch.arange(20) + 20 * step) % 80
            loss = F.cross_entropy(model(torch.tensor(data["x"][rows]).float()), torch.tensor(data["y"][rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        plain.append(loss.item())
    np.testing.assert_allclose(found, plain, rtol=1e-5)


SETTING = types.SimpleNamespace(factor=1.0, kept=range(12), penalty=0.0, count=0)


def count_steps(is_training):
    SETTING.count += is_training
    return 2.0 if SETTING.count > 40 else 1.0


def build_put_over():
    """A forward pass put over that of a container of torch's; what it counts acts late."""
    SETTING.count = 0
    model = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 5))

    def forward(self, x):
        return self[2](self[1](self[0](x)) * count_steps(self.training))

    model.forward = types.MethodType(forward, model)
    return model


class Warming(nn.Linear):
    def forward(self, x):
        return super().forward(x) * count_steps(self.training)


def build_parametrized():
    """Of its own layer torch makes another class."""
    SETTING.count = 0
    return nn.Sequential(nn.utils.parametrizations.weight_norm(Warming(12, 8)), nn.Tanh(), nn.Linear(8, 5))


class Activated(nn.Module):
    """Torch's own layer calls a function of the user's."""

    def __init__(self):
        super().__init__()
        activation = lambda x: F.relu(x) * SETTING.factor  # noqa: E731
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, activation=activation)
        self.o = nn.Linear(12, 5)

    def forward(self, x):
        return self.o(self.layer(x.unflatten(1, (3, 4))).flatten(1))


class Keeping(nn.Module):
    """Which inputs count stands in a range of the configuration."""

    def __init__(self):
        super().__init__()
        self.o = nn.Linear(12, 5)

    def forward(self, x):
        return self.o(x * torch.tensor([float(i in SETTING.kept) for i in range(12)]))


def change_for_three_steps(step):
    SETTING.factor = 20.0 if 40 <= step < 43 else 1.0
    SETTING.kept = None
    SETTING.kept = range(4) if 40 <= step < 43 else range(12)
    return 1.0


@pytest.mark.parametrize("seeds", [[3], [0, 1]])
@pytest.mark.parametrize("build", [build_put_over, build_parametrized, Activated, Keeping])
@pytest.mark.filterwarnings("ignore:.*one seed after the other", "ignore:.*are not replayed")
def test_code_of_ones_own_within_torchs_is_seen(build, seeds, data):
    options = {"steps": 50, "batch_size": 20, "optimizer": make_sgd, "eval_every": None}
    found = train(build, data, seeds, schedule=change_for_three_steps, **options)["train_loss"][:, -1]
    plain = run_plainly(build, seeds, data, 50, schedule=change_for_three_steps, optimizer=make_sgd)
    np.testing.assert_allclose(found, [loss for loss, *_ in plain], rtol=1e-4)


def penalise(model, x, y):
    return F.cross_entropy(model(x), y) + SETTING.penalty * sum(p.abs().sum() for p in model.parameters())


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.filterwarnings("ignore:.*are not replayed")
def test_a_small_penalty_that_begins_late_counts_at_once(n, data):
    """Nothing but the penalty moves the weights of inputs that are always zero."""
    x, y = (torch.tensor(data[k][:20]) for k in "xy")
    x = torch.cat([x[:, :9], torch.zeros(20, 3)], 1).float().expand(n, -1, -1)
    models = Stack(lambda: nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 5)), n, objective=penalise)
    SETTING.penalty = 0.0
    for step in range(120):
        if step == 30:
            SETTING.penalty, before = 1e-6, models.params["0.weight"][..., 9:].clone()
        models.backward(x, y.expand(n, -1))
        models.step()
    moved = (models.params["0.weight"][..., 9:] - before).abs()
    assert moved.mean() > 0.05  # Adam's steps do not depend on the size
