"""The generator: frozen data, the plain loop as its oracle, options, and clear errors."""

import argparse
import pickle
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import mnist1d
from mnist1d import get_dataset, get_dataset_args, get_templates, make_dataset, reorder, to_torch
from mnist1d import transform as transform_one


def make_in_a_loop(args):
    """The generator as the paper describes it: one sample after the other, from numpy's global state."""
    templates = get_templates()
    np.random.seed(args.seed)
    per_class = args.num_samples // 10
    x = np.stack([transform_one(t, templates["t"], args)[0] for t in templates["x"] for _ in range(per_class)])
    x = x[np.random.permutation(len(x))]
    if args.shuffle_seq:
        x = x[:, np.random.permutation(args.final_seq_length)]
    return (x - x.mean()) / x.std()


def test_default_arguments_give_the_frozen_dataset():
    data = make_dataset()
    assert mnist1d.verify()
    assert {name: data[name].shape for name in ("x", "y", "x_test", "y_test", "t")} == {
        "x": (4000, 40), "y": (4000,), "x_test": (1000, 40), "y_test": (1000,), "t": (40,),
    }  # fmt: skip
    assert data["x"].dtype == np.float64 and data["y"].dtype == np.int64
    assert data["t"][0] == -data["t"][-1] and np.isclose(data["t"][0], -0.83333333 / 0.1450, rtol=0.3)
    assert all(value.copy() is not value for value in data.values())


def test_verify_notices_a_changed_template(monkeypatch):
    changed = [list(row) for row in mnist1d.data.TEMPLATES]
    changed[3][4] += 1e-3
    monkeypatch.setattr(mnist1d.data, "TEMPLATES", changed)
    assert not mnist1d.verify()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"shuffle_seq": True, "seed": 7},
        {"padding": [0, 3], "max_translation": 0, "final_seq_length": 25},
        {"padding": [10, 10], "max_translation": 22, "iid_noise_scale": 0.5, "final_seq_length": 1},
        {"corr_noise_scale": 0.0, "shear_scale": 0.0, "scale_coeff": 1.0},
    ],
)
def test_vectorised_generator_equals_the_plain_loop(change):
    args = argparse.Namespace(**{**get_dataset_args(as_dict=True), "num_samples": 200, "train_split": 1.0, **change})
    data = make_dataset(args)
    np.testing.assert_allclose(data["x"], make_in_a_loop(args), rtol=0, atol=1e-12)


def test_every_kind_of_arguments_gives_the_same_data():
    class Own:
        num_samples = 100
        seed = 3
        hidden_size = 256  # a setting of something else

    as_dict = {"num_samples": 100, "seed": 3}
    view = get_dataset_args()
    view.num_samples, view.seed = 100, 3
    expected = make_dataset(as_dict)["x"]
    for args in (Own, Own(), view, argparse.Namespace(**as_dict)):
        np.testing.assert_array_equal(make_dataset(args)["x"], expected)


def test_defaults_cannot_be_changed_through_a_returned_copy():
    get_dataset_args(as_dict=True)["padding"].append(1)
    get_templates()["x"][:] = 0
    assert get_dataset_args().padding == [36, 60] and get_templates()["x"].any()


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("num_samples", 5003, "multiple of the 10"),
        ("num_samples", 9, "multiple of the 10"),
        ("num_samples", 0, "positive"),
        ("num_samples", -10, "positive"),
        ("num_samples", 500.0, "an integer"),
        ("num_samples", "500", "an integer"),
        ("template_len", 13, "templates' 12"),
        ("max_translation", -1, "from 0"),
        ("max_translation", 73, "to 72"),
        ("padding", (60, 36), "low <= high"),
        ("padding", 36, "pair of integers"),
        ("padding", (1, 2, 3), "pair of integers"),
        ("padding", (-1, 5), "0 <= low"),
        ("padding", (1.0, 5), "pair of integers"),
        ("train_split", 1.5, "fraction"),
        ("train_split", -0.2, "fraction"),
        ("train_split", 0, "fraction"),
        ("final_seq_length", 0, "1 or more"),
        ("seed", -1, "2**32"),
        ("seed", 2**32, "2**32"),
        ("seed", "42", "2**32"),
        ("scale_coeff", float("nan"), "finite"),
        ("shear_scale", -1, "0 or more"),
        ("shuffle_seq", "yes", "True or False"),
    ],
)
def test_bad_arguments_name_argument_value_and_rule(name, value, rule):
    with pytest.raises(ValueError, match=name) as error:
        make_dataset({name: value})
    assert repr(value) in str(error.value) and rule in str(error.value)


