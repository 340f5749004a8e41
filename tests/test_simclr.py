"""The mechanism of the SimCLR notebook: augmentations, losses, pretraining, and what is measured of the features."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from mnist1d.models import count_parameters
from notebooks import run_parameters


@pytest.fixture
def ns(notebook):
    return notebook("simclr", BATCH_SIZE=20, get_device=lambda: torch.device("cpu"))


def make_signals(n=60, seed=0):
    return torch.randn(n, 40, generator=torch.Generator().manual_seed(seed))


def test_detrend_is_the_residual_of_a_least_squares_line(ns):
    signals = make_signals()
    position = np.arange(40)
    lines = [np.polyval(np.polyfit(position, s, 1), position) for s in signals.double().numpy()]
    np.testing.assert_allclose(ns["detrend"](signals), signals.numpy() - lines, atol=1e-5)


def test_a_view_is_a_right_roll_of_the_residuals_plus_a_line(notebook):
    residuals = make_signals(500)
    still = notebook("simclr", SLOPE_SD=0.0, OFFSET_SD=0.0, MAX_SHIFT=9)
    views = still["augment"](residuals, torch.Generator().manual_seed(1))
    rolls = torch.stack([residuals.roll(k, 1) for k in range(10)])  # [shift, example, position]
    equal = (rolls == views).all(-1)
    assert (equal.sum(0) == 1).all()
    assert equal.any(1).all()  # each of the ten shifts occurs

    tilted = notebook("simclr", SLOPE_SD=0.04, OFFSET_SD=0.3, MAX_SHIFT=0)
    lines = tilted["augment"](residuals, torch.Generator().manual_seed(1)) - residuals
    assert lines.diff(n=2).abs().max() < 1e-5
    assert lines.mean(1).std() == pytest.approx(0.3, rel=0.15)
    assert lines.diff().mean(1).std() == pytest.approx(0.04, rel=0.15)


def test_batches_pair_two_different_views_of_the_same_signal(notebook):
    ns = notebook("simclr", BATCH_SIZE=20, MAX_SHIFT=0, SLOPE_SD=0.0, OFFSET_SD=0.3)
    signals = make_signals()
    batches = torch.stack(list(ns["draw_batches"](signals, [0, 1], 3, "cpu")))  # one epoch
    first, second = batches.chunk(2, 2)
    flat = [view - view.mean(-1, keepdim=True) for view in (first, second)]
    torch.testing.assert_close(*flat, atol=1e-5, rtol=0)
    assert (first - second).abs().amax(-1).min() > 0
    seen = flat[0][:, 0].flatten(0, 1)  # each signal once an epoch
    distance = torch.cdist(seen, ns["detrend"](signals), compute_mode="donot_use_mm_for_euclid_dist")
    assert distance.argmin(1).sort().values.tolist() == list(range(60))
    assert distance.min(1).values.max() < 1e-3
    alone = torch.stack(list(ns["draw_batches"](signals, [1], 3, "cpu")))
    assert torch.equal(alone[:, 0], batches[:, 1])  # a seed's batches do not depend on its companions


def test_published_parameter_counts(ns):
    counts = [count_parameters(ns["Network"](ns["get_head"](n))) for n in (2, 4, 0)]
    assert counts == [21716, 53216, 3950]


def test_network_equals_plain_layers(ns):
    torch.manual_seed(0)
    network = ns["Network"]((125, 16))
    h, expected = make_signals().unsqueeze(1), [make_signals()]
    for layer in network.convolutions:
        h = F.conv1d(h, layer.weight, layer.bias, stride=2, padding=1).relu()
        expected.append(h)
    h = network.head[0](h.flatten(1)).relu()
    expected = [*expected[:-1], expected[-1].flatten(1), h, network.head[1](h)]
    for ours, theirs in zip(network(make_signals()), expected, strict=True):
        torch.testing.assert_close(ours, theirs.flatten(1))
    assert (ns["Network"](())(make_signals())[-1] >= 0).all()


def test_losses_equal_their_definitions(ns):
    z = torch.randn(2, 20, 16, generator=torch.Generator().manual_seed(0))
    expected = {"info_nce": [], "nt_xent": [], "barlow_twins": []}
    for first, second in zip(*z.chunk(2, 1), strict=True):
        similarity = F.cosine_similarity(first[:, None], second[None], dim=-1)
        expected["info_nce"].append(F.cross_entropy(similarity / 0.3, torch.arange(10)))
        both = torch.cat([first, second])
        terms = []
        for i in range(20):
            others = [j for j in range(20) if j != i]
            similarity = F.cosine_similarity(both[i][None], both[others], dim=-1) / 0.3
            terms.append(F.cross_entropy(similarity, torch.tensor(others.index((i + 10) % 20))))
        expected["nt_xent"].append(torch.stack(terms).mean())
        correlation = torch.tensor(np.corrcoef(first.T, second.T)[:16, 16:], dtype=torch.float32)
        error = (correlation - torch.eye(16)).square()
        expected["barlow_twins"].append(error.trace() + 0.1 * (error.sum() - error.trace()))
    for name, option, tolerance in (("info_nce", 0.3, 1e-5), ("nt_xent", 0.3, 1e-5), ("barlow_twins", 0.1, 1e-3)):
        ours = torch.stack([ns[name](part, option) for part in z])
        torch.testing.assert_close(ours, torch.stack(expected[name]), atol=tolerance, rtol=1e-4)


@pytest.fixture
def double_precision():
    """Float64, in which Adam does not amplify the order of summation."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_pretraining_together_equals_the_plain_loop(ns, double_precision):
    signals, seeds = make_signals().double(), [3, 4]
    models, losses = ns["pretrain"]((125, 16), ns["info_nce"], signals, seeds, 20)
    for i, seed in enumerate(seeds):
        network, loss = ns["pretrain_one"]((125, 16), signals, 20, seed)
        assert 0 < loss < np.log(20) and losses[-1][i].item() == pytest.approx(loss)
        for name, value in network.named_parameters():
            torch.testing.assert_close(models.params[name][i], value, atol=1e-7, rtol=1e-7)


