"""The generator: frozen data, the plain loop as its oracle, options, and clear errors."""

import argparse
import collections
import dataclasses
import hashlib
import importlib
import inspect
import json
import os
import pickle
import random
import re
import subprocess
import sys
import tracemalloc
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import mnist1d
from mnist1d import get_dataset, get_dataset_args, get_templates, make_dataset, reorder, to_torch
from mnist1d import transform as transform_one
from mnist1d.transform import corr_noise_like, iid_noise_like, interpolate, pad, shear, translate
from mnist1d.utils import ObjectView, to_pickle

ROOT = Path(__file__).resolve().parent.parent


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
        ("num_samples", 9, "10 (one sample a class)"),
        ("num_samples", 0, "10 (one sample a class)"),
        ("num_samples", -10, "10 (one sample a class)"),
        ("num_samples", 500.0, "an integer"),
        ("num_samples", "500", "an integer"),
        ("template_len", 0, "from 1"),
        ("max_translation", -1, "from 0"),
        ("max_translation", 73, "to 72"),
        ("padding", (60, 36), "low <= high"),
        ("padding", 36, "pair of integers"),
        ("padding", {36, 60}, "pair of integers"),
        ("padding", (1, 2, 3), "pair of integers"),
        ("padding", (-1, 5), "0 <= low"),
        ("padding", (1.0, 5), "pair of integers"),
        ("train_split", 1.5, "fraction"),
        ("train_split", -0.2, "fraction"),
        ("train_split", 0, "fraction"),
        ("final_seq_length", 0, "from 1"),
        ("final_seq_length", 10**30, "from 1 to"),
        ("seed", -1, "2**32"),
        ("seed", 2**32, "2**32"),
        ("seed", "42", "2**32"),
        ("scale_coeff", float("nan"), "finite"),
        ("shear_scale", -1, "from 0"),
        ("iid_noise_scale", 1e60, "to 1e50"),
        ("corr_noise_scale", "0.1", "finite"),
        ("shuffle_seq", "yes", "True or False"),
        ("factors", 2, "True or False"),
        ("label_noise", 1.1, "fraction"),
        ("label_noise", -0.1, "fraction"),
        ("validation_split", 2, "fraction"),
    ],
)
def test_bad_arguments_name_argument_value_and_rule(name, value, rule):
    with pytest.raises(ValueError, match=name) as error:
        make_dataset({name: value})
    assert repr(value) in str(error.value) and rule in str(error.value)


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ({"num_samples": 10, "train_split": 0.05}, "train_split"),
        ({"num_samples": 100, "validation_split": 0.99}, "validation_split"),
        ({"num_samples": 100, "validation_split": 0.01}, "validation_split"),
    ],
)
def test_a_split_that_leaves_a_set_empty_is_refused(args, name):
    with pytest.raises(ValueError, match=f"{name}={args[name]}"):
        make_dataset(args)


def test_all_samples_may_be_asked_for_training():
    assert len(make_dataset(num_samples=100, train_split=1)["x"]) == 100


def test_samples_that_the_classes_do_not_divide_are_left_out_with_a_warning():
    with pytest.warns(UserWarning, match="num_samples=1024 is rounded down to 1020") as record:
        data = make_dataset(num_samples=1024)
    assert record[0].filename == __file__
    np.testing.assert_array_equal(data["x"], make_dataset(num_samples=1020)["x"])


def test_signals_that_cannot_be_standardised_are_refused():
    with pytest.raises(ValueError, match=r"iid_noise_scale=0\.0"):
        make_dataset(final_seq_length=1, iid_noise_scale=0, scale_coeff=0, shear_scale=0, max_translation=0)


# Wishes

MEANT = {
    "noise_scale": "iid_noise_scale",
    "iid_noise": "iid_noise_scale",
    "translation": "max_translation",
    "shuffle": "shuffle_seq",
    "length": "final_seq_length",
    "random_state": "seed",
    "num_sample": "num_samples",
}


@pytest.mark.parametrize(("name", "meant"), MEANT.items())
def test_an_unknown_name_raises_and_an_unknown_attribute_that_looks_like_one_warns(name, meant):
    with pytest.raises(ValueError, match=f"unknown argument '{name}'; did you mean '{meant}'"):
        make_dataset({name: 1})
    with pytest.raises(ValueError, match=f"unknown argument '{name}'; did you mean '{meant}'"):
        make_dataset(num_samples=100, **{name: 1})
    args = get_dataset_args()
    args.num_samples = 100
    setattr(args, name, 1)
    with pytest.warns(UserWarning, match=f"args.{name} has no effect; did you mean '{meant}'") as record:
        make_dataset(args)
    assert record[0].filename == __file__


@pytest.mark.parametrize("args", [get_dataset_args, os.fspath, argparse.Namespace(data={"seed": 1}, lr=1.0)])
def test_an_object_without_any_argument_is_refused(args):
    with pytest.raises(ValueError, match=r"args=.*must be a mapping, or an object with at least one argument"):
        make_dataset(args)


def test_a_mapping_with_attributes_may_hold_other_settings_as_an_object_may():
    class Config(dict):
        __getattr__ = dict.__getitem__

    args = Config(num_samples=100, seed=3, lr=1e-3)
    np.testing.assert_array_equal(make_dataset(args)["x"], make_dataset(num_samples=100, seed=3)["x"])


def test_an_unknown_name_that_resembles_none_lists_them_all():
    with pytest.raises(ValueError, match=r"unknown argument 'colour'; known are num_samples, .*factors"):
        make_dataset(colour=1)


