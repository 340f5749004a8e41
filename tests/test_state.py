"""What a module holds, changes or shares behind a stack's back: numbers are a plain loop's, or the error is clear."""

import copy
import itertools
from collections import deque

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mnist1d.engine import ReplayError, Stack
from mnist1d.training import fit
from mnist1d.utils import set_seed
from zoo import CLASSES, LENGTH, Base, base

STEPS = 30
CONFIG = {"scale": 1.0}


def draw_batches(n, steps=STEPS):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 10, LENGTH, generator=generator), torch.randint(CLASSES, (n, 10), generator=generator))
        for _ in range(steps)
    ]


def make_sgd(params):
    return torch.optim.SGD(params, lr=0.1)


def run_plainly(build, seeds, batches, before=lambda step: None, optimizer=make_sgd):
    """Losses [seed, step] and outputs in evaluation of a loop over seeds."""
    losses, outputs = [], []
    for i, seed in enumerate(seeds):
        set_seed(seed)
        model = build()
        opt, own = optimizer(model.parameters()), []
        for step, (x, y) in enumerate(batches):
            before(step)

            def closure(x=x[i].clone(), y=y[i], model=model, opt=opt):
                opt.zero_grad()
                loss = F.cross_entropy(model(x.clone()), y)
                loss.backward()
                return loss

            own.append(opt.step(closure).item() if isinstance(opt, torch.optim.LBFGS) else closure().item())
            if not isinstance(opt, torch.optim.LBFGS):
                opt.step()
        losses.append(own)
        with torch.no_grad():
            outputs.append(model.eval()(batches[0][0][i].clone()))
    return torch.tensor(losses), torch.stack(outputs)


