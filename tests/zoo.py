"""Small modules, losses and optimisers of many kinds, for the engine's tests: signals (batch, 16), four classes."""

import functools
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, rnn
from torch.utils.checkpoint import checkpoint

from mnist1d.training import train
from mnist1d.utils import set_seed

LENGTH, CLASSES = 16, 4


class Net(nn.Module):
    """A body on (batch, channel, length) or whatever `shape` makes of a signal, and a linear head."""

    def __init__(self, *body, shape=(1, LENGTH), read=lambda out: out):
        super().__init__()
        self.body = nn.Sequential(*body)
        self.shape, self.read = shape, read
        with torch.no_grad():
            self.body.eval()
            size = self.flatten(torch.zeros(2, LENGTH)).shape[1]
            self.body.train()
        self.head = nn.Linear(size, CLASSES)

    def flatten(self, x):
        return self.read(self.body(x.unflatten(1, self.shape))).flatten(1)

    def forward(self, x):
        return self.head(self.flatten(x))


def net(*makers, **options):
    """A builder: every layer is made anew for each seed."""
    return lambda: Net(*(make() for make in makers), **options)


def conv(*args, **options):
    return lambda: nn.Conv1d(*args, **options)


class Function(nn.Module):
    """A module from a function, without parameters."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def apply(function):
    return lambda: Function(function)


class Base(nn.Module):
    """16 -> 8 -> 4 with something in between."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(LENGTH, 8), nn.Linear(8, CLASSES)
        self.prepare()

    def prepare(self):
        pass

    def between(self, h):
        return h.tanh()

    def forward(self, x):
        return self.last(self.between(self.first(x)))


def base(between, prepare=lambda self: None):
    return type("Custom", (Base,), {"between": between, "prepare": prepare})


class StraightThrough(torch.autograd.Function):
    """Sign forward, identity backward; without a rule for vmap."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(2, 3, batch_first=True), nn.Linear(3, CLASSES)

    def forward(self, x):
        packed = rnn.pack_padded_sequence(x.unflatten(1, (8, 2)), torch.tensor([8, 7, 5, 5, 3, 2]), batch_first=True)
        return self.head(self.rnn(packed)[1][-1])


class Cell(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell, self.head = kind(2, 5), nn.Linear(5, CLASSES)

    def forward(self, x):
        state = None
        for part in x.unflatten(1, (8, 2)).unbind(1):
            state = self.cell(part, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(2, 3, batch_first=True, **options)
        self.head = nn.LazyLinear(CLASSES)
        self.head(torch.zeros(1, 8 * 3 * (1 + self.rnn.bidirectional)))

    def forward(self, x):
        return self.head(self.rnn(x.unflatten(1, (8, 2)))[0].flatten(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.attention = nn.Linear(2, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        h = self.embed(x.unflatten(1, (8, 2)))
        return self.head(self.attention(h, h, h, need_weights=False)[0].mean(1))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(2, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x.unflatten(1, (8, 2)))).mean(1))


class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(5, 3), nn.Linear(3 * LENGTH, CLASSES)

    def forward(self, x):
        return self.head(self.table(x.mul(2).long().clamp(-2, 2) + 2).flatten(1))


class Spectral(nn.Module):
    """A filter in the frequency domain with complex weights."""

    def __init__(self, conjugate=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(LENGTH // 2 + 1, dtype=torch.complex128))
        self.head, self.conjugate = nn.Linear(LENGTH, CLASSES), conjugate

    def forward(self, x):
        spectrum = torch.fft.rfft(x)
        filtered = (spectrum.conj() * self.weight).conj() if self.conjugate else spectrum * self.weight
        return self.head(torch.fft.irfft(filtered, n=LENGTH))


class StateSpace(nn.Module):
    """A diagonal state-space kernel in the manner of S4D, of conjugate pairs."""

    def __init__(self):
        super().__init__()
        self.log_decay, self.frequency = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
        self.c = nn.Parameter(torch.randn(6, 2))
        self.head = nn.Linear(LENGTH, CLASSES)

    def forward(self, x):
        rate = torch.complex(-self.log_decay.exp(), self.frequency)
        c = torch.view_as_complex(self.c)
        kernel = 2 * (c.conj()[:, None] * torch.exp(rate[:, None] * torch.arange(LENGTH))).real.sum(0)
        spectrum = torch.fft.rfft(x, n=2 * LENGTH) * torch.fft.rfft(kernel, n=2 * LENGTH)
        return self.head(torch.fft.irfft(spectrum, n=2 * LENGTH)[:, :LENGTH].relu())


class Scan(nn.Module):
    """A selective scan: decay and input depend on the signal."""

    def __init__(self):
        super().__init__()
        self.gate, self.input, self.head = nn.Linear(2, 6), nn.Linear(2, 6), nn.Linear(6, CLASSES)

    def forward(self, x):
        h = 0
        for part in x.unflatten(1, (8, 2)).unbind(1):
            h = self.gate(part).sigmoid() * h + self.input(part)
        return self.head(h)


class KAN(nn.Module):
    """Learned univariate functions on a basis of bumps."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, LENGTH, 5) / 8)
        self.register_buffer("centres", torch.linspace(-2, 2, 5))

    def forward(self, x):
        return torch.einsum("bis,ois->bo", torch.exp(-((x[..., None] - self.centres) ** 2)), self.weight)


