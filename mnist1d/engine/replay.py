"""Record the operations of a training step once and replay them.

On networks of this size much of a step goes to finding out what to compute: modules, `vmap` and autograd
decide it anew for every batch. A recording is the flat list of operations they arrive at, with the tensors
that these read and write; a replay runs them on the same tensors again. On CUDA a graph does the same.

A recording knows nothing of Python: whoever replays one must compare it with the real step, as `Stack` does.
"""

import functools
import threading
from contextlib import nullcontext

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["RefusedError", "Replay", "check_reads"]

aten = torch.ops.aten
EMPTY = {aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default}
ZEROS = {aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default}
WITHOUT_OUT = {
    aten.native_batch_norm.default,  # its out variant takes no notice of the output's strides
    *(getattr(aten, f"{name}_loss").default for name in ("mse", "smooth_l1", "huber")),  # these complain of its shape
    aten.binary_cross_entropy.default,  # these fill it with the terms of a sum first
    aten.soft_margin_loss.default,
}
COPIES = {aten.clone.default, aten._to_copy.default}
UNKNOWN_SHAPE = torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output
VALUE_READS = {"numpy", "tolist", "item", "__array__", "__bool__", "__float__", "__int__", "__index__", "__complex__"}
VALUE_READS |= {"__dlpack__", "__repr__", "__format__", "tensor_split"}
LEAVING = {"numpy", "tolist", "__array__", "__dlpack__"}  # of these, what torch does not see as an operation
FROM_VALUES = {"tensor", "as_tensor", "asarray", "new_tensor", "new"}  # read tensors in the lists that they are given


ORIGINALS = {name: getattr(torch.Tensor, name) for name in LEAVING}
INHERITED = LEAVING - vars(torch.Tensor).keys()
_LOCK, _RECORDING = threading.Lock(), []  # the threads that record


class RefusedError(RuntimeError):
    """A step cannot be recorded; the message says why."""


def _refuse_in_recording(name, method):
    @functools.wraps(method)
    def read(*args, **kwargs):
        if threading.get_ident() in _RECORDING:
            raise RefusedError(f"it reads the value of a tensor ({name})")
        return method(*args, **kwargs)

    return read


class _Reads(TorchFunctionMode):
    """Refuse what takes numbers out of torch: a recording would hold them for ever."""

    def __enter__(self):
        # A mode of torch's is off within a backward pass, where hooks and functions of one's own may read, too.
        with _LOCK:
            if not _RECORDING:
                for name, method in ORIGINALS.items():
                    setattr(torch.Tensor, name, _refuse_in_recording(name, method))
            _RECORDING.append(threading.get_ident())
        return super().__enter__()

    def __exit__(self, *args):
        with _LOCK:
            _RECORDING.remove(threading.get_ident())
            for name, method in ORIGINALS.items() if not _RECORDING else ():
                if name in INHERITED:
                    delattr(torch.Tensor, name)
                else:
                    setattr(torch.Tensor, name, method)
        return super().__exit__(*args)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        lists = [value for value in (*args, *(kwargs or {}).values()) if not isinstance(value, torch.Tensor)]
        if name in VALUE_READS or (name in FROM_VALUES and _get_tensors(lists)):
            raise RefusedError(f"it reads the value of a tensor ({name})")
        return function(*args, **(kwargs or {}))


def _get_tensors(nested):
    return [t for t in tree_leaves(nested) if isinstance(t, torch.Tensor) and t.numel()]


def _get_address(tensor):
    return tensor.untyped_storage().data_ptr()


def _get_layout(tensor):
    marks = tensor.is_conj(), tensor.is_neg()
    return _get_address(tensor), tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride(), marks


def _alias(nested):
    """The same tensors, of shapes and strides that stay."""
    return tree_map_only(torch.Tensor, torch.Tensor.detach, nested)


class _Call:
    """An operation, the tensors that it read and made, and the addresses of their storages."""

    def __init__(self, function, args, kwargs, outputs):
        self.function, self.args, self.kwargs, self.outputs = function, args, kwargs, outputs
        self.reads = {_get_address(t) for t in _get_tensors((args, kwargs))}
        self.makes = {_get_address(t) for t in _get_tensors(outputs)} - self.reads
        # Of an operation in place any argument may be the one that it changes.
        self.changes = self.reads if function._schema.is_mutable else set()


def _check_values(function, args):
    is_lookup = function is aten.index.Tensor and not any(
        index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    )  # by positions, not by a mask, whose number of rows would depend on its values
    if not is_lookup and any(tag in function.tags for tag in UNKNOWN_SHAPE):
        raise RefusedError(f"the shape or the value of what {function} gives depends on the data")


