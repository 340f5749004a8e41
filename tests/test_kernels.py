"""The kernels against torch's own layers: values and every gradient."""

import pytest
import torch
from torch import nn

from mnist1d.engine.kernels import _GRUScan, find_layers, swapped


def compare(layer, *shape):
    """Outputs and gradients of a layer, with its kernel and without, in float64."""
    layer = layer.double()
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    results = []
    for layers in ([], find_layers(layer)):
        with swapped(layers):
            out = layer(x)
        outs = out if isinstance(out, tuple) else (out,)
        torch.manual_seed(1)
        total = sum((torch.randn(o.shape, dtype=o.dtype) * o).sum() for o in outs)
        results.append([*outs, *torch.autograd.grad(total, [x, *layer.parameters()])])
    torch.testing.assert_close(*results)
    return bool(find_layers(layer))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "padding", "bias"), [(5, 1, True), (3, 0, False), (1, 0, True), (4, 3, True)])
def test_convolution_equals_torch(kernel, stride, padding, bias):
    assert compare(nn.Conv1d(3, 6, kernel, stride=stride, padding=padding, bias=bias), 4, 3, 17)


@pytest.mark.parametrize(("dilation", "padding", "stride"), [(2, 0, 1), (4, 8, 1), (3, 5, 2), (8, 16, 1), (5, 12, 3)])
def test_dilated_convolution_equals_torch(dilation, padding, stride):
    assert compare(nn.Conv1d(3, 6, 3, stride=stride, padding=padding, dilation=dilation), 4, 3, 17)


def test_a_tap_that_lies_outside_everywhere_adds_nothing():
    assert compare(nn.Conv1d(1, 2, 3, padding=9, dilation=9), 2, 1, 5)


@pytest.mark.parametrize("options", [(2, 2), (2, 3, 2), (3, 2), (2.5, 2, 1)], ids=str)
def test_pooling_by_power_equals_torch(options):
    layer, x = nn.LPPool1d(*options), torch.rand(4, 3, 17, dtype=torch.float64) + 0.1
    x.requires_grad_()
    (plain,) = torch.autograd.grad((y := layer(x)).square().sum(), x)
    with swapped(find_layers(layer)):
        (ours,) = torch.autograd.grad((z := layer(x)).square().sum(), x)
    assert find_layers(layer)
    torch.testing.assert_close((ours, z), (plain, y))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [((28, 28), 3, 2, 1), ((7, 7), 3, 2, 1), ((12, 12), 5, 1, 0), ((9, 11), 4, 1, 2), ((28, 27), 5, 2, 2)],
)
@pytest.mark.parametrize("bias", [True, False])
def test_convolution_in_two_dimensions_equals_torch(size, kernel, stride, padding, bias):
    assert compare(nn.Conv2d(3, 6, kernel, stride=stride, padding=padding, bias=bias), 4, 3, *size)


@pytest.mark.parametrize("options", [(2,), (3, 2), (2, 1), (1,), (3, 5)], ids=str)
@pytest.mark.parametrize("kind", [nn.MaxPool1d, nn.AvgPool1d])
def test_pooling_equals_torch(kind, options):
    assert compare(kind(*options), 4, 3, 17)


@pytest.mark.parametrize("options", [(2,), (3, 2), (2, 1), (1,), (3, 5)], ids=str)
def test_pooling_of_images_equals_torch(options):
    assert compare(nn.MaxPool2d(*options), 4, 3, 9, 12)


def test_pooling_of_images_breaks_ties_as_torch_does():
    x = torch.randint(3, (5, 2, 6, 8)).float().requires_grad_()
    layer = nn.MaxPool2d(3, 2)
    (plain,) = torch.autograd.grad(layer(x).square().sum(), x)
    with swapped(find_layers(layer)):
        (ours,) = torch.autograd.grad(layer(x).square().sum(), x)
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("bias", [True, False])
def test_classifier_head_behind_a_convolution_equals_torch(bias):
    assert compare(nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(60, 5, bias=bias)), 7, 3, 17)


@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}], ids=str
)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_behind_a_convolution_equals_torch(options, training):
    norms = [nn.BatchNorm1d(4, **options).double() for _ in range(2)]
    x = torch.randn(7, 4, 15, dtype=torch.float64)
    rows = x.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # as a kernel puts it out
    for norm in norms:
        norm.train(training)
    for _ in range(2):
        plain = norms[0](x)
        with swapped(find_layers(norms[1])):
            ours = norms[1](rows)
    assert ours.stride(0) == 1 and ours.stride(-1) == 7
    torch.testing.assert_close((ours, *norms[1].buffers()), (plain, *norms[0].buffers()))
    assert compare(nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4, **options), nn.ReLU()).train(training), 7, 3, 17)


def test_batch_norm_of_what_no_kernel_puts_out_stays_with_torch():
    assert compare(nn.BatchNorm1d(4), 7, 4) and compare(nn.BatchNorm1d(4), 7, 4, 5)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True}])
@pytest.mark.parametrize("batch_first", [True, False])
def test_gru_equals_torch_in_output_last_state_and_every_gradient(options, batch_first):
    assert compare(nn.GRU(2, 3, batch_first=batch_first, **options), 5, 7, 2)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 4, 3, groups=2),
        nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv1d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, stride=(1, 2)),
        nn.Conv2d(4, 4, 3, padding=(1, 2)),
        nn.MaxPool1d(3, padding=1),
        nn.MaxPool1d(2, dilation=2),
        nn.MaxPool1d(2, ceil_mode=True),
        nn.MaxPool1d(2, return_indices=True),
        nn.MaxPool2d(3, padding=1),
        nn.MaxPool2d((2, 3)),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, dilation=2),
        nn.AvgPool1d(3, padding=1),
        nn.AvgPool1d(2, ceil_mode=True),
        nn.GRU(4, 4, bias=False),
        nn.GRU(4, 4, num_layers=2, dropout=0.5),
    ],
)
def test_what_a_kernel_does_not_cover_stays_with_torch(layer):
    assert not find_layers(layer)


def test_a_gru_with_an_initial_state_stays_with_torch():
    layer, x, state = nn.GRU(2, 3), torch.randn(4, 5, 2), torch.randn(1, 5, 3)
    with swapped(find_layers(layer)):
        out, _ = layer(x, state)
    torch.testing.assert_close(out, layer(x, state)[0])
    assert "forward" not in vars(layer)


def test_gru_gradient_against_finite_differences():
    torch.manual_seed(0)
    shapes = [(4, 2, 1, 3), (2, 6, 1), (2, 6, 2), (2, 6, 1), (2, 2, 1)]
    args = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(lambda *a: _GRUScan.apply(*a)[0], args)
