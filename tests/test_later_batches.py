"""What a first batch does not show: whenever a difference begins, numbers are a plain loop's, or there is an error."""

import functools
import math
import pickle
import types
from contextvars import ContextVar
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mnist1d import compare
from mnist1d.engine import Stack
from mnist1d.engine.pictures import freeze_function
from mnist1d.training import accuracy, evaluate, fit, split_tensors, train
from mnist1d.utils import set_seed
from test_state import draw_batches, make_sgd
from zoo import CLASSES, LENGTH, Base, base

NOW = {"step": 0, "seen": None}


def cross_entropy(model, x, y):
    return F.cross_entropy(model(x), y)


def check(build, n, objective=cross_entropy, optimizer=make_sgd, batches=None, before=lambda step: None):
    """A stack's losses and parameters against those of a loop over seeds."""
    batches = batches or draw_batches(n, 12)
    stack, ours = Stack(build, range(n), objective=objective, optimizer=optimizer), []
    for NOW["step"], batch in enumerate(batches):
        before(NOW["step"])
        ours.append(stack.backward(*batch))
        stack.step()
    for i in range(n):
        set_seed(i)
        model = build()
        opt, losses = optimizer(model.parameters()), []
        for NOW["step"], (x, y) in enumerate(batches):
            before(NOW["step"])
            opt.zero_grad()
            losses.append(objective(model, x[i].clone(), y[i].clone()))
            losses[-1].backward()
            opt.step()
        torch.testing.assert_close(torch.stack(ours)[:, i], torch.stack(losses).detach(), rtol=1e-3, atol=1e-4)
        for name, p in model.named_parameters():
            torch.testing.assert_close(stack.params[name][i], p, rtol=1e-3, atol=1e-4)
    return stack


class Anchored(Base):
    """Holds its parameters in a list, and where they were."""

    def __init__(self):
        super().__init__()
        self.held = [p for p in self.parameters() if p.ndim > 1]
        self.start = [p.detach().clone() for p in self.held]


def pull_back(model, x, y):
    distance = sum((p - q).square().sum() for p, q in zip(model.held, model.start, strict=True))
    return cross_entropy(model, x, y) + 0.5 * distance


class ZeroHead(nn.Module):
    """A layer of one's choice under a head of zeros, through which no first gradient comes."""

    def __init__(self, layer, n_out):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(n_out, CLASSES)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        return self.head(self.layer(x[:, None]).relu().flatten(1))


