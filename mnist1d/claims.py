"""Every published claim with its number and criterion, and the rule that judges it.

Each part of a claim is one number per seed. By the 95% interval of its mean, mean ± t sd/√n, a part holds, fails or
is undecided; REPRODUCTION.md has the rule as a table. A bound reads "68 ± 2" (a band), "> 0", "within -3 to 3"
(equivalence) or "= 4" (exact). After "share" the interval is the exact binomial one of hits among all, in percent;
after "bootstrap" it is the middle of the resamples.

Sources: P, *Scaling Down Deep Learning with MNIST-1D*, ICML 2024; V1, its first version, 2020; B, the blog
post of 2020; S, *Training Networks in Random Subspaces*, 2017.
"""

import hashlib
import json
import math
import numbers
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from mnist1d import data, settings
from mnist1d.transform import require

__all__ = [
    "CLAIMS", "SYMBOLS", "Claim", "Verdicts", "confidence_interval", "decide", "digest_cell", "format_interval",
    "format_measured", "judge", "no_verdict",
]  # fmt: skip

SYMBOLS = {"holds": "✓", "fails": "✗", "undecided": "?"}  # of a part


@dataclass(frozen=True)
class Claim:
    """One published claim."""

    slug: str  # its notebook
    statement: str
    source: str
    published: str
    measure: str  # what is measured, with its unit
    bound: str | dict  # for every part alike, or one per part; empty for a claim that cannot be measured
    why: str  # this bound; or why the claim cannot be measured
    n: int = 5  # the fewest seeds that decide a part, unless its bound is exact; 0: its chance is not that of seeds
    parts: int = 1  # the fewest parts that decide the claim, where the notebook names them

    @property
    def criterion(self) -> str:
        """The criterion in words, made from the bound that decides it."""
        if isinstance(self.bound, str):
            return f"{self.measure}: {self.bound}" if self.bound else "none"
        return f"{self.measure}: " + ", ".join(f"{part} {bound}" for part, bound in self.bound.items())


def _each(bound, *parts):
    return dict.fromkeys(parts, bound)


