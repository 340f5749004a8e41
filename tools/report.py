"""Write REPRODUCTION.md, the generated parts of README.md and the forest plot from the committed results files.

Second runs with other seeds, in build/replicate, go to figures/replication.json first.
`--parameters` records the knobs and cells of the notebooks as they stand as those of the published runs.
"""

import argparse
import ast
import json
import os
import re
import sys
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from mnist1d.claims import CLAIMS, SYMBOLS, digest_cell, format_measured, read_bound, to_json
from mnist1d.figures import STYLE
from mnist1d.results import code_digest, write_json
from mnist1d.utils import open_for_rename
from notebooks import load_definitions, read_notebook

ROOT = Path(__file__).resolve().parent.parent

FIGURES = {
    "quickstart": "-",
    "construction": "Figure 1, Table 2",
    "benchmarks": "Figure 2, Table 1, Figure S1",
    "shuffling": "Figure 2, Table 1",
    "tsne": "Figure 3",
    "lottery_tickets": "Figures 4, S2",
    "lottery_biases": "beyond the paper",
    "double_descent": "Figure 5",
    "metalearn_lr": "Figure 6",
    "metalearn_activation": "Figure 7",
    "activation_transfer": "first version, Section 4",
    "simclr": "Figure 8",
    "pooling": "Figure 9",
    "random_subspaces": "random subspaces [S]",
    "compare": "beyond the paper",
    "records": "beyond the paper",
}

# The work behind a published figure, the knobs that say how much of it a seed does here, and the share that this is:
# of training examples or, where sizes differ in cost, of models; of points for t-SNE.
WORK = {
    "benchmarks": ("6000 steps, batch 100", ("STEPS", "BATCH_SIZE"),
                   lambda k: k["STEPS"] * k["BATCH_SIZE"] / (6000 * 100)),
    "shuffling": ("6000 steps, batch 100", ("STEPS", "BATCH_SIZE"),
                  lambda k: k["STEPS"] * k["BATCH_SIZE"] / (6000 * 100)),
    "tsne": ("70,000 and 5,000 points", ("MNIST_POINTS", "POINTS", "ITERATIONS"),
             lambda k: (k["MNIST_POINTS"] + k["POINTS"]) / 75_000),
    "lottery_tickets": ("99 rounds of 1500 steps, batch 100, twice; 15 curves of 6000 steps, batch 500",
                        ("LAST_ROUND", "STEPS", "BATCH_SIZE", "CURVE_STEPS", "CURVE_BATCH", "LARGE_BATCH_STEPS"),
                        lambda k: (2 * k["LAST_ROUND"] * k["STEPS"] * k["BATCH_SIZE"]
                                   + 7 * k["CURVE_STEPS"] * k["CURVE_BATCH"]) / (198 * 1500 * 100 + 15 * 6000 * 500)),
    "double_descent": ("19 widths and 29 channels, 500 epochs", ("MLP_WIDTHS", "CNN_CHANNELS", "EPOCHS"),
                       lambda k: (len(k["MLP_WIDTHS"]) + len(k["CNN_CHANNELS"])) * k["EPOCHS"] / ((19 + 29) * 500)),
    "metalearn_lr": ("2 starts, 50 outer x 200 inner steps", ("STARTS", "OUTER_STEPS", "INNER_STEPS"),
                     lambda k: len(k["STARTS"]) * k["OUTER_STEPS"] * k["INNER_STEPS"] / (2 * 50 * 200)),
    "metalearn_activation": ("301 outer x 301 inner steps", ("OUTER_STEPS", "INNER_STEPS"),
                             lambda k: k["OUTER_STEPS"] * k["INNER_STEPS"] / 301**2),
    "simclr": ("8000 steps, batch 100", ("STEPS", "BATCH_SIZE"),
               lambda k: k["STEPS"] * k["BATCH_SIZE"] / (8000 * 100)),
    "pooling": ("6 sizes, 6000 steps", ("SIZES", "STEPS"), lambda k: len(k["SIZES"]) * k["STEPS"] / (6 * 6000)),
    "random_subspaces": ("10 epochs (curves), 100 (table)", ("CURVE_EPOCHS", "TABLE_EPOCHS", "SMALL_EPOCHS"),
                         lambda k: (k["CURVE_EPOCHS"] + k["TABLE_EPOCHS"]) / 110),
}  # fmt: skip

VERDICTS = {"reproduced": "✓", "partly": "◐", "not reproduced": "✗", "undecided": "?"}
STALE = "measured before the last change of its code"
COLORS = {"holds": "#0072B2", "fails": "#D55E00", "undecided": "#777777"}