def test_keywords_come_before_args_and_options_may_stand_in_args():
    expected = make_dataset({"num_samples": 100, "seed": 1}, label_noise=0.5, validation_split=0.25)
    ours = argparse.Namespace(num_samples=100, seed=2, label_noise=0.5, validation_split=0.25)
    mapping = types.MappingProxyType({"num_samples": 100, "label_noise": 0.5, "validation_split": 0.25, "seed": 2})
    with pytest.warns(UserWarning, match=r"args.(label_noise=0.5|validation_split=0.25) changes the data"):
        of_object = make_dataset(ours, seed=1)  # code written for 0.0.2 may mean something of its own by them
    for data in (of_object, make_dataset(mapping, seed=1)):
        assert data.keys() == expected.keys()
        for name in ("x", "y", "y_clean", "x_val"):
            np.testing.assert_array_equal(data[name], expected[name])
    assert "y_clean" not in make_dataset(num_samples=100, label_noise=None, validation_split=None)


class AnswersByGetattr:
    """As an experiment tracker's config: values through __getattr__, nothing in dir()."""

    def __init__(self, **items):
        self.__dict__["_items"] = items

    def __getattr__(self, name):
        try:
            return self.__dict__["_items"][name]
        except KeyError:
            raise AttributeError(name) from None


class Experiment:
    num_samples, seed = 100, 3

    @property
    def run_dir(self):
        raise RuntimeError("there is no run yet")

    def shuffle(self):
        raise RuntimeError("not to be called")


def test_of_an_object_the_known_names_alone_are_read():
    expected = make_dataset(num_samples=100, seed=3)["x"]
    for args in (AnswersByGetattr(num_samples=100, seed=3, url=None), Experiment(), Experiment):
        np.testing.assert_array_equal(make_dataset(args)["x"], expected)


@pytest.mark.parametrize("args", [1000, "default", [1, 2], np.arange(3)])
def test_args_that_hold_no_arguments_are_refused(args):
    with pytest.raises(ValueError, match="args="):
        make_dataset(args)


@pytest.mark.parametrize("call", [make_dataset, lambda args: get_dataset(args, path="hard.pkl", verbose=False)])
def test_another_url_warns(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="nothing is downloaded") as record:
        call({"num_samples": 100, "url": "https://example.org/hard.pkl"})
    assert record[0].filename == __file__


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


@pytest.mark.parametrize("accelerator", [None, torch.device("cuda")])
def test_set_seed_is_torchs_own_with_an_accelerator_and_without(accelerator, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: accelerator)
    all_seeded = []  # torch's own seeds every device
    seed_all = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: (all_seeded.append(seed), seed_all(seed)))
    mnist1d.set_seed(5)
    drawn = torch.initial_seed(), torch.rand(4)
    seed_all(5)
    assert drawn[0] == 5 and torch.equal(drawn[1], torch.rand(4))
    assert all_seeded == ([5] if accelerator else [])


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
    quarters = make_dataset({"num_samples": 100}, template={**get_templates(), "y": np.arange(10) / 4})
    with pytest.raises(ValueError, match="type of the labels='float64': must be integers"):
        to_torch(quarters)
    x, y = data["x"].astype(np.float32), data["y"]
    for form in (x[:, ::-1], x.astype(">f4"), [*x], torch.tensor(x, requires_grad=True)):
        expected = torch.tensor(np.ascontiguousarray(form.detach() if isinstance(form, torch.Tensor) else form, "f4"))
        torch.testing.assert_close(to_torch({"x": form, "y": y}).tensors[0], expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match="type of the signals='complex128': must be real numbers"):
        to_torch({"x": np.fft.rfft(data["x"]), "y": y})
    with pytest.raises(ValueError, match=r"largest label=.*: must be below"):
        to_torch({"x": x, "y": np.full(len(x), 2**63, np.uint64)})


@pytest.mark.parametrize(
    ("change", "message"),
    [({"final_seq_length": 0}, "final_seq_length=0"), ({"scale_coeff": "a"}, "scale_coeff='a'"),
     ({"template_len": -3}, "template_len=-3"), ({"padding": None}, "padding=None"),
     ({"shear_scale": ...}, r"missing in args=\['shear_scale'\]")],
)  # fmt: skip
def test_transform_names_what_is_bad(change, message):
    args = {k: v for k, v in (get_dataset_args(as_dict=True) | change).items() if v is not ...}
    template = get_templates()["x"][0]
    with pytest.raises(ValueError, match=message):
        mnist1d.transform(template, template, args)


# Templates of one's own

T = get_templates()


def test_templates_of_ones_own():
    template = {"x": np.eye(3), "t": np.linspace(0, 1, 3), "y": np.array([4, 5, 9])}
    args = {"num_samples": 30, "template_len": 3, "padding": [5, 7], "max_translation": 4, "final_seq_length": 8}
    data = make_dataset(args, template=template, label_noise=0.5)
    assert set(data["y_clean"]) == {4, 5, 9} and set(data["y"]) <= {4, 5, 9}
    assert data["x"].shape == (24, 8)


@pytest.mark.parametrize(
    "labels",
    [
        list(range(10)),
        np.arange(10)[::-1],
        [7, 7, 7, 2, 2, 0, 0, 0, 0, 9],
        [*"jihgfedcba"],
        [0.5, -1.5] * 5,
        [True, False] * 5,
    ],
)
def test_label_noise_is_as_stated_for_any_labels(labels):
    args = {"num_samples": 1000, "train_split": 1.0}
    clean = make_dataset(args, {**T, "y": labels})
    assert set(clean["y"].tolist()) == set(labels)
    for fraction in (0.15, 1.0):
        data = make_dataset(args, {**T, "y": labels}, label_noise=fraction)
        np.testing.assert_array_equal(data["y_clean"], clean["y"])
        assert (data["y"] != data["y_clean"]).sum() == 1000 * fraction
        assert set(data["y"].tolist()) == set(labels)


