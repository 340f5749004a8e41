"""The optimisers of a stack: one for all models where a step treats every number by itself, else one each."""

import copy
import functools
import itertools
import numbers
import operator
import sys
import time
import types
import weakref
from collections import Counter

import numpy as np
import torch
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from mnist1d.engine.inspection import FUNCTIONS, SIMPLE, is_filled, is_library
from mnist1d.engine.pictures import freeze_function

__all__ = ["Optimizers"]

# Of these optimisers a step treats every number by itself, so that one of them serves all models.
ELEMENTWISE = {
    getattr(torch.optim, name)
    for name in ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adadelta", "Adagrad", "RMSprop", "Rprop", "ASGD"]
}

_SGD = torch.optim.SGD  # bound here, for somebody may put another in its place
SLOWLY = 2e-4  # seconds, beyond which what optimisers share is not looked at in every step


@functools.cache
def _list_names_of_torch():
    """What every optimiser of torch has; not at import, for the first that is made imports more than torch itself."""
    return {*vars(_SGD([torch.zeros(1)])), "_params", "_numel_cache", "step"}


def _is_number(value):
    return isinstance(value, numbers.Real | torch.Tensor) and not isinstance(value, bool)


def _count_holders(optimizer):
    """How many references there are to an optimiser and to what somebody may change of it."""
    whole = [sys.getrefcount(v) for v in (optimizer, optimizer.param_groups, getattr(optimizer, "state", None))]
    return whole, {sys.getrefcount(group) for group in optimizer.param_groups}, weakref.getweakrefcount(optimizer)


def _is_unhooked(optimizer):
    of_all = _global_optimizer_pre_hooks, _global_optimizer_post_hooks
    hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    return not (any((*of_all, *hooks)) or "step" in vars(optimizer))


def _list_hooks(optimizer):
    hooks = [getattr(optimizer, f"_optimizer_step_{when}_hooks", {}).values() for when in ("pre", "post")]
    return list(itertools.chain(*hooks))


def _list_held(optimizer):
    """What an optimiser's hooks enclose and are bound to, its attributes and the tensors among its options."""
    held = [v for v in vars(optimizer).values() if not isinstance(v, types.FunctionType)]
    for hook in _list_hooks(optimizer):
        while isinstance(hook, (functools.partial, types.MethodType)):
            is_partial = isinstance(hook, functools.partial)
            held += [*hook.args, *hook.keywords.values()] if is_partial else [hook.__self__]
            hook = hook.func if is_partial else hook.__func__
        held += [hook, *(getattr(hook, "__dict__", {}).values() if not is_library(type(hook)) else ())]
        cells = [cell for cell in getattr(hook, "__closure__", None) or () if is_filled(cell)]
        held += [*cells, *(cell.cell_contents for cell in cells)]
    held += [v for group in optimizer.param_groups for v in group.values() if isinstance(v, torch.Tensor)]
    return {id(v): v for v in held if not isinstance(v, (*SIMPLE, *FUNCTIONS, torch.optim.Optimizer))}


def _list_own(optimizer):
    """What an optimiser of one's own class holds in attributes that torch's have not."""
    own = {} if is_library(type(optimizer)) else vars(optimizer)
    return {name: freeze_function(value) for name, value in own.items() if name not in _list_names_of_torch()}


