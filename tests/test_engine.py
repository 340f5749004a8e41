"""The engine at its edges: what it refuses, notices, keeps and restores."""

import copy
import functools
import inspect
import itertools
import pickle
import queue
import random
import types
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mnist1d import make_dataset, models
from mnist1d.engine import ReplayError, Stack
from mnist1d.models import CNN, GRU, MLP, MODELS, Logistic, count_parameters
from mnist1d.training import batches, fit, split_tensors, train
from mnist1d.utils import set_seed

SEEDS = [0, 1]


@pytest.fixture(scope="module")
def data():
    return make_dataset({"num_samples": 500, "seed": 1})


def draw(n_seeds=2, n=20, steps=5):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(steps, n_seeds, n, 40, generator=rng)
    return list(zip(x, torch.randint(10, (steps, n_seeds, n), generator=rng), strict=True))


@pytest.mark.parametrize(("name", "parameters"), [("logistic", 410), ("MLP", 15_210), ("CNN", 5_210), ("GRU", 5_134)])
def test_the_models_of_table_1_have_the_published_parameters(name, parameters):
    assert count_parameters(MODELS[name]()) == parameters


def test_the_four_models_are_short():
    four, _, _ = inspect.getsource(models).partition("def learned_activation")
    assert len(four.splitlines()) < 80


