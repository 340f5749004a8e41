"""Record the operations of a training step once, plan their memory, and replay them.

On networks of this size much of a step goes to finding out what to compute: modules, `vmap` and autograd
decide it anew for every batch. A recording is the flat list of operations they arrive at, with the tensors
that these read and write. A replay runs them on the same tensors again, and so makes no tensor and no view.
"""

import functools

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["record_backward"]

aten = torch.ops.aten
EMPTY = {aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default}
ZEROS = {aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default}
COPIES = {aten.clone.default, aten._to_copy.default}
# torch's own functions that take all that the variants of these operations take.
WITH_OUT = {"add", "addcmul", "baddbmm", "bmm", "cat", "div", "exp", "lerp", "maximum", "mm", "mul", "neg", "sub"}


def _with_tensor(function, x, number):
    return function(x, aten.scalar_tensor(number, dtype=x.dtype, device=x.device))


def _slice_backward(grad, shape, axis, start, end, step):
    out = grad.new_zeros(shape)
    aten.slice(out, axis, start, end, step).copy_(grad)
    return out


def _pad(x, widths, value=0):
    shape, inner = list(x.shape), []
    for axis, (left, right) in enumerate(zip(widths[::2], widths[1::2], strict=True), 1):  # from the last
        x = x.narrow(-axis, max(0, -left), x.shape[-axis] + min(0, left) + min(0, right))
        shape[-axis] += left + right
        inner.append((-axis, max(0, left), x.shape[-axis]))
    out = x.new_zeros(shape)
    if value:
        out.fill_(value)
    functools.reduce(lambda part, where: part.narrow(*where), inner, out).copy_(x)
    return out


# Operations that torch can only make new tensors with, in terms of others that give the same numbers.
DECOMPOSITIONS = {
    aten.mul.Scalar: functools.partial(_with_tensor, aten.mul.Tensor),
    aten.div.Scalar: functools.partial(_with_tensor, aten.div.Tensor),
    aten.rsub.Scalar: functools.partial(_with_tensor, lambda x, number: number - x),
    aten.slice_backward.default: _slice_backward,
    aten.constant_pad_nd.default: _pad,
}


def _get_tensors(nested):
    return [t for t in tree_leaves(nested) if isinstance(t, torch.Tensor) and t.numel()]


def _get_address(tensor):
    return tensor.untyped_storage().data_ptr()


def _get_layout(tensor):
    return _get_address(tensor), tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride()


class _Call:
    """An operation, the tensors that it read and made, and the addresses of their storages."""

    def __init__(self, function, args, kwargs, outputs):
        self.function, self.args, self.kwargs, self.outputs = function, args, kwargs, outputs
        self.reads = {_get_address(t) for t in _get_tensors((args, kwargs))}
        self.makes = {_get_address(t) for t in _get_tensors(outputs)} - self.reads
        # Of an operation in place any argument may be the one that it changes.
        self.changes = self.reads if function._schema.is_mutable else set()


class _Recorder(TorchDispatchMode):
    """Note every operation that runs, below vmap and autograd."""

    def __init__(self):
        super().__init__()
        self.calls = []  # views too: they keep all tensors, so that no two storages have the same address
        self.transposed, self.products = {}, {}  # by layout: what a tensor is the transpose of, or the product of

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in DECOMPOSITIONS:
            with self:
                return DECOMPOSITIONS[function](*args, **(kwargs or {}))
        is_transpose = function is aten.transpose.int and args[1:] == (1, 2)
        if is_transpose and _get_layout(args[0]) in self.products:
            # Autograd finds the gradient of a linear layer's weights as (A' B)': B' A needs no copy.
            a, b = self.products[_get_layout(args[0])]
            return self.__torch_dispatch__(aten.bmm.default, types, (b.transpose(1, 2), a))
        out = function(*args, **(kwargs or {}))
        outputs = out if isinstance(out, (tuple, list)) else (out,)
        for tensor in outputs:
            if not isinstance(tensor, torch.Tensor | None):
                raise RuntimeError(f"{function} reads the value {tensor}: a recorded loss must not depend on values")
        self.calls.append(_Call(function, args, kwargs or {}, outputs))
        if is_transpose:
            self.transposed[_get_layout(out)] = args[0]
        elif function is aten.bmm.default and _get_layout(args[0]) in self.transposed:
            self.products[_get_layout(out)] = self.transposed[_get_layout(args[0])], args[1]
        elif self.calls[-1].changes:  # what was a product may be none now
            self.products.clear()
        return out


