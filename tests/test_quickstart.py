"""The quickstart: its plain loop and `train` are the same training, for every model that a reader may name."""

import numpy as np
import pytest

from mnist1d import make_dataset, models
from mnist1d.training import train
from notebooks import run_parameters

STEPS = 45  # more than an epoch of forty batches


@pytest.mark.parametrize("name", models.MODELS)
def test_the_plain_loop_is_what_train_does(name, notebook):
    data = make_dataset()
    plain = notebook("quickstart", data=data, STEPS=STEPS, EVAL_EVERY=20)["train_one"](models.MODELS[name], 3)
    history = train(models.MODELS[name], data, [3, 4], steps=STEPS, eval_every=20)
    np.testing.assert_allclose(history["test_acc"][0, 1:], plain, atol=0.31)  # three examples by rounding


def test_steps_that_are_never_shown_are_refused_at_the_top():
    with pytest.raises(ValueError, match="EVAL_EVERY=2000: must be from 1 to STEPS, 20"):
        run_parameters("quickstart", models=models, EVAL_EVERY=2000)