def test_one_class_has_no_label_noise():
    template = {**T, "y": [3] * 10}
    assert set(make_dataset({"num_samples": 100}, template)["y"]) == {3}
    with pytest.raises(ValueError, match=r"label_noise=0\.1: must be 0 where there is one label"):
        make_dataset({"num_samples": 100}, template, label_noise=0.1)


def test_shapes_as_a_list_of_arrays_and_fewer_labels_than_shapes():
    expected = make_dataset(num_samples=100)
    np.testing.assert_array_equal(make_dataset({"num_samples": 100}, {**T, "x": list(T["x"])})["x"], expected["x"])
    some = make_dataset({"num_samples": 100}, {**T, "y": T["y"][:5]})
    np.testing.assert_allclose(some["x"][0, :3], [0.6653, -0.0516, -2.4762], atol=1e-4)  # as 0.0.2 makes it
    assert set(some["y"]) == set(range(5))


def test_templates_of_another_length_than_stated_are_resampled_as_before():
    args = get_dataset_args()
    args.num_samples, args.train_split = 50, 1.0
    long = {
        "x": np.sin(np.linspace(0, np.pi, 24)) * np.arange(1, 6)[:, None],
        "t": np.linspace(-1, 1, 24),
        "y": range(5),
    }
    np.random.seed(args.seed)
    x = np.stack([transform_one(shape, long["t"], args)[0] for shape in long["x"] for _ in range(10)])
    x = x[np.random.permutation(50)]
    np.testing.assert_allclose(make_dataset(args, long)["x"], (x - x.mean()) / x.std(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({name: T[name] for name in "xy"}, "template=.*x, t and y"),
        ([T["x"], T["t"], T["y"]], "template=list"),
        ({**T, "x": [*T["x"][:9], np.ones(5)]}, r"template\['x'\]"),
        ({**T, "x": T["x"][..., None]}, r"template\['x'\] has shape \(10, 12, 1\)"),
        ({**T, "x": np.where(T["x"] > 0, np.nan, 0)}, r"template\['x'\].*finite"),
        ({**T, "x": T["x"] + 1j}, r"template\['x'\].*numbers"),
        ({**T, "x": np.empty((10, 0))}, r"template\['x'\] has shape \(10, 0\)"),
        ({**T, "y": np.eye(10)}, r"template\['y'\] has shape \(10, 10\)"),
        ({**T, "y": range(11)}, r"template\['y'\] has 11 labels"),
        ({**T, "y": [{}] * 10}, r"template\['y'\].*text"),
        ({**T, "t": 3}, r"template\['t'\] has shape \(\)"),
    ],
)
def test_a_bad_template_is_named_with_its_shape(template, message):
    with pytest.raises(ValueError, match=message):
        make_dataset({"num_samples": 110}, template)


# Factors


def test_factors_are_what_was_drawn_and_change_nothing_else():
    args = argparse.Namespace(**{**get_dataset_args(as_dict=True), "num_samples": 200, "train_split": 1.0})
    data, plain = make_dataset(args, factors=True), make_dataset(args)
    for name in plain.keys() - {"templates"}:
        np.testing.assert_array_equal(data[name], plain[name])
    assert data.keys() - plain.keys() == {
        name + suffix for name in ("clean", "padding", "scale", "shift", "shear") for suffix in ("", "_test")
    }
    # The same signals from the factors, without noise, by the plain transformations.
    std = (np.linspace(*T["t"][[0, -1]], 72)[-1]) / data["t"][-1]
    signals = []
    for i, digit in enumerate(data["y"]):
        x = interpolate(np.append(T["x"][digit] + 1e-8, np.zeros(data["padding"][i])), 72)
        x = np.roll(x * data["scale"][i], data["shift"][i]) - data["shear"][i] * np.linspace(-0.5, 0.5, 72)
        signals.append(interpolate(x, 40) / std)
    difference = data["clean"] - np.stack(signals)
    np.testing.assert_allclose(difference, difference.mean(), rtol=0, atol=1e-9)  # the mean of the noisy signals
    assert set(data["padding"]) == set(range(36, 61)) and set(data["shift"]) <= set(range(48))
    assert np.abs(data["scale"] - 1).max() <= 0.2 and np.abs(data["shear"]).max() <= 0.375


def test_factors_follow_their_samples_into_every_split_and_order():
    args = {"num_samples": 300, "corr_noise_scale": 0, "iid_noise_scale": 1e-9, "shuffle_seq": True}
    data = make_dataset(args, factors=True, validation_split=0.25)
    for suffix in ("", "_val", "_test"):
        np.testing.assert_allclose(data["clean" + suffix], data["x" + suffix], atol=1e-6)
        assert len(data["shear" + suffix]) == len(data["x" + suffix])
    turned = reorder(data, np.arange(40)[::-1])
    np.testing.assert_array_equal(turned["clean_val"], data["clean_val"][:, ::-1])


