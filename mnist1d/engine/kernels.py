"""What torch's convolutions, pools, batch norms, linear layers and `nn.GRU` compute, for many small models on a CPU.

The parameters and results are those of torch's layers, to rounding; only the order in memory is another:
it runs along the examples of a batch, the longest axis. A layer that a kernel does not cover (groups, padding
modes, dilated images, unequal strides, padded pooling, an initial state) runs as torch wrote it.
"""

import functools
from contextlib import contextmanager

import torch
from torch import nn
from torch.autograd import Function
from torch.nn import functional as F

__all__ = ["find_layers", "swapped"]


def _of_first_order(backward):
    """A backward pass without a gradient of its own: where one is asked for, an error, and torch's layer takes over."""

    @functools.wraps(backward)
    def run(ctx, *grads):
        if torch.is_grad_enabled():
            raise RuntimeError("a second derivative is asked of a kernel, which has none")
        return backward(ctx, *grads)

    return run


class _Windows(Function):
    """The neighbourhoods that a convolution reads: (channel, position, example) to (tap * channel, window, example).

    Its own backward pass adds each tap's gradient in place, where autograd would pad every tap to full size.
    """

    @staticmethod
    def count(length, size, stride, padding, dilation):
        """The number of windows."""
        return (length + 2 * padding - dilation * (size - 1) - 1) // stride + 1

    @staticmethod
    def get_taps(length, size, stride, padding, dilation=1):
        """For each tap: the range of windows in which it lies inside the signal, and its positions there."""
        n = _Windows.count(length, size, stride, padding, dilation)
        for tap in range(0, dilation * size, dilation):
            first = max(0, -((tap - padding) // stride))
            last = max(first, min(n, (length - 1 - tap + padding) // stride + 1))
            start = first * stride + tap - padding
            yield first, last, slice(start, max(start, start + (last - first - 1) * stride + 1), stride)

    @staticmethod
    def forward(x, size, *geometry):
        *lead, channels, length, batch = x.shape  # vmap adds the axis of models in front
        out = x.new_empty(*lead, size, channels, _Windows.count(length, size, *geometry), batch)
        for shifted, (first, last, at) in zip(out.unbind(-4), _Windows.get_taps(length, size, *geometry), strict=True):
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
    @_of_first_order
    def backward(ctx, grad):
        grad_x = grad.new_zeros(ctx.shape)
        taps = grad.unflatten(-3, (ctx.geometry[0], -1)).unbind(-4)
        for tap, (first, last, at) in zip(taps, _Windows.get_taps(ctx.shape[-2], *ctx.geometry), strict=True):
            grad_x[..., at, :].add_(tap[..., first:last, :])
        return grad_x, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, x, *geometry):
        return _Windows.apply(x.movedim(in_dims[0], 0), *geometry), 0


class _Pool(Function):
    """The maximum or the mean of every window: (channel, position, example) to (channel, window, example)."""

    @staticmethod
    def get_taps(length, size, stride):
        n = (length - size) // stride + 1
        return [slice(tap, tap + (n - 1) * stride + 1, stride) for tap in range(size)]

    @staticmethod
    def forward(x, size, stride, take_maximum):
        first, *others = (x[..., at, :] for at in _Pool.get_taps(x.shape[-2], size, stride))
        out, larger = first, []  # for each further tap: where it is above all before it
        for tap in others:
            if take_maximum:
                larger.append(tap > out)
            out = torch.maximum(out, tap) if take_maximum else out + tap
        return (out if take_maximum and others else out / size), *larger

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, *ctx.geometry = inputs
        ctx.shape = x.shape
        ctx.save_for_backward(*output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    @_of_first_order
    def backward(ctx, grad, *_):
        size, stride, take_maximum = ctx.geometry
        first, *others = _Pool.get_taps(ctx.shape[-2], size, stride)
        is_tiled = stride == size and ctx.shape[-2] % size == 0  # every position lies in one window
        grad_x = grad.new_empty(ctx.shape) if is_tiled else grad.new_zeros(ctx.shape)
        write = torch.Tensor.copy_ if is_tiled else torch.Tensor.add_
        grad = grad if take_maximum else grad / size
        for at, larger in zip(reversed(others), reversed(ctx.saved_tensors or [None] * len(others)), strict=True):
            part = grad if larger is None else grad * larger
            write(grad_x[..., at, :], part)
            grad = grad if larger is None else grad - part
        write(grad_x[..., first, :], grad)
        return grad_x, None, None, None

    @staticmethod
    def vmap(info, in_dims, x, size, stride, take_maximum):
        outs = _Pool.apply(x.movedim(in_dims[0], 0), size, stride, take_maximum)
        return outs, (0,) * len(outs)


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
    @_of_first_order
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
    @_of_first_order
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


def _is_plain(layer):
    """Whether a convolution is without groups and special padding, alike along its axes, and dilated in 1d at most."""
    same = [len(set(sizes)) == 1 for sizes in (layer.stride, layer.dilation)]
    zeros = layer.padding_mode == "zeros" and not isinstance(layer.padding, str) and len(set(layer.padding)) == 1
    dilated = type(layer) is nn.Conv1d or layer.dilation[0] == 1
    return layer.groups == 1 and dilated and zeros and all(same)


def _convolve1d(layer, x):
    """`nn.Conv1d` on x (example, channel, position), as one matrix product with shifted copies of the signal."""
    if x.ndim != 3 or x.is_complex():
        return type(layer).forward(layer, x)
    geometry = (sizes[0] for sizes in (layer.kernel_size, layer.stride, layer.padding, layer.dilation))
    windows = _Windows.apply(x.permute(1, 2, 0), *geometry)
    out = layer.weight.transpose(1, 2).flatten(1) @ windows.flatten(1)  # (out, window * example)
    if layer.bias is not None:
        out = out + layer.bias[:, None]
    return out.unflatten(1, windows.shape[1:]).permute(2, 0, 1)


def _convolve2d(layer, x):
    """`nn.Conv2d` on x (example, channel, row, column), as one matrix product for each row of outputs."""
    if x.ndim != 4 or x.is_complex():
        return type(layer).forward(layer, x)
    rows = x.permute(2, 1, 3, 0).contiguous()  # (row, channel, column, example)
    out, _ = _RowConvolution.apply(rows, layer.weight, layer.stride[0], layer.padding[0])
    if layer.bias is not None:
        out = out + layer.bias[:, None, None]
    return out.permute(3, 1, 0, 2)


def _apply_linear(layer, x):
    """`nn.Linear` on what convolutions put out, flattened: its gradient then lies in memory as they need it."""
    if x.ndim != 2 or x.stride(0) != 1 or x.stride(1) == 1:
        return type(layer).forward(layer, x)
    out = layer.weight @ x.permute(1, 0)
    return (out if layer.bias is None else out + layer.bias[:, None]).permute(1, 0)


def _normalize(layer, x):
    """`nn.BatchNorm1d` on what a kernel puts out, as one long signal: its statistics join positions and examples."""
    if x.ndim != 3 or x.stride(0) != 1 or x.stride(-1) == 1:
        return type(layer).forward(layer, x)
    rows = x.permute(1, 2, 0)  # (channel, position, example)
    out = type(layer).forward(layer, rows.flatten(1).unsqueeze(0))
    return out.squeeze(0).unflatten(1, rows.shape[1:]).permute(2, 0, 1)


def _drop(layer, x):
    """`nn.Dropout` on what a kernel puts out: the numbers are drawn in torch's order of memory."""
    is_ours = x.ndim > 1 and x.stride(0) == 1 and x.stride(-1) != 1
    return type(layer).forward(layer, x.contiguous() if is_ours and layer.training else x)


def _pool1d(layer, x):
    """`nn.MaxPool1d` or `nn.AvgPool1d` on x (example, channel, position)."""
    size, stride = (n[0] if isinstance(n, tuple) else n for n in (layer.kernel_size, layer.stride))
    if x.ndim != 3 or x.is_complex() or x.shape[-1] < size:
        return type(layer).forward(layer, x)
    out, *_ = _Pool.apply(x.permute(1, 2, 0), size, stride, type(layer) is nn.MaxPool1d)
    return out.permute(2, 0, 1)


def _pool1d_by_power(layer, x):
    """`nn.LPPool1d` on x (example, channel, position): the root of the summed powers, as torch computes it."""
    size, stride, power = layer.kernel_size, layer.stride or layer.kernel_size, float(layer.norm_type)
    if x.ndim != 3 or x.is_complex() or x.shape[-1] < size:
        return type(layer).forward(layer, x)
    mean, *_ = _Pool.apply(x.pow(power).permute(1, 2, 0), size, stride, False)
    return (mean.sign() * mean.abs().relu()).mul(size).pow(1 / power).permute(2, 0, 1)


def _pool2d(layer, x):
    """`nn.MaxPool2d` on x (example, channel, row, column): along columns, then rows, as torch breaks ties."""
    size, stride = layer.kernel_size, layer.stride
    if x.ndim != 4 or min(x.shape[2:]) < size:
        return type(layer).forward(layer, x)
    narrow, *_ = _Pool.apply(x.permute(2, 1, 3, 0), size, stride, True)  # (row, channel, column, example)
    out, *_ = _Pool.apply(narrow.flatten(1), size, stride, True)
    return out.unflatten(1, narrow.shape[1:]).permute(3, 1, 0, 2)


def _is_plain_pool2d(layer):
    if type(layer) is not nn.MaxPool2d or layer.padding or layer.ceil_mode or layer.return_indices:
        return False
    return layer.dilation == 1 and isinstance(layer.kernel_size, int) and isinstance(layer.stride, int)


def _is_plain_pool(layer):
    zero = (0, (0,))
    if type(layer) is nn.MaxPool1d:
        return layer.padding in zero and layer.dilation in (1, (1,)) and not (layer.ceil_mode or layer.return_indices)
    return type(layer) is nn.AvgPool1d and layer.padding in zero and not layer.ceil_mode


def _run_gru(layer, x, hx=None):
    """`nn.GRU` on x (time, example, feature) or, with batch_first, (example, time, feature)."""
    if hx is not None or not isinstance(x, torch.Tensor) or x.ndim != 3:
        return type(layer).forward(layer, x, hx)
    x = x.permute(1, 2, 0) if layer.batch_first else x.permute(0, 2, 1)  # (time, feature, example)
    size, ends = layer.hidden_size, []
    suffixes = ("", "_reverse") if layer.bidirectional else ("",)
    for depth in range(layer.num_layers):
        weights = [
            torch.stack([getattr(layer, f"{name}_l{depth}{suffix}") for suffix in suffixes])
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]
        w_input, w_hidden, bias_input, bias = weights
        bias_input = (bias_input + F.pad(bias[:, : 2 * size], (0, size))).unsqueeze(-1)
        both = torch.stack([x, x.flip(0)][: len(suffixes)], 1)  # (time, direction, feature, example)
        hidden, *_ = _GRUScan.apply(both, w_input, w_hidden, bias_input, bias[:, 2 * size :, None])
        ends += hidden[-1].unbind(0)
        directions = hidden.unbind(1)  # (time, hidden, example)
        x = torch.cat([directions[0], *(states.flip(0) for states in directions[1:])], 1)
    out = x.permute(2, 0, 1) if layer.batch_first else x.permute(0, 2, 1)
    return out, torch.stack(ends).transpose(1, 2)


def find_layers(module):
    """The layers of a module that a kernel can run, each with its kernel.

    Parameters
    ----------
    module : nn.Module

    Returns
    -------
    list of (nn.Module, callable)
    """
    found = []
    for layer in module.modules():
        if "forward" in vars(layer):  # somebody has put one of his own in its place
            continue
        if type(layer) is nn.Conv1d and _is_plain(layer):
            found.append((layer, _convolve1d))
        elif type(layer) is nn.Conv2d and _is_plain(layer):
            found.append((layer, _convolve2d))
        elif type(layer) is nn.Linear:
            found.append((layer, _apply_linear))
        elif type(layer) is nn.BatchNorm1d:
            found.append((layer, _normalize))
        elif type(layer) is nn.Dropout and not layer.inplace:
            found.append((layer, _drop))
        elif _is_plain_pool(layer):
            found.append((layer, _pool1d))
        elif type(layer) is nn.LPPool1d and isinstance(layer.kernel_size, int) and not layer.ceil_mode:
            found.append((layer, _pool1d_by_power))
        elif _is_plain_pool2d(layer):
            found.append((layer, _pool2d))
        elif type(layer) is nn.GRU and layer.bias and not layer.dropout:
            found.append((layer, _run_gru))
    return found


@contextmanager
def swapped(layers):
    """Let kernels run the layers that :func:`find_layers` found, as long as the block lasts."""
    for layer, kernel in layers:
        layer.forward = kernel.__get__(layer)
    try:
        yield
    finally:
        for layer, _ in layers:
            del layer.forward
