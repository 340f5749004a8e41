"""What a loop would compute, of models, losses and schedules that read what a stack does not look at of itself."""

import dataclasses
import functools
import os
import queue
import sys
import threading
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mnist1d.comparison import compare
from mnist1d.engine import Stack
from mnist1d.engine.inspection import read_names
from mnist1d.engine.replay import RefusedError, _Reads
from mnist1d.engine.stack import _OWNERS
from mnist1d.training import evaluate, fit, train
from mnist1d.utils import set_seed
from zoo import draw_small_data, run_plainly

pytestmark = pytest.mark.filterwarnings("ignore:.*(one seed after the other|not replayed|training begins anew)")

CONFIG, SETTINGS = types.SimpleNamespace(p=0.0), types.ModuleType("settings_of_mine")
SETTINGS.p = 0.0
get_settings = functools.cache(lambda: types.SimpleNamespace(p=0.0))
get_few_settings = functools.lru_cache(4)(lambda: types.SimpleNamespace(p=0.0))
MASK, TABLE, LATE = torch.zeros(1), {"p": 0.0}, type("Late", (dict,), {})()
VIEW = types.MappingProxyType(TABLE)
MODEL = None


DATA = draw_small_data()


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 8), nn.Linear(8, 4)

    def middle(self, h):
        return h.tanh()

    def forward(self, x):
        return self.b(self.middle(self.a(x)))


def check(build, steps=60, reset=lambda: None, seeds=([0], [0, 1, 2]), data=DATA, **options):
    """`train` against a loop."""
    for some in seeds:
        reset()
        plain_options = {k: v for k, v in options.items() if k in ("loss", "schedule", "optimizer")}
        plain = np.array([run[:2] for run in run_plainly(build, some, data, steps, **plain_options)])
        for replay in (None, False):
            reset()
            history = train(
                build, data, some, steps=steps, batch_size=20, replay=replay, **{"eval_every": steps} | options
            )
            np.testing.assert_allclose(history["train_loss"][:, -1], plain[:, 0], rtol=2e-4, atol=1e-5)
            if "test_acc" in history:
                np.testing.assert_allclose(history["test_acc"][:, -1], plain[:, 1], atol=1e-6)


# What cannot be trained as a loop would is an error --------------------------------------------------------------


class Probe(MLP):
    def parameters(self, recurse=True):
        return self.b.parameters(recurse)


def build_model():
    global MODEL  # noqa: PLW0603, as a student has it
    MODEL = MLP()
    return MODEL


def penalize(out, y):
    return F.cross_entropy(out, y) + 0.01 * sum(p.square().sum() for p in MODEL.parameters())


def heat(step):
    MODEL.t = 1 + step / 10
    return 1.0


class Shared(nn.Module):
    encoder = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8)).requires_grad_(False)

    def __init__(self):
        super().__init__()
        self.enc, self.b = self.encoder, nn.Linear(8, 4)

    def forward(self, x):
        return self.b(self.enc(x + 3))


class Sparse(MLP):
    def __init__(self):
        super().__init__()
        self.register_buffer("links", torch.eye(8).to_sparse())


@pytest.mark.parametrize(
    ("build", "seeds", "options", "message"),
    [
        (Probe, 1, {}, "build: `parameters` and `named_parameters` of the module differ"),
        (build_model, 2, {"loss": penalize}, "loss: reads a model that is trained"),
        (build_model, 2, {"schedule": heat}, "schedule: reads a model that is trained"),
        (Shared, 2, {}, "build: the buffer enc.1.running_mean is that of all seeds"),
        (Sparse, 1, {}, "build: links is sparse or nested; must be dense"),
        (MLP, 1, {"schedule": lambda step: np.random.uniform(0.2, 2)}, r"schedule\(0\): draws random numbers"),
        (MLP, 1, {"schedule": lambda step: torch.rand(())}, r"schedule\(0\): draws random numbers"),
        (MLP, 1, {"schedule": lambda step: torch.ones(2)}, r"schedule\(0\)=.*: must be a finite number"),
        (MLP, 1, {"schedule": lambda step: np.nan}, r"schedule\(0\)=nan: must be a finite number"),
        (MLP, 1, {"lr": 0.1}, "lr=0.1: train has no such argument"),
        (MLP, 1, {"state": {"a.weight": None}}, "state: a.weight is a NoneType; must be a tensor"),
        (lambda seed: MLP(), 1, {}, "build: cannot be called without arguments .missing a required argument: 'seed'"),
    ],
)
def test_what_no_stack_can_train_as_a_loop_would_is_named(build, seeds, options, message):
    with pytest.raises(ValueError, match=message):
        train(build, DATA, seeds, steps=3, batch_size=20, eval_every=None, **options)