def _select(calls, results):
    """The calls that a replay must repeat: no views, nothing that is not used or is the same every time."""
    made = set().union(*(call.makes for call in calls))
    needed, used = set(results), []
    for call in reversed(calls):
        if (call.makes | call.changes) & needed or call.changes - made:
            needed |= call.reads
            used.append(call)
    changed = results.union(*(call.changes for call in used))
    constant, selected = set(), []
    for call in reversed(used):
        is_random = torch.Tag.nondeterministic_seeded in call.function.tags
        if call.reads <= constant and not (is_random or call.changes or call.makes & changed):
            constant |= call.makes
        else:
            selected.append(call)
    return selected


def _can_overwrite(call, tensor):
    """Whether an operation goes through this argument and its output number by number, side by side."""
    together = [t for t in _get_tensors((call.args, call.kwargs)) if _get_address(t) == _get_address(tensor)]
    is_elementwise = torch.Tag.pointwise in call.function.tags and len(call.outputs) == 1
    return is_elementwise and all(_get_layout(t)[1:] == _get_layout(call.outputs[0])[1:] for t in together)


def _plan_memory(calls, results):
    """Where to put what the calls make: address to storage.

    What is not needed any more gives its memory to what comes next, and an elementwise operation writes over
    its argument, so that the same memory is used again while it is in the cache.
    """
    last = {address: i for i, call in enumerate(calls) for address in call.reads | call.makes}
    last |= dict.fromkeys(results)  # for ever
    place, free = {}, []
    for i, call in enumerate(calls):
        ending = {address for address in call.reads & place.keys() if last[address] == i}
        for tensor in _get_tensors(call.outputs):
            address, storage = _get_address(tensor), tensor.untyped_storage()
            if address not in call.makes or address in place:
                continue
            fitting = [s for s in reversed(free) if s.device == storage.device and s.nbytes() >= storage.nbytes()]
            over = [_get_address(t) for t in _get_tensors(call.args) if _can_overwrite(call, t)]
            over = [a for a in over if a in ending]
            if over:
                place[address] = place[over[0]]
                ending.remove(over[0])
            elif fitting:
                place[address] = min(fitting, key=lambda s: s.nbytes())
                free = [s for s in free if s is not place[address]]
            else:
                place[address] = storage
        ending |= {address for address in call.makes if last[address] == i}
        free += [place[address] for address in ending]
    return place


@functools.cache
def _find_out_variant(function):
    """The variant of an operation that writes into given tensors, and their names; None where there is none."""

    def describe(arguments):
        return [(a.name, str(a.type)) for a in arguments if not a.is_out]

    for name in function.overloadpacket.overloads():
        variant = getattr(function.overloadpacket, name)
        outs = [a.name for a in variant._schema.arguments if a.is_out]
        same = describe(variant._schema.arguments) == describe(function._schema.arguments)
        if same and len(outs) == len(function._schema.returns):
            return variant, outs
    return None


def _find_function(operation):
    """torch's own function for an operation, where there is one: it takes half the time to parse its arguments."""
    name = operation._schema.name.removeprefix("aten::")
    if operation._schema.arguments[-1].is_out:
        return getattr(torch, name) if name in WITH_OUT else operation
    return getattr(torch.Tensor, name, operation) if name.endswith("_") else operation