def test_a_deep_head_whose_gradients_nearly_cancel_is_trained_together(notebook):
    ns = notebook("simclr")
    signals = torch.tensor(ns["make_dataset"]()["x"], dtype=torch.float32)
    assert ns["pretrain"](ns["get_head"](6), ns["info_nce"], signals, [0, 1], 3)[0].stacked


def test_pretraining_that_diverges_is_an_error(notebook):
    ns = notebook("simclr", BATCH_SIZE=20, get_device=lambda: torch.device("cpu"))
    with pytest.raises(FloatingPointError, match="training diverged"):
        ns["pretrain"]((16,), lambda z: z.sum() * torch.nan, make_signals(), [0], 2)


def test_the_linear_probe_is_that_of_the_optimum(ns):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 30))
    y = rng.integers(0, 10, 1500)
    x = (centres[y] + 2 * rng.normal(size=(1500, 30))) * rng.uniform(0.1, 10, 30) + 5
    fit, test = slice(1000), slice(1000, None)
    scaled = (x - x[fit].mean(0)) / x[fit].std(0)
    optimum = LogisticRegression(tol=1e-8, max_iter=5000).fit(scaled[fit], y[fit]).score(scaled[test], y[test])
    assert 0.3 < optimum < 0.9
    both = ns["linear_probe"](x[fit], y[fit], (x[test], y[test]), (x[test][:100], y[test][:100]))
    assert both[0] == pytest.approx(100 * optimum, abs=0.5)
    assert both[1] != both[0] and both[1] == round(both[1])  # a split of its own, of 100


def test_the_rank_counts_the_directions_in_use(ns):
    rng = np.random.default_rng(0)
    few = rng.normal(size=(2000, 5)) @ np.linalg.qr(rng.normal(size=(30, 5)))[0].T + 7
    assert ns["effective_rank"](few) == pytest.approx(5, abs=0.05)
    assert ns["effective_rank"](rng.normal(size=(2000, 30))) == pytest.approx(30, rel=0.05)
    assert ns["effective_rank"](np.ones((100, 30))) == pytest.approx(1, abs=0.5)


def test_alignment_and_uniformity_are_those_of_wang_and_isola(ns):
    rng = np.random.default_rng(0)
    first = torch.tensor(rng.normal(size=(50, 8)))
    second = first + 0.3 * torch.tensor(rng.normal(size=(50, 8)))
    x, y = F.normalize(first, dim=1), F.normalize(second, dim=1)
    alignment, uniformity = ns["alignment_uniformity"](5 * first.numpy(), second.numpy())
    assert alignment == pytest.approx((x - y).norm(dim=1).pow(2).mean().item())
    assert uniformity == pytest.approx(torch.pdist(x).pow(2).mul(-2).exp().mean().log().item())
    assert ns["alignment_uniformity"](np.zeros((9, 4)), np.zeros((9, 4))) == (0, 0)


def test_the_best_layer_is_chosen_on_validation_data(ns):
    result = {"val": np.array([[1, 3, 2], [5, 4, 4]]), "test": np.array([[10, 11, 99], [20, 21, 22]])}
    accuracy, layer = ns["best"](result)
    assert accuracy.tolist() == [11, 20] and layer.tolist() == [1, 0]


def test_impossible_knobs_are_refused_at_the_top():
    with pytest.raises(ValueError, match="BATCH_SIZE=500: must be at most N_TRAIN, 200"):
        run_parameters("simclr", N_TRAIN=200, N_TEST=100, BATCH_SIZE=500)
    with pytest.raises(ValueError, match=r"DEPTHS=\(0, 1\): must hold the published"):
        run_parameters("simclr", DEPTHS=(0, 1))


def test_purity_counts_neighbours_without_the_point_itself(ns):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 30)
    points = rng.normal(size=(300, 2)) + 3 * labels[:, None]
    distance = ((points[:, None] - points) ** 2).sum(-1)
    nearest = distance.argsort(1)[:, 1:11]
    expected = [100 * (labels[nearest[labels == d]] == d).mean() for d in range(10)]
    np.testing.assert_allclose(ns["purity"](points, labels), expected)