@pytest.mark.parametrize(
    ("entry", "value"),
    [("x", None), ("x", 1.0), ("x", torch.eye(16)[:3].to_sparse()), ("y", [1, [2]]), ("x_test", None)],
)
def test_what_is_no_array_is_named(entry, value):
    with pytest.raises(ValueError, match=f"{entry}.*must be an array of numbers"):
        train(MLP, DATA | {entry: value}, 1, steps=1)


def test_tensors_with_a_gradient_and_of_bfloat16_are_data():
    for x in (torch.tensor(DATA["x"], requires_grad=True), torch.tensor(DATA["x"]).bfloat16()):
        assert np.isfinite(train(MLP, DATA | {"x": x}, 1, steps=3)["train_loss"][:, -1]).all()


# What models count outside of themselves ------------------------------------------------------------------------


class Annealed(MLP):
    calls = 0

    def middle(self, h):
        Annealed.calls += self.training
        return h.tanh() * (1 + 0.05 * Annealed.calls)


def build_annealed():
    Annealed.calls = 0
    return Annealed()


class Drawing(MLP):
    def middle(self, h):
        return h.tanh() * torch.tensor(GENERATOR.random(8), dtype=h.dtype) if self.training else h.tanh()


def build_drawing():
    global GENERATOR  # noqa: PLW0603
    GENERATOR = np.random.default_rng(0)
    return Drawing()


def stop_counting():
    Annealed.calls = 0


@pytest.mark.parametrize("build", [build_annealed, build_drawing, Annealed])
def test_what_all_models_count_in_is_that_of_one_after_the_other(build):
    check(build, reset=stop_counting)
    stop_counting()
    rates, state = [0.01, 0.02], {"b.bias": torch.tensor([[1.0] * 4, [2.0] * 4])}
    options = {"steps": 5, "batch_size": 20, "order": "shuffled"}
    together = train(build_annealed, [DATA, DATA], 2, learning_rate=rates, state=state, **options)
    for i in range(2):
        alone = train(
            build_annealed, DATA, [i], learning_rate=rates[i], state={"b.bias": state["b.bias"][i, None]}, **options
        )
        for name, values in alone.items():
            np.testing.assert_allclose(together[name][i], values[0], rtol=1e-6)


def test_the_models_that_were_trained_in_turn_are_those_of_the_stack():
    stack, history = fit(build_annealed, DATA, 3, steps=20, batch_size=20, eval_every=20)
    x, y = (torch.tensor(DATA[k]).expand(3, *DATA[k].shape) for k in ("x_test", "y_test"))
    kind, found = evaluate(stack, x, y)
    np.testing.assert_allclose(found, history[f"test_{kind}"][:, -1])
    assert all(torch.equal(stack.params["b.bias"][i], stack.get_module(i).b.bias) for i in range(3))


def test_a_stack_that_was_trained_in_turn_goes_on_where_it_stands():
    stack, _ = fit(build_annealed, DATA, 2, steps=20, batch_size=20, optimizer="sgd", learning_rate=0.1)
    owned = {key for key, owner in _OWNERS.items() if owner is stack}
    assert owned == {id(p) for module in stack.modules for p in module.parameters()}  # and none that is gone
    x, y = (torch.tensor(DATA[k][:20]).expand(2, 20, *DATA[k].shape[1:]) for k in ("x", "y"))
    before = stack.params["b.bias"].detach().clone()
    stack.backward(x, y)
    stack.step()
    torch.testing.assert_close(stack.params["b.bias"].detach(), before - 0.1 * stack.grads["b.bias"])
    stack, _ = fit(build_annealed, DATA, 2, steps=20, batch_size=20)
    assert "'step': tensor(20.)" in repr(stack.state_dict()["optimizers"])