def _copy_results(outputs, function, *args, **kwargs):
    results = function(*args, **kwargs)
    for output, result in zip(outputs, results if isinstance(results, (tuple, list)) else (results,), strict=True):
        if output is not None:
            output.copy_(result)


def _make_step(call, move):
    """A function without arguments that repeats a call, its tensors moved to their places."""
    args, kwargs, outputs = tree_map_only(torch.Tensor, move, (call.args, call.kwargs, call.outputs))
    variant = _find_out_variant(call.function)
    if call.changes and not call.makes:
        return functools.partial(_find_function(call.function), *args, **kwargs)
    if call.function in ZEROS:
        return outputs[0].zero_
    if call.function in COPIES:
        return functools.partial(outputs[0].copy_, args[0])
    if variant is None or any(output is None for output in outputs):
        return functools.partial(_copy_results, outputs, call.function, *args, **kwargs)
    operation, names = variant
    return functools.partial(_find_function(operation), *args, **kwargs, **dict(zip(names, outputs, strict=True)))


def _plan(calls, results):
    """The steps of a replay, and the tensors, one for each of `results`, that hold the results after it."""
    addresses = {_get_address(t) for t in results}
    calls = _select(calls, addresses)
    place = _plan_memory(calls, addresses)

    def move(tensor):
        if _get_address(tensor) not in place:
            return tensor
        moved = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return moved.set_(place[_get_address(tensor)], tensor.storage_offset(), tensor.shape, tensor.stride())

    steps = [_make_step(call, move) for call in calls if call.function not in EMPTY]
    return steps, [move(result).copy_(result) for result in results]


def record_backward(loss):
    """The forward and backward pass of a loss, recorded once and replayed from then on.

    On a CPU a replay gives the same numbers as autograd, bit by bit.

    Parameters
    ----------
    loss : callable
        ``loss(params, *batch)`` returns losses (seed,). `params` is a dict of tensors and `batch` are tensors; what
        else it reads must not be replaced between calls, and it must neither branch on values nor set a seed.

    Returns
    -------
    callable
        ``backward(params, *batch)`` returns the losses, and leaves the gradient of their sum in every
        parameter's ``grad``, in place of what was there; the next call writes over it. There is one recording
        for each shape of the batch, and for each place in memory of parameters that require a gradient.

    Raises
    ------
    RuntimeError
        By ``backward``, if the loss reads the value of a tensor.
    """
    recorded = {}

    def run(names, values, batch):
        values = [value.requires_grad_() for value in values]
        losses = loss(dict(zip(names, values, strict=True)), *batch)
        grads = torch.autograd.grad(losses, values, torch.ones_like(losses), materialize_grads=True)
        return losses.detach(), *(grad.contiguous() for grad in grads)  # as the fused optimisers need them

    def backward(params, *batch):
        given = (*params.values(), *batch)
        # Parameters are read where they are; a batch is copied to the place of the first one.
        key = tuple((t.shape, t.dtype, t.device, t.requires_grad and (t.data_ptr(), t.stride())) for t in given)
        if key not in recorded:
            own = [t.detach() if t.requires_grad else t.clone(memory_format=torch.contiguous_format) for t in given]
            with _Recorder() as recorder:
                results = run(list(params), own[: len(params)], own[len(params) :])
            with torch.no_grad():
                recorded[key] = own, *_plan(recorder.calls, results)
            _, _, results = recorded[key]
        else:
            own, steps, results = recorded[key]
            with torch.no_grad():
                for place, tensor in zip(own, given, strict=True):
                    if not tensor.requires_grad:
                        place.copy_(tensor)
                for step in steps:
                    step()
        losses, *grads = results
        for param, grad in zip(params.values(), grads, strict=True):
            param.grad = grad if param.requires_grad else grad.clone()
        return losses.clone()

    return backward