@pytest.mark.parametrize(
    "change",
    [
        {"scale_coeff": 0.8},
        {"corr_noise_scale": 0.5},
        {"iid_noise_scale": 0.2},
        {"shear_scale": 0.1},
        {"final_seq_length": 20},
        {"shuffle_seq": True},
        {"train_split": 0.5},
        {"padding": [10, 60]},
        {"label_noise": 0.3},
        {"validation_split": 0.25},
    ],
)
def test_datasets_that_differ_in_one_argument_share_labels_and_draws(change):
    options = {"num_samples": 200, "train_split": 1.0, "factors": True}
    data, other = make_dataset(options), make_dataset({**options, **change})
    whole = {}
    for name in ("y_clean" if "label_noise" in change else "y", "shift", "scale", "shear", "padding"):
        parts = [other[name + suffix] for suffix in ("", "_test") if name + suffix in other]
        whole[name.removesuffix("_clean")] = np.concatenate(parts)
    if "validation_split" in change:
        assert {tuple(row) for row in other["x_val"]} < {tuple(row) for row in data["x"]}
        return
    np.testing.assert_array_equal(whole["y"], data["y"])
    np.testing.assert_array_equal(whole["shift"], data["shift"])
    unit = {"scale": "scale_coeff", "shear": "shear_scale"}
    for name, argument in unit.items():
        ratio = change.get(argument, mnist1d.data.DEFAULTS[argument]) / mnist1d.data.DEFAULTS[argument]
        offset = 1 if name == "scale" else 0
        np.testing.assert_allclose(whole[name] - offset, (data[name] - offset) * ratio, atol=1e-12)


def test_noisy_and_clean_are_pairs_for_denoising():
    data = make_dataset(factors=True)
    x = np.c_[data["x"], np.ones(len(data["x"]))]
    x_test = np.c_[data["x_test"], np.ones(len(data["x_test"]))]
    weights = np.linalg.lstsq(x, data["clean"], rcond=None)[0]
    before = np.mean((data["x_test"] - data["clean_test"]) ** 2)
    after = np.mean((x_test @ weights - data["clean_test"]) ** 2)
    assert (round(before, 2), round(after, 2)) == (0.32, 0.16)  # as README says


def test_a_linear_regression_explains_most_of_the_shear():
    data = make_dataset(factors=True)
    x = np.c_[data["x"], np.ones(len(data["x"]))]
    x_test = np.c_[data["x_test"], np.ones(len(data["x_test"]))]
    weights = np.linalg.lstsq(x, data["shear"], rcond=None)[0]
    residual = data["shear_test"] - x_test @ weights
    assert 0.75 < 1 - np.mean(residual**2) / data["shear_test"].var() < 0.82


# Memory


def test_memory_is_in_proportion_to_samples_and_padding():
    args = {"num_samples": 100, "padding": [0, 3000], "max_translation": 1500, "final_seq_length": 1024}
    tracemalloc.start()
    make_dataset(args)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * 2**20  # the dataset itself is 0.8 MiB, a table of every padding would be 200


@pytest.mark.parametrize("n_out", [1, 2, 40, 72, 1000])
def test_neighbours_are_those_of_a_search_in_the_grid(n_out):
    low, step, offset = mnist1d.data._neighbours(np.arange(1, 300), n_out)
    for n_in in range(1, 300):
        grid, target = np.linspace(0, 1, n_in), np.linspace(0, 1, n_out)
        expected = np.searchsorted(grid, target, side="right") - 1
        np.testing.assert_array_equal(low[n_in - 1], expected)
        np.testing.assert_array_equal(offset[n_in - 1], target - grid[expected])
        inside = expected < n_in - 1
        np.testing.assert_array_equal(step[n_in - 1][inside], np.diff(grid)[expected[inside]])


# The file of get_dataset


def test_the_file_belongs_to_its_arguments(tmp_path, capsys):
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
    turned = get_dataset({"num_samples": 200}, path=path, verbose=False, template={**T, "y": T["y"][::-1]})
    assert (turned["y"] == 9 - other["y"]).all()
    made = path.stat().st_mtime_ns
    get_dataset({"num_samples": 200}, path=path, template={**T, "y": list(T["y"][::-1])}, regenerate=True)
    assert path.stat().st_mtime_ns > made and "anew" in capsys.readouterr().out


def test_equal_arguments_of_other_types_find_the_file(tmp_path, capsys):
    path = tmp_path / "cache.pkl"
    args = {"num_samples": 100, "padding": [36, 60], "iid_noise_scale": 0, "shuffle_seq": True}
    get_dataset(args, path=path)
    same = {
        "num_samples": np.int32(100),
        "padding": np.array([36, 60]),
        "iid_noise_scale": 0.0,
        "shuffle_seq": np.True_,
    }
    get_dataset(
        argparse.Namespace(**same), path=os.fsencode(path), template={name: a.tolist() for name, a in T.items()}
    )
    assert "Read" in capsys.readouterr().out.splitlines()[-1]


def test_the_file_has_the_public_layout_and_protocol_5(tmp_path):
    path = tmp_path / "cache.pkl"
    data = get_dataset({"num_samples": 100}, path=path, verbose=False)
    assert path.read_bytes()[:2] == b"\x80\x05"
    with open(path, "rb") as file:
        by_pickle = pickle.load(file)
    for read in (by_pickle, mnist1d.from_pickle(path), pickle._loads(path.read_bytes())):
        assert list(read) == ["x", "x_test", "y", "y_test", "t", "templates"]
        np.testing.assert_array_equal(read["x"], data["x"])


def test_the_frozen_file_of_the_old_package_is_read_and_never_replaced(tmp_path, capsys):
    path = tmp_path / "mnist1d_data.pkl"
    path.write_bytes(pickle.dumps(make_dataset(), protocol=3))
    content = path.read_bytes()
    get_dataset(get_dataset_args(), path=path)
    assert "Read" in capsys.readouterr().out
    for regenerate in (False, True):
        with pytest.warns(UserWarning, match="was not written by get_dataset and stays"):
            data = get_dataset({"num_samples": 100}, path=path, verbose=False, regenerate=regenerate)
        assert len(data["x"]) == 80
    assert path.read_bytes() == content


