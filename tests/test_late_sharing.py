"""What hooks, optimisers, classes and memory share between seeds, with evaluations and workers, and what is none.

And what these were found with: half precision, forward passes that differentiate, checkpoints.
"""

import collections
import copy
import enum
import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mnist1d.engine import Stack
from mnist1d.engine import stack as engine_stack
from mnist1d.engine.pictures import mark_values
from mnist1d.training import sweep, train
from mnist1d.utils import set_seed
from zoo import check_seeds, draw_small_data, run_plainly

IN_TURN = pytest.mark.filterwarnings("ignore:.*one seed after the other")
DATA = draw_small_data()
SGD = functools.partial(torch.optim.SGD, lr=0.05)


def mlp():
    return nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))


check = functools.partial(check_seeds, DATA, seeds=([4], [3, 4]), steps=40, optimizer=SGD, eval_every=None)


# Precision ---------------------------------------------------------------------------------------------------------


class Half(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4)).to(dtype)

    def forward(self, x):
        return self.net(x.to(self.net[0].weight.dtype)).float()


@IN_TURN
@pytest.mark.filterwarnings("ignore:training steps are not replayed")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_sgd_trains_parameters_of_every_precision(dtype):
    build = functools.partial(Half, dtype)
    plain = run_plainly(build, [0], DATA, 40, optimizer=functools.partial(torch.optim.SGD, lr=0.3))[0][0]
    history = train(build, DATA, [0], steps=40, batch_size=20, optimizer="sgd", learning_rate=0.3, eval_every=None)
    np.testing.assert_allclose(history["train_loss"][0, -1], plain, rtol=1e-5 if dtype == torch.float64 else 0.05)


# Classes that are made for every model -----------------------------------------------------------------------------


def build_filled():
    fill = torch.randn(16)

    class Filled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(16, 4)

        def forward(self, x):
            return self.a(torch.where(x > 1.5, fill, x))

    return Filled()


def build_shifted():
    class Shifted(nn.Module):
        by = torch.rand(()).item()

        def __init__(self):
            super().__init__()
            self.a = nn.Linear(16, 4)

        def forward(self, x):
            return self.a(x + self.by)

    return Shifted()


@IN_TURN
@pytest.mark.parametrize("build", [build_filled, build_shifted])
def test_what_classes_enclose_may_differ_between_seeds(build):
    check(build)


def build_equal():
    class Equal(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(16, 4)

        def forward(self, x):
            return self.a(x)

    return Equal()


def test_equal_classes_are_computed_together():
    check(build_equal)  # a warning would be an error


# What begins to be shared after the first batch ----------------------------------------------------------------------

BANK = collections.deque(maxlen=4)


class Banked(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.t = nn.Linear(16, 4), 0
        BANK.clear()

    def forward(self, x):
        h = self.a(x)
        if self.training:
            self.t += 1
            if self.t > 10:
                BANK.append(h.detach().mean(0))
            if BANK:
                h = h - torch.stack(list(BANK)).mean(0)
        return h


class Switch:
    on = False


class Switched(nn.Module):
    n = 0

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(16, 4)
        Switched.n = 0

    def forward(self, x):
        if Switch.on and self.training:
            Switched.n += 1
        return self.a(x) * 0.9**Switched.n


def switch(step):
    Switch.on = step >= 10
    return 1.0


@IN_TURN
@pytest.mark.parametrize(("build", "schedule"), [(Banked, None), (Switched, switch)])
def test_models_that_begin_to_share_late(build, schedule):
    check(build, schedule=schedule)


class Dropping(torch.optim.SGD):
    drops = 0

    def __init__(self, params):
        super().__init__(params, lr=0.1)
        self.k, Dropping.drops = 0, 0

    def step(self, closure=None):
        self.k += 1
        Dropping.drops += self.k % 5 == 0
        for group in self.param_groups:
            group["lr"] = 0.1 * 0.5**Dropping.drops
        return super().step()


COUNT, RATE = {"n": 0}, torch.tensor(0.1)


def warm_up(params):
    COUNT["n"] = 0
    count, optimizer = COUNT, torch.optim.SGD(params, lr=0.05)

    def hook(optimizer, args, kwargs):
        count["n"] += 1
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * min(1, count["n"] / 30)

    optimizer.register_step_pre_hook(hook)
    return optimizer


def decay_a_tensor(params):
    RATE.fill_(0.1)
    rate, optimizer = RATE, torch.optim.SGD(params, lr=RATE)
    optimizer.register_step_post_hook(lambda *_: rate.mul_(0.9))
    return optimizer


@IN_TURN
@pytest.mark.parametrize("optimizer", [Dropping, warm_up, decay_a_tensor])
def test_optimizers_that_share(optimizer):
    check(mlp, optimizer=optimizer)


# Hooks on forward passes ---------------------------------------------------------------------------------------------


def ramp(module, until):
    n = [0]

    def hook(module, args, out):
        n[0] += 1
        return out * min(1, n[0] / until)

    module.register_forward_hook(hook)
    return module


@IN_TURN
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss, lambda: nn.CrossEntropyLoss(label_smoothing=0.1)])
def test_a_hook_on_the_loss_counts_steps_alone(loss):
    check(mlp, make_loss=lambda: ramp(loss(), 40))


