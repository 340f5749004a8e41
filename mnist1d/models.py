"""The four models of Table 1, on signals (batch, length), and the activation of Figure 7."""

import torch
from torch import nn

__all__ = ["CNN", "GRU", "MLP", "MODELS", "Logistic", "count_parameters", "learned_activation"]


def count_parameters(model: nn.Module) -> int:
    """Number of trainable numbers in a module."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


class Logistic(nn.Module):
    """Multinomial logistic regression: 410 parameters."""

    def __init__(self, length: int = 40, classes: int = 10) -> None:
        super().__init__()
        self.linear = nn.Linear(length, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class MLP(nn.Module):
    """Multilayer perceptron 40-100-100-10 whose second layer is residual: 15,210 parameters."""

    def __init__(self, length: int = 40, hidden: int = 100, classes: int = 10) -> None:
        super().__init__()
        self.linear1 = nn.Linear(length, hidden)
        self.linear2 = nn.Linear(hidden, hidden)
        self.linear3 = nn.Linear(hidden, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.linear1(x).relu()
        h = h + self.linear2(h).relu()
        return self.linear3(h)


class CNN(nn.Module):
    """Three convolutions of stride 2 and 25 channels, and a linear classifier head: 5,210 parameters."""

    def __init__(self, length: int = 40, channels: int = 25, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, channels, 5, stride=2, padding=1)
        self.conv2 = nn.Conv1d(channels, channels, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(channels, channels, 3, stride=2, padding=1)
        for kernel in (5, 3, 3):
            length = (length + 2 - kernel) // 2 + 1
        self.linear = nn.Linear(channels * length, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(x.unsqueeze(1)).relu()  # (batch, channel, length)
        h = self.conv2(h).relu()
        h = self.conv3(h).relu()
        return self.linear(h.flatten(1))


class GRU(nn.Module):
    """Bidirectional GRU of 6 units that reads one number a step; linear head on all states: 5,134 parameters."""

    def __init__(self, length: int = 40, hidden: int = 6, classes: int = 10, features: int = 1) -> None:
        super().__init__()
        self.features = features  # numbers read a step: 28 reads an MNIST image row by row
        self.gru = nn.GRU(features, hidden, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * hidden * (length // features), classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.gru(x.unflatten(-1, (-1, self.features)))  # (batch, step, 2 * hidden)
        return self.linear(states.flatten(1))


MODELS = {"logistic": Logistic, "MLP": MLP, "CNN": CNN, "GRU": GRU}


def learned_activation(x: torch.Tensor) -> torch.Tensor:
    """The activation of Figure 7, a mean over seeds: an ELU plus a polynomial in tanh(x/2)."""
    u, offset = torch.tanh(x / 2), 0.0
    for coefficient in (-3.288, 1.505, 8.090, -3.637, -8.383, 4.815, 4.460, -3.256, -0.697):  # from u^8 to 1
        offset = offset * u + coefficient
    return nn.functional.elu(x) + offset