def penalize_slope(model, x, y):
    x = x.requires_grad_()
    out = model(x)
    (slope,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    return F.cross_entropy(out, y) + 5 * slope.square().sum(1).mean()


def penalize_slope_functionally(model, x, y):
    slope = torch.func.grad(lambda t: model(t).square().sum())(x)
    return cross_entropy(model, x, y) + 5 * slope.square().sum(1).mean()


LAYERS = {
    "conv": lambda: ZeroHead(nn.Conv1d(1, 3, 3), 3 * (LENGTH - 2)),
    "max": lambda: ZeroHead(nn.Sequential(nn.Conv1d(1, 3, 3), nn.MaxPool1d(2)), 3 * (LENGTH // 2 - 1)),
    "power": lambda: ZeroHead(nn.Sequential(nn.Conv1d(1, 3, 3), nn.LPPool1d(2, 2)), 3 * (LENGTH // 2 - 1)),
}


@pytest.mark.filterwarnings("ignore:.*one seed after the other")
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("objective", [penalize_slope, penalize_slope_functionally])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_penalty_on_slopes_has_its_gradient(layer, objective, n):
    check(LAYERS[layer], n, objective)


@pytest.mark.filterwarnings("ignore:.*one seed after the other", "ignore:training steps are not replayed")
@pytest.mark.parametrize("n", [1, 3])
def test_parameters_that_a_list_holds_have_a_gradient(n):
    check(Anchored, n, pull_back)


class Features(nn.Module):
    """Random features, drawn for each seed and held as a plain tensor, whose weight is zero at first."""

    def __init__(self):
        super().__init__()
        self.drawn = 2 * torch.randn(LENGTH, 16)
        self.amount, self.linear = nn.Parameter(torch.zeros(16)), nn.Linear(LENGTH, 16)
        self.head = nn.Linear(16, CLASSES)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        return self.head(self.linear(x) + self.amount * torch.cos(x @ self.drawn))


@pytest.mark.filterwarnings("ignore:.*one seed after the other")
def test_what_differs_between_seeds_and_is_no_buffer_is_each_seeds_own():
    assert check(Features, 3).stacked is False


class Clamped(Base):
    """One layer has a forward pass of its own, which does as the layer's until a weight is large."""

    def __init__(self):
        super().__init__()
        layer = next(part for part in self.modules() if type(part) is nn.Linear)
        clamped = lambda own, x: F.linear(x, own.weight.clamp(-0.26, 0.26), own.bias)  # noqa: E731
        layer.forward = types.MethodType(clamped, layer)


@pytest.mark.parametrize("n", [1, 3])
def test_a_forward_pass_put_over_a_layers_own_is_run(n):
    check(Clamped, n, optimizer=lambda params: torch.optim.SGD(params, lr=0.5))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Parameter(torch.randn(5, 4)), nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.head(F.embedding(x, self.table, padding_idx=0).flatten(1))


@pytest.mark.filterwarnings("ignore:.*one seed after the other")
def test_a_padding_that_comes_later_has_no_gradient():
    generator = torch.Generator().manual_seed(0)
    batches = []
    for step in range(10):
        x = torch.randint(1, 5, (3, 10, 4), generator=generator)
        x[:, :, 0] *= step <= 3
        batches.append((x, torch.randint(CLASSES, (3, 10), generator=generator)))
    check(Words, 3, batches=batches)


def then(change):
    """SGD that changes every parameter after its step."""

    class Changed(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            super().step()
            for group in self.param_groups:
                for p in group["params"]:
                    change(p)

    return Changed


Clipping = then(lambda p: p.clamp_(-0.2, 0.2))
Noisy = then(lambda p: p.add_(0.05 * torch.randn_like(p)))


def normalize(self, h):
    return h.tanh() / self.first.weight.abs().max()


@pytest.mark.filterwarnings("ignore:.*one seed after the other")
def test_ties_share_a_gradient_as_torch_shares_it():
    check(base(normalize), 3, optimizer=lambda params: Clipping(params, lr=0.5))


# In `train`, which goes back where a difference is found ------------------------------------------------------------


def make_data(n=120):
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(n, LENGTH)), "y": np.arange(n) % CLASSES}


def note_step(step):
    NOW["step"] = step
    return 1.0


def train_both(build, n, steps, **options):
    """Last training losses [seed]: ours, and those of every seed in a plain loop."""
    data, plain = make_data(), []
    settings = {"batch_size": 10, "optimizer": make_sgd, "schedule": note_step, "eval_every": steps} | options
    ours = train(build, data, n, steps=steps, **settings)["train_loss"][:, -1]
    loss = options.get("loss", F.cross_entropy)
    for i in range(n):
        set_seed(i)
        model = build()
        opt = make_sgd(model.parameters())
        for step in range(steps):
            note_step(step)
            rows = (np.arange(10) + 10 * step) % 120
            x, y = torch.tensor(data["x"][rows], dtype=torch.float32), torch.tensor(data["y"][rows])
            opt.zero_grad()
            value = loss(model(x), y)
            value.backward()
            opt.step()
        plain.append(value.item())
    return ours, plain


class Late(Base):
    """From step 60 on reads a number that was drawn for each seed."""

    def __init__(self):
        super().__init__()
        self.drawn = float(torch.rand(()))

    def forward(self, x):
        return super().forward(x) * (1 + self.drawn * (NOW["step"] >= 60))


@pytest.mark.filterwarnings("ignore:.*one seed after the other", "ignore:.*training begins anew without it")
@pytest.mark.parametrize("steps", [70, 300])
def test_what_begins_late_is_found_and_training_goes_back(steps):
    ours, plain = train_both(Late, 3, steps)
    np.testing.assert_allclose(ours, plain, rtol=1e-3)


class Counting:
    """A schedule that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, step):
        self.calls += 1
        NOW["step"] = step
        return 1 / (1 + self.calls / 100)


@pytest.mark.filterwarnings("ignore:.*one seed after the other", "ignore:.*(begins anew without it|are not replayed)")
def test_a_schedule_that_counts_is_set_back_with_training():
    ours, plain = Counting(), Counting()
    losses = [
        train(Late, make_data(), seeds, steps=200, batch_size=10, schedule=schedule)["train_loss"][:, -1]
        for seeds, schedule in ((3, ours), ([2], plain))
    ]
    assert ours.calls == 200
    np.testing.assert_allclose(losses[0][2], losses[1][0], rtol=1e-3)


class Rhythm(nn.Module):
    """A loss with a term every 16 steps, by a helper of a helper."""

    def forward(self, out, y):
        return F.cross_entropy(out, y) + weigh() * out.square().mean()


class RhythmOfAnObject:
    def __call__(self, out, y):
        return F.cross_entropy(out, y) + weigh() * out.square().mean()


def weigh():
    return read_step() % 16 == 8


def read_step():
    return NOW["step"]


@pytest.mark.filterwarnings("ignore:training steps are not replayed")
@pytest.mark.parametrize("loss", [Rhythm(), RhythmOfAnObject()], ids=["module", "object"])
def test_what_comes_and_goes_in_a_helper_is_seen(loss):
    ours, plain = train_both(Base, 2, 30, loss=loss)
    np.testing.assert_allclose(ours, plain, rtol=1e-3)


class Annealed:
    """A loss that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, out, y):
        self.calls += 1
        return (out - y).square().mean() * max(0.0, 1 - self.calls / 40)


@pytest.mark.parametrize("eval_every", [1, 3, 9])
def test_evaluations_do_not_advance_a_loss_that_counts(eval_every):
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(90, LENGTH)), "y": rng.normal(size=(90, CLASSES))}
    data |= {"x_test": data["x"], "y_test": data["y"]}
    loss = Annealed()
    history = train(Base, data, 1, steps=9, batch_size=10, loss=loss, eval_every=eval_every, optimizer=make_sgd)
    assert loss.calls == 9
    again = train(Base, data, 1, steps=9, batch_size=10, loss=Annealed(), eval_every=9, optimizer=make_sgd)
    assert history["train_loss"][0, -1] == pytest.approx(again["train_loss"][0, -1])


class LateAnnealed:
    """Begins to count when the loss is low enough, or at once."""

    def __init__(self, limit):
        self.calls, self.limit = 0, limit

    def __call__(self, out, y):
        value = (out - y).square().mean()
        self.calls += value.item() < self.limit
        return value * max(0.1, 1 - self.calls / 15)


@pytest.mark.filterwarnings("ignore:.*one seed after the other", "ignore:the loss counts", "ignore:.*not replayed")
@pytest.mark.parametrize("make", [Annealed, lambda: LateAnnealed(math.inf), lambda: LateAnnealed(0.75)])
def test_what_a_loss_counts_does_not_depend_on_the_number_of_seeds(make):
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(90, LENGTH)), "y": rng.normal(size=(90, CLASSES))}
    options = {"steps": 25, "batch_size": 10, "eval_every": 5, "optimizer": make_sgd}
    loss = make()
    together = train(Base, data, 3, loss=loss, **options)["train_loss"]
    for seed in range(3):
        one = make()
        np.testing.assert_allclose(together[seed], train(Base, data, [seed], loss=one, **options)["train_loss"][0])
    assert loss.calls == one.calls > 0


