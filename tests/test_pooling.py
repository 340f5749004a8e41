"""The pooling notebook: its networks, its plain loop, and what `run` computes against that loop."""

import ast

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mnist1d.models import count_parameters
from notebooks import read_notebook, run_parameters

POOLS = {  # pooling as a function, stride of the convolutions, pooling before the classifier head
    "none": (lambda h: h, 1, lambda h: h),
    "stride 2": (lambda h: h, 2, lambda h: h),
    "max": (lambda h: h.unflatten(-1, (-1, 2)).amax(-1), 1, lambda h: h),
    "average": (lambda h: h.unflatten(-1, (-1, 2)).mean(-1), 1, lambda h: h),
    "L2": (lambda h: h.unflatten(-1, (-1, 2)).norm(dim=-1), 1, lambda h: h),
    "mixed": (lambda h: (h.unflatten(-1, (-1, 2)).amax(-1) + h.unflatten(-1, (-1, 2)).mean(-1)) / 2, 1, lambda h: h),
    "max, sliding": (lambda h: torch.maximum(h[..., 1:], h[..., :-1]), 1, lambda h: h),
    "average, sliding": (lambda h: (h[..., 1:] + h[..., :-1]) / 2, 1, lambda h: h),
    "global max": (lambda h: h, 1, lambda h: h.amax(-1)),
    "global average": (lambda h: h, 1, lambda h: h.mean(-1)),
}


@pytest.fixture
def cells(notebook):
    """The notebook's definitions and its two registries, with small random data."""
    rng = np.random.default_rng(0)
    draws = {s: (rng.normal(size=(80, 40)).astype(np.float32), rng.integers(0, 10, 80)) for s in (0, 1)}
    cells = notebook("pooling", draws=draws, TEST_EXAMPLES=20, BATCH_SIZE=25, STEPS=10, EVAL_EVERY=5)
    for _, source, _ in read_notebook("pooling"):
        for node in ast.parse(source).body if "VARIANTS = {" in source or "EXTRA = {" in source else []:
            if isinstance(node, ast.Assign) and node.targets[0].id in ("VARIANTS", "EXTRA"):
                exec(compile(ast.Module([node], []), "registry", "exec"), cells)
    cells["ALL"] = {**cells["VARIANTS"], **{name: build for name, (build, _) in cells["EXTRA"].items()}}
    return cells


def test_every_variant_is_compared(cells):
    assert cells["ALL"].keys() == POOLS.keys()


@pytest.mark.parametrize("name", POOLS)
def test_network_equals_its_equation(cells, name):
    pool, stride, end = POOLS[name]
    torch.manual_seed(3)
    model = cells["ALL"][name]()
    x = torch.randn(7, 40)
    h = pool(F.conv1d(x[:, None], model.conv1.weight, model.conv1.bias, stride, padding=1).relu())
    h = pool(F.conv1d(h, model.conv2.weight, model.conv2.bias, stride, padding=1).relu())
    torch.testing.assert_close(model(x), model.linear(end(h).flatten(1)), rtol=1e-4, atol=1e-5)


def test_parameter_counts_are_the_published_ones(cells):
    counts = {name: count_parameters(build()) for name, build in cells["VARIANTS"].items()}
    assert counts == {"none": 9310, "stride 2": 3310, "max": 3310, "average": 3310, "L2": 3310}


def test_l2_pooling_as_it_comes_has_a_finite_gradient_where_activations_are_zero_or_tiny(cells):
    for value in (0.0, 1e-30, 1e-20):  # the squares of the last two are zero or denormal
        h = torch.full((1, 1, 2), value, requires_grad=True)
        torch.nn.LPPool1d(2, 2)(h).sum().backward()
        assert h.grad.isfinite().all() and h.grad.abs().max() <= 1


@pytest.mark.parametrize("name", ["none", "stride 2", "L2", "mixed", "global max"])
def test_run_gives_the_numbers_of_the_plain_loop(cells, name):
    together = cells["run"]((cells["ALL"][name], 60), [0, 1])["test_acc"]
    plain = [cells["train_one"](cells["ALL"][name], cells["take"](seed, 60), 10, seed) for seed in (0, 1)]
    assert together.shape == (2, 3)
    np.testing.assert_allclose(together[:, -1], plain, atol=5.1)  # at most one of 20 test examples


def test_smaller_training_sets_are_parts_of_the_largest_and_leave_the_test_set_alone(cells):
    small, large = cells["take"](1, 10), cells["take"](1, 60)
    np.testing.assert_array_equal(small["x"], large["x"][:10])
    np.testing.assert_array_equal(small["x_test"], large["x_test"])
    assert not {row.tobytes() for row in large["x"]} & {row.tobytes() for row in large["x_test"]}


def test_sizes_that_cannot_work_are_refused_at_the_top():
    with pytest.raises(ValueError, match=r"SIZES=\(50, 200\): each must be at least BATCH_SIZE, 100"):
        run_parameters("pooling", SIZES=(50, 200))
