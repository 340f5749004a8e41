"""What somebody changes from outside while models train counts from the next step on; an evaluation changes nothing."""

import copy
import functools
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mnist1d.engine import Stack
from mnist1d.training import fit, train
from mnist1d.utils import set_seed
from test_later_batches import NOW, check
from test_state import draw_batches, make_sgd
from zoo import CLASSES, LENGTH, Base

pytestmark = pytest.mark.filterwarnings("ignore:.*one seed after the other", "ignore:training steps are not replayed")
MADE = []


class Handle(Base):
    """Is known to whoever builds it."""

    def __init__(self):
        super().__init__()
        self.drop, self.temperature = nn.Dropout(0.0), 1.0
        MADE.append(self)

    def forward(self, x):
        return self.drop(super().forward(x)) / self.temperature


def ramp_dropout(step):
    for model in MADE:
        model.drop.p = min(0.6, 0.02 * step)


def heat(step):
    for model in MADE:
        model.temperature = 0.2 if step >= 34 else 1.0


def freeze(step):
    for model in MADE:
        next(model.parameters()).requires_grad_(not 34 <= step < 60)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("change", [ramp_dropout, heat, freeze])
def test_a_model_that_is_changed_by_who_built_it(change, n):
    MADE.clear()
    stack = check(Handle, n, batches=draw_batches(n, 70), before=change)
    assert not stack.stacked


def test_a_change_counts_in_an_evaluation_too():
    MADE.clear()
    stack, (x, y) = Stack(Handle, [0, 1]), draw_batches(2, 1)[0]
    stack.backward(x, y)
    before = stack.evaluate(lambda model, x: model(x), x)
    for model in MADE:
        model.temperature = 0.5
    torch.testing.assert_close(stack.evaluate(lambda model, x: model(x), x), 2 * before)


class Weighted(nn.Module):
    """Cross-entropy with weights that are no buffer."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, out, y):
        return F.cross_entropy(out, y, self.weight)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, Weighted])
def test_weights_of_a_loss_that_are_replaced_for_a_while(kind, n):
    even, uneven = torch.ones(CLASSES), torch.linspace(1, 20, CLASSES)
    loss = kind(even)

    def weigh(step):
        loss.weight = uneven if 34 <= step < 60 else even

    check(Base, n, lambda model, x, y: loss(model(x), y), batches=draw_batches(n, 70), before=weigh)


COUNTS = {"n": 0}


def count_in_a_global():
    def loss(out, y):
        COUNTS["n"] += 1
        return F.cross_entropy(out, y) / COUNTS["n"]

    COUNTS["n"] = 0
    return loss


def _count():
    COUNTS["n"] += 1
    return COUNTS["n"]


def count_in_a_helper():
    COUNTS["n"] = 0
    return lambda out, y: F.cross_entropy(out, y) / _count()


def remember_in_a_tensor():
    mean = torch.ones(())

    def loss(out, y):
        value = F.cross_entropy(out, y)
        mean.mul_(0.9).add_(0.1 * value.detach())
        return value / mean

    return loss


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean, self.calls = torch.ones(()), 0

    def forward(self, out, y):
        value, self.calls = F.cross_entropy(out, y), self.calls + 1
        self.mean.mul_(0.9).add_(0.1 * value.detach())
        return value / self.mean / self.calls


def remember_in_a_module_of_a_dict():
    parts = {"loss": Remembers()}

    def loss(out, y):
        return parts["loss"](out, y)

    return loss


class Listed:
    def __init__(self):
        self.parts = [Remembers()]

    def __call__(self, out, y):
        return self.parts[0](out, y)


class Teacher(nn.Module):
    """A loss that keeps an average of what it has seen in a parameter."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(CLASSES))

    def forward(self, out, y):
        with torch.no_grad():
            self.mean.lerp_(out.detach().mean(0), 0.5)
        return F.cross_entropy(out + self.mean.detach(), y)