class Experts(nn.Module):
    """A mixture of experts; `top` sends every example to the best one only."""

    def __init__(self, top=False):
        super().__init__()
        self.gate = nn.Linear(LENGTH, 3)
        self.experts = nn.ModuleList(nn.Linear(LENGTH, CLASSES) for _ in range(3))
        self.top = top

    def forward(self, x):
        weights = self.gate(x).softmax(1)
        if not self.top:
            return (torch.stack([e(x) for e in self.experts], 1) * weights[..., None]).sum(1)
        best, out = weights.argmax(1), x.new_zeros(len(x), CLASSES)
        for k, expert in enumerate(self.experts):
            rows = (best == k).nonzero()[:, 0]
            out = out.index_add(0, rows, expert(x[rows]) * weights[rows, k, None])
        return out


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()))


def branch_on_value(self, h):
    return h.tanh() if h.mean() > 0 else h.relu()


def count(self, h):
    self.calls += 1
    return h * math.exp(-0.1 * self.calls)


def update_buffer(self, h):
    if self.training:
        self.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
    return (h - self.mean).tanh()


def replace_buffer(self, h):
    self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
    return (h - self.mean).tanh()


def freeze(self):
    self.first.requires_grad_(False)


def assign_below_zero(self, h):
    h = h.clone()
    h[h < 0] = 0
    return h


def read_list(self, h):
    return h * sum(h.detach()[0].tolist())


def read_numpy(self, h):
    return h * float(h.detach().numpy().mean())


def one_hot(self, h):
    return h + F.one_hot(h.argmax(1), 8).to(h)


def tie_lengths(self, h):
    return h + torch.repeat_interleave(h.mean(1), torch.tensor([8] * 6)).unflatten(0, (6, 8))


def unique(self, h):
    return h * len(torch.unique((h > 0).sum(1)))


def wrapped(kind, wrap):
    def build():
        return Net(wrap(kind()), shape=(LENGTH,))

    return build


