"""The tabulated activation and the hand-written sweeps of `metalearn_activation` against plain autograd."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F


@pytest.fixture
def act(notebook):
    """The notebook's definitions, on random data and short runs."""
    rng = np.random.default_rng(0)

    def draw(n):
        return np.c_[rng.normal(size=(n, 40)), np.ones(n)].astype(np.float32), rng.integers(10, size=n)

    arrays = {"": draw(300), "_val": draw(50), "_test": draw(50)}
    namespace = notebook("metalearn_activation", arrays=arrays, BATCH_SIZE=30, INNER_STEPS=12, EVAL_SEEDS=range(2))
    namespace["RECIPE"] |= {"inner_steps": 12, "steps": 2, "eval_every": 1}
    return namespace


def flatten(gradients):
    return torch.cat([g.flatten() for g in gradients])


@pytest.mark.parametrize("discount", [1, 0.8, 0])
def test_table_and_sweep_equal_plain_autograd(act, discount):
    offset, runs = act["make_offset"](0), act["draw_runs"]([0, 1], 12)
    expected, expected_grads = act["meta_gradient_plainly"](offset, runs, discount)
    objective, grads = act["meta_gradient"](offset, runs, discount)
    assert abs(objective - expected) < 1e-5
    difference = flatten(grads) - flatten(expected_grads)
    assert difference.norm() < 1e-4 * flatten(expected_grads).norm()


def test_discounts_differ(act):
    offset, runs = act["make_offset"](0), act["draw_runs"]([0, 1], 12)
    exact, short = (flatten(act["meta_gradient"](offset, runs, discount)[1]) for discount in (1, 0))
    assert (exact - short).norm() > 0.01 * exact.norm()


def test_training_equals_torch_rmsprop(act):
    theta, batches, noise = act["draw_runs"]([4], 12)
    table = act["freeze"](act["tabulate"](F.relu))
    losses, trained = act["train_inner"](table, theta, batches, noise)

    model = nn.Sequential(nn.Linear(40, act["HIDDEN"]), nn.ReLU(), nn.Linear(act["HIDDEN"], 10)).to(theta.device)
    first, second, bias = act["parts"](theta)
    with torch.no_grad():
        for p, value in zip(model.parameters(), (first[0, :40].T, first[0, 40], second[0].T, bias[0, 0]), strict=True):
            p.copy_(value)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=act["INNER_RATE"], alpha=act["DECAY"], eps=1e-8)
    for p in model.parameters():
        optimizer.state[p] = {"step": torch.tensor(0.0), "square_avg": torch.ones_like(p)}
    x, y = act["get_tensors"]()
    expected = []
    for batch, shift in zip(batches[:, 0], noise[:, 0], strict=True):
        loss = F.cross_entropy(model[2](model[:2](x[batch, :40]) + shift), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    np.testing.assert_allclose(losses[:, 0].cpu(), expected, rtol=1e-4)
    torch.testing.assert_close(act["parts"](trained)[1][0], model[2].weight.detach().T, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["ReLU", "ELU", "Swish", "GELU", "tanh"])
def test_table_equals_the_function(act, name):
    function = act["BASELINES"][name]
    z = torch.linspace(-9, 9, 1001, device=act["get_device"](), requires_grad=True)
    (slope,) = torch.autograd.grad(function(z).sum(), z)
    value, found, *_ = act["look_up"](act["freeze"](act["tabulate"](function)), z.detach())
    torch.testing.assert_close(value, function(z).detach(), rtol=1e-5, atol=1e-5)
    away = z.abs() > 1e-3  # ReLU has no slope at zero
    torch.testing.assert_close(found[away], slope[away], rtol=1e-4, atol=1e-4)


def test_table_goes_on_as_a_straight_line(act):
    z = torch.tensor([-30.0, 30.0], device=act["get_device"]())
    value, slope, *_ = act["look_up"](act["freeze"](act["tabulate"](lambda x: x * x)), z)
    torch.testing.assert_close(slope.cpu(), torch.tensor([-20.0, 20.0]), rtol=1e-3, atol=0)
    torch.testing.assert_close(value.cpu(), torch.tensor([500.0, 500.0]), rtol=1e-3, atol=0)


def test_tabulated_function_has_the_gradient_of_the_function(act):
    z = torch.randn(200, device=act["get_device"](), requires_grad=True)
    function = act["from_table"](act["freeze"](act["tabulate"](F.silu)))
    found, expected = (torch.autograd.grad((f(z) ** 2).sum(), z)[0] for f in (function, F.silu))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3)])
def test_image_network_equals_torch_layers(act, size, channels):
    ours = act["ImageCNN"](F.silu, channels)
    x = h = torch.randn(5, channels, size, size)
    for layer in ours.convolutions:
        h = F.silu(F.conv2d(h, layer.weight, layer.bias, stride=2, padding=1))
    expected = ours.linear(h.flatten(1))
    torch.testing.assert_close(ours(x), expected)


def test_extrema_are_found_on_the_interval_only(act):
    table = [t.cpu().numpy() for t in act["freeze"](act["tabulate"](torch.sin))]
    at, values = act["find_extrema"](table)
    np.testing.assert_allclose(at, [-1.5 * np.pi, -0.5 * np.pi, 0.5 * np.pi, 1.5 * np.pi], atol=0.006)
    np.testing.assert_allclose(values, [1, -1, 1, -1], atol=1e-4)


def test_batches_of_an_epoch_are_disjoint_and_noise_is_shared(act):
    theta, batches, noise = act["draw_runs"]([0, 7], 12)
    assert theta.shape == (2, 41 * 128 + 1290)
    assert batches.shape == (12, 2, 30)
    assert noise.shape == (12, 2, 1, 128)
    for run in range(2):
        assert sorted(batches[:10, run].flatten().tolist()) == list(range(300))
    again = act["draw_runs"]([7], 12)
    torch.testing.assert_close(again[0][0], theta[1], rtol=0, atol=0)


def test_a_diverged_run_stops_or_is_recorded(act):
    def poison(parameters):
        parameters[0].grad.fill_(float("nan"))

    recipe = {"clip": poison}
    with pytest.raises(FloatingPointError, match="diverged at outer step 1 of seed 5"):
        act["run"](recipe, [5])
    result = act["run"]({**recipe, "may_stop": True}, [5])
    assert np.isfinite(result["norm"][0, 0])
    assert np.isnan(result["norm"][0, 1])
    assert np.isnan(result["acc_test"][0, 2])


def test_run_records_every_evaluation(act):
    result = act["run"]({}, [5, 6])
    assert result["objective"].shape == (2, 2)
    assert result["table"].shape == (2, 3, 3, act["CELLS"])
    assert all(np.isfinite(value).all() for value in result.values())
    assert not np.array_equal(result["table"][0, 0], result["table"][0, 2])
    assert not np.array_equal(result["table"][0, 2], result["table"][1, 2])