# id: notebook, statement, source, published value, what is measured, bound, why that bound
# fmt: off
CLAIMS = {
    "dataset.frozen": Claim("construction", "default arguments give the frozen dataset", "P, Table 2",
        "4000 + 1000 samples", "arrays (x, x_test, y, y_test) equal to the frozen ones", "= 4",
        "A dataset is the same or it is not."),
    "dataset.defaults": Claim("construction", "the defaults are the ten rows of Table 2; 10,000 samples on request",
        "P, Table 2", "Table 2; 10,000", "rows that differ from the table; samples returned",
        {"different rows": "= 0", "samples": "= 10000"}, "Facts without noise."),
    **{f"bench.{model.lower()}": Claim("benchmarks", f"test accuracy of {name}", "P, Table 1", value,
        "test accuracy, percent", _each(value, "final", "early-stopped"), "The published value and its spread.")
       for model, name, value in (("logistic", "logistic regression", "32 ± 1"), ("MLP", "the MLP", "68 ± 2"),
                                  ("CNN", "the CNN", "94 ± 2"), ("GRU", "the GRU", "91 ± 2"))},
    "bench.order": Claim("benchmarks", "CNN > GRU > MLP > logistic", "P, Table 1", "94, 91, 68, 32",
        "difference of neighbours with the same seed, points", _each("> 0", "CNN - GRU", "GRU - MLP", "MLP - logistic"),
        "An order means that each is > 0."),
    "bench.fit": Claim("benchmarks", "all but logistic regression fit the training set", "P, Table 1", "100",
        "training accuracy, percent", _each("> 99.5", "MLP", "CNN", "GRU"),
        "Half a point is what a last unlucky step costs."),
    "bench.mnist": Claim("benchmarks", "on MNIST logistic regression reaches 94%, the networks 99%", "P, Table 1",
        "94 ± 0.5, > 99, > 99, > 99", "test accuracy on MNIST, percent",
        {"logistic": "94 ± 0.5", "MLP": "> 99", "CNN": "> 99", "GRU": "> 99"}, "As published."),
    "bench.mnist_spread": Claim("benchmarks", "the three networks are hard to tell apart on MNIST, not on MNIST-1D",
        "P, Table 1", "> 99 all; 68 to 94", "best minus worst of MLP, CNN and GRU, points",
        {"MNIST": "< 2", "MNIST-1D": "> 20"}, "Two points are within what tuning gives on MNIST; twenty are not."),
    "bench.human": Claim("benchmarks", "a human reaches 96%", "P, Table 1", "96 ± 1",
        "right answers, percent of unique questions", "share 96 ± 1",
        "The published value and its spread, with the binomial interval of one person's answers.", n=0),
    "bench.classwise": Claim("benchmarks", "the CNN errs most on 2 and 7, never on 3 and 6", "P, Figure S1",
        "2, 7; not 3, 6", "error on a digit minus the mean of the others, points; error, percent",
        {"2 - others": "> 0", "7 - others": "> 0", "error on 3": "< 2", "error on 6": "< 2"},
        "Never means less than two of the hundred test samples of a digit; a digit's error is noisy, so 20 seeds.",
        n=20),
    "bench.similar": Claim("benchmarks", "CNN and human have similar errors by digit", "P, Figure S1", "similar",
        "correlation over digits of mean CNN error and human error", "bootstrap > 0",
        "Similar errors are positively correlated; ten digits allow no sharper bound."),
    "bench.human_digits": Claim("benchmarks",
        "the human errs most on 2 and 7, then 4, not on 3 and 6; more than the CNN on 9, less on 1", "P, Figure S1",
        "2, 7, 4; not 3, 6", "rank of the digit by error (1 is worst); wrong answers; human minus CNN error, points",
        {"rank of 2": "= 1", "rank of 7": "= 2", "rank of 4": "= 3", "wrong on 3": "= 0", "wrong on 6": "= 0",
         "9, human - CNN": "bootstrap > 0", "1, human - CNN": "bootstrap < 0"},
        "The 400 answers are facts; a difference holds the chance in 40 answers to a digit, and in the networks."),
    "shuffle.acc": Claim("shuffling", "test accuracy on shuffled data", "P, Table 1", "32 ± 1, 68 ± 2, 56 ± 2, 57 ± 2",
        "test accuracy, percent",
        {f"{model}, {when}": bound for model, bound in (("logistic", "32 ± 1"), ("MLP", "68 ± 2"), ("CNN", "56 ± 2"),
         ("GRU", "57 ± 2")) for when in ("final", "early-stopped")}, "The published value and its spread."),
    "shuffle.drop": Claim("shuffling", "shuffling costs CNN and GRU about 35 points, logistic and MLP nothing",
        "P, Table 1", "about 35; 0", "accuracy on plain minus on shuffled data, points",
        {"CNN": "> 30", "GRU": "> 30", "MLP": "within -2 to 2", "logistic": "within -2 to 2"},
        "About 35 is more than 30; nothing is less than the published spread of 2."),
    "shuffle.mlp_best": Claim("shuffling", "the MLP is best on shuffled data", "P, Table 1", "68 against 57, 56, 32",
        "MLP minus each other model on shuffled data, points", _each("> 0", "MLP - logistic", "MLP - CNN", "MLP - GRU"),
        "Best means that each is > 0."),
    "shuffle.human": Claim("shuffling", "a human reaches about 30% on shuffled data", "P, Table 1", "30 ± 10",
        "right answers, percent", "", "The answers on shuffled data are not public."),
    "tsne.mnist": Claim("tsne", "MNIST falls into ten clusters in the embedding", "P, Figure 3", "Figure 3",
        "adjusted Rand index of k-means in the embedding against the digits", "> 0.7",
        "A measure of clusters, not of classes; the index is 1 for ten clean clusters and 0 by chance."),
    "tsne.mnist1d": Claim("tsne", "MNIST-1D has no such clusters", "P, Figure 3", "Figure 3",
        "adjusted Rand index of k-means in the embedding against the digits", "< 0.2",
        "A fifth of the way from chance to clean clusters."),
    "tsne.knn": Claim("tsne", "kNN in pixel space separates MNIST's classes, not MNIST-1D's", "P, Figure 3", "Figure 3",
        "10-NN accuracy in pixel space, percent", {"MNIST": "> 90", "MNIST-1D": "< 60"},
        "Nine in ten is separated; six in ten is below what the MLP reaches."),
    "lottery.beats_random": Claim("lottery_tickets", "tickets beat random subnetworks at equal sparsity",
        "P, Figure 4a", "Figure 4a", "ticket minus random at each sparsity from 0.8 to 0.97, points", "> 0",
        "Beating means > 0; six sparsities make a curve.", parts=6),
    "lottery.sparse": Claim("lottery_tickets", "above 95% sparsity tickets still beat the dense network",
        "P, Figure 4a", "Figure 4a", "ticket minus dense above 95% sparsity, points", "> 0", "Beating means > 0."),
    "lottery.70": Claim("lottery_tickets", "a 92% sparse ticket reaches about 70% and beats the dense network",
        "P, Section 5.1", "70", "test accuracy at 92% sparsity, percent; minus dense, points",
        {"ticket": "70 ± 2", "minus dense": "> 0"}, "About 70, with the spread that Table 1 gives an MLP."),
    "lottery.flip": Claim("lottery_tickets", "the ticket transfers to flipped data", "P, Figure 4d", "70",
        "test accuracy at 92% sparsity on flipped data, percent; minus dense, points",
        {"ticket": "70 ± 2", "minus dense": "> 0"}, "As on the original data."),
    "lottery.shuffle": Claim("lottery_tickets", "on shuffled data the ticket is worse than the dense network",
        "P, Figure 4e", "Figure 4e", "ticket minus dense on shuffled data, points", "< 0", "Worse means < 0."),
    "lottery.reinit": Claim("lottery_tickets", "the mask with a random initialisation beats the dense network",
        "P, Figure 4f", "Figure 4f", "ticket mask with a random initialisation minus dense, points", "> 0",
        "Beating means > 0."),
    "lottery.adjacent": Claim("lottery_tickets", "tickets keep adjacent first-layer weights more often than chance",
        "P, Figures 4g, S2", "more often", "adjacent pairs over those expected by chance in the same units", "> 1",
        "Chance is 1; in the same units, so that dead units do not count as structure."),
    "dd.mlp_noise": Claim("double_descent", "with 15% label noise the MLP's test error peaks near 50 units, then falls",
        "P, Figure 5b", "50", "hidden units at the peak; fall from there to 300 units, points",
        {"peak": "within 25 to 100", "fall": "> 3"}, "Near 50 is within a factor of two; 3 points are seen by eye."),
    "dd.mlp_clean": Claim("double_descent", "without label noise there is no peak", "P, Figure 5a", "no peak",
        "largest rise above an earlier minimum of the same seed's curve, points; with noise minus without",
        {"rise": "< 1.5", "noise minus clean": "> 0"},
        "A seed's curve rises by chance; 1.5 points is half of what is seen by eye."),
    "dd.cnn_noise": Claim("double_descent", "with 15% label noise the CNN's test error peaks and falls", "P, Figure 5c",
        "Figure 5c", "rise to the peak; fall after it, points", {"rise": "> 0", "fall": "> 2"},
        "A peak has two sides."),
    "dd.cnn_threshold": Claim("double_descent", "the CNN peaks at the same number of parameters as the MLP",
        "V1, Section 4", "the same", "parameters at the CNN's peak over those at the MLP's", "within 0.67 to 1.5",
        "Half a step to either side of a grid of widths that double."),
    "dd.cnn_less": Claim("double_descent", "the CNN's peak is less pronounced than the MLP's", "V1, Section 4", "less",
        "rise of the MLP minus rise of the CNN, points", "> 0", "Less means > 0."),
    "dd.loss": Claim("double_descent",
        "the threshold lies at n K parameters with squared error, at n with cross-entropy", "V1, Section 4", "n K; n",
        "parameters at the interpolation threshold over the prediction",
        _each("within 0.5 to 2", "cross-entropy", "squared error"),
        "A factor of two, where the two predictions differ by a factor of ten."),
    "lr.converge": Claim("metalearn_lr", "the learning rate converges to 0.62 from above and below", "P, Figure 6",
        "0.62", "learning rate after the last outer step, for each start", "0.62 ± 0.03",
        "The last digits of the published number, over initialisations; two published starts and four more.", n=10,
        parts=6),
    "act.gain": Claim("metalearn_activation",
        "the learned activation gains more than 5 points over ReLU, ELU and Swish", "P, Figure 7", "> 5",
        "test accuracy minus that of the best of the three, points",
        _each("> 5", "at the meta rate", "every rate tuned"), "As published; tuned rates are the fair comparison."),
    "act.shape": Claim("metalearn_activation", "it is non-monotonic with two local extrema", "P, Figure 7", "2",
        "share of the meta-seeds with exactly two extrema on [-5, 5], percent", "share > 50",
        "What most seeds learn is what is typical.", n=10),  # five of five have an interval from 48
    "act.transfer": Claim("activation_transfer",
        "in CNNs on MNIST and CIFAR-10: low early training loss, middling final test loss", "V1, Section 4",
        "low; middle", "rank among seven activations (1 is lowest): early training, final test loss",
        {"MNIST early": "within 1 to 3", "MNIST final": "within 3 to 5", "CIFAR-10 early": "within 1 to 3",
         "CIFAR-10 final": "within 3 to 5"}, "The lower and the middle three of seven."),
    "ssl.linear": Claim("simclr", "linear probe: 82% before the projection head, 33% in pixel space", "P, Figure 8",
        "82; 33", "linear probe, test accuracy, percent", {"before the head": "82 ± 2", "pixel space": "33 ± 2"},
        "The spread that Table 1 gives a network.", n=10),
    "ssl.guillotine": Claim("simclr",
        "accuracy peaks at an inner layer and falls at the output, with any projection head", "P, Figure 8", "Figure 8",
        "seeds with the peak inside, percent; fall from peak to output, points",
        {f"{head}, {part}": bound for head in ("default", "deep", "none") for part, bound in (("inside", "share > 50"),
         ("fall", "> 3"))}, "An inner peak in most seeds; 3 points are more than a seed's noise.", n=10),
    "ssl.heads": Claim("simclr", "the three projection heads reach similar best accuracy", "P, Figure 8", "similar",
        "difference of best accuracies, points",
        _each("within -3 to 3", "default - deep", "default - none", "deep - none"),
        "Less than the fall that the figure is about.", n=10),
    "ssl.clusters": Claim("simclr", "0, 3, 6 and 8 are isolated clusters", "P, Figure 8", "0, 3, 6, 8",
        "10-NN purity minus that in the embedding of the raw signals; minus the largest of 1, 2, 4, 5, 7, 9, points",
        {f"{digit}, {part}": "> 0" for digit in (0, 3, 6, 8) for part in ("gain", "separation")},
        "Learned: more than the raw signals show; isolated: purer than the other six digits.", n=10),
    "pool.low": Claim("pooling", "pooling helps in the low-data regime", "P, Figure 9", "Figure 9",
        "pooled minus not pooled at 1,000 examples, points", _each("> 10", "max", "average", "L2"),
        "About half of the published gap.", n=10),
    "pool.high": Claim("pooling", "pooling hinders in the high-data regime", "P, Figure 9, caption", "Figure 9",
        "pooled minus not pooled at 50,000 examples, points", _each("< 0", "max", "average", "L2"),
        "Hindering means < 0.", n=10),
    "pool.shrink": Claim("pooling", "the difference vanishes with data", "P, Section 5.6", "vanishes",
        "pooled minus not pooled at 50,000 examples, points", _each("within -3 to 3", "max", "average", "L2"),
        "Small against the difference at 1,000 examples.", n=10),
    "pool.stride": Claim("pooling", "striding does not help in the low-data regime", "P, Figure 9", "Figure 9",
        "strided minus not pooled at 1,000 examples, points", "< 2", "A fifth of what helping means above.", n=10),
    "pool.max_l2": Claim("pooling", "max pooling does worse than L2 pooling with much data", "V1, Section 4; B",
        "worse", "max minus L2 at 50,000 examples, points", "< 0", "Worse means < 0.", n=10),
    "sub.table": Claim("random_subspaces", "the MNIST CNN trained in fewer dimensions", "S, Table",
        "99.0; 98.8, 97.0, 93.5", "test accuracy, percent, by dimension",
        {"21840": "99.0 ± 0.5", "10000": "98.8 ± 0.5", "3000": "97.0 ± 1", "1000": "93.5 ± 1.5"},
        "Wider where the curve against dimension is steeper."),
    "sub.lite": Claim("random_subspaces", "small networks on MNIST, by parameter count", "S, Table MNIST lite",
        "94.5, 96.5; 95.6, 97.6", "test accuracy, percent, by exact parameter count",
        {"FC 12730": "> 93.5", "FC 25450": "> 95.5", "CNN 3369": "> 94.6", "CNN 10754": "> 96.6"},
        "Within one point of the published value, or better."),
    "sub.half": Claim("random_subspaces", "halving the dimensions of the CNN costs 0.2 points", "S, Table", "0.2",
        "accuracy in 21,840 minus in 10,000 dimensions, points", "0.2 ± 0.2",
        "Twice the rounding of two published values."),
    "sub.beats_small": Claim("random_subspaces",
        "10,000 dimensions of a large CNN beat a small CNN of 10,754 parameters", "S, Table", "98.8 against 97.6",
        "difference, points", "> 0", "Beating means > 0."),
    "sub.curve": Claim("random_subspaces", "FC network and CNN learn at nearly the same pace in equal dimensions",
        "S, Figures", "nearly identical",
        "mean distance of the curves over training at each dimension from 3 to 1,000, points", "< 5",
        "Half of the ten points by which the published curves differ at 30 dimensions.", parts=4),
}
# fmt: on


