"""What a loop over seeds would compute, where the models of several seeds meet outside of themselves."""

import functools
import itertools
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mnist1d.comparison import compare
from mnist1d.engine import Stack
from mnist1d.training import train
from zoo import check_seeds, draw_small_data

IN_TURN = pytest.mark.filterwarnings("ignore:.*one seed after the other")
NOW = {}  # the model that was built last, and what else `build` leaves behind


DATA = draw_small_data()


class MLP(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.a, self.dropout, self.b = nn.Linear(16, 8), nn.Dropout(dropout), nn.Linear(8, 4)

    def forward(self, x):
        return self.b(self.dropout(self.a(x).tanh()))


check = functools.partial(check_seeds, DATA, reset=NOW.clear)


# A loss that reaches the model -------------------------------------------------------------------------------------


def build_held(dropout):
    NOW["model"] = MLP(dropout)
    return NOW["model"]


def decay(weight):
    def loss(out, y):
        return F.cross_entropy(out, y) + weight * sum(p.square().sum() for p in NOW["model"].parameters())

    return loss


@IN_TURN
@pytest.mark.parametrize(("dropout", "weight"), [(0.2, 0.1), (0.0, 0.1), (0.0, 1e-3)])
def test_a_penalty_on_the_model_that_was_built_last(dropout, weight):
    check(functools.partial(build_held, dropout), make_loss=lambda: decay(weight), steps=150)


@IN_TURN
def test_compare_sees_such_a_penalty():
    arms = {"plain": functools.partial(build_held, 0.2)}
    arms["decay"] = {"build": arms["plain"], "loss": decay(1.0)}
    found = compare(arms, DATA, seeds=[3, 4], budget=60)
    assert (found.accuracy["plain"] != found.accuracy["decay"]).any()


class Pruned(MLP):
    masks = {}

    def __init__(self):
        super().__init__(0.2)
        self.masks[self.a.weight] = (torch.rand(8, 16) < 0.5).float()

    def forward(self, x):
        w = self.a.weight
        return self.b(self.dropout(F.linear(x, w * self.masks[w] if w in self.masks else w, self.a.bias).tanh()))


@IN_TURN
@pytest.mark.filterwarnings("ignore:training steps are not replayed")
def test_masks_that_are_found_by_their_parameter_beside_dropout():
    check(Pruned, reset=Pruned.masks.clear)


# What `build` leaves behind ----------------------------------------------------------------------------------------


class Permuted(MLP):
    def __init__(self):
        super().__init__()
        NOW["order"] = torch.randperm(16)

    def forward(self, x):
        return super().forward(x[:, NOW["order"]])


class Scaled(MLP):
    scale = 1.0

    def __init__(self):
        super().__init__()
        Scaled.scale = 0.5 + torch.rand(()).item()

    def forward(self, x):
        return super().forward(x) * self.scale


def build_weighted():
    NOW["weights"] = torch.rand(4)
    return MLP()


def weigh(out, y):
    return F.cross_entropy(out, y, weight=NOW["weights"])


@pytest.mark.parametrize(
    ("build", "loss"), [(Permuted, F.cross_entropy), (Scaled, F.cross_entropy), (build_weighted, weigh)]
)
def test_what_building_a_model_sets_is_that_models(build, loss):
    check(build, seeds=([3],), make_loss=lambda: loss)
    with pytest.warns(UserWarning, match="building one model changes what the others read"):
        check(build, seeds=([3, 4],), make_loss=lambda: loss)


def test_a_loop_of_ones_own_is_told_of_it():
    stack = Stack(Permuted, [3, 4])
    with pytest.warns(UserWarning, match="building one model changes"):
        stack.backward(torch.randn(2, 20, 16), torch.zeros(2, 20, dtype=torch.long))
    assert not stack.stacked and stack.remembers


class Numbered(MLP):
    count, ids, all_models = 0, itertools.count(), []

    def __init__(self):
        super().__init__()
        Numbered.count += 1
        self.number = next(Numbered.ids) * 0
        Numbered.all_models.append(self)


def test_what_constructors_alone_count_matters_to_nobody():
    stack = Stack(Numbered, [3, 4])
    assert not stack.remembers
    check(Numbered, seeds=([3, 4],))  # with no warning


@IN_TURN
def test_an_iterator_that_build_reads_is_told_of():
    with pytest.warns(UserWarning, match="build: reads an iterator"):
        count = iter(range(100))

        def build():
            model = Permuted()
            nn.init.normal_(model.a.weight, std=0.1 + 0.1 * next(count))
            return model

        train(build, DATA, [3, 4], steps=3, batch_size=20)


# Trained tensors outside of the model --------------------------------------------------------------------------------


class Centres(nn.Module):
    """Trains its own parameters by an optimiser of its own."""

    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.eye(4))
        self.optimizer = torch.optim.SGD([self.centres], lr=0.5)

    def forward(self, out, y):
        if self.centres.grad is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return F.cross_entropy(out, y) + 0.5 * (out - self.centres[y]).square().mean()


