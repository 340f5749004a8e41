"""The t-SNE notebook: its measure of clusters against a plain loop, its embedding where the answer is known."""

import numpy as np
import pytest
import torch

from mnist1d import make_dataset


@pytest.fixture
def cells(notebook):
    return notebook("tsne", ITERATIONS=300, NEIGHBOURS=3)


@pytest.fixture(params=["openTSNE", "scikit-learn"])
def either(notebook, request):
    return notebook("tsne", ITERATIONS=750, NEIGHBOURS=3, LIBRARY=request.param)


def make_blobs(n_classes, distance, n=40, dimension=5):
    rng = np.random.default_rng(0)
    centres = distance * np.eye(n_classes, dimension)
    y = np.repeat(np.arange(n_classes), n)
    return (centres[y] + rng.normal(size=(len(y), dimension))).astype(np.float32), y


def test_agreement_equals_a_plain_loop(cells):
    x, y = make_blobs(4, 2.0)
    expected = []
    for i in range(len(x)):
        distance = ((x - x[i]) ** 2).sum(1)
        distance[i] = np.inf
        votes = np.bincount(y[np.argsort(distance)[:3]], minlength=10)
        expected.append(100.0 * (votes.argmax() == y[i]))
    assert 0 < np.mean(expected) < 100
    found = cells["neighbours_agree"](x, y, np.arange(len(x)))
    np.testing.assert_array_equal(found, expected)
    few = np.array([7, 3, 150])
    np.testing.assert_array_equal(cells["neighbours_agree"](x, y, few), found[few])


def test_a_point_does_not_vote_for_itself(cells):
    x = np.array([[0.0], [10], [11], [12], [13]])
    assert cells["neighbours_agree"](x, np.array([5, 1, 1, 1, 1]), np.array([0])) == [0]
    # Duplicates at distance zero count as neighbours like any other, more of them than are asked too.
    assert cells["neighbours_agree"](np.zeros((4, 1)), np.array([2, 2, 2, 2]), np.arange(4)).tolist() == [100] * 4
    y = np.array([1, 1, 1, 1, 1, 1, 1, 3])
    assert cells["neighbours_agree"](np.zeros((8, 1)), y, np.arange(8)).tolist() == [100] * 7 + [0]


@pytest.mark.parametrize("start", ["pca", "random"])
def test_separate_classes_stay_separate_in_the_plane_and_mixed_ones_mixed(either, start):
    (far, y), asked = make_blobs(3, 40.0), np.arange(120)
    plane = either["embed"](far, 0, perplexity=10, start=start)
    assert plane.shape == (120, 2)
    agree = either["neighbours_agree"](plane, y, asked).mean()
    assert agree == 100 if start == "pca" else agree > 95  # from a random start a point or two stays caught
    assert either["neighbours_agree"](plane, np.random.default_rng(1).permutation(y), asked).mean() < 60


def test_run_is_decided_by_its_seeds_and_keeps_their_order(notebook):
    draws = [tuple(a[::-1] if s else a for a in make_blobs(10, 8.0, n=12, dimension=10)) for s in range(2)]
    cells = notebook("tsne", ITERATIONS=300, DATASETS={"blobs": (lambda seed, points: draws[seed], 120)})
    variant = ("blobs", 120, {"perplexity": 10})
    both = cells["run"](variant, [0, 1])
    alone = cells["run"](variant, [1])
    assert both["embedding"].shape == (2, 120, 2) and both["by_digit"].shape == (2, 10)
    for name, values in both.items():
        np.testing.assert_array_equal(values[1:], alone[name])
    np.testing.assert_allclose(both["by_digit"].mean(1), both["embedding_acc"])  # classes of one size


def test_clusters_are_found_without_labels_and_sectors_of_a_disc_are_none(cells, notebook):
    blobs, y = make_blobs(10, 40.0, dimension=10)
    rng = np.random.default_rng(0)
    turn = 2 * np.pi * rng.random(5000)
    disc = np.sqrt(rng.random(5000))[:, None] * np.c_[np.cos(turn), np.sin(turn)]
    sectors = (10 * turn / (2 * np.pi)).astype(int)
    assert cells["measure_clusters"](blobs, y, 0)["k_means"] > 0.95
    agree = notebook("tsne", NEIGHBOURS=10)["neighbours_agree"]
    assert agree(disc, sectors, np.arange(5000)).mean() > 95  # neighbours agree where there are no clusters
    assert cells["measure_clusters"](disc, sectors, 0)["hdbscan"] < 0.2


def test_plain_neighbours_have_the_entropy_of_the_perplexity(cells):
    x = torch.tensor(make_blobs(3, 5.0)[0])
    p = cells["find_neighbours"](x, 10)
    assert p.sum().item() == pytest.approx(1, abs=1e-5) and torch.allclose(p, p.T)
    distance = torch.cdist(x, x).square().fill_diagonal_(torch.inf)
    low, high = (torch.softmax(-beta * distance, 1) for beta in (1e-12, 1e6))  # the ends of the bisection
    assert (low > 0).sum(1).min() == len(x) - 1 and (high > 0.99).sum() > 0


def test_the_plain_loop_keeps_separate_classes_separate(cells):
    torch.manual_seed(0)
    x, y = make_blobs(3, 40.0)
    plane = cells["embed_plainly"](torch.tensor(x), 10, 1000).numpy()
    assert np.isfinite(plane).all() and cells["neighbours_agree"](plane, y, np.arange(len(y))).mean() == 100


@pytest.mark.parametrize("exaggeration", [1, 12])
def test_exaggeration_multiplies_the_attraction_alone(cells, exaggeration):
    x = torch.tensor(make_blobs(3, 5.0)[0])
    p = cells["find_neighbours"](x, 10).double()
    y = torch.tensor(np.random.default_rng(0).normal(size=(len(x), 2)), requires_grad=True)
    (found,) = torch.autograd.grad(cells["measure_divergence"](p, y, exaggeration), y)
    near = (1 / (1 + torch.cdist(y, y).square())).fill_diagonal_(0)
    force = (exaggeration * p - near / near.sum()) * near  # van der Maaten and Hinton (2008), equation 5
    expected = 4 * (force[..., None] * (y[:, None] - y)).sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_samples_are_drawn_without_repetition(notebook):
    cells = notebook("tsne", images=np.arange(50)[:, None], image_labels=np.arange(50) % 10)
    x, y = cells["draw_mnist"](1, 30)
    assert len(np.unique(x)) == 30 and (x[:, 0] % 10 == y).all()
    assert not np.array_equal(x, cells["draw_mnist"](2, 30)[0])


def test_seed_zero_of_mnist1d_is_the_frozen_dataset(notebook):
    x, y = notebook("tsne")["draw_mnist1d"](0, 5000)
    data = make_dataset()
    np.testing.assert_array_equal(x, np.concatenate([data["x"], data["x_test"]]).astype(np.float32))
    np.testing.assert_array_equal(y, np.concatenate([data["y"], data["y_test"]]))
