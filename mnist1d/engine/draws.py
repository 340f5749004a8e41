"""Random numbers inside a stack: every model draws from a generator of its own, as if it were alone."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from mnist1d.engine.replay import RefusedError

__all__ = ["Draws"]


class Draws(TorchDispatchMode):
    """Below `vmap`: split every draw for all models into one draw for each.

    Parameters
    ----------
    states : list of Tensor
        The state of each model's generator, as ``torch.get_rng_state()`` gives it; draws replace them.
    """

    def __init__(self, states):
        super().__init__()
        self.states = states

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if torch.Tag.nondeterministic_seeded not in function.tags:
            return function(*args, **(kwargs or {}))
        return self.run(function, *args, **(kwargs or {}))

    def run(self, function, *args, **kwargs):
        """One call for each model, with its part of the arguments and its generator."""
        n = len(self.states)
        if n == 1:  # there is no axis of models
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(self.states[0])
                out = function(*args, **kwargs)
                self.states[0] = torch.get_rng_state()
            return out

        def has_axis(value):
            shape = value.shape if isinstance(value, torch.Tensor) else value
            return len(shape) > 0 and shape[0] == n

        sizes = [arg for arg in args if isinstance(arg, torch.Tensor | list)]
        if not sizes or not all(has_axis(arg) for arg in sizes):
            raise RefusedError(f"{function} draws numbers that belong to no model")
        outs = []
        before = torch.get_rng_state()
        for i, state in enumerate(self.states):
            torch.set_rng_state(state)
            own = [arg[1:] if isinstance(arg, list) else arg for arg in args]
            outs.append(function(*tree_map_only(torch.Tensor, lambda t, i=i: t[i], own), **kwargs))
            self.states[i] = torch.get_rng_state()
        torch.set_rng_state(before)
        return args[0] if function._schema.is_mutable else torch.stack(outs)
