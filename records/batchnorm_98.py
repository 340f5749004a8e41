"""Four convolutions with batch normalisation, SGD with momentum; signals are moved, resized, tilted and get noise."""

import torch
from torch import nn
from torch.nn import functional as F

TARGET = 98  # percent
EPOCHS, RATE, BATCH, SHIFT = 10, 0.2, 100, 3


def build():
    layers, n_in = [nn.Unflatten(1, (1, 40))], 1
    for width, kernel, stride in ((32, 5, 1), (64, 3, 2), (128, 3, 2), (128, 3, 2)):
        conv = nn.Conv1d(n_in, width, kernel, stride=stride, padding=kernel // 2, bias=False)
        layers += [conv, nn.BatchNorm1d(width), nn.ReLU()]
        n_in = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(5 * n_in, 10))


def train(x, y, seed):
    torch.manual_seed(seed)
    model, steps = build(), EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=2e-3, fused=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1, cycle_momentum=False)
    t = torch.arange(40)
    blur = F.normalize(torch.exp(-((t[:, None] - t) ** 2) / 8), dim=0)  # a Gaussian of width 2
    for step in range(steps):
        at = step * BATCH % (len(x) // BATCH * BATCH)
        if at == 0:
            order = torch.randperm(len(x))
        batch = order[at : at + BATCH]
        position = t + torch.randint(-SHIFT, SHIFT + 1, (BATCH, 1))
        signal = x[batch].gather(1, position % 40) * (0.8 + 0.4 * torch.rand(BATCH, 1))
        signal += (2 * torch.rand(BATCH, 1) - 1) * torch.linspace(-0.5, 0.5, 40)
        signal += 0.05 * torch.randn(BATCH, 40) + 0.1 * torch.randn(BATCH, 40) @ blur
        loss = F.cross_entropy(model(signal), y[batch], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cycle.step()
    return lambda x: model.eval()(x).argmax(1)
