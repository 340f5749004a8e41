"""Many copies of one architecture, one per seed, trained side by side.

A :class:`Stack` behaves as a list of modules that are trained one after the other, and is checked against
exactly that on its first batches and now and then. Where the copies can be computed together they are, by
`vmap`; where they cannot (a module reads values, `vmap` does not know an operation, the results differ) they run
one by one.
"""

import copy
import gc
import inspect
import operator
import os
import pickle
import random
import time
import warnings
import weakref
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from mnist1d.engine.checks import (
    Finder,
    copy_module,
    encloses_itself,
    find_shared_memory,
    has_forward_hooks,
    has_hooks,
    have_same_numbers,
    hold_alike,
    holds_parameters,
    is_answer_close,
    is_close,
    keep_slots,
    list_leaves,
    share_objects,
)
from mnist1d.engine.draws import Draws
from mnist1d.engine.inspection import (
    catches_errors,
    is_library,
    list_attributes,
    list_modules,
    names_autograd,
)
from mnist1d.engine.keeping import (
    get_python_random,
    keep_attributes,
    keep_code,
    keep_function,
    keep_random_state,
    remember_caches,
    set_python_random,
)
from mnist1d.engine.kernels import find_layers, swapped
from mnist1d.engine.optimizers import Optimizers
from mnist1d.engine.pictures import (
    freeze_function,
    freeze_held,
    freeze_module,
    freeze_reads,
    freeze_tensors,
    identify,
    list_unshared,
    list_watched,
    mark_values,
)
from mnist1d.engine.replay import RefusedError, Replay, check_reads
from mnist1d.transform import list_seeds
from mnist1d.utils import set_seed

__all__ = ["ReplayError", "Stack"]

CHECK_EVERY = 200  # uses of a recording between comparisons with autograd
LONGEST = 1000  # steps between comparisons with the plain way, at irregular distances that grow from a few to this
SELDOM = 20  # steps between comparisons with the plain way, where what the models read outside changes more often
LEAST = 0.05  # a loss or gradient near zero is compared in double precision, and what is smaller as if of this size
ROUGHLY = 50  # times the tolerance, in which a unit that rounding turns on or off lies, mostly
PATIENCE = 5  # comparisons in a row in which it lies beyond: the last of them is no longer put off
TIGHTLY = 0.025  # of the tolerance, in which the first batch needs no comparison in double precision
SLOWLY = 2e-4  # seconds, beyond which a loss is not looked at in every step
MAX_RECORDINGS = 4
MOST_PICTURES = 10_000  # of what models read outside that are known to have been compared
MOST_FUNCTIONS = 64  # of which it is known that they can be evaluated together
SINGLE = torch.float32, torch.float16, torch.bfloat16
REMEMBERS = (
    "the loss counts or remembers in Python: in `train` it begins anew for every seed, in a loop of one's own "
    "what it counts is that of all seeds together"
)
MODELS_REMEMBER = (
    "what the models share, a class or a global, counts or remembers: `train` goes on one seed after the other, in a "
    "loop of one's own it is that of all models together"
)
OPTIMIZERS_REMEMBER = (
    "the optimiser counts or remembers in its class, a global or what several share: `train` goes on one seed after "
    "the other, in a loop of one's own it is that of all models together"
)
UNSEEN = "the loss reads an iterator, or what is too large to be looked at, such as an array of more than 4 MB"
STRANGE = "the loss or a forward pass reads tensors that require a gradient and are not the model's own"
BUILT = "building one model changes what the others read"
DIFFERENT = "computed together, the models give other numbers than one by one"
ATTEMPTS = 3  # Python's generators belong to all threads: another one may draw too, but not every time


_OWNERS = weakref.WeakValueDictionary()  # the stack that trains a parameter, by the parameter's id


def _list_trained(module):
    parts = [(name, part) for name, part in module.named_modules() if not part._forward_pre_hooks]  # of spectral norm
    named = [(f"{name}.{n}".lstrip("."), p) for name, part in parts for n, p in part.named_parameters(recurse=False)]
    return [(name, p) for name, p in named if p.requires_grad and p.layout == torch.strided]


def _list_alive(memory):
    """The names of the memory, (name, weak reference), that somebody still holds."""
    if not all(ref.expired() for _, ref in memory):
        gc.collect()  # what a constructor has left in circles
    return sorted({name for name, ref in memory if not ref.expired()})


class ReplayError(RuntimeError):
    """A step differs from the plain way, some steps after the last comparison at which it did not."""


class _PythonDrawsError(RuntimeError):
    """A step draws random numbers outside of torch, where models that are computed together cannot."""


def _have_same_zeros(ours, plain):
    """Whether gradients are zero in the same places: a small term that is lost shows where it stands alone."""
    return len(ours) == len(plain) and all(torch.equal(a == 0, b == 0) for a, b in zip(ours, plain, strict=True))


def _differ(a, b):
    return not torch.equal(a, b)


def _has_extra_state(part):
    return type(part).get_extra_state is not nn.Module.get_extra_state


def _has_padding(module):
    return any(getattr(part, "padding_idx", None) is not None for part in module.modules())


class _Objective(nn.Module):
    """A module and what is computed with it, as one module that maps a batch to a loss."""

    def __init__(self, module, objective):
        super().__init__()
        self.module = module
        self.objective = objective

    def forward(self, *batch):
        return self.objective(self.module, *batch)


def _has_own_modes(part):
    own = {"train", "eval"} & vars(part).keys()  # put over by whoever built it
    return bool(own) or type(part).train is not nn.Module.train or type(part).eval is not nn.Module.eval


def _copy(batch):
    """A batch to write on; an axis that all models share is copied once."""
    return [t[:1].clone().expand_as(t) if t.stride(0) == 0 else t.clone() for t in batch]