def read_repository(root):
    """The one public address, owner/name, as pyproject.toml has it."""
    return re.search(
        r'Repository = "https://github.com/([^"]+)"', (root / "pyproject.toml").read_text(encoding="utf-8")
    )[1]


def read_json(path):
    """What a JSON file holds; {} where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_all(root):
    """The results files, in the order of `FIGURES`: of complete runs in full, with the published seeds."""
    results = {slug: read_json(root / "figures" / f"{slug}.json") for slug in FIGURES}
    for slug, r in results.items():
        if r and (r["profile"] != "paper" or r["no_verdict"] or r["seed_offset"]):
            how = f"profile {r['profile']}, seeds shifted by {r['seed_offset']}; {r['no_verdict']}"
            raise ValueError(
                f"figures/{slug}.json: must be a full run with the published knobs and seeds; it has {how}"
            )
    return {slug: r for slug, r in results.items() if r}


def read_parameters(slug):
    """The knobs of a notebook in the profile `paper`, by name."""
    with mock.patch.dict(os.environ, MNIST1D_PROFILE="paper"):
        namespace = load_definitions(slug)
    (source,) = [source for _, source, tags in read_notebook(slug) if tags == ["parameters"]]
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    names = sorted({node.id for node in nodes if isinstance(node.ctx, ast.Store) and node.id.isupper()} - {"SMOKE"})
    return {name: to_json(namespace[name]) for name in names}


def list_cells(slug):
    """The digests of a notebook's code cells."""
    return [digest_cell(source) for kind, source, _ in read_notebook(slug) if kind == "code"]


def write_parameters(root):
    """Record the knobs of all notebooks in mnist1d/published.json, one line a knob, and what their cells are."""
    with open_for_rename(root / "mnist1d" / "published.json", "w") as file:
        lines = []
        for slug in sorted(FIGURES):
            knobs = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in read_parameters(slug).items()]
            lines.append(f" {json.dumps(slug)}: {{\n" + ",\n".join(knobs) + "\n }")
        file.write("{\n" + ",\n".join(lines) + "\n}\n")
    write_json(root / "mnist1d" / "published_cells.json", {slug: list_cells(slug) for slug in sorted(FIGURES)})


def collect_replication(root):
    """Merge what build/replicate holds into figures/replication.json; True if build/replicate holds anything."""
    target = root / "figures" / "replication.json"
    replication, found = read_json(target), False
    for slug in FIGURES:
        if r := read_json(root / "build" / "replicate" / f"{slug}.json"):
            if not r["seed_offset"] or r["no_verdict"]:
                raise ValueError(f"build/replicate/{slug}.json: must be a run of other seeds; {r['no_verdict']}")
            replication[slug], found = {key: r[key] for key in ("code", "seed_offset", "numbers", "claims")}, True
    first = get_verdicts(read_all(root))
    for slug, r in replication.items():  # verdict by verdict, first seeds and second seeds
        second = get_verdicts({slug: r})
        r["verdicts"] = {i: {"first": first.get(i, "not measured"), "second": verdict} for i, verdict in second.items()}
    if replication:
        write_replication(target, replication)
    return found


def write_replication(path, replication):
    """A line for each notebook: the file stays small, and a diff shows which one has changed."""
    lines = [f"{json.dumps(slug)}: {json.dumps(r, allow_nan=False)}" for slug, r in replication.items()]
    with open_for_rename(path, "w") as file:
        file.write("{\n" + ",\n".join(lines) + "\n}\n")


def get_verdicts(results):
    """The verdict on each judged claim, by id."""
    return {claim["id"]: claim["verdict"] for r in results.values() for claim in r["claims"]}


def count_verdicts(results, replication, stale=()):
    """Two or three sentences on all claims; the results of the slugs in `stale` are of older code."""
    verdicts = get_verdicts(results)
    parts = [f"{list(verdicts.values()).count(verdict)} {verdict}" for verdict in VERDICTS]
    impossible = sum(not claim.bound for claim in CLAIMS.values())
    unmeasured = len(CLAIMS) - len(verdicts) - impossible
    parts += [f"{impossible} that cannot be measured"] * (impossible > 0) + [f"{unmeasured} not yet measured"] * (
        unmeasured > 0
    )
    text = f"{len(CLAIMS)} published claims: {', '.join(parts)}."
    if old := sum(len(results[slug]["claims"]) for slug in stale):
        text += f" Of these {old} were measured before the last change of their code."
    if second := get_verdicts(list_current(replication, results)):
        both = [claim_id for claim_id in verdicts if claim_id in second]
        others = [f"`{i}` from {verdicts[i]} to {second[i]}" for i in both if verdicts[i] != second[i]]
        text += f" {len(both)} of those that depend on seeds were run again with other seeds and today's code,"
        text += f" and {len(both) - len(others)} keep their verdict"
        text += f"; {', '.join(others)}." if others else "."
    return text