@pytest.mark.parametrize("replay", [True, False])
@pytest.mark.parametrize("n_seeds", [1, 3])
@pytest.mark.parametrize("build", [Logistic, MLP, CNN, GRU])
def test_the_models_train_as_in_a_plain_loop(build, n_seeds, replay, data):
    x, y = (torch.as_tensor(data[key], dtype=dtype) for key, dtype in (("x", torch.float32), ("y", torch.int64)))
    final = []
    for seed in range(n_seeds):
        torch.manual_seed(seed)
        model = build()
        opt = torch.optim.Adam(model.parameters(), lr=1e-3)
        for step in range(6):
            rows = torch.arange(step * 50, step * 50 + 50) % 400
            opt.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            opt.step()
        final.append(list(model.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stack, _ = fit(build, data, n_seeds, steps=6, batch_size=50, learning_rate=1e-3, replay=replay)
    assert stack.stacked and bool(stack._recordings) == replay
    for ours, plain in zip(stack.params.values(), zip(*final, strict=True), strict=True):
        torch.testing.assert_close(ours.detach(), torch.stack(plain).detach(), rtol=1e-3, atol=2e-5)


class Noisy(nn.Sequential):
    """Batch norm and dropout, which know training from evaluation."""

    def __init__(self):
        super().__init__(nn.Linear(40, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 10))


def test_evaluation_is_in_evaluation_mode_and_changes_nothing(data):
    stack, history = fit(Noisy, data, SEEDS, steps=7, batch_size=50, eval_every=1)
    assert stack.buffers["1.num_batches_tracked"].tolist() == [7, 7]
    _, rare = fit(Noisy, data, SEEDS, steps=7, batch_size=50, eval_every=7)
    for name in history:
        np.testing.assert_array_equal(history[name][:, -1], rare[name][:, -1])
    x = torch.as_tensor(data["x_test"], dtype=torch.float32)
    for i in range(2):
        right = stack.get_module(i).eval()(x).argmax(1).numpy() == data["y_test"]
        assert history["test_acc"][i, -1] == pytest.approx(100 * right.mean())


def test_a_seed_draws_the_same_in_any_company(data):
    options = {"steps": 6, "batch_size": 50, "eval_every": 3, "order": "shuffled"}
    together, alone = train(Noisy, data, [4, 5], **options), train(Noisy, data, [5], **options)
    np.testing.assert_allclose(together["train_loss"][1], alone["train_loss"][0], rtol=1e-4)


def test_python_and_numpy_are_seeded_and_the_global_state_stays(data):
    def build():
        model = nn.Linear(40, 10)
        model.gain = nn.Parameter(torch.tensor(np.random.rand(), dtype=torch.float32))
        return model

    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    stacks = [Stack(build, SEEDS) for _ in range(2)]
    assert torch.equal(stacks[0].params["gain"], stacks[1].params["gain"])
    assert len(set(stacks[0].params["gain"].tolist())) == 2
    assert (np.random.get_state()[1] == before[0]).all() and torch.equal(torch.get_rng_state(), before[1])


def test_frozen_parameters_stay(data):
    def build():
        model = MLP()
        model.linear1.requires_grad_(False)
        return model

    stack, _ = fit(build, data, SEEDS, steps=5, batch_size=50, weight_decay=0.1)
    assert torch.equal(stack.params["linear1.weight"], Stack(build, SEEDS).params["linear1.weight"])
    assert not torch.equal(stack.params["linear2.weight"], Stack(build, SEEDS).params["linear2.weight"])


def test_targets_keep_their_dtype():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 40))
    data = {"x": x, "y": x[:, :1] * 3 - 9.54, "x_test": x[:20], "y_test": x[:20, :1] * 3 - 9.54}
    history = train(lambda: nn.Linear(40, 1), data, SEEDS, loss=F.mse_loss, steps=400, batch_size=60, learning_rate=0.3)
    assert history.keys() == {"train_loss", "test_loss"}
    assert (history["test_loss"][:, -1] < 1e-3).all()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda out, y: F.cross_entropy(out, y, reduction="none"), "shape \\(20,\\); must return a scalar"),
        (lambda out, y: 1.0, "returned 1.0"),
        (lambda out, y: out.detach().sum(), "does not depend on any parameter"),
    ],
)
def test_a_loss_that_is_no_scalar_is_refused_before_the_first_step(loss, message):
    stack = Stack(MLP, SEEDS, loss=loss)
    before = copy.deepcopy(stack.params)
    with pytest.raises(ValueError, match=message):
        stack.backward(*draw()[0])
    assert all(torch.equal(stack.params[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adagrad"}, "optimizer='adagrad'"),
        ({"optimizer": lambda p: None}, "optimizer: made a NoneType"),
        ({"learning_rate": [0.1, 0.2, 0.3]}, "learning_rate: 3 rates for 2 seeds"),
        ({"state": {"nothing": torch.zeros(2)}}, "state: has 'nothing'"),
        ({"state": {"linear.bias": torch.zeros(10)}}, "one value per seed in front"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Stack(Logistic, SEEDS, **options)


def test_one_models_state_is_not_spread_over_all():
    with pytest.raises(ValueError, match="one value per seed"):
        Stack(MLP, SEEDS, state=dict(MLP().state_dict()))
    with pytest.raises(ValueError, match="must return a torch"):
        Stack(lambda: 3, SEEDS)
    sizes = iter([3, 4])
    with pytest.raises(ValueError, match="not alike in all copies"):
        Stack(lambda: nn.Linear(next(sizes), 1), SEEDS)


def test_each_model_has_its_own_learning_rate():
    stack = Stack(Logistic, [0, 0], learning_rate=[0.1, 0.0], optimizer="sgd")
    before = stack.params["linear.weight"].detach().clone()
    for x, y in draw(steps=3):
        stack.backward(x, y)
        stack.step()
    assert torch.equal(stack.params["linear.weight"][1], before[1])
    alone = Stack(Logistic, [0], learning_rate=0.1, optimizer="sgd")
    for x, y in draw(steps=3):
        alone.backward(x[:1], y[:1])
        alone.step()
    torch.testing.assert_close(alone.params["linear.weight"][0], stack.params["linear.weight"][0])


def test_clipping_is_per_model():
    x, y = draw()[0]
    stack = Stack(MLP, SEEDS)
    stack.backward(torch.stack([x[0], 100 * x[1]]), y)
    norms = stack.clip(0.5)
    plain = stack.get_module(1)
    F.cross_entropy(plain(100 * x[1]), y[1]).backward()
    expected = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
    assert norms[1].item() == pytest.approx(expected.item(), rel=1e-4)
    for name, p in plain.named_parameters():
        torch.testing.assert_close(stack.grads[name][1], p.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "build", [CNN, Noisy, lambda: nn.Sequential(nn.Unflatten(1, (40, 1)), Last(), nn.Linear(4, 10))]
)
def test_a_checkpoint_resumes_exactly(build):
    feed = draw(steps=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the LSTM runs one seed after the other
        whole, first = Stack(build, SEEDS), Stack(build, SEEDS)
        for step, (x, y) in enumerate(feed):
            whole.backward(x, y)
            whole.step()
            if step < 4:
                first.backward(x, y)
                first.step()
        second = Stack(build, [7, 8])
        second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
        for x, y in feed[4:]:
            second.backward(x, y)
            second.step()
    for name, value in {**whole.params, **whole.buffers}.items():
        assert torch.equal(value, {**second.params, **second.buffers}[name]), name


class Last(nn.LSTM):
    def __init__(self):
        super().__init__(1, 4, batch_first=True)

    def forward(self, x):
        return super().forward(x)[0][:, -1]


def test_a_module_that_cannot_be_stacked_says_so_once():
    def build():
        return nn.Sequential(nn.Unflatten(1, (40, 1)), Last(), nn.Linear(4, 10))

    with pytest.warns(UserWarning, match="one seed after the other") as caught:
        stack = Stack(build, SEEDS)
        for x, y in draw():
            stack.backward(x, y)
            stack.step()
    assert len(caught) == 1 and stack.stacked is False


def test_a_coefficient_that_is_annealed_outside_is_noticed_at_once():
    weight = [1.0]

    def loss(out, y):
        return F.cross_entropy(out, y) * weight[0]

    plain, stack = Stack(MLP, SEEDS, loss=loss, replay=False), Stack(MLP, SEEDS, loss=loss)
    with pytest.warns(UserWarning, match="not replayed"):
        for x, y in draw():
            torch.testing.assert_close(stack.backward(x, y), plain.backward(x, y))
            stack.step()
            plain.step()
            weight[0] *= 0.5
    assert not stack._recordings


class Hidden:
    """A number that cannot be seen from outside."""

    def __init__(self, value):
        self._held = queue.SimpleQueue()
        self._held.put(value)

    @property
    def value(self):
        self._held.put(value := self._held.get())
        return value

    @value.setter
    def value(self, value):
        self._held.get()
        self._held.put(value)


def test_what_changes_late_is_noticed_at_its_first_step():
    weights = [1.0]
    stack = Stack(Logistic, SEEDS, loss=lambda out, y: F.cross_entropy(out, y) * weights[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x, y in draw(steps=12):
            losses = stack.backward(x, y)
    weights[0] = 0.5
    with pytest.warns(UserWarning, match="not replayed"):
        torch.testing.assert_close(stack.backward(x, y), 0.5 * losses)


def test_a_loss_that_counts_is_not_replayed():
    calls = []

    def loss(out, y):
        calls.append(0)
        return F.cross_entropy(out, y) * (0.1 if len(calls) > 1000 else 1.0)

    stack = Stack(Logistic, SEEDS, loss=loss)
    with pytest.warns(UserWarning, match="one seed after the other.*remembers in Python"):
        stack.backward(*draw()[0])


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_a_loss_that_looks_rows_up_is_replayed(n_seeds):
    def loss(out, y):
        return F.mse_loss(out, torch.eye(10)[y])

    def run(replay):
        stack, losses = Stack(Logistic, range(n_seeds), loss=loss, replay=replay), []
        generator = torch.Generator().manual_seed(0)
        for _ in range(6):
            x, y = (
                torch.randn(n_seeds, 8, 40, generator=generator),
                torch.randint(10, (n_seeds, 8), generator=generator),
            )
            losses.append(stack.backward(x, y))
            stack.step()
        return torch.stack(losses), len(stack._recordings)

    (ours, recordings), (plain, _) = run(True), run(False)
    assert recordings == 1
    torch.testing.assert_close(ours, plain)


def test_a_mask_as_an_index_is_not_replayed():
    """One model, for which there is no vmap that refuses it, runs as in a plain loop."""
    stack = Stack(Logistic, [0], loss=lambda out, y: F.cross_entropy(out[y > 3], y[y > 3]))
    x = torch.randn(1, 20, 40)
    for step in range(3):
        y = (torch.arange(20)[None] + step) % 7  # another number of labels above 3 in each
        with pytest.warns(UserWarning, match="not replayed.*depends on the data") if step == 0 else nullcontext():
            loss = stack.backward(x, y)
        logits = stack.modules[0](x[0])
        torch.testing.assert_close(loss[0], F.cross_entropy(logits[y[0] > 3], y[0][y[0] > 3]))
        stack.step()
    assert not stack.stacked


def test_what_changes_late_is_an_error_in_a_loop_of_ones_own(monkeypatch):
    monkeypatch.setattr("mnist1d.engine.stack.CHECK_EVERY", 10)
    weight = Hidden(1.0)
    stack = Stack(Logistic, SEEDS, loss=lambda out, y: F.cross_entropy(out, y) * weight.value)
    with pytest.raises(ReplayError, match="MNIST1D_REPLAY=0"):
        for step, (x, y) in enumerate(draw(steps=30)):
            stack.backward(x, y)
            stack.step()
            if step == 14:
                weight.value = 0.5


def test_train_goes_back_to_where_the_replay_was_right(data, monkeypatch):
    monkeypatch.setattr("mnist1d.engine.stack.CHECK_EVERY", 10)

    def run(replay):
        def factor(step):
            weight.value = 0.2 if step > 16 else 1.0
            return 1.0

        weight = Hidden(1.0)
        return train(
            Logistic, data, SEEDS, steps=40, batch_size=50, eval_every=20, schedule=factor, replay=replay,
            loss=lambda out, y: F.cross_entropy(out, y) * weight.value,
        )  # fmt: skip

    with pytest.warns(UserWarning, match="training begins anew without it"):
        ours = run(True)
    plain = run(False)
    for name in plain:
        np.testing.assert_allclose(ours[name], plain[name], rtol=1e-4, atol=1e-4)


def test_recordings_are_bounded():
    stack = Stack(Logistic, SEEDS)
    with pytest.warns(UserWarning, match="too many shapes"):
        for n in range(2, 12):
            x, y = draw(n=n, steps=1)[0]
            stack.backward(x, y)
            assert len(stack._recordings) <= 4


def test_the_environment_switches_replays_off(monkeypatch):
    monkeypatch.setenv("MNIST1D_REPLAY", "0")
    stack = Stack(MLP, SEEDS)
    for x, y in draw():
        stack.backward(x, y)
    assert stack.stacked and not stack._recordings


def test_a_stack_can_be_pickled_and_goes_on():
    stack = Stack(MLP, SEEDS)
    feed = draw()
    for x, y in feed[:3]:
        stack.backward(x, y)
        stack.step()
    loaded = pickle.loads(pickle.dumps(stack))
    assert torch.equal(loaded.backward(*feed[3]), stack.backward(*feed[3]))
    loaded.step()
    stack.step()
    for i in range(2):
        assert torch.equal(loaded.get_module(i).linear1.weight, stack.get_module(i).linear1.weight)


def test_weights_of_classes_in_the_batch_are_those_of_the_loss():
    """`F.cross_entropy` takes them as its third argument; in most steps they are all one."""
    generator, rates = torch.Generator().manual_seed(0), torch.linspace(0.2, 3, 10)
    stack = Stack(lambda: nn.Linear(40, 10), 2, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    set_seed(0)
    model = nn.Linear(40, 10)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(24):
        x, y = torch.randn(2, 20, 40, generator=generator), torch.randint(10, (2, 20), generator=generator)
        weight = torch.ones(10) if step < 20 else rates
        stack.backward(x, y, weight.expand(2, 10))
        stack.step()
        sgd.zero_grad()
        F.cross_entropy(model(x[0]), y[0], weight).backward()
        sgd.step()
    torch.testing.assert_close(stack.params["weight"][0], model.weight.detach(), rtol=1e-5, atol=1e-6)


def test_a_loop_of_ones_own_augments_averages_and_clips(data):
    """Mixup, clipping per seed and an average of the weights: one cell, the numbers of a plain loop."""
    x, y = split_tensors(data, "", 2)

    def mixup(model, a, b, y_a, y_b):
        out = model(0.7 * a + 0.3 * b)
        return 0.7 * F.cross_entropy(out, y_a) + 0.3 * F.cross_entropy(out, y_b)

    def build():
        conv = nn.Conv1d(1, 4, 3, bias=False)
        return nn.Sequential(
            nn.Unflatten(1, (1, 40)), conv, nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)
        )

    def adamw(params):
        return torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1)

    stack = Stack(build, SEEDS, objective=mixup, optimizer=adamw, example=(x[:, :2],))
    average = {name: p.detach().clone() for name, p in stack.params.items()}
    for xb, yb in batches(x, y, SEEDS, steps=10, batch_size=40, order="shuffled"):
        stack.backward(xb, xb.flip(1), yb, yb.flip(1))
        stack.clip(1.0)
        stack.step()
        for name, p in stack.params.items():
            average[name].lerp_(p.detach(), 0.1)
    assert stack.stacked and stack._recordings

    for i, seed in enumerate(SEEDS):
        torch.manual_seed(seed)
        model = build()
        with torch.no_grad():
            model.eval()(x[i, :2])
        opt = adamw(model.train().parameters())
        mean = [p.detach().clone() for p in model.parameters()]
        for xb, yb in batches(x, y, SEEDS, steps=10, batch_size=40, order="shuffled"):
            opt.zero_grad()
            mixup(model, xb[i], xb[i].flip(0), yb[i], yb[i].flip(0)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            for m, p in zip(mean, model.parameters(), strict=True):
                m.lerp_(p.detach(), 0.1)
        for ours, m in zip(average.values(), mean, strict=True):
            torch.testing.assert_close(ours[i], m, rtol=1e-3, atol=1e-4)


def test_one_model_with_dropout_is_replayed_and_draws_as_a_plain_loop_does():
    def build():
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)).double()

    torch.manual_seed(0)
    x, y = torch.randn(1, 20, 8, dtype=torch.float64), torch.randint(3, (1, 20))
    stack = Stack(build, [4])
    losses = [stack.backward(x, y).item() for _ in range(8)]
    assert stack.stacked and len(stack._recordings) == 1
    torch.manual_seed(4)
    model = build()
    plain = [F.cross_entropy(model(x[0]), y[0]).item() for _ in range(8)]
    assert losses == pytest.approx(plain, rel=1e-9) and len(set(losses)) == 8


@pytest.mark.parametrize("n", [1, 2])
def test_dropout_behind_kernels_draws_as_behind_torchs_layers(n):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gru = nn.Conv1d(2, 4, 3), nn.GRU(4, 3, batch_first=True)
            self.drop, self.linear = nn.Dropout(0.3), nn.Linear(18, 3)

        def forward(self, x):
            h = self.drop(self.conv(x)).transpose(1, 2)
            return self.linear(self.drop(self.gru(h)[0].flatten(1)))

    stack = Stack(Net, range(n))
    stack.backward(torch.randn(n, 20, 2, 8), torch.randint(3, (n, 20)))
    assert stack.stacked


# Numbers that would be silently wrong


def train_plainly(build, data, seeds, steps, make, loss=F.cross_entropy, before=lambda step: None, batch=50):
    """What anybody would write: losses [seed, step] of one model after the other, on batches in the stored order."""
    x, y = torch.as_tensor(data["x"], dtype=torch.float32), torch.as_tensor(data["y"])
    losses = []
    for seed in seeds:
        set_seed(seed)
        model = build()
        opt, own = make(list(model.parameters())), []
        for step in range(steps):
            before(step)
            rows = (torch.arange(batch) + step * batch) % len(x)
            opt.zero_grad()
            value = loss(model(x[rows]), y[rows])
            value.backward()
            opt.step()
            own.append(value.item())
        losses.append(own)
    return np.array(losses)


def sgd(params):
    return torch.optim.SGD(params, lr=0.1)


def check(build, data, seeds=(0, 1, 2), steps=20, make=sgd, before=lambda step: None, **options):
    """`train` has the losses of the plain loop and leaves the random states alone; `before` is called with the step."""
    plain = train_plainly(build, data, seeds, steps, make, options.get("loss", F.cross_entropy), before)

    def schedule(step):
        before(step)
        return 1.0

    settings = {"steps": steps, "batch_size": 50, "eval_every": 1, "optimizer": make, "schedule": schedule}
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    ours = train(build, data, list(seeds), **{**settings, **options})["train_loss"]
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    shown = ours[:, 1:] if options.get("eval_every", 1) == 1 else ours[:, -1:]
    np.testing.assert_allclose(shown, plain if shown.shape == plain.shape else plain[:, -1:], rtol=1e-4)


def linear():
    return nn.Linear(40, 10)


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]])
def test_targets_that_are_ignored_do_not_count(data, seeds):
    y = data["y"].copy()
    y[50:] = np.where(np.arange(len(y) - 50) % 3 == 0, -100, y[50:])  # none of the first batch
    check(linear, {"x": data["x"], "y": y}, seeds)


def make_adagrad(params):
    return torch.optim.Adagrad(params, lr=0.1, initial_accumulator_value=1.0)


def make_hooked(params):
    opt = torch.optim.SGD(params, lr=1.0)
    opt.register_step_post_hook(lambda *_: [p.data.clamp_(-0.05, 0.05) for p in params])
    return opt


def make_from_values(params):
    return torch.optim.SGD([{"params": [p], "lr": float(0.05 * p.detach().norm())} for p in params], lr=0.1)


@pytest.mark.parametrize("make", [make_adagrad, make_hooked, make_from_values])
def test_what_an_optimizer_is_made_with_counts(data, make):
    check(linear, data, make=make)


@pytest.mark.parametrize("replay", [True, False])
def test_gradients_are_ones_own(replay):
    """Parameters that are summed have a gradient each, and those of one batch outlive the next."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.delta = nn.Parameter(torch.randn(40, 10)), nn.Parameter(torch.zeros(40, 10))

        def forward(self, x):
            return x @ (self.w + self.delta)

    stack, feed = Stack(Sum, SEEDS, replay=replay), draw(steps=8)
    for (x, y), (x_next, y_next) in itertools.pairwise(feed):
        stack.backward(x, y)
        stack.grads["w"].mul_(2)
        torch.testing.assert_close(stack.grads["w"], 2 * stack.grads["delta"])
        kept, copied = stack.grads, {name: g.clone() for name, g in stack.grads.items()}
        stack.backward(x_next, y_next)
        assert all(torch.equal(kept[name], copied[name]) for name in kept)


@pytest.mark.parametrize("share", [0.5, 0.05])
@pytest.mark.parametrize("draw_number", [random.random, np.random.rand], ids=["python", "numpy"])
def test_random_numbers_of_python_and_numpy_belong_to_a_seed(data, draw_number, share):
    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(40, 40), nn.Linear(40, 10)

        def forward(self, x):
            return self.outer(x if self.training and draw_number() < share else x + self.inner(x).relu())

    with pytest.warns(UserWarning, match="draws from the generator of python or numpy"):
        check(Dropped, data, steps=40, eval_every=40)


def test_python_draws_that_begin_late_are_noticed(data):
    state = {"step": 0}

    class Late(nn.Linear):
        def forward(self, x):
            noise = np.random.rand() if state["step"] >= 10 and self.training else 0.0
            return super().forward(x + noise)

    with pytest.warns(UserWarning, match="draws from the generator of python or numpy"):
        check(lambda: Late(40, 10), data, steps=30, replay=False, before=lambda step: state.update(step=step))


def test_what_another_thread_draws_from_python_is_not_taken_for_the_models(monkeypatch, data):
    drawn = []

    def draw_at_times(function):
        calls = itertools.count(1)

        @functools.wraps(function)
        def wrapped(*args):
            results = function(*args)
            if next(calls) % 4 == 1:  # in between, as another thread would
                drawn.append(random.random())
            return results

        return wrapped

    alone = train(MLP, data, 2, steps=30, batch_size=50, eval_every=10)
    for name in ("_backward_plain", "_call"):  # all that runs a model
        monkeypatch.setattr(Stack, name, draw_at_times(getattr(Stack, name)))
    beside = train(MLP, data, 2, steps=30, batch_size=50, eval_every=10)
    assert len(drawn) > 3
    for name, values in alone.items():
        np.testing.assert_array_equal(beside[name], values)


def test_noise_that_begins_late_is_drawn_from_each_seeds_generator(data):
    scale = [0.0]

    class Late(nn.Linear):
        def forward(self, x):
            return super().forward(x + scale[0] * torch.randn_like(x) if scale[0] and self.training else x)

    def before(step):
        scale[0] = float(step >= 10)

    check(lambda: Late(40, 10), data, replay=False, before=before)
    check(lambda: Late(40, 10), data, replay=False, before=before, seeds=[3])


@pytest.mark.filterwarnings("ignore:.*one seed after the other")
def test_a_module_that_seeds_torch_itself_trains_as_in_a_plain_loop(data):
    class Reseeds(nn.Linear):
        def forward(self, x):
            torch.manual_seed(7)
            return super().forward(x + 0.1 * torch.randn_like(x))

    check(lambda: Reseeds(40, 10), data)


@pytest.mark.parametrize("replay", [True, False])
@pytest.mark.filterwarnings("ignore:.*(going on|begins anew|not replayed)")
def test_a_configuration_that_a_module_holds_may_change(data, replay):
    config = {"scale": 1.0}

    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(40, 10)
            self.config = config

        def forward(self, x):
            return super().forward(x) * self.config["scale"]

    check(Scaled, data, replay=replay, before=lambda step: config.update(scale=1.0 if step < 5 else 3.0))


class Config:
    beta = 0.0


def penalize(out):
    return Config.beta * out.pow(2).mean()


def penalize_directly(out, y):
    return F.cross_entropy(out, y) + Config.beta * out.pow(2).mean()


def penalize_in_a_helper(out, y):
    return F.cross_entropy(out, y) + penalize(out)


@pytest.mark.parametrize("loss", [penalize_directly, penalize_in_a_helper])
@pytest.mark.filterwarnings("ignore:.*(begins anew|not replayed)")
def test_an_attribute_of_a_class_may_change_between_two_checks(data, loss):
    check(
        linear, data, steps=60, eval_every=60, loss=loss,
        before=lambda step: setattr(Config, "beta", float(step >= 30)),
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*begins anew")
def test_the_last_step_is_compared(data):
    """What changes where nothing can see it is found at the end of the training."""
    hidden = Hidden(0.0)
    check(
        linear, data, steps=60, eval_every=60,
        loss=lambda out, y: F.cross_entropy(out, y) + hidden.value * out.pow(2).mean(),
        before=lambda step: setattr(hidden, "value", float(step >= 30)),
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(100, 40), (3, 100, 40)])
def test_batches_have_the_seeds_in_front(shape):
    stack = Stack(linear, SEEDS)
    with pytest.raises(ValueError, match="must have the 2 seeds in front"):
        stack.backward(torch.zeros(shape), torch.zeros(shape[:-1], dtype=torch.int64))
    with pytest.raises(ValueError, match="must have the 2 seeds in front"):
        stack.evaluate(lambda model, x: model(x), torch.zeros(shape))


@pytest.mark.filterwarnings("ignore:.*one seed after the other")
def test_what_a_model_does_to_its_batch_reaches_no_other(data):
    class Halves(nn.Linear):
        def forward(self, x):
            x *= 0.5
            return super().forward(x)

    check(lambda: Halves(40, 10), data)
    stack, x = Stack(lambda: Halves(40, 10), SEEDS), split_tensors(data, "_test", 2)[0]
    before = x.clone()
    for _ in range(2):
        first = stack.evaluate(lambda model, x: model(x), x)
    assert torch.equal(x, before) and torch.equal(first[1], stack.get_module(1)(x[1].clone()))


class Counts(nn.Linear):
    def __init__(self):
        super().__init__(40, 10)
        self.seen = {"n": 0}

    def forward(self, x):
        self.seen["n"] += 1
        return super().forward(x) / (1 + 0.1 * self.seen["n"])


class OwnGenerator(nn.Linear):
    def __init__(self):
        super().__init__(40, 10)
        self.generator = torch.Generator().manual_seed(torch.initial_seed() % 1000)

    def forward(self, x):
        return super().forward(x + torch.randn(x.shape, generator=self.generator))


class FirstBatch(nn.Linear):
    def __init__(self):
        super().__init__(40, 10)
        self.register_buffer("mean", None)

    def forward(self, x):
        if self.mean is None:
            self.mean = x.mean(0).detach()
        return super().forward(x - self.mean)


@pytest.mark.filterwarnings("ignore:.*one seed after the other")
@pytest.mark.parametrize("build", [Counts, OwnGenerator, FirstBatch])
def test_evaluation_leaves_containers_generators_and_late_buffers_alone(data, build):
    check(build, data)


@pytest.mark.filterwarnings("ignore:.*what it holds besides parameters and buffers differs between seeds")
def test_every_function_that_is_evaluated_is_compared(data):
    class Probed(nn.Linear):
        def __init__(self):
            super().__init__(40, 10)
            self.probe = torch.randn(40)

    stack, _ = fit(Probed, data, SEEDS, steps=3, batch_size=50)
    x, _ = split_tensors(data, "_test", 2)
    ours = stack.evaluate(lambda model, x: x @ model.probe, x)
    torch.testing.assert_close(ours, torch.stack([x[i] @ stack.modules[i].probe for i in range(2)]))
    state = torch.get_rng_state()
    noisy = [stack.evaluate(lambda model, x: model(x + torch.randn_like(x)), x) for _ in range(2)]
    assert torch.equal(*noisy) and torch.equal(torch.get_rng_state(), state)


def test_hooks_of_parameters_are_called(data):
    def build():
        model = nn.Linear(40, 10)
        model.weight.register_hook(lambda grad: grad.clamp(-0.01, 0.01))
        return model

    with pytest.warns(UserWarning, match="hooks"):
        check(build, data)


def test_modules_that_share_parameters_are_refused(data):
    shared = nn.Linear(40, 10)
    with pytest.raises(ValueError, match="share a parameter"):
        train(lambda: shared, data, 2, steps=1)
    frozen = nn.Linear(40, 10).requires_grad_(False)  # a backbone that is not trained may be shared
    check(lambda: nn.Sequential(frozen, nn.Linear(10, 10)), data)


def test_one_number_is_no_choice_between_classes(data):
    loss = nn.BCEWithLogitsLoss()
    binary = {k: (v > 4).astype(np.int64) if k.startswith("y") else v for k, v in data.items() if k[0] in "xy"}
    history = train(
        lambda: nn.Linear(40, 1), binary, SEEDS, steps=3, batch_size=50, loss=lambda out, y: loss(out[:, 0], y.float())
    )
    assert history.keys() == {"train_loss", "test_loss"}


def test_settings_reach_an_optimizer_that_is_made_by_a_callable(data):
    named = train(linear, data, 2, steps=5, batch_size=50, optimizer="sgd", learning_rate=0.5, momentum=0.9)
    ours = train(linear, data, 2, steps=5, batch_size=50, optimizer=torch.optim.SGD, learning_rate=0.5, momentum=0.9)
    np.testing.assert_allclose(named["train_loss"], ours["train_loss"], rtol=1e-6)
    for options in ({"optimizer": "adam", "momentum": 0.9}, {"optimizer": torch.optim.Adagrad, "momentum": 0.9}):
        with pytest.raises(ValueError, match=r"momentum=0.9: must be None.*has none"):
            train(linear, data, 2, steps=1, **options)


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
@pytest.mark.filterwarnings("ignore:.*one seed after the other")
def test_what_a_backward_pass_computes_again_has_the_parameters_of_today(data, seeds):
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)

    check(lambda: Checkpointed(nn.Linear(40, 20), nn.Tanh(), nn.Linear(20, 10)), data, seeds)


class Replacing(torch.optim.SGD):
    """Gives a parameter other memory, as some optimisers do."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - group["lr"] * p.grad


class Optimistic(torch.optim.Optimizer):
    """Keeps the gradient of the last step."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            last = self.state[p].get("last", p.grad)
            p.sub_(0.1 * (2 * p.grad - last))
            self.state[p]["last"] = p.grad


def make_scheduled(params):
    opt = torch.optim.SGD(params, lr=1.0)
    opt.register_step_post_hook(lambda *_: opt.param_groups[0].update(lr=0.8 * opt.param_groups[0]["lr"]))
    return opt


@pytest.mark.parametrize("make", [lambda p: Replacing(p, lr=0.1), Optimistic, make_scheduled])
def test_optimizers_that_replace_keep_and_schedule(data, make):
    check(linear, data, make=make)


def test_a_scheduler_of_ones_own_loop_sets_the_rate():
    stack, models = Stack(Logistic, SEEDS, optimizer="sgd", learning_rate=0.1), []
    for seed in SEEDS:
        set_seed(seed)
        models.append(Logistic())
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    for step, (x, y) in enumerate(draw(steps=8)):
        if step == 4:
            for optimizer in (*optimizers, *stack.optimizers._optimizers):
                optimizer.param_groups[0]["lr"] = 0.01
        stack.backward(x, y)
        stack.step()
        for i, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            optimizer.zero_grad()
            F.cross_entropy(model(x[i]), y[i]).backward()
            optimizer.step()
    for i, model in enumerate(models):
        torch.testing.assert_close(stack.params["linear.weight"][i], model.linear.weight)


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
@pytest.mark.filterwarnings("ignore:.*one seed after the other")
def test_hooks_on_gradients_of_activations_are_called(data, seeds):
    class Clamped(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            if out.requires_grad:
                out.register_hook(lambda grad: grad.clamp(-0.012, 0.012))
            return out

    check(lambda: Clamped(40, 10), data, seeds, steps=40, make=lambda p: torch.optim.SGD(p, lr=1.0))


class Centred(nn.Linear):
    """A running mean that is no buffer."""

    def __init__(self):
        super().__init__(40, 10)
        self.mean = torch.zeros(40)

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return super().forward(x - self.mean)


class Annealed(nn.Linear):
    """Counts in an object that can be called."""

    class Schedule:
        def __init__(self):
            self.step = 0

        def __call__(self):
            self.step += 1
            return 1 / (1 + 0.1 * self.step)

    def __init__(self):
        super().__init__(40, 10)
        self.schedule = self.Schedule()

    def forward(self, x):
        return super().forward(x) * (self.schedule() if self.training else 1.0)


class Dropping(nn.Linear):
    """Draws from a generator of numpy that is its own."""

    def __init__(self):
        super().__init__(40, 10)
        self.rng = np.random.default_rng(torch.initial_seed() % 1000)

    def forward(self, x):
        return super().forward(x * (self.rng.random() > 0.2))


class Teacher(nn.Module):
    """A parameter that follows another in the forward pass."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = nn.Linear(40, 10), nn.Linear(40, 10).requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            self.teacher.weight.lerp_(self.student.weight, 0.1)
        return self.student(x) + 0.5 * self.teacher(x)


@pytest.mark.filterwarnings("ignore:.*one seed after the other")
@pytest.mark.parametrize("seeds", [[0], [0, 1]])
@pytest.mark.parametrize("build", [Centred, Annealed, Dropping, Teacher])
def test_what_a_module_remembers_outside_of_its_buffers(data, build, seeds):
    check(build, data, seeds)
    stack, history = fit(build, data, seeds, steps=5, batch_size=50, learning_rate=1e-2)
    x, y = torch.as_tensor(data["x_test"], dtype=torch.float32), torch.as_tensor(data["y_test"])
    right = [(stack.get_module(i).eval()(x).argmax(1) == y).double().mean().item() for i in range(len(seeds))]
    if build is Centred:
        assert history["test_acc"][:, -1] == pytest.approx([100 * share for share in right])


@pytest.mark.parametrize("extra", [{}, {"device": torch.device("cpu")}, {"function": F.relu, "values": np.ones(3)}])
@pytest.mark.filterwarnings("ignore:.*(begins anew|not replayed)")
def test_a_nested_configuration_stays_the_users(data, extra):
    config = types.SimpleNamespace(model=types.SimpleNamespace(loss={"scale": 1.0}), **extra)

    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(40, 10)
            self.config = config

        def forward(self, x):
            return super().forward(x) * self.config.model.loss["scale"]

    inner = config.model.loss
    check(Scaled, data, before=lambda step: inner.update(scale=1.0 if step < 5 else 3.0))
    assert config.model.loss is inner


def test_an_optimizer_goes_on_where_models_part_late(data):
    """Adam's moments outlive the step at which the models begin to run one after the other."""
    state = {"step": 0}

    class Late(nn.Linear):
        def forward(self, x):
            return super().forward(x * (np.random.rand() if state["step"] >= 10 and self.training else 1.0))

    with pytest.warns(UserWarning, match="draws from the generator of python or numpy"):
        check(
            lambda: Late(40, 10), data, steps=30, replay=False, before=lambda step: state.update(step=step),
            make=lambda params: torch.optim.Adam(params, lr=1e-2),
        )  # fmt: skip


def test_zero_is_a_setting():
    def make(params):
        return torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1.0)

    groups = Stack(linear, SEEDS, optimizer=make, momentum=0.0, weight_decay=0.0).optimizers._optimizers[0].param_groups
    assert groups[0]["momentum"] == groups[0]["weight_decay"] == 0
    assert Stack(linear, SEEDS, optimizer=make).optimizers._optimizers[0].param_groups[0]["momentum"] == 0.9


def test_lbfgs_uses_the_gradient_that_is_there(data):
    def build():
        return nn.Sequential(nn.Linear(40, 10), nn.Dropout(0.2))

    stack = Stack(build, [0], optimizer=lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3))
    set_seed(0)
    model = build()
    opt, x, y = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3), *split_tensors(data, "", 1)

    def closure():
        opt.zero_grad()
        loss = F.cross_entropy(model(x[0]), y[0])
        loss.backward()
        return loss

    for _ in range(4):
        ours = stack.backward(x, y)
        stack.step()
        assert ours.item() == pytest.approx(opt.step(closure).item(), rel=1e-4)
    with pytest.raises(ValueError, match="clip: LBFGS"):
        stack.clip(1.0)


