"""Models, stacked training and sweeps, each against the plain way of doing it."""

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch.nn import functional as F

from mnist1d import make_dataset, settings, training
from mnist1d.models import (
    GRU,
    MLP,
    MODELS,
    Convolution,
    Convolution2d,
    Logistic,
    ModelStack,
    _GRUScan,
    count_parameters,
)
from mnist1d.training import early_stopped, sweep, train

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
SEEDS = [3, 5, 8]


@pytest.fixture(scope="module")
def data():
    return make_dataset({"num_samples": 300}, validation_split=0.1)


def test_parameter_counts_are_the_published_ones():
    counts = {name: count_parameters(build()) for name, build in MODELS.items()}
    assert counts == {"logistic": 410, "MLP": 15210, "CNN": 5210, "GRU": 5134}


class PlainGRU(torch.nn.Module):
    """The same network with torch's own recurrence."""

    def __init__(self):
        super().__init__()
        self.gru = torch.nn.GRU(1, 6, batch_first=True, bidirectional=True)
        self.linear = torch.nn.Linear(480, 10)

    def forward(self, x):
        return self.linear(self.gru(x.unsqueeze(-1))[0].flatten(1))


class PlainCNN(torch.nn.Module):
    """The same network with torch's own convolutions."""

    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv1d(1, 25, 5, stride=2, padding=1)
        self.conv2 = torch.nn.Conv1d(25, 25, 3, stride=2, padding=1)
        self.conv3 = torch.nn.Conv1d(25, 25, 3, stride=2, padding=1)
        self.linear = torch.nn.Linear(125, 10)

    def forward(self, x):
        h = self.conv3(self.conv2(self.conv1(x.unsqueeze(1)).relu()).relu()).relu()
        return self.linear(h.flatten(1))


PLAIN = {"logistic": Logistic, "MLP": MLP, "CNN": PlainCNN, "GRU": PlainGRU}