def test_a_dataset_of_the_users_own_is_read_as_it_is_and_never_replaced(tmp_path):
    path = tmp_path / "with_marker.pkl"
    data = make_dataset(num_samples=100)
    data["x"] = np.pad(data["x"], ((0, 0), (0, 10)))
    data["marker"] = {"position": 49}
    path.write_bytes(pickle.dumps(data, protocol=3))
    content = path.read_bytes()
    with pytest.warns(UserWarning, match="read as it is") as record:
        read = get_dataset(get_dataset_args(), path=path, download=False, verbose=False)
    assert record[0].filename == __file__
    assert read["x"].shape == (80, 50) and read["marker"] == data["marker"]
    with pytest.warns(UserWarning, match="is not kept"):
        assert len(get_dataset(path=path, verbose=False, regenerate=True)["x"]) == 4000
    assert path.read_bytes() == content


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize(
    "kind", ["text", "of this package", "hostile", "weights", "truncated", "no dataset", "unequal"]
)
def test_a_file_that_is_no_dataset_is_named_and_stays(tmp_path, kind):
    path, target = tmp_path / "notes.pkl", tmp_path / "executed"
    data = make_dataset(num_samples=100)
    content = {
        "text": b"hello",
        "of this package": b"mnist1d notes, an hour of work",
        "hostile": pickle.dumps({"x": Hostile(target), "key": "x"}),
        "weights": pickle.dumps({"weight": torch.ones(3)}),
        "truncated": pickle.dumps(data, protocol=3)[:-500],
        "no dataset": pickle.dumps({"trials": [1, 2, 3]}, protocol=5),
        "unequal": pickle.dumps({**data, "y": data["y"][:-1]}, protocol=5),
    }[kind]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.pkl.*left as it is"):
        get_dataset({"num_samples": 100}, path=path, verbose=False)
    with pytest.warns(UserWarning, match="stays"):
        get_dataset({"num_samples": 100}, path=path, verbose=False, regenerate=True)
    assert path.read_bytes() == content and not target.exists() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", ["truncated", "cut short", "first byte", "middle byte", "empty", "hostile"])
def test_a_damaged_cache_is_reported_replaced_and_never_run(tmp_path, damage):
    path, target = tmp_path / "cache.pkl", tmp_path / "executed"
    args = {"num_samples": 100}
    good = get_dataset(args, path=path, verbose=False)
    content = path.read_bytes()
    middle = len(content) // 2  # a number of the signals: the file still is a pickle of a dataset
    body = pickle.dumps({"x": Hostile(target)}, protocol=5)
    damaged = {
        "truncated": content[:-500],
        "cut short": content[:5],
        "first byte": bytes([content[0] ^ 255]) + content[1:],
        "middle byte": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "empty": b"",
        "hostile": content[:76] + hashlib.sha256(body).hexdigest().encode() + b"0" + body,
    }
    path.write_bytes(damaged[damage])
    with pytest.warns(UserWarning, match="could not be read") as record:
        data = get_dataset(args, path=path, verbose=False)
    assert record[0].filename == __file__
    assert not target.exists()
    np.testing.assert_array_equal(data["x"], good["x"])
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_replaced_while_it_is_read_gives_what_was_checked(tmp_path, monkeypatch):
    path, load = tmp_path / "cache.pkl", mnist1d.data.pickles.load
    expected = get_dataset({"num_samples": 100, "seed": 1}, path=path, verbose=False)

    def replace(*args):
        monkeypatch.setattr(mnist1d.data.pickles, "load", load)
        get_dataset({"num_samples": 100, "seed": 2}, path=path, verbose=False)
        return load(*args)

    monkeypatch.setattr(mnist1d.data.pickles, "load", replace)
    found = get_dataset({"num_samples": 100, "seed": 1}, path=path, verbose=False)
    np.testing.assert_array_equal(found["x"], expected["x"])


def test_a_file_that_appears_while_data_are_generated_is_kept(tmp_path, monkeypatch):
    path, generate = tmp_path / "cache.pkl", mnist1d.data._generate

    def write_first(*args):
        path.write_text("an hour of work", encoding="utf-8")
        return generate(*args)

    monkeypatch.setattr(mnist1d.data, "_generate", write_first)
    with pytest.warns(UserWarning, match="another program has written it meanwhile"):
        data = get_dataset({"num_samples": 100}, path=path, verbose=False)
    assert path.read_text(encoding="utf-8") == "an hour of work" and data["x"].shape == (80, 40)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: {"y": data["y"] + 0.4},
        lambda data: {"x": data["x"][:, None], "x_test": data["x_test"][:, None]},
        lambda data: {"t": data["t"] * 7},
        lambda data: {"t": range(10**9)},
    ],
    ids=["y", "x", "t", "range"],
)
def test_what_is_not_quite_the_frozen_dataset_is_said_to_be_another(change, tmp_path):
    data = make_dataset()
    to_pickle({**data, **change(data)}, tmp_path / "data.pkl")
    with pytest.warns(UserWarning, match="was not written by get_dataset: it is read as it is"):
        get_dataset(path=tmp_path / "data.pkl", verbose=False)


class AttributeDict(dict):
    __getattr__ = dict.__getitem__


class Slots:
    __slots__ = ("iid_noise", "num_samples")

    def __init__(self):
        self.num_samples, self.iid_noise = 100, 1.0


@pytest.mark.parametrize(
    "args",
    [
        AttributeDict(num_samples=100, iid_noise=1.0),
        Slots(),
        collections.namedtuple("Fields", "num_samples iid_noise")(100, 1.0),
    ],
    ids=["dict", "slots", "fields"],
)
def test_a_misspelt_field_is_told_whatever_holds_it(args):
    with pytest.warns(UserWarning, match="args.iid_noise has no effect; did you mean 'iid_noise_scale'"):
        make_dataset(args)


