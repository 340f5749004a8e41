"""Four convolutions with batch normalisation, SGD with momentum; signals are moved by up to three positions."""

import torch
from torch import nn
from torch.nn import functional as F

TARGET = 96  # percent
EPOCHS, RATE, BATCH, SHIFT = 7, 0.2, 100, 3


def build():
    layers, n_in = [nn.Unflatten(1, (1, 40))], 1
    for width, kernel, stride in ((16, 5, 1), (32, 3, 2), (64, 3, 2), (64, 3, 2)):
        conv = nn.Conv1d(n_in, width, kernel, stride=stride, padding=kernel // 2, bias=False)
        layers += [conv, nn.BatchNorm1d(width), nn.ReLU()]
        n_in = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(5 * n_in, 10))


def train(x, y, seed):
    torch.manual_seed(seed)
    model, steps = build(), EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=2e-3, fused=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1, cycle_momentum=False)
    for step in range(steps):
        at = step * BATCH % (len(x) // BATCH * BATCH)
        if at == 0:
            order = torch.randperm(len(x))
        batch = order[at : at + BATCH]
        position = torch.arange(40) + torch.randint(-SHIFT, SHIFT + 1, (BATCH, 1))
        loss = F.cross_entropy(model(x[batch].gather(1, position % 40)), y[batch], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cycle.step()
    return lambda x: model.eval()(x).argmax(1)
