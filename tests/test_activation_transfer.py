"""The transfer notebook: its network, its stack of seeds against its plain loop, the function it is about."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mnist1d.models import learned_activation
from mnist1d.results import load_results
from notebooks import ROOT


@pytest.fixture
def cells(notebook):
    """The notebook's definitions with small random images."""
    rng = np.random.default_rng(0)
    images = {f"x{end}": rng.normal(size=(n, 1, 28, 28)) for end, n in (("", 60), ("_val", 20), ("_test", 20))}
    images |= {f"y{end}": rng.integers(10, size=n) for end, n in (("", 60), ("_val", 20), ("_test", 20))}
    return notebook("activation_transfer", images={"MNIST": images}, BATCH_SIZE=20, EARLY=3)


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (8, 1)])
def test_network_equals_torch_layers(cells, size, channels):
    ours = cells["ImageCNN"](F.silu, channels, size)
    x = h = torch.randn(5, channels, size, size)
    for layer in ours.convolutions:
        h = F.silu(F.conv2d(h, layer.weight, layer.bias, stride=2, padding=1))
    torch.testing.assert_close(ours(x), ours.linear(h.flatten(1)))


def test_a_stack_of_seeds_equals_the_plain_loop(cells, monkeypatch):
    stack = cells["run"]((F.silu, "MNIST", 1e-2, "_test", (2,)), [3, 4])
    shuffle = torch.randperm
    for i, seed in enumerate((3, 4)):
        generator = torch.Generator().manual_seed(seed)  # the stack's order of examples
        monkeypatch.setattr(torch, "randperm", lambda n, g=generator: shuffle(n, generator=g))
        losses, test_loss = cells["train_one"](F.silu, cells["images"]["MNIST"], 2, 1e-2, seed)
        monkeypatch.undo()
        np.testing.assert_allclose(stack["early"][i], np.mean(losses[:3]), rtol=1e-4)
        np.testing.assert_allclose(stack["loss"][i, 0], test_loss, rtol=1e-3)


def test_a_diverged_network_has_no_accuracy(cells):
    found = cells["run"]((F.silu, "MNIST", 1e30, "_test", (2,)), [3])
    assert np.isnan(found["loss"]).all() and np.isnan(found["acc"]).all()


def test_the_published_function_is_the_one_that_was_learned():
    function = load_results("metalearn_activation")["numbers"]["function"]
    x = torch.tensor(function["x"], requires_grad=True)
    y = learned_activation(x)
    np.testing.assert_allclose(y.detach(), function["f"], atol=0.05)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert slope.isfinite().all()


def test_the_file_of_the_learned_function_is_enough_to_compute_it():
    path = ROOT / "figures" / "learned_activation.json"
    function = json.loads(path.read_text(encoding="utf-8"))
    recorded = load_results("metalearn_activation")["numbers"]["function"]  # to six digits
    assert function.keys() == recorded.keys() and function["recipe"] == recorded["recipe"]
    for key in ("x", "f", "coefficients"):
        np.testing.assert_allclose(function[key], recorded[key], rtol=1e-5, atol=1e-6)
    x = np.array(function["x"])
    offset = sum(c * np.tanh(x / 2) ** k for k, c in enumerate(function["coefficients"]))
    np.testing.assert_allclose(np.where(x > 0, x, np.expm1(x)) + offset, function["f"], atol=0.05)
