"""The mechanism of the lottery ticket notebook: masks, compaction, pruning, rewinding, neighbours."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mnist1d import make_dataset
from mnist1d.models import MLP

SEEDS = [0, 1, 2]
TREATMENTS = ["with the weights", "on their own", "kept"]


@pytest.fixture
def nb(notebook):
    return notebook("lottery_tickets", HIDDEN=40, STEPS=6, EVAL_EVERY=3, FIRST="linear1.weight", frozen=make_dataset())


def draw_masks_of_magnitude(nb, density, treatment):
    weights, masks = nb["draw_weights"](SEEDS)
    return weights, nb["prune"](weights, masks, density, nb["make_groups"](treatment))


def train_plainly(weights, masks, data, steps, learning_rate):
    """One full-size MLP in a plain loop: gradients and weights are multiplied by the masks, nothing is left out."""
    model = MLP(hidden=weights["linear1.bias"].shape[0])
    model.load_state_dict({name: weight * masks[name] for name, weight in weights.items()})
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    x, y = torch.tensor(data["x"], dtype=torch.float32), torch.tensor(data["y"])
    for step in range(steps):
        batch = torch.arange(100 * step, 100 * step + 100) % len(x)
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        for name, param in model.named_parameters():
            param.grad *= masks[name]
        optimizer.step()
    return {name: param.detach() for name, param in model.named_parameters()}


@pytest.mark.parametrize("treatment", TREATMENTS)
@pytest.mark.parametrize("density", [0.3, 0.08, 0.02])
def test_compact_training_equals_the_full_network(nb, treatment, density):
    weights, masks = draw_masks_of_magnitude(nb, density, treatment)
    first, both, second = nb["compact"](masks)[0]
    if density < 0.1:
        assert (first + both) * (both + second) < 0.9 * 40 * 40
    data = [make_dataset()] * len(SEEDS)
    trained, _ = nb["train_subnetworks"](weights, masks, data, 10, 10)
    for i in range(len(SEEDS)):
        own_weights, own_masks = ({name: value[i] for name, value in given.items()} for given in (weights, masks))
        expected = train_plainly(own_weights, own_masks, data[0], 10, nb["LEARNING_RATE"])
        for name, value in expected.items():
            torch.testing.assert_close(trained[name][i], value, rtol=1e-3, atol=1e-4)


def test_pruned_weights_stay_exactly_zero_under_adam(nb):
    weights, masks = draw_masks_of_magnitude(nb, 0.3, "with the weights")
    trained, _ = nb["train_subnetworks"](weights, masks, [make_dataset()] * len(SEEDS), 15, 15)
    for name, mask in masks.items():
        assert (trained[name][~mask] == 0).all()
    moved = [(trained[name] != weights[name])[mask] for name, mask in masks.items()]
    assert torch.cat(moved).double().mean() > 0.9


def test_full_masks_leave_the_network_whole(nb):
    _, masks = nb["draw_weights"](SEEDS)
    assert nb["compact"](masks)[0] == (0, 40, 0)


def test_a_network_without_any_path_can_be_trained(nb):
    weights, masks = nb["draw_weights"](SEEDS)
    empty = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    trained, history = nb["train_subnetworks"](weights, empty, [make_dataset()] * len(SEEDS), 2, 2)
    assert all((weight == 0).all() for weight in trained.values())
    np.testing.assert_allclose(history["test_loss"], np.log(10), rtol=1e-5)


@pytest.mark.parametrize("treatment", [*TREATMENTS, "global"])
def test_prune_keeps_the_largest_of_each_group(nb, treatment):
    weights, masks = nb["draw_weights"](SEEDS)
    groups = nb["make_groups"](treatment)
    before = nb["prune"](weights, masks, 0.5, groups)
    after = nb["prune"](weights, before, 0.1, groups)
    for group in groups:
        size = sum(masks[name][0].numel() for name in group)
        for i in range(len(SEEDS)):
            magnitude = torch.cat([weights[name][i].abs().flatten() for name in group])
            kept = torch.cat([after[name][i].flatten() for name in group])
            assert kept.sum() == round(0.1 * size)
            assert magnitude[kept].min() >= magnitude[~kept].max()
    grouped = {name for group in groups for name in group}
    for name in masks:
        assert not (after[name] & ~before[name]).any()
        assert name in grouped or after[name].all()


def test_prune_never_revives(nb):
    _, masks = draw_masks_of_magnitude(nb, 0.5, "kept")
    opposite = {name: torch.where(mask, 1e-9, 1.0) for name, mask in masks.items()}
    after = nb["prune"](opposite, masks, 0.2, nb["make_groups"]("kept"))
    assert not any((after[name] & ~masks[name]).any() for name in masks)


def test_random_masks_know_nothing_of_the_initial_weights(nb):
    weights, _ = nb["draw_weights"](SEEDS)
    masks = nb["draw_masks"](SEEDS, 0.08, nb["make_groups"]("with the weights"))
    for name in ("linear1.weight", "linear2.weight"):
        kept = weights[name][masks[name]]
        assert abs((kept > 0).double().mean() - 0.5) < 0.1
        assert abs(kept.abs().mean() / weights[name].abs().mean() - 1) < 0.1


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_random_masks_have_the_density_of_a_ticket_and_belong_to_their_seed(nb, treatment):
    groups = nb["make_groups"](treatment)
    _, ticket = draw_masks_of_magnitude(nb, 0.08, treatment)
    random = nb["draw_masks"](SEEDS, 0.08, groups)
    for group in groups:
        counts = [sum(masks[name].flatten(1).sum(1) for name in group) for masks in (ticket, random)]
        assert (counts[0] == counts[1]).all()
    alone = nb["draw_masks"](SEEDS[1:2], 0.08, groups)
    assert all((alone[name][0] == random[name][1]).all() for name in random)
    assert (random["linear2.weight"][0] != random["linear2.weight"][1]).any()


def test_search_rewinds_to_the_original_initialisation(nb):
    """Every round after the first starts anew: the ticket trained alone gives what the search recorded."""
    variant = {
        "masks": None,
        "density": None,
        "groups": TREATMENTS[0],
        "initialisation": "original",
        "data": "original",
    }
    variant |= {"steps": 6, "eval_every": 3, "keep": True}
    dense = nb["run"](variant, SEEDS)
    start = {"groups": TREATMENTS[0], "data": "original", "steps": 6, "rounds": 2, "last": 3, "dense": dense}
    found = nb["search"](start, SEEDS)
    assert found["acc"].shape == found["loss"].shape == (3, 4)
    ones = found["first_layer"].sum((2, 3))  # [seed, round]
    assert (np.diff(ones) < 0).all()
    assert not (found["first_layer"][:, 1:] & ~found["first_layer"][:, :-1]).any()
    alone = nb["run"]({**variant, "masks": found["ticket"]["masks"]}, SEEDS)
    np.testing.assert_array_equal(alone["test_acc"], found["ticket"]["test_acc"])
    np.testing.assert_array_equal(alone["test_acc"][:, -1], found["acc"][:, 2])


def test_initial_weights_of_each_control(nb):
    used = {}

    def spy(weights, masks, data, steps, eval_every):
        used[kind] = weights
        return weights, {}

    nb["train_subnetworks"] = spy
    variant = {"masks": None, "density": None, "groups": TREATMENTS[0], "data": "original"}
    variant |= {"steps": 1, "eval_every": 1, "keep": False}
    for kind in ("original", "random", "original signs"):
        nb["run"]({**variant, "initialisation": kind}, SEEDS)
    for name, original in nb["draw_weights"](SEEDS)[0].items():
        mixed, random = used["original signs"][name], used["random"][name]
        assert (used["original"][name] == original).all()
        assert (random != original).all()
        assert (mixed.sign() == original.sign()).all() and (mixed.abs() == random.abs()).all()


def test_datasets_change_what_they_say(nb):
    data = {name: nb["make_data"](name, 3) for name in ("original", "fresh", "flipped", "shuffled")}
    frozen = make_dataset()
    for split in ("x", "x_test"):
        np.testing.assert_array_equal(data["original"][split], frozen[split])
        np.testing.assert_array_equal(data["flipped"][split][:, ::-1], frozen[split])
        np.testing.assert_array_equal(np.sort(data["shuffled"][split]), np.sort(frozen[split]))
        assert data["fresh"][split].shape == frozen[split].shape
        assert not np.isclose(data["fresh"][split], frozen[split]).all(1).any()
    # The training and the test set share one permutation: where position 0 went is found in both.
    where = [np.flatnonzero((data["shuffled"][s] == frozen[s][:, :1]).all(0)) for s in ("x", "x_test")]
    np.testing.assert_array_equal(*where)
    other = nb["make_data"]("shuffled", 4)
    assert (other["x"] != data["shuffled"]["x"]).any()
    np.testing.assert_array_equal(other["y"], frozen["y"])


def test_adjacent_pairs_and_their_expectations(nb):
    rng = np.random.default_rng(0)
    mask = rng.random((12, 10)) < np.linspace(0, 0.8, 12)[:, None]
    pairs = sum(bool(mask[i, j] and mask[i, j + 1]) for i in range(12) for j in range(9))
    assert nb["count_adjacent"](mask) == pairs

    draws = 4000
    anywhere = rng.permuted(np.tile(mask.ravel(), (draws, 1)), axis=1).reshape(draws, 12, 10)
    in_rows = np.stack([mask[:, rng.permutation(10)] for _ in range(draws)])
    for sampled, expected in zip((anywhere, in_rows), nb["expect_adjacent"](mask), strict=True):
        counts = nb["count_adjacent"](sampled)
        assert abs(counts.mean() - expected) < 4 * counts.std() / np.sqrt(draws)
    same_density, same_units = nb["expect_adjacent"](mask)
    assert same_units > 1.1 * same_density