@pytest.fixture
def double_precision():
    """In float32 rounding decides Adam's first step wherever a gradient is almost zero."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def train_plainly(build, data, seed, device, optimizer, steps=20, batch_size=50):
    """The oracle: fifteen lines of ordinary PyTorch, with an unfused optimiser."""
    torch.manual_seed(seed)
    model = build().to(device)
    if optimizer == "adam":
        opt = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-3, fused=False)
    else:
        opt = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, weight_decay=1e-3, fused=False)
    x, y = torch.tensor(data["x"], device=device), torch.tensor(data["y"], device=device)
    for step in range(steps):
        index = torch.arange(step * batch_size, (step + 1) * batch_size, device=device) % len(x)
        loss = F.cross_entropy(model(x[index]), y[index])
        opt.zero_grad()
        loss.backward()
        opt.step()
    return model


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("name", MODELS)
def test_stacked_trainer_equals_the_plain_loop(double_precision, data, name, optimizer, device):
    options = {"optimizer": optimizer, "momentum": 0.9 if optimizer == "sgd" else 0.0, "weight_decay": 1e-3}
    history = train(MODELS[name], data, SEEDS, steps=20, batch_size=50, eval_every=20, device=device, **options)
    x = torch.tensor(data["x_test"], device=device)
    for i, seed in enumerate(SEEDS):
        plain = train_plainly(PLAIN[name], data, seed, device, optimizer)
        stacked = history["model"].get_module(i)
        assert stacked.state_dict().keys() == plain.state_dict().keys()
        for key, value in plain.state_dict().items():
            torch.testing.assert_close(stacked.state_dict()[key], value, rtol=1e-6, atol=1e-9)
        accuracy = 100 * (plain(x).argmax(1).cpu().numpy() == data["y_test"]).mean()
        assert history["test_acc"][i, -1] == pytest.approx(accuracy)


@pytest.mark.parametrize("features", [1, 4])
def test_gru_equals_torch_in_output_and_every_gradient(features):
    torch.manual_seed(0)
    ours = GRU(length=20, hidden=3, features=features).double()
    theirs = torch.nn.GRU(features, 3, batch_first=True, bidirectional=True).double()
    theirs.load_state_dict(ours.gru.state_dict())
    x = torch.randn(7, 20, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(7, 10, dtype=torch.float64)
    ours_out = ours(x)
    theirs_out = ours.linear(theirs(x.unflatten(1, (-1, features)))[0].flatten(1))
    torch.testing.assert_close(ours_out, theirs_out)
    ours_grads = torch.autograd.grad((ours_out * weights).sum(), [x, *ours.gru.parameters()])
    theirs_grads = torch.autograd.grad((theirs_out * weights).sum(), [x, *theirs.parameters()])
    for a, b in zip(ours_grads, theirs_grads, strict=True):
        torch.testing.assert_close(a, b)


def test_gru_gradient_against_finite_differences():
    torch.manual_seed(0)
    shapes = [(4, 2, 1, 3), (2, 6, 1), (2, 6, 2), (2, 6, 1), (2, 2, 1)]
    args = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(lambda *a: _GRUScan.apply(*a)[0], args)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "padding", "bias"), [(5, 1, True), (3, 0, False), (1, 0, True), (4, 3, True)])
def test_convolution_equals_torch(kernel, stride, padding, bias):
    torch.manual_seed(0)
    ours = Convolution(3, 6, kernel, stride=stride, padding=padding, bias=bias).double()
    theirs = torch.nn.Conv1d(3, 6, kernel, stride=stride, padding=padding, bias=bias).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, 17, dtype=torch.float64, requires_grad=True)
    got, expected = ours(x.permute(1, 2, 0)).permute(2, 0, 1), theirs(x)  # (example, channel, position)
    torch.testing.assert_close(got, expected)
    weights = torch.randn_like(expected)
    gradients = [
        torch.autograd.grad((y * weights).sum(), [x, *m.parameters()]) for y, m in ((got, ours), (expected, theirs))
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [((28, 28), 3, 2, 1), ((7, 7), 3, 2, 1), ((12, 12), 5, 1, 0), ((9, 11), 4, 1, 2), ((28, 27), 5, 2, 2)],
)
@pytest.mark.parametrize("bias", [True, False])
def test_convolution_in_two_dimensions_has_the_values_and_gradients_of_conv2d(size, kernel, stride, padding, bias):
    ours = Convolution2d(3, 6, kernel, stride=stride, padding=padding, bias=bias).double()
    x = torch.randn(4, 3, *size, dtype=torch.float64, requires_grad=True)
    parameters = [x, *ours.parameters()]
    expected = F.conv2d(x, ours.weight, ours.bias, stride, padding)
    got = ours(x.permute(2, 1, 3, 0)).permute(3, 1, 0, 2)
    torch.testing.assert_close(got, expected)
    weights = torch.randn_like(got)
    gradients = [torch.autograd.grad((weights * y).sum(), parameters) for y in (got, expected)]
    torch.testing.assert_close(*gradients)


def test_convolutions_in_two_dimensions_can_be_stacked():
    stack = ModelStack(lambda: Convolution2d(2, 3, 3, padding=1), SEEDS)
    x = torch.randn(len(SEEDS), 8, 2, 9, 5)
    got = stack(x)
    gradients = torch.autograd.grad(got.square().sum(), list(stack.params.values()))
    for i in range(len(SEEDS)):
        alone = stack.get_module(i)
        expected = alone(x[i])
        torch.testing.assert_close(got[i], expected)
        own = torch.autograd.grad(expected.square().sum(), list(alone.parameters()))
        torch.testing.assert_close([gradient[i] for gradient in gradients], list(own), rtol=1e-4, atol=1e-4)


def test_the_schedule_multiplies_the_learning_rate(data):
    options = {"steps": 6, "optimizer": "sgd", "learning_rate": 0.1}
    scheduled = train(MLP, data, SEEDS, schedule=lambda step: 1.0 if step < 4 else 0.0, **options)
    shorter = train(MLP, data, SEEDS, **{**options, "steps": 4})
    for name, value in shorter["model"].params.items():
        assert torch.equal(scheduled["model"].params[name], value)


def test_model_stack_keeps_the_global_seed_and_copies_its_modules():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    stack = ModelStack(MLP, SEEDS)
    assert torch.rand(1) == expected
    first, last = stack.get_module(0), stack.get_module(2)
    assert not torch.equal(first.linear1.weight, last.linear1.weight)
    x = torch.randn(5, 40)
    torch.testing.assert_close(stack(x.expand(3, 5, 40))[2], last(x))


def test_one_dataset_per_seed_equals_separate_runs(data):
    other = make_dataset({"num_samples": 300, "seed": 1}, validation_split=0.1)
    n = min(len(data["x"]), len(other["x"]))
    first, second = ({**d, "x": d["x"][:n], "y": d["y"][:n]} for d in (data, other))
    n_val = min(len(data["x_val"]), len(other["x_val"]))
    for d in (first, second):
        d["x_val"], d["y_val"] = d["x_val"][:n_val], d["y_val"][:n_val]
    together = train(MLP, [first, second], [0, 1], steps=10, eval_every=5)
    alone = train(MLP, second, [1], steps=10, eval_every=5)
    np.testing.assert_allclose(together["train_loss"][1], alone["train_loss"][0], rtol=1e-5)
    np.testing.assert_array_equal(together["val_acc"][1], alone["val_acc"][0])


def test_shuffled_order_visits_every_example_once_an_epoch_and_depends_on_the_seed():
    batches = list(training._batches("shuffled", 10, 5, 4, [0, 1], "cpu"))
    for epoch in (torch.cat(batches[:2], 1), torch.cat(batches[2:], 1)):
        assert (epoch.sort(1).values == torch.arange(10)).all()
    assert not torch.equal(batches[0][0], batches[0][1]) and not torch.equal(batches[0], batches[2])


def test_cyclic_order_wraps_around():
    batches = list(training._batches("cyclic", 10, 4, 3, [0], "cpu"))
    assert [b.tolist() for b in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]


def test_given_state_replaces_the_initial_one(data):
    start = ModelStack(MLP, [9, 9])
    history = train(MLP, data, [0, 1], steps=0, state=(start.params, start.buffers))
    torch.testing.assert_close(history["model"].params["linear1.weight"], start.params["linear1.weight"])


def test_early_stopping_looks_at_the_validation_set_alone():
    history = {
        "val_acc": np.array([[1, 5, 5, 2], [9, 1, 1, 1]]),
        "test_acc": np.array([[10, 20, 99, 30], [7, 99, 99, 99]]),
    }
    np.testing.assert_array_equal(early_stopped(history), [20, 7])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "random"}, "order='random'"),
        ({"optimizer": "lion"}, "optimizer='lion'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 10**6}, "batch_size=1000000"),
        ({"steps": -1}, "steps=-1: must be at least 0"),
        ({"eval_every": 0}, "eval_every=0: must be at least 1"),
    ],
)
def test_bad_options_are_named(data, options, message):
    with pytest.raises(ValueError, match=message):
        train(MLP, data, [0], **{"steps": 1, **options})
    with pytest.raises(ValueError, match=r"seeds=\[\]"):
        train(MLP, data, [], steps=1)
    with pytest.raises(ValueError, match="2 datasets for 3 seeds"):
        train(MLP, [data, data], SEEDS, steps=1)


def test_divergence_names_step_and_seed(data):
    with pytest.raises(FloatingPointError, match=r"seeds \[0, 1\] is not finite at step 10"):
        train(MLP, data, [0, 1], steps=10, eval_every=10, optimizer="sgd", learning_rate=1e9)


def double(variant, seeds):
    return {"a": {"b": np.array([[variant * s, s] for s in seeds])}, "seed": torch.tensor(seeds)}


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_sweep_joins_chunks_in_the_order_of_the_seeds(monkeypatch, jobs):
    monkeypatch.setenv("JOBS", jobs)
    results = sweep(double, {"x": 2, "y": 3}, [5, 6, 7], chunk=2)
    np.testing.assert_array_equal(results["y"]["a"]["b"], [[15, 5], [18, 6], [21, 7]])
    np.testing.assert_array_equal(results["x"]["seed"], [5, 6, 7])


def count_threads(variant, seeds):
    counts = [library["num_threads"] for library in threadpool_info()] + [torch.get_num_threads()]
    return {"threads": np.tile(counts, (len(seeds), 1))}


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_task_has_one_thread_wherever_it_runs(monkeypatch, jobs):
    monkeypatch.setenv("JOBS", jobs)
    with threadpool_limits(2):
        results = sweep(count_threads, {"x": None, "y": None}, [0])
        assert {library["num_threads"] for library in threadpool_info()} == {2}
    assert all((result["threads"] == 1).all() for result in results.values())


def test_an_empty_sweep_is_refused():
    for variants, seeds, chunk in (({}, [0], 1), ({"x": 1}, [], None), ({"x": 1}, [0], 0)):
        with pytest.raises(ValueError, match=r"neither may be empty|chunk=0"):
            sweep(double, variants, seeds, chunk=chunk)


def test_one_model_needs_no_vmap_and_gives_the_same():
    x = torch.randn(2, 5, 40)
    stack, alone = ModelStack(MLP, [3, 4]), ModelStack(MLP, [4])
    torch.testing.assert_close(alone(x[1:]), stack(x)[1:])


def test_environment_is_checked(monkeypatch):
    for value in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("JOBS", value)
        with pytest.raises(ValueError, match=f"JOBS='{value}'"):
            settings.get_jobs()
    monkeypatch.setenv("MNIST1D_PROFILE", "full")
    with pytest.raises(ValueError, match="MNIST1D_PROFILE='full'"):
        settings.profile()
    monkeypatch.setenv("MNIST1D_DEVICE", "meta")
    assert settings.get_device().type == "meta"