def average(state, out, y):
    state["mean"] = 0.5 * state.get("mean", 0) + 0.5 * out.detach().mean(0)
    return F.cross_entropy(out + state["mean"], y)


def average_in_a_partial():
    return functools.partial(average, {})


def count_in_columns():
    seen = np.asfortranarray(np.zeros((2, 3)))

    def loss(out, y):
        seen[0] += 1
        return F.cross_entropy(out, y) / seen[0, 0]

    return loss


LOSSES = [
    count_in_a_global, count_in_a_helper, remember_in_a_tensor, Remembers, remember_in_a_module_of_a_dict, Listed,
    Teacher, average_in_a_partial, count_in_columns,
]  # fmt: skip


@pytest.mark.parametrize("make_loss", LOSSES)
def test_an_evaluation_leaves_what_a_loss_remembers(make_loss):
    batches, found = draw_batches(1, 8), []
    for is_evaluated in (True, False):
        stack = Stack(Base, [0], loss=make_loss(), optimizer=make_sgd)
        for x, y in batches:
            if is_evaluated:
                stack.evaluate(stack.compute_loss, x, y)
            loss = stack.backward(x, y)
            stack.step()
        found.append(loss)
    set_seed(0)
    model, plain = Base(), make_loss()
    optimizer = make_sgd(model.parameters())
    for x, y in batches:
        optimizer.zero_grad()
        last = plain(model(x[0]), y[0])
        last.backward()
        optimizer.step()
    torch.testing.assert_close(torch.cat(found), last.detach().expand(2), rtol=1e-5, atol=0)


class AveragedInEvaluation(nn.Module):
    """Evaluates an average of its weights, kept where `parameters` does not see it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(LENGTH, 8), nn.Linear(8, CLASSES)
        self.averaged = [copy.deepcopy(self.a)]

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                for p, q in zip(self.averaged[0].parameters(), self.a.parameters(), strict=True):
                    p.lerp_(q, 0.1)
        return self.b((self.a if self.training else self.averaged[0])(x).tanh())


class BeginsToAverage(nn.Module):
    """Averages from the eleventh step on, for evaluations."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.weight = nn.Linear(LENGTH, 8), nn.Linear(8, CLASSES), None
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.calls += 1
            if self.calls > 10:
                now = self.b.weight.detach()
                self.weight = now.clone() if self.weight is None else 0.9 * self.weight + 0.1 * now
        is_averaged = not self.training and self.weight is not None
        return F.linear(self.a(x).tanh(), self.weight if is_averaged else self.b.weight, self.b.bias)


@pytest.mark.filterwarnings("ignore:.*training begins anew without it")
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("build", [AveragedInEvaluation, BeginsToAverage])
def test_an_average_that_is_read_in_evaluations_alone(build, n):
    x, y = (t[0] for t in draw_batches(1, 1)[0])
    data = {name: t.numpy() for name, t in (("x", x), ("y", y), ("x_test", x), ("y_test", y))}
    stack, _ = fit(build, data, n, steps=40, batch_size=len(x), optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    ours = stack.evaluate(lambda model, x: model(x), x.expand(n, *x.shape))
    for i in range(n):
        set_seed(i)
        model = build()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(40):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        torch.testing.assert_close(ours[i], model.eval()(x).detach(), rtol=1e-3, atol=1e-4)


# Optimisers ----------------------------------------------------------------------------------------------------------


def make_known(params):
    MADE.append(torch.optim.Adam(list(params)[:2], lr=0.05))
    return MADE[-1]


def forget(step):
    if step == 6:
        for optimizer in MADE:
            optimizer.state.clear()


@pytest.mark.parametrize("n", [1, 2])
def test_the_state_of_an_optimiser_that_is_cleared_by_who_made_it(n):
    MADE.clear()
    check(Base, n, optimizer=make_known, before=forget)


@pytest.mark.parametrize("n", [1, 2])
def test_a_group_of_parameters_that_is_added_by_who_made_the_optimiser(n):
    def make(params):
        first, *others = params
        MADE.append((torch.optim.Adam([first], lr=0.05), others))
        return MADE[-1][0]

    def thaw(step):
        while step == 6 and MADE:
            optimizer, others = MADE.pop()
            optimizer.add_param_group({"params": others, "lr": 0.01})

    MADE.clear()
    check(Base, n, optimizer=make, before=thaw)


class Lookahead(torch.optim.Optimizer):
    """As many write it: around another optimiser, whose state is not asked for."""

    def __init__(self, inner):
        self.inner, self.calls, self.param_groups = inner, 0, inner.param_groups
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure=None):
        self.inner.step()
        self.calls += 1
        fast = [p for group in self.param_groups for p in group["params"]]
        for slow, p in zip(self.slow, fast if self.calls % 3 == 0 else (), strict=False):
            p.copy_(slow.lerp_(p, 0.5))


