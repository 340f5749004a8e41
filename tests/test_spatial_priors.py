"""The architectures of the spatial-prior notebook against torch's own layers, and its protocol."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mnist1d.models import MLP, ModelStack


@pytest.fixture
def priors(notebook):
    return notebook("spatial_priors")


@pytest.fixture
def x():
    return torch.randn(6, 40, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("stride", "dilation", "causal"), [(1, 1, False), (2, 1, False), (1, 4, True), (1, 2, False)])
def test_windows_make_a_convolution(priors, stride, dilation, causal):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=generator) for shape in ((2, 21, 3), (4, 3, 5)))
    rows = priors["windows"](x, 5, stride=stride, dilation=dilation, causal=causal)
    got = rows @ weight.permute(2, 1, 0).flatten(0, 1)
    left, right = (4 * dilation, 0) if causal else (2 * dilation, 2 * dilation)
    padded = F.pad(x.transpose(1, 2), (left, right))
    expected = F.conv1d(padded, weight, stride=stride, dilation=dilation).transpose(1, 2)
    torch.testing.assert_close(got, expected)


def test_locally_connected_with_equal_filters_is_a_convolution(priors, x):
    model = priors["LocallyConnected"]()
    with torch.no_grad():
        for parameters in (*model.weights, *model.biases):
            parameters.copy_(parameters[:1].expand_as(parameters).clone())
    h = x.unsqueeze(1)
    for weight, bias, kernel in zip(model.weights, model.biases, model.kernels, strict=True):
        filters = weight[0].T.unflatten(1, (kernel, -1)).transpose(1, 2)
        h = F.conv1d(h, filters, bias[0, 0], stride=2, padding=kernel // 2).relu()
    torch.testing.assert_close(model(x), model.linear(h.transpose(1, 2).flatten(1)))


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


def test_every_architecture_runs_in_a_stack(priors, x):
    names = ("ResNet", "TCN", "Transformer", "Mixer", "LocallyConnected")
    for build in (priors[name] for name in names):
        model = ModelStack(build, [3, 4])
        out = model(x.expand(2, -1, -1))
        assert out.shape == (2, 6, 10)
        torch.testing.assert_close(out[1], model.get_module(1)(x), atol=1e-5, rtol=1e-4)


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
