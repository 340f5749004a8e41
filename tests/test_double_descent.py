"""The mechanism of the double-descent notebook: noise fraction, networks, losses, trough, peak and threshold."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mnist1d.models import count_parameters
from notebooks import run_parameters


@pytest.fixture
def namespace(notebook):
    return notebook("double_descent")


def test_impossible_knobs_are_refused_at_the_top():
    with pytest.raises(ValueError, match=r"LABEL_NOISE=0\.0: must lie between 0 and 1"):
        run_parameters("double_descent", LABEL_NOISE=0.0)
    with pytest.raises(ValueError, match="BATCH_SIZE=5000: must be at most a quarter"):
        run_parameters("double_descent", BATCH_SIZE=5000)
    with pytest.raises(ValueError, match=r"LEVELS=.*: must hold 0\.0 and LABEL_NOISE, 0\.15, for MLP and CNN"):
        run_parameters("double_descent", LEVELS={"MLP": [0.15], "CNN": [0.0, 0.15]})
    for knobs in ({"MLP_WIDTHS": []}, {"CNN_CHANNELS": []}, {"LOSS_WIDTHS": []}, {"LOSS_EPOCHS": 1}):
        with pytest.raises(ValueError, match="a size each, two epochs or more"):
            run_parameters("double_descent", **knobs)


@pytest.mark.parametrize("level", [0.05, 0.15, 0.3])
def test_exactly_the_stated_fraction_of_training_labels_is_wrong(namespace, level):
    clean, noisy = (namespace["make_noisy"](1600, value, seed=1) for value in (0.0, level))
    wrong = noisy["y"] != clean["y"]
    assert len(wrong) == 400 and wrong.sum() == round(400 * level)
    assert (noisy["y_clean"] == clean["y"]).all()
    for name in ("x", "x_test", "y_test"):
        np.testing.assert_array_equal(noisy[name], clean[name])


def test_every_seed_draws_its_own_data_and_seed_0_the_published(namespace):
    first, second = (namespace["make_noisy"](1600, 0.15, seed) for seed in (0, 1))
    assert not np.array_equal(first["x"], second["x"])
    published = namespace["make_dataset"]({"num_samples": 1600, "train_split": 0.25})
    np.testing.assert_allclose(first["x"], published["x"], rtol=1e-6)


@pytest.mark.parametrize("width", [2, 47, 300])
def test_published_mlp_has_two_equal_hidden_layers(namespace, width):
    model = namespace["mlp"](width)
    shapes = [(layer.in_features, layer.out_features) for layer in model if isinstance(layer, nn.Linear)]
    assert shapes == [(40, width), (width, width), (width, 10)]
    assert count_parameters(model) == width**2 + 52 * width + 10
    assert count_parameters(namespace["mlp"](width, hidden_layers=1)) == 51 * width + 10


@pytest.mark.parametrize("channels", [2, 25])
def test_cnn_has_the_published_number_of_parameters(namespace, channels):
    assert count_parameters(namespace["CNN"](channels=channels)) == 6 * channels**2 + 58 * channels + 10


def test_squared_error_sums_over_classes_and_averages_over_the_batch(namespace):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 10, generator=generator)
    targets = torch.randint(10, (7,), generator=generator)
    squares = (logits - torch.eye(10)[targets]) ** 2
    expected = namespace["SQUARED_ERROR_WEIGHT"] * squares.sum(1).mean()
    torch.testing.assert_close(namespace["squared_error"](logits, targets), expected)


def test_largest_rise_finds_the_interior_peak(namespace):
    largest_rise = namespace["largest_rise"]
    # The rise from 40 to 55 counts, not the higher start and not the smaller rise from 45.
    assert largest_rise(np.array([70.0, 50, 40, 48, 55, 45, 47])) == (2, 4)
    assert largest_rise(np.array([70.0, 60, 50])) == (0, 0)
    assert largest_rise(np.array([50.0, 40, 45])) == (1, 2)


def test_threshold_is_the_first_size_without_training_errors(namespace):
    train_error = np.array([[5.0, 0.0, 0.1, 0.0], [5.0, 1.0, 0.025, 0.0], [5.0, 1.0, 1.0, 1.0]])
    np.testing.assert_array_equal(namespace["threshold"]([10, 20, 30, 40], train_error), [20, 40, np.nan])


def test_levels_trained_together_equal_levels_trained_alone(notebook):
    levels, seeds = [0.0, 0.15], [0, 1]
    make_noisy = notebook("double_descent")["make_noisy"]
    data = {(level, seed): make_noisy(800, level, seed) for level in levels for seed in seeds}
    knobs = {"DATA": data, "STEPS_PER_EPOCH": 2, "EPOCHS": 10}
    run, mlp = (notebook("double_descent", **knobs)[name] for name in ("run", "mlp"))
    build = lambda: mlp(12)  # noqa: E731
    together = run((build, levels, 5), seeds)
    for level in levels:
        for i, seed in enumerate(seeds):
            alone = run((build, [level], 5), [seed])[level]
            for split in ("train", "test"):
                assert together[level][split].shape == (2, 3)
                np.testing.assert_allclose(together[level][split][i], alone[split][0], atol=0.51)
    assert not np.array_equal(together[0.0]["train"], together[0.15]["train"])


@pytest.mark.parametrize("loss", ["cross-entropy", "squared error"])
def test_each_loss_trains_all_seeds_together_as_one_by_one(notebook, loss, recwarn):
    seeds = [0, 1]
    make_noisy = notebook("double_descent")["make_noisy"]
    knobs = {"LOSS_DATA": {seed: make_noisy(800, 0.15, seed) for seed in seeds}, "LOSS_TRAIN": 200, "LOSS_EPOCHS": 60}
    cells = notebook("double_descent", **knobs)
    function = {"cross-entropy": F.cross_entropy, "squared error": cells["squared_error"]}[loss]
    together = cells["run_loss"]((function, 12), seeds)
    for i, seed in enumerate(seeds):
        alone = cells["run_loss"]((function, 12), [seed])
        for split in ("train", "test"):
            np.testing.assert_allclose(together[split][i], alone[split][0], atol=0.51)
    assert together["train"][0, -1] < 75  # it learns
    assert [str(w.message) for w in recwarn] == []


def test_the_plain_loop_gives_the_numbers_of_train(notebook):
    make_noisy = notebook("double_descent")["make_noisy"]
    data = {(0.15, 3): make_noisy(800, 0.15, 3)}
    cells = notebook("double_descent", DATA=data, STEPS_PER_EPOCH=2, EPOCHS=6)
    torch.manual_seed(3)
    plain = cells["train_one"](cells["mlp"](12), data[0.15, 3], 6, seed=3)
    ours = cells["run"]((lambda: cells["mlp"](12), [0.15], 6), [3])[0.15]
    np.testing.assert_allclose(plain, [ours[split][0, -1] for split in ("train", "test")], atol=0.51)  # one example