@pytest.mark.parametrize("name", ["label_noise", "validation_split"])
def test_what_is_new_on_the_arguments_of_the_package_is_used_with_a_warning(name):
    args = get_dataset_args()
    setattr(args, name, 0.15)
    with pytest.warns(UserWarning, match=rf"args\.{name}=0\.15 changes the data"):
        assert {"label_noise": "y_clean", "validation_split": "x_val"}[name] in make_dataset(args)
    setattr(args, name, 5)
    with pytest.warns(UserWarning, match=rf"args\.{name}=5 has no effect"):
        assert (make_dataset(args)["y"] == make_dataset()["y"]).all()


@pytest.mark.parametrize("data", [np.zeros((3, 40)), {}, {"x": np.zeros((3, 40))}], ids=["array", "empty", "no labels"])
@pytest.mark.parametrize("function", [mnist1d.to_torch, lambda data: mnist1d.reorder(data, range(40))])
def test_what_is_no_dataset_is_named(function, data):
    with pytest.raises(ValueError, match=r"data='?\w+'?: must be a dict from make_dataset"):
        function(data)


def test_a_split_that_is_not_whole_is_named():
    data = make_dataset(num_samples=100)
    masked = np.ma.array(data["y"], mask=data["y"] == 3)
    for odd in ({"y": data["y"][:-1]}, {"y": masked}, {"x_val": data["x"]}):
        split = "val" if "x_val" in odd else "train"
        with pytest.raises(ValueError, match=f"split='{split}': must be one whose x has a whole y"):
            mnist1d.to_torch(data | odd, split)
    with pytest.raises(ValueError, match=r"shape of x=.*: must be .n, final_seq_length"):
        mnist1d.reorder({"x": np.zeros(40), "y": np.zeros(40)}, range(40))
    with pytest.raises(ValueError, match=r"shape of x_test=\(20, 41\): must be .n, final_seq_length.*as that of x"):
        mnist1d.reorder(data | {"x_test": np.zeros((20, 41))}, range(40))


@pytest.mark.parametrize("split", ["valid", ["train"], None])
def test_a_split_that_is_not_there_is_named(split):
    with pytest.raises(ValueError, match=r"split=.*: must be one of \['train', 'test'\]"):
        mnist1d.to_torch(make_dataset(num_samples=100), split)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "'a'"])
def test_a_seed_out_of_range_is_named_and_seeds_nothing(seed):
    mnist1d.set_seed(5)
    before = random.getstate()
    with pytest.raises(ValueError, match=f"seed={seed}: must be None or an integer from 0"):
        mnist1d.set_seed("a" if seed == "'a'" else seed)
    assert random.getstate() == before


def test_an_object_may_hold_any_one_argument():
    assert make_dataset(AttributeDict(seed=3))["x"].shape == (4000, 40)


def test_factors_asked_of_an_object_are_said_to_be_a_keyword():
    with pytest.warns(UserWarning, match="give factors=True as a keyword"):
        assert "shear" not in make_dataset(ObjectView({"num_samples": 100, "factors": True}))


def test_labels_beyond_an_integer_of_64_bits_are_named():
    template = {**get_templates(), "y": np.arange(10, dtype=np.uint64) + 2**63}
    with pytest.raises(ValueError, match=r"template\['y'\]=.*: must be below 2\*\*63"):
        make_dataset(num_samples=100, template=template)


def test_a_larger_dataset_of_the_same_seed_shares_its_samples():
    small, large = (make_dataset(num_samples=n, factors=True) for n in (100, 200))
    drawn = np.concatenate([large["shear"], large["shear_test"]])
    assert np.isin(np.concatenate([small["shear"], small["shear_test"]]), drawn).all()


def test_no_seed_is_one_of_the_system():
    mnist1d.utils.set_seed(None)
    first = torch.rand(()), np.random.rand(), random.random()
    mnist1d.utils.set_seed(None)
    assert all(a != b for a, b in zip(first, (torch.rand(()), np.random.rand(), random.random()), strict=True))


def test_an_error_of_the_system_is_no_damage(tmp_path, monkeypatch):
    path = tmp_path / "cache.pkl"
    get_dataset({"num_samples": 100}, path=path, verbose=False)
    content = path.read_bytes()

    def fail(file, _):
        raise OSError(5, "Input/output error", file.name)

    monkeypatch.setattr(mnist1d.data.pickles, "load", fail)
    with pytest.raises(OSError, match=r"cache\.pkl"):
        get_dataset({"num_samples": 100}, path=path, verbose=False)
    assert path.read_bytes() == content
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        get_dataset({"num_samples": 100}, path=tmp_path)


def test_a_folder_that_cannot_be_written_gives_the_data_and_a_warning(tmp_path):
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    path = tmp_path / "file" / "cache.pkl"
    with pytest.warns(UserWarning, match=r"cache\.pkl cannot be written") as record:
        data = get_dataset({"num_samples": 100}, path=path)
    assert data["x"].shape == (80, 40) and record[0].filename == __file__


def test_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    get_dataset({"num_samples": 100}, path="~/data/c.pkl", verbose=False)
    assert (tmp_path / "home" / "data" / "c.pkl").is_file() and not (tmp_path / "~").exists()


def test_the_default_path_lies_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    get_dataset({"num_samples": 100}, verbose=False)
    get_dataset({"num_samples": 100, "shuffle_seq": True}, verbose=False)
    assert {path.name for path in tmp_path.iterdir()} == {"mnist1d_data.pkl", "mnist1d_data_shuffle.pkl"}


# The calls of existing code


