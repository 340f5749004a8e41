"""The four models of Table 1, and layers that stay fast when small models, or many, are trained on a CPU.

Every module here is an ordinary ``torch.nn.Module`` on inputs (batch, length). :class:`ModelStack`
turns any such module into many copies with different seeds that run as one.
"""

import copy

import torch
from torch import nn
from torch.autograd import Function
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

__all__ = [
    "CNN",
    "GRU",
    "MLP",
    "MODELS",
    "Convolution",
    "Convolution2d",
    "Logistic",
    "ModelStack",
    "count_parameters",
]


def count_parameters(model):
    """Number of trainable numbers in a module."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


class Logistic(nn.Module):
    """Multinomial logistic regression: 410 parameters."""

    def __init__(self, length=40, classes=10):
        super().__init__()
        self.linear = nn.Linear(length, classes)

    def forward(self, x):
        return self.linear(x)


class MLP(nn.Module):
    """Multilayer perceptron 40-100-100-10 whose second layer is residual: 15,210 parameters."""

    def __init__(self, length=40, hidden=100, classes=10):
        super().__init__()
        self.linear1 = nn.Linear(length, hidden)
        self.linear2 = nn.Linear(hidden, hidden)
        self.linear3 = nn.Linear(hidden, classes)

    def forward(self, x):
        h = self.linear1(x).relu()
        h = h + self.linear2(h).relu()
        return self.linear3(h)


class _Windows(Function):
    """The neighbourhoods that a convolution reads: (channel, position, example) to (tap * channel, window, example).

    Its own backward pass adds each tap's gradient in place, where autograd would pad every tap to full size.
    """

    @staticmethod
    def get_taps(length, size, stride, padding):
        """For each tap: the range of windows in which it lies inside the signal, and its positions there."""
        n = (length + 2 * padding - size) // stride + 1
        for tap in range(size):
            first = max(0, -((tap - padding) // stride))
            last = min(n, (length - 1 - tap + padding) // stride + 1)
            start = first * stride + tap - padding
            yield first, last, slice(start, start + (last - first - 1) * stride + 1, stride)

    @staticmethod
    def forward(x, size, stride, padding):
        *lead, channels, length, batch = x.shape  # vmap adds the axis of models in front
        n = (length + 2 * padding - size) // stride + 1
        out = x.new_empty(*lead, size, channels, n, batch)
        for shifted, (first, last, at) in zip(
            out.unbind(-4), _Windows.get_taps(length, size, stride, padding), strict=True
        ):
            for outside in (shifted[..., :first, :], shifted[..., last:, :]):
                if outside.numel():
                    outside.zero_()
            shifted[..., first:last, :].copy_(x[..., at, :])
        return out.flatten(-4, -3)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, *ctx.geometry = inputs
        ctx.shape = x.shape

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        grad_x = grad.new_zeros(ctx.shape)
        taps = grad.unflatten(-3, (ctx.geometry[0], -1)).unbind(-4)
        for tap, (first, last, at) in zip(taps, _Windows.get_taps(ctx.shape[-2], *ctx.geometry), strict=True):
            grad_x[..., at, :].add_(tap[..., first:last, :])
        return grad_x, None, None, None

    @staticmethod
    def vmap(info, in_dims, x, *geometry):
        return _Windows.apply(x.movedim(in_dims[0], 0), *geometry), 0


class Convolution(nn.Conv1d):
    """``nn.Conv1d`` (dilation and groups 1, zero padding) on tensors (channel, position, example).

    The same parameters and results, as one matrix product with shifted copies of the signal, each copied
    in runs of a whole batch. Under `vmap` it is a batched product; a training step of five CNNs takes half
    the time that it takes with grouped convolutions on the CPU.
    """

    def forward(self, x):
        windows = _Windows.apply(x, self.kernel_size[0], self.stride[0], self.padding[0])
        out = self.weight.transpose(1, 2).flatten(1) @ windows.flatten(1)  # (out, window * example)
        if self.bias is not None:
            out = out + self.bias[:, None]
        return out.unflatten(1, windows.shape[1:])


class _RowConvolution(Function):
    """A convolution over tensors (row, channel, column, example), without its bias.

    Only the columns of a window are copied. Its rows lie one after the other in memory already, so that the
    windows of one row of outputs are a matrix, and those of the next row the same matrix some rows further down.
    """

    @staticmethod
    def get_windows(columns, size, stride):
        """One matrix (row * tap * channel, column * example) for every row of outputs, where they lie."""
        rows, height, width = columns.shape
        n = (rows - size) // stride + 1
        return columns.as_strided((n, size * height, width), (stride * height * width, width, 1))

    @staticmethod
    def forward(x, weight, stride, padding):
        rows, channels, length, batch = x.shape
        size = weight.shape[-1]
        n = (length + 2 * padding - size) // stride + 1
        columns = x.new_zeros(rows + 2 * padding, size, channels, n, batch)
        inside = columns.narrow(0, padding, rows).unbind(1)
        for tap, (first, last, at) in zip(inside, _Windows.get_taps(length, size, stride, padding), strict=True):
            tap[:, :, first:last].copy_(x[:, :, at])
        columns = columns.flatten(1, 2).flatten(2)
        windows = _RowConvolution.get_windows(columns, weight.shape[-2], stride)
        matrix = weight.permute(0, 2, 3, 1).flatten(1).expand(len(windows), -1, -1)
        return (matrix @ windows).unflatten(2, (n, batch)), columns

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, *ctx.geometry = inputs
        ctx.shape = x.shape
        ctx.save_for_backward(weight, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, _):
        weight, columns = ctx.saved_tensors
        (stride, padding), (rows, _, length, _) = ctx.geometry, ctx.shape
        n_rows, n, (size_rows, size) = len(grad), grad.shape[2], weight.shape[2:]
        grad = grad.flatten(2)  # (row, out, column * example)
        windows = _RowConvolution.get_windows(columns, size_rows, stride)
        grad_weight = (grad @ windows.transpose(1, 2)).sum(0).unflatten(1, (size_rows, size, -1)).permute(0, 3, 1, 2)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None, None
        grad_columns = torch.zeros_like(columns)
        for row, matrix in enumerate(weight.permute(2, 3, 1, 0).flatten(1, 2)):  # (tap * channel, out)
            read = grad_columns[row : row + stride * (n_rows - 1) + 1 : stride]
            read.baddbmm_(matrix.expand(n_rows, -1, -1), grad)
        grad_x = grad.new_zeros(ctx.shape)
        inside = grad_columns.narrow(0, padding, rows).unflatten(2, (n, -1)).unflatten(1, (size, -1)).unbind(1)
        for tap, (first, last, at) in zip(inside, _Windows.get_taps(length, size, stride, padding), strict=True):
            grad_x[:, :, at].add_(tap[:, :, first:last])
        return grad_x, grad_weight, None, None

    @staticmethod
    def vmap(info, in_dims, *args):
        axes = zip(args, in_dims, strict=True)
        args = [[arg] * info.batch_size if dim is None else arg.unbind(dim) for arg, dim in axes]
        outs = [_RowConvolution.apply(*model) for model in zip(*args, strict=True)]
        return tuple(torch.stack(parts) for parts in zip(*outs, strict=True)), (0, 0)


class Convolution2d(nn.Conv2d):
    """``nn.Conv2d`` (dilation and groups 1, equal strides, equal zero paddings) on (row, channel, column, example).

    The same parameters and results, as one matrix product for each row of outputs. With the few channels of
    small networks a training step takes two thirds of the time that it takes with ``nn.Conv2d`` on the CPU.
    """

    def forward(self, x):
        out, _ = _RowConvolution.apply(x.contiguous(), self.weight, self.stride[0], self.padding[0])
        return out if self.bias is None else out + self.bias[:, None, None]


class CNN(nn.Module):
    """Three convolutions of stride 2 and 25 channels, and a linear readout: 5,210 parameters."""

    def __init__(self, length=40, channels=25, classes=10):
        super().__init__()
        self.conv1 = Convolution(1, channels, 5, stride=2, padding=1)
        self.conv2 = Convolution(channels, channels, 3, stride=2, padding=1)
        self.conv3 = Convolution(channels, channels, 3, stride=2, padding=1)
        for kernel in (5, 3, 3):
            length = (length + 2 - kernel) // 2 + 1
        self.linear = nn.Linear(channels * length, classes)

    def forward(self, x):
        h = self.conv1(x.t().unsqueeze(0)).relu()  # (channel, position, example)
        h = self.conv2(h).relu()
        h = self.conv3(h).relu()
        return (self.linear.weight @ h.flatten(0, 1) + self.linear.bias[:, None]).t()  # the gradient stays contiguous


class _GRUScan(Function):
    """The recurrence of a GRU over many independent sequences, with its gradient written out.

    Gates lie along one axis in torch's order: reset, update, new. With h' = n + z (h - n), the
    gradient that reaches a gate is the one that reaches h' times a factor of the forward pass alone,
    so that the backward recurrence is one elementwise product and one matrix product a step.
    """

    @staticmethod
    def forward(x, w_input, w_hidden, b_input, b_new):
        # x (time, model, feature, batch), w_input (model, gate, feature), w_hidden (model, gate, hidden),
        # b_input (model, gate, 1), b_new (model, hidden, 1)
        size = w_hidden.shape[-1]
        reset_update = torch.matmul(w_input[:, : 2 * size], x).add_(b_input[:, : 2 * size])
        new = torch.matmul(w_input[:, 2 * size :], x).add_(b_input[:, 2 * size :])
        recurrent = torch.empty_like(new)  # what the reset gate multiplies
        hidden = new.new_zeros(len(x) + 1, *new.shape[1:])
        w_gates, w_new = w_hidden.split(2 * size, 1)
        before, after = hidden[:-1].unbind(), hidden[1:].unbind()
        steps = (reset_update, *reset_update.split(size, 2), recurrent, new)
        for h, h_next, both, reset, update, r, n in zip(before, after, *(t.unbind() for t in steps), strict=True):
            both.baddbmm_(w_gates, h).sigmoid_()
            torch.baddbmm(b_new, w_new, h, out=r)
            n.addcmul_(reset, r).tanh_()
            torch.lerp(n, h, update, out=h_next)
        return hidden[1:].clone(), hidden, reset_update, new, recurrent

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:3], *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output, *_):
        x, w_input, w_hidden, hidden, reset_update, new, recurrent = ctx.saved_tensors
        size = w_hidden.shape[-1]
        reset, update = reset_update.split(size, 2)
        keep = 1 - update
        to_new = keep * (1 - new * new)
        factors = new.new_empty(*new.shape[:2], 3, *new.shape[2:])  # (time, model, gate, hidden, batch)
        to_reset, to_update, to_recurrent = factors.unbind(2)
        torch.mul(to_new * recurrent * reset, 1 - reset, out=to_reset)
        torch.mul((hidden[:-1] - new) * update, keep, out=to_update)
        torch.mul(to_new, reset, out=to_recurrent)

        grad_hidden = torch.empty_like(new)
        grad_gates = torch.empty_like(factors)
        carried = torch.zeros_like(new[0])  # the gradient that reaches h' from the next step
        transposed = w_hidden.transpose(1, 2)
        steps = (
            grad_output,
            update,
            grad_hidden,
            grad_hidden.unsqueeze(2),
            factors,
            grad_gates,
            grad_gates.flatten(2, 3),
        )
        for grad, u, g, g_gate, factor, gates, gates_flat in reversed(
            list(zip(*(t.unbind() for t in steps), strict=True))
        ):
            torch.add(grad, carried, out=g)
            torch.mul(factor, g_gate, out=gates)
            torch.mul(g, u, out=carried)
            carried.baddbmm_(transposed, gates_flat)

        grad_gates = grad_gates.flatten(2, 3)
        grad_w_hidden = (grad_gates @ hidden[:-1].transpose(2, 3)).sum(0)
        grad_b_new = grad_gates[:, :, 2 * size :].sum((0, 3)).unsqueeze(-1)
        # Beyond the reset gate the input's path is the same but for the new gate, which it enters directly.
        torch.mul(to_new, grad_hidden, out=grad_gates[:, :, 2 * size :])
        grad_w_input = (grad_gates @ x.transpose(2, 3)).sum(0)
        grad_b_input = grad_gates.sum((0, 3)).unsqueeze(-1)
        grad_x = w_input.transpose(1, 2) @ grad_gates if ctx.needs_input_grad[0] else None
        return grad_x, grad_w_input, grad_w_hidden, grad_b_input, grad_b_new

    @staticmethod
    def vmap(info, in_dims, *args):
        sizes = (info.batch_size, args[1].shape[0] if in_dims[1] is None else args[1].movedim(in_dims[1], 0).shape[1])
        folded = []
        for i, (arg, dim) in enumerate(zip(args, in_dims, strict=True)):
            model_axis = 1 if i == 0 else 0
            arg = arg.unsqueeze(0).expand(sizes[0], *arg.shape) if dim is None else arg.movedim(dim, 0)
            folded.append(arg.movedim(0, model_axis).flatten(model_axis, model_axis + 1))
        return tuple(out.unflatten(1, sizes) for out in _GRUScan.apply(*folded)), (1,) * 5


class GRU(nn.Module):
    """Bidirectional GRU of 6 units that reads one number a step; linear readout of all states: 5,134 parameters.

    The parameters are those of an ``nn.GRU``, which `vmap` cannot run; the recurrence is written here
    so that the directions and all models of a stack share each step's overhead.

    Parameters
    ----------
    length, hidden, classes : int
    features : int
        Numbers read a step: 28 reads an MNIST image row by row.
    """

    def __init__(self, length=40, hidden=6, classes=10, features=1):
        super().__init__()
        self.gru = nn.GRU(features, hidden, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * hidden * (length // features), classes)

    def forward(self, x):
        def both(name):
            return torch.stack([getattr(self.gru, name), getattr(self.gru, name + "_reverse")])

        x = x.unflatten(-1, (-1, self.gru.input_size)).permute(1, 2, 0)  # (time, feature, batch)
        x = torch.stack([x, x.flip(0)], 1)  # (time, direction, feature, batch)
        size = self.gru.hidden_size
        bias = both("bias_hh_l0")
        bias_input = both("bias_ih_l0") + F.pad(bias[:, : 2 * size], (0, size))
        weights = both("weight_ih_l0"), both("weight_hh_l0"), bias_input.unsqueeze(-1), bias[:, 2 * size :, None]
        hidden, *_ = _GRUScan.apply(x, *weights)
        forward, backward = hidden.unbind(1)  # (time, hidden, batch)
        states = torch.cat([forward, backward.flip(0)], 1)
        return self.linear(states.permute(2, 0, 1).flatten(1))


MODELS = {"logistic": Logistic, "MLP": MLP, "CNN": CNN, "GRU": GRU}


class ModelStack:
    """Copies of one architecture, one per seed, evaluated together by `vmap`.

    Parameters
    ----------
    build : callable
        ``build()`` returns an ``nn.Module`` that maps one model's batch to its output.
    seeds : sequence of int
        Copy i is built after ``torch.manual_seed(seeds[i])``; the global state is left as it was.
    device : torch.device or str, optional

    Attributes
    ----------
    params, buffers : dict of str to Tensor
        The state of all copies, each tensor with a leading axis [seed].
    """

    def __init__(self, build, seeds, device="cpu"):
        modules = []
        with torch.random.fork_rng(devices=[]):
            for seed in seeds:
                torch.manual_seed(seed)
                modules.append(build().to(device))
        self.params, self.buffers = stack_module_state(modules)
        self.module = modules[0]
        self._forward = vmap(self._call_one, randomness="different")

    def _call_one(self, params, buffers, x):
        return functional_call(self.module, (params, buffers), (x,))

    def __call__(self, x):  # (seed, batch, ...) -> (seed, batch, ...)
        return self.apply(self.params, x)

    def apply(self, params, x):
        """The outputs of all copies with other parameters, given as `params` is."""
        if len(x) == 1:  # vmap would only cost time
            first, buffers = ({name: t[0] for name, t in state.items()} for state in (params, self.buffers))
            out = self._call_one(first, buffers, x[0])
            return out.unsqueeze(0) if isinstance(out, torch.Tensor) else [o.unsqueeze(0) for o in out]
        return self._forward(params, self.buffers, x)

    def get_module(self, i):
        """Copy i as a module of its own, its state shared with nothing."""
        state = {name: value[i].detach().clone() for name, value in {**self.params, **self.buffers}.items()}
        module = copy.deepcopy(self.module)
        module.load_state_dict(state)
        return module
