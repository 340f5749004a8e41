"""What a check of the engine needs: copies of modules, whether models may be computed together, closeness."""

import copy
import functools
import itertools
import random
import re
import types
import weakref
from collections import Counter, deque
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from mnist1d.engine.inspection import (
    BOUND,
    FUNCTIONS,
    INTERNAL,
    SIMPLE,
    is_library,
    is_own_code,
    is_plain_value,
    list_attributes,
    list_held,
    list_hooks,
    read_cells,
)
from mnist1d.engine.keeping import read_bytes

__all__ = [
    "Finder", "copy_module", "encloses_itself", "find_shared_memory", "has_forward_hooks", "has_hooks",
    "have_same_numbers", "hold_alike", "holds_parameters", "is_answer_close", "is_close", "keep_slots",
    "share_objects",
]  # fmt: skip

MAY_FAIL = {
    "cholesky", "cond", "eig", "eigh", "eigvals", "eigvalsh", "inv", "inverse", "ldl_factor", "logdet", "lstsq", "lu",
    "lu_factor", "matrix_power", "matrix_rank", "pinv", "pinverse", "qr", "slogdet", "solve", "svd", "svdvals",
    "tensorinv", "tensorsolve",
}  # fmt: skip

# Of a class, what tells nothing of its passes.
DESCRIBES = {"__init__", "__module__", "__doc__", "__dict__", "__weakref__", "__firstlineno__", "__annotations__"}

# Largest difference between two ways to compute a number, relative to the largest number of its kind in a model.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def copy_module(module, share=False):
    """A deep copy that shares no memory; what pruning or weight norm left in attributes is copied as values.

    With `share` it holds the same plain Python objects (a configuration, say), so that their changes reach it.
    """
    memo = {}
    for part in module.modules():
        for value in [*vars(part).values(), *part._buffers.values()]:
            if isinstance(value, torch.Tensor):
                memo[id(value)] = _mirror(value, value.detach().clone())
        memo |= {id(t): t.detach().clone() for t in _find_results(vars(part).values())}
        if share:
            memo |= {id(v): v for v in list_attributes(part) if is_plain_value(v, tensors=True)}
    copied = copy.deepcopy(module, memo)
    for own, other in zip(module.parameters(), copied.parameters(), strict=False):
        _mirror(own, other)
    return copied


def _find_results(values):
    """Tensors that autograd has made, in lists, tuples and dicts however deep: activations that are collected, say."""
    values, seen, found = list(values), set(), []
    for value in values:  # which grows
        if id(value) not in seen and isinstance(value, (list, tuple, dict)):
            values += value.values() if isinstance(value, dict) else value
        elif isinstance(value, torch.Tensor) and value.grad_fn is not None:
            found.append(value)
        seen.add(id(value))
    return found


def _mirror(tensor, copied):
    """Give the copy of a tensor the attributes that somebody has given the tensor, a mask say."""
    for name, value in vars(tensor).items() if type(tensor) in (torch.Tensor, nn.Parameter) else ():
        setattr(copied, name, copy.deepcopy(value))
    return copied


@contextmanager
def keep_slots(module):
    """Of parts with two names leave the parameters and buffers in place: `functional_call` would not."""
    parts = Counter(part for _, part in module.named_modules(remove_duplicate=False))
    slots = [slot for part, n in parts.items() if n > 1 for slot in (part._parameters, part._buffers)]
    held = [dict(slot) for slot in slots]
    try:
        yield
    finally:
        for slot, own in zip(slots, held, strict=True):
            slot.update(own)


def encloses_itself(module):
    """Whether a module holds a function that reaches it from within: a copy would call the original's."""
    own = {id(t) for part in module.modules() for t in (part, *vars(part).values(), *part._parameters.values())}
    own |= {id(buffer) for buffer in module.buffers()}

    def is_own(value):
        return isinstance(value, (nn.Module, torch.Tensor)) and id(value) in own

    def reaches(value, depth=6):
        if isinstance(value, weakref.ref):
            return is_own(value())
        if isinstance(value, types.FunctionType):
            given = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *read_cells(value)]
            return any(is_own(v) or reaches(v, depth - 1) for v in given)
        if isinstance(value, functools.partial):
            return reaches(value.func, depth)
        if isinstance(value, types.MethodType):
            return reaches(value.__func__, depth)
        if not depth:
            return False
        if isinstance(value, (list, tuple, set, deque)):
            return any(reaches(v, depth - 1) for v in value)
        if isinstance(value, dict):
            return any(reaches(v, depth - 1) for v in value.values())
        is_object = hasattr(value, "__dict__") and not isinstance(value, (*FUNCTIONS, *BOUND))
        return is_object and any(reaches(v, depth - 1) for v in vars(value).values())

    parts = [part for part in module.modules() if is_own_code(part)]
    refs = "_flat_weight_refs"  # which torch's recurrent layers renew
    return any(reaches(v) for part in parts for k, v in vars(part).items() if k not in INTERNAL and k != refs)


