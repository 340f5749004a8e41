"""The unrolled inner loop of `metalearn_activation`, its table and its outer loop against plain PyTorch."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mnist1d.training import split_tensors


@pytest.fixture
def act(notebook):
    """The notebook's definitions, on random data and short runs."""
    rng = np.random.default_rng(0)
    data = {f"x{end}": rng.normal(size=(n, 40)) for end, n in (("", 300), ("_val", 50), ("_test", 50))}
    data |= {f"y{end}": rng.integers(10, size=n) for end, n in (("", 300), ("_val", 50), ("_test", 50))}
    small = {"BATCH_SIZE": 30, "INNER_STEPS": 9, "OUTER_STEPS": 3, "EVAL_EVERY": 2, "CURVE_SEEDS": [7]}
    return notebook("metalearn_activation", data=data, **small)


def differentiate(act, tabulated, discount=1.0, steps=9, layers=2):
    activation = act["make_activation"](0, layers)
    function = act["tabulate"](activation, frozen=False) if tabulated else activation
    objective, grads = act["meta_gradient"](activation, function, 3, discount, steps)
    return objective, torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize(("layers", "discount"), [(1, 1), (2, 1), (2, 0.8)])
def test_table_gives_the_meta_gradient_of_the_network(act, layers, discount):
    pair = (differentiate(act, tabulated, discount, layers=layers) for tabulated in (False, True))
    (expected, grad), (found, table_grad) = pair
    assert abs(found - expected) < 1e-5
    assert (table_grad - grad).norm() < 1e-4 * grad.norm()


def test_meta_gradient_is_the_slope_of_the_objective(act):
    torch.set_default_dtype(torch.float64)
    try:
        activation = act["make_activation"](0, 2)
        _, grads = act["meta_gradient"](activation, activation, 3)
        bias, h = activation.offset[4].bias, 1e-5
        values = []
        for shift in (h, -2 * h):
            with torch.no_grad():
                bias += shift
            values.append(act["meta_gradient"](activation, activation, 3)[0])
        np.testing.assert_allclose((values[0] - values[1]) / (2 * h), grads[-1].item(), rtol=1e-5)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_discount_changes_the_gradient_and_not_the_objective(act):
    (objective, exact), (same, short) = (differentiate(act, True, discount) for discount in (1, 0.5))
    assert objective == same
    assert (exact - short).norm() > 0.01 * exact.norm()


def test_inner_training_equals_torch_rmsprop(act):
    losses, trained = act["train_inner"](F.silu, 4, 9)
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(40, 128), nn.SiLU(), nn.Linear(128, 10))
    batches = torch.randperm(300).split(30)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=act["INNER_RATE"], alpha=act["DECAY"], eps=1e-8)
    for p in model.parameters():
        optimizer.state[p] = {"step": torch.tensor(0.0), "square_avg": torch.ones_like(p)}
    (x,), (y,) = split_tensors(act["data"], "", 1)
    expected = []
    for batch in batches[:9]:
        loss = F.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    reached = nn.utils.parameters_to_vector(model.parameters())
    torch.testing.assert_close(trained.detach(), reached.detach(), rtol=1e-3, atol=1e-4)


class TwoLayers(nn.Module):
    """An inner network with a second hidden layer, as a reader would write it."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.linear = nn.Linear(40, 128), nn.Linear(128, 128), nn.Linear(128, 10)

    def forward(self, x, activation, noise):
        return self.linear(activation(self.second(activation(self.first(x)))) + noise)


class Convolution(nn.Module):
    """A CNN inside."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv1d(1, 8, 5, stride=3), nn.Linear(96, 10)

    def forward(self, x, activation, noise):
        return self.linear(activation(self.conv(x[:, None])).flatten(1))


def momentum(theta, grad, state, rate):
    """SGD with momentum."""
    velocity = 0.9 * state[0] + grad if state else grad
    return theta - rate * velocity, velocity


def plain_sgd(theta, grad, state, rate):
    return (theta - rate * grad,)


CHANGES = [{"InnerNetwork": TwoLayers}, {"InnerNetwork": Convolution}, {"update": momentum}, {"update": plain_sgd}]


@pytest.mark.parametrize("change", CHANGES)
def test_another_network_or_optimiser_is_a_change_of_one_cell(act, change):
    act.update(change)
    (expected, grad), (found, table_grad) = (differentiate(act, tabulated, steps=5) for tabulated in (False, True))
    assert abs(found - expected) < 1e-5
    assert (table_grad - grad).norm() < 1e-3 * grad.norm()
    for discount in (1.0, 0.9):
        history = act["metalearn"]({"layers": 1, "reuse": False, "discount": discount}, [0])
        assert len(history["weights"][0]) == 3
        assert all(np.isfinite(values).all() for values in history.values())


@pytest.mark.parametrize("function", [F.elu, F.silu, torch.tanh])
def test_table_equals_the_function(act, function):
    z = torch.linspace(-9, 9, 1001, requires_grad=True)
    (slope,) = torch.autograd.grad(function(z).sum(), z)
    found = act["tabulate"](function)(z)
    torch.testing.assert_close(found, function(z), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), z)[0], slope, rtol=1e-4, atol=1e-4)