@pytest.mark.parametrize("n", [1, 2])
def test_an_optimiser_without_a_state_of_its_own(n):
    x, y = (t[0] for t in draw_batches(1, 1)[0])
    data = {"x": x.numpy(), "y": y.numpy()}
    wrapped = train(
        Base, data, n, steps=9, batch_size=len(x), optimizer=lambda p: Lookahead(torch.optim.SGD(p, lr=0.1))
    )
    losses = []
    for seed in range(n):
        set_seed(seed)
        model = Base()
        optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1))
        for _ in range(9):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(wrapped["train_loss"][:, -1], losses, rtol=1e-4)


@pytest.mark.parametrize("rate", [0.01, [0.01, 0.02]])
def test_a_parameter_of_the_loss_is_no_parameter_of_a_model(rate):
    scale = nn.Parameter(torch.zeros(()))
    with pytest.raises(ValueError, match="no parameter of the model"):
        Stack(Base, 2, optimizer=lambda params: torch.optim.Adam([*params, scale]), learning_rate=rate)


# Modes ---------------------------------------------------------------------------------------------------------------


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(LENGTH, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.b(self.norm(self.a(x)).tanh())


class Frozen(Normed):
    """Keeps its norm in evaluation mode, as fine-tuning does."""

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self


def frozen_by_build():
    model = Normed()
    model.norm.eval()
    return model


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    ("build", "counts"),
    [(Normed, 3), (lambda: Normed().eval(), 3), (Frozen, 0), (lambda: Frozen().eval(), 0), (frozen_by_build, 0)],
)
def test_steps_are_made_in_training_mode_but_for_parts_that_the_model_keeps_out(build, counts, n):
    stack = Stack(build, n)
    for batch in draw_batches(n, 3):
        stack.backward(*batch)
        stack.step()
    assert stack.buffers["norm.num_batches_tracked"].tolist() == [counts] * n


# Changes deeper than attributes, and orders of calls ------------------------------------------------------------------


class Masked(Handle):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.ones(CLASSES))
        self.scale, self.cfg, self.act = torch.ones(()), {"shift": 0.0}, nn.Tanh()

    def forward(self, x):
        return self.act(super().forward(x)) * self.mask * self.scale + self.cfg["shift"]


def replace_a_part(model, is_on):
    model.act = nn.ReLU() if is_on else nn.Tanh()


def replace_a_buffer(model, is_on):
    model.mask = torch.linspace(0, 1, CLASSES) if is_on else torch.ones(CLASSES)


def fill_a_tensor(model, is_on):
    model.scale.fill_(3.0 if is_on else 1.0)


def change_an_entry(model, is_on):
    model.cfg["shift"] = model.temperature * torch.arange(CLASSES) if is_on else 0.0


def hook_a_part(model, is_on):
    if is_on and not model.act._forward_hooks:
        model.act.register_forward_hook(lambda part, inputs, out: 2 * out)
    elif not is_on:
        model.act._forward_hooks.clear()


def replace_the_data_of_a_parameter(model, is_on):
    weight = next(model.parameters())
    weight.data = weight.data.clamp(-0.2, 0.2) if is_on else weight.data.clone()


