"""The mechanism of `lottery_biases`: groups that compete, pruning that stays, the plain loop and the stack."""

import numpy as np
import pytest
import torch

from notebooks import run_parameters

SEEDS = [0, 1, 2]
LAYERS = ("linear1", "linear2", "linear3")
PARTS = ("weight", "bias")
BIASES = {
    "with the weights": [[f"{layer}.{part}" for part in PARTS] for layer in LAYERS],
    "on their own": [[f"{layer}.{part}"] for layer in LAYERS for part in PARTS],
    "kept": [[f"{layer}.weight"] for layer in LAYERS],
}


@pytest.fixture
def nb(notebook, dataset):
    search = {"biases": "with the weights", "rounds": 2, "steps": 6, "data": "plain", "learning_rate": 2e-2}
    knobs = {"HIDDEN": 24, "STEPS": 6, "ROUNDS": 2, "DENSITY": 0.1, "SEARCH": search, "LAYERS": LAYERS}
    return notebook("lottery_biases", **knobs, BIASES=BIASES, PLAIN=dataset)


@pytest.fixture(scope="module")
def dataset():
    from mnist1d import make_dataset

    return make_dataset({"num_samples": 500})


def test_a_misspelt_choice_is_named_at_the_top():
    with pytest.raises(ValueError, match=r"VARIANTS: unknown \{'round'\}; must be among"):
        run_parameters("lottery_biases", VARIANTS={"reference": {}, "seven": {"round": 7}})
    for variants in ({}, {"reference": {}, "none": {"rounds": 0}}, {"reference": {"steps": 0}}):
        with pytest.raises(ValueError, match=r"must not be empty, with rounds and steps of at least 1"):
            run_parameters("lottery_biases", VARIANTS=variants)


@pytest.mark.parametrize("biases", BIASES)
def test_the_search_over_seeds_is_the_plain_one(nb, biases):
    found = nb["search"]({"biases": biases}, SEEDS)
    for i, seed in enumerate(SEEDS):
        masks, accuracies = nb["search_one"](seed, biases, 2, 6)
        np.testing.assert_allclose([*found["rounds"][i], found["plain"][i]], accuracies, atol=0.01)
        left = [masks[f"{layer}.bias"].mean().item() for layer in LAYERS]
        np.testing.assert_allclose(found["left"][i], left, atol=0.05)  # one unit of 24, where magnitudes tie


def test_no_mask_is_told_from_a_training_that_diverged(nb):
    scores = {f"{layer}.{part}": torch.ones(4, 5) for layer in LAYERS for part in PARTS}
    scores["linear2.bias"][0, 0] = torch.nan
    with pytest.raises(ValueError, match="a score is NaN: the training diverged"):
        nb["prune"](scores, 0.3, BIASES["with the weights"])


def test_a_group_keeps_its_share_and_what_is_in_no_group_stays(nb):
    generator = torch.Generator().manual_seed(0)
    scores = {f"{layer}.{part}": torch.rand(20, 5, generator=generator) for layer in LAYERS for part in PARTS}
    masks = nb["prune"](scores, 0.3, BIASES["with the weights"])
    for layer in LAYERS:
        assert sum(masks[f"{layer}.{part}"].sum() for part in PARTS) == 60
        kept = torch.cat([scores[f"{layer}.{part}"][masks[f"{layer}.{part}"] == 1] for part in PARTS])
        cut = torch.cat([scores[f"{layer}.{part}"][masks[f"{layer}.{part}"] == 0] for part in PARTS])
        assert kept.min() > cut.max()
    masks = nb["prune"](scores, 0.3, BIASES["kept"])
    assert all(masks[f"{layer}.bias"].all() and masks[f"{layer}.weight"].sum() == 30 for layer in LAYERS)


def test_what_is_pruned_stays_zero_while_a_network_trains(nb):
    initial, masks = nb["draw_weights"](SEEDS)
    masks = nb["prune_rows"]({name: p.abs() for name, p in initial.items()}, 0.1, BIASES["with the weights"])
    final, acc = nb["train_rows"](initial, masks, [nb["PLAIN"]] * 3, 6, 2e-2, 2)
    assert acc.shape == (3, 3)
    for name, mask in masks.items():
        assert not final[name][mask == 0].any()
        assert (final[name] != initial[name])[mask == 1].any()


def test_a_random_mask_has_nothing_to_do_with_the_weights_and_belongs_to_the_seed(nb, monkeypatch):
    drawn = []

    def note(initial, masks, data, *options):
        drawn.append((initial, masks))
        return None, np.zeros((len(data), 1))

    monkeypatch.setitem(nb["train_control"].__globals__, "train_rows", note)
    for seeds in ([0, 1, 2], [2]):
        nb["train_control"]({"density": 0.3, "biases": "on their own"}, seeds)
    (initial, masks), (_, alone) = drawn
    weights, mask = initial["linear2.weight"].abs(), masks["linear2.weight"].bool()
    assert torch.equal(mask[2:], alone["linear2.weight"].bool()) and not torch.equal(mask[0], mask[1])
    assert mask.double().mean().item() == pytest.approx(0.3, abs=0.01)
    control = nb["draw_masks"](SEEDS, masks)
    for name in masks:
        assert torch.equal(control[name].flatten(1).sum(1), masks[name].flatten(1).sum(1))
        assert not torch.equal(control[name], masks[name])
    assert weights[mask].mean().item() == pytest.approx(weights[~mask].mean().item(), rel=0.1)