def read_bound(bound: str) -> tuple[str, float, float, str]:
    """A bound as (kind, low, high, interval): the range in which it holds, and what its interval is made of.

    `kind` is "band", "bound", "equivalence" or "exact"; `interval` "t", "share" or "bootstrap".
    """
    x = r"(-?\d[\d.]*)"
    match = re.fullmatch(rf"(share |bootstrap )?(?:{x} (±) {x}|(within) {x} to {x}|([<>=]) {x})", bound)
    if not match:
        raise ValueError(f"bound={bound!r}: must read like 68 ± 2, > 0, within -3 to 3 or = 4")
    made_of, *rest = match.groups()
    sign = next(word for word in rest if word in ("±", "within", "<", ">", "="))
    a, b, *_ = [float(word) for word in rest if word and word != sign] * 2
    kind, low, high = {"±": ("band", a - b, a + b), "within": ("equivalence", a, b), "=": ("exact", a, a),
                       ">": ("bound", a, math.inf), "<": ("bound", -math.inf, a)}[sign]  # fmt: skip
    return kind, low, high, (made_of or "t").strip()


def decide(bound: str, interval: Sequence[float] | None) -> str:
    """Whether a part "holds", "fails" or is "undecided", from its 95% interval (low, high), or None."""
    kind, low, high, _ = read_bound(bound)
    if interval is None:
        return "undecided"
    left, right = interval
    if kind == "bound":
        inside, outside = left > low and right < high, right <= low or left >= high
    else:
        inside, outside = left >= low and right <= high, right < low or left > high
    if kind == "band":  # the last digit of a subtraction must not decide
        inside = not outside and right - left <= (high - low) * (1 + 1e-9)
    return "holds" if inside else "fails" if outside else "undecided"


