"""Modules, losses and optimisers of all kinds: whatever the engine does, the numbers are those of a plain loop."""

import warnings

import pytest
import torch
from torch.nn import functional as F

from mnist1d.engine import Stack
from mnist1d.utils import set_seed
from zoo import CLASSES, LENGTH, LOSSES, MODULES, OPTIMIZERS, REAL_TARGETS

STEPS, BATCH = 8, 6
SEEDS = [3, 4]


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_batches(seeds, targets=None):
    """A list of batches (x, y), [seed, example, ...], another order for each seed."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(STEPS, len(seeds), BATCH, LENGTH, generator=rng)
    if targets == REAL_TARGETS:
        return list(zip(x, torch.randn(STEPS, len(seeds), BATCH, CLASSES, generator=rng), strict=True))
    return list(zip(x, torch.randint(CLASSES, (STEPS, len(seeds), BATCH), generator=rng), strict=True))


def train_plainly(build, seeds, batches, make_optimizer, loss, x_test):
    """What anybody would write: one model after the other."""
    losses, states, outputs = [], [], []
    for i, seed in enumerate(seeds):
        set_seed(seed)
        model = build()
        with torch.no_grad():
            if any(isinstance(p, torch.nn.UninitializedParameter) for p in model.parameters()):
                model.eval()(batches[0][0][i])
                model.train()
        optimizer = make_optimizer([p for p in model.parameters() if p.requires_grad])
        own = []
        for x, y in batches:

            def compute(x=x[i], y=y[i], model=model, optimizer=optimizer):
                optimizer.zero_grad()
                value = loss(model(x), y)
                value.backward()
                return value

            if isinstance(optimizer, torch.optim.LBFGS):
                own.append(optimizer.step(compute).detach())
            else:
                own.append(compute().detach())
                optimizer.step()
        losses.append(torch.stack(own))
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        states.append({name: t.detach().clone() for name, t in state.items()})
        with torch.no_grad():
            outputs.append(model.eval()(x_test[i]))
    return torch.stack(losses, 1), states, torch.stack(outputs)


def check(build, make_optimizer=OPTIMIZERS["Adam"], loss=F.cross_entropy, targets=None):
    """Train two seeds in a plain loop, and the first and both in a stack."""
    batches = make_batches(SEEDS, targets)
    x_test = batches[0][0].flip(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of the layers
        losses, states, outputs = train_plainly(build, SEEDS, batches, make_optimizer, loss, x_test)
    for n in (1, 2):
        own = [(x[:n], y[:n]) for x, y in batches]
        compare(build, SEEDS[:n], make_optimizer, loss, own, x_test[:n], losses[:, :n], states[:n], outputs[:n])


def compare(build, seeds, make_optimizer, loss, batches, x_test, expected, states, outputs):
    """Train in a stack and compare losses, parameters, buffers and outputs in evaluation mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stack = Stack(build, seeds, optimizer=make_optimizer, loss=loss, example=(batches[0][0], batches[0][1]))
        losses = []
        for step, (x, y) in enumerate(batches):
            if step in (0, 4):  # an evaluation between steps changes nothing
                stack.evaluate(lambda model, x: model(x), x_test)
            losses.append(stack.backward(x, y))
            stack.step()
        torch.testing.assert_close(torch.stack(losses), expected, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(stack.evaluate(lambda model, x: model(x), x_test), outputs, rtol=1e-6, atol=1e-8)
        modules = [stack.get_module(i).eval() for i in range(len(seeds))]
        with torch.no_grad():
            alone = torch.stack([module(x) for module, x in zip(modules, x_test, strict=True)])
    torch.testing.assert_close(alone, outputs, rtol=1e-6, atol=1e-8)
    ours = {**stack.params, **stack.buffers}
    for i, state in enumerate(states):
        assert ours.keys() == state.keys()
        for name, value in state.items():
            message = f"{name}, seed {i + 1} of {len(seeds)}"
            torch.testing.assert_close(ours[name][i], value, rtol=1e-6, atol=1e-8, msg=lambda m, w=message: f"{w}: {m}")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_trains_as_in_a_plain_loop(name):
    check(MODULES[name])


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_trains_as_in_a_plain_loop(name):
    loss, targets = LOSSES[name]
    check(MODULES["conv"], loss=loss, targets=targets)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_trains_as_in_a_plain_loop(name):
    check(MODULES["conv"], make_optimizer=OPTIMIZERS[name])


def test_the_usual_layers_are_computed_together():
    """Speed is no accident: what a reader of this collection writes is stacked and replayed."""
    for name in ("linear", "conv", "conv 2d", "max pool", "average pool", "L2 pool", "batch norm", "layer norm", "GRU"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            stack = Stack(MODULES[name], [3, 4])
            for x, y in make_batches([3, 4]):
                stack.backward(x, y)
                stack.step()
        assert stack.stacked and stack._recordings, name