@pytest.mark.parametrize("option", [{"label_noise": 1.1}, {"label_noise": -0.1}, {"validation_split": 1.0}])
def test_bad_options_name_argument_and_value(option):
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        make_dataset({"num_samples": 100}, **option)


def test_a_misspelt_argument_is_reported_with_the_nearest_name():
    with pytest.warns(UserWarning, match="num_sample has no effect; did you mean 'num_samples'"):
        make_dataset({"num_sample": 100})


def test_no_shift_and_no_seed():
    still = make_dataset({"num_samples": 100, "max_translation": 0, "corr_noise_scale": 0, "shear_scale": 0})
    assert np.abs(still["x"][:, 20:] - still["x"][:, 20:].mean()).max() < np.abs(still["x"][:, :8]).max() / 4
    with pytest.warns(UserWarning, match=r"drawn with seed=\d+") as record:
        fresh = make_dataset({"num_samples": 100, "seed": None})
    seed = int(str(record[0].message).split("seed=")[-1])
    np.testing.assert_array_equal(make_dataset({"num_samples": 100, "seed": seed})["x"], fresh["x"])


def test_global_random_state_is_left_alone():
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    make_dataset({"num_samples": 100, "shuffle_seq": True}, label_noise=0.2, validation_split=0.2)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_set_seed_seeds_torch_too():
    def draw():
        mnist1d.set_seed(5)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw() == draw()


def test_label_noise_changes_exactly_the_stated_fraction():
    data = make_dataset({"num_samples": 1000}, label_noise=0.15)
    changed = data["y"] != data["y_clean"]
    assert changed.sum() == 120  # 15% of 800
    np.testing.assert_array_equal(data["y_clean"], make_dataset({"num_samples": 1000})["y"])
    # Every wrong digit occurs: the offsets are spread over all nine others.
    assert set((data["y"] - data["y_clean"])[changed] % 10) == set(range(1, 10))
    assert (make_dataset({"num_samples": 1000}, label_noise=1.0)["y"] != data["y_clean"]).all()


def test_validation_split_is_stratified_and_disjoint():
    whole = make_dataset()
    data = make_dataset(validation_split=0.1)
    share = np.bincount(data["y_val"]) / np.bincount(whole["y"])
    assert np.abs(share - 0.1).max() < 0.002
    rows = {row.tobytes() for row in data["x"]}
    assert len(data["x"]) + len(data["x_val"]) == 4000
    assert not rows & {row.tobytes() for row in data["x_val"]}
    np.testing.assert_array_equal(data["x_test"], whole["x_test"])


def test_to_torch():
    data = make_dataset({"num_samples": 1000}, validation_split=0.25)
    assert [len(to_torch(data, split)) for split in ("train", "val", "test")] == [
        len(data["x"]),
        len(data["x_val"]),
        200,
    ]
    x, y = to_torch(data)[0]
    assert x.dtype == torch.float32 and x.shape == (40,) and y.dtype == torch.int64
    with pytest.raises(ValueError, match="split='val'"):
        to_torch(make_dataset({"num_samples": 100}), "val")


def test_templates_of_ones_own():
    template = {"x": np.eye(3), "t": np.linspace(0, 1, 3), "y": np.array([4, 5, 9])}
    args = {"num_samples": 30, "template_len": 3, "padding": [5, 7], "max_translation": 4, "final_seq_length": 8}
    data = make_dataset(args, template=template, label_noise=0.5)
    assert set(data["y_clean"]) == {4, 5, 9} and set(data["y"]) <= {4, 5, 9}
    assert data["x"].shape == (24, 8)


# The cache of get_dataset


def test_cache_is_read_and_belongs_to_its_arguments(tmp_path, capsys):
    path = tmp_path / "cache.pkl"
    args = {"num_samples": 100}
    first = get_dataset(args, path=str(path), download=False, regenerate=False)
    stamp = path.stat().st_mtime_ns
    again = get_dataset(args, path=path)
    assert path.stat().st_mtime_ns == stamp and "Read" in capsys.readouterr().out
    np.testing.assert_array_equal(first["x"], again["x"])
    assert first.keys() == again.keys() == make_dataset(args).keys()
    other = get_dataset({"num_samples": 200}, path=path, verbose=False)
    assert len(other["x"]) == 160
    noisy = get_dataset({"num_samples": 200}, path=path, verbose=False, label_noise=0.5)
    assert (noisy["y"] != noisy["y_clean"]).mean() == 0.5


