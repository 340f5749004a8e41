"""Whatever arguments `make_dataset` is given, it makes a sound dataset or names the argument that is wrong."""

import collections
import numbers
import re
import types
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist1d import get_dataset_args, get_templates, make_dataset
from mnist1d.data import DEFAULTS, OPTIONS

NAMES = [*DEFAULTS, *OPTIONS, "template", "args", "unknown argument"]
SETTINGS = settings(deadline=None, derandomize=True, database=None)

COUNTS = collections.Counter()  # of datasets made and of calls refused

# What nobody should write, beside what some write.
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-300, 300),
    st.integers(2**32, 2**70),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-5, 80), max_size=4),
    st.sampled_from([10**400, np.float32(0.5), np.int8(7), np.array([1, 2]), np.array(3), 1 + 2j, b"x", {}, object()]),
)
FRACTION = st.one_of(st.floats(0, 1), st.sampled_from([0, 1, 0.0, 1e-9, 1 - 2**-53, np.float64(0.5)]))
SCALE = st.one_of(st.floats(0, 3), st.sampled_from([0, 1e-320, 1e-30, 1e49, 2]))
GOOD = {
    "num_samples": st.integers(1, 150),
    "train_split": FRACTION,
    "template_len": st.integers(1, 30),
    "padding": st.tuples(st.integers(0, 70), st.integers(0, 70)),
    "scale_coeff": SCALE,
    "max_translation": st.integers(0, 80),
    "corr_noise_scale": SCALE,
    "iid_noise_scale": SCALE,
    "shear_scale": SCALE,
    "shuffle_seq": st.sampled_from([True, False, 0, 1, np.True_]),
    "final_seq_length": st.integers(1, 90),
    "seed": st.one_of(st.integers(0, 2**32 - 1), st.none()),
    "url": st.just(DEFAULTS["url"]),
    "label_noise": FRACTION,
    "validation_split": FRACTION,
    "factors": st.booleans(),
}


def mostly(good):
    return st.integers(0, 30).flatmap(lambda i: ODD if i == 30 else good)


SOME = {name: mostly(good) for name, good in GOOD.items()}
ARGUMENTS = st.fixed_dictionaries({"num_samples": SOME.pop("num_samples")}, optional=SOME)
NUMBERS = mostly(st.floats(-3, 3))
SHAPES = st.lists(st.lists(NUMBERS, min_size=4, max_size=4), min_size=3, max_size=5) | st.just(get_templates()["x"])
LABELS = [st.integers(-3, 12), st.sampled_from("abc"), st.floats(-1, 1), st.booleans(), ODD]
TEMPLATES = st.fixed_dictionaries(
    {
        "x": mostly(SHAPES),
        "t": mostly(st.lists(NUMBERS, min_size=1, max_size=5)),
        "y": mostly(st.one_of([st.lists(label, min_size=1, max_size=4) for label in LABELS])),
    }
)


def make(args, template=None, **changes):
    """The dataset, or None where a ValueError names the argument."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "num_samples=.* is rounded|seed=None|args.url=")
        try:
            data = make_dataset(args, template, **changes)
        except ValueError as error:
            assert re.match("|".join(NAMES), str(error)), error
            data = None
    COUNTS[data is None] += 1
    return data


def assert_sound(data, args):
    """Shapes, types and standardisation are as documented, and every wish is met."""
    args = {**get_dataset_args(as_dict=True), **OPTIONS, **args}
    length, classes = int(args["final_seq_length"]), len(data["templates"]["y"])
    suffixes = ["", "_val", "_test"] if args["validation_split"] else ["", "_test"]
    n = args["num_samples"] // classes * classes
    assert sum(len(data["x" + suffix]) for suffix in suffixes) == n and len(data["x"]) > 0
    assert len(data["x_test"]) == n - int(n * args["train_split"])
    assert "x_val" not in data or len(data["x_val"]) > 0
    whole = np.concatenate([data["x" + suffix] for suffix in suffixes])
    assert whole.shape == (n, length) and whole.dtype == np.float64 and np.isfinite(whole).all()
    assert abs(whole.mean()) < 1e-6 and abs(whole.std() - 1) < 1e-6
    assert data["t"].shape == (length,) and np.isfinite(data["t"]).all()
    labels = np.concatenate(
        [data[name] for name in ("y_clean" if args["label_noise"] else "y", *["y" + s for s in suffixes[1:]])]
    )
    expected = np.sort(np.repeat(data["templates"]["y"], n // classes))
    np.testing.assert_array_equal(np.sort(labels), expected)
    if args["label_noise"]:
        assert (data["y"] != data["y_clean"]).sum() == round(args["label_noise"] * len(data["y"]))
    for suffix in suffixes if args["factors"] else []:
        assert data["clean" + suffix].shape == data["x" + suffix].shape
        assert all(
            data[name + suffix].shape == data["y" + suffix].shape for name in ("padding", "scale", "shift", "shear")
        )


@pytest.fixture(autouse=True)
def both_are_seen():
    """No property holds because everything is refused, or nothing."""
    COUNTS.clear()
    yield
    assert min(COUNTS[False], COUNTS[True]) > 50


@pytest.mark.filterwarnings("ignore:.*sets no sample of the classes")
@settings(SETTINGS, max_examples=2500)
@given(ARGUMENTS)
def test_any_arguments_give_a_sound_dataset_or_a_value_error_that_names_one(args):
    state = np.random.get_state()[1].copy()
    data = make(args)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    if data is not None:
        assert_sound(data, {name: value for name, value in args.items() if value is not None or name == "seed"})


@settings(SETTINGS, max_examples=1000)
@given(TEMPLATES, st.fixed_dictionaries({"num_samples": st.integers(1, 40)}, optional={"label_noise": FRACTION}))
def test_any_template_gives_a_sound_dataset_or_a_value_error_that_names_it(template, args):
    data = make(args, template)
    if data is not None:
        assert_sound(data, args)


@pytest.mark.filterwarnings("ignore:.*sets no sample of the classes")
@pytest.mark.filterwarnings("ignore:.*changes the data")
@settings(SETTINGS, max_examples=300)
@given(ARGUMENTS, st.dictionaries(st.text("abcdefghijklmnopqrstuvwxyz_", max_size=12), ODD, max_size=1))
def test_a_mapping_an_object_and_keywords_mean_the_same_and_unknown_names_are_named(args, other):
    args.pop("factors", None)  # of an object it is not read
    for name in ("label_noise", "validation_split"):  # of an object they are where they are fractions
        value = args.get(name)
        if not isinstance(value, numbers.Real) or isinstance(value, bool) or not 0 <= value <= 1:
            args.pop(name, None)
    if other.keys() - GOOD.keys():
        assert make({**args, **other}) is None and make(args, **other) is None
    if args.get("seed", 0) is None:  # of other draws now and then all signals are flat, which is an error
        return
    made = [make(args), make(types.MappingProxyType(args)), make(types.SimpleNamespace(**args)), make(None, **args)]
    if made[0] is None:
        assert all(data is None for data in made)
    else:
        for data in made[1:]:
            assert data.keys() == made[0].keys()
            np.testing.assert_array_equal(data["x"], made[0]["x"])
            np.testing.assert_array_equal(data["y"], made[0]["y"])