def fall(step):
    return max(0.02, 1 - 0.0245 * step)


@dataclasses.dataclass(slots=True)
class SlottedWarmup:
    n: int = 0

    def __call__(self, *_):
        self.n += 1
        return fall(self.n - 1)


class OwnClass:
    n = 0

    def __init__(self):
        type(self).n = 0

    def __call__(self, *_):
        type(self).n += 1
        return fall(self.n - 1)

    @classmethod
    def count(cls, *_):
        cls.n += 1
        return fall(cls.n - 1)


def make_scheduler():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, fall)

    def schedule(*_):
        rate = scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()
        return rate

    return schedule


def make_queue():
    waiting = queue.Queue()

    def schedule(*_):
        waiting.put(1)
        return fall(waiting.qsize() - 1)

    return schedule


COUNTERS = {
    "slots": SlottedWarmup,
    "class": OwnClass,
    "classmethod": lambda: OwnClass().count,
    "scheduler of torch": make_scheduler,
    "queue": make_queue,
}


@pytest.mark.parametrize("make", COUNTERS.values(), ids=COUNTERS)
def test_what_counts_begins_anew_wherever_it_counts(make):
    options = {"build": MLP, "data": DATA, "steps": 40, "batch_size": 20, "eval_every": None}
    count = make()

    def weigh(out, y):
        return count() * F.cross_entropy(out, y)

    together = train(seeds=2, loss=weigh, **options)["train_loss"]
    for seed in range(2):
        count = make()
        np.testing.assert_allclose(together[seed], train(seeds=[seed], loss=weigh, **options)["train_loss"][0])
    arms = {"by step": {"build": MLP, "schedule": fall}, "counted": {"build": MLP, "schedule": make()}}
    accuracy = compare({k: v | {"batch_size": 20} for k, v in arms.items()}, DATA, seeds=2, budget=40).accuracy
    np.testing.assert_array_equal(accuracy["counted"], accuracy["by step"])


def test_what_schedules_and_losses_count_begins_anew_for_models_that_are_trained_in_turn():
    class Ramp:
        calls = 0

        def __call__(self, *_):
            self.calls += 1
            return min(1.0, self.calls / 20)

    ramp, loss = Ramp(), Ramp()
    options = {
        "schedule": ramp, "loss": lambda out, y: loss() * F.cross_entropy(out, y), "steps": 20, "batch_size": 20,
    }  # fmt: skip
    together = train(build_annealed, DATA, 2, eval_every=None, **options)["train_loss"]
    assert ramp.calls == loss.calls == 20  # as the last model has left them
    ramp.calls = loss.calls = 0
    alone = train(build_annealed, DATA, [1], eval_every=None, **options)["train_loss"]
    np.testing.assert_allclose(together[1], alone[0], rtol=1e-6)


# What is as it always was ----------------------------------------------------------------------------------------


def test_other_threads_read_tensors_while_one_records():
    originals = [vars(torch.Tensor).get(name) for name in ("numpy", "tolist", "__array__")]
    errors, is_over = [], threading.Event()

    def read():
        while not is_over.is_set():
            try:
                torch.ones(3).tolist(), torch.ones(3).numpy()
            except Exception as error:
                errors.append(error)

    def record():
        for _ in range(3):
            Stack(MLP, [0]).backward(torch.zeros(1, 5, 16), torch.zeros(1, 5, dtype=torch.long))
            with _Reads(), pytest.raises(RefusedError):
                torch.ones(2).tolist()

    reader, recorders = threading.Thread(target=read), [threading.Thread(target=record) for _ in range(3)]
    for thread in (reader, *recorders):
        thread.start()
    for thread in recorders:
        thread.join()
    is_over.set()
    reader.join()
    assert not errors and originals == [vars(torch.Tensor).get(name) for name in ("numpy", "tolist", "__array__")]


class Adapted(MLP):
    def __init__(self):
        super().__init__()
        self.a.requires_grad_(False)
        self.register_buffer("limit", LIMIT)
        self.act = ACT

    def parameters(self, recurse=True):
        return (p for p in super().parameters(recurse) if p.requires_grad)

    def middle(self, h):
        return self.act(h)