class Balanced:
    """The same with a tensor that is no parameter."""

    def __init__(self):
        self.weight = torch.zeros((), requires_grad=True)

    def __call__(self, out, y):
        if self.weight.grad is not None:
            with torch.no_grad():
                self.weight -= 0.1 * self.weight.grad
            self.weight.grad = None
        return F.cross_entropy(out, y) * (-self.weight).exp() + self.weight


@IN_TURN
@pytest.mark.parametrize("make_loss", [Centres, Balanced])
def test_a_loss_that_trains_tensors_of_its_own(make_loss):
    check(MLP, make_loss=make_loss, steps=10)


class Penalized(MLP):
    """A penalty on slopes: the batch is a leaf of its own in every step."""

    def forward(self, x):
        x = x.detach().requires_grad_()
        out = super().forward(x)
        if self.training:
            (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
            out = out + 0.1 * slope.square().mean()
        return out


@pytest.mark.filterwarnings("ignore:.*(one seed after the other|not replayed)")
def test_a_leaf_that_a_step_makes_is_no_trained_tensor():
    check(Penalized)
    stack = Stack(Penalized, 1)
    for _ in range(2):
        stack.backward(torch.randn(1, 20, 16), torch.zeros(1, 20, dtype=torch.long))
    assert not stack.remembers


# Hooks and optimisers that share what they count --------------------------------------------------------------------


class Clipping(torch.optim.SGD):
    """Clips at the mean norm so far, of whatever model."""

    norms = []

    def step(self, closure=None):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        self.norms.append(float(torch.stack([g.norm() for g in grads]).norm()))
        for g in grads:
            g *= min(1.0, float(np.mean(self.norms)) / self.norms[-1])
        return super().step(closure)


def test_an_optimizer_that_counts_in_its_class():
    options = {"reset": Clipping.norms.clear, "optimizer": functools.partial(Clipping, lr=0.1)}
    check(MLP, seeds=([3],), **options)
    with pytest.warns(UserWarning, match="the optimiser counts or remembers"):
        check(MLP, seeds=([3, 4],), **options)


def shrink(grad):
    NOW["norm"] = 0.9 * NOW.get("norm", 1.0) + 0.1 * float(grad.norm())
    return grad / (1 + NOW["norm"])


def build_hooked():
    model = MLP()
    model.a.weight.register_hook(shrink)
    return model


def centre(module, args, out):
    if module.training:
        NOW["mean"] = 0.9 * NOW.get("mean", 0.0) + 0.1 * float(out.detach().mean())
    return out - NOW.get("mean", 0.0)


def build_forward_hooked():
    model = MLP()
    model.a.register_forward_hook(centre)
    return model


@IN_TURN
@pytest.mark.filterwarnings("ignore:training steps are not replayed")
@pytest.mark.parametrize("build", [build_hooked, build_forward_hooked])
def test_hooks_that_share_what_they_count(build):
    check(build)


# Memory, and evaluations --------------------------------------------------------------------------------------------


class Views(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(0.1 * torch.randn(68))
        self.views = {"head": {"weight": self.theta[:64].view(4, 16), "bias": self.theta[64:]}}

    def forward(self, x):
        return F.linear(x, **self.views["head"])


class Copied(MLP):
    def __init__(self):
        super().__init__()
        self.w = self.a.weight.detach().numpy()


@IN_TURN
@pytest.mark.parametrize("build", [Views, Copied])
def test_memory_that_is_held_outside_is_told_of(build):
    with pytest.warns(UserWarning, match="holds its memory, which does not change with it"):
        train(build, DATA, 1, steps=1, batch_size=20)


@IN_TURN
@pytest.mark.filterwarnings("ignore:training steps are not replayed")
@pytest.mark.parametrize("n_seeds", [1, 2])
def test_an_evaluation_before_clipping_leaves_gradients_where_they_are(n_seeds):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.out = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 4)

        def forward(self, x):
            return self.out(self.lstm(x.unsqueeze(-1))[0][:, -1])

    stack = Stack(Recurrent, n_seeds, optimizer="sgd", learning_rate=1.0)
    x, y = torch.randn(n_seeds, 20, 16), torch.randint(4, (n_seeds, 20))
    for _ in range(2):
        stack.backward(x, y)
        stack.evaluate(lambda model, x: model(x), x)
        stack.clip(1e-6)
        before = {name: p.detach().clone() for name, p in stack.params.items()}
        stack.step()
        assert all((p - before[name]).abs().max() < 1e-5 for name, p in stack.params.items())


@IN_TURN
def test_spectral_norm_holds_its_own_memory():
    def build():
        model = MLP()
        model.a = torch.nn.utils.spectral_norm(model.a)
        return model

    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*holds its memory")
        warnings.filterwarnings("ignore", category=FutureWarning)
        Stack(build, 2)


class Decaying(MLP):
    calls = 0

    def forward(self, x):
        Decaying.calls += self.training or 1
        return super().forward(x) / (1 + 0.01 * Decaying.calls)


def test_evaluations_leave_classes_as_they_were():
    losses = []
    for eval_every in (None, 20, 5):
        Decaying.calls = 0
        losses.append(train(Decaying, DATA, [3], steps=40, batch_size=20, eval_every=eval_every)["train_loss"][0, -1])
    assert losses[0] == losses[1] == losses[2]