def confidence_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """The t-interval of a mean over seeds: (mean, low, high). One value alone has no interval: NaN.

    Parameters
    ----------
    values : array, shape (seed,)
    level : float
        Between 0 and 1.

    Returns
    -------
    tuple of float

    Raises
    ------
    ValueError
        If `level` lies outside, or there is no value, or one of another type or under a mask; NaN gives NaN.
    """
    require(isinstance(level, numbers.Real) and 0 < level < 1, "level", level, "a number between 0 and 1")
    good = np.ndim(values) == 1 and len(values) > 0 and np.asarray(values).dtype.kind in "biuf"
    require(good and not np.ma.is_masked(values), "values", values, "one number for each seed")
    values = np.asarray(values, dtype=float)
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return mean, math.nan, math.nan
    half = float(special.stdtrit(n - 1, (1 + level) / 2) * np.std(values, ddof=1)) / math.sqrt(n)
    return mean, mean - half, mean + half


def format_interval(values: ArrayLike, form: str = ".1f") -> str:
    """The mean and its 95% interval as text: "9.1 [8.6, 9.6]"."""
    mean, low, high = confidence_interval(values)
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def measure(bound: str, values: np.ndarray, fewest: int = 5) -> dict:
    """One part: `bound`, `kind`, `mean`, `sd` (None of one value and of a share), `n`, 95% `interval`, `outcome`."""
    kind, _, _, made_of = read_bound(bound)
    n, mean, sd, interval = values.size, float(values.mean()), None, None
    if made_of == "share":
        from scipy import stats  # takes half a second, which a t-interval does not need

        interval = [100 * p for p in stats.binomtest(int(values.sum()), n).proportion_ci(0.95, "exact")]
        mean *= 100
    elif made_of == "bootstrap":
        sd, interval = float(values.std(ddof=1)), np.quantile(values, [0.025, 0.975]).tolist()
    elif kind == "exact":
        interval = [float(values.min()), float(values.max())]
    elif n > 1:
        sd = float(values.std(ddof=1))
        interval = list(confidence_interval(values)[1:])
    outcome = decide(bound, interval) if kind == "exact" or n >= fewest else "undecided"
    kind = kind if made_of == "t" else made_of
    return {"bound": bound, "kind": kind, "mean": mean, "sd": sd, "n": n, "interval": interval, "outcome": outcome}


