"""Kernels of pooling layers and classifier heads against torch's own layers."""

import pytest
import torch
from torch import nn

from mnist1d.engine import Stack
from mnist1d.engine.kernels import find_layers

POOLS = [
    nn.MaxPool1d(2),
    nn.MaxPool1d(3, 2),
    nn.MaxPool1d(2, 1),
    nn.AvgPool1d(2),
    nn.AvgPool1d(3, 1),
    nn.AvgPool1d(3, 5),
]


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pools_behind_convolutions_are_those_of_torch(pool):
    def build():
        layers = nn.Conv1d(2, 4, 3), pool, nn.Conv1d(4, 4, 3, padding=1), nn.Flatten(1), nn.LazyLinear(10)
        return nn.Sequential(*layers)

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 20, 2, 41, generator=generator), torch.randint(10, (3, 20), generator=generator)
    stack = Stack(build, [0, 1, 2], example=(x, y))
    stack.backward(x, y)
    assert stack.stacked
    assert len(find_layers(stack.get_module(0))) == 4
    for _ in range(3):
        stack.backward(x, y)
        stack.step()
    stack.backward(x, y)
    for i in range(3):
        module = stack.get_module(i)
        nn.functional.cross_entropy(module(x[i]), y[i]).backward()
        for name, p in module.named_parameters():
            torch.testing.assert_close(stack.grads[name][i], p.grad, atol=1e-6, rtol=1e-4)


def test_pools_that_no_kernel_covers_are_left_to_torch():
    odd = nn.MaxPool1d(3, padding=1), nn.MaxPool1d(2, ceil_mode=True), nn.MaxPool1d(2, dilation=2)
    odd += nn.AvgPool1d(3, padding=1), nn.AvgPool1d(2, ceil_mode=True), nn.MaxPool1d(2, return_indices=True)
    assert not find_layers(nn.ModuleList(odd))
