"""The projection of the random-subspace notebook against its own matrix, and training in it against plain PyTorch."""

import math
from functools import partial

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torch.nn import functional as F

from mnist1d import make_dataset
from mnist1d.models import MLP, count_parameters


@pytest.fixture
def subspaces(notebook):
    return notebook("random_subspaces")


def write_out(projection, model):
    """P of one model of the stack, [D, order], column by column."""
    stack, order = projection.columns.shape
    columns = []
    for unit in torch.eye(order):
        omega = torch.zeros(stack, order)
        omega[model] = unit
        columns.append(projection(omega)[model])
    return torch.stack(columns, 1)


@pytest.mark.parametrize("k", [0, 1, 2, 5, 7])
def test_fast_transform_is_the_hadamard_matrix(subspaces, k):
    x = torch.randn(3, 2**k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = x @ torch.as_tensor(scipy.linalg.hadamard(2**k), dtype=x.dtype)
    torch.testing.assert_close(subspaces["hadamard"](x), expected)


def test_columns_have_norm_one_and_are_nearly_orthogonal(subspaces):
    size, d = 700, 60
    projection = subspaces["Projection"](size, [d], [5])
    dense = write_out(projection, 0)[:, projection.columns[0]]
    assert dense.shape == (size, d)
    torch.testing.assert_close(dense.abs(), torch.full_like(dense, 1 / math.sqrt(size)))
    gram = dense.T @ dense - torch.eye(d)
    assert gram.diagonal().abs().max() < 1e-5
    # Independent random columns have inner products of standard deviation 1/sqrt(size); 1770 pairs.
    assert gram.square().sum().div(d * (d - 1)).sqrt() < 1.1 / math.sqrt(size)
    assert gram.abs().max() < 5 / math.sqrt(size)


def test_lengths_are_kept_in_expectation(subspaces):
    size, d, seeds = 300, 40, range(400)
    projection = subspaces["Projection"](size, [d], seeds)
    omega = torch.randn(projection.columns.shape, generator=torch.Generator().manual_seed(0)) * projection.columns
    ratio = projection(omega).square().sum(1) / omega.square().sum(1)
    standard_error = ratio.std() / math.sqrt(len(seeds))
    assert standard_error < 0.02
    assert abs(ratio.mean() - 1) < 4 * standard_error


def test_transpose_is_the_transpose(subspaces):
    size, dims, seeds = 90, [3, 40, 90], [0, 1]
    projection = subspaces["Projection"](size, dims, seeds)
    gradient = torch.randn(len(projection.columns), size, generator=torch.Generator().manual_seed(0))
    for model in range(len(gradient)):
        dense = write_out(projection, model) * projection.columns[model]
        torch.testing.assert_close(projection.transpose(gradient)[model], dense.T @ gradient[model])


def test_subspaces_of_a_seed_are_nested_and_the_full_one_is_the_identity(subspaces):
    size, dims = 90, [3, 40, 90]
    projection = subspaces["Projection"](size, dims, [0, 1])
    columns = projection.columns.view(2, len(dims), -1)
    assert columns.sum(2).tolist() == [dims, dims]
    assert (columns[:, 1] | ~columns[:, 0]).all()
    assert not torch.equal(columns[0, 0], columns[1, 0])
    omega = torch.randn(projection.columns.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(projection(omega).view(2, 3, -1)[:, 2], omega.view(2, 3, -1)[:, 2, :size])


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_stored_projections(subspaces, kind):
    projection = subspaces["StoredProjection"](kind, 200, [5, 20], [0, 1], "cpu")
    matrix = projection.matrix
    norms = matrix.norm(dim=1)
    torch.testing.assert_close(norms, projection.columns.float())  # 1 inside, 0 outside
    if kind == "sparse":
        assert ((matrix != 0).sum(2) == 1).all()
    else:
        torch.testing.assert_close(matrix[1].T @ matrix[1], torch.eye(20), atol=1e-5, rtol=0)
    generator = torch.Generator().manual_seed(0)
    omega = torch.randn(projection.columns.shape, generator=generator) * projection.columns
    gradient = torch.randn(len(omega), 200, generator=generator)
    left, right = (projection(omega) * gradient).sum(1), (omega * projection.transpose(gradient)).sum(1)
    torch.testing.assert_close(left, right)


def train_plainly(seed, dense, data, *, steps, batch_size, learning_rate, betas, falling=True):
    """One model with P written out, its omega trained by autograd; test accuracy in percent."""
    torch.manual_seed(seed)
    model = MLP(hidden=5)
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    scale = math.sqrt(len(start) / dense.shape[1])
    omega = torch.zeros(dense.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([omega], learning_rate, betas)
    x, x_test = (torch.tensor(data[key], dtype=torch.float32) for key in ("x", "x_test"))
    y, y_test = (torch.tensor(data[key]) for key in ("y", "y_test"))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))

    def logits(inputs):
        theta, params, position = start + scale * dense @ omega, {}, 0
        for name, p in model.named_parameters():
            params[name] = theta[position : position + p.numel()].view_as(p)
            position += p.numel()
        return torch.func.functional_call(model, params, (inputs,))

    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps if falling else 1)
        batch = order[step * batch_size : (step + 1) * batch_size]
        optimizer.zero_grad()
        F.cross_entropy(logits(x[batch]), y[batch]).backward()
        optimizer.step()
    return 100 * (logits(x_test).argmax(1) == y_test).double().mean().item()