def conclude(outcomes: Sequence[str]) -> str:
    """The verdict on a claim from the outcomes of its parts."""
    if "fails" in outcomes:
        return "partly" if "holds" in outcomes else "not reproduced"
    return "undecided" if "undecided" in outcomes else "reproduced"


def judge(claim_id: str, samples: ArrayLike | dict[str, ArrayLike]) -> dict:
    """Judge one claim.

    Parameters
    ----------
    claim_id : str
        A key of `CLAIMS`.
    samples : array, or dict of str to array
        One value per seed (hits as 0 and 1 for a share), of each part where the claim has several.

    Returns
    -------
    dict
        `id`, `statement`, `published`, `criterion`, `verdict`, and `measured`: for each `part` what
        :func:`measure` returns. `parts_differ` where parts are missing or unknown: the claim is undecided then.

    Raises
    ------
    ValueError
        If the claim is unknown or cannot be measured, or a sample is empty or bad.
    """
    if claim_id not in CLAIMS or not CLAIMS[claim_id].bound:
        raise ValueError(f"claim_id={claim_id!r}: must be one of {sorted(c for c in CLAIMS if CLAIMS[c].bound)}")
    claim = CLAIMS[claim_id]
    if isinstance(claim.bound, dict) and not isinstance(samples, dict):
        raise ValueError(f"samples={samples!r}: {claim_id} has parts, must be a dict of {sorted(claim.bound)}")
    samples = samples if isinstance(samples, dict) else {"": samples}
    differ = isinstance(claim.bound, dict) and samples.keys() != claim.bound.keys()
    if differ:  # a model was added or left out: what is left is shown
        samples = {part: samples[part] for part in claim.bound if part in samples}
    require(samples or differ, "samples", samples, "of one part or more")
    measured = []
    for part, values in samples.items():
        is_whole = not np.ma.is_masked(values) and np.asarray(values).dtype.kind in "biuf"
        values = np.atleast_1d(np.asarray(values, dtype=float) if is_whole else np.nan)
        bound = claim.bound[part] if isinstance(claim.bound, dict) else claim.bound
        if values.ndim != 1 or not values.size or not np.isfinite(values).all():
            raise ValueError(f"samples: {claim_id} {part!r} is {values}; must be one or more finite numbers in a row")
        if bound.startswith("share") and not np.isin(values, (0, 1)).all():
            raise ValueError(f"samples: {claim_id} {part!r} is {values}; must be 0 or 1, a share's misses and hits")
        measured.append({"part": part, **measure(bound, values, claim.n)})
    decided = not differ and len(measured) >= claim.parts
    verdict = conclude([m["outcome"] for m in measured]) if decided else "undecided"
    about = {name: getattr(claim, name) for name in ("statement", "published", "criterion")}
    return {"id": claim_id, **about, "verdict": verdict, "measured": measured, "parts_differ": differ}


