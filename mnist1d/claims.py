"""Every published claim with its number and criterion.

A claim is judged on samples, one array per part, a value per seed: a part holds when the mean of its
samples lies within its bound. All parts: reproduced; some: partly; none: not reproduced.

Sources: [P] Scaling Down Deep Learning with MNIST-1D, ICML 2024; [V1] its first version, 2020;
[S] Training Networks in Random Subspaces, 2017.
"""

import math
import operator
import re
from dataclasses import dataclass

import numpy as np

from mnist1d import settings

__all__ = ["CLAIMS", "Claim", "Verdicts", "holds", "judge"]


@dataclass(frozen=True)
class Claim:
    """One published claim.

    Attributes
    ----------
    slug : str
        Its notebook.
    statement, published, source : str
    measure : str
        What is measured, with its unit.
    bound : str or dict of str to str
        "92 to 96", ">= 30", "< 0.01", "= 4": for every part alike, or one per part.
    """

    slug: str
    statement: str
    published: str
    source: str
    measure: str
    bound: str | dict

    @property
    def criterion(self):
        """The criterion in words, made from the bound that decides it."""
        if isinstance(self.bound, str):
            return f"{self.measure}: {self.bound}"
        return f"{self.measure}: " + ", ".join(f"{part} {bound}" for part, bound in self.bound.items())


