"""The unrolled SGD of `metalearn_lr` against a plain training loop and finite differences."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

SEEDS = [3, 8]
RATES = [0.3, 0.9]


@pytest.fixture
def lr(notebook):
    """The notebook's definitions, on 20 batches of random data."""
    rng = np.random.default_rng(0)
    batches = {
        "batches_x": rng.normal(size=(20, 50, 40)).astype(np.float32),
        "batches_y": rng.integers(10, size=(20, 50)),
    }
    return notebook("metalearn_lr", INNER_STEPS=20, OUTER_STEPS=1, **batches)


def plain_losses(lr, seed, rate):
    """The losses of one network under torch.optim.SGD, in double precision."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        linear1, linear2 = nn.Linear(40, lr["HIDDEN"]), nn.Linear(lr["HIDDEN"], 10)
    model = nn.Sequential(linear1, nn.Tanh(), linear2).double()
    return train_plainly(lr, model, torch.optim.SGD(model.parameters(), lr=rate))


def train_plainly(lr, model, opt):
    """Losses of a model in double precision on the notebook's batches, each before its update."""
    losses = []
    for x, y in zip(lr["batches_x"], lr["batches_y"], strict=True):
        loss = F.cross_entropy(model(torch.tensor(x, dtype=torch.float64)), torch.tensor(y))
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return np.array(losses)


def make_rates(lr, values, shape=(1, 1)):
    return torch.tensor(values, device=lr["get_device"]())[:, None, None].expand(-1, *shape).clone().requires_grad_()


def test_losses_equal_a_plain_loop(lr):
    losses, _ = lr["train_inner"](make_rates(lr, RATES), SEEDS)
    expected = [plain_losses(lr, seed, rate) for seed, rate in zip(SEEDS, RATES, strict=True)]
    np.testing.assert_allclose(losses.detach().cpu(), expected, rtol=1e-4)


def test_meta_gradient_equals_finite_differences(lr):
    rates = make_rates(lr, RATES)
    losses, _ = lr["train_inner"](rates, SEEDS)
    (grad,) = torch.autograd.grad(losses.mean(1).sum(), rates)
    expected = [
        (plain_losses(lr, seed, rate + 1e-5).mean() - plain_losses(lr, seed, rate - 1e-5).mean()) / 2e-5
        for seed, rate in zip(SEEDS, RATES, strict=True)
    ]
    np.testing.assert_allclose(grad.flatten().cpu(), expected, rtol=1e-3)


@pytest.mark.parametrize("shape", [(20, 1), (1, 2), (20, 2)])
def test_gradients_of_many_rates_sum_to_that_of_a_shared_one(lr, shape):
    grads = []
    for rates in (make_rates(lr, RATES), make_rates(lr, RATES, shape)):
        losses, _ = lr["train_inner"](rates, SEEDS)
        grads.append(torch.autograd.grad(losses.mean(1).sum(), rates)[0])
    assert grads[1].shape == (2, *shape)
    torch.testing.assert_close(grads[1].sum((1, 2)), grads[0].flatten(), rtol=1e-4, atol=1e-6)


def test_run_gives_every_seed_and_start_its_own_history(lr):
    history = lr["run"]((tuple(RATES), (1, 1), 0.3), SEEDS)
    assert history["objective"].shape == (2, 2, 2)
    assert history["rates"].shape == (2, 2, 2, 1, 1)
    losses = plain_losses(lr, SEEDS[1], RATES[0])
    np.testing.assert_allclose(history["objective"][1, 0, 0], losses.mean(), rtol=1e-4)
    np.testing.assert_allclose(history["final_loss"][1, 0, 0], losses[-1], rtol=1e-4)
    first, second = history["rates"][1, 0, :, 0, 0]
    slope = (plain_losses(lr, SEEDS[1], first + 1e-5).mean() - plain_losses(lr, SEEDS[1], first - 1e-5).mean()) / 2e-5
    np.testing.assert_allclose(second, first - 0.3 * slope, rtol=1e-3)


def test_a_copy_that_is_not_finite_leaves_the_others_as_they_are(lr):
    both = lr["metalearn"](make_rates(lr, [0.3, float("nan")]), SEEDS, 0.3)
    alone = lr["metalearn"](make_rates(lr, [0.3]), SEEDS[:1], 0.3)
    np.testing.assert_allclose(both["rates"][0], alone["rates"][0], rtol=1e-5)
    assert np.isnan(both["rates"][1]).all()


def test_another_network_is_a_change_of_one_function(lr):
    """A convolution and three layers with weights, against a plain loop: nothing else names the network."""
    lr["build"] = lambda: nn.Sequential(
        nn.Unflatten(1, (1, 40)), nn.Conv1d(1, 4, 5, 3), nn.Tanh(),
        nn.Flatten(), nn.Linear(48, 9), nn.Tanh(), nn.Linear(9, 10),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEEDS[0])
        model = lr["build"]().double()
    opt = torch.optim.SGD([{"params": model[i].parameters(), "lr": rate} for i, rate in ((1, 0.3), (4, 0.2), (6, 0.1))])
    expected = train_plainly(lr, model, opt)
    assert len(lr["list_layers"](dict(model.named_parameters()))) == 3
    rates = torch.tensor([[[0.3, 0.2, 0.1]]], device=lr["get_device"](), requires_grad=True)
    losses, _ = lr["train_inner"](rates, SEEDS[:1])
    np.testing.assert_allclose(losses[0].detach().cpu(), expected, rtol=1e-4)
    assert torch.autograd.grad(losses.mean(), rates)[0].ne(0).all()