def list_current(replication, results):
    """The second runs that are of the code of the first ones, without claims that no seed can change."""
    current = {}
    for slug, r in replication.items():
        if slug in results and is_again(results[slug], r):
            claims = [c for c in r["claims"] if any(m["kind"] != "exact" for m in c["measured"])]
            current[slug] = {**r, "claims": [c for c in claims if CLAIMS[c["id"]].n]}
    return current


def is_again(first, second):
    """Whether a run with other seeds is of the code of the first, or confirmed for it."""
    return any(is_of_code(first, second[key]) for key in ("code", "confirmed") if key in second)


def is_of_code(r, code):
    """Whether results are those of a code: they were made by it, or confirmed for it, now or earlier."""
    confirmed = r.get("confirmed", {})
    return code in (r["code"], confirmed.get("code"), *confirmed.get("earlier", []))


def get_core_minutes(r):
    """The time of a run, in minutes of one core."""
    return r["seconds"] * r["jobs"] / 60


def count_confirmed(results):
    """A sentence on the results that rest on a confirmation."""
    profiles = [r["confirmed"]["profile"] for r in results.values() if r.get("confirmed")]
    counts = [f"{profiles.count(profile)} in the {profile} profile" for profile in sorted(set(profiles))]
    text = f"{', '.join(counts)}" if counts else "none"
    return f"Of the {len(results)} results files these rest on it: {text}."


def is_stale(slug, r, root):
    return not is_of_code(r, code_digest(slug, root))


def format_figures(results, repository, root):
    """The README's table: one row a notebook."""
    rows = ["| figure | notebook | published → measured, first claims | all claims | |", "|---|---|---|---|---|"]
    for slug, r in results.items():
        badge = f"[Colab](https://colab.research.google.com/github/{repository}/blob/main/notebooks/{slug}.ipynb)"
        shown = []
        for claim in r["claims"][:3]:
            part = next((m for m in claim["measured"] if m["outcome"] != "holds"), claim["measured"][0])
            symbol = VERDICTS[claim["verdict"]]
            shown.append(f"{claim['statement']}: {claim['published']} → {format_measured(part)} {symbol}")
        found = {c["id"]: VERDICTS[c["verdict"]] for c in r["claims"]}
        verdicts = "".join(found.get(claim_id, "–") for claim_id, claim in CLAIMS.items() if claim.slug == slug)
        stale = f"<br>*{STALE}*" if is_stale(slug, r, root) else ""
        thumbnail = f'<img src="figures/{slug}.png" width="160" alt="the figure of {slug}">'
        rows.append(
            f"| {FIGURES[slug]} | [{slug}](notebooks/{slug}.ipynb)<br>{badge} | {'<br>'.join(shown)}{stale} "
            f"| {verdicts} | [{thumbnail}](figures/{slug}.png) |"
        )
    return "\n".join(rows)