CLAIMS = {
    "dataset.frozen": Claim(
        "construction", "default arguments give the frozen dataset", "4000 + 1000 samples", "P",
        "arrays (x, x_test, y, y_test) equal to the frozen ones", "= 4",
    ),
    "dataset.defaults": Claim(
        "construction", "the defaults are those of Table 2; 10,000 samples on request", "Table 2; 10,000", "P",
        "values that differ from the table; samples returned", {"different defaults": "= 0", "samples": "= 10000"},
    ),
    "bench.logistic": Claim(
        "benchmarks", "test accuracy of logistic regression", "32 ± 1", "P", "test accuracy, percent", "31 to 33",
    ),
    "bench.mlp": Claim("benchmarks", "test accuracy of the MLP", "68 ± 2", "P", "test accuracy, percent", "66 to 70"),
    "bench.cnn": Claim("benchmarks", "test accuracy of the CNN", "94 ± 2", "P", "test accuracy, percent", "92 to 96"),
    "bench.gru": Claim("benchmarks", "test accuracy of the GRU", "91 ± 2", "P", "test accuracy, percent", "89 to 93"),
    "bench.order": Claim(
        "benchmarks", "CNN > GRU > MLP > logistic", "94, 91, 68, 32", "P",
        "gap between neighbours over their pooled standard deviation", "> 1",
    ),
    "bench.fit": Claim(
        "benchmarks", "all but logistic regression fit the training set", "100", "P",
        "training accuracy, percent", ">= 99.5",
    ),
    "bench.mnist": Claim(
        "benchmarks", "on MNIST the four models are hard to tell apart", "94 ± 0.5, > 99, > 99, > 99", "P",
        "test accuracy on MNIST, percent", {"logistic": "93.5 to 94.5", "MLP": "> 99", "CNN": "> 99", "GRU": "> 99"},
    ),
    "bench.human": Claim(
        "benchmarks", "a human reaches 96%", "96 ± 1", "P", "right answers, percent of unique questions", "95 to 97",
    ),
    "bench.classwise": Claim(
        "benchmarks", "the CNN errs most on 2 and 7, never on 3 and 6", "Figure S1", "P",
        "rank of the digit by error (1 is worst); error, percent",
        {"rank of 2": "<= 3", "rank of 7": "<= 3", "error on 3": "< 2", "error on 6": "< 2"},
    ),
    "shuffle.acc": Claim(
        "shuffling", "test accuracy on shuffled data", "32 ± 1, 68 ± 2, 56 ± 2, 57 ± 2", "P", "test accuracy, percent",
        {"logistic": "31 to 33", "MLP": "66 to 70", "CNN": "54 to 58", "GRU": "55 to 59"},
    ),
    "shuffle.drop": Claim(
        "shuffling", "shuffling costs CNN and GRU about 35 points, logistic and MLP nothing", "about 35; 0", "P",
        "accuracy on plain minus on shuffled data, points",
        {"CNN": ">= 30", "GRU": ">= 30", "MLP": "-2 to 2", "logistic": "-2 to 2"},
    ),
    "shuffle.mlp_best": Claim(
        "shuffling", "the MLP is best on shuffled data", "68 against 57, 56, 32", "P",
        "MLP minus each other model on shuffled data, points", "> 0",
    ),
    "tsne.mnist": Claim(
        "tsne", "MNIST falls into ten clusters in the plane", "Figure 3", "P",
        "10-NN accuracy in the plane, percent", "> 90",
    ),
    "tsne.mnist1d": Claim(
        "tsne", "MNIST-1D has no such clusters", "Figure 3", "P", "10-NN accuracy in the plane, percent", "< 60",
    ),
    "lottery.beats_random": Claim(
        "lottery_tickets", "tickets beat random subnetworks at equal sparsity", "Figure 4a", "P",
        "ticket minus random at each sparsity from 0.8 to 0.97, points", "> 0",
    ),
    "lottery.sparse": Claim(
        "lottery_tickets", "above 95% sparsity tickets still beat the dense network", "Figure 4a", "P",
        "ticket minus dense above 95% sparsity, points; p of the one-sided paired t-test",
        {"difference": "> 0", "p": "< 0.05"},
    ),
    "lottery.70": Claim(
        "lottery_tickets", "a 92% sparse ticket reaches about 70% and beats the dense network", "70", "P",
        "test accuracy at 92% sparsity, percent; minus dense, points", {"ticket": "68 to 72", "minus dense": "> 0"},
    ),
    "lottery.flip": Claim(
        "lottery_tickets", "the ticket transfers to flipped data", "70", "P",
        "test accuracy at 92% sparsity on flipped data, percent; minus dense, points",
        {"ticket": "68 to 72", "minus dense": "> 0"},
    ),
    "lottery.shuffle": Claim(
        "lottery_tickets", "on shuffled data the ticket is worse than the dense network", "Figure 4e", "P",
        "ticket minus dense on shuffled data, points", "< 0",
    ),
    "lottery.reinit": Claim(
        "lottery_tickets", "the mask with new random weights beats the dense network", "Figure 4f", "P",
        "ticket mask with new weights minus dense, points", "> 0",
    ),
    "lottery.adjacent": Claim(
        "lottery_tickets", "tickets keep adjacent first-layer weights more often than chance", "Figures 4g, S2", "P",
        "p of the one-sided paired t-test against random masks of the same density", "< 0.01",
    ),
    "dd.mlp_noise": Claim(
        "double_descent", "with 15% label noise the MLP's test error peaks near 50 units, then falls", "Figure 5b",
        "P",
        "hidden units at the interior maximum; fall from there to 300 units, points",
        {"peak": "25 to 100", "fall": ">= 3"},
    ),
    "dd.mlp_clean": Claim(
        "double_descent", "without label noise there is no peak", "Figure 5a", "P",
        "largest rise of the mean test error above an earlier minimum, points", "<= 1.5",
    ),
    "dd.cnn_noise": Claim(
        "double_descent", "with 15% label noise the CNN's test error peaks and falls", "Figure 5c", "P",
        "rise to the interior maximum; fall after it, points", {"rise": "> 0", "fall": ">= 2"},
    ),
    "dd.loss": Claim(
        "double_descent", "the threshold lies at n*K parameters with squared error, at n with cross-entropy", "n K; n",
        "V1",
        "parameters where the training error first reaches zero, over the prediction", "0.5 to 2",
    ),
    "lr.converge": Claim(
        "metalearn_lr", "the learning rate converges to 0.62 from above and below", "0.62", "P",
        "learning rate after the last outer step, for each start", "0.59 to 0.65",
    ),
    "act.gain": Claim(
        "metalearn_activation", "the learned activation gains more than 5 points over ReLU, ELU and Swish", "> 5", "P",
        "test accuracy minus that of the best of the three, points", ">= 5",
    ),
    "act.shape": Claim(
        "metalearn_activation", "it is non-monotonic with two local extrema", "2", "P",
        "share of the meta-seeds with exactly two extrema on [-5, 5]", "> 0.5",
    ),
    "act.transfer": Claim(
        "metalearn_activation", "in CNNs on MNIST and CIFAR-10: low early training loss, middling final test loss",
        "low; middle", "V1", "rank among seven activations (1 is lowest): early training loss, final test loss",
        {"MNIST early": "<= 3", "MNIST final": "3 to 5", "CIFAR-10 early": "<= 3", "CIFAR-10 final": "3 to 5"},
    ),
    "ssl.linear": Claim(
        "simclr", "82% linear accuracy before the projection head, 33% in pixel space", "82; 33", "P",
        "linear test accuracy, percent", {"before the head": "80 to 84", "pixel space": "31 to 35"},
    ),
    "ssl.guillotine": Claim(
        "simclr", "accuracy peaks at an inner layer and falls at the output, with any projection head", "Figure 8", "P",
        "layers between the peak and either end; fall from peak to output, points",
        {
            f"{head}, {part}": bound
            for head in ("default", "deep", "none")
            for part, bound in (("inside", ">= 1"), ("fall", ">= 3"))
        },
    ),
    "ssl.heads": Claim(
        "simclr", "the three projection heads reach similar best accuracy", "similar", "P",
        "largest minus smallest best accuracy, points", "<= 3",
    ),
    "ssl.clusters": Claim(
        "simclr", "0, 3, 6 and 8 are isolated clusters", "0, 3, 6, 8", "P",
        "10-NN purity of the digit minus the largest of 1, 2, 4, 5, 7, 9, points", "> 0",
    ),
    "pool.low": Claim(
        "pooling", "pooling helps in the low-data regime", "Figure 9", "P",
        "pooled minus not pooled at 1,000 examples, points", ">= 10",
    ),
    "pool.high": Claim(
        "pooling", "pooling hinders in the high-data regime", "Figure 9", "P",
        "pooled minus not pooled at 50,000 examples, points", "< 0",
    ),
    "pool.shrink": Claim(
        "pooling", "the difference vanishes with data", "Figure 9", "P",
        "absolute gap at 50,000 examples, points", "<= 3",
    ),
    "pool.stride": Claim(
        "pooling", "striding does not help in the low-data regime", "Figure 9", "P",
        "strided minus not pooled at 1,000 examples, points", "<= 2",
    ),
    "sub.table": Claim(
        "random_subspaces", "the MNIST CNN trained in fewer dimensions", "99.0; 98.8, 97.0, 93.5", "S",
        "test accuracy, percent, by dimension",
        {"21840": "98.5 to 99.5", "10000": "98.3 to 99.3", "3000": "96 to 98", "1000": "92 to 95"},
    ),
    "sub.lite": Claim(
        "random_subspaces", "small networks on MNIST, by parameter count", "94.5, 96.5; 95.6, 97.6", "S",
        "test accuracy, percent, by exact parameter count",
        {"FC 12730": ">= 93.5", "FC 25450": ">= 95.5", "CNN 3369": ">= 94.6", "CNN 10754": ">= 96.6"},
    ),
    "sub.curve": Claim(
        "random_subspaces", "accuracy against dimension is nearly alike for FC network and CNN", "alike", "S",
        "largest difference between the curves from 3 to 1,000 dimensions, points", "<= 5",
    ),
}  # fmt: skip

