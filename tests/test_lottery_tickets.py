"""The mechanism of the lottery ticket notebook: masks, pruning, rewinding, controls, neighbours."""

import json

import numpy as np
import pytest
import torch

import lottery_control
from mnist1d import make_dataset
from mnist1d.models import MLP
from notebooks import run_parameters

SEEDS = [0, 1, 2]
SCOPES = ["layerwise", "global", "biases on their own", "biases kept"]
ORDERS = {
    "original": lambda seed: np.arange(40),
    "flipped": lambda seed: np.arange(40)[::-1],
    "shuffled": lambda seed: np.random.default_rng(seed).permutation(40),
}
ARM = {"mask": "dense", "density": 0.08, "scope": "layerwise", "init": "original", "data": "original", "fresh": False}
WEIGHTS, BIASES = ([f"linear{i}.{kind}" for i in (1, 2, 3)] for kind in ("weight", "bias"))
GROUPS = {
    "layerwise": [list(pair) for pair in zip(WEIGHTS, BIASES, strict=True)],
    "global": [WEIGHTS + BIASES],
    "biases on their own": [[name] for name in WEIGHTS + BIASES],
    "biases kept": [[name] for name in WEIGHTS],
}
CRITERIA = {
    "magnitude": lambda initial, final, gradient: final.abs(),
    "random": lambda initial, final, gradient: torch.rand_like(final),
}


@pytest.fixture
def nb(notebook):
    frozen, fresh = make_dataset(), make_dataset({"seed": 43})
    knobs = {"HIDDEN": 24, "STEPS": 6, "EVAL_EVERY": 3, "ROUNDS": 2, "FROZEN": frozen, "FRESH": fresh}
    knobs |= {"ORDERS": ORDERS, "ARM": ARM, "DENSITY": 0.08 ** (np.arange(5) / 2), "WEIGHTS": WEIGHTS}
    return notebook("lottery_tickets", **knobs, SCOPES=GROUPS, CRITERIA=CRITERIA)


def draw_masks(nb, density, scope, criterion="magnitude", seeds=SEEDS):
    weights, masks = nb["draw_weights"](seeds)
    scores = weights, weights, weights, masks
    return weights, nb["prune_rows"](CRITERIA[criterion], *scores, density, GROUPS[scope], seeds)


def test_impossible_knobs_are_refused_at_the_top():
    with pytest.raises(ValueError, match=r"LARGE_BATCH_STEPS=9000: must be at most CURVE_STEPS"):
        run_parameters("lottery_tickets", LARGE_BATCH_STEPS=9000)
    with pytest.raises(ValueError, match="TICKET_DENSITY=1: must lie between 0 and 1"):
        run_parameters("lottery_tickets", TICKET_DENSITY=1)
    with pytest.raises(
        ValueError, match=r"TICKET_DENSITY=0\.8, LAST_ROUND=2: the last round must prune more than half"
    ):
        run_parameters("lottery_tickets", TICKET_DENSITY=0.8)
    with pytest.raises(ValueError, match=r"LARGE_BATCH_STEPS=200: must be a multiple of EVAL_EVERY=150"):
        run_parameters("lottery_tickets", LARGE_BATCH_STEPS=200, CURVE_STEPS=600, EVAL_EVERY=150)


def test_no_mask_is_told_from_a_training_that_diverged(nb):
    weights, masks = nb["draw_weights"](SEEDS)
    final = {name: weight.clone() for name, weight in weights.items()}
    final["linear2.weight"][1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="a score is NaN: the training diverged"):
        nb["prune_rows"](CRITERIA["magnitude"], weights, final, weights, masks, 0.5, GROUPS["layerwise"], SEEDS)


def test_full_masks_leave_the_network_of_the_benchmarks(nb):
    model, plain = nb["MaskedMLP"](), MLP(hidden=24)
    plain.load_state_dict({name: param.detach() for name, param in model.named_parameters()})
    x = torch.randn(7, 40)
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=0)


def test_the_search_over_seeds_is_the_plain_one(nb):
    """The masks of a stack are those of the loop in plain PyTorch, up to weights that tie in magnitude."""
    nb["TICKET_DENSITY"] = 0.08
    found = nb["search"]({"criterion": "magnitude", "scope": "layerwise", "last": 2}, SEEDS)
    for i, seed in enumerate(SEEDS):
        masks, accuracies = nb["search_plainly"](seed, 2, 6)
        np.testing.assert_allclose(found["acc"][i], accuracies, atol=0.5)
        for name, mask in masks.items():
            assert (found["ticket"][name][i] == mask.bool().numpy()).mean() > 0.999


def test_pruned_weights_do_not_move_and_others_do(nb):
    weights, masks = draw_masks(nb, 0.3, "layerwise")
    data = [nb["FROZEN"]] * len(SEEDS)
    gradient = nb["measure_gradient"](weights, masks, data)
    trained, history = nb["train_rows"](weights, masks, data, 10, 100, 5)
    assert history["test_acc"].shape == (3, 3) and history["test_loss"].shape == (3,)
    for name, mask in masks.items():
        assert (trained[name] == weights[name])[mask == 0].all() and (gradient[name][mask == 0] == 0).all()
    moved = [(trained[name] != weights[name])[mask > 0] for name, mask in masks.items()]
    assert torch.cat(moved).double().mean() > 0.9