def format_times(results, parameters, equal_work, stale=()):
    """The README's table of work and time; `equal_work` holds what `tools/equal_work.py` has measured.

    The work of a slug in `stale` is that of older code: its knobs of today are not those of its minutes.
    """
    rows = [
        "| notebook | published work, one seed | a seed here | share of it | seeds | core-minutes "
        "| equal work, plain over ours | one published run, plainly / ours, minutes |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for slug, r in results.items():
        work, knobs, measure_share = WORK.get(slug, ("-", (), None))
        here = []
        for knob in [knob for knob in knobs if knob in parameters[slug]]:
            value = parameters[slug][knob]
            if isinstance(value, list) and len(value) > 3:
                value = f"{len(value)} of {value[0]} to {value[-1]}"
            here.append(f"{knob.lower().replace('_', ' ')} {f'{value:,}' if isinstance(value, int) else value}")
        ratio, minutes = "-", "-"
        if slug in equal_work:
            same = equal_work[slug]
            ratio, minutes = f"{same['ratio']:.1f}", f"{same['plain_minutes']:.2g} / {same['ours_minutes']:.2g}"
        spent = f"{len(r['seeds'])} | {get_core_minutes(r):.1f}"
        done = "of older code" if slug in stale else "; ".join(here) or "-"
        share = f"{100 * measure_share(parameters[slug]):.0f}%" if measure_share and slug not in stale else "-"
        rows.append(f"| {slug} | {work} | {done} | {share} | {spent} | {ratio} | {minutes} |")
    ratios = [equal_work[slug]["ratio"] for slug in results if slug in equal_work]
    mean = f"{np.exp(np.mean(np.log(ratios))):.1f}, geometric mean" if ratios else ""
    total = sum(map(get_core_minutes, results.values()))
    rows.append(f"| all | | | | | {total:.0f} | {mean} | |")
    return "\n".join(rows) + f"\n\nAll of it is {total / 120:.1f} hours on two cores."


def format_p(part):
    """The two-sided p value of a part at its bound, as text: of the t test, of a share that of the binomial test."""
    kind, low, high, made_of = read_bound(part["bound"])
    if kind != "bound" or made_of == "bootstrap" or part["n"] < 2 or (made_of == "t" and not part["sd"]):
        return ""
    bound, n = low if np.isfinite(low) else high, part["n"]
    if made_of == "share":
        p = stats.binomtest(round(part["mean"] * n / 100), n, bound / 100).pvalue
    else:
        p = 2 * stats.t.sf(abs(part["mean"] - bound) / part["sd"] * np.sqrt(n), n - 1)
    return f", p = {p:.1g}" if p >= 1e-6 else ", p < 1e-6"


def format_claims(results, replication, root):
    """REPRODUCTION.md's table: one row a claim."""
    head = ["claim", "published", "measured, mean [95% interval], p", "criterion, and why", "verdict", "notebook"]
    if replication:
        head.insert(5, "other seeds")
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    judged = {claim["id"]: claim for r in results.values() for claim in r["claims"]}
    reasons = {claim_id: reason for r in results.values() for claim_id, reason in r["missing"].items()}
    second = {claim["id"]: claim for r in replication.values() for claim in r["claims"]}
    stale = {slug for slug, r in results.items() if is_stale(slug, r, root)}
    for claim_id, claim in CLAIMS.items():
        if claim_id in judged:
            measured = "<br>".join(
                f"{format_measured(m)}{format_p(m)} {SYMBOLS[m['outcome']]}" for m in judged[claim_id]["measured"]
            )
            measured += f"<br>*{STALE}*" if claim.slug in stale else ""
            verdict = f"**{judged[claim_id]['verdict']}**"
        else:
            measured = reasons.get(claim_id, claim.why)
            verdict = "not measured" if claim.bound else "cannot be measured"
        cells = [
            f"`{claim_id}` {claim.statement} [{claim.source}]",
            claim.published,
            measured,
            f"{claim.criterion}. {claim.why}" if claim.bound else claim.measure,
            verdict,
            f"[{claim.slug}](notebooks/{claim.slug}.ipynb)",
        ]
        if replication:
            again = second.get(claim_id)
            means = "<br>".join(format_measured(m) for m in again["measured"]) if again else ""
            if again and not is_again(results[claim.slug], replication[claim.slug]):
                means += f"<br>*{STALE}*"
            cells.insert(5, f"**{again['verdict']}**<br>{means}" if again else "-")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def replace_block(text, name, content):
    """The text with the lines between two marker comments replaced."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"the marker {begin} or {end} is missing")
    return text[: text.index(begin) + len(begin)] + f"\n{content}\n" + text[text.index(end) :]


def render(root):
    """The two documents as they should stand, by name."""
    results, replication = read_all(root), read_json(root / "figures" / "replication.json")
    parameters = read_json(root / "mnist1d" / "published.json")
    equal_work = read_json(root / "figures" / "equal_work.json")
    readme, reproduction = (
        (root / "README.md").read_text(encoding="utf-8"),
        (root / "REPRODUCTION.md").read_text(encoding="utf-8"),
    )
    stale = [slug for slug, r in results.items() if is_stale(slug, r, root)]
    counts = count_verdicts(results, replication, stale)
    readme = replace_block(readme, "verdicts", counts)
    readme = replace_block(readme, "figures", format_figures(results, read_repository(root), root))
    readme = replace_block(readme, "times", format_times(results, parameters, equal_work, stale))
    reproduction = replace_block(reproduction, "verdicts", counts)
    reproduction = replace_block(reproduction, "confirmed", count_confirmed(results))
    reproduction = replace_block(reproduction, "claims", format_claims(results, replication, root))
    return {"README.md": readme, "REPRODUCTION.md": reproduction}


def draw_part(ax, y, part, published):
    """One row of the forest plot, on an axis of its own: its range of truth, interval, mean and published value."""
    kind, low, high, _ = read_bound(part["bound"])
    left, right = part["interval"] or [part["mean"]] * 2
    ends = [end for end in (low, high, left, right) if np.isfinite(end)]
    pad = 0.2 * (max(ends) - min(ends)) or 1.0
    start, width = min(ends) - pad, max(ends) - min(ends) + 2 * pad

    def place(value):
        return float(np.clip((value - start) / width, 0, 1))

    color = COLORS[part["outcome"]]
    ax.barh(y, place(high) - place(low), 0.8, place(low), color="#CDE7D8", linewidth=0)
    if kind in ("bound", "exact"):
        for edge in {end for end in (low, high) if np.isfinite(end)}:
            ax.plot([place(edge)] * 2, [y - 0.4, y + 0.4], color="#009E73", linewidth=0.9)
    if published is not None:
        ax.plot([place(published)] * 2, [y - 0.4, y + 0.4], color="#009E73", linewidth=0.9, linestyle=(0, (1, 1)))
    ax.plot([place(left), place(right)], [y, y], color=color, linewidth=1.4, solid_capstyle="butt")
    ax.plot(place(part["mean"]), y, "o", color=color, markersize=3.2)


def list_rows(results):
    """The forest plot's rows: headings (slug,), and parts (claim id, part)."""
    rows = []
    for slug, r in results.items():
        if r["claims"]:
            rows += [(slug,), *((claim["id"], part) for claim in r["claims"] for part in claim["measured"])]
    return rows


def draw_verdicts(results):
    """The forest plot of all parts of all claims, in two columns."""
    rows = list_rows(results)
    headings = [i for i, row in enumerate(rows) if len(row) == 1]
    half = min(headings, key=lambda i: abs(2 * i - len(rows)))
    columns = [rows[:half], rows[half:]]
    height = max(map(len, columns))
    inches = 0.165 * height + 0.9
    with plt.rc_context({**STYLE, "figure.constrained_layout.use": False}):
        fig = plt.figure(figsize=(12.5, inches))
        for i, column in enumerate(columns):
            left, width = 0.5 * i + 0.165, 0.12
            ax = fig.add_axes([left, 0.01, width, 1 - 0.8 / inches])
            ax.set(xlim=(0, 1), ylim=(height - 0.4, -0.6))
            ax.axis("off")
            start = (0.5 * i + 0.012 - left) / width
            last = None
            for y, row in enumerate(column):
                if len(row) == 1:
                    ax.text(start, y, row[0], fontweight="bold", fontsize=8, va="center")
                    continue
                claim_id, part = row
                band = re.match(r"(?:share )?(-?[\d.]+) ±", part["bound"])
                draw_part(ax, y, part, float(band[1]) if band else None)
                ax.text(start, y, claim_id if claim_id != last else "", fontsize=6.5, va="center")
                ax.text(-0.06, y, part["part"], fontsize=6.5, va="center", ha="right")
                ax.text(1.06, y, part["bound"], fontsize=6.5, va="center")
                value = format_measured({**part, "part": ""})
                ax.text(1.68, y, value, fontsize=6.5, va="center", color=COLORS[part["outcome"]])
                last = claim_id
        title = {"va": "top", "fontsize": 8}
        fig.text(0.012, 1 - 0.1 / inches, "Every part of every claim measured so far", va="top", fontsize=12)
        for x, (outcome, color) in zip((0.4, 0.45, 0.5), COLORS.items(), strict=True):
            fig.text(x, 1 - 0.14 / inches, f"● {outcome}", color=color, **title)
        key = (
            "Dot and bar: mean and 95% interval. Green: where the part holds, with its bound (line) and the published "
        )
        fig.text(0.012, 1 - 0.38 / inches, f"{key}value (dotted). Each row has a scale of its own.", **title)
    return fig


def main(arguments=None, root=ROOT):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", action="store_true", help="accept the notebooks' knobs and cells as published")
    if parser.parse_args(arguments).parameters:
        write_parameters(root)
        print("wrote mnist1d/published.json and published_cells.json")
        return 0
    if collect_replication(root):
        print("wrote figures/replication.json")
    fig = draw_verdicts(read_all(root))
    with open_for_rename(root / "figures" / "verdicts.png") as file:
        fig.savefig(file, format="png", dpi=120, metadata={"Software": None})
    plt.close(fig)
    print("wrote figures/verdicts.png")
    for name, text in render(root).items():
        with open_for_rename(root / name, "w") as file:
            file.write(text)
        print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