def build_hooked():
    model = mlp()
    ramp(model[0], 10)
    return model


@IN_TURN
@pytest.mark.parametrize("eval_every", [None, 4, 1])
def test_evaluations_do_not_count_in_hooks(eval_every):
    check(build_hooked, steps=12, eval_every=eval_every)


# numpy's memory, one tensor twice, gradients in a forward pass -------------------------------------------------------

WEIGHTS = np.ones(4, np.float32)


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.w = nn.Linear(16, 4), torch.from_numpy(WEIGHTS)

    def forward(self, x):
        return self.a(x) * self.w


def weigh(step):
    WEIGHTS[:] = 3 if 12 <= step < 15 else 1
    return 1.0


@IN_TURN
def test_a_tensor_that_shares_memory_with_numpy():
    check(Weighted, schedule=weigh)


class Denoising(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.a = nn.Dropout(0.5, inplace=True), nn.Linear(16, 16)

    def forward(self, x):
        return self.a(self.drop(x))


def test_a_target_that_the_model_writes_on_is_an_error():
    stack = Stack(Denoising, [3], loss=F.mse_loss)
    x = torch.ones(1, 20, 16)
    with pytest.raises(ValueError, match="batch: two of its tensors are one"):
        stack.backward(x, x)
    assert stack.backward(x, x.clone()).isfinite().all()


class Lookahead(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(16, 4)

    def forward(self, x):
        (slope,) = torch.autograd.grad(self.a(x).square().mean(), [self.a.weight], create_graph=True)
        return F.linear(x, self.a.weight - 0.1 * slope, self.a.bias)


@IN_TURN
@pytest.mark.filterwarnings("ignore:training steps are not replayed")
def test_a_forward_pass_that_differentiates():
    set_seed(3)
    model, x, y = Lookahead(), torch.tensor(DATA["x"]), torch.tensor(DATA["y"])
    optimizer = SGD(model.parameters())
    for step in range(5):
        loss = F.cross_entropy(model(x[20 * step : 20 * step + 20]), y[20 * step : 20 * step + 20])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    history = train(Lookahead, DATA, [3], steps=5, batch_size=20, optimizer=SGD, eval_every=None)
    np.testing.assert_allclose(history["train_loss"][0, -1], loss.item(), rtol=1e-5)
    with pytest.raises(RuntimeError) as caught:
        train(Lookahead, DATA, [3], steps=5, batch_size=20)
    assert "enable_grad" in caught.value.__notes__[0]


# Checkpoints ---------------------------------------------------------------------------------------------------------


class Counting(nn.Linear):
    def __init__(self):
        super().__init__(16, 4)
        self.n = 0

    def forward(self, x):
        self.n += self.training
        return super().forward(x) * 0.9**self.n

    def get_extra_state(self):
        return {"n": self.n}

    def set_extra_state(self, state):
        self.n = state["n"]


def go_on(stack, first, last):
    x, y = torch.tensor(DATA["x"], dtype=torch.float32), torch.tensor(DATA["y"])
    x, y = x.expand(len(stack), *x.shape), y.expand(len(stack), *y.shape)
    for t in range(first, last):
        losses = stack.backward(x[:, 5 * t : 5 * t + 20], y[:, 5 * t : 5 * t + 20])
        stack.step()
    return losses[0].item()


def test_a_checkpoint_holds_the_extra_state_of_modules():
    stack, again = Stack(Counting, [3]), Stack(Counting, [3])
    go_on(stack, 0, 5)
    again.load_state_dict(stack.state_dict())
    assert go_on(again, 5, 9) == pytest.approx(go_on(stack, 5, 9), rel=1e-6)


def test_what_a_checkpoint_lacks_is_said():
    def with_scheduler(params):
        optimizer = torch.optim.SGD(params, lr=0.5)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 36)
        optimizer.register_step_post_hook(lambda *_: schedule.step())
        return optimizer

    stack = Stack(mlp, [3], optimizer=with_scheduler)
    for copy_of in (Stack.state_dict, copy.deepcopy):
        with pytest.warns(UserWarning, match="the optimiser has hooks"):
            copy_of(stack)
    Stack(mlp, [3], optimizer=SGD).state_dict()


# Sweeps --------------------------------------------------------------------------------------------------------------


def initialise(variant, seeds):
    return [[nn.Linear(2, 1).bias.item(), F.relu(torch.tensor(-1.0)).item()] for _ in seeds]


def set_to_half(self):
    nn.init.constant_(self.weight, 0.5)
    nn.init.constant_(self.bias, 0.5)


def test_functions_put_in_the_place_of_torchs_are_not_lost_in_workers(monkeypatch):
    monkeypatch.setenv("JOBS", "2")
    monkeypatch.setattr(nn.Linear, "reset_parameters", set_to_half)
    with pytest.warns(UserWarning, match="runs in this process alone, as torch.nn.modules.linear"):
        assert sweep(initialise, {"a": 1, "b": 2}, [0])["b"] == [[0.5, 0.0]]
    monkeypatch.undo()
    monkeypatch.setenv("JOBS", "2")
    monkeypatch.setattr(F, "relu", F.leaky_relu)
    with pytest.warns(UserWarning, match="runs in this process alone, as torch.nn.functional"):
        assert sweep(initialise, {"a": 1, "b": 2}, [0])["b"][0][1] == pytest.approx(-0.01)


def test_hooks_of_all_modules_are_not_lost_in_workers(monkeypatch):
    monkeypatch.setenv("JOBS", "2")
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: 2 * out)
    try:
        with pytest.warns(UserWarning, match="as hooks of all modules do not reach others"):
            found = sweep(lambda _, seeds: [nn.Identity()(torch.ones(())).item() for _ in seeds], {"a": 1, "b": 2}, [0])
    finally:
        handle.remove()
    assert found == {"a": [2.0], "b": [2.0]}