def _reaches(value, found, depth=6):
    """Whether a value is, or holds in containers and objects, something that `found` is true of."""
    if found(value):
        return True
    if not depth or isinstance(value, (*SIMPLE, *FUNCTIONS, *BOUND)):
        return False
    if isinstance(value, (list, tuple, set, deque)):
        return any(_reaches(v, found, depth - 1) for v in value)
    held = value.values() if isinstance(value, dict) else list_held(value)
    return any(_reaches(v, found, depth - 1) for v in held)


def hold_alike(module, other):
    """Whether two modules are equal in what they hold besides parameters and buffers: one stands for both."""
    names, names_of_other = (
        {id(t): name for named in (m.named_parameters, m.named_buffers) for name, t in named(remove_duplicate=False)}
        for m in (module, other)
    )
    registered, seen = {id(part) for part in module.modules()}, set()

    def are_alike(a, b, depth=20):
        if a is b or not depth:
            return True
        if isinstance(a, torch.Tensor):
            if id(a) in names or id(b) in names_of_other:
                return names.get(id(a)) == names_of_other.get(id(b))
            return a.grad_fn is not None or have_same_numbers(a, b)  # if not made of parameters, anew at every call
        if isinstance(a, SIMPLE):
            return a == b or (a != a and b != b)
        if (id(a), id(b)) in seen:
            return True
        seen.add((id(a), id(b)))
        if isinstance(a, nn.Module):
            if id(a) not in registered and not are_all_alike(a.state_dict().values(), b.state_dict().values(), depth):
                return False
            parts = list(zip(a.modules(), b.modules(), strict=False))
            kinds = {(type(p), type(q)) for p, q in parts}
            is_same = all(are_all_alike(*map(list_own, pair), depth) for pair in parts)
            return is_same and all(are_alike(p, q, depth - 1) for p, q in kinds)
        if isinstance(a, type):
            if a.__qualname__ != b.__qualname__ or len(a.__mro__) != len(b.__mro__):
                return False
            made = [pair for pair in zip(a.__mro__, b.__mro__, strict=True) if pair[0] is not pair[1]]
            return all(is_library(p) or are_all_alike(list_code(p), list_code(q), depth) for p, q in made)
        if isinstance(a, np.ndarray):
            if (a.shape, a.dtype) != (b.shape, b.dtype) or not a.dtype.hasobject:
                return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
            return are_all_alike(a.ravel(), b.ravel(), depth)
        if isinstance(a, dict):
            return are_all_alike(a, b, depth) and are_all_alike(a.values(), b.values(), depth)
        if isinstance(a, (list, tuple, deque)):
            return are_all_alike(a, b, depth)
        if isinstance(a, types.FunctionType):
            held = ([*read_cells(f), f.__defaults__, f.__kwdefaults__, vars(f)] for f in (a, b))
            return a.__code__ == b.__code__ and are_all_alike(*held, depth)
        if isinstance(a, functools.partial):
            return are_all_alike(*([p.func, p.args, p.keywords] for p in (a, b)), depth)
        if isinstance(a, types.MethodType):
            return are_all_alike(*([m.__func__, m.__self__] for m in (a, b)), depth)
        if isinstance(a, torch.Generator):
            return torch.equal(a.get_state(), b.get_state())
        if isinstance(a, np.random.Generator):
            return repr(a.bit_generator.state) == repr(b.bit_generator.state)
        if isinstance(a, random.Random):
            return a.getstate() == b.getstate()
        if isinstance(a, (set, frozenset)):
            simple, others = ({v for v in values if isinstance(v, SIMPLE)} for values in (a, b))
            return len(a) == len(b) and simple == others
        if callable(a) and hasattr(type(a), "__self__"):  # of C
            is_same = getattr(a, "__qualname__", None) == getattr(b, "__qualname__", None)
            return is_same and are_all_alike([a.__self__], [b.__self__], depth)
        if isinstance(a, weakref.ref):
            return are_all_alike([a()], [b()], depth)
        if not (held := list_held(a)):  # an address tells nothing
            texts = [re.sub("0x[0-9a-fA-F]+", "", repr(v)) if callable(v) else read_bytes(v) for v in (a, b)]
            return texts[0] == texts[1]
        return are_all_alike(held, list_held(b), depth)

    def list_own(part):
        return [value for name, value in vars(part).items() if name not in INTERNAL]

    def list_code(kind):  # of a class that a function makes anew for every model
        held = [v for name, v in vars(kind).items() if name not in DESCRIBES]
        return [getattr(v, "__func__", None) or getattr(v, "fget", None) or v for v in held]

    def are_all_alike(all_a, all_b, depth):
        pairs = list(zip(all_a, all_b, strict=False))
        others = [(a, b) for a, b in pairs if type(a) is not type(b) and not isinstance(a, (nn.Module, type))]
        is_kind = all(are_alike(type(a), type(b), depth - 1) for a, b in others)
        return len(all_a) == len(all_b) and is_kind and all(are_alike(a, b, depth - 1) for a, b in pairs)

    return are_alike(module, other)


def have_same_numbers(a, b):
    """Whether two tensors are equal; sparse ones count as different."""
    try:
        return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, 0, 0, equal_nan=True)
    except RuntimeError:  # sparse ones, say
        return False


