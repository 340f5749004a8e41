"""Bounds, intervals, outcomes and verdicts, on made-up samples."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from mnist1d import claims, settings
from mnist1d.claims import CLAIMS, Verdicts, conclude, decide, judge, measure, no_verdict, read_bound
from notebooks import read_notebook

BAND, ABOVE, BELOW, WITHIN = "68 ± 2", "> 0", "< 2", "within -3 to 3"


@pytest.mark.parametrize(
    ("bound", "interval", "outcome"),
    [
        (BAND, (66.5, 69.5), "holds"),
        (BAND, (69, 73), "holds"),  # overlaps, and is as wide as the band
        (BAND, (70, 71), "holds"),
        (BAND, (70.1, 71), "fails"),
        (BAND, (60, 65.9), "fails"),
        (BAND, (65, 70), "undecided"),  # overlaps, but is wider
        (ABOVE, (0.1, 5), "holds"),
        (ABOVE, (-5, -0.1), "fails"),
        (ABOVE, (-5, 0), "fails"),
        (ABOVE, (-0.1, 5), "undecided"),
        (BELOW, (1, 1.9), "holds"),
        (BELOW, (2, 3), "fails"),
        (BELOW, (1, 3), "undecided"),
        (WITHIN, (-3, 3), "holds"),
        (WITHIN, (3.1, 4), "fails"),
        (WITHIN, (-9, -3.1), "fails"),
        (WITHIN, (2, 4), "undecided"),
        (WITHIN, (-4, 4), "undecided"),
        ("= 4", (4, 4), "holds"),
        ("= 4", (3, 3), "fails"),
        ("share > 50", (54, 100), "holds"),
        ("share 96 ± 1", (93.3, 97.5), "undecided"),
        ("bootstrap > 0", (0.1, 0.9), "holds"),
        (BAND, None, "undecided"),
    ],
)
def test_an_interval_decides(bound, interval, outcome):
    assert decide(bound, interval) == outcome


@pytest.mark.parametrize("bound", ["66 to 70", ">= 30", "68", "share", "> x"])
def test_a_bound_that_cannot_be_read_is_an_error(bound):
    with pytest.raises(ValueError, match="must read like"):
        read_bound(bound)


def test_every_claim_of_the_registry_is_complete():
    for claim_id, claim in CLAIMS.items():
        assert (settings.find_root() / "notebooks" / f"{claim.slug}.ipynb").is_file()
        assert all((claim.statement, claim.published, claim.measure)), claim_id
        assert re.match(r"(P|V1|S), (Table|Figure|Section)", claim.source), claim_id
        assert claim.why.endswith(".") and (claim.n >= 5 or claim_id == "bench.human"), claim_id
        for bound in claim.bound.values() if isinstance(claim.bound, dict) else [claim.bound][: bool(claim.bound)]:
            assert read_bound(bound)[0] in ("band", "bound", "equivalence", "exact")
            assert bound in claim.criterion


@pytest.mark.parametrize("n", [5, 6, 10, 31])
def test_the_interval_of_a_mean_is_that_of_scipy(n):
    values = np.random.default_rng(n).normal(68, 2, n)
    low, high = measure(BAND, values)["interval"]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-12)


@pytest.mark.parametrize(("hits", "n"), [(383, 400), (10, 10), (0, 7), (3, 8)])
def test_the_interval_of_a_share_is_the_exact_binomial_one(hits, n):
    part = measure("share > 50", np.arange(n) < hits)
    # Clopper and Pearson's limits are quantiles of beta distributions.
    low = 0 if not hits else stats.beta.ppf(0.025, hits, n - hits + 1)
    high = 1 if hits == n else stats.beta.ppf(0.975, hits + 1, n - hits)
    assert part["interval"] == pytest.approx([100 * low, 100 * high], abs=1e-6)
    assert (part["mean"], part["sd"], part["kind"]) == (pytest.approx(100 * hits / n), None, "share")


def test_the_interval_of_resamples_is_their_middle():
    part = measure("bootstrap > 0", np.linspace(-1, 1, 1001))
    assert part["interval"] == pytest.approx([-0.95, 0.95]) and part["outcome"] == "undecided"


def test_fewer_seeds_than_a_claim_asks_for_decide_nothing():
    assert measure(ABOVE, np.full(4, 9.0))["outcome"] == "undecided"
    assert measure(ABOVE, np.full(5, 9.0))["outcome"] == "holds"
    assert judge("pool.stride", np.full(9, 0.0))["verdict"] == "undecided"
    assert judge("pool.stride", np.full(10, 0.0))["verdict"] == "reproduced"
    assert judge("bench.logistic", {"final": 32.0, "early-stopped": 32.0})["measured"][0]["interval"] is None
    with pytest.raises(ValueError, match="must be one or more finite numbers in a row"):
        judge("pool.stride", np.zeros((10, 3)))


def test_fewer_parts_than_a_claim_asks_for_decide_nothing():
    values = [5.0, 5.1, 5.2, 5.1, 5.0]
    assert judge("lottery.beats_random", {f"{s}%": values for s in range(80, 85)})["verdict"] == "undecided"
    assert judge("lottery.beats_random", {f"{s}%": values for s in range(80, 86)})["verdict"] == "reproduced"


HELD, FAILED, OPEN = [5.0, 5.5, 6.0, 5.2, 5.4], [-5.0, -5.5, -6.0, -5.2, -5.4], [-9.0, 9.0, 1.0, -1.0, 3.0]


@pytest.mark.parametrize(
    ("samples", "verdict"),
    [
        ((HELD, HELD, HELD), "reproduced"),
        ((HELD, FAILED, HELD), "partly"),
        ((HELD, FAILED, OPEN), "partly"),
        ((FAILED, FAILED, FAILED), "not reproduced"),
        ((FAILED, OPEN, OPEN), "not reproduced"),
        ((HELD, HELD, OPEN), "undecided"),
        ((OPEN, OPEN, OPEN), "undecided"),
    ],
)
def test_the_parts_decide_the_verdict(samples, verdict):
    judged = judge("bench.order", dict(zip(CLAIMS["bench.order"].bound, samples, strict=True)))
    assert judged["verdict"] == verdict
    assert verdict == conclude([part["outcome"] for part in judged["measured"]])


def test_a_judged_claim_says_what_was_measured():
    part = judge("lottery.reinit", [4.0, 5.0, 6.0, 7.0, 8.0])["measured"][0]
    assert (part["mean"], part["n"], part["bound"], part["kind"]) == (6, 5, "> 0", "bound")
    assert part["sd"] == pytest.approx(np.sqrt(2.5)) and part["outcome"] == "holds"
    exact = judge("dataset.frozen", 3)
    assert exact["verdict"] == "not reproduced" and exact["measured"][0]["sd"] is None


@given(
    centre=st.floats(-6, 6),
    spread=st.sampled_from([0.01, 0.1, 0.5, 1, 2]),
    noise=st.lists(st.floats(-1, 1), min_size=5, max_size=12),
    bound=st.sampled_from(["1 ± 2", ABOVE, BELOW, WITHIN]),
    added=st.integers(1, 50),
)
def test_seeds_without_noise_never_turn_a_decision_into_another(centre, spread, noise, bound, added):
    values = centre + spread * np.array(noise)
    before = measure(bound, values)
    assume(before["outcome"] != "undecided")
    assert measure(bound, add_seeds(values, before, added))["outcome"] == before["outcome"]


def add_seeds(values, part, added):
    """Seeds that all show what was decided: the mean, or where a band holds its point nearest to the mean."""
    kind, low, high, _ = read_bound(part["bound"])
    shown = part["mean"]
    if kind == "band" and part["outcome"] == "holds":
        shown = np.clip(shown, low, high)
    return np.append(values, np.full(added, shown))


@given(
    centres=st.tuples(st.floats(66, 74), st.floats(-3, 3)),
    spread=st.sampled_from([0.01, 0.1, 0.5, 1]),
    noise=st.lists(st.floats(-1, 1), min_size=5, max_size=12),
    added=st.integers(1, 50),
)
def test_seeds_without_noise_never_turn_a_verdict_of_decided_parts_into_another(centres, spread, noise, added):
    """An undecided part may still be decided, which can turn *not reproduced* to *partly*: no part is one here."""
    samples = {
        name: centre + spread * np.array(noise) for name, centre in zip(("ticket", "minus dense"), centres, strict=True)
    }
    before = judge("lottery.70", samples)
    parts = {part["part"]: part for part in before["measured"]}
    assume(all(part["outcome"] != "undecided" for part in parts.values()))
    more = {name: add_seeds(values, parts[name], added) for name, values in samples.items()}
    assert judge("lottery.70", more)["verdict"] == before["verdict"]


@given(hits=st.integers(0, 12), misses=st.integers(0, 12), times=st.integers(2, 5))
def test_more_answers_in_the_same_share_never_turn_one_decision_into_another(hits, misses, times):
    assume(hits + misses >= 5)
    answers = np.repeat([1, 0], [hits, misses])
    before = measure("share > 50", answers)["outcome"]
    assert before == "undecided" or measure("share > 50", np.tile(answers, times))["outcome"] == before


@pytest.mark.parametrize("samples", [[], [np.nan], [94, np.inf]])
def test_samples_must_be_finite(samples):
    with pytest.raises(ValueError, match=r"samples: lottery\.reinit"):
        judge("lottery.reinit", samples)


def test_parts_must_be_those_of_the_claim():
    judged = judge("bench.fit", {"CNN": [100.0] * 5, "a fourth model": [90.0] * 5})
    assert judged["verdict"] == "undecided" and judged["parts_differ"]
    assert [part["part"] for part in judged["measured"]] == ["CNN"]
    assert not judge("bench.fit", dict.fromkeys(CLAIMS["bench.fit"].bound, [100.0] * 5))["parts_differ"]
    with pytest.raises(ValueError, match="claim_id='bench'"):
        judge("bench", [1])
    with pytest.raises(ValueError, match="0 or 1"):
        judge("act.shape", [1, 0, 2])
    with pytest.raises(ValueError, match=r"shuffle\.human"):
        judge("shuffle.human", [30])


# Which runs may record a verdict


@pytest.fixture
def run(monkeypatch):
    """A kernel with the published parameters of `tsne`, in the profile `paper`."""
    published = json.loads(Path(claims.__file__).with_name("published.json").read_text(encoding="utf-8"))["tsne"]
    kernel = SimpleNamespace(**published)
    monkeypatch.setitem(sys.modules, "__main__", kernel)
    monkeypatch.setenv("MNIST1D_PROFILE", "paper")
    monkeypatch.delenv("MNIST1D_SEED_OFFSET", raising=False)
    return kernel


def test_the_published_run_may_record_verdicts(run):
    run.SEEDS = range(len(run.SEEDS))
    assert no_verdict("tsne") == ""


def test_a_changed_or_missing_knob_means_no_verdict(run):
    run.PERPLEXITY += 1
    assert no_verdict("tsne") == "parameters differ from the published run (PERPLEXITY): no verdict"
    run.PERPLEXITY -= 1
    del run.POINTS
    assert "(POINTS)" in no_verdict("tsne")


def test_seeds_may_be_shifted_all_together(run, monkeypatch):
    monkeypatch.setenv("MNIST1D_SEED_OFFSET", "1000")
    assert "(SEEDS)" in no_verdict("tsne")  # the variable alone shifts nothing
    run.SEEDS = range(1000, 1000 + len(run.SEEDS))
    assert no_verdict("tsne") == ""
    run.SEEDS = range(999, 999 + len(run.SEEDS))
    assert "(SEEDS)" in no_verdict("tsne")


def test_what_replicate_shifts_are_seeds(monkeypatch):
    """No knob of a notebook that counts something is taken for a seed."""
    monkeypatch.setenv("MNIST1D_SEED_OFFSET", "1000")
    published = json.loads(Path(claims.__file__).with_name("published.json").read_text(encoding="utf-8"))
    arrays = {"SEEDS": np.arange(3)}
    settings.shift_seeds(arrays)
    assert arrays["SEEDS"].tolist() == [1000, 1001, 1002]
    assert not settings.is_seed("TUNE_SEEDS", 2) and not settings.is_seed("ONE_SEED_STEPS", 500)
    for slug, knobs in published.items():
        shifted = dict(knobs)
        settings.shift_seeds(shifted)
        changed = {name for name in knobs if shifted[name] != knobs[name]}
        assert changed == {name for name in knobs if settings.is_seed(name, knobs[name])}, slug
        assert all(re.search("SEEDS?$", name) for name in changed), slug


def test_other_profiles_and_other_data_mean_no_verdict(run, monkeypatch):
    monkeypatch.setattr(claims.data, "verify", lambda: False)
    assert no_verdict("tsne") == "data differ from the published run: no verdict"
    monkeypatch.setenv("MNIST1D_PROFILE", "quick")
    assert no_verdict("tsne") == "the quick profile: no verdict"


def test_a_cell_that_is_none_of_the_published_means_no_verdict(run, monkeypatch):
    cells = [source for kind, source, _ in read_notebook("tsne") if kind == "code"]
    run.In = ["", *cells]
    assert no_verdict("tsne") == ""
    run.In = ["", cells[0].replace('PROFILE = "quick"', 'PROFILE = "paper"'), *cells[1:]]  # as Colab's form does
    assert no_verdict("tsne") == "" and run.In[1] != cells[0]
    run.In = ["", *cells, "data = make_dataset(iid_noise_scale=5.0)"]
    assert "cells differ from the published run ('data = make_dataset(iid_noise_scale=5.0)'" in no_verdict("tsne")


def test_a_notebook_that_was_never_published_has_no_verdict(run):
    assert no_verdict("mine") == "there is no published run: no verdict"


def test_the_table_shows_numbers_always_and_verdicts_only_of_the_published_run(run):
    judged = Verdicts([judge("tsne.knn", {"MNIST": [92.0, 92.1, 92.2, 92.0, 92.1], "MNIST-1D": [70.0] * 5})])
    table = judged._repr_markdown_()
    assert "**partly**" in table and "MNIST-1D 70.00 [70.00, 70.00], n = 5 ✗" in table
    run.POINTS = 7
    table = judged._repr_markdown_()
    assert "Parameters differ from the published run (POINTS): no verdict" in table
    assert "MNIST-1D 70.00" in table and "partly" not in table and "✗" not in table
    assert Verdicts()._repr_markdown_() == "No published claims."


@pytest.mark.parametrize(
    ("kind", "mean", "interval", "text"),
    [
        ("exact", 4.0, [4.0, 4.0], "CNN 4, n = 5"),
        ("exact", 10_000.0, [10_000.0] * 2, "CNN 10,000, n = 5"),
        ("bound", 0.5, None, "CNN 0.5, n = 5"),
        ("band", 94.183, [93.21, 95.156], "CNN 94.18 [93.21, 95.16], n = 5"),
        ("bound", -0.12, [-3.25, 3.01], "CNN -0.1 [-3.2, 3.0], n = 5"),
        ("bound", 100.0, [100.0, 100.0], "CNN 100.00 [100.00, 100.00], n = 5"),
    ],
)
def test_measured_parts_are_shown_with_two_digits_of_their_interval(kind, mean, interval, text):
    part = {"part": "CNN", "kind": kind, "mean": mean, "interval": interval, "n": 5}
    assert claims.format_measured(part) == text


def test_the_interval_of_a_mean_is_scipys_and_that_of_the_verdicts():
    samples = np.random.default_rng(1).normal(size=10)
    mean, low, high = claims.confidence_interval(samples)
    expected = stats.ttest_1samp(samples, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx(tuple(expected)) and mean == pytest.approx(samples.mean())
    assert judge("pool.stride", samples)["measured"][0]["interval"] == pytest.approx([low, high])
    assert np.isnan(claims.confidence_interval(samples[:1])[1:]).all()


@pytest.mark.parametrize(
    "values", [np.ma.array([1.0, 2.0, -1000.0], mask=[0, 0, 1]), ["1", "2"], [1j, 2j], (v for v in (1.0, 2.0)), []]
)
def test_what_is_no_sample_is_named(values):
    with pytest.raises(ValueError, match=r"(?s)values=.*one number for each seed"):
        claims.confidence_interval(values)
    with pytest.raises(ValueError, match="must be one or more finite numbers"):
        judge("lottery.reinit", values)


def test_no_sample_at_all_is_refused():
    with pytest.raises(ValueError, match="samples"):
        judge("lottery.beats_random", {})