def test_a_frozen_file_of_the_old_package_is_read(tmp_path, capsys):
    path = tmp_path / "mnist1d_data.pkl"
    path.write_bytes(pickle.dumps(make_dataset(), protocol=3))
    stamp = path.stat().st_mtime_ns
    get_dataset(get_dataset_args(), path=path)
    assert path.stat().st_mtime_ns == stamp and "Read" in capsys.readouterr().out
    assert len(get_dataset({"num_samples": 100}, path=path, verbose=False)["x"]) == 80


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "empty", "hostile"])
def test_a_bad_cache_is_reported_replaced_and_never_run(tmp_path, damage):
    path, target = tmp_path / "cache.pkl", tmp_path / "executed"
    args = {"num_samples": 100}
    good = get_dataset(args, path=path, verbose=False)
    content = path.read_bytes()
    damaged = {
        "truncated": content[:-500],
        "flipped": bytes([content[0] ^ 255]) + content[1:],
        "text": b"hello",
        "empty": b"",
        "hostile": pickle.dumps({"x": Hostile(target), "key": "x"}),
    }
    path.write_bytes(damaged[damage])
    with pytest.warns(UserWarning, match="could not be read"):
        data = get_dataset(args, path=path, verbose=False)
    assert not target.exists()
    np.testing.assert_array_equal(data["x"], good["x"])
    assert path.read_bytes() == content


def test_from_pickle_refuses_code_and_reads_arrays(tmp_path):
    path = tmp_path / "thing.pkl"
    thing = {"a": np.arange(3), "b": [np.float32(1.5), {"c": {1, 2}}, 2 + 1j], "o": mnist1d.ObjectView({"seed": 1})}
    mnist1d.to_pickle(thing, path)
    back = mnist1d.from_pickle(path)
    assert back["o"].seed == 1 and back["b"] == thing["b"] and (back["a"] == thing["a"]).all()
    path.write_bytes(pickle.dumps(Hostile(tmp_path / "executed")))
    with pytest.raises(pickle.UnpicklingError, match=r"refused to load .*open"):
        mnist1d.from_pickle(path)
    assert not (tmp_path / "executed").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "thing.pkl"
    mnist1d.to_pickle({"a": 1}, path)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        mnist1d.to_pickle({"a": lambda: 0}, path)
    assert mnist1d.from_pickle(path) == {"a": 1} and list(tmp_path.iterdir()) == [path]


# The calls of existing code


def test_both_import_styles_and_no_heavy_import():
    code = (
        "import sys, mnist1d\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules, 'heavy import'\n"
        "from mnist1d.data import make_dataset, get_dataset_args\n"
        "from mnist1d.transform import transform, pad, shear, translate, corr_noise_like, iid_noise_like, interpolate\n"
        "from mnist1d.utils import set_seed, to_pickle, from_pickle, ObjectView, plot_signals\n"
        "assert mnist1d.transform is transform and mnist1d.data.make_dataset is make_dataset is mnist1d.make_dataset\n"
        "assert mnist1d.__version__[0] == '1'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pad_takes_rows_and_transform_draws_from_the_global_state():
    from mnist1d.transform import pad, transform

    np.random.seed(0)
    assert pad(np.ones((3, 12)), (2, 4)).shape[0] == 3
    args, templates = get_dataset_args(), get_templates()

    def draw():
        np.random.seed(1)
        return transform(templates["x"][0], templates["t"], args, eps=1e-8)

    (x, t), (again, _) = draw(), draw()
    assert x.shape == t.shape == (40,) and (x == again).all()


def test_plot_signals(tmp_path):
    import matplotlib.pyplot as plt

    data = make_dataset({"num_samples": 100})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")
        fig = mnist1d.plot_signals(data["x"], data["t"], labels=data["y"], zoom=5)
        templates = get_templates()
        mnist1d.plot_signals(templates["x"], templates["t"], args=get_dataset_args(), do_transform=True, dark_mode=True)
    assert len(fig.axes) == 10 and fig.axes[3].get_title() == f"label={data['y'][3]}"
    plt.close("all")
    with pytest.raises(ValueError, match="args=None"):
        mnist1d.plot_signals(data["x"], data["t"], do_transform=True)


def test_reorder_moves_positions_in_every_split_and_nothing_else():
    data = make_dataset({"num_samples": 100}, validation_split=0.2)
    order = np.arange(40)[::-1]
    turned = reorder(data, order)
    for key in ("x", "x_val", "x_test"):
        np.testing.assert_array_equal(turned[key], data[key][:, ::-1])
    assert turned.keys() == data.keys() and turned["y"] is data["y"] and turned["t"] is data["t"]
