"""What a module does to itself, or reaches in unusual ways, gives the numbers of a plain loop, or is refused."""

import functools
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mnist1d.engine.pictures import freeze_function
from mnist1d.training import fit, train
from mnist1d.utils import set_seed

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 16)).astype(np.float32)
Y = np.abs(X[:, :4]).argmax(1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.b(self.a(x).tanh())


class Penalised(Net):
    def __init__(self):
        super().__init__()
        self.penalty = lambda: 0.1 * self.a.weight.square().sum()

    def forward(self, x):
        return super().forward(x), self.penalty()


class Scaled(Net):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16))
        self.functions = {"act": lambda h: h.tanh() * self.scale}

    def forward(self, x):
        return self.b(self.functions["act"](self.a(x)))


class Weak(Net):
    def __init__(self):
        super().__init__()
        self.me = weakref.ref(self)

    def forward(self, x):
        return self.b((self.a(x) + self.me().a.bias).tanh())


class Random(Net):
    def __init__(self):
        super().__init__()
        self.rng = np.random.RandomState(torch.initial_seed() % 2**31)

    def forward(self, x):
        return super().forward(x * 0.2 if self.training and self.rng.rand() < 0.1 else x)


class Counting(Net):
    def __init__(self):
        super().__init__()
        self.t = torch.zeros(1)

    def forward(self, x):
        if self.training:
            self.t.data += 1
        return super().forward(x) * torch.exp(-0.01 * self.t)


class LoRA(nn.Linear):
    """Low-rank weights that are merged for evaluation."""

    def __init__(self, i, o):
        super().__init__(i, o)
        self.weight.requires_grad, self.merged = False, False
        self.A, self.B = nn.Parameter(torch.randn(2, i) * 0.3), nn.Parameter(torch.zeros(o, 2))

    def train(self, mode=True):
        if mode == self.merged:
            self.weight.data += (self.B @ self.A) * (-1 if mode else 1)
            self.merged = not mode
        return super().train(mode)

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + (0 if self.merged else x @ self.A.T @ self.B.T)