DEEPER = [
    replace_a_part, replace_a_buffer, fill_a_tensor, change_an_entry, hook_a_part, replace_the_data_of_a_parameter,
]  # fmt: skip


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("change", DEEPER)
def test_what_a_built_model_holds_is_changed_for_a_while(change, n):
    def change_all(step):
        for model in MADE if step in (34, 60) else ():
            change(model, step == 34)

    MADE.clear()
    check(Masked, n, batches=draw_batches(n, 70), before=change_all)


@pytest.mark.parametrize("change", DEEPER)
def test_what_a_built_model_holds_counts_in_an_evaluation_too(change):
    MADE.clear()
    stack, (x, y) = Stack(Masked, [0, 1]), draw_batches(2, 1)[0]
    stack.backward(x, y)
    outs = []
    for is_on in (False, True):
        for model in MADE if is_on else ():
            change(model, is_on)
        outs.append(stack.evaluate(lambda model, x: model(x), x))
        plain = torch.stack([model.eval()(part).detach() for model, part in zip(MADE, x, strict=True)])
        torch.testing.assert_close(outs[-1], plain)
    assert not torch.allclose(*outs)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("how", ["part", "evaluate"])
def test_gradients_stay_where_a_stack_is_parted_before_a_step(how, n):
    MADE.clear()
    stack, twin, batches = Stack(Handle, n, optimizer=make_sgd), Stack(Base, n, optimizer=make_sgd), draw_batches(n, 6)
    for batch in batches:
        for each in (stack, twin):
            each.backward(*batch)
            each.clip(0.1)
        if batch is batches[4] and how == "part":
            stack.part()
        elif batch is batches[4]:
            MADE[0].note = "changed"
            stack.evaluate(lambda model, x: model(x), batch[0])
        stack.step(), twin.step()
    for name, p in stack.params.items():
        torch.testing.assert_close(p, twin.params[name])


def add_to_parameters(model, x):
    for p in model.parameters():
        p.add_(0.5)
    return model(x)


def load_zeros(model, x):
    model.load_state_dict({name: torch.zeros_like(t) for name, t in model.state_dict().items()})
    return model(x)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("function", [add_to_parameters, load_zeros])
def test_an_evaluation_that_writes_on_parameters_leaves_them(function, n):
    stack, (x, y) = Stack(Base, n), draw_batches(n, 1)[0]
    stack.backward(x, y)
    before = {name: p.detach().clone() for name, p in stack.params.items()}
    first, second = (stack.evaluate(function, x) for _ in range(2))
    torch.testing.assert_close(first, second)
    assert all(torch.equal(p, before[name]) for name, p in stack.params.items())


class SilentModes(Base):
    """Its `train` returns nothing, as many write it."""

    def train(self, mode=True):
        super().train(mode)


def test_modes_that_return_nothing():
    stack, (x, y) = Stack(SilentModes, [0, 1]), draw_batches(2, 1)[0]
    stack.backward(x, y)
    assert stack.evaluate(lambda model, x: model(x), x).shape == (*x.shape[:2], CLASSES)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("keep", [lambda opt: opt.param_groups, lambda opt: opt.param_groups[0], lambda opt: opt.state])
def test_what_is_kept_of_an_optimiser_may_be_changed(keep, n):
    def make(params):
        optimizer = torch.optim.Adam(params, lr=0.05)
        MADE.append(keep(optimizer))
        return optimizer

    def change(step):
        for kept in MADE if step == 6 else ():
            kept = kept[0] if isinstance(kept, list) else kept
            kept.update(lr=0.2) if "lr" in kept else kept.clear()

    MADE.clear()
    check(Base, n, optimizer=make, before=change)


def test_gradients_that_are_replaced_count_one_by_one_too():
    stacks = [Stack(base, [0, 1], optimizer=make_sgd) for base in (Base, SilentHooks)]
    for batch in draw_batches(2, 3):
        for stack in stacks:
            stack.backward(*batch)
            stack.grads = {name: 2 * grad for name, grad in stack.grads.items()}
            stack.step()
    assert [stack.stacked for stack in stacks] == [True, False]
    for name, p in stacks[0].params.items():
        torch.testing.assert_close(p, stacks[1].params[name])