class _Watch(TorchDispatchMode):
    """Refuse what reads values, and keep nothing."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        _check_values(function, args)
        return function(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    """Note every operation that runs, below vmap and autograd."""

    def __init__(self):
        super().__init__()
        self.calls = []  # views too: they keep all tensors, so that no two storages have the same address
        self.transposed, self.products = {}, {}  # by layout: what a tensor is the transpose of, or the product of

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        _check_values(function, args)
        is_transpose = function is aten.transpose.int and args[1:] == (1, 2)
        if is_transpose and _get_layout(args[0]) in self.products:
            # Autograd finds the gradient of a linear layer's weights as (A' B)': B' A needs no copy.
            a, b = self.products[_get_layout(args[0])]
            return self.__torch_dispatch__(aten.bmm.default, types, (b.transpose(1, 2), a))
        given = _alias((args, kwargs or {}))  # an operation may transpose a tensor in place
        out = function(*args, **(kwargs or {}))
        outputs = out if isinstance(out, (tuple, list)) else (out,)
        if out is None and not function._schema.is_mutable:
            raise RefusedError(f"{function} looks whether something has failed")
        if any(not isinstance(tensor, torch.Tensor | None) for tensor in outputs):
            raise RefusedError(f"{function} gives something else than tensors")
        self.calls.append(_Call(function, *given, _alias(outputs)))
        if is_transpose:
            self.transposed[_get_layout(out)] = args[0]
        elif function is aten.bmm.default and _get_layout(args[0]) in self.transposed:
            self.products[_get_layout(out)] = self.transposed[_get_layout(args[0])], args[1]
        elif self.calls[-1].changes:  # what was a product may be none now
            self.products.clear()
        return out


def _is_random(call):
    return torch.Tag.nondeterministic_seeded in call.function.tags


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
        if call.reads <= constant and not (_is_random(call) or call.changes or call.makes & changed):
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
            over = [_get_address(t) for t in _get_tensors(call.args) if _can_overwrite(call, t)]
            over = [a for a in over if a in ending]
            fitting = [s for s in free if s.device == storage.device and s.nbytes() >= storage.nbytes()]
            if over:
                place[address] = place[over[0]]
                ending.remove(over[0])
            else:
                place[address] = min(reversed(fitting), key=lambda s: s.nbytes(), default=storage)
                free = [s for s in free if s is not place[address]]
        free += [place[address] for address in ending | {a for a in call.makes if last[a] == i}]
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


def _copy_results(outputs, function, *args, **kwargs):
    results = function(*args, **kwargs)
    for output, result in zip(outputs, results if isinstance(results, (tuple, list)) else (results,), strict=True):
        if output is not None:
            output.copy_(result)


def _make_step(call, move, draws):
    """A function without arguments that repeats a call, its tensors moved to their places."""
    args, kwargs, outputs = tree_map_only(torch.Tensor, move, (call.args, call.kwargs, call.outputs))
    if draws is not None and _is_random(call):
        if call.changes:
            return functools.partial(draws.run, call.function, *args, **kwargs)
        return functools.partial(_copy_results, outputs, draws.run, call.function, *args, **kwargs)
    if call.changes and not call.makes:
        return functools.partial(call.function._op, *args, **kwargs)
    if call.function in ZEROS:
        return outputs[0].zero_
    if call.function in COPIES:
        return functools.partial(outputs[0].copy_, args[0])
    variant = _find_out_variant(call.function)
    if variant is None or call.function in WITHOUT_OUT or any(output is None for output in outputs):
        return functools.partial(_copy_results, outputs, call.function, *args, **kwargs)
    operation, names = variant
    return functools.partial(operation._op, *args, **kwargs, **dict(zip(names, outputs, strict=True)))


def check_reads(function, inputs, draws=None):
    """A RefusedError if a function of tensors may act by their values."""
    with draws or nullcontext(), _Watch(), _Reads():
        function(*inputs)


class Replay:
    """A function of tensors, recorded.

    Parameters
    ----------
    function : callable
        Of `inputs`; returns a list of tensors. What else it reads or changes must stay in place.
    inputs : tuple of Tensor
    draws : Draws, optional
        Gives every model its own random numbers, where the function draws any.

    Attributes
    ----------
    results : list of Tensor
        What the last call gave; the next call writes over it.

    Raises
    ------
    RefusedError
        If the function reads values, or makes tensors whose shapes depend on the data.
    """

    def __init__(self, function, *inputs, draws=None):
        # An axis that all models share is stored once.
        self.inputs = [t[:1].clone().expand_as(t) if t.stride(0) == 0 else t.clone() for t in inputs]
        if inputs[0].is_cuda:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.results = function(*self.inputs)
            return
        with draws or nullcontext(), _Recorder() as recorder, _Reads():
            self.results = function(*self.inputs)
        self.graph = None
        addresses = {_get_address(t) for t in self.results}
        calls = _select(recorder.calls, addresses)
        place = _plan_memory(calls, addresses)

        def move(tensor):
            if _get_address(tensor) not in place:
                return tensor
            moved = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            moved.set_(place[_get_address(tensor)], tensor.storage_offset(), tensor.shape, tensor.stride())
            moved = moved.conj() if tensor.is_conj() else moved
            return torch._neg_view(moved) if tensor.is_neg() else moved

        with torch.no_grad():
            self.steps = [_make_step(call, move, draws) for call in calls if call.function not in EMPTY]
            self.results = [move(result) for result in self.results]

    @torch.no_grad()
    def __call__(self, *inputs):
        for place, given in zip(self.inputs, inputs, strict=True):
            (place[:1] if place.stride(0) == 0 else place).copy_(given[:1] if place.stride(0) == 0 else given)
        if self.graph is not None:
            self.graph.replay()
        else:
            for step in self.steps:
                step()
        return self.results