def test_parameters_that_are_frozen_later_stay():
    stack = Stack(MLP, SEEDS)
    for step, (x, y) in enumerate(draw(steps=12)):
        stack.backward(x, y)
        stack.step()
        if step == 5:
            stack.params["linear1.weight"].requires_grad_(False)
            before = stack.params["linear1.weight"].detach().clone()
    assert torch.equal(stack.params["linear1.weight"], before)


def test_a_stack_can_be_pickled_after_an_evaluation_and_between_gradient_and_step():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for build in (MLP, lambda: nn.Sequential(nn.Unflatten(1, (40, 1)), Last(), nn.Linear(4, 10))):
            stack, ((x, y),) = Stack(build, SEEDS), draw(steps=1)
            stack.backward(x, y)
            stack.evaluate(lambda model, x: model(x), x)
            loaded = copy.deepcopy(stack)
            if build is MLP:
                loaded = pickle.loads(pickle.dumps(stack))
            stack.step()
            loaded.step()
            assert all(torch.equal(p, loaded.params[name]) for name, p in stack.params.items())


def test_a_stack_that_runs_one_by_one_goes_back_to_its_beginning():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stack = Stack(Last, SEEDS)
        first, (x, y) = stack.state_dict(), draw(n=10, steps=1)[0]
        losses = []
        for _ in range(2):
            losses.append(stack.backward(x[:, :, :, None], y % 4))
            stack.step()
            stack.load_state_dict(first)
    assert torch.equal(*losses)