def pruned():
    model = nn.Sequential(nn.Linear(LENGTH, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    prune.random_unstructured(model[0], "weight", amount=0.5)
    return model


def linear8():
    return nn.Linear(LENGTH, 8)


def draw_attribute(self):
    self.mask = torch.rand(8)


MODULES = {
    "linear": net(apply(lambda x: x)),
    "conv": net(conv(1, 3, 3), nn.ReLU, conv(3, 4, 3, stride=2, padding=1)),
    "conv grouped": net(conv(1, 4, 3), conv(4, 4, 3, groups=2)),
    "conv dilated": net(conv(1, 3, 3, dilation=2)),
    "conv circular": net(conv(1, 3, 3, padding=1, padding_mode="circular")),
    "conv same": net(conv(1, 3, 5, padding="same")),
    "conv without bias": net(conv(1, 3, 5, bias=False), nn.GELU),
    "conv transposed": net(lambda: nn.ConvTranspose1d(1, 3, 3, stride=2)),
    "conv 2d": net(
        lambda: nn.Conv2d(1, 3, 2, padding=1), nn.ReLU, lambda: nn.Conv2d(3, 2, 3, stride=2), shape=(1, 4, 4)
    ),
    "conv 2d unequal strides": net(lambda: nn.Conv2d(1, 3, 2, stride=(1, 2)), shape=(1, 4, 4)),
    "conv 2d depthwise": net(lambda: nn.Conv2d(2, 2, 2, groups=2), shape=(2, 2, 4)),
    "max pool": net(conv(1, 3, 3), lambda: nn.MaxPool1d(2)),
    "average pool": net(conv(1, 3, 3), lambda: nn.AvgPool1d(2)),
    "L2 pool": net(conv(1, 3, 3), lambda: nn.LPPool1d(2, 2)),
    "adaptive pool": net(conv(1, 3, 3), lambda: nn.AdaptiveAvgPool1d(3)),
    "adaptive max pool": net(conv(1, 3, 3), lambda: nn.AdaptiveMaxPool1d(3)),
    "upsample": net(conv(1, 2, 3), lambda: nn.Upsample(scale_factor=2)),
    "batch norm": net(conv(1, 3, 3), lambda: nn.BatchNorm1d(3), nn.ReLU),
    "batch norm, cumulative": net(conv(1, 3, 3), lambda: nn.BatchNorm1d(3, momentum=None), nn.ReLU),
    "batch norm 2d": net(lambda: nn.Conv2d(1, 3, 2), lambda: nn.BatchNorm2d(3), shape=(1, 4, 4)),
    "layer norm": net(lambda: nn.LayerNorm(LENGTH)),
    "RMS norm": net(lambda: nn.RMSNorm(LENGTH)),
    "group norm": net(conv(1, 4, 3), lambda: nn.GroupNorm(2, 4)),
    "instance norm": net(conv(1, 3, 3), lambda: nn.InstanceNorm1d(3, affine=True)),
    "instance norm, tracked": net(conv(1, 3, 3), lambda: nn.InstanceNorm1d(3, track_running_stats=True)),
    "dropout": net(conv(1, 3, 3), nn.Dropout, nn.ReLU),
    "dropout 1d": net(conv(1, 3, 3), nn.Dropout1d),
    "alpha dropout": net(conv(1, 3, 3), nn.AlphaDropout),
    "noise": base(lambda self, h: h + torch.randn_like(h) * self.training),
    "prelu": net(conv(1, 3, 3), nn.PReLU),
    "bilinear": base(lambda self, h: self.b(h, h), lambda self: setattr(self, "b", nn.Bilinear(8, 8, 8))),
    "GRU": lambda: Recurrent(nn.GRU),
    "GRU, two layers": lambda: Recurrent(nn.GRU, num_layers=2, bidirectional=True),
    "GRU, without bias": lambda: Recurrent(nn.GRU, bias=False),
    "LSTM": lambda: Recurrent(nn.LSTM, bidirectional=True),
    "RNN": lambda: Recurrent(nn.RNN),
    "GRU cell": lambda: Cell(nn.GRUCell),
    "LSTM cell": lambda: Cell(nn.LSTMCell),
    "RNN cell": lambda: Cell(nn.RNNCell),
    "packed sequences": Packed,
    "attention": Attention,
    "transformer": Transformer,
    "embedding": Embedding,
    "weight norm": wrapped(linear8, parametrizations.weight_norm),
    "weight norm, old": wrapped(linear8, nn.utils.weight_norm),
    "spectral norm": wrapped(linear8, parametrizations.spectral_norm),
    "spectral norm, old": wrapped(linear8, nn.utils.spectral_norm),
    "orthogonal": wrapped(linear8, parametrizations.orthogonal),
    "pruned": pruned,
    "KAN": KAN,
    "FFT filter": Spectral,
    "FFT filter, conjugate": lambda: Spectral(conjugate=True),
    "state space": StateSpace,
    "selective scan": Scan,
    "mixture of experts": Experts,
    "mixture, best expert": lambda: Experts(top=True),
    "tied weights": Tied,
    "shared module": lambda: (lambda m: nn.Sequential(m, nn.ReLU(), m, nn.Linear(16, CLASSES)))(nn.Linear(16, 16)),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(CLASSES)),
    "buffer updated": base(update_buffer, lambda self: self.register_buffer("mean", torch.zeros(8))),
    "buffer replaced": base(replace_buffer, lambda self: self.register_buffer("mean", torch.zeros(8))),
    "frozen layer": base(Base.between, freeze),
    "unused layer": base(Base.between, lambda self: setattr(self, "unused", nn.Linear(2, 2))),
    "drawn attribute": base(lambda self, h: (h * self.mask).tanh(), draw_attribute),
    "straight-through by detach": base(lambda self, h: h + (h.sign() - h).detach()),
    "custom function": base(lambda self, h: StraightThrough.apply(h) + h),
    "checkpoint": base(lambda self, h: checkpoint(torch.tanh, h, use_reentrant=False)),
    "checkpoint, reentrant": base(lambda self, h: checkpoint(torch.tanh, h, use_reentrant=True)),
    "branch on a value": base(branch_on_value),
    "python counter": base(count, lambda self: setattr(self, "calls", 0)),
    "masked assignment": base(assign_below_zero),
    "tolist": base(read_list),
    "numpy": base(read_numpy),
    "one-hot": base(one_hot),
    "repeat interleave": base(tie_lengths),
    "unique": base(unique),
    "einsum": base(lambda self, h: torch.einsum("bi,bj->bij", h, h).mean(2)),
    "cumulative sum": base(lambda self, h: h.cumsum(1).tanh()),
    "sort": base(lambda self, h: h.sort(1).values),
    "top k": base(lambda self, h: F.pad(h.topk(3, 1).values, (0, 5))),
    "product": base(lambda self, h: h + h.prod(1, keepdim=True)),
    "matrix inverse": base(lambda self, h: torch.linalg.solve(torch.eye(8) * 3 + h[..., None] * h[:, None], h)),
    "complex spectrum": base(lambda self, h: torch.fft.fft(h).abs()),
    "negative view": base(lambda self, h: torch.fft.fft(h).conj().imag),
}

CLASS_TARGETS, REAL_TARGETS = "classes", "reals"

LOSSES = {
    "cross-entropy": (F.cross_entropy, CLASS_TARGETS),
    "nn.CrossEntropyLoss": (nn.CrossEntropyLoss(), CLASS_TARGETS),
    "label smoothing": (nn.CrossEntropyLoss(label_smoothing=0.1), CLASS_TARGETS),
    "weighted": (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)), CLASS_TARGETS),
    "sum": (lambda out, y: F.cross_entropy(out, y, reduction="sum"), CLASS_TARGETS),
    "negative log-likelihood": (lambda out, y: F.nll_loss(out.log_softmax(1), y), CLASS_TARGETS),
    "multi-margin": (F.multi_margin_loss, CLASS_TARGETS),
    "focal": (lambda out, y: ((1 - (p := out.softmax(1).gather(1, y[:, None]))) ** 2 * -p.log()).mean(), CLASS_TARGETS),
    "one-hot squared error": (lambda out, y: ((out - torch.eye(CLASSES)[y]) ** 2).mean(), CLASS_TARGETS),
    "mixup": (lambda out, y: 0.7 * F.cross_entropy(out, y) + 0.3 * F.cross_entropy(out, y.flip(0)), CLASS_TARGETS),
    "squared error": (F.mse_loss, REAL_TARGETS),
    "absolute error": (F.l1_loss, REAL_TARGETS),
    "Huber": (nn.HuberLoss(), REAL_TARGETS),
    "smooth L1": (F.smooth_l1_loss, REAL_TARGETS),
    "log-cosh": (lambda out, y: torch.log(torch.cosh(out - y)).mean(), REAL_TARGETS),
    "binary cross-entropy": (lambda out, y: F.binary_cross_entropy_with_logits(out, y.sigmoid()), REAL_TARGETS),
    "cosine": (lambda out, y: 1 - F.cosine_similarity(out, y).mean(), REAL_TARGETS),
}