def to_json(value: Any) -> Any:
    """Arrays, tensors and ranges as lists, floats with six significant digits, functions by name.

    What is no finite number, or lies under a mask, becomes None. A ValueError names what else there is.
    """
    if isinstance(value, dict):
        require(len({*map(str, value)}) == len(value), "keys", [*value], "different as texts")
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, np.ma.MaskedArray):
        return to_json(value.tolist())
    if isinstance(value, (list, tuple, range)) or (isinstance(value, np.ndarray) and value.ndim):
        return [to_json(v) for v in value]
    if hasattr(value, "detach"):
        value = value.detach().cpu().to_dense()
        return to_json((value.double() if value.is_floating_point() else value).numpy())
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, partial):
        return [to_json(value.func), to_json(value.args), to_json(value.keywords)]
    value = getattr(value, "__name__", value) if callable(value) else value
    is_known = value is None or isinstance(value, (bool, int, str))
    require(is_known, "numbers", value, "numbers, texts, arrays, functions, or dicts and lists of such")
    return value


def digest_cell(source: str) -> str:
    """SHA-256 of a cell, without what the runner adds for other seeds and Colab's form changes: 16 digits."""
    source = re.sub(r'^PROFILE = "\w*"  # @param.*$', "", source.replace(settings.SHIFT, ""), flags=re.MULTILINE)
    return hashlib.sha256(source.strip().encode()).hexdigest()[:16]


