"""The mechanism of the shuffling notebook: its plain loop is what `train` does, and its orders are permutations."""

import numpy as np
import pytest

from mnist1d import make_dataset
from mnist1d.models import CNN
from mnist1d.training import train
from notebooks import run_parameters


def test_the_plain_loop_gives_the_numbers_of_train(notebook):
    cells, data = notebook("shuffling"), make_dataset(num_samples=500)
    options = {"steps": 30, "batch_size": cells["BATCH_SIZE"], "learning_rate": cells["LEARNING_RATE"]}
    for seed in (0, 3):
        plain = cells["train_one"](CNN, data, 30, seed)
        assert plain == pytest.approx(train(CNN, data, [seed], **options)["test_acc"][0, -1], abs=1.1)  # one example


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [1, 2, 8, 20])
def test_blocks_keep_the_order_inside_each_and_are_moved(notebook, size, seed):
    order = notebook("shuffling", PERMUTATION_SEED=seed)["shuffle_blocks"](size)
    assert sorted(order) == list(range(40)) and (order != np.arange(40)).any()
    assert (np.diff(order.reshape(-1, size), axis=1) == 1).all()


def test_blocks_that_do_not_divide_the_signal_are_refused_at_the_top():
    with pytest.raises(ValueError, match=r"BLOCKS=\(2, 7, 40\): \[7, 40\] must divide"):
        run_parameters("shuffling", BLOCKS=(2, 7, 40))
