"""Knobs that cannot work are refused in the parameters cell, before any work, by name."""

import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mnist1d import models
from notebooks import run_parameters

IMPORTS = {  # what parameters cells name
    "quickstart": {"models": models},
    "tsne": {"np": np, "find_spec": find_spec},
    "metalearn_lr": {"np": np},
    "metalearn_activation": {"torch": torch, "F": F},
    "activation_transfer": {"math": math, "torch": torch, "F": F, "learned_activation": F.elu},
}


@pytest.mark.parametrize(
    ("slug", "knobs", "message"),
    [
        ("simclr", {"BATCH_SIZE": 10_000}, "BATCH_SIZE=10000: must be at most N_TRAIN"),
        ("simclr", {"STEPS": 0}, "STEPS=0: must be at least 1"),
        ("simclr", {"MAX_SHIFT": 40}, "MAX_SHIFT=40: must be from 0 to 39"),
        ("simclr", {"HEADS": {"deep": 4}}, "must hold 'default'"),
        ("simclr", {"DEPTHS": (0, 1)}, "must hold the published 0, 2 and 4 layers"),
        ("simclr", {"MAP_STEPS": 100}, "MAP_STEPS=100: must be at least 250"),
        ("simclr", {"N_MAP": 30}, "N_MAP=30: must be more than 30"),
        ("random_subspaces", {"N_IMAGES": 10}, "must be at most N_IMAGES=10"),
        ("random_subspaces", {"BATCH_1D": 4001}, "BATCH_1D=4001: must be from 1 to the 4000"),
        ("random_subspaces", {"EVALS": 1}, "EVALS=1: must be at least 2"),
        ("construction", {"DIGIT": 10}, "DIGIT=10: must be from 0 to 9"),
        ("construction", {"LOOP_SAMPLES": 5}, "LOOP_SAMPLES=5: must be at least 10"),
        ("construction", {"ON_REQUEST": 5}, "ON_REQUEST=5: must be at least 10"),
        ("quickstart", {"SEEDS": range(0)}, r"SEEDS=range\(0, 0\): must hold at least one"),
        ("construction", {"FRAMES": 0}, "FRAMES=0: must be at least 1"),
        ("tsne", {"NEIGHBOURS": 200}, "NEIGHBOURS=200, ASKED=200: must be at least 1, and neighbours fewer"),
        ("simclr", {"EXTRA_SEEDS": range(5, 7)}, "must be the first of SEEDS"),
        ("simclr", {"N_TRAIN": 5000}, "N_TRAIN=5000, N_TEST=100: must be at most 4000"),
        ("pooling", {"EXTRA_SEEDS": range(5, 7)}, "must be the first of SEEDS"),
        ("pooling", {"SIZES": (1024, 4096)}, "must be a multiple of ten together"),
        ("benchmarks", {"DIGIT_SEEDS": range(0)}, r"DIGIT_SEEDS=range\(0, 0\).*must hold one or more"),
        ("benchmarks", {"MNIST_VALIDATION": 0}, "MNIST_VALIDATION=0: must be above 0"),
        ("benchmarks", {"MNIST_DROPOUT": ()}, "must hold at least one rate"),
        ("metalearn_lr", {"FAR_STARTS": ()}, "FAR_STARTS=.*must hold at least one rate"),
        ("metalearn_lr", {"GRID": ()}, "GRID=.*must hold at least one rate"),
        ("metalearn_lr", {"LONG_RATES": (0.1, 0.1)}, "LONG_RATES=.*none twice"),
        ("metalearn_lr", {"OUTER_STEPS": 0}, "OUTER_STEPS=0: must be at least 2 and 1"),
        ("tsne", {"LIBRARY": "sklearn"}, "LIBRARY=.sklearn.: must be .openTSNE. or"),
        ("tsne", {"SETTINGS": {}}, r"must be above all perplexities of SETTINGS=\{\}, one or more"),
        ("tsne", {"ITERATIONS": 250}, "ITERATIONS=250: must be above 250"),
        ("records", {"RECORD_SEEDS": range(100, 103)}, "RECORD_SEEDS=.*must be new, but .100.*RECIPE_SEEDS"),
        ("metalearn_activation", {"RIVALS": ("GELU", "ReLu")}, "RIVALS=.*must be among"),
        ("metalearn_activation", {"PUBLISHED": "three"}, "PUBLISHED=.three.*must be among"),
        ("metalearn_activation", {"RATES": ()}, r"RATES=\(\) empty"),
        ("metalearn_activation", {"CURVE_SEEDS": range(0)}, r"CURVE_SEEDS=range\(0, 0\).* empty"),
        ("metalearn_activation", {"RIVALS": ()}, "RIVALS=.*must be among"),
        ("metalearn_activation", {"EVAL_SEEDS": range(2000, 2001)}, "fewer EVAL_SEEDS=.*than META_SEEDS"),
        ("activation_transfer", {"EPOCHS": ()}, "must hold one number of epochs or more, from 1 on, and rise"),
        ("activation_transfer", {"EPOCHS": (4, 2)}, "must hold one number of epochs or more, from 1 on, and rise"),
        ("activation_transfer", {"EPOCHS": (0, 10)}, "must hold one number of epochs or more, from 1 on, and rise"),
        ("activation_transfer", {"EARLY": 0}, "EARLY=0: must be from 1 to the"),
        ("activation_transfer", {"EARLY": 1000}, "EARLY=1000: must be from 1 to the"),
        ("activation_transfer", {"RATES": ()}, r"RATES=\(\), CHANNELS=.*: must hold at least one each"),
        ("activation_transfer", {"ACTIVATIONS": {"ReLU": F.relu}}, "must hold .learned."),
    ],
)
def test_knobs_that_cannot_work_are_refused_at_the_top(slug, knobs, message):
    run_parameters(slug, **IMPORTS.get(slug, {}))
    with pytest.raises(ValueError, match=message):
        run_parameters(slug, **IMPORTS.get(slug, {}), **knobs)