def no_verdict(slug: str) -> str:
    """Why this run of a notebook records no verdict, or "".

    Verdicts belong to the profile `paper`, the parameters of the published run (`published.json`, compared with
    the notebook's namespace; seeds are all shifted by MNIST1D_SEED_OFFSET), the published cells alone, as far as the
    kernel remembers what it ran (`published_cells.json`), and the frozen dataset.
    """
    if settings.profile() != "paper":
        return f"the {settings.profile()} profile: no verdict"
    offset = settings.seed_offset()
    published = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    if slug not in published:
        return "there is no published run: no verdict"
    namespace = vars(sys.modules["__main__"])  # of the kernel

    def is_changed(name, value):
        if settings.is_seed(name, value):
            value = [seed + offset for seed in value] if isinstance(value, list) else value + offset
        return to_json(namespace.get(name)) != value

    if changed := [name for name, value in published[slug].items() if is_changed(name, value)]:
        return f"parameters differ from the published run ({', '.join(changed)}): no verdict"
    known = json.loads(Path(__file__).with_name("published_cells.json").read_text(encoding="utf-8"))[slug]
    ran = [source for source in namespace.get("In", []) if source.strip()]
    if others := [source for source in ran if digest_cell(source) not in known]:
        first = others[0].strip().splitlines()[0]
        return f"cells differ from the published run ({first!r}; restart to forget them): no verdict"
    return "" if data.verify() else "data differ from the published run: no verdict"


def format_measured(part: dict) -> str:
    """One measured part as text: "CNN 94.2 [93.1, 95.3], n = 6". The interval decides the decimals."""
    mean, interval = part["mean"], part["interval"]
    if interval is None or part["kind"] == "exact":
        text = f"{mean:,.0f}" if mean == round(mean) else f"{mean:.3g}"
    else:
        half = (interval[1] - interval[0]) / 2
        decimals = min(5, max(0, 1 - math.floor(math.log10(half)))) if half > 1e-12 else 2
        text = f"{mean:.{decimals}f} [{interval[0]:.{decimals}f}, {interval[1]:.{decimals}f}]"
    n = f"{part['n']:,d} resamples" if part["kind"] == "bootstrap" else f"n = {part['n']}"
    return f"{part['part']} {text}, {n}".strip()


class Verdicts(list):
    """Judged claims; a notebook shows them as a table, without verdicts where :func:`no_verdict` has a reason."""

    def _repr_markdown_(self):
        if not self:
            return "No published claims."
        reason = no_verdict(CLAIMS[self[0]["id"]].slug)
        rows = [f"**{reason[0].upper()}{reason[1:]}.**\n"] if reason else []
        rows += ["| claim | published | measured, mean [95% interval] | criterion | verdict |", "|---|---|---|---|---|"]
        for c in self:
            measured = [format_measured(m) + ("" if reason else f" {SYMBOLS[m['outcome']]}") for m in c["measured"]]
            verdict = "-" if reason else f"**{c['verdict']}**"
            cells = f"{c['id']}: {c['statement']}", c["published"], "<br>".join(measured), c["criterion"], verdict
            rows.append(f"| {' | '.join(cells)} |")
        return "\n".join(rows)

    __repr__ = _repr_markdown_