class Stack:
    """Models of one architecture, one per seed, and their optimiser: all that a training loop needs.

    Parameters
    ----------
    build : callable
        ``build()`` returns an ``nn.Module``. Model i is built after python, numpy and torch were seeded with
        ``seeds[i]``, and draws on from there; the global random states are left as they were. Steps are made in
        training mode, also where `build` returns a model in evaluation mode; parts of it that are, stay so.
    seeds : sequence of int
    loss : callable
        Maps one model's outputs and targets to a scalar, as ``F.cross_entropy`` does.
    objective : callable, optional
        ``objective(model, *batch)`` returns one model's scalar loss; by default ``loss(model(x), y)``.
    optimizer : {"adam", "sgd"} or callable
        A callable maps one model's parameters to a ``torch.optim.Optimizer``.
    learning_rate : float or sequence of float, optional
        One for all, or one per seed; of every group of parameters. By default 0.01, or what a callable sets.
    momentum, weight_decay : float, optional
        By default 0, or what a callable sets; an optimiser that has none is an error.
    state : dict, optional
        Name to tensor [seed, ...]: initial parameters and buffers in place of what `build` drew.
    device : torch.device or str
    example : tuple of Tensor, optional
        A batch [seed, example, ...], for modules that take their shapes from the first one (lazy layers): these are
        made by a pass in evaluation mode.
    replay : bool, optional
        Record a step and replay it; by default unless the environment variable MNIST1D_REPLAY is 0.

    Attributes
    ----------
    params, buffers : dict of str to Tensor
        The state of all models, [seed, ...]. Change it in place.
    grads : dict of str to (Tensor or None)
        What the last :meth:`backward` left, [seed, ...]; change it in place before :meth:`step`. It is yours to
        keep, as to add up those of several batches.
    stacked : bool or None
        Whether the models are computed together; None until a batch has decided it, mostly the first.
    remembers : bool
        Whether they are not because what they count or remember is all models': in a class, a global, the loss.
    check_next : bool
        Compare the next step with the plain way, and its replay with autograd. True before the last step of a loop,
        a change that neither sees is found wherever it came.
    keeps_hooks : bool
        Whether evaluations leave no trace in what hooks count or collect either, as those that `train` makes.
    reuse_grads : bool
        Whether the next :meth:`backward` may write over `grads`: spares a copy.
    """

    def __init__(
        self,
        build,
        seeds,
        *,
        loss=F.cross_entropy,
        objective=None,
        optimizer="adam",
        learning_rate=None,
        momentum=None,
        weight_decay=None,
        state=None,
        device="cpu",
        example=None,
        replay=None,
    ):
        self.seeds = list_seeds(seeds)
        if isinstance(build, nn.Module):
            raise ValueError(f"build: is a {type(build).__name__}; must be what makes one: the class, or `lambda: ...`")
        try:
            inspect.signature(build, follow_wrapped=False).bind()
        except TypeError as error:
            raise ValueError(
                f"build: cannot be called without arguments ({error}); must be, as `lambda: ...`"
            ) from None
        except ValueError:  # some of C's functions have no signature
            pass
        if isinstance(objective or loss, type):
            raise ValueError(f"loss={objective or loss!r}: must be a function or an instance, not a class")
        if not callable(objective or loss):
            raise ValueError(f"loss={objective or loss!r}: must be callable, as F.cross_entropy is")
        if replay not in (None, True, False):
            raise ValueError(f"replay={replay!r}: must be True, False or None")
        if not isinstance(state or {}, Mapping):
            raise ValueError(f"state={type(state).__name__}: must be a dict of name to tensor")
        self.loss, self.objective = loss, objective
        self.modules, self._rng, self._python_rng = [], [], []
        pictures = []  # of what the models read outside, when one was built and when all were
        with keep_random_state():
            for i, seed in enumerate(self.seeds):
                set_seed(seed)
                module = build()
                if not isinstance(module, nn.Module):
                    raise ValueError(f"build: returned {type(module).__name__}; must return a torch.nn.Module")
                if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
                    raise ValueError("build: the module holds TorchScript; must be of Python modules alone")
                if not module.training or any(_has_own_modes(part) for part in module.modules()):
                    module.train()  # as a loop does; what `build` alone has put into evaluation mode stays there
                module = module.to(device)
                if any(is_lazy(p) for p in [*module.parameters(), *module.buffers()]):
                    if example is None:
                        raise ValueError("build: the module is lazy; pass a batch as `example`")
                    modes = [(part, part.training) for part in module.modules()]
                    module.eval()
                    with torch.no_grad():
                        module(example[0][i])
                    for part, mode in modes:
                        part.training = mode
                self.modules.append(module)
                self._rng.append(torch.get_rng_state())
                self._python_rng.append(get_python_random())
                if i in (0, len(self.seeds) - 1) and len(self.seeds) > 1:
                    set_seed(0)  # for what reads a global generator
                    looks = range(1 if i else 2)  # what is too large to be looked at differs from itself
                    pictures += [(self._get_loss_state(), freeze_reads(self.modules[0])) for _ in looks]
        self._check_modules()
        trained = [p for module in self.modules for p in module.parameters() if p.requires_grad]
        if len(set(map(id, trained))) < len(trained):
            raise ValueError("build: returned modules that share a parameter; must make a new one at every call")
        if any(id(p) in _OWNERS for p in trained):
            gc.collect()  # of stacks that nobody uses any more
            if any(id(p) in _OWNERS for p in trained):
                rule = "must make new ones, for each stack would lose what the other one learns"
                raise ValueError(f"build: returned modules with parameters that another stack trains; {rule}")
        _OWNERS.update({id(p): self for p in trained})
        if pair := find_shared_memory(self.modules[0]):
            first, second = pair
            rule = "one tensor may have several names, but two tensors may not share memory: train would part them"
            raise ValueError(f"build: {first} and {second} are views of the same memory; {rule}")
        memory = [(n, StorageWeakRef(p.untyped_storage())) for m in self.modules for n, p in _list_trained(m)]
        self.params = self._stack("named_parameters")
        self.buffers = self._stack("named_buffers")
        if shared := _list_alive(memory):
            rule = "which does not change with it: build views in forward, and parameters from copies"
            warnings.warn(f"build: something besides {', '.join(shared)} holds its memory, {rule}", stacklevel=4)
        self._kinds = {type(part) for m in self.modules for part in m.modules() if not is_library(type(part))}
        self._note_state()
        self._load(state or {})
        self.grads = dict.fromkeys(self.params)
        self.stacked, self.remembers = None, pictures[:1] == pictures[1:2] != pictures[2:]
        self._leaves, self._is_strange, self._looks_at_leaves = [], False, False
        self._template = self._layers = None
        self._draws, self._evaluates_together = None, {}  # the latter by the function that is evaluated
        self.check_next, self.reuse_grads, self.keeps_hooks = False, False, False
        self._flags = {name: p.requires_grad for name, p in self.params.items()}  # as the modules have them
        self._writes_batch = False
        self._watched, self._shares = [], None
        self._has_own_modes = any(map(_has_own_modes, self.modules[0].modules()))  # LoRA merges its weights there
        self._replay = os.environ.get("MNIST1D_REPLAY", "1") != "0" if replay is None else replay
        self._recordings, self._since_check, self._outside, self._inside = {}, 0, None, None
        self._losses, self._seen, self._handed_out = None, None, {}
        self._dicts, self._copies, self._places = [], [], []  # of the models, as they were stacked
        self._held_tensors, self._versions = [], []
        self._since_plain = self._steps = 0  # since the last comparison with the plain way, and in all
        self._gaps, self._gap, self._widest, self._has_changed = random.Random(0), 1, 8, False
        self._is_told, self._looks_rarely, self._turns = False, False, 0  # that the loss is that of all
        self._doubts, self._put_off = 0, False  # comparisons without an answer, one after the other, and this one
        self._evaluated = None, 0  # what was read outside at the last evaluation, and its hash
        self._pictures, self._n_pictures = set(), 0  # of what was read outside, at steps up to now
        settings = optimizer, learning_rate, momentum, weight_decay
        with keep_random_state():
            self.optimizers = Optimizers(self.modules, self.params, *settings, self._random_of)

    def __len__(self):
        return len(self.seeds)

    def _check_modules(self):
        module = self.modules[0]
        if not {p for _, p in module.named_parameters() if p.requires_grad} <= set(module.parameters()):
            rule = "must give the same trained ones: freeze the others by `requires_grad_(False)`"
            raise ValueError(f"build: `parameters` and `named_parameters` of the module differ; {rule}")
        tensors = [*module.named_parameters(), *module.named_buffers()]
        if sparse := [name for name, t in tensors if t.layout != torch.strided]:
            rule = "must be dense, or an attribute that is no buffer"
            raise ValueError(f"build: {', '.join(sparse)} is sparse or nested; {rule}")
        if len(self) > 1 and self.reads_model(self.objective or self.loss):
            rule = "with several seeds each must read its own: as `objective(model, ...)` of a Stack, or in its forward"
            raise ValueError(f"loss: reads a model that is trained; {rule}")
        of_first = dict(module.named_buffers())
        others = [dict(m.named_buffers()) for m in self.modules[1:]]
        self._shared = [name for name, t in of_first.items() if any(o.get(name) is t for o in others)]

    def reads_model(self, function):
        """Whether a loss or a schedule names, holds or encloses a part of a model that has parameters to train."""
        parts = [part for m in self.modules for part in m.modules() if part is not function]
        trained = {part for part in parts if any(p.requires_grad for p in part.parameters())}
        return not trained.isdisjoint(list_modules(function))

    # State -----------------------------------------------------------------------------------------------------

    def _stack(self, getter):
        """The state of all modules as tensors [seed, ...], of which the modules' own become views."""
        named = [dict(getattr(module, getter)()) for module in self.modules]
        if odd := sorted(set().union(*named) - named[0].keys()):
            raise ValueError(f"build: {', '.join(odd)} is not in all copies; must return modules that are alike")
        stacked = {}
        for name, first in named[0].items():
            own = [n.get(name) for n in named]
            if any(t is None or t.shape != first.shape or t.dtype != first.dtype for t in own):
                raise ValueError(f"build: {name} is not alike in all copies; must have one shape and dtype")
            if any(t.requires_grad != first.requires_grad for t in own):
                raise ValueError(f"build: {name} is frozen in some copies; must be trained in all or none")
            stacked[name] = torch.stack([t.detach() for t in own])
            for part, t in zip(stacked[name], own, strict=True):
                t.data = part
            if getter == "named_parameters":
                stacked[name].requires_grad_(first.requires_grad)
        return stacked

    def _note_state(self):
        self._held = self.params, self.buffers
        self._memory = [(held, name, t, t.data_ptr()) for held in self._held for name, t in held.items()]

    def _look_at_state(self):
        """A ValueError where somebody has put another tensor, or other memory, in the place of the stack's own."""
        replaced = [name for held, name, t, at in self._memory if held.get(name) is not t or t.data_ptr() != at]
        if self.params is not self._held[0] or self.buffers is not self._held[1]:
            replaced = ["the whole dict"]
        if replaced:
            rule = "must be changed in place, with `copy_` under `torch.no_grad()`"
            raise ValueError(f"params, buffers: {', '.join(replaced)} was replaced, or its `data`; {rule}")

    @torch.no_grad()
    def _load(self, state):
        known = {**self.params, **self.buffers}
        for name, value in state.items():
            if name not in known:
                raise ValueError(f"state: has {name!r}; must be among {', '.join(known)}")
            try:
                value = torch.as_tensor(value)
            except (RuntimeError, TypeError, ValueError) as error:
                raise ValueError(f"state: {name} is a {type(value).__name__}; must be a tensor ({error})") from None
            if value.shape != known[name].shape:
                raise ValueError(
                    f"state: {name} has shape {tuple(value.shape)}; "
                    f"must be {tuple(known[name].shape)}, one value per seed in front"
                )
            known[name].copy_(value)

    def get_module(self, i):
        """Model i as a module of its own, its state shared with nothing."""
        self._sync_buffers(i)
        try:
            return copy_module(self.modules[i])
        except Exception as error:  # whatever a module may hold
            name = type(self.modules[i]).__name__
            raise ValueError(
                f"get_module: {name} cannot be copied ({error}); stack.modules[{i}] is the model"
            ) from error

    def _make_template(self):
        """A copy of the first module that reads its state from the stack: what is computed anew in a backward pass."""
        template = copy_module(self.modules[0], share=True)
        self._share_state(template)
        return template

    def _share_state(self, template):
        for getter, stacked in (("named_parameters", self.params), ("named_buffers", self.buffers)):
            for name, own in getattr(template, getter)():
                if name in stacked:
                    own.data = stacked[name].detach()[0]

    @torch.no_grad()
    def _sync_parameters(self, i):
        """A parameter whose memory was replaced (``p.data = ...``) goes back to its place."""
        for name, p in self.modules[i].named_parameters():
            if name not in self.params:
                raise ValueError(f"build: {name} is made in a forward pass; must be made by build, or be a lazy layer")
            own = self.params[name][i]
            if p.data_ptr() != own.data_ptr():
                memory = p.untyped_storage().data_ptr()
                if other := [
                    n for n, t in self.params.items() if n != name and t.untyped_storage().data_ptr() == memory
                ]:
                    raise ValueError(f"build: {name} was made a view of {other[0]}; must be one parameter, or two")
                own.copy_(p)
                p.data = own.detach()

    def _sync_buffers(self, i):
        """A buffer that the module has replaced goes back to its place."""
        for name, buffer in self.modules[i].named_buffers():
            own = self.buffers.get(name)
            alike = own is not None and (buffer.shape, buffer.dtype) == (own[i].shape, own[i].dtype)
            if alike and buffer.data_ptr() != own[i].data_ptr():
                own[i].copy_(buffer.detach())
                owner, _, leaf = name.rpartition(".")
                self.modules[i].get_submodule(owner)._buffers[leaf] = own[i]

    def state_dict(self):
        """What decides how training goes on, copied: models, optimiser, generators. For a checkpoint.

        As with torch's own, what hooks, a scheduler among them, and an optimiser's attributes hold is not in it.
        """
        self._warn_of_lack("state_dict")
        return {
            "params": {name: t.detach().clone() for name, t in self.params.items()},
            "buffers": {name: t.clone() for name, t in self.buffers.items()},
            "late_buffers": [  # that began as None
                {n: t.clone() for n, t in module.named_buffers() if n not in self.buffers} for module in self.modules
            ],
            "extra": [
                {
                    name: copy.deepcopy(part.get_extra_state())
                    for name, part in module.named_modules()
                    if _has_extra_state(part)
                }
                for module in self.modules
            ],
            "optimizers": self.optimizers.state_dict(),
            "random": [state.clone() for state in self._rng],
            "python_random": list(self._python_rng),
        }

    def _warn_of_lack(self, what):
        if lack := self.optimizers.lack:
            rule = "which it does not hold: training may go on otherwise"
            warnings.warn(f"{what}: the optimiser has {lack}, {rule}", stacklevel=3)

    def load_state_dict(self, state):
        """Go on where :meth:`state_dict` was taken, with the same arguments on the same kind of processor."""
        self._load({**state["params"], **state["buffers"]})
        for module, late in zip(self.modules, state.get("late_buffers", [{}] * len(self)), strict=True):
            for name, buffer in late.items():
                owner, _, leaf = name.rpartition(".")
                module.get_submodule(owner)._buffers[leaf] = buffer.clone()
        for module, extra in zip(self.modules, copy.deepcopy(state.get("extra", [{}] * len(self))), strict=True):
            for name, value in extra.items():
                if pickle.dumps(value) != pickle.dumps(module.get_submodule(name).get_extra_state()):
                    module.get_submodule(name).set_extra_state(value)
        self.optimizers.load_state_dict(state["optimizers"])
        self._rng[:] = [s.clone() for s in state["random"]]
        self._python_rng[:] = state["python_random"]

    @torch.no_grad()
    def adopt(self, others):
        """Take over the models, each a stack of one, that have been trained in place of these."""
        for i, other in enumerate(others):
            for p in self.modules[i].parameters():  # whose ids may soon be those of others
                _OWNERS.pop(id(p), None)
            self.modules[i] = module = other.modules[0]
            _OWNERS.update({id(p): self for p in module.parameters() if p.requires_grad})
            for getter, held in (("named_parameters", "params"), ("named_buffers", "buffers")):
                stacked, trained = getattr(self, held), getattr(other, held)
                for name, own in getattr(module, getter)():
                    if name in stacked and stacked[name][i].shape == own.shape:
                        stacked[name][i].copy_(trained[name][0] if name in trained else own)
                        own.data = stacked[name].detach()[i]
            self.optimizers.adopt(i, other.optimizers)
            self._rng[i], self._python_rng[i] = other._rng[0], other._python_rng[0]
        self._shared = []

    def __getstate__(self):
        self._warn_of_lack("a copy")
        return self._list_state()

    def _list_state(self):
        """Without recordings and comparisons, which whoever reads it makes anew."""
        without = {"_recordings": {}, "_evaluates_together": {}, "_evaluated": (None, 0), "_batch": None,
                   "_losses": None, "_since_check": 0, "_seen": None, "_handed_out": {}, "_watched": [],
                   "_shares": None, "_dicts": [], "_copies": [], "_places": [], "_held_tensors": [], "_versions": [],
                   "_memory": [], "_held": (), "_leaves": []}  # fmt: skip
        return {**self.__dict__, **without}

    def __setstate__(self, state):
        self.__dict__ = state
        self._note_state()
        if self._draws is not None:
            self._draws = Draws(self._rng)
        for getter, stacked in (("named_parameters", self.params), ("named_buffers", self.buffers)):
            for i, module in enumerate(self.modules):
                for name, own in getattr(module, getter)():
                    if name in stacked:
                        own.data = stacked[name].detach()[i]
                    if not self.stacked and (grad := self.grads.get(name)) is not None:
                        own.grad = grad[i]
        if self._template is not None:
            self._share_state(self._template)
            self._watched = list_watched(self._template) + list_unshared(self.modules, self._template)
        if self.stacked:
            self._note_models()

    # Gradients and steps -----------------------------------------------------------------------------------------

    def step(self, factor=1.0):
        """Let the optimiser change the parameters by their gradients.

        Parameters
        ----------
        factor : float
            Of the learning rate, for a schedule.
        """
        self._look_at_state()
        grads = None if self.stacked is False else self.grads
        if self.stacked is False:  # what was put in the place of a gradient
            self._hand_out({n: g for n, g in self.grads.items() if g is not self._handed_out.get(n)})
        looks = len(self) > 1 and not self.remembers and self.optimizers.is_to_look_at()
        before = self.optimizers.freeze() if looks else {}
        with nullcontext() if self.optimizers.are_of_torch else keep_random_state():
            self.optimizers.step(grads, factor, self._compute_again, self._losses, self._random_of)
        after = self.optimizers.freeze() if looks else {}
        if any(before[key] != after[key] for key in before.keys() & after.keys()):
            self.remembers = True
            warnings.warn(OPTIMIZERS_REMEMBER, stacklevel=2)
        if not self.optimizers.are_of_torch:
            for i in range(len(self)):
                self._sync_parameters(i)

    def _hand_out(self, grads):
        """Give the modules their parts of gradients."""
        for name, grad in grads.items():
            for i, module in enumerate(self.modules):
                module.get_parameter(name).grad = None if grad is None else grad[i]

    def _compute_again(self, i):
        """Loss and gradients of model i on the last batch, for an optimiser that asks for them within its step."""
        self.modules[i].zero_grad()
        with keep_random_state(), self._random_of(i):
            loss = self.compute_loss(self.modules[i], *(t[i].clone() for t in self._batch))
            loss.backward()
        self._sync_buffers(i)
        return loss

    @contextmanager
    def _random_of(self, i):
        """In the random states of model i, which go on from here the next time."""
        torch.set_rng_state(self._rng[i])
        set_python_random(self._python_rng[i])
        yield
        self._rng[i], self._python_rng[i] = torch.get_rng_state(), get_python_random()

    def clip(self, max_norm):
        """Scale each model's gradient to a norm of at most `max_norm`, as ``clip_grad_norm_`` does.

        Returns
        -------
        Tensor, shape (seed,)
            The norms before.

        Raises
        ------
        ValueError
            If `max_norm` is not above 0, or the optimiser computes gradients of its own within a step, which nobody
            would clip.
        """
        if not max_norm > 0:
            raise ValueError(f"max_norm={max_norm!r}: must be above 0")
        if self.optimizers.compute_gradients:
            raise ValueError("clip: LBFGS computes gradients within its step; must be None, or part of the loss")
        grads = [g for g in self.grads.values() if g is not None]
        if not grads:
            raise ValueError("clip: there are no gradients; must come after `backward`")
        norms = torch.stack([torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in grads]).norm(dim=0)
        factor = (max_norm / (norms + 1e-6)).clamp(max=1.0)
        for g in grads:
            g.mul_(factor.view(-1, *[1] * (g.ndim - 1)))
        return norms

    # One model after the other -----------------------------------------------------------------------------------

    def compute_loss(self, module, *batch):
        """One model's scalar loss on its part of a batch."""
        if self.objective is not None:
            return self.objective(module, *batch)
        return self.loss(module(batch[0]), *batch[1:])

    def _backward_one(self, i, module, batch):
        module.zero_grad()
        with self._random_of(i):
            # A copy: what a model does to its batch in place must not reach the next one.
            own = [t[i].clone() for t in batch]
            versions = [t._version for t in own]
            loss = self.compute_loss(module, *own)
            if versions != [t._version for t in own] and len({t.data_ptr() for t in batch}) < len(batch):
                raise ValueError("batch: two of its tensors are one, which a forward pass writes on; pass a clone")
            if not isinstance(loss, torch.Tensor) or loss.ndim:
                what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)
                raise ValueError(f"loss: returned {what}; must return a scalar tensor, the mean over a batch")
            if not loss.requires_grad:
                raise ValueError("loss: does not depend on any parameter that requires a gradient")
            if self.stacked is None or len(self) > 1:
                self._look_at_leaves(loss, module.parameters())
            loss.backward()
        self._sync_buffers(i)
        self._sync_parameters(i)
        return loss.detach()

    def _look_at_leaves(self, losses, own):
        """Note whether gradients reach trained tensors that are not `own`, of another model or a loss."""
        known, seen = set(map(id, own)), set(map(id, self._leaves))
        self._leaves = [leaf for leaf in list_leaves(losses) if id(leaf) not in known]  # held: each has its own address
        if any(isinstance(leaf, nn.Parameter) or id(leaf) in seen for leaf in self._leaves):  # none of this step alone
            self._is_strange = self.remembers = True

    def _backward_plain(self, batch):
        """Losses and gradients of every model, each by itself, exactly as a loop would compute them."""
        losses = []
        for name, p in self.params.items():
            if p.requires_grad != self._flags[name]:  # somebody has frozen it, or the reverse
                self._flags[name] = p.requires_grad
                for module in self.modules:
                    module.get_parameter(name).requires_grad_(p.requires_grad)
        with keep_random_state():
            for i, module in enumerate(self.modules):
                losses.append(self._backward_one(i, module, batch))
        named = [dict(module.named_parameters()) for module in self.modules]
        with torch.no_grad():
            self.grads = {}
            for name in self.params:
                own = [n[name].grad for n in named]
                self.grads[name] = None
                if any(g is not None for g in own):
                    self.grads[name] = torch.stack(
                        [torch.zeros_like(self.params[name][0]) if g is None else g for g in own]
                    )
                    for part, n, g in zip(self.grads[name], named, own, strict=True):
                        n[name].grad = None if g is None else part  # so that a change of `grads` reaches it
        self._handed_out = dict(self.grads)
        return torch.stack(losses)

    def _backward_in_turn(self, batch):
        """The same, with a warning once the loss, which all models share, is seen to remember."""
        n = self._turns = self._turns + 1
        if len(self) == 1 or self._is_told or (self._looks_rarely and n > 8 and n & (n - 1)):
            return self._backward_plain(batch)
        start = time.perf_counter()
        before = self._get_loss_state(), self._get_models_state()
        self._looks_rarely = time.perf_counter() - start > SLOWLY
        again = self._get_loss_state(), self._get_models_state()  # of a large array, say, which may always have changed
        losses = self._backward_plain(batch)
        after = self._get_loss_state(), self._get_models_state()
        for was, still, now, text in zip(before, again, after, (REMEMBERS, MODELS_REMEMBER), strict=True):
            if was == still != now and not self._is_told:
                self._is_told = self.remembers = True
                warnings.warn(text, stacklevel=4)
        return losses

    def _get_models_state(self):
        """What all models share and may count in, besides the loss: classes, globals, objects that several hold."""
        if self._shares is None:
            self._shares = list_watched(self.modules[0], shared_with=self.modules[1:])
        return [freeze() for freeze in self._shares]

    def _get_loss_state(self):
        function = self.objective or self.loss
        return freeze_function(function), [freeze_held(m) for m in list_modules(function) if m is not self.modules[0]]

    # All models together -----------------------------------------------------------------------------------------

    def _call(self, function, params, buffers, *batch):
        """``function(module, *batch)`` for every model, and the buffers after it."""

        def one(params, buffers, *batch):
            buffers = dict(buffers)
            state = {f"module.{name}": t for name, t in {**params, **buffers}.items()}
            out = functional_call(_Objective(self._template, function), state, batch)
            return out, {name: state[f"module.{name}"] for name in buffers}

        with keep_slots(self._template), swapped(self._layers), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "There is a performance drop", UserWarning
            )  # vmap's, of a loop of its own
            if len(self) > 1:
                return vmap(one, randomness="different")(params, buffers, *batch)
            first = [{name: t[0] for name, t in d.items()} for d in (params, buffers)]
            places = [(p, p.data_ptr()) for p in first[0].values()]
            out, after = one(*first, *(t[0] for t in batch))
            if torch.is_grad_enabled() and any(p.data_ptr() != place for p, place in places):  # `p.data = ...`
                raise RefusedError("the module changes parameters in its forward pass")
            return tree_map_only(torch.Tensor, lambda t: t.unsqueeze(0), out), {
                k: t.unsqueeze(0) for k, t in after.items()
            }

    def _is_cross_entropy(self, batch):
        """Whether the loss is plain cross-entropy of classes, and the batch holds nothing else, weights say."""
        if len(batch) != 2 or batch[1].ndim != 2 or batch[1].is_floating_point():
            return False
        loss = self.loss  # hooks of it were refused
        plain = type(loss) is nn.CrossEntropyLoss and (
            loss.weight is None and loss.ignore_index == -100 and loss.reduction == "mean" and not loss.label_smoothing
        )
        return self.objective is None and (loss is F.cross_entropy or plain)

    def _backward_together(self, *batch):
        """Losses and gradients of all models by one call of `vmap`: a list of losses and gradients."""
        trained = {name: p.detach().requires_grad_() for name, p in self.params.items() if p.requires_grad}
        params = {**self.params, **trained}
        if self._is_cross_entropy(batch):
            logits, after = self._call(lambda module, x: module(x), params, self.buffers, batch[0])
            # With the classes on the middle axis the softmax runs along examples, and twice as fast.
            each = F.cross_entropy(logits.transpose(1, 2), batch[1], reduction="none")
            losses = each.sum(1) / (batch[1] != -100).sum(1)  # its ignore_index
        else:
            losses, after = self._call(self.compute_loss, params, self.buffers, *batch)
        if self._looks_at_leaves:
            self._look_at_leaves(losses, [*trained.values(), *self._template.parameters()])
            if self._is_strange:
                raise RefusedError(STRANGE)
        grads = torch.autograd.grad(losses, list(trained.values()), torch.ones_like(losses), allow_unused=True)
        with torch.no_grad():
            for name, buffer in self.buffers.items():
                if after[name].data_ptr() != buffer.data_ptr():
                    buffer.copy_(after[name].detach())
        self._used = [name for name, grad in zip(trained, grads, strict=True) if grad is not None]
        grads = [grad.resolve_conj().resolve_neg().contiguous() for grad in grads if grad is not None]
        places = [grad.data_ptr() for grad in grads]  # of a sum autograd gives both terms the same tensor
        grads = [grad.clone() if places[i] in places[:i] else grad for i, grad in enumerate(grads)]
        return [losses.detach(), *grads]

    def _get_outside(self):
        """What loss and forward passes read besides the batch; looked at before every replay."""
        function = self.objective or self.loss
        tensors = [freeze_held(module) for module in list_modules(function)]
        return freeze_function(function), tensors, *(freeze() for freeze in self._watched)

    def _get_inside(self):
        """What the module holds besides: looked at where a replay is compared."""
        return freeze_module(self._template, {id(f.args[0]) for f in self._watched})

    def _get_python_state(self):
        """What a recording would never see change."""
        return freeze_module(self._template), freeze_function(self.objective or self.loss)

    def _run_together(self, batch):
        before, state, python = self._save_inner(), torch.get_rng_state(), get_python_random()
        for _ in range(ATTEMPTS):
            # What a model does to its batch in place stays here.
            own = [t.clone() for t in batch] if self._writes_batch else batch
            try:
                with self._draws or nullcontext():
                    results = self._backward_together(*own)
            except Exception:
                torch.set_rng_state(state)
                set_python_random(python)
                self._restore_inner(before)
                raise
            if python == get_python_random():
                break
            set_python_random(python)
            torch.set_rng_state(state)
            self._restore_inner(before)
        else:
            raise _PythonDrawsError("it draws from the generator of python or numpy")
        if torch.equal(state, torch.get_rng_state()):
            return results
        torch.set_rng_state(state)
        if self._draws is not None:  # a seed that the module sets itself, say
            return results
        self._restore_inner(before)  # it has begun to draw: again, each model from its own generator
        self._draws = Draws(self._rng)
        return self._run_together(batch)

    def _run_on_copy(self, batch):
        """The same, and whether a model writes on its batch."""
        own = _copy(batch)
        versions = [t._version for t in own]
        self._looks_at_leaves = True
        try:
            results = self._run_together(own)
        finally:
            self._looks_at_leaves = False
        self._writes_batch |= versions != [t._version for t in own]
        return results

    def _keep(self, results):
        losses, *grads = results
        if self._recordings and not self.reuse_grads:  # the next replay writes over them
            grads = [grad.clone() for grad in grads]
        self.grads = dict.fromkeys(self.params) | dict(zip(self._used, grads, strict=True))
        return losses

    def _save_inner(self):
        return {name: t.clone() for name, t in self.buffers.items()}, [s.clone() for s in self._rng]

    def _restore_inner(self, saved):
        for name, t in saved[0].items():
            self.buffers[name].copy_(t)
        self._rng[:] = saved[1]

    def _decide(self, batch):
        """Compute the first batch in both ways; go on together if they agree. Where that cannot tell, the next does."""
        module, function = self.modules[0], self.objective or self.loss

        watched = list_watched(module)

        def describe():
            outside = [freeze() for freeze in watched]
            return (freeze_module(module), freeze_tensors(module), outside), self._get_loss_state()

        try:
            fresh = [copy_module(m) for m in self.modules]  # as they are before anything has run
        except Exception:  # whatever a module may hold that cannot be copied
            fresh = None
        values = {name: p.detach().clone() for name, p in self.params.items()}
        reason, before, seen, drawn = "", self._save_inner(), describe(), list(self._python_rng)
        again = self._get_loss_state()
        with Finder() as finder:
            losses = self._backward_plain(batch)  # an error here is the user's own
        pairs = [(p, values[name]) for name, p in self.params.items()]
        if shared := [name for name in self._shared if not have_same_numbers(self.buffers[name], before[0][name])]:
            rule = "must be one for each seed, or stay as it is (in evaluation mode)"
            raise ValueError(f"build: the buffer {shared[0]} is that of all seeds, and training changes it; {rule}")
        if not all(have_same_numbers(p, value) for p, value in pairs):
            reason = "the module changes parameters in its forward pass"
        elif self.remembers:
            reason = STRANGE if self._is_strange else BUILT
        elif {name for name, _ in module.named_buffers()} != self.buffers.keys():
            reason = "a buffer of the module begins as None"
        elif any((b.shape, b.dtype) != (before[0][n].shape[1:], before[0][n].dtype) for n, b in module.named_buffers()):
            reason = "a buffer of the module changes its shape or type"
        elif len(self) > 1 and (finder.padding or _has_padding(module)):
            reason = "vmap gives the padding of an embedding a gradient"
        elif seen[0] != (now := describe())[0]:
            reason = "the module counts or remembers in Python, or in tensors that are no buffers"
            kinds, outside = ([picture[0][0][0], picture[0][2]] for picture in (seen, now))
            self.remembers = kinds != outside or share_objects(self.modules)
        elif seen[1] != now[1]:
            self._is_told, self.remembers = True, seen[1] == again
            reason = REMEMBERS if self.remembers else UNSEEN
        elif has_hooks(module) or (finder.hook and len(self) > 1):
            reason, self.remembers = "it has hooks on gradients", True  # which may share what they count
        elif has_forward_hooks(module):
            reason, self.remembers = "it has hooks", True
        elif any(has_hooks(m) or has_forward_hooks(m) for m in list_modules(function)):
            reason, self.remembers = "the loss has hooks", True
        elif len(self) > 1 and finder.may_fail and catches_errors(module, function):
            reason = "it may catch an error of linear algebra, which among several models is that of all"
        elif not all(hold_alike(module, other) for other in self.modules[1:]):
            reason = "what it holds besides parameters and buffers differs between seeds"
        elif encloses_itself(module):
            reason = "it holds a function that encloses it, which a copy would share"
        else:
            try:
                self._template = self._make_template()
                self._layers = find_layers(self._template)
            except (RuntimeError, TypeError) as error:  # it holds what cannot be copied
                self._template, reason = None, str(error)
        plain = [losses, *(self.grads[name] for name in self.params if self.grads[name] is not None)]
        names, after = [n for n in self.params if self.grads[n] is not None], self._save_inner()
        self.stacked = False
        self._replay &= not has_forward_hooks(module)  # which no replay calls
        if reason:
            return self._explain(reason, losses)
        if any(not torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True)):
            self._draws = Draws(self._rng)
        for layers in (self._layers, []) if self._layers else ([],):  # with kernels, or as torch wrote them
            self._layers, self._put_off = layers, False
            self._restore_inner(before)
            reason = self._find_difference(batch, plain, names, after, fresh)
            if not reason or self._put_off:
                break
        self._doubts = self._doubts + 1 if self._put_off else 0
        if 0 < self._doubts < PATIENCE:
            self._restore_inner(after)
            self.stacked = None
            return losses
        if not reason and len(self) == 1 and (reason := self._find_reads(batch)):
            warnings.warn(f"training steps are not replayed, which is slower: {reason}", stacklevel=4)
        if reason:
            self._restore_inner(after)
            return self._explain(reason, losses)
        self._restore_inner(before)
        self._python_rng[:] = drawn  # if it differs, another thread drew
        self.stacked = True
        self._note_models()
        return self._compute(batch)

    def _find_reads(self, batch):
        """Where one model may act by a value, in a rare step maybe, which vmap would refuse: what it reads."""
        try:
            with keep_attributes([self._template]), keep_random_state():
                check_reads(self._backward_together, _copy(batch), self._draws)
        except RefusedError as error:
            return str(error)
        return ""

    def _find_difference(self, batch, plain, names, after, fresh):
        """What keeps the first batch from being computed together, as text; empty if nothing does."""
        function = self.objective or self.loss
        try:
            with keep_attributes([self._template]):
                python, before = self._get_python_state(), self._save_inner()
                together = self._run_on_copy(batch)
                if self._get_python_state() != python:
                    raise RefusedError("the module counts or remembers in Python")
            self._replay &= not self._writes_batch
            self._watched = list_watched(self._template) + list_unshared(self.modules, self._template)
            same = self._used == names
            is_near = self._agree(together, plain, self.buffers, after[0])
            is_single = any(p.dtype in SINGLE for p in self.params.values())
            may_lose = names_autograd(self._template, function) or holds_parameters(self.modules[0])  # a small term
            is_tight = is_near and _have_same_zeros(together, plain)
            is_tight = is_tight and self._agree(together, plain, self.buffers, after[0], times=TIGHTLY)
            if not is_near or (is_single and (may_lose or not is_tight)):
                inner = self._save_inner()
                self._restore_inner(before)
                is_near = self._agree_in_double(batch, fresh, together, plain, otherwise=is_near and not may_lose)
                self._restore_inner(inner)
            same &= is_near
            same &= all(torch.equal(a, b) for a, b in zip(self._rng, after[1], strict=True))
            return "" if same else DIFFERENT
        except Exception as error:  # whatever a module does that vmap cannot; the plain way has just worked
            return str(error).strip().splitlines()[0] or type(error).__name__

    def _note_models(self):
        """What whoever built the models may change of them."""
        parts = [part for m in self.modules for part in m.modules()]
        models = [*self.modules, self._template]
        attributes = [{id(v) for part in m.modules() for v in list_attributes(part)} for m in models]
        shared = set.intersection(*attributes)  # by all models: a change reaches all, and the template
        dicts = [d for part in parts for d in (vars(part), *vars(part).values()) if isinstance(d, dict)]
        self._dicts = [d for d in dicts if id(d) not in shared]
        self._copies = [dict(d) for d in self._dicts]
        named = [item for m in self.modules for item in m.named_parameters()]
        self._places = [(p, p.data_ptr(), name) for name, p in named]
        held = [t for part in parts for t in vars(part).values() if isinstance(t, torch.Tensor) and not t.requires_grad]
        self._held_tensors = [t for t in held if t.layout == torch.strided]
        self._note_versions()

    def _note_versions(self):
        """Also where an evaluation or a comparison has given tensors back what they held."""
        self._versions = list(map(mark_values, self._held_tensors))

    def _look_at_models(self):
        """Where whoever built the models has changed one of them since, go on one by one, with what it is now."""
        flags = self._flags
        try:
            is_same = all(map(operator.eq, self._dicts, self._copies))
            is_same &= all(p.data_ptr() == at and p.requires_grad == flags[name] for p, at, name in self._places)
            is_same &= list(map(mark_values, self._held_tensors)) == self._versions
        except (RuntimeError, ValueError):  # another array or tensor in the place of one
            is_same = False
        if not is_same:
            now = [(id(p), name) for m in self.modules for name, p in m.named_parameters()]
            if now != [(id(p), name) for p, _, name in self._places]:
                rule = "must keep those that it was built with, which the optimiser holds: change them in place"
                raise ValueError(f"modules: a parameter of a {type(self.modules[0]).__name__} was replaced; {rule}")
            for i in range(len(self)):
                self._sync_buffers(i)
                self._sync_parameters(i)
            self.part()
            self._explain("a model was changed from outside", None)

    def _is_due(self):
        """Whether this step is one to compare with the plain way: the next two, the last, and some between."""
        outside, is_new = self._get_outside(), False
        if self._seen != outside:
            self._has_changed |= self._seen is not None
            is_new = self._is_new(outside)
        self._seen = outside
        self._steps += 1
        if self._steps == 1:  # the first batch has just been compared
            return False
        self._since_plain += 1
        if is_new and not self._doubts and self._inside in (None, self._get_inside()):
            # Whatever it means, it begins with this step.
            self._since_check, self._since_plain = 0, 1
        is_time = self._steps <= 3 or self._since_plain >= self._gap or self.check_next or is_new or self._doubts > 0
        return is_time or (self._has_changed and self._since_plain >= SELDOM)

    def _is_new(self, outside):
        """Whether what is read outside is as in no step before; of what is always new the 1st to 8th, 16th, 32nd ..."""
        picture = hash(repr(outside))
        if picture in self._pictures:
            return False
        self._pictures.add(picture)
        n = self._n_pictures = self._n_pictures + 1
        if len(self._pictures) > MOST_PICTURES:
            self._pictures = {picture}
        return n <= 8 or not n & (n - 1)

    def _is_as_plain(self, batch):
        """Whether a step of all models together still gives what it gives each by itself."""
        before, python = self._save_inner(), list(self._python_rng)
        function = self.objective or self.loss
        try:
            values = {name: p.detach().clone() for name, p in self.params.items()}
            with keep_attributes(self.modules), keep_code(self._kinds), keep_function(function):
                held, shared = self._get_held(), self._get_models_state()
                losses = self._backward_plain(batch)
                begins_to_remember = held != self._get_held()
                self.remembers |= begins_to_remember and len(self) > 1 and shared != self._get_models_state()
            pairs = [(p, values[name]) for name, p in self.params.items()]
            if not all(have_same_numbers(p, value) for p, value in pairs):  # in a forward pass
                self._load(values)
                return False
            if begins_to_remember:
                return False
            plain = [losses, *(self.grads[name] for name in self.params if self.grads[name] is not None)]
            names, after = [n for n in self.params if self.grads[n] is not None], self._save_inner()
            self._restore_inner(before)
            self._python_rng[:] = python
            with keep_attributes([self._template]), keep_code(self._kinds), keep_function(function):
                together = self._run_on_copy(batch)
            same = self._used == names and self._agree(together, plain, self.buffers, after[0])
            same &= all(torch.equal(a, b) for a, b in zip(self._rng, after[1], strict=True))
            self._put_off = False
            if not same and self._used == names:
                nearly = self._agree(together, plain, self.buffers, after[0], LEAST)
                self._restore_inner(before)
                with keep_code(self._kinds), keep_function(function):
                    fresh = [copy_module(m) for m in self.modules]
                    same = self._agree_in_double(batch, fresh, together, plain, LEAST, otherwise=nearly)
            self._doubts = self._doubts + 1 if self._put_off else 0
        finally:
            self._restore_inner(before)
            self._python_rng[:] = python
            self._note_versions()
        if self._put_off:  # to the next step, which is due then
            return self._doubts < PATIENCE
        if same:
            self._since_plain, self._has_changed = 0, False
            self._gap = self._gaps.randint(self._widest // 2, self._widest)
            self._widest = min(2 * self._widest, LONGEST)
        return same

    def _get_held(self):
        return freeze_module(self.modules[0]), freeze_tensors(self.modules[0])

    def _make_twin(self, modules):
        """A stack of other modules with the same random states."""
        twin = type(self).__new__(type(self))
        twin.__setstate__(self._list_state())
        twin._rng = [state.clone() for state in self._rng]
        twin._draws = None if self._draws is None else Draws(twin._rng)
        twin._python_rng, twin._flags, twin.modules = list(self._python_rng), dict(self._flags), modules
        twin.params, twin.buffers = twin._stack("named_parameters"), twin._stack("named_buffers")
        return twin

    def _agree_in_double(self, batch, fresh, ours, plain, least=0.0, otherwise=False):
        """Whether the two ways agree in double precision, so that what lay between them was rounding alone.

        Gradients that nearly cancel, as those of a contrastive loss do before training, round by per mille. One by one
        run the `fresh` modules, as before the batch; together a template as ours. Where that cannot be, `otherwise`.
        A copy may lack what a module has, or have what it had: both ways, as they are, must lie near to that one.
        Where one example makes most of a gradient, a unit at its kink moves it far, and no loss: if the way together
        was right in the steps before, or has not yet been taken, the comparison is put off to the next batch.
        """
        if fresh is None or not any(p.dtype in SINGLE for p in self.params.values()):
            return otherwise
        given, copies = batch, [copy_module(m) for m in fresh] if self._draws is not None else fresh
        batch = [t.double() if t.is_floating_point() else t for t in batch]
        default = torch.get_default_dtype()
        grads = [(p, p.grad) for module in self.modules for p in module.parameters()]  # which a loss may reach
        try:
            for p, _ in grads:
                p.grad = None
            torch.set_default_dtype(torch.float64)  # of what is drawn or made on the way
            twin = self._make_twin([module.double() for module in fresh])
            twin._template = copy_module(self._template, share=True).double()
            twin._share_state(twin._template)
            twin._layers = find_layers(twin._template) if self._layers else []
            before = twin._save_inner()
            losses = twin._backward_plain(batch)
            exact, after = [losses, *(g for g in twin.grads.values() if g is not None)], twin._save_inner()
            twin._restore_inner(before)
            together = [t.to(e.dtype) for t, e in zip(twin._run_together(batch), exact, strict=True)]  # some losses mix
            if not twin._agree(together, exact, twin.buffers, after[0], least):
                return False
            if any(not torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True)):
                torch.set_default_dtype(default)  # random numbers are others in double precision: as it was, but copied
                single = self._make_twin(copies)
                losses = single._backward_plain(given)
                again = [losses, *(g for g in single.grads.values() if g is not None)]
                return len(again) == len(plain) and all(map(have_same_numbers, again, plain))
            exact = [e.to(p.dtype) for e, p in zip(exact, plain, strict=True)]
            is_near = all(self._agree(way, exact, {}, {}, max(least, LEAST), ROUGHLY) for way in (plain, ours))
            loss, alive, floor = exact[0], exact[0].isfinite(), exact[0].real.new_tensor(LEAST)
            self._put_off = (
                not is_near
                and (self._since_plain > 1 or not self._steps)
                and not self.check_next  # there may be no next step
                and all(is_close(way[0][alive], loss[alive], floor) for way in (plain, ours))
            )
            return is_near
        except Exception:  # a module or loss that knows single precision only, or itself
            return otherwise
        finally:
            torch.set_default_dtype(default)
            for p, grad in grads:
                p.grad = grad

    def _explain(self, reason, losses):
        if len(self) > 1:
            name = type(self.modules[0]).__name__
            warnings.warn(f"{name} is trained one seed after the other, not together: {reason}", stacklevel=5)
        self.optimizers.split()
        return losses

    def _agree(self, ours, plain, our_buffers, plain_buffers, least=0.0, times=1):
        """Whether losses, gradients and buffers are the same to rounding, of all models that have not diverged."""
        alive = plain[0].isfinite()
        ours, plain = [t[alive] for t in ours], [t[alive] for t in plain]
        if not alive.any():
            return True
        # A gradient that is zero but for rounding is compared with the largest of its model.
        finite = [torch.where(g.isfinite(), g, 0).reshape(len(g), -1) for g in plain[1:] if g[0].numel()]
        largest = [g.abs().amax(1).double() for g in finite]
        scale = torch.stack(largest).amax(0).clamp(min=100 * least)
        pairs = zip(ours[1:], plain[1:], strict=True)
        return (
            is_close(ours[0], plain[0], plain[0].real.new_tensor(least), times)
            and all(is_close(a, b, 0.01 * scale.to(b.real.dtype), times) for a, b in pairs)
            and all(is_close(our_buffers[name][alive], t[alive]) for name, t in plain_buffers.items())
        )

    def _backward_replayed(self, batch):
        """A replayed step, compared with the real one at its first uses and every few hundred steps."""
        key = tuple((t.shape, t.dtype, t.stride(0) == 0) for t in batch)
        key += tuple(p.requires_grad for p in self.params.values())
        kind = batch[0].device.type
        key += torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind), torch.get_default_dtype()
        has_changed = False
        if key in self._recordings:
            self._recordings[key][1] += 1
            replay, uses, self._used = self._recordings[key]
            has_changed, self._outside = self._seen != self._outside, self._seen
            is_rare = uses <= 2 or uses % CHECK_EVERY == 0  # of a shape that may be so
            if not (is_rare or self._since_plain == 0 or has_changed or self.check_next):
                self._since_check += 1
                return replay(*batch)
            if has_changed and self._get_inside() == self._inside:
                self._since_check = 0  # whatever the change means, until now the replays were right
        elif len(self._recordings) >= MAX_RECORDINGS:
            return self._stop_replay("batches come in too many shapes", self._run_together(batch))
        before, python = self._save_inner(), self._get_python_state()
        self._inside, self._outside = self._get_inside(), self._seen
        plain = self._run_on_copy(batch)
        after = self._save_inner()
        if self._writes_batch and not self._since_check:
            return self._stop_replay("the module writes on its batch", plain)
        if self._get_python_state() != python:
            return self._stop_replay("the module counts or remembers in Python", plain)
        self._restore_inner(before)
        try:
            if key not in self._recordings:
                recording = Replay(self._backward_together, *batch, draws=self._draws)
                self._recordings[key] = [recording, 0, self._used]
                self._restore_inner(before)
            results = self._recordings[key][0](*batch)
        except Exception as error:  # it is refused, or an operation cannot write where it shall
            self._restore_inner(after)
            return self._stop_replay((str(error).strip().splitlines() or [type(error).__name__])[0], plain)
        # What has just changed may change little. Of equal operations the results differ by less than of a stack.
        times = TIGHTLY if has_changed and not self._since_check else 1
        same = self._agree(results, plain, self.buffers, after[0], times=times)
        same &= times == 1 or _have_same_zeros(results, plain)
        same &= all(torch.equal(a, b) for a, b in zip(self._rng, after[1], strict=True))
        if same:
            self._since_check = 0
            return results
        if self._since_check:
            self._restore_inner(before)
            self._replay, self._recordings = False, {}
            raise ReplayError(
                f"a replayed step differs from autograd, {self._since_check} steps after the last comparison: the "
                "module or the loss reads what changes outside of its tensors; use replay=False or MNIST1D_REPLAY=0"
            )
        self._restore_inner(after)
        return self._stop_replay("the replay differs from autograd", plain)

    def _stop_replay(self, reason, results):
        self._replay, self._recordings = False, {}
        warnings.warn(f"training steps are not replayed, which is slower: {reason}", stacklevel=5)
        return results

    def _check_batch(self, batch):
        if odd := sorted({type(t).__name__ for t in batch if not isinstance(t, torch.Tensor)}):
            raise ValueError(f"batch: holds {', '.join(odd)}; must be tensors, with the {len(self)} seeds in front")
        if any(t.ndim == 0 or len(t) != len(self) for t in batch):
            shapes = ", ".join(str(tuple(t.shape)) for t in batch)
            raise ValueError(f"batch: has shapes {shapes}; must have the {len(self)} seeds in front")
        if any(t.requires_grad for t in batch):
            raise ValueError("batch: requires a gradient; must not, take one by torch.autograd.grad in `objective`")

    def backward(self, *batch):
        """Losses of all models on a batch; their gradients are in `grads` afterwards.

        Parameters
        ----------
        *batch : Tensor, shape (seed, example, ...)
            By default inputs and targets; what `objective` takes.

        Returns
        -------
        Tensor, shape (seed,)

        Raises
        ------
        ValueError
            If the loss is no scalar, before anything was changed.
        ReplayError
            If the module or loss has read, since some steps, what a replay cannot see.
        """
        if not torch.is_grad_enabled():
            raise ValueError("backward: called under torch.no_grad(); must be where gradients are computed")
        self._check_batch(batch)
        self._look_at_state()
        self._batch = batch
        self._losses = self._compute(batch)
        return self._losses.clone()

    def _compute(self, batch):
        if self.stacked is None:
            return self._decide(batch)
        if self.stacked:
            self._look_at_models()
        if not self.stacked:
            return self._backward_in_turn(batch)
        try:
            if self._is_due() and not self._is_as_plain(batch):
                text = f"{DIFFERENT}, {self._since_plain - 1} steps after the last comparison; from now on they part"
                return self._part(DIFFERENT, text if self._since_plain > 1 else "", batch)
            if self._replay:
                return self._keep(self._backward_replayed(batch))
            return self._keep(self._run_together(batch))
        except ReplayError:
            raise
        except Exception as error:  # vmap cannot what a module now does; if nothing can, the plain way says so
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            text = f"{reason}, which {self._since_check} replayed steps have not done"
            return self._part(reason, text if self._since_check else "", batch)

    def part(self):
        """From now on compute the models one by one."""
        if self.stacked:  # each module holds its own gradients from now on
            self._hand_out(self.grads)
        self.stacked, self._replay, self._recordings = False, False, {}
        self._since_check = self._since_plain = 0
        self.optimizers.split()

    def _part(self, reason, error, batch):
        """Go on one by one; an error where past steps may have been wrong."""
        self.stacked, self._replay, self._recordings = False, False, {}
        self._since_check = self._since_plain = 0
        self._explain(reason, None)
        if error:
            raise ReplayError(error)
        return self._backward_plain(batch)

    def _evaluate_plain(self, function, batch):
        outs = []
        with keep_random_state():
            for i, module in enumerate(self.modules):
                own = [(p, p.grad, p.detach().clone()) for p in module.parameters()]
                parts = [(part._modules, dict(part._modules)) for part in module.modules()]
                module.zero_grad()
                try:
                    with self._random_of(i):
                        module.eval()  # which not every module returns
                        outs.append(function(module, *(t[i].clone() for t in batch)))
                finally:
                    for named, before in parts:  # a fused layer, say, that evaluation mode alone has
                        if list(named.items()) != list(before.items()):
                            named.clear()
                            named.update(before)
                    self._sync_buffers(i)
                    self._sync_parameters(i)
                    for p, grad, value in own:
                        p.grad = grad
                        p.copy_(value)

        def join(*parts):
            try:
                return torch.stack([torch.as_tensor(part) for part in parts])
            except (RuntimeError, TypeError, ValueError):
                what = {f"{type(p).__name__} {tuple(getattr(p, 'shape', ()))}" for p in parts}
                text = f"function: gave {', '.join(sorted(what))}; must give tensors, of one shape for all models"
                raise ValueError(text) from None

        return tree_map(join, *outs)

    def _evaluate(self, function, batch, saved):
        """All models together if that works and, the first time, gives what they give one by one."""
        key = identify(function)
        if self.stacked and key is not None:
            outside = self._get_outside()
            if outside != self._evaluated[0]:
                self._evaluated = outside, hash(repr(outside))
            key = key, self._evaluated[1]
            if key not in self._evaluates_together and len(self._evaluates_together) >= MOST_FUNCTIONS:
                self._evaluates_together.clear()  # functions made anew each time
        if not self.stacked or key is None or self._has_own_modes or not self._evaluates_together.get(key, True):
            return self._evaluate_plain(function, batch)
        self._template.eval()
        random_states = torch.get_rng_state(), get_python_random()
        for _ in range(ATTEMPTS):
            # What a function does in place, to its batch or to the parameters, stays here.
            own, params = _copy(batch), {name: p.detach().clone() for name, p in self.params.items()}
            try:
                with self._draws or nullcontext():
                    together, _ = self._call(function, params, copy.deepcopy(self.buffers), *own)
            except Exception:  # whatever vmap cannot; the plain way tells whether it is the user's error
                torch.set_rng_state(random_states[0])
                set_python_random(random_states[1])
                self._restore_inner(saved)
                self._evaluates_together[key] = False
                return self._evaluate_plain(function, batch)
            if torch.equal(random_states[0], torch.get_rng_state()) and random_states[1] == get_python_random():
                break
            torch.set_rng_state(random_states[0])
            set_python_random(random_states[1])
            self._restore_inner(saved)
        else:  # it draws from what all models share: each from its own instead
            self._evaluates_together[key] = False
            return self._evaluate_plain(function, batch)
        if not all(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(together)):  # one model's own numbers
            self._restore_inner(saved)
            self._evaluates_together[key] = False
            return self._evaluate_plain(function, batch)
        if key not in self._evaluates_together:
            self._restore_inner(saved)
            plain = self._evaluate_plain(function, batch)
            pairs = zip(tree_leaves(together), tree_leaves(plain), strict=True)
            self._evaluates_together[key] = all(is_answer_close(a, b) for a, b in pairs)
            return together if self._evaluates_together[key] else plain
        return together

    @torch.no_grad()
    def evaluate(self, function, *batch):
        """``function(model, *batch)`` for every model in evaluation mode; nothing of the models changes.

        Their random states neither: what `function` draws is the same at every call.

        Parameters
        ----------
        function : callable
            Maps one model and its part of the batch to a tensor, or a nested structure of tensors.
        *batch : Tensor, shape (seed, ...)

        Returns
        -------
        Tensor, shape (seed, ...), or the structure of such
        """
        self._check_batch(batch)
        self._look_at_state()
        if self.stacked:
            self._look_at_models()
        saved, python = self._save_inner(), list(self._python_rng)
        clear = remember_caches(self.modules) if self.stacked is None else None
        try:
            modules = [*self.modules, *([self._template] if self._template is not None else [])]
            is_loss = function == self.compute_loss
            keep = keep_function(self.objective or self.loss) if is_loss else nullcontext()
            with keep_attributes(modules, self.keeps_hooks), keep_code(self._kinds), keep:
                return self._evaluate(function, batch, saved)
        except RuntimeError as error:
            if "does not require grad" in str(error):
                error.add_note("evaluated under torch.no_grad(): a forward pass that differentiates sets enable_grad()")
            raise
        finally:
            has_drawn = python != self._python_rng or any(map(_differ, self._rng, saved[1]))
            if has_drawn and clear is not None:  # what was drawn for a cache the first training step is to draw
                clear()
            self._restore_inner(saved)
            self._python_rng[:] = python
            self._note_versions()