def spoil(monkeypatch, stack, is_spoiled, of_loss=1.0, at_first=False):
    """Let the way together be wrong in the late, or the first, comparisons, counted from 0, that are; a list of all."""
    together, compared = Stack._run_on_copy, []

    def run(self, batch):
        loss, first, *others = together(self, batch)
        if self is stack and (not self._steps if at_first else self._since_plain > 1):  # after steps without one
            compared.append(is_spoiled(len(compared)))
            if compared[-1]:
                loss, first = loss * of_loss, first * 1.5
        return loss, first, *others

    monkeypatch.setattr(Stack, "_run_on_copy", run)
    return compared


def test_a_comparison_that_a_unit_at_its_kink_spoils_is_put_off(monkeypatch):
    """Rounding does so where one example makes most of a gradient: it moves that, no loss, and not for long."""
    stacks = [Stack(MLP, SEEDS, learning_rate=1e-3, replay=False) for _ in range(2)]
    compared = spoil(monkeypatch, stacks[1], lambda i: i % 5 != 4)
    for batch in draw(steps=60):
        for stack in stacks:
            stack.backward(*batch)
            stack.step()
    assert len(compared) > 5 and stacks[1].stacked
    for name, p in stacks[0].params.items():
        torch.testing.assert_close(stacks[1].params[name], p, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("n_seeds", [3, 1])
def test_a_first_batch_that_a_unit_at_its_kink_spoils_leaves_it_to_the_next(n_seeds, monkeypatch):
    stacks = [Stack(MLP, n_seeds, learning_rate=1e-3) for _ in range(2)]
    compared = spoil(monkeypatch, stacks[1], lambda i: i < 3, at_first=True)
    how = []
    for batch in draw(n_seeds, steps=8):
        for stack in stacks:
            stack.backward(*batch)
            stack.step()
        how.append(stacks[1].stacked)
    assert len(compared) == 4 and how == 3 * [None] + 5 * [True]
    for name, p in stacks[0].params.items():
        torch.testing.assert_close(stacks[1].params[name], p, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("of_loss", "most", "n_compared"), [(1.0, 5, 5), (1.01, 1, 2)])  # 2: without kernels too
def test_the_first_batch_is_put_off_only_so_often_and_never_where_a_loss_is_wrong(
    of_loss, most, n_compared, monkeypatch
):
    stack = Stack(MLP, SEEDS, learning_rate=1e-3)
    compared = spoil(monkeypatch, stack, lambda i: True, of_loss, at_first=True)
    batches = iter(draw(steps=6))
    for _ in range(most - 1):
        stack.backward(*next(batches))
        stack.step()
    with pytest.warns(UserWarning, match="one seed after the other"):
        stack.backward(*next(batches))
    assert len(compared) == n_compared and stack.stacked is False


@pytest.mark.parametrize(("of_loss", "most"), [(1.0, 5), (1.01, 1)])
@pytest.mark.filterwarnings("ignore:.*one seed after the other")
def test_a_comparison_is_put_off_only_so_often_and_never_where_a_loss_is_wrong(of_loss, most, monkeypatch):
    stack = Stack(MLP, SEEDS, learning_rate=1e-3, replay=False)
    compared = spoil(monkeypatch, stack, lambda i: True, of_loss)
    with pytest.raises(ReplayError, match="steps after the last comparison"):
        for batch in draw(steps=60):
            stack.backward(*batch)
            stack.step()
    assert len(compared) == most