class NormScaled(torch.optim.Optimizer):
    """A step of fixed length for each parameter: not elementwise, so one optimiser for all models is wrong."""

    def __init__(self, params, lr=1e-2):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * p.grad / (p.grad.norm() + 1e-8))


def decay_matrices(params):
    """Weight decay for what has two axes or more, as training recipes have it."""
    matrices = [p for p in params if p.ndim > 1]
    others = [p for p in params if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-2)


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "SGD, Nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "Adam, AMSGrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "AdamW, groups": decay_matrices,
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "Adadelta": torch.optim.Adadelta,
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
    "norm-scaled": NormScaled,
}


def draw_small_data():
    """160 examples of 16 numbers and four classes, of which 40 are to test."""
    g = np.random.default_rng(0)
    x = g.normal(size=(160, 16)).astype("float32")
    y = (x @ g.normal(size=(16, 4))).argmax(1)
    return {"x": x[:120], "y": y[:120], "x_test": x[120:], "y_test": y[120:]}


def run_plainly(build, seeds, data, steps, loss=F.cross_entropy, schedule=None, optimizer=None):
    """A loop as anybody writes it: last training loss, test accuracy in percent and model of each seed."""
    found, n = [], len(data["x"])
    x, x_test = (torch.as_tensor(data[k], dtype=torch.float32) for k in ("x", "x_test"))
    y, y_test = (torch.as_tensor(data[k]) for k in ("y", "y_test"))
    for seed in seeds:
        set_seed(seed)
        model = build().train()
        opt = optimizer(model.parameters()) if optimizer else torch.optim.Adam(model.parameters(), lr=0.01)
        rate = opt.param_groups[0]["lr"]
        for step in range(steps):
            opt.param_groups[0]["lr"] = rate * (schedule(step) if schedule else 1.0)
            rows = (torch.arange(20) + 20 * step) % n
            opt.zero_grad()
            value = loss(model(x[rows]), y[rows])
            value.backward()
            opt.step()
        with torch.no_grad():
            out = model.eval()(x_test)
        right = (out.argmax(-1) == y_test).double().mean().item() if y_test.ndim == 1 else math.nan
        found.append((value.item(), 100 * right, model))
    return found


def check_seeds(
    data,
    build,
    *,
    seeds=([3], [3, 4]),
    reset=lambda: None,
    make_loss=lambda: F.cross_entropy,
    steps=60,
    optimizer=functools.partial(torch.optim.Adam, lr=0.01),
    schedule=None,
    eval_every=60,
):
    """`train` against a loop that has a loss of its own for every seed, for each list of seeds."""
    given = {"optimizer": optimizer, "schedule": schedule}
    for some in seeds:
        reset()
        plain = [run_plainly(build, [s], data, steps, loss=make_loss(), **given)[0][:2] for s in some]
        reset()
        history = train(build, data, some, steps=steps, batch_size=20, loss=make_loss(), eval_every=eval_every, **given)
        np.testing.assert_allclose(history["train_loss"][:, -1], [loss for loss, _ in plain], rtol=2e-4, atol=1e-5)
        if eval_every:
            np.testing.assert_allclose(history["test_acc"][:, -1], [acc for _, acc in plain], atol=1e-6)