def compare(build, n, before=lambda step: None, optimizer=make_sgd, **options):
    """A stack against the loop, to rounding."""
    batches, seeds = draw_batches(n), range(3, 3 + n)
    losses, outputs = run_plainly(build, seeds, batches, before, optimizer)
    stack, ours = Stack(build, seeds, optimizer=optimizer, **options), []
    for step, (x, y) in enumerate(batches):
        before(step)
        kept = x.clone()
        ours.append(stack.backward(x, y))
        assert torch.equal(x, kept)  # the user's batch is as it was
        stack.step()
    torch.testing.assert_close(torch.stack(ours, 1), losses, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(stack.evaluate(lambda m, x: m(x), batches[0][0]), outputs, rtol=1e-3, atol=1e-3)
    return stack


def begin_from_data(self, h):
    if self.loc is None:
        self.loc = h.detach().mean(0)
    return (h - self.loc).tanh()


def follow(self, h):
    if self.loc is None:
        self.loc = h.detach().mean(0)
    self.loc = 0.9 * self.loc + 0.1 * h.detach().mean(0)
    return (h - self.loc).tanh()


def count_in(get):
    def between(self, h):
        counter = get(self)
        counter["n"] += 1
        return h.tanh() * (1 + 0.1 * (counter["n"] % 7))

    return between


def append_to(self, h):
    self.seen.append(1)
    return h.tanh() * (1 + 0.1 * len(self.seen))


def add_to_set(self, h):
    self.seen.add(len(self.seen))
    return h.tanh() * (1 + 0.1 * len(self.seen))


def change_tensor(self, h):
    self.held["mean"].mul_(0.9).add_(0.1 * h.detach().mean(0))
    return (h - self.held["mean"]).tanh()


def teach(self, h):
    self.teacher.weight.data.mul_(0.9).add_(0.1 * self.last.weight.detach())
    return h.tanh() + 0.1 * h @ self.teacher.weight.detach().T @ self.last.weight.detach()


def prepare_teacher(self):
    self.teacher = nn.Linear(8, CLASSES).requires_grad_(False)


def write_on_input(self, x):
    x -= 1.0
    return Base.forward(self, x)


class Tracker:
    def __init__(self):
        self.counts = {"n": 0}


CASES = {
    "a buffer that begins as None": base(begin_from_data, lambda self: self.register_buffer("loc", None)),
    "one that is replaced, too": base(follow, lambda self: self.register_buffer("loc", None)),
    "a counter of an object": base(count_in(lambda self: self.t.counts), lambda self: setattr(self, "t", Tracker())),
    "a deque": base(append_to, lambda self: setattr(self, "seen", deque(maxlen=5))),
    "a set": base(add_to_set, lambda self: setattr(self, "seen", set())),
    "a cycle": base(lambda self, h: h.tanh() * next(self.c), lambda self: setattr(self, "c", itertools.cycle([1, 2]))),
    "a tensor in a dict": base(change_tensor, lambda self: setattr(self, "held", {"mean": torch.zeros(8)})),
    "a teacher": base(teach, prepare_teacher),
    "the input": type("Writing", (Base,), {"forward": write_on_input}),
}


@pytest.mark.filterwarnings("ignore:.*is trained one seed after the other", "ignore:.*not replayed")
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_state_that_a_module_changes(name, n):
    compare(CASES[name], n)


@pytest.mark.filterwarnings("ignore:.*not replayed")
@pytest.mark.parametrize("n", [1, 2])
def test_what_a_forward_pass_reads_may_change_between_two_checks(n, monkeypatch):
    held = {"scale": 1.0}

    def change(step):
        held["scale"] = CONFIG["scale"] = 3.0 if 10 <= step < 20 else 1.0

    reads_held = base(lambda self, h: h.tanh() * self.cfg["scale"], lambda self: setattr(self, "cfg", held))
    reads_global = base(lambda self, h: h.tanh() * CONFIG["scale"])
    for build in (reads_held, reads_global):
        assert compare(build, n, before=change).stacked


@pytest.mark.parametrize("n", [1, 2])
def test_parameters_that_are_frozen_in_turn(n):
    batches = draw_batches(n)

    def freeze(params, step):
        for name, p in params.items():
            p.requires_grad_(step == 0 or name.startswith(("first", "last")[step % 2]))

    stack, whole = Stack(Base, range(n), optimizer=make_sgd), Stack(Base, range(n), optimizer=make_sgd, replay=False)
    for step, batch in enumerate(batches):
        for s in (stack, whole):
            freeze(s.params, step)
        torch.testing.assert_close(stack.backward(*batch), whole.backward(*batch), rtol=1e-4, atol=1e-5)
        stack.step(), whole.step()


@pytest.mark.filterwarnings("ignore:.*is trained one seed after the other", "ignore:.*are not replayed")
@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("n", [1, 2])
def test_a_frozen_parameter_stays_where_models_run_one_by_one(n, start):
    reads = base(lambda self, h: h.tanh() * (1 + 0 * h.sum().item()))
    stack = Stack(reads, range(n))
    for step, batch in enumerate(draw_batches(n, 10)):
        if step == start:
            stack.params["first.weight"].requires_grad_(False)
            kept = stack.params["first.weight"].detach().clone()
        stack.backward(*batch)
        stack.step()
    assert torch.equal(stack.params["first.weight"], kept) and not (n == 2 and stack.stacked)


def tie_by_data(self):
    self.dec = nn.Linear(8, LENGTH, bias=False)
    self.dec.weight.data = self.first.weight.data.t()


def test_an_encoder_that_two_stacks_train_is_refused_and_one_after_the_other_is_not():
    def train_once(encoders, x, y):
        made = iter(encoders)
        stack = Stack(lambda: nn.Sequential(next(made), nn.Linear(8, CLASSES)), range(2), learning_rate=0.1)
        stack.backward(x, y)
        stack.step()
        return stack

    encoders, (x, y) = [nn.Linear(LENGTH, 8) for _ in range(2)], draw_batches(2, 1)[0]
    start = encoders[0].weight.clone()
    stack = train_once(encoders, x, y)
    after = encoders[0].weight.clone()
    with pytest.raises(ValueError, match="build: returned modules with parameters that another stack trains"):
        train_once(encoders, x, y)
    del stack
    train_once(encoders, x, y)
    assert (after - start).abs().max() > 0.01 and (encoders[0].weight - after).abs().max() > 0.01


def test_memory_that_two_tensors_share_is_refused():
    with pytest.raises(ValueError, match=r"dec.weight and first.weight are views of the same memory"):
        Stack(base(Base.between, tie_by_data), [0])
    with pytest.raises(ValueError, match=r"first.weight and wt are views"):
        Stack(base(Base.between, lambda self: setattr(self, "wt", self.first.weight.t())), [0])
    tied = base(Base.between, lambda self: setattr(self, "again", self.last))  # one tensor, two names
    compare(tied, 2)
    stack = Stack(tied, [0, 1])
    stack.backward(*draw_batches(2, 1)[0])
    assert copy.deepcopy(stack).stacked  # nothing of a pass is left in it
    halves = torch.zeros(16)

    def split(self):
        self.register_buffer("a", halves[:8])
        self.register_buffer("b", halves[8:])

    compare(base(lambda self, h: (h + self.a - self.b).tanh(), split), 2)

    def retie(self, h):
        self.dec.weight.data = self.first.weight.data.t()
        return h.tanh() + self.dec.weight.sum()

    with pytest.raises(ValueError, match=r"dec.weight was made a view of first.weight"):
        compare(base(retie, lambda self: setattr(self, "dec", nn.Linear(8, LENGTH, bias=False))), 1)


def test_an_optimiser_that_asks_again_sees_replaced_buffers():
    def between(self, h):
        self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        return (h - self.mean).tanh()

    build = base(between, lambda self: self.register_buffer("mean", torch.zeros(8)))
    compare(build, 1, optimizer=lambda params: torch.optim.LBFGS(params, lr=0.05, max_iter=2))


def test_a_rate_that_is_a_tensor_and_a_scheduler_of_torch():
    def make_scheduled(params):
        opt = torch.optim.SGD(params, lr=torch.tensor(0.3))
        scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.8)
        opt.register_step_post_hook(lambda *_: scheduler.step())
        return opt

    compare(Base, 1, optimizer=make_scheduled)


