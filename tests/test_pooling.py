"""The pooling notebook: its networks and its training against a plain loop."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

OPTIONS = {  # pooling, stride of the convolutions
    "none": (lambda h: h, 1),
    "stride 2": (lambda h: h, 2),
    "max": (lambda h: F.max_pool1d(h, 2), 1),
    "average": (lambda h: F.avg_pool1d(h, 2), 1),
    "L2": (lambda h: F.lp_pool1d(h, 2.0, 2), 1),
}


class Plain(nn.Module):
    """The published network."""

    def __init__(self, pool, stride):
        super().__init__()
        self.pool = pool
        self.conv1 = nn.Conv1d(1, 20, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv1d(20, 20, 3, stride=stride, padding=1)
        self.linear = nn.Linear(800 if pool is OPTIONS["none"][0] and stride == 1 else 200, 10)

    def forward(self, x):
        h = self.pool(self.conv1(x.unsqueeze(1)).relu())
        h = self.pool(self.conv2(h).relu())
        return self.linear(h.flatten(1))


def build_both(cells, name):
    """The notebook's network and the plain one, with the same weights."""
    pool, stride = OPTIONS[name]
    torch.manual_seed(3)
    fast = cells["PoolingCNN"](**cells["VARIANTS"][name])
    plain = Plain(pool, stride)
    plain.load_state_dict(fast.state_dict())
    return fast, plain


@pytest.fixture
def cells(notebook):
    """The notebook's definitions, and the registry of variants from the cell that defines the poolings."""
    cells = notebook("pooling")
    path = Path(__file__).parent.parent / "notebooks" / "pooling.ipynb"
    sources = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
    (registry,) = [source for source in sources if "\nVARIANTS = {" in source]
    exec(registry, cells)
    return cells


@pytest.mark.parametrize("name", OPTIONS)
def test_network_and_gradients_equal_those_of_plain_pytorch(cells, name):
    fast, plain = build_both(cells, name)
    x = torch.randn(7, 40, generator=torch.Generator().manual_seed(0))
    for model in (fast, plain):
        model(x).square().sum().backward()
    torch.testing.assert_close(fast(x), plain(x), rtol=1e-4, atol=1e-5)
    for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)


def test_parameter_counts_are_the_published_ones(cells):
    from mnist1d.models import count_parameters

    counts = {name: count_parameters(cells["PoolingCNN"](**cells["VARIANTS"][name])) for name in OPTIONS}
    assert cells["VARIANTS"].keys() == OPTIONS.keys()
    assert counts == {"none": 9310, "stride 2": 3310, "max": 3310, "average": 3310, "L2": 3310}


def test_the_gradient_of_l2_pooling_is_finite_where_both_units_are_off(cells):
    h = torch.zeros(1, 1, 2, requires_grad=True)
    cells["VARIANTS"]["L2"]["pool"](h).sum().backward()
    assert h.grad.isfinite().all()


@pytest.mark.parametrize("name", ["stride 2", "max", "average", "L2"])
def test_run_equals_a_plain_loop(cells, name):
    rng = np.random.default_rng(0)
    draws = {s: (rng.normal(size=(80, 40)).astype(np.float32), rng.integers(0, 10, 80)) for s in (0, 1)}
    cells.update(draws=draws, TEST_EXAMPLES=20, EVAL_EVERY=5, BATCH_SIZE=20)
    steps, size = 10, 60
    fast = cells["run"]((cells["VARIANTS"][name], size, steps), [0, 1])
    assert fast["test_acc"].shape == (2, 3)
    for i, (x, y) in draws.items():
        pool, stride = OPTIONS[name]
        with torch.random.fork_rng():
            torch.manual_seed(i)
            start = cells["PoolingCNN"](**cells["VARIANTS"][name])
        plain = Plain(pool, stride)
        plain.load_state_dict(start.state_dict())
        optimizer = torch.optim.Adam(plain.parameters(), cells["LEARNING_RATE"])
        x, y = torch.tensor(x), torch.tensor(y)
        for step in range(steps):
            batch = torch.arange(step * 20, step * 20 + 20) % size
            optimizer.zero_grad()
            F.cross_entropy(plain(x[batch]), y[batch]).backward()
            optimizer.step()
        for part, examples in (("test_acc", slice(-20, None)), ("train_acc", slice(0, 20))):
            expected = 100 * (plain(x[examples]).argmax(1) == y[examples]).double().mean().item()
            assert fast[part].reshape(2, -1)[i, -1] == pytest.approx(expected)
