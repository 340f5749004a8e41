"""The architectures of the spatial-prior notebook against torch's own layers, and its protocol."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mnist1d.models import MLP, count_parameters
from mnist1d.training import Stack


@pytest.fixture
def priors(notebook):
    return notebook("spatial_priors")


@pytest.fixture
def x():
    return torch.randn(6, 40, generator=torch.Generator().manual_seed(0))


def test_locally_connected_with_equal_filters_is_a_convolution(priors, x):
    model = priors["LocallyConnected"]()
    with torch.no_grad():
        for weight, bias in zip(model.weights, model.biases, strict=True):
            weight.copy_(weight[:1].expand_as(weight).clone())
            bias.copy_(bias[:, :1].expand_as(bias).clone())
    h = x.unsqueeze(1)
    for weight, bias, kernel in zip(model.weights, model.biases, model.kernels, strict=True):
        filters = weight[0].T.unflatten(1, (-1, kernel))
        h = F.conv1d(h, filters, bias[:, 0], stride=2, padding=kernel // 2).relu()
    torch.testing.assert_close(model(x), model.linear(h.flatten(1)))


def test_published_sizes_are_kept(priors):
    names = ("ResNet", "TCN", "LocallyConnected", "Mixer")
    counts = {name: count_parameters(priors[name]()) for name in names}
    assert counts == {"ResNet": 22538, "TCN": 4314, "LocallyConnected": 8710, "Mixer": 10558}


def test_attention_is_torchs(priors):
    ours, theirs = priors["Attention"](16, heads=4), nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.to_qkv.weight)
        theirs.in_proj_bias.copy_(ours.to_qkv.bias)
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    h = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(h), theirs(h, h, h)[0])


@pytest.mark.parametrize("positions", [False, True])
def test_only_positions_tell_the_transformer_the_order_of_patches(priors, x, positions):
    torch.manual_seed(0)
    model = priors["Transformer"](positions=positions)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    moved = x.unflatten(1, (10, 4))[:, order].flatten(1)
    assert torch.allclose(model(x), model(moved), atol=1e-5) is not positions


def test_tcn_sees_every_position(priors, x):
    torch.manual_seed(0)
    x.requires_grad_()
    priors["TCN"]()(x).square().sum().backward()
    assert (x.grad.abs().amax(0) > 0).all()


@pytest.mark.parametrize("name", ["ResNet", "TCN", "Transformer", "Mixer", "LocallyConnected"])
def test_every_architecture_is_trained_in_a_stack(priors, x, name):
    models = Stack(priors[name], [3, 4])
    batch = x.expand(2, -1, -1), torch.arange(6).expand(2, -1)
    for _ in range(4):
        models.backward(*batch)
        models.step()
    assert models.stacked
    out = models.evaluate(lambda model, x: model(x), batch[0])
    torch.testing.assert_close(out[1], models.get_module(1)(x), atol=1e-5, rtol=1e-4)


def test_the_choice_sees_no_test_data(priors):
    settings = {"N_SAMPLES": 600, "N_VALIDATION": 80}
    frozen = priors["make_dataset"]({"num_samples": settings["N_SAMPLES"]})
    order = np.random.RandomState(42).permutation(40)
    priors |= {**settings, "frozen": frozen, "permutation": order, "STEPS": 3, "CHOICE_STEPS": 30}
    priors["LEARNING_RATES"] = (1e-6, 1e-2)
    first = priors["run"]((MLP, "plain"), [0, 1])
    spoiled = {"x_test": 0 * frozen["x_test"], "y_test": (frozen["y_test"] + 1) % 10}
    priors["frozen"] = {**frozen, **spoiled}
    second = priors["run"]((MLP, "plain"), [0, 1])
    assert (first["learning_rate"] == 1e-2).all()  # the other one learns nothing
    for key in ("learning_rate", "val_acc", "train_acc"):
        np.testing.assert_array_equal(first[key], second[key])


def test_validation_examples_are_held_out(priors):
    frozen = priors["make_dataset"]({"num_samples": 500})
    priors |= {"frozen": frozen, "permutation": np.arange(40)[::-1], "N_VALIDATION": 80}
    whole, split = (priors["load"]("shuffled", hold_out) for hold_out in (False, True))
    np.testing.assert_array_equal(whole["x"], frozen["x"][:, ::-1])
    np.testing.assert_array_equal(whole["x_test"], frozen["x_test"][:, ::-1])
    assert len(split["x_val"]) == len(split["y_val"]) == 80
    np.testing.assert_array_equal(np.concatenate([split["x"], split["x_val"]]), whole["x"])
    np.testing.assert_array_equal(np.concatenate([split["y"], split["y_val"]]), whole["y"])
