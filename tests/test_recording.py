"""Recordings against autograd: the same losses and gradients, whatever they reuse and leave out."""

import pytest
import torch
from torch.nn import functional as F

from mnist1d import recording
from mnist1d.models import MODELS, ModelStack
from mnist1d.recording import record_backward
from mnist1d.training import cross_entropy

SEEDS = [3, 5, 8]


def assert_equals_autograd(loss, shape=(2, 3, 4)):
    """Losses and gradients of `loss(params, x)`, with parameters "w" and batches x of that shape, are autograd's."""
    backward = record_backward(loss)
    params = {"w": torch.randn(shape, requires_grad=True)}
    for _ in range(4):
        x = torch.randn(shape)
        x_before = x.clone()
        losses = backward(params, x)
        expected = loss(params, x)
        assert torch.equal(losses, expected)
        assert torch.equal(params["w"].grad, torch.autograd.grad(expected.sum(), params["w"])[0])
        assert torch.equal(x, x_before)


@pytest.mark.parametrize("n_seeds", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_a_recording_gives_the_losses_and_gradients_of_autograd_bit_by_bit(name, n_seeds):
    stack = ModelStack(MODELS[name], SEEDS[:n_seeds])
    backward = record_backward(lambda params, x, y: cross_entropy(stack.apply(params, x), y))
    for n in (20, 20, 20, 7, 7):  # a recording, two replays with other numbers; then another shape
        x, y = torch.randn(n_seeds, n, 40), torch.randint(10, (n_seeds, n))
        losses = backward(stack.params, x, y)
        gradients = [parameter.grad for parameter in stack.params.values()]
        expected = cross_entropy(stack(x), y)
        assert torch.equal(losses, expected)
        assert not losses.requires_grad
        for got, plain in zip(gradients, torch.autograd.grad(expected.sum(), stack.params.values()), strict=True):
            assert got.is_contiguous()
            assert torch.equal(got, plain)


def test_a_recording_replaces_gradients_and_gives_zero_to_what_the_loss_does_not_use():
    params = {"used": torch.tensor([2.0], requires_grad=True), "unused": torch.ones(3, requires_grad=True)}
    backward = record_backward(lambda params, x: params["used"] * x)
    for x in range(3):
        assert backward(params, torch.tensor(float(x))) == 2 * x
        assert params["used"].grad == x
        assert torch.equal(params["unused"].grad, torch.zeros(3))


def test_a_recording_draws_new_random_numbers():
    backward = record_backward(lambda params, x: F.dropout(params["w"] * x).sum(1))
    params = {"w": torch.ones(1, 100, requires_grad=True)}
    x = torch.rand(1, 100)  # no two masks have the same sum
    torch.manual_seed(0)
    losses = [backward(params, x).item() for _ in range(4)]
    assert len(set(losses)) == 4
    torch.manual_seed(0)
    assert losses == [F.dropout(params["w"] * x).sum().item() for _ in range(4)]


def test_a_recording_writes_over_nothing_that_is_read_later():
    given = torch.randn(1, 3, 4)

    def loss(params, x):
        h = params["w"] * x  # read again below, by relu's gradient, and through a view
        a = h.relu() + h
        b = (a > 0) * (a + given) * a[:, :1]  # the mask is no place for a number
        c = b.relu() * h.transpose(1, 2).transpose(1, 2)
        return torch.add(c, x, alpha=3).sum((1, 2))

    before = given.clone()
    assert_equals_autograd(loss, given.shape)
    assert torch.equal(given, before)


def test_products_that_are_changed_in_place_are_transposed_as_they_are():
    def loss(params, x):
        product = params["w"].transpose(1, 2).detach() @ x  # [model, 4, 4]
        product += 1
        return (params["w"] @ product.transpose(1, 2)).sum((1, 2))

    assert_equals_autograd(loss)


@pytest.mark.parametrize(
    "operation",
    [
        lambda w: 2 - w,
        lambda w: w * 3 / 7,
        lambda w: w[:, ::2, 1:],
        lambda w: F.pad(w, (1, 2, 0, 3)),
        lambda w: F.pad(w, (-1, 2), value=5.0),
        lambda w: w.flip(1),
        lambda w: F.layer_norm(w, (4,)),
        lambda w: w.cumsum(2),
        lambda w: w.double(),
        lambda w: w.sum() * w,
        lambda w: w.mean() + w.std(2, keepdim=True),
        lambda w: torch.sub(w, 2, alpha=3) + torch.add(w, w, alpha=2),
        lambda w: torch.cat([w, w.max(2, keepdim=True)[0]], 2),
        lambda w: torch.maximum(w, w.flip(1)) / (w * w + 1),
        lambda w: torch.lerp(w, w.exp(), 0.3).addcmul(w, w, value=0.5),
        lambda w: F.scaled_dot_product_attention(w, w, w),
        lambda w: F.batch_norm(w, None, None, training=True),
        lambda w: F.max_pool2d(F.conv2d(w[:, None], torch.ones(2, 1, 2, 2)), 2),
        lambda w: w.scatter_add(2, torch.zeros(2, 3, 4, dtype=torch.long), w).gather(2, torch.ones(2, 3, 2).long()),
        lambda w: torch.where(w > 0, w.clamp(max=0.5), F.silu(w)).masked_fill(w < -1, 3.0),
        lambda w: (w * 1).mul_(2).add_(1).relu_(),
    ],
)
def test_an_operation_of_every_kind_equals_autograd(operation):
    assert_equals_autograd(lambda params, x: (operation(params["w"] * x) ** 2).flatten(1).sum(1).float())


def test_what_is_the_same_every_time_stays_so():
    def loss(params, x):
        mask = torch.eye(4) + torch.ones(4).diag()
        total = torch.zeros(2, 3, 4)
        total += params["w"] * x  # a constant that is changed is none
        return (total * mask[1]).sum((1, 2)) + torch.arange(2.0)

    assert_equals_autograd(loss)


def test_other_parameters_of_the_same_shape_have_their_own_recording():
    backward = record_backward(lambda params, x: params["w"] * x)
    first, second = ({"w": torch.ones(1, requires_grad=True)} for _ in range(2))
    for i in range(1, 4):
        assert backward(first, torch.tensor([2.0 * i])) == 2 * i
        assert backward(second, torch.tensor([5.0 * i])) == 5 * i
        assert (first["w"].grad, second["w"].grad) == (2 * i, 5 * i)


def test_values_that_are_no_parameters_are_copied_and_have_gradients_of_their_own():
    backward = record_backward(lambda params, x: (params["w"] ** 2 * x).sum(1))
    values = [torch.full((1, 2), float(i)) for i in range(4)]
    grads = []
    for value in values:
        params = {"w": value}
        backward(params, torch.ones(1, 2))
        grads.append(params["w"].grad)
    assert [grad[0, 0].item() for grad in grads] == [0, 2, 4, 6]
    assert [value[0, 0].item() for value in values] == [0, 1, 2, 3]


def test_a_long_chain_needs_no_more_memory_than_its_gradient_must_remember(monkeypatch):
    places, plan = [], recording._plan_memory
    monkeypatch.setattr(recording, "_plan_memory", lambda *args: places.append(plan(*args)) or places[-1])
    depth = 20

    def loss(params, x):
        for _ in range(depth):
            x = (x @ params["w"] + 1).tanh() * 2
        return x.sum((1, 2))

    backward = record_backward(loss)
    backward({"w": torch.randn(1, 50, 50, requires_grad=True)}, torch.randn(1, 50, 50))
    storages = {storage.data_ptr(): storage.nbytes() for storage in places[0].values()}
    remembered = 2 * depth  # the outputs of tanh, and the inputs of the products
    assert sum(storages.values()) < (remembered + 8) * 50 * 50 * 4 < len(places[0]) * 50 * 50 * 4


def test_a_recorded_loss_must_not_read_values():
    backward = record_backward(lambda params, x: params["w"] * x.sum().item())
    with pytest.raises(RuntimeError, match="must not depend on values"):
        backward({"w": torch.ones(1, requires_grad=True)}, torch.ones(3))