class Optimizers:
    """What changes the parameters of all models by their gradients.

    Parameters
    ----------
    modules : list of nn.Module
        Their parameters are views of `params`.
    params : dict of str to Tensor, shape (seed, ...)
    optimizer, learning_rate, momentum, weight_decay
        As for :class:`mnist1d.engine.Stack`.
    random_of : callable
        ``with random_of(i)``: the random numbers are those of model i.
    """

    def __init__(self, modules, params, optimizer, learning_rate, momentum, weight_decay, random_of):
        rates = learning_rate if np.ndim(learning_rate) else [learning_rate]
        is_one = learning_rate is None or not np.ndim(learning_rate)
        if not all((rate is None and is_one) or _is_number(rate) for rate in rates):
            raise ValueError(f"learning_rate={learning_rate!r}: must be a number, or one for each seed")
        for name, value in (("momentum", momentum), ("weight_decay", weight_decay)):
            if value is not None and not _is_number(value):
                raise ValueError(f"{name}={value!r}: must be a number, one for all seeds")
        if isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(f"optimizer: is a {type(optimizer).__name__}; must be what makes one, the class say")
        if np.ndim(learning_rate) and len(learning_rate) != len(modules):
            raise ValueError(f"learning_rate: {len(learning_rate)} rates for {len(modules)} seeds; must be one each")
        if not callable(optimizer) and optimizer not in ("adam", "sgd"):
            raise ValueError(f"optimizer={optimizer!r}: must be 'adam', 'sgd' or a callable of parameters")
        if momentum and optimizer == "adam":
            raise ValueError(f"momentum={momentum!r}: must be None or 0, 'adam' has none")
        self._modules, self._params = modules, params
        self._wanted = optimizer, learning_rate, momentum, weight_decay
        each = []
        for i in range(len(modules)):
            with random_of(i):
                each.append(self._build(i))
        self._each = each  # for when a shared one is split
        self._n_steps, self._looks_rarely, self._restless = 0, False, None
        self._born = list(map(_list_own, each))
        alone = [_count_holders(opt) for opt in [torch.optim.SGD([torch.zeros(1)])]]  # of what nobody else holds
        is_held = any([_count_holders(opt)] != alone for opt in each)  # by who made them, to change state or options
        self._shared = self._can_share(each) and not np.ndim(learning_rate) and not is_held
        if self._shared:
            whole = {id(p): params[name] for name, p in modules[0].named_parameters()}
            groups = [{**g, "params": [whole[id(p)] for p in g["params"]]} for g in each[0].param_groups]
            self._set([type(each[0])(groups)])
        else:
            self._set(each)

    def _can_share(self, each):
        """Whether one optimiser does what those of all models do: alike in every option, with nothing of their own."""

        def describe(optimizer, module):
            names = {id(p): name for name, p in module.named_parameters()}
            if any(id(p) not in names for g in optimizer.param_groups for p in g["params"]):
                raise ValueError("optimizer: holds a tensor that is no parameter of the model")
            groups = [{**g, "params": [names[id(p)] for p in g["params"]]} for g in optimizer.param_groups]
            exact = [{k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in g.items()} for g in groups]
            return type(optimizer), repr(exact)

        def is_bare(optimizer):  # no state that it began with, no hooks, no method put over its own
            return not optimizer.state and _is_unhooked(optimizer)

        kinds = {describe(optimizer, module) for optimizer, module in zip(each, self._modules, strict=True)}
        return len(kinds) == 1 and type(each[0]) in ELEMENTWISE and all(map(is_bare, each))

    def _set(self, optimizers):
        self._optimizers = optimizers
        self._rates = [[group.get("lr") for group in opt.param_groups] for opt in optimizers]
        self._last = [list(rates) for rates in self._rates]  # as this class has set them

    @property
    def are_of_torch(self):
        """Whether all are torch's own, without hooks: these keep no gradient beyond a step and draw no numbers."""
        return all(type(opt).__module__.startswith("torch.optim") and _is_unhooked(opt) for opt in self._optimizers)

    def freeze(self):
        """By its id, what classes and hooks of one's own, which all models share, hold and read, and what several hold.

        What differs from itself at the first look, an iterator or a large array say, is left out.
        """
        start = time.perf_counter()
        pictures = self._look()
        self._looks_rarely = time.perf_counter() - start > SLOWLY
        if self._restless is None:
            again = self._look()
            self._restless = {key for key in pictures if pictures[key] != again.get(key)}
        return {key: picture for key, picture in pictures.items() if key not in self._restless}

    def _look(self):
        own = [kind for opt in self._optimizers for kind in type(opt).__mro__ if not is_library(kind)]
        own += [h for opt in self._optimizers for h in _list_hooks(opt) if not getattr(h, "__closure__", None)]
        held = list(map(_list_held, self._optimizers))
        n_holders = Counter(itertools.chain(*held))
        shared = {key: v for values in held for key, v in values.items() if n_holders[key] > 1}.values()
        values = [v.cell_contents if isinstance(v, types.CellType) else v for v in shared]
        return {id(value): freeze_function(value) for value in [*own, *values]}

    def is_to_look_at(self):
        """Whether what they may share is to be looked at in this step: in every one, unless that takes its time."""
        n = self._n_steps = self._n_steps + 1
        return not self.are_of_torch and (not self._looks_rarely or n <= 8 or not n & (n - 1))

    @property
    def lack(self):
        """What may not be in their `state_dict`, as text: what hooks hold, a scheduler say, and changed attributes."""
        hooks = [hook for opt in self._optimizers for hook in _list_hooks(opt)]
        have = any(getattr(h, "__closure__", None) or not isinstance(h, types.FunctionType) for h in hooks)
        is_changed = not self._shared and any(map(operator.ne, self._born, map(_list_own, self._optimizers)))
        return " and ".join(["hooks that hold something"] * have + ["attributes that have changed"] * is_changed)

    @property
    def have_schedulers(self):
        """Whether a scheduler sets the rate of any group."""
        return any("initial_lr" in group for opt in self._optimizers for group in opt.param_groups)

    def _build(self, i):
        """The optimiser of model i alone."""
        optimizer, learning_rate, momentum, weight_decay = self._wanted
        params = [self._modules[i].get_parameter(name) for name in self._params]  # the frozen, too: some may thaw
        rate = float(learning_rate[i]) if np.ndim(learning_rate) else learning_rate
        if not isinstance(optimizer, str):
            opt = optimizer(params)
            if not isinstance(opt, torch.optim.Optimizer):
                raise ValueError(f"optimizer: made a {type(opt).__name__}; must make a torch.optim.Optimizer")
            given = {"lr": rate, "momentum": momentum, "weight_decay": weight_decay}
            for group in opt.param_groups:
                for name, value in given.items():
                    if value is not None and name not in group:
                        raise ValueError(f"{name}={value!r}: must be None, {type(opt).__name__} has none")
                    if name == "lr" and value is not None and "initial_lr" in group:
                        raise ValueError(f"learning_rate={value!r}: must be None, a scheduler of the optimiser sets it")
                group |= {name: value for name, value in given.items() if value is not None}
            return opt
        rate, momentum, weight_decay = 1e-2 if rate is None else rate, momentum or 0.0, weight_decay or 0.0
        are_sparse = any(getattr(part, "sparse", False) is True for part in self._modules[i].modules())
        # In half precision torch's fused SGD leaves most of a parameter as it was.
        fused = (all(p.dtype in (torch.float32, torch.float64) for p in params) and not are_sparse) or None
        if optimizer == "sgd":
            return torch.optim.SGD(params, lr=rate, momentum=momentum, weight_decay=weight_decay, fused=fused)
        return torch.optim.Adam(params, lr=rate, weight_decay=weight_decay, fused=fused)

    @property
    def compute_gradients(self):
        """Whether they compute gradients of their own within a step."""
        return any(isinstance(opt, torch.optim.LBFGS) for opt in self._optimizers)

    def adopt(self, i, other):
        """Take over the one optimiser of another stack, of one model, which takes the place of model i."""
        other.split()
        self._optimizers[i], self._rates[i], self._last[i] = other._optimizers[0], other._rates[0], other._last[0]

    def split(self):
        """From now on one optimiser for each model, over views of its parameters."""
        if self._shared:
            self._shared = False
            saved, rates, last = self._optimizers[0].state_dict(), self._rates[0], self._last[0]
            self._set(self._each)
            for i, opt in enumerate(self._optimizers):
                opt.load_state_dict(self._take(saved, i))
                self._rates[i], self._last[i] = list(rates), list(last)

    def step(self, grads, factor, compute_again, losses, random_of):
        """Change the parameters.

        Parameters
        ----------
        grads : dict of str to (Tensor or None), or None
            Of all models, [seed, ...]; None where each module holds its own.
        factor : float
            Of the learning rate.
        compute_again : callable
            ``compute_again(i)`` gives model i's loss and renews its gradients, for LBFGS.
        losses : Tensor, shape (seed,)
            Of the gradients.
        random_of : callable
            As above.
        """
        for opt, rates, last in zip(self._optimizers, self._rates, self._last, strict=True):
            for j, group in enumerate(opt.param_groups):
                if j == len(rates):  # somebody has added it
                    rates.append(group.get("lr"))
                    last.append(group.get("lr"))
                if "lr" in group:
                    if factor != 1 and "initial_lr" in group:
                        raise ValueError("schedule: must be None, a scheduler of the optimiser sets the rate")
                    if group["lr"] != last[j]:  # somebody has changed it, a scheduler say
                        rates[j] = group["lr"]
                    group["lr"] = rates[j] * factor
                    # A scheduler fills a rate that is a tensor in place.
                    last[j] = group["lr"].clone() if isinstance(group["lr"], torch.Tensor) else group["lr"]
        if self._shared and grads is not None:
            for name, p in self._params.items():
                p.grad = grads[name]
            self._optimizers[0].step()
            return
        for i, opt in enumerate(self._optimizers):
            if grads is not None:
                for name, p in self._modules[i].named_parameters():
                    p.grad = None if grads[name] is None else grads[name][i]
            if isinstance(opt, torch.optim.LBFGS):
                known = [losses[i]]  # it asks first for what has just been computed
                opt.step(lambda i=i, known=known: known.pop() if known else compute_again(i))
            elif self.are_of_torch:
                opt.step()
            else:
                with random_of(i):
                    opt.step()

    def state_dict(self):
        """Their state, copied."""
        each = copy.deepcopy([opt.state_dict() for opt in self._optimizers])
        return {"shared": self._shared, "each": each, "rates": copy.deepcopy((self._rates, self._last))}

    def load_state_dict(self, state):
        """Go on where :meth:`state_dict` was taken."""
        if not state["shared"]:
            self.split()
        each, rates = copy.deepcopy((state["each"], state["rates"]))
        if state["shared"] and not self._shared:  # since then the models have been split up
            n = len(self._modules)
            each = [self._take(each[0], i) for i in range(n)]
            rates = [[list(values[0]) for _ in range(n)] for values in rates]
        self._rates, self._last = rates
        for opt, saved in zip(self._optimizers, each, strict=True):
            opt.load_state_dict(saved)

    def _take(self, shared, i):
        """Model i's part of a shared optimiser's state."""

        def take(value):
            return value[i] if isinstance(value, torch.Tensor) and value.ndim else copy.deepcopy(value)

        state = {p: {key: take(value) for key, value in values.items()} for p, values in shared["state"].items()}
        return {"state": state, "param_groups": copy.deepcopy(shared["param_groups"])}