def test_table_goes_on_as_a_straight_line_and_passes_nan_on(act):
    read = act["tabulate"](lambda x: x * x)
    torch.testing.assert_close(read(torch.tensor([-30.0, 30.0])), torch.tensor([500.0, 500.0]), rtol=1e-3, atol=0)
    assert read(torch.tensor([float("nan")])).isnan().all()


def test_an_infinite_coordinate_is_clipped_and_nan_ends_the_run(act):
    gradients = iter([float("inf"), 1e30, float("nan")])
    act["meta_gradient"] = lambda activation, *_: (
        1.0, [torch.full_like(p, 0.0) for p in [*activation.parameters()][:-1]] + [torch.tensor([next(gradients)])]
    )  # fmt: skip
    act["OUTER_STEPS"] = 5
    history = act["metalearn"]({"layers": 1, "reuse": True, "discount": 1.0}, [0])
    assert history["norm"][0][:2].tolist() == [np.inf, pytest.approx(1e30)]
    assert np.isnan(history["norm"][0][2:]).all()
    before, after = history["weights"][0][0][-1], history["weights"][0][1][-1]
    assert before - after == pytest.approx(2 * 0.3 * 0.1)


def test_reused_networks_are_the_same_in_every_outer_step(act):
    seen = []
    act["meta_gradient"] = lambda activation, function, seed, discount: (
        seen.append(seed), (1.0, [torch.zeros_like(p) for p in activation.parameters()])
    )[1]  # fmt: skip
    for reuse in (True, False):
        act["metalearn"]({"layers": 2, "reuse": reuse, "discount": 1.0}, [2])
    assert len(set(seen[:3])) == 1
    assert len(set(seen[3:])) == 3


def test_outer_loop_records_and_clips(act):
    act["OUTER_RATE"] = 1e6  # a step whose size the clipping alone decides
    history = act["metalearn"]({"layers": 2, "reuse": True, "discount": 1.0}, [0])
    n_weights = sum(p.numel() for p in act["make_activation"](0, 2).parameters())
    assert {k: v.shape for k, v in history.items()} == {
        "objective": (1, 3), "norm": (1, 3), "val_acc": (1, 3), "test_acc": (1, 3),
        "weights": (1, 3, n_weights)}  # fmt: skip
    before, after = history["weights"][0, :2]
    assert 0 < abs(after - before).max() <= 2 * 1e6 * act["CLIP"] * 1.001


def test_an_activation_comes_back_from_its_weights(act):
    act["results"] = {"two": act["metalearn"]({"layers": 2, "reuse": True, "discount": 1.0}, [3])}
    act["RECIPES"] = {"two": {"layers": 2}}
    x = torch.linspace(-4, 4, 101)
    first, last = (act["restore"]("two", 0, at)(x) for at in (0, -1))
    assert torch.equal(first, act["make_activation"](3, 2)(x))
    assert (last - first).abs().max() > 1e-3


def test_a_gradient_that_is_not_finite_ends_the_run(act):
    act["meta_gradient"] = lambda activation, *_: (1.0, [torch.full_like(p, np.nan) for p in activation.parameters()])
    history = act["metalearn"]({"layers": 1, "reuse": False, "discount": 1.0}, [0])
    assert np.isfinite(history["val_acc"][0, 0]) and np.isnan(history["val_acc"][0, 1:]).all()
    assert (history["weights"][0, -1] == history["weights"][0, 0]).all()  # what there was last


def test_breakdown_is_a_fall_below_the_best_so_far(act):
    act["eval_steps"] = np.array([0, 5, 10, 15])
    curves = [[50, 60, 51, 62], [50, 60, 49, 62], [50, np.nan, np.nan, np.nan], [40, 41, 42, 31]]
    np.testing.assert_array_equal(act["find_breakdown"]({"val_acc": np.array(curves)}), [np.inf, 10, 5, 15])


def test_a_diverged_network_has_no_accuracy_and_its_rate_is_not_chosen(act):
    act.update({"RATES": (1e30, 1e-2), "VALIDATION_SEEDS": [1, 2], "EVAL_SEEDS": [3]})
    found = act["compare"](F.elu, 0)
    assert np.isnan(found["val"][0, 0]).all() and np.isfinite(found["val"][0, 1]).all()
    assert found["tuned"] == found["meta"] == act["score"](F.elu, [3], 1e-2)[1]


def test_extrema_are_where_the_function_turns(act):
    act["grid"] = np.linspace(-5, 5, 1001)
    found = act["find_extrema"](np.sin(act["grid"]))
    np.testing.assert_allclose(found, [-1.5 * np.pi, -0.5 * np.pi, 0.5 * np.pi, 1.5 * np.pi], atol=0.02)


@pytest.mark.parametrize(("function", "turns"), [(lambda x: x.clip(0), 0), (lambda x: abs(x).clip(1), 1)])
def test_a_flat_piece_is_no_turn(act, function, turns):
    act["grid"] = np.linspace(-5, 5, 1001)
    assert len(act["find_extrema"](function(act["grid"]))) == turns


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_the_offset_has_as_many_hidden_layers_as_it_is_told(act, layers):
    activation = act["make_activation"](0, layers)
    assert sum(isinstance(part, nn.Linear) for part in activation.offset) == layers + 1
    assert activation(torch.zeros(3, 4)).shape == (3, 4)