class Averaged(Net):
    """Evaluates with a running mean of its weights."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", self.b.weight.detach().clone())
        self.swapped = False

    def train(self, mode=True):
        if mode == self.swapped:
            weight = self.b.weight.data.clone()
            self.b.weight.data.copy_(self.mean)
            self.mean.copy_(weight)
            self.swapped = not mode
        return super().train(mode)

    def forward(self, x):
        if self.training:
            self.mean.lerp_(self.b.weight.detach(), 0.1)
        return super().forward(x)


def add_penalty(out, y):
    return F.cross_entropy(out[0], y) + out[1]


def make_sgd(params):
    return torch.optim.SGD(params, lr=0.3)


CASES = {
    "a lambda over self": (Penalised, add_penalty),
    "a lambda over a parameter": (Scaled, F.cross_entropy),
    "a weak reference": (Weak, F.cross_entropy),
    "a RandomState": (Random, F.cross_entropy),
    "a counter in data": (Counting, F.cross_entropy),
    "LoRA": (lambda: nn.Sequential(LoRA(16, 16), nn.ReLU(), LoRA(16, 4)), F.cross_entropy),
    "averaged weights": (Averaged, F.cross_entropy),
}


@pytest.mark.filterwarnings("ignore:.*one seed after the other", "ignore:training steps are not replayed")
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_training_is_that_of_a_plain_loop(case, n):
    build, loss = CASES[case]
    plain, outs, parameters = [], [], []
    for seed in range(n):
        set_seed(seed)
        model = build()
        opt = make_sgd(list(model.parameters()))
        for step in range(60):
            rows = (np.arange(10) + 10 * step) % len(X)
            opt.zero_grad()
            value = loss(model(torch.tensor(X[rows])), torch.tensor(Y[rows]))
            value.backward()
            opt.step()
        plain.append(value.item())
        parameters.append([p.detach().clone() for p in model.parameters()])
        with torch.no_grad():
            outs.append(model.eval()(torch.tensor(X)))
    options = {"steps": 60, "batch_size": 10, "eval_every": 5, "optimizer": make_sgd, "loss": loss}
    stack, history = fit(build, {"x": X, "y": Y}, n, **options)
    np.testing.assert_allclose(history["train_loss"][:, -1], plain, rtol=1e-4)
    for i in range(n):
        for ours, theirs in zip(stack.params.values(), parameters[i], strict=True):
            torch.testing.assert_close(ours[i].detach(), theirs, rtol=1e-3, atol=1e-4)
    ours = stack.evaluate(lambda model, x: model(x), torch.tensor(X).expand(n, *X.shape))
    for i, out in enumerate(outs):
        theirs = out if isinstance(out, torch.Tensor) else out[0]
        torch.testing.assert_close(
            ours[i] if isinstance(ours, torch.Tensor) else ours[0][i], theirs, rtol=1e-3, atol=1e-4
        )


class Following(Net):
    def __init__(self):
        super().__init__()
        self.norms = [p.detach() for p in self.parameters()]

    def forward(self, x):
        return super().forward(x) / torch.sqrt(sum(p.square().sum() for p in self.norms))


def test_memory_that_a_list_shares_with_parameters_is_refused():
    with pytest.raises(ValueError, match=r"norms\[\d\]"):
        train(Following, {"x": X, "y": Y}, 2, steps=2, batch_size=10)


class L1:
    def __call__(self, module):
        return 3e-6 * sum(p.abs().sum() for p in module.parameters() if p.requires_grad)


class Regularised(Net):
    def __init__(self):
        super().__init__()
        self.penalty = L1()

    def forward(self, x):
        return super().forward(x * (torch.arange(16) != 3)), self.penalty(self)


@pytest.mark.filterwarnings("ignore:.*one seed after the other")
def test_a_small_term_behind_requires_grad_is_not_lost():
    def make_adam(params):
        return torch.optim.Adam(params, lr=0.01)

    options = {"steps": 100, "batch_size": 10, "eval_every": 100, "optimizer": make_adam, "loss": add_penalty}
    dead = [
        fit(Regularised, {"x": X, "y": Y}, n, **options)[0].params["a.weight"][0, :, 3].abs().mean().item()
        for n in (1, 2)
    ]
    np.testing.assert_allclose(*dead, rtol=0.01)


class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 8), None

    def forward(self, x):
        h = self.a(x)
        if self.b is None:
            self.b = nn.Linear(h.shape[1], 4)
        return self.b(h)


@pytest.mark.parametrize("n", [1, 2])
def test_a_layer_that_is_made_in_a_forward_pass_is_named(n):
    with pytest.raises(ValueError, match=r"build: b\.weight is made in a forward pass"):
        train(Late, {"x": X, "y": Y}, n, steps=2, batch_size=10)


def test_a_module_with_a_length_is_evaluated():
    class Long(Net):
        def __len__(self):
            return 0

    history = train(Long, {"x": X, "y": Y, "x_test": X, "y_test": Y}, 1, steps=6, batch_size=10, eval_every=2)
    again = train(functools.partial(Net), {"x": X, "y": Y, "x_test": X, "y_test": Y}, 1, steps=6, batch_size=10)
    np.testing.assert_allclose(history["test_acc"][:, -1], again["test_acc"][:, -1])


class Nearest(Net):
    """Needs three examples at least, in evaluations too."""

    def forward(self, x):
        h = self.a(x)
        return self.b(h - h[torch.cdist(h, h).topk(3, largest=False).indices].mean(1))


@pytest.mark.filterwarnings("ignore:.*one seed after the other", "ignore:training steps are not replayed")
def test_a_model_that_needs_several_examples_is_trained():
    data = {"x": X, "y": Y, "x_test": X[:50], "y_test": Y[:50]}
    assert np.isfinite(train(Nearest, data, 2, steps=4, batch_size=10)["train_loss"][:, -1]).all()


def test_a_generator_that_has_not_moved_has_the_same_picture():
    generator = np.random.RandomState(0)

    def shift(x):
        return x + generator.rand()

    pictures = [freeze_function(shift) for _ in range(20)]
    assert all(picture == pictures[0] for picture in pictures)
    generator.rand()
    assert freeze_function(shift) != pictures[0]