class SilentHooks(Base):
    """Runs one by one, as it has a hook that does nothing."""

    def __init__(self):
        super().__init__()
        self.register_forward_hook(lambda *_: None)


def test_a_copy_of_a_stack_sees_changes_of_its_models():
    stack, (x, y) = Stack(Handle, [0, 1]), draw_batches(2, 1)[0]
    stack.backward(x, y)
    twin = copy.deepcopy(stack)
    for model in twin.modules:
        model.temperature = 0.5
    outs = [each.evaluate(lambda model, x: model(x), x) for each in (stack, twin)]
    torch.testing.assert_close(outs[1], 2 * outs[0])


def test_a_batch_that_requires_a_gradient_is_named():
    stack, (x, y) = Stack(Base, [0]), draw_batches(1, 1)[0]
    with pytest.raises(ValueError, match="requires a gradient"):
        stack.backward(x.requires_grad_(), y)


def test_any_group_that_is_kept_of_an_optimiser_may_be_changed():
    def make(params):
        first, *others = params
        optimizer = torch.optim.SGD([{"params": [first]}, {"params": others, "lr": 0.1}], lr=0.5)
        MADE.append(optimizer.param_groups[1])
        return optimizer

    def stop(step):
        for group in MADE if step == 5 else ():
            group["lr"] = 0.0

    MADE.clear()
    check(Base, 2, optimizer=make, before=stop)


class WritesLate(Base):
    """Halves a weight in its forward passes from some step on."""

    def forward(self, x):
        if NOW["step"] > 0:
            with torch.no_grad():
                next(self.parameters()).mul_(0.5)
        return super().forward(x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("n", [1, 2])
def test_a_model_that_begins_to_write_on_its_parameters(n):
    check(WritesLate, n, batches=draw_batches(n, 4))


@pytest.mark.parametrize("n", [1, 2])
def test_a_parameter_that_is_replaced_is_named(n):
    stack, (x, y) = Stack(Base, n), draw_batches(n, 1)[0]
    stack.backward(x, y)
    stack.modules[0].last = nn.Linear(8, CLASSES)
    with pytest.raises(ValueError, match="a parameter of a Base was replaced; must keep those"):
        stack.backward(x, y)


def test_a_change_of_one_model_reaches_no_other():
    MADE.clear()
    stack, (x, y) = Stack(Masked, [0, 1]), draw_batches(2, 1)[0]
    stack.backward(x, y)
    before = stack.evaluate(lambda model, x: model(x), x)
    MADE[0].cfg["shift"] = 10.0
    after = stack.evaluate(lambda model, x: model(x), x)
    torch.testing.assert_close(after, before + torch.tensor([10.0, 0.0])[:, None, None])


def test_weight_norm_of_the_old_kind_may_be_frozen():
    def build():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return nn.utils.weight_norm(nn.Linear(LENGTH, CLASSES))

    stack = Stack(build, [0, 1], optimizer=make_sgd)
    for step, batch in enumerate(draw_batches(2, 60)):
        if step == 20:
            stack.params["weight_g"].requires_grad_(False), stack.params["weight_v"].requires_grad_(False)
        stack.backward(*batch)
        stack.step()


class CountsEvaluations(Base):
    def __init__(self):
        super().__init__()
        self.seen = torch.zeros(())

    def forward(self, x):
        if not self.training:
            self.seen += 1
        return super().forward(x)


def test_what_an_evaluation_has_given_back_is_no_change_from_outside():
    stack, batches = Stack(CountsEvaluations, [0, 1]), draw_batches(2, 6)
    for x, y in batches:
        stack.backward(x, y)
        stack.evaluate(lambda model, x: model(x), x)
        stack.step()
    assert stack.stacked and all(model.seen == 0 for model in stack.modules)
