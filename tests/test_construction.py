"""The construction notebook: its steps are those of `transform`, one after the other."""

import numpy as np
import pytest

from mnist1d import get_dataset_args, get_templates, set_seed
from mnist1d.transform import transform


@pytest.mark.parametrize("digit", [0, 5])
def test_the_steps_end_in_what_transform_returns(notebook, digit):
    template, args = get_templates()["x"][digit], get_dataset_args()
    set_seed(7)
    stages = notebook("construction")["trace"](template, args)
    set_seed(7)
    expected, _ = transform(template, template, args)
    np.testing.assert_allclose(stages[-1][1], expected, atol=1e-12)
    assert [len(signal) for _, signal in stages] == [12, len(stages[1][1]), 72, 72, 72, 72, 72, 72, 40]