@pytest.mark.filterwarnings("ignore:.*is trained one seed after the other")
@pytest.mark.parametrize("n", [1, 2])
def test_the_padding_of_an_embedding_does_not_learn(n):
    def build():
        return nn.Sequential(nn.Embedding(5, 4, padding_idx=0), nn.Flatten(), nn.Linear(12, 3))

    stack = Stack(build, range(n), learning_rate=0.1)
    for step in range(12):
        x = torch.randint(1, 5, (n, 10, 3), generator=torch.Generator().manual_seed(step))
        x[:, :, 0] = 0 if step > 3 else 1
        stack.backward(x, torch.zeros(n, 10, dtype=torch.long))
        stack.step()
    assert (stack.params["0.weight"][:, 0] == 0).all()


@pytest.mark.parametrize("replay", [True, False])
def test_what_vmap_cannot_may_begin_later(replay):
    switch = {"on": False}

    def between(self, h):
        return h.tanh() * (1 + 0.1 * h.mean().item()) if switch["on"] else h.tanh()

    def turn_on(step):
        switch["on"] = step >= 5

    with pytest.warns(UserWarning, match=r"one seed after the other.*item"):
        stack = compare(base(between), 2, before=turn_on, replay=replay)
    assert not stack.stacked


def test_a_checkpoint_holds_buffers_that_begin_as_none():
    build = base(begin_from_data, lambda self: self.register_buffer("loc", None))
    first, second = Stack(build, [0]), Stack(build, [0])
    for stack, (x, y) in zip((first, second), draw_batches(1, 2), strict=True):
        stack.backward(x, y)
        stack.step()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.get_module(0).loc, first.get_module(0).loc)


def test_a_last_example_alone_does_not_change_what_is_measured():
    data = {"x": torch.randn(20, LENGTH).numpy(), "y": torch.arange(20).numpy() % 3}
    data |= {"x_test": torch.randn(501, LENGTH).numpy(), "y_test": torch.arange(501).numpy() % 3}
    squeeze = base(lambda self, h: h.tanh().squeeze())
    assert "test_acc" in fit(squeeze, data, [0], steps=2, batch_size=10)[1]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_what_is_no_builder_or_loss_is_named():
    with pytest.raises(ValueError, match="build: is a Base; must be what makes one"):
        Stack(Base(), [0])
    with pytest.raises(ValueError, match="must be a function or an instance, not a class"):
        Stack(Base, [0], loss=nn.CrossEntropyLoss)
    with pytest.raises(ValueError, match="TorchScript"):
        Stack(lambda: torch.jit.script(nn.Linear(6, 3)), [0])
    grown = iter([nn.Sequential(nn.Linear(6, 3)), nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 3))])
    with pytest.raises(ValueError, match=r"1\.weight is not in all copies"):
        Stack(lambda: next(grown), [0, 1])
    shorter = {"x": torch.zeros(9, LENGTH).numpy(), "y": torch.zeros(9, dtype=torch.long).numpy()}
    longer = {key: torch.cat([torch.tensor(v)] * 2).numpy() for key, v in shorter.items()}
    with pytest.raises(ValueError, match=r"shapes of x=.*the same for all seeds"):
        fit(Base, [shorter, longer], [0, 1], steps=1, batch_size=3)
    with pytest.raises(ValueError, match=r"types of y=\['<U1'\]: must be numbers"):
        fit(Base, {**shorter, "y": ["a"] * 9}, [0], steps=1, batch_size=3)


def test_a_change_that_only_a_check_can_see_is_an_error_not_a_number(tmp_path):
    hidden = tmp_path / "scale"  # as good as any place that no picture of Python objects has

    def between(self, h):
        return h.tanh() * float(hidden.read_text(encoding="utf-8"))

    stack = Stack(base(between), [0, 1], optimizer=make_sgd)
    with pytest.raises(ReplayError, match="steps after the last comparison"):
        for step, batch in enumerate(draw_batches(2, 250)):
            hidden.write_text("3.0" if step > 20 else "1.0", encoding="utf-8")
            stack.backward(*batch)
            stack.step()