def holds_parameters(module):
    """Whether parameters carry attributes, or lie in a container too: what is trained together has, and is, neither."""
    own = {id(p) for p in module.parameters()}
    parts = [part for part in module.modules() if is_own_code(part)]
    held = [v for part in parts for v in list_attributes(part) if not isinstance(v, torch.Tensor)]
    return any(map(vars, module.parameters())) or any(_reaches(v, lambda v: id(v) in own) for v in held)


def find_shared_memory(module):
    """The names of two tensors of a module that overlap in memory, or None."""
    named = [*module.named_parameters(), *module.named_buffers()]
    for prefix, part in module.named_modules():
        if not part._forward_pre_hooks:  # as those of spectral norm, which renew what they alias
            tensors = [(k, v) for k, v in vars(part).items() if isinstance(v, torch.Tensor)]
            named += [(f"{prefix}.{name}".lstrip("."), value) for name, value in tensors]
        if is_own_code(part):
            named += [
                (f"{prefix}.{name}[{key!r}]".lstrip("."), value)
                for name, held in vars(part).items()
                if name not in INTERNAL and isinstance(held, (list, tuple, dict))
                for key, value in (held.items() if isinstance(held, dict) else enumerate(held))
                if isinstance(value, torch.Tensor)
            ]
    spans = []
    for name, t in {id(t): (name, t) for name, t in reversed(named)}.values():
        if t.numel() and t.layout == torch.strided and not is_lazy(t):
            size = 1 + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
            spans.append((t.device.type, t.data_ptr(), t.data_ptr() + size * t.element_size(), name))
    spans.sort()
    for a, b in itertools.pairwise(spans):
        if a[0] == b[0] and b[1] < a[2]:
            return a[3], b[3]
    return None


def share_objects(modules):
    """Whether modules hold the same objects, besides parts, tensors and what cannot change, in which they may count."""
    held = []
    for module in modules:
        own = [part for part in module.modules() if is_own_code(part)]
        values = [v for part in own for v in list_attributes(part)]
        held.append({id(v) for v in values if not isinstance(v, (*SIMPLE, *FUNCTIONS, torch.Tensor, tuple))})
    return any(held[0] & other for other in held[1:])


def has_hooks(module):
    """Whether hooks of a module or of its parameters wait for gradients."""
    hooks = [h for part in module.modules() for h in (part._backward_hooks, part._backward_pre_hooks)]
    hooks += [h for p in module.parameters() for h in (p._backward_hooks, p._post_accumulate_grad_hooks)]
    hooks += [nn.modules.module._global_backward_hooks, nn.modules.module._global_backward_pre_hooks]
    return any(hooks)


def has_forward_hooks(module):
    """Whether somebody's hooks, none of torch's own, wait for forward passes, of these modules or of all."""
    of_all = nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks
    return any(of_all) or any(map(list_hooks, module.modules()))


class Finder(TorchFunctionMode):
    """Notes hooks on a tensor's gradient, the padding of an embedding, and linear algebra that may raise an error."""

    hook = padding = may_fail = False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        self.hook |= name == "register_hook"
        self.may_fail |= name.removeprefix("linalg_") in MAY_FAIL
        if name in ("embedding", "embedding_bag"):
            index = kwargs.get("padding_idx", args[2] if len(args) > 2 and name == "embedding" else None)
            nothing = -1 if function is torch.embedding else None  # torch's own counts from the end before it asks
            self.padding |= isinstance(index, int) and not isinstance(index, bool) and index != nothing
        return function(*args, **kwargs)


def list_leaves(losses):
    """The tensors that gradients of losses reach."""
    if losses.grad_fn is None:
        return [losses]
    leaves, seen, todo = [], set(), [losses.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if type(node).__name__ == "AccumulateGrad":
                leaves.append(node.variable)
            todo += [following for following, _ in node.next_functions]
    return leaves


def is_close(ours, plain, scale=None, times=1):
    """Whether two tensors [seed, ...] agree to so many times rounding, NaN and infinity included."""
    if ours.shape != plain.shape or ours.dtype != plain.dtype:
        return False
    if not (plain.is_floating_point() or plain.is_complex()):
        return bool((ours == plain).all())
    tolerance = TOLERANCE.get(torch.float64 if plain.dtype == torch.complex128 else plain.dtype, 2e-4)
    finite = plain.isfinite()
    if not torch.equal(finite, ours.isfinite()):
        return False
    largest = (
        torch.where(finite, plain, 0).abs().reshape(len(plain), -1).amax(1) if plain[0].numel() else plain.new_zeros(1)
    )
    largest = torch.maximum(largest, scale) if scale is not None else largest
    difference = torch.where(finite, ours - plain, 0).abs().reshape(len(plain), -1)
    return bool((difference <= times * tolerance * largest[:, None] + 1e-30).all())


def is_answer_close(ours, plain):
    """The same of what models answer. In logits a huge number, which masks a class, would hide what the others say."""
    are_logits = plain.is_floating_point() and plain.ndim > 1 and plain.shape[-1] > 1
    return is_close(ours, plain) and (not are_logits or is_close(ours.softmax(-1), plain.softmax(-1)))
