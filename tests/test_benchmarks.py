"""The benchmarks notebook: its plain loop is what `fit` does, early stopping included."""

import numpy as np
import pytest

from mnist1d import make_dataset
from mnist1d.models import CNN, MLP
from mnist1d.training import early_stopped, train


@pytest.mark.parametrize("build", [MLP, CNN])
def test_the_plain_loop_gives_the_numbers_of_train(notebook, build):
    cells, data = notebook("benchmarks", EVAL_EVERY=10), make_dataset(num_samples=1000)  # whole batches, as published
    fresh = make_dataset(num_samples=200, train_split=1.0, seed=43)
    data |= {"x_val": fresh["x"], "y_val": fresh["y"]}
    options = {"steps": 45, "batch_size": cells["BATCH_SIZE"], "learning_rate": cells["LEARNING_RATE"]}
    history = train(build, data, [3], eval_every=10, **options)
    final, stopped = cells["train_one"](build, data, 45, seed=3)
    assert final == pytest.approx(history["test_acc"][0, -1], abs=1.1)  # two of 200 examples
    np.testing.assert_allclose(stopped, early_stopped(history)[0], atol=1.1)