def test_a_loss_that_counts_is_said_to_be_shared_by_the_seeds():
    with pytest.warns(UserWarning, match="what it counts is that of all seeds together"):
        Stack(Base, 2 * [0], loss=Annealed()).backward(torch.randn(2, 5, LENGTH), torch.randn(2, 5, CLASSES))


def remember():
    model = Base()
    model.register_forward_hook(lambda module, inputs, out: NOW.update(seen=out.detach().clone()))
    return model


@pytest.mark.filterwarnings("ignore:.*one seed after the other")
@pytest.mark.parametrize("n", [1, 2])
def test_a_hook_sees_every_step(n):
    stack, seen = Stack(remember, range(n), optimizer=make_sgd), []
    for batch in draw_batches(n, 9):
        stack.backward(*batch)
        stack.step()
        seen.append(NOW["seen"].mean().item())
    assert len(set(seen)) == 9


# Optimisers ---------------------------------------------------------------------------------------------------------


def test_an_optimisers_noise_is_the_seeds_own():
    check(Base, 2, optimizer=lambda params: Noisy(params, lr=0.1))
    first, second = (
        torch.manual_seed(k) and train_both(Base, 2, 9, optimizer=lambda p: Noisy(p, lr=0.1))[0] for k in (1, 2)
    )
    np.testing.assert_array_equal(first, second)