@pytest.mark.parametrize("group", [None, 1, 4])
def test_training_equals_a_plain_loop(subspaces, group):
    data = make_dataset({"num_samples": 500})
    build = partial(MLP, hidden=5)
    size = count_parameters(build())
    dims, seeds = [10, 100, size], [0, 3]
    settings = {"steps": 15, "batch_size": 20, "learning_rate": 2e-2}
    got = subspaces["train_subspace"](build, data, dims, seeds, group=group, **settings)
    projection = subspaces["Projection"](size, dims, seeds)
    matrices = [write_out(projection, i)[:, projection.columns[i]] for i in range(len(projection.columns))]
    settings["betas"] = subspaces["BETAS"]
    expected = [train_plainly(seeds[i // 3], dense, data, **settings) for i, dense in enumerate(matrices)]
    assert np.std(expected) > 1  # the models differ
    np.testing.assert_allclose(got.ravel(), expected, atol=1.01)  # one test example of 100


def test_a_curve_is_the_training_cut_short_at_each_evaluation(subspaces):
    data = make_dataset({"num_samples": 500})
    build, settings = partial(MLP, hidden=5), {"batch_size": 20, "learning_rate": 2e-2, "falling": False}
    curve = subspaces["train_subspace"](build, data, [10, 100], [0, 3], steps=15, eval_at=[4, 9], **settings)
    assert curve.shape == (2, 2, 3)
    for i, steps in enumerate((4, 9, 15)):
        shorter = subspaces["train_subspace"](build, data, [10, 100], [0, 3], steps=steps, **settings)
        np.testing.assert_array_equal(curve[..., i], shorter[..., -1])
    projection = subspaces["Projection"](count_parameters(build()), [10], [3])
    dense = write_out(projection, 0)[:, projection.columns[0]]
    expected = train_plainly(3, dense, data, steps=15, betas=subspaces["BETAS"], **settings)
    np.testing.assert_allclose(curve[1, 0, -1], expected, atol=1.01)


def test_networks_have_the_published_sizes(notebook):
    cells = notebook("random_subspaces")
    fully, cnn = cells["FullyConnected"], cells["ImageCNN"]
    assert [count_parameters(fully(h)) for h in (16, 32)] == [12_730, 25_450]
    assert [count_parameters(cnn(*a)) for a in ((6, 6, 4, 25), (8, 16, 4, 32), (10, 20, 5, 50))] == [
        3369,
        10_754,
        21_840,
    ]
    assert count_parameters(fully(200, 200)) == 199_210
    images = torch.rand(2, 28, 28)
    assert cnn(6, 6, 4, 25)(images).shape == fully(16)(images).shape == (2, 10)


@pytest.mark.parametrize("kernel", [4, 5])
def test_image_network_equals_torch_layers(notebook, kernel):
    ours = notebook("random_subspaces")["ImageCNN"](6, 7, kernel, 9)
    plain = nn.Sequential(
        *(nn.Conv2d(1, 6, kernel), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(6, 7, kernel), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(1), nn.Linear(112, 9), nn.ReLU(), nn.Linear(9, 10)),
    )
    with torch.no_grad():
        for own, value in zip(plain.parameters(), ours.parameters(), strict=True):
            own.copy_(value)
    images = torch.rand(5, 28, 28)
    torch.testing.assert_close(ours(images), plain(images[:, None]))
    got = torch.autograd.grad(ours(images).square().sum(), ours.conv1.weight)
    expected = torch.autograd.grad(plain(images[:, None]).square().sum(), plain[0].weight)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_dropout_of_the_image_network_takes_whole_channels(notebook):
    torch.manual_seed(0)
    model = notebook("random_subspaces")["ImageCNN"](3, 40, 5, 50, dropout=0.5)
    seen = []
    model.hidden.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.conv2.weight.data.zero_()
    model.conv2.bias.data.fill_(1)
    model(torch.rand(6, 28, 28))
    channels = seen[0].unflatten(1, (40, 16))  # [example, channel, pixel]
    assert set(channels.unique().tolist()) == {0, 2}
    assert torch.equal(channels.amin(2), channels.amax(2))
    assert len({tuple(row) for row in channels[:, :, 0].tolist()}) == 6  # every example has its own
    model.eval()
    model(torch.rand(6, 28, 28))
    assert (seen[1] == 1).all()


def test_intrinsic_dimension_interpolates_in_the_logarithm(subspaces):
    find = subspaces["intrinsic_dimension"]
    curves = np.array([[10.0, 40, 80, 90, 100], [10, 40, 80, 100, 100], [95, 96, 97, 98, 100]])
    np.testing.assert_allclose(find([1, 10, 100, 1000, 10_000], curves), [1000, 10**2.5, 1])