ACT, LIMIT = nn.GELU(), torch.tensor(float("nan"))


@functools.wraps(MLP)
def build_adapted():
    return Adapted()


class Normed(MLP):
    def save(self, path):
        with open(path, "wb") as file:
            torch.save(self.state_dict(), file)

    def middle(self, h):
        return h / torch.linalg.norm(h, dim=-1, keepdim=True)


@pytest.mark.parametrize("build", [build_adapted, Normed])
@pytest.mark.filterwarnings("error")
def test_what_is_alike_is_trained_together(build):
    check(build, steps=10, loss=lambda out, y: F.cross_entropy(ACT(out), y))


# What a loss or a forward pass reads besides ---------------------------------------------------------------------


def test_a_loss_may_read_the_one_model_that_is_trained():
    check(build_model, loss=penalize, seeds=([0],))


class Whitened(MLP):
    def middle(self, h):
        h = h.tanh()
        k = h.T @ h / len(h)
        try:
            return h @ torch.linalg.cholesky(k - 0.03 * torch.eye(8))
        except torch.linalg.LinAlgError:
            return h @ torch.linalg.cholesky(k + 0.5 * torch.eye(8))


def test_an_error_of_linear_algebra_that_is_caught():
    check(Whitened)


class GRU(nn.Module):
    def __init__(self):
        super().__init__()
        self.r, self.b = nn.GRU(2, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        return self.b(F.dropout(self.r(x.unflatten(1, (8, 2)))[0], CONFIG.p, self.training)[:, -1])


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.b = nn.Conv1d(1, 4, 5), nn.Linear(48, 4)

    def forward(self, x):
        h = self.c(x[:, None]).relu()
        return self.b((h + CONFIG.p * torch.rand_like(h) if CONFIG.p else h).flatten(1))


class Frozen(MLP):
    def middle(self, h):
        return h.tanh() + CONFIG.p if self.b.weight.requires_grad else h.tanh()


class Shrinking(MLP):
    def middle(self, h):
        if CONFIG.p:
            self.b.weight.data = self.b.weight.data * 0.8
        return h.tanh()


class Seeded(MLP):
    def middle(self, h):
        if CONFIG.p:
            torch.manual_seed(7)
        return F.dropout(h.tanh(), 0.3, self.training)


def set_p(value):
    CONFIG.p = MASK.p = TABLE["p"] = LATE.p = SETTINGS.p = get_settings().p = get_few_settings().p = value
    if "P_OF_MINE" in os.environ:
        os.environ["P_OF_MINE"] = str(value)


@pytest.mark.parametrize("build", [GRU, Noisy, Frozen, Shrinking, Seeded])
@pytest.mark.parametrize("times", [lambda step: step % 10 >= 7, lambda step: 5 <= step < 15])
def test_what_is_on_for_some_steps(build, times):
    def schedule(step):
        set_p(0.5 if times(step) else 0.0)
        return 1.0

    check(build, schedule=schedule, reset=lambda: set_p(0.0))


READ = {
    "tensor": lambda: MASK.p,
    "dict": lambda: LATE.p,
    "view": lambda: VIEW["p"],
    "globals": lambda: globals()["CONFIG"].p,
    "module": lambda: vars(SETTINGS)["p"],
    "module by name": lambda: sys.modules["settings_of_mine"].p,
    "environment": lambda: float(os.getenv("P_OF_MINE")),
    "cache": lambda: get_settings().p,
    "cache with a limit": lambda: get_few_settings().p,
}


@pytest.mark.parametrize("read", READ.values(), ids=READ)
def test_what_hides_in_attributes_containers_and_names(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "settings_of_mine", SETTINGS)
    monkeypatch.setenv("P_OF_MINE", "0")

    class Reading(MLP):
        def middle(self, h):
            return h.tanh() * (1 + read())

    def schedule(step):
        set_p(float(step % 7 == 6))
        return 1.0

    check(Reading, schedule=schedule, reset=lambda: set_p(0.0))


SQUASH, DENT = torch.tanh, F.softsign  # of C and of Python


ACTS = {"C": lambda h: 1 * SQUASH(h), "Python": lambda h: 1 * DENT(h), "configuration": lambda h: 1 * CONFIG.act(h)}


@pytest.mark.parametrize("read", ACTS.values(), ids=ACTS)
def test_a_function_of_torch_that_is_put_in_the_place_of_another(read, monkeypatch):
    class Acting(MLP):
        def middle(self, h):
            return read(h)

    def put(is_other):
        monkeypatch.setitem(globals(), "SQUASH", torch.relu if is_other else torch.tanh)
        monkeypatch.setitem(globals(), "DENT", F.silu if is_other else F.softsign)
        CONFIG.act = torch.square if is_other else torch.sigmoid

    def schedule(step):
        put(step % 7 == 6)
        return 1.0

    check(Acting, schedule=schedule, reset=lambda: put(False))


def reduce(out, y):
    return CONFIG.reduce(F.cross_entropy(out, y, reduction="none"))


def test_a_reduction_that_changes_for_some_steps():
    def schedule(step):
        CONFIG.reduce = torch.amax if 20 <= step < 35 else torch.mean
        return 1.0

    check(MLP, loss=reduce, schedule=schedule, reset=lambda: schedule(0))


@functools.lru_cache(4)
def get_scale(n):
    return torch.ones(n, 1)


get_table = functools.cache(lambda: np.ones((1200, 1000)))


class CachedByModel(MLP):
    @functools.lru_cache(128)  # noqa: B019, as a student has it: the key holds the model
    def get_shift(self):
        return torch.zeros(1)

    def middle(self, h):
        return h.tanh() * get_scale(len(h)) + self.get_shift()


def scaled(out, y):
    return (F.cross_entropy(out, y, reduction="none") * get_scale(len(out))[:, 0]).mean() + 0 * get_table().shape[0]


def test_caches_that_only_cache_are_trained_together():
    get_scale(20), get_scale(100), get_table()
    for build, loss in ((CachedByModel, F.cross_entropy), (MLP, scaled)):
        stack, _ = fit(build, DATA, 3, steps=60, batch_size=20, eval_every=20, loss=loss)
        assert stack.stacked and not stack.remembers and len(stack._recordings) == 1


LARGE = np.zeros((1200, 1000))


@pytest.mark.filterwarnings("error:.*begins anew for every seed")
def test_what_is_too_large_to_be_looked_at_is_not_said_to_remember():
    with pytest.warns(UserWarning, match="one seed after the other.*too large to be looked at"):
        stack, _ = fit(MLP, DATA, 2, steps=3, batch_size=20, loss=lambda o, y: F.cross_entropy(o, y) + LARGE[0, 0])
    assert not stack.remembers


@pytest.mark.parametrize("read", [
    lambda: sum(getattr(SETTINGS, name) for name in ("p", "q")),
    lambda: sum(sys.modules[__name__].SETTINGS.p for _ in range(1)),
    lambda: sum(float(os.environ[name]) for name in ("P_OF_MINE",)),
])  # fmt: skip
def test_names_in_tuples_and_inner_functions_are_read(read, monkeypatch):
    monkeypatch.setenv("P_OF_MINE", "0.125")
    monkeypatch.setattr(SETTINGS, "p", 0.125)
    found = read_names(read)
    assert 0.125 in found or "0.125" in found
    assert not any(value is sys.modules for value in found)


class EvaluatedLate(MLP):
    def middle(self, h):
        h = h.tanh()
        is_on = not self.training and self.b.weight.requires_grad
        return h + CONFIG.p * torch.linspace(-1, 1, 8) if is_on else h


def test_evaluations_are_compared_again_where_what_they_read_has_changed():
    def schedule(step):
        set_p(3.0 if step >= 10 else 0.0)
        return 1.0

    check(EvaluatedLate, schedule=schedule, reset=lambda: set_p(0.0), eval_every=5)


def limit(grad):
    return grad * min(1.0, 1.0 / float(np.linalg.norm(grad.numpy())))


def limit_listed(grad):
    return grad * min(1.0, 1.0 / max(map(abs, grad.flatten().tolist())))


class Limit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return limit(grad)


@pytest.mark.parametrize("way", [limit, limit_listed, Limit])
def test_numbers_read_within_a_backward_pass(way):
    class Limited(MLP):
        def forward(self, x):
            h = self.a(x).relu()
            if way is Limit:
                return self.b(Limit.apply(h))
            if h.requires_grad:
                h.register_hook(way)
            return self.b(h)

    data = {k: DATA[k].copy() for k in ("x", "x_test")}
    data["x"][100:] *= 20
    data |= {k: np.tanh(data["x" + k[1:]][:, :4]) for k in ("y", "y_test")}
    options = {"loss": F.mse_loss, "optimizer": functools.partial(torch.optim.SGD, lr=0.003)}
    check(Limited, data=data, seeds=([0],), **options)


class Cached(MLP):
    @functools.lru_cache(None)  # noqa: B019
    def basis(self):
        return torch.randn(8)

    def middle(self, h):
        return F.dropout(h * self.basis(), 0.3, self.training)


@functools.lru_cache(None)
def project(n):
    return torch.randn(n)


class CachedOutside(MLP):
    def middle(self, h):
        return F.dropout(h * project(8), 0.3, self.training)


@pytest.mark.parametrize("build", [Cached, CachedOutside])
def test_a_cache_of_something_random(build):
    check(build, reset=project.cache_clear, eval_every=7)


class Centered(MLP):
    def forward(self, x):
        out = super().forward(x)
        return out if self.training or len(x) < 64 else out - out.mean(0)


class InTwoParts(MLP):
    def forward(self, x):
        out = super().forward(x)
        return torch.cat([out[:400], -out[400:]])


@pytest.mark.parametrize("build", [Centered, InTwoParts])
def test_answers_that_depend_on_the_other_examples(build):
    g = np.random.default_rng(0)
    g.normal(size=(160, 16))
    weights = g.normal(size=(16, 4))
    x = np.random.default_rng(5).normal(size=(1200, 16)).astype("float32")
    y = (x @ weights).argmax(1)
    order = np.argsort(y)  # by class
    check(build, data=DATA | {"x_test": x[order], "y_test": y[order]})


class Single(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x):
        return super().forward(x).float()


def test_autocast_that_is_on_for_some_steps():
    x, y = torch.tensor(DATA["x"]), torch.tensor(DATA["y"])
    stack = Stack(Single, [0], optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    set_seed(0)
    model = Single()
    opt = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(30):
        rows = (torch.arange(20) + 20 * step) % 120
        with torch.autocast("cpu", torch.bfloat16, enabled=step % 7 == 6):
            ours = stack.backward(x[rows][None], y[rows][None])
            opt.zero_grad()
            loss = F.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
        assert abs(ours.item() - loss.item()) < 2e-5
        stack.step()
        opt.step()


class GraphLayer(MLP):
    def __init__(self):
        super().__init__()
        self.links = torch.eye(8).to_sparse()  # an attribute, no buffer

    def middle(self, h):
        return (self.links @ h.tanh().T).T


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.b = nn.Embedding(10, 4, sparse=True), nn.Linear(16 * 4, 4)

    def forward(self, x):
        return self.b(self.words(x.abs().clamp(max=2).mul(4).long()).flatten(1))


def test_sparse_tensors():
    check(GraphLayer)
    check(Words, optimizer=functools.partial(torch.optim.SGD, lr=0.1), seeds=([0],))
    losses = train(Words, DATA, 1, steps=5, batch_size=20, optimizer="sgd", eval_every=None)["train_loss"]
    assert np.isfinite(losses).all()


class Forked(MLP):
    def middle(self, h):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return h.tanh() + CONFIG.p * torch.randn(8)


def test_the_global_generators_stay_as_they_were():
    before = torch.get_rng_state()
    train(Forked, DATA, 2, steps=20, batch_size=20)
    assert torch.equal(before, torch.get_rng_state())


class Squeezing(nn.CrossEntropyLoss):
    def forward(self, out, y):
        return super().forward(out, y.squeeze(-1))


def test_a_loss_of_ones_own_may_take_labels_as_it_likes():
    data = {k: v[:, None] if k == "y" else v for k, v in DATA.items() if k in "xy"}
    assert np.isfinite(train(MLP, data, 1, steps=3, loss=Squeezing(), eval_every=None)["train_loss"]).all()
