"""The exact published search for lottery tickets, one seed: 99 rounds of 1500 steps, layer by layer, a point a round.

Ticket and random mask are rows of one stack. What is finished is kept in `build/lottery_control.pt`, so that an
interrupted run goes on from its last round. Writes `figures/lottery_control.json` and `.png`.
"""

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from mnist1d import make_dataset, reorder
from mnist1d.figures import COLORS, DOUBLE, STYLE, label_panels
from mnist1d.results import code_digest, read_processor, read_versions, to_json, write_json
from mnist1d.settings import get_device
from mnist1d.training import Stack, accuracy, batches, split_tensors
from mnist1d.utils import open_for_rename
from notebooks import load_definitions

ROOT = Path(__file__).resolve().parent.parent
SCOPE = [[f"linear{i}.weight", f"linear{i}.bias"] for i in (1, 2, 3)]  # a layer's weights and biases compete
MASKS = ("ticket", "random", "dense")
ORDERS = {
    "original": np.arange(40),
    "flipped": np.arange(40)[::-1],
    "shuffled": np.random.default_rng(0).permutation(40),
}


def train_round(nb, initial, masks, data, steps, prune_after):
    """Train ticket and random mask; their parameters after `prune_after` steps, and test accuracy at the end."""
    x, y = split_tensors(data, "", 2, get_device())
    state, rate = nb["join"](initial, masks), nb["LEARNING_RATE"]
    models = Stack(nb["MaskedMLP"], range(2), state=state, learning_rate=rate, device=get_device())
    for step, batch in enumerate(batches(x, y, 2, steps=steps, batch_size=nb["BATCH_SIZE"])):
        if step == prune_after:
            final = {name: param.detach().clone() for name, param in models.params.items()}
        models.backward(*batch)
        models.step()
    x, y = split_tensors(data, "_test", 2, get_device())
    return final, accuracy(models.evaluate(lambda model, x: model(x), x), y).tolist()


def prune_both(nb, final, masks, density, seed):
    """The next masks: by magnitude in the first row, at random in the second."""
    criteria = (lambda initial, final, gradient: final.abs(), lambda initial, final, gradient: torch.rand_like(final))
    rows = []
    for i, criterion in enumerate(criteria):
        values, own = ({name: v[i : i + 1] for name, v in given.items()} for given in (final, masks))
        rows.append(nb["prune_rows"](criterion, values, values, values, own, density, SCOPE, [seed]))
    return {name: torch.cat([row[name] for row in rows]) for name in masks}


def search(nb, seed, rounds, steps, prune_after, kept):
    """All rounds; the accuracies [round][ticket, random], percent, and the masks at 92% sparsity."""
    weights, ones = nb["draw_weights"]([seed])
    initial, masks = (
        {name: v.repeat(2, *[1] * (v.ndim - 1)) for name, v in given.items()} for given in (weights, ones)
    )
    code, device = code_digest("lottery_tickets", ROOT), str(get_device())
    settings = [seed, rounds, steps, prune_after, nb["HIDDEN"], nb["LEARNING_RATE"], nb["BATCH_SIZE"], code, device]
    state = torch.load(kept) if kept.is_file() else {}
    if state.get("settings") != settings:
        state = {"settings": settings, "acc": [], "masks": masks, "seconds": 0.0}
    data = make_dataset()
    for k in range(len(state["acc"]), rounds):
        started = time.perf_counter()
        final, acc = train_round(nb, initial, state["masks"], data, steps, prune_after)
        state["acc"].append(acc)
        if k == min(92, rounds - 1):
            state["ticket"] = state["masks"]
        state["masks"] = prune_both(nb, final, state["masks"], max(0.0, 1 - (k + 1) / 100), seed)
        state["seconds"] += time.perf_counter() - started
        with open_for_rename(kept) as file:
            torch.save(state, file)
        print(f"{k}% sparse: ticket {acc[0]:.1f}%, random {acc[1]:.1f}%", flush=True)
    return state


def train_curves(nb, seed, masks, steps, batch_size):
    """Test accuracy [order][mask][eval] with fresh data and new weights."""
    new, ones = nb["draw_weights"]([10_000 + seed])
    fresh = make_dataset({"seed": nb["FRESH_SEED"]})
    weights = {name: weight.repeat(3, *[1] * (weight.ndim - 1)) for name, weight in new.items()}
    masks = {name: torch.cat([mask, ones[name]]) for name, mask in masks.items()}
    curves = {}
    for name, order in ORDERS.items():
        data = [reorder(fresh, order)] * len(MASKS)
        _, history = nb["train_rows"](weights, masks, data, steps, batch_size, nb["EVAL_EVERY"])
        curves[name] = dict(zip(MASKS, history["test_acc"].tolist(), strict=True))
    return curves


def draw(acc, curves, every):
    """Accuracy against sparsity, and the curves at 92%."""
    plt.rcParams.update(STYLE)
    fig, axes = plt.subplots(1, 4, figsize=(DOUBLE, 2))
    for i, name in enumerate(MASKS[:2]):
        axes[0].plot(np.arange(len(acc)), np.array(acc)[:, i], color=COLORS[name], label=name)
    axes[0].axhline(acc[0][0], color=COLORS["dense"], linestyle="--", label="dense")
    axes[0].set(xlabel="sparsity (%)", ylabel="test accuracy (%)")
    axes[0].legend()
    for ax, (order, rows) in zip(axes[1:], curves.items(), strict=True):
        for name, values in rows.items():
            ax.plot(np.arange(1, len(values)) * every, values[1:], color=COLORS[name], label=f"{name} {values[-1]:.1f}")
        ax.set(title=order, xlabel="step")
        ax.legend(loc="lower right")
    label_panels(axes)
    return fig


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("seed", 0), ("rounds", 99), ("steps", 1500), ("prune-after", 1000), ("curve-steps", 6000),
                        ("curve-batch", 500), ("hidden", 500)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--output", type=Path, default=ROOT / "figures")
    parser.add_argument("--kept", type=Path, default=ROOT / "build" / "lottery_control.pt")
    a = parser.parse_args(arguments)
    if not 0 < a.prune_after < a.steps:
        raise ValueError(f"prune_after={a.prune_after}: must lie between 0 and {a.steps} steps")
    torch.set_num_threads(1)
    nb = load_definitions("lottery_tickets", HIDDEN=a.hidden, EVAL_EVERY=100)
    state = search(nb, a.seed, a.rounds, a.steps, a.prune_after, a.kept)
    curves = train_curves(nb, a.seed, state["ticket"], a.curve_steps, a.curve_batch)
    results = {
        "settings": {k: v for k, v in vars(a).items() if isinstance(v, int)},
        "code": code_digest("lottery_tickets", ROOT),
        "versions": read_versions(),
        "processor": read_processor(),
        "acc": state["acc"],  # [round][ticket, random], percent
        "search_seconds": round(state["seconds"]),
        "curves": curves,  # [order][mask][eval], percent
    }
    write_json(a.output / "lottery_control.json", to_json(results))
    with open_for_rename(a.output / "lottery_control.png") as file:
        draw(state["acc"], curves, 100).savefig(file, format="png", metadata={"Software": None})


if __name__ == "__main__":
    main()