@pytest.mark.parametrize("scope", SCOPES)
def test_prune_keeps_the_largest_of_each_group_and_never_revives(nb, scope):
    weights, before = draw_masks(nb, 0.5, scope)
    after = nb["prune_rows"](CRITERIA["magnitude"], weights, weights, weights, before, 0.1, GROUPS[scope], SEEDS)
    for group in GROUPS[scope]:
        for i in range(len(SEEDS)):
            magnitude = torch.cat([weights[name][i].abs().flatten() for name in group])
            kept = torch.cat([after[name][i].flatten() for name in group]) > 0
            assert kept.sum() == max(1, round(0.1 * len(magnitude)))
            assert magnitude[kept].min() >= magnitude[~kept].max()
    opposite = {name: torch.where(mask > 0, 1e-9, 1.0) for name, mask in before.items()}
    odd = nb["prune_rows"](CRITERIA["magnitude"], weights, opposite, weights, before, 0.2, GROUPS[scope], SEEDS)
    for name in before:
        assert (after[name] <= before[name]).all() and (odd[name] <= before[name]).all()
        assert any(name in group for group in GROUPS[scope]) or after[name].all()


@pytest.mark.parametrize("scope", SCOPES)
def test_random_masks_match_a_ticket_in_density_and_know_nothing_of_the_weights(nb, scope):
    _, ticket = draw_masks(nb, 0.08, scope)
    weights, random = draw_masks(nb, 0.08, scope, "random")
    for group in GROUPS[scope]:
        counts = [sum(masks[name].flatten(1).sum(1) for name in group) for masks in (ticket, random)]
        assert (counts[0] == counts[1]).all()
    alone = draw_masks(nb, 0.08, scope, "random", SEEDS[1:2])[1]
    assert all((alone[name][0] == random[name][1]).all() for name in random)
    assert (random["linear2.weight"][0] != random["linear2.weight"][1]).any()
    kept = weights["linear2.weight"][random["linear2.weight"] > 0]
    assert abs(kept.abs().mean() / weights["linear2.weight"].abs().mean() - 1) < 0.2


def test_arms_of_one_stack_equal_those_trained_alone(nb):
    _, masks = draw_masks(nb, 0.2, "layerwise")
    ticket = {seed: {name: mask[i].bool().numpy() for name, mask in masks.items()} for i, seed in enumerate(SEEDS)}
    arms = {"dense": {}, "random": {"mask": "random"}, "ticket": {"mask": ticket, "data": "shuffled", "fresh": True}}
    arms["new"] = {"mask": ticket, "init": "random"}
    group = {"steps": 6, "batch": 100, "arms": arms}
    together = nb["run"](group, SEEDS)
    for name, arm in arms.items():
        alone = nb["run"]({**group, "arms": {name: arm}}, SEEDS)[name]
        np.testing.assert_allclose(together[name]["test_acc"], alone["test_acc"], atol=0.5)
        np.testing.assert_allclose(together[name]["test_loss"], alone["test_loss"], rtol=1e-3)
    assert (together["ticket"]["test_loss"] != together["new"]["test_loss"]).all()
    few = nb["run"](group, SEEDS[1:2])  # a worker may get some of the seeds
    for name in arms:
        np.testing.assert_allclose(few[name]["test_loss"][0], together[name]["test_loss"][1], rtol=1e-3)


def test_initial_weights_of_each_control(nb):
    used = {}

    def spy(weights, masks, data, steps, batch_size, eval_every):
        used.update({name: weights[name].split(len(SEEDS)) for name in weights})
        return None, {"test_acc": np.zeros((9, 1)), "test_loss": np.zeros(9)}

    nb["train_rows"] = spy
    arms = {init: {"init": init} for init in ("original", "random", "original signs")}
    nb["run"]({"steps": 1, "batch": 100, "arms": arms}, SEEDS)
    for name, weight in nb["draw_weights"](SEEDS)[0].items():
        original, random, mixed = used[name]
        assert (original == weight).all() and (random != weight).all()
        assert (mixed.sign() == weight.sign()).all() and (mixed.abs() == random.abs()).all()


def test_datasets_change_what_they_say(nb):
    frozen = make_dataset()
    data = {name: nb["make_data"](name, False, 3) for name in ORDERS}
    for split in ("x", "x_test"):
        np.testing.assert_array_equal(data["original"][split], frozen[split])
        np.testing.assert_array_equal(data["flipped"][split][:, ::-1], frozen[split])
        np.testing.assert_array_equal(np.sort(data["shuffled"][split]), np.sort(frozen[split]))
    where = [np.flatnonzero((data["shuffled"][s] == frozen[s][:, :1]).all(0)) for s in ("x", "x_test")]
    np.testing.assert_array_equal(*where)  # one permutation of training and test set
    assert (nb["make_data"]("shuffled", False, 4)["x"] != data["shuffled"]["x"]).any()
    assert not np.isclose(nb["make_data"]("original", True, 3)["x"], frozen["x"]).all(1).any()


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


def test_the_published_search_goes_on_where_it_stopped(tmp_path, capsys):
    options = ["--steps", "3", "--prune-after", "2", "--curve-steps", "2", "--hidden", "12"]
    options += ["--output", str(tmp_path), "--kept", str(tmp_path / "kept.pt"), "--rounds", "3"]
    lottery_control.main(options)
    results = json.loads((tmp_path / "lottery_control.json").read_text(encoding="utf-8"))
    assert len(results["acc"]) == 3 and results["acc"][0][0] == results["acc"][0][1]  # both start dense
    assert results["code"] and results["processor"] and results["versions"]["torch"] == torch.__version__
    assert (tmp_path / "lottery_control.png").is_file()
    capsys.readouterr()
    lottery_control.main(options)
    assert "sparse" not in capsys.readouterr().out  # nothing is left to search
    again = json.loads((tmp_path / "lottery_control.json").read_text(encoding="utf-8"))
    assert again["acc"] == results["acc"]