# What is no sharing --------------------------------------------------------------------------------------------------


class Clip:
    __slots__ = ("most",)
    __hash__ = None

    def __init__(self, most):
        self.most = most

    def __call__(self, optimizer, args, kwargs):
        optimizer.param_groups[0]["params"][0].grad.clamp_(-self.most, self.most)


def clip_by_object(params):
    optimizer = torch.optim.SGD(params, lr=0.1)
    optimizer.register_step_pre_hook(Clip(1.0))
    return optimizer


class Phase(enum.Enum):
    WARM, COLD = 1, 2


class Phased(torch.optim.SGD):
    def __init__(self, params):
        super().__init__(params, lr=0.1)
        self.phase, self.seen = Phase.WARM, ()

    def step(self, closure=None):
        self.seen = (*self.seen, 1)[-3:]
        self.phase = Phase.COLD if len(self.seen) > 2 else Phase.WARM
        return super().step(closure)


LARGE = np.ones((1200, 1000), np.float32)


def read_large(params):
    large, optimizer = LARGE, torch.optim.SGD(params, lr=0.1)
    optimizer.register_step_post_hook(lambda *_: large[0, 0])
    return optimizer


@pytest.mark.parametrize("optimizer", [clip_by_object, Phased, read_large])
def test_optimizers_that_share_nothing_train_together(optimizer):
    check(mlp, optimizer=optimizer)  # a warning would be an error


def test_a_rate_that_is_a_tensor_is_no_sharing():
    stack = Stack(mlp, [3, 4], optimizer=type("Own", (torch.optim.SGD,), {}), learning_rate=torch.tensor(0.1))
    go_on(stack, 0, 5)
    assert stack.stacked and not stack.remembers


def build_configured():
    class Config:
        scale = 2.0

    class Configured(nn.Module):
        config = Config()

        def __init__(self):
            super().__init__()
            self.a = nn.Linear(16, 4)

        def forward(self, x):
            return self.a(x) * self.config.scale

    return Configured()


def test_equal_objects_of_equal_classes_are_no_difference():
    check(build_configured)


def test_what_hooks_collect_in_evaluations_of_ones_own_stays():
    seen = []

    def build():
        model = mlp()
        model[1].register_forward_hook(lambda module, args, out: seen.append(out.detach()))
        return model

    with pytest.warns(UserWarning, match="it has hooks"):
        stack = Stack(build, [3, 4])
        go_on(stack, 0, 1)
    seen.clear()
    stack.evaluate(lambda model, x: model(x), torch.ones(2, 20, 16))
    assert len(seen) == 2


class Tripled(Stack):
    def compute_loss(self, module, *batch):
        return 3 * super().compute_loss(module, *batch)


def test_a_stack_of_ones_own_class_is_compared_as_such(monkeypatch):
    monkeypatch.setattr(engine_stack, "TIGHTLY", 0)  # so that double precision decides
    stack = Tripled(mlp, [3, 4], loss=functools.partial(F.cross_entropy, label_smoothing=0.1))
    go_on(stack, 0, 3)
    assert stack.stacked


def test_an_optimizer_that_loses_nothing_is_saved_without_a_warning():
    for optimizer in (type("Own", (torch.optim.LBFGS,), {}), lambda p: type("B", (SGD.func,), {})(p, 0.1)):
        stack = Stack(mlp, [3], optimizer=optimizer)
        go_on(stack, 0, 2)
        stack.state_dict()


def test_a_large_attribute_is_not_copied_to_be_looked_at():
    large = torch.ones(3000, 3000).t()
    with torch.profiler.profile(profile_memory=True) as profile:
        assert len(mark_values(large)[1]) == 4000
    assert max(event.cpu_memory_usage for event in profile.events()) < 10**5