def freeze():
    model = Base()
    next(model.parameters()).requires_grad_(False)
    return model


@pytest.mark.parametrize("n", [1, 2])
def test_what_is_frozen_at_first_can_be_trained_later(n):
    stack = Stack(freeze, range(n))
    name, p = next(iter(stack.params.items()))
    before = p.detach().clone()
    for step, batch in enumerate(draw_batches(n, 8)):
        if step == 4:
            assert torch.equal(p, before)
            p.requires_grad_(True)
        stack.backward(*batch)
        stack.step()
    assert not torch.equal(stack.params[name], before)


def test_a_layer_frozen_in_some_copies_is_named():
    made = iter([freeze(), Base()])
    with pytest.raises(ValueError, match="is frozen in some copies; must be trained in all or none"):
        Stack(lambda: next(made), [0, 1])


def with_scheduler(params):
    optimizer = torch.optim.SGD(params, lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    optimizer.register_step_post_hook(lambda *_: scheduler.step())
    return optimizer


@pytest.mark.filterwarnings("ignore:Detected call of")
def test_two_that_set_one_rate_are_an_error():
    with pytest.raises(ValueError, match=r"learning_rate=0\.8: must be None, a scheduler of the optimiser sets it"):
        train(Base, make_data(), 1, steps=2, batch_size=10, optimizer=with_scheduler, learning_rate=0.8)
    with pytest.raises(ValueError, match=r"schedule=.*must be None, a scheduler of the optimiser sets the rate"):
        train(Base, make_data(), 1, steps=2, batch_size=10, optimizer=with_scheduler, schedule=lambda step: 0.5)


def with_look_back(params):
    optimizer, last = torch.optim.SGD(params, lr=0.1), {}

    def extrapolate(optimizer, *_):
        for p in optimizer.param_groups[0]["params"]:
            new, old = p.grad, last.get(p, p.grad)
            last[p] = new
            p.grad = 2 * new - old

    optimizer.register_step_pre_hook(extrapolate)
    return optimizer


def test_gradients_that_a_hook_keeps_are_not_written_over():
    losses = [
        train(Base, make_data(), 2, steps=20, batch_size=10, optimizer=with_look_back, eval_every=20, replay=replay)
        for replay in (None, False)
    ]
    np.testing.assert_allclose(losses[0]["train_loss"], losses[1]["train_loss"], rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*one seed after the other")
def test_an_optimiser_is_made_once_for_each_model():
    made = []

    def make(params):
        made.append(1)
        return make_sgd(params)

    check(Features, 2, optimizer=make)
    assert len(made) == 4  # two in the stack, two in the loop


# Evaluation and data ------------------------------------------------------------------------------------------------


class Centred(nn.Module):
    """Looks at an example beside the mean of its batch."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = (
            nn.BatchNorm1d(LENGTH, affine=False, track_running_stats=False),
            nn.Linear(LENGTH, CLASSES),
        )

    def forward(self, x):
        return self.linear(self.norm(x))


def test_a_model_that_mixes_examples_is_evaluated_on_all_at_once():
    x = torch.randn(1000, LENGTH).sort(0).values.expand(2, -1, -1)
    stack = Stack(Centred, range(2))
    y = torch.stack([stack.get_module(i).eval()(x[0]).argmax(1) for i in range(2)])
    assert evaluate(stack, x, y)[1].tolist() == [100, 100]


def test_truth_values_stay():
    data = {"x": np.eye(4) > 0, "y": np.array([True, False, True, False])}
    x, y = split_tensors(data, "", 2)
    assert x.dtype == y.dtype == torch.bool


@pytest.mark.filterwarnings("ignore:.*what it holds besides parameters and buffers differs between seeds")
def test_a_function_is_known_by_its_defaults_and_its_owner():
    def build():
        model = Base()
        model.drawn = float(torch.rand(()))
        return model

    stack, (x, y) = Stack(build, range(3)), draw_batches(3, 1)[0]
    stack.backward(x, y)
    for k in (0, 1):
        found = stack.evaluate(lambda model, x, k=k: model(x) + k * model.drawn, x)
        expected = torch.stack([m(part) + k * m.drawn for m, part in zip(stack.modules, x, strict=True)])
        torch.testing.assert_close(found, expected.detach())


class Scaled(Base):
    """With a parameter that is one number, as a temperature is."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return super().forward(x) * self.scale.exp()


def test_a_parameter_may_be_one_number():
    assert check(Scaled, 3).stacked
    assert np.isfinite(train(Scaled, make_data(), 2, steps=5, batch_size=10, clip=1.0)["train_loss"][:, -1]).all()
    data = make_data() | {f"{k}_test": v for k, v in make_data().items()}
    assert compare({"a": Scaled, "b": Base}, data, seeds=2, budget=2).accuracy["a"].shape == (2,)


def test_a_model_that_gives_nan_has_no_accuracy():
    logits = torch.tensor([[[1.0, 0.0], [torch.nan, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    found = accuracy(logits, torch.tensor([[0, 0], [0, 1]]))
    assert found[0].isnan() and found[1] == 100


def test_what_an_evaluation_gives_must_be_tensors():
    stack = Stack(Base, range(2))
    with pytest.raises(ValueError, match=r"function: gave NoneType \(\); must give tensors"):
        stack.evaluate(lambda model, x: None, torch.zeros(2, 5, LENGTH))


def test_a_last_step_that_diverges_shows():
    data = make_data() | {f"{k}_test": v for k, v in make_data().items()}
    history = fit(Base, data, 1, steps=1, batch_size=10, optimizer=lambda p: torch.optim.SGD(p, lr=torch.inf))[1]
    assert np.isnan(history["test_acc"][0, -1])


# What a check must leave alone --------------------------------------------------------------------------------------


class Centre(nn.Module):
    """Outputs less their running mean, which it keeps as a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(CLASSES))

    def forward(self, out):
        centred = out - self.mean
        self.mean.mul_(0.9).add_(0.1 * out.detach().mean(0))
        return centred


def test_a_module_that_a_loss_encloses_is_called_once_a_step():
    losses = []
    for run in ("ours", "plain"):
        centre = Centre()
        objective = lambda model, x, y, centre=centre: F.cross_entropy(centre(model(x)), y)  # noqa: E731
        stack = Stack(Base, [0], objective=objective, optimizer=make_sgd)
        if run == "plain":
            stack.part()
        for batch in draw_batches(1, 12):
            losses.append(stack.backward(*batch))
            stack.step()
    torch.testing.assert_close(torch.stack(losses[:12]), torch.stack(losses[12:]))


class Word(Base):
    """Right in torch; vmap gives the padding, counted from the end, a gradient."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(10, CLASSES))

    def forward(self, x):
        return super().forward(x) + look_up(x[:, 0].clamp(0, 9).long(), self.table)


def look_up(index, table):
    return F.embedding(index, table, padding_idx=-1)


@pytest.mark.filterwarnings("ignore:.*one seed after the other")
def test_a_padding_counted_from_the_end_is_one():
    stack = Stack(Word, [0, 1])
    stack.backward(*draw_batches(2, 1)[0])
    assert stack.stacked is False


class Marked(Base):
    """Reads a number that was drawn for each seed where a signal begins with nine."""

    def __init__(self):
        super().__init__()
        self.drawn = float(torch.rand(()))

    def forward(self, x):
        return super().forward(x) * (1 + self.drawn * (x[:, :1] == 9))


def decaying(params):
    optimizer = torch.optim.SGD(params, lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    optimizer.register_step_post_hook(lambda *_: scheduler.step())
    return optimizer


@pytest.mark.filterwarnings("ignore:.*one seed after the other", "ignore:.*training begins anew without it")
@pytest.mark.filterwarnings("ignore:Detected call of")
def test_training_goes_back_to_the_start_where_the_optimiser_remembers():
    data = make_data(400)
    data["x"][:, 0] = np.where(np.arange(400) < 300, 1, 9)
    stack, history = fit(Marked, data, 2, steps=200, batch_size=2, optimizer=decaying, eval_every=200)
    assert stack.stacked is False
    for i in range(2):
        set_seed(i)
        model = Marked()
        optimizer = decaying(model.parameters())
        for step in range(200):
            x, y = (torch.tensor(data[k][2 * step : 2 * step + 2]) for k in "xy")
            loss = F.cross_entropy(model(x.float()), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert history["train_loss"][i, -1] == pytest.approx(loss.item(), rel=1e-3)


def test_a_seed_without_a_gradient_is_no_difference():
    def objective(model, x, y):
        return cross_entropy(model, x, y) + 0 * (next(model.parameters()).sum() * x[:, :1]).abs().sqrt().sum()

    stack = Stack(Base, [0, 1], objective=objective, optimizer=make_sgd)
    for step, (x, y) in enumerate(draw_batches(2, 60)):
        if step >= 10:
            x[0, 0, 0] = 0
        stack.backward(x, y)
        for grad in stack.grads.values():
            grad.nan_to_num_()
        stack.step()
    assert stack.stacked


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_difference(dtype):
    stack = Stack(lambda: Base().to(dtype), range(3), optimizer=lambda params: torch.optim.SGD(params, lr=0.05))
    for x, y in draw_batches(3, 60):
        stack.backward(x.to(dtype), y)
        stack.step()
    assert stack.stacked


def test_an_evaluation_keeps_what_its_function_did():
    calls = []
    stack = Stack(Base, [0, 1], objective=lambda model, x, y: cross_entropy(model, x, y) + 0 * len(calls))
    stack.evaluate(lambda model, x: calls.append(1) or model(x), draw_batches(2, 1)[0][0])
    assert calls


def test_pickled_in_between_a_stack_knows_what_was_not_compared():
    stack = Stack(Base, [0, 1], optimizer=make_sgd)
    for batch in draw_batches(2, 12):
        stack.backward(*batch)
        stack.step()
    stack._since_plain = 7
    assert pickle.loads(pickle.dumps(stack))._since_plain == 7


SETTING = types.SimpleNamespace(scale=1.0, ones=torch.ones(1))
OUTER = types.SimpleNamespace(inner=types.SimpleNamespace(scale=1.0))


def pulse(step):
    """A setting that is another one for a while, and the old one where comparisons are made."""
    SETTING.scale = OUTER.inner.scale = 3.0 if 34 <= step < 80 else 1.0


def in_a_generator(model, x, y):
    return cross_entropy(model, x, y) + sum(SETTING.scale * column.square().mean() for column in model(x).unbind(1))


def in_an_inner_function(model, x, y):
    def penalize(out):
        return SETTING.scale * out.square().mean()

    return cross_entropy(model, x, y) + penalize(model(x))


def in_an_object_of_an_object(model, x, y):
    return cross_entropy(model, x, y) + OUTER.inner.scale * model(x).square().mean()


class HoldsFunction(Base):
    def __init__(self):
        super().__init__()
        self.change = lambda h: SETTING.scale * h

    def forward(self, x):
        return super().forward(self.change(x))


class HasProperty(Base):
    @property
    def scale(self):
        return SETTING.scale

    @staticmethod
    def change(x):
        return SETTING.scale * x

    def forward(self, x):
        return self.scale * super().forward(self.change(x))


class HoldsSettingWithTensor(Base):
    def __init__(self):
        super().__init__()
        self.setting = SETTING

    def forward(self, x):
        return super().forward(x * self.setting.scale)


PULSES = [
    (Base, in_a_generator), (Base, in_an_inner_function), (Base, in_an_object_of_an_object),
    (HoldsFunction, cross_entropy), (HasProperty, cross_entropy), (HoldsSettingWithTensor, cross_entropy),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*one seed after the other", "ignore:training steps are not replayed")
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(("build", "objective"), PULSES, ids=lambda f: f.__name__)
def test_what_comes_and_goes_between_two_comparisons(build, objective, n):
    check(build, n, objective, batches=draw_batches(n, 95), before=pulse)


class WritesLater(Base):
    def forward(self, x):
        return super().forward(x.mul_(0.5) if self.training and NOW["step"] >= 10 else x)


class CountsInIntegers(Base):
    """A buffer that begins as a whole number and becomes a mean."""

    def __init__(self):
        super().__init__()
        self.register_buffer("size", torch.tensor(1))

    def forward(self, x):
        self.size = 0.9 * self.size + 0.1 * x.detach().abs().mean()
        return super().forward(x / self.size)


class Teacher(Base):
    """Pulls a copy of a layer after it, in the forward pass."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = nn.Linear(LENGTH, LENGTH), nn.Linear(LENGTH, LENGTH)
        self.teacher.load_state_dict(self.student.state_dict())

    def forward(self, x):
        for p, q in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            p.data.lerp_(q.data, 0.05)
        return super().forward(self.student(x) + self.teacher(x).detach())


@pytest.mark.filterwarnings("ignore:.*one seed after the other", "ignore:training steps are not replayed")
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("build", [WritesLater, CountsInIntegers, Teacher])
def test_what_a_forward_pass_changes(build, n):
    check(build, n, batches=draw_batches(n, 60))


@pytest.mark.filterwarnings("ignore:.*one seed after the other")
@pytest.mark.parametrize("n", [1, 2])
def test_a_small_term_is_not_taken_for_rounding(n):
    """`vmap` says of no parameter that it requires a gradient."""

    def penalize(model, x, y):
        return cross_entropy(model, x, y) + 1e-5 * sum(p.abs().sum() for p in model.parameters() if p.requires_grad)

    batches = [(x * (torch.arange(LENGTH) > 2), y) for x, y in draw_batches(n, 20)]  # the first numbers are dead
    check(lambda: nn.Linear(LENGTH, CLASSES), n, penalize, lambda p: torch.optim.Adam(p, lr=0.01), batches)


@pytest.mark.parametrize("n", [1, 3])
def test_an_optimiser_may_be_changed_by_who_made_it(n):
    made = []

    def make(params):
        made.append(torch.optim.SGD(params, lr=0.5))
        return made[-1]

    def slow_down(step):
        for optimizer in made:
            optimizer.param_groups[0]["lr"] = 0.5 if step < 5 else 0.01

    check(Base, n, optimizer=make, before=slow_down)


class Distribution(nn.Linear):
    def __init__(self):
        super().__init__(LENGTH, CLASSES)

    def forward(self, x):
        return torch.distributions.Categorical(logits=super().forward(x))


@pytest.mark.filterwarnings("ignore:.*one seed after the other", "ignore:training steps are not replayed")
@pytest.mark.parametrize("n", [1, 2])
def test_a_model_may_answer_with_a_distribution(n):
    x, y = (t[0].numpy() for t in draw_batches(1, 1)[0])
    data = {"x": np.repeat(x, 100, 0), "y": np.repeat(y, 100, 0)}
    found, plain = (
        train(build, data, n, steps=3, batch_size=10, loss=loss)["train_loss"]
        for build, loss in (
            (Distribution, lambda out, y: -out.log_prob(y).mean()),
            (lambda: nn.Linear(LENGTH, CLASSES), F.cross_entropy),
        )
    )
    np.testing.assert_allclose(found[:, -1], plain[:, -1], rtol=1e-5)


def test_a_model_that_looks_at_the_extremes_is_evaluated_on_all_at_once():
    class Scaled(Base):
        def forward(self, x):
            return super().forward((x - x.min()) / (x.max() - x.min()))

    stack = Stack(Scaled, [0])
    x, y = torch.randn(1, 900, LENGTH), torch.randint(CLASSES, (1, 900))
    x[0, 0, 0], x[0, 1, 0] = -100.0, 100.0  # among the first
    out = stack.evaluate(lambda model, x: model(x), x)
    assert evaluate(stack, x, y)[1] == accuracy(out, y)


def test_rounding_is_told_from_a_difference_where_a_model_draws_its_own_noise():
    """The comparison in double precision that tells them apart has drawn in single precision, and could not be made."""

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(LENGTH, CLASSES)
            self.register_buffer("blur", torch.eye(LENGTH).roll(1, 0) / 2)

        def forward(self, x):
            return self.linear(x + 0.1 * torch.randn(x.shape) @ self.blur)

    def with_a_gradient_that_cancels(model, x, y):
        weight = model.linear.weight
        zero = (x @ weight.T).sum() - (x.sum(0) @ weight.T).sum()
        return F.cross_entropy(model(x), y) + 1e4 * zero

    stack = Stack(Noisy, range(3), objective=with_a_gradient_that_cancels, optimizer=make_sgd)
    for batch in draw_batches(3, 4):
        stack.backward(*batch)  # with a warning where the models part
        stack.step()
    assert torch.get_default_dtype() == torch.float32


CONFIG = {"model": {"hidden": {"gain": 1.0}}}
SPACE = SimpleNamespace(model=SimpleNamespace(hidden=SimpleNamespace(gain=1.0)))
SETTINGS = types.ModuleType("settings_of_a_user")
SETTINGS.TRAIN = {"noise": {"gain": 1.0}}
VARIABLE = ContextVar("gain", default=1.0)
LONG = dict.fromkeys(range(500), 1.0)
WIDE = np.ones(20_000)


class Held:
    gains = (1.0,)

    @staticmethod
    def get():
        return 1.0


class Slotted:
    __slots__ = ("gain",)


class Narrower(Slotted):
    __slots__ = ()


SLOTS = Narrower()
SLOTS.gain = 1.0

# Where a number may be kept: how it is read and how it is set.
PLACES = {
    "nested dict": (lambda: CONFIG["model"]["hidden"]["gain"], CONFIG["model"]["hidden"].__setitem__, "gain"),
    "namespace": (lambda: SPACE.model.hidden.gain, partial(setattr, SPACE.model.hidden), "gain"),
    "module": (lambda: SETTINGS.TRAIN["noise"]["gain"], SETTINGS.TRAIN["noise"].__setitem__, "gain"),
    "context": (VARIABLE.get, lambda _, value: VARIABLE.set(value), None),
    "long dict": (lambda: LONG[400], LONG.__setitem__, 400),
    "wide array": (lambda: float(WIDE[7]), WIDE.__setitem__, 7),
    "tuple of a class": (lambda: Held.gains[0], lambda _, value: setattr(Held, "gains", (value,)), None),
    "static method": (
        lambda: 1.0 * Held.get(),
        lambda _, value: setattr(Held, "get", staticmethod(lambda: value)),
        None,
    ),
    "slot": (lambda: SLOTS.gain, partial(setattr, SLOTS), "gain"),
}


@pytest.mark.filterwarnings("ignore:.*training begins anew without it", "ignore:training steps are not replayed")
@pytest.mark.parametrize("place", PLACES)
def test_what_changes_for_one_step_is_seen_wherever_it_is_kept(place):
    read, write, key = PLACES[place]

    class Scaled(Base):
        def forward(self, x):
            return super().forward(x) * read()

    def schedule(step):
        write(key, 0.2 if step % 10 == 4 else 1.0)
        return 1.0

    try:
        options = {"steps": 50, "batch_size": 10, "schedule": schedule}
        ours, plain = (
            train(Scaled, make_data(), 2, replay=replay, **options)["train_loss"] for replay in (None, False)
        )
    finally:
        write(key, 1.0)
    np.testing.assert_allclose(ours[:, -1], plain[:, -1], rtol=1e-4)


def test_objects_that_hold_each_other_have_a_picture():
    class Trainer:
        pass

    class Trained(Base):
        def __init__(self):
            super().__init__()
            self.trainer = Trainer()
            self.trainer.models, self.trainer.twin = [self], self.trainer

    history = train(Trained, make_data(), 2, steps=5, batch_size=10)
    assert np.isfinite(history["train_loss"][:, -1]).all()
    chain = functools.reduce(lambda inner, _: [inner], range(5000), [])
    assert freeze_function(lambda: chain) != freeze_function(lambda: chain)  # too long to be known as the same