_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "=": operator.eq}


def holds(bound, value):
    """Whether a value meets a bound such as "92 to 96", ">= 30" or "= 4"."""
    if between := re.fullmatch(r"(-?[\d.]+) to (-?[\d.]+)", bound):
        low, high = map(float, between.groups())
        return low <= value <= high
    sign, number = re.fullmatch(r"(>=|<=|>|<|=) (-?[\d.]+)", bound).groups()
    return _COMPARE[sign](value, float(number))


def judge(claim_id, samples):
    """Judge one claim.

    Parameters
    ----------
    claim_id : str
        A key of `CLAIMS`.
    samples : array, or dict of str to array
        One value per seed, of each part where the claim has several.

    Returns
    -------
    dict
        `id`, `statement`, `published`, `criterion`, `verdict`, and `measured`: for each part its name,
        `bound`, `mean`, `sd` (None for one value), `n`, `holds`.

    Raises
    ------
    ValueError
        If the claim is unknown, a part is missing or unknown, or a sample is empty or not finite.
    """
    if claim_id not in CLAIMS:
        raise ValueError(f"claim_id={claim_id!r}: must be one of {sorted(CLAIMS)}")
    claim = CLAIMS[claim_id]
    samples = samples if isinstance(samples, dict) else {"": samples}
    if isinstance(claim.bound, dict) and samples.keys() != claim.bound.keys():
        raise ValueError(f"samples: {claim_id} has parts {list(samples)}; must be {list(claim.bound)}")
    measured = []
    for part, values in samples.items():
        values = np.atleast_1d(np.asarray(values, dtype=float))
        if not values.size or not np.isfinite(values).all():
            raise ValueError(f"samples: {claim_id} {part!r} is {values}; must be finite numbers, at least one")
        bound = claim.bound[part] if isinstance(claim.bound, dict) else claim.bound
        mean = float(values.mean())
        sd = float(values.std(ddof=1)) if values.size > 1 else None
        measured.append({"part": part, "bound": bound, "mean": mean, "sd": sd, "n": values.size})
        measured[-1]["holds"] = holds(bound, mean)
    met = [m["holds"] for m in measured]
    return {
        "id": claim_id,
        "statement": claim.statement,
        "published": claim.published,
        "criterion": claim.criterion,
        "verdict": "reproduced" if all(met) else "partly" if any(met) else "not reproduced",
        "measured": measured,
    }


def format_measured(part):
    """One measured part as text: "CNN 94.18 ± 0.97 (n = 6)". Two digits of the spread decide the decimals."""
    mean, sd = part["mean"], part["sd"]
    if sd is None and mean == round(mean):
        text = f"{mean:,.0f}"
    elif sd is None:
        text = f"{mean:.3g}"
    else:
        decimals = min(5, max(0, 1 - math.floor(math.log10(sd)))) if sd else 2
        text = f"{mean:.{decimals}f} ± {sd:.{decimals}f}"
    return f"{part['part']} {text} (n = {part['n']})".strip()


class Verdicts(list):
    """Judged claims; a notebook shows them as a table. The smoke profile shows none."""

    def _repr_markdown_(self):
        if settings.profile() == "smoke":
            return "The smoke profile records no verdicts."
        if not self:
            return "No published claims."
        rows = ["| claim | published | measured, mean ± sd | criterion | verdict |", "|---|---|---|---|---|"]
        for c in self:
            measured = "<br>".join(format_measured(m) + ("" if m["holds"] else " ✗") for m in c["measured"])
            cells = f"{c['id']}: {c['statement']}", c["published"], measured, c["criterion"], f"**{c['verdict']}**"
            rows.append(f"| {' | '.join(cells)} |")
        return "\n".join(rows)