def test_both_import_styles_and_no_heavy_import():
    code = (
        "import sys\n"
        "heavy = ['torch', 'matplotlib', 'platformdirs', 'sklearn', 'joblib', 'requests']\n"
        "sys.modules.update(dict.fromkeys([*heavy, 'resource', 'fcntl', 'pwd']))\n"
        "import mnist1d\n"
        "from mnist1d.data import make_dataset, get_dataset_args\n"
        "from mnist1d.transform import transform, pad, shear, translate, corr_noise_like, iid_noise_like, interpolate\n"
        "from mnist1d.utils import set_seed, to_pickle, from_pickle, ObjectView, plot_signals\n"
        "assert mnist1d.data.set_seed is set_seed and mnist1d.data.to_pickle is to_pickle\n"
        "assert mnist1d.data.transform is transform\n"
        "assert mnist1d.transform is transform and mnist1d.data.make_dataset is make_dataset is mnist1d.make_dataset\n"
        "assert mnist1d.__version__[0] == '1' and mnist1d.verify() and len(mnist1d.load_human_answers()) == 3\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_functions_are_annotated():
    assert (ROOT / "mnist1d" / "py.typed").is_file()
    names = (
        "claims",
        "comparison",
        "data",
        "figures",
        "images",
        "models",
        "results",
        "settings",
        "training",
        "transform",
    )
    for module in (mnist1d.utils, *(importlib.import_module(f"mnist1d.{name}") for name in names)):
        for name in module.__all__:
            function = getattr(module, name)
            if inspect.isfunction(function):
                signature = inspect.signature(function)
                parts = [parameter.annotation for parameter in signature.parameters.values()]
                assert inspect.Signature.empty not in [*parts, signature.return_annotation], name


def test_pad_takes_rows_and_transform_draws_from_the_global_state():
    np.random.seed(0)
    assert pad(np.ones((3, 12)), (2, 4)).shape[0] == 3
    args, templates = get_dataset_args(), get_templates()

    def draw(args):
        np.random.seed(1)
        return transform_one(templates["x"][0], templates["t"], args, eps=1e-8)

    (x, t), (again, _) = draw(args), draw(get_dataset_args(as_dict=True))
    assert x.shape == t.shape == (40,) and (x == again).all()


def test_channels_stay_together():
    x = np.stack([np.arange(12.0), 100 + np.arange(12.0)], 1)
    for seed in range(9):
        np.random.seed(seed)
        moved = translate(x, 6)
        assert (moved[:, 1] - moved[:, 0] == 100).all()
        sheared = interpolate(shear(moved), 30)
        assert sheared.shape == (30, 2) and np.allclose(sheared[:, 1] - sheared[:, 0], 100)
    assert iid_noise_like(x, 1.0).shape == (12, 2)
    np.random.seed(0)
    noise = np.stack([corr_noise_like(np.ones((500, 2)), 1.0) for _ in range(20)])
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: translate(x, 13), "max_translation=13.*from 0 .* to 12"),
        (lambda x: translate(x, -1), "max_translation=-1"),
        (lambda x: pad(x, 4), "padding=4"),
        (lambda x: pad(x, (5, 4)), r"padding=\(5, 4\)"),
        (lambda x: pad(x, (1, 2, 3)), r"padding=\(1, 2, 3\)"),
        (lambda x: pad(x, (-1, 3)), r"padding=\(-1, 3\)"),
        (lambda x: interpolate(x, 0), "N=0"),
        (lambda x: transform_one(x, x, {**get_dataset_args(as_dict=True), "padding": 3}), "padding=3"),
        (lambda x: transform_one(x, 3, get_dataset_args()), r"shape of y=\(\): must be \(template_len,\)"),
        (lambda x: transform_one(x, np.ones((10, 12)), get_dataset_args()), r"shape of y=\(10, 12\)"),
        (lambda x: transform_one(x[:0], x, get_dataset_args()), r"shape of x=\(0,\)"),
        (lambda x: transform_one(x, x, None), "args=None: must be an object or a mapping"),
    ],
)
def test_transformations_name_a_bad_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones(12))


@pytest.mark.parametrize("order", [[0, 0, 1], range(39), [*range(39), 38], np.arange(40) / 1, [*range(1, 41)]])
def test_an_order_that_is_no_permutation_is_refused(order):
    with pytest.raises(ValueError, match=r"order=.*each of the 40 positions once"):
        reorder(make_dataset(num_samples=100), order)


def test_the_human_answers_belong_to_the_frozen_test_set(monkeypatch, tmp_path):
    monkeypatch.delenv("MNIST1D_DATA", raising=False)
    answers = mnist1d.load_human_answers()
    np.testing.assert_array_equal(answers["label"], make_dataset()["y_test"][answers["test_index"]])
    assert (answers["guess"] == answers["label"]).sum() == 383
    assert all(values.shape == (400,) and values.dtype == np.int64 for values in answers.values())
    monkeypatch.setattr(mnist1d.data.resources, "files", lambda _: tmp_path)
    lists = {name: values.tolist() for name, values in answers.items()}
    for damaged in (
        "[]",
        "{",
        "{}",
        json.dumps({**lists, "guess": [10] * 400}),
        json.dumps({**lists, "label": ["a"] * 400}),
    ):
        (tmp_path / "human_answers.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(ValueError, match=r"human_answers\.json: must hold"):
            mnist1d.load_human_answers()


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


# Found since by trying what users write -------------------------------------------------------------------------------


class Generous(dict):
    """Makes up an empty object for every name that it has not, as some configurations do."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self.get(name, {})


@pytest.mark.filterwarnings("error")
def test_a_mapping_that_makes_up_attributes_is_asked_for_its_keys_alone():
    given = get_dataset_args(as_dict=True) | {"num_samples": 100}
    np.testing.assert_array_equal(make_dataset(Generous(given))["x"], make_dataset(given)["x"])


def test_a_mapping_with_none_for_every_attribute_is_a_mapping():
    with pytest.raises(ValueError, match="unknown argument 'shuffle'; did you mean 'shuffle_seq'"):
        make_dataset(type("Lenient", (dict,), {"__getattr__": dict.get})({"shuffle": True}))


def test_an_attribute_that_means_something_else_to_a_user_has_no_effect():
    plain = make_dataset(num_samples=100)
    for value in (False, None, 0, ""):
        args = argparse.Namespace(num_samples=100, label_noise=value, validation_split=False)
        np.testing.assert_array_equal(make_dataset(args)["y"], plain["y"])
    for value in (True, "symmetric", 15):
        with pytest.warns(UserWarning, match=r"args.label_noise=.* has no effect: no fraction"):
            np.testing.assert_array_equal(
                make_dataset(argparse.Namespace(num_samples=100, label_noise=value))["y"], plain["y"]
            )
    with pytest.warns(UserWarning, match=r"args.label_noise=0.5 changes the data"):
        assert "y_clean" in make_dataset(argparse.Namespace(num_samples=100, label_noise=0.5))


def test_a_dataclass_without_its_parentheses_is_named():
    @dataclasses.dataclass
    class Config:
        num_samples: int = 100
        padding: list = dataclasses.field(default_factory=lambda: [0, 60])

    assert make_dataset(Config())["x"].shape == (80, 40)
    with pytest.raises(ValueError, match="must be an instance of it"):
        make_dataset(Config)


def test_arrays_of_one_number_and_names_that_are_no_text():
    data = make_dataset(num_samples=np.array(100), iid_noise_scale=np.array(0.02), final_seq_length=np.array(40))
    np.testing.assert_array_equal(data["x"], make_dataset(num_samples=100)["x"])
    assert len(make_dataset(ObjectView({"num_samples": 100, 3: 1}))["x"]) == 80


def test_a_cache_without_a_seed_is_read_back(tmp_path):
    args = {"num_samples": 100, "seed": None}
    with pytest.warns(UserWarning, match="seed=None: this dataset is drawn with seed="):
        first = get_dataset(args, path=tmp_path / "a.pkl", verbose=False)
    np.testing.assert_array_equal(get_dataset(args, path=tmp_path / "a.pkl", verbose=False)["x"], first["x"])


def test_one_signal_at_a_time_is_transformed():
    templates = get_templates()
    with pytest.raises(ValueError, match=r"shape of x=\(12, 10\): must be \(template_len,\)"):
        transform_one(templates["x"].T, templates["t"], get_dataset_args())


def test_numpy_numbers_are_seeds():
    mnist1d.set_seed(np.int64(3))
    first = random.random(), np.random.rand(), torch.rand(()).item()
    mnist1d.set_seed(3)
    assert first == (random.random(), np.random.rand(), torch.rand(()).item())


def test_a_write_protected_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "a.pkl"
    to_pickle("old", path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # of a superuser everything can be written
    with pytest.raises(PermissionError, match="write-protected"):
        to_pickle("new", path)
    assert mnist1d.from_pickle(path) == "old"


def test_tensors_share_no_memory_with_the_dataset():
    data = {name: value.astype(np.float32) for name, value in make_dataset(num_samples=100).items() if name == "x"}
    data["y"] = np.zeros(len(data["x"]), np.int64)
    for tensor in to_torch(data).tensors:
        tensor.fill_(7)
    assert not (data["x"] == 7).any() and not data["y"].any()


def test_a_mapping_with_attributes_of_its_own_counts_as_an_object():
    class Config(dict):
        pass

    args = Config()
    args.num_samples = 100
    assert make_dataset(args)["x"].shape == (80, 40)
    with pytest.warns(UserWarning, match="changes the data"):
        assert "y_clean" in make_dataset(argparse.Namespace(num_samples=100, label_noise=np.array(0.1)))


def test_scalars_of_any_library_are_numbers():
    import torch

    given = {"num_samples": torch.tensor(100), "padding": torch.tensor([36, 60]), "shuffle_seq": np.array(False)}
    expected = make_dataset(num_samples=100)
    np.testing.assert_array_equal(make_dataset(**given)["x"], expected["x"])


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_a_fraction_in_single_precision_is_the_decimal_that_was_meant(kind):
    assert len(make_dataset(num_samples=1000, train_split=kind(0.7))["x"]) == 700


def test_labels_may_be_objects_of_text_and_boolean():
    template = get_templates()
    letters = make_dataset(num_samples=100, template={**template, "y": np.array(list("abcdefghij"), object)})
    assert letters["y"].dtype.kind == "U"
    even = make_dataset(num_samples=100, template={**template, "y": np.arange(10) % 2 == 0})
    assert set(to_torch(even).tensors[1].tolist()) == {0, 1}


def test_a_validation_split_that_leaves_classes_out_says_so():
    with pytest.warns(UserWarning, match=r"validation_split=0\.03: sets no sample of the classes \[1, 3,"):
        make_dataset(num_samples=200, validation_split=0.03)


def test_names_of_0_0_2_are_where_they_were():
    import mnist1d.data
    import mnist1d.utils

    old = {"ObjectView", "from_pickle", "to_pickle", "set_seed", "transform", "make_dataset", "get_dataset"}
    assert old <= {*mnist1d.data.__all__} and mnist1d.utils.transform is mnist1d.data.transform


def test_an_order_of_lists_of_different_lengths_is_named():
    with pytest.raises(ValueError, match="order="):
        reorder(make_dataset(num_samples=100), [[1], [2, 3]])
