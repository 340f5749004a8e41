"""Write REPRODUCTION.md and the generated parts of README.md from the committed results files."""

import json
import re
import sys
from pathlib import Path

from mnist1d.claims import CLAIMS, format_measured
from mnist1d.utils import open_for_rename

ROOT = Path(__file__).resolve().parent.parent

# Minutes that the public notebooks are said to take, and that their code was timed at on two CPU cores.
PUBLISHED_MINUTES = {
    "benchmarks": ("10 (CPU)", "2.7 a seed"),
    "shuffling": ("with the above", "2.7 a seed"),
    "tsne": ("-", "5"),
    "lottery_tickets": ("30 (GPU)", "43"),
    "double_descent": ("60 (CPU)", "29"),
    "metalearn_lr": ("1 (CPU)", "0.2"),
    "metalearn_activation": ("60 (CPU)", "144"),
    "simclr": ("5 (CPU)", "2.2"),
    "pooling": ("5 (CPU)", "6.2"),
}

FIGURES = {
    "quickstart": "-",
    "construction": "Figure 1, Table 2",
    "benchmarks": "Figure 2, Table 1, Figure S1",
    "shuffling": "Figure 2, Table 1",
    "tsne": "Figure 3",
    "lottery_tickets": "Figures 4, S2",
    "double_descent": "Figure 5",
    "metalearn_lr": "Figure 6",
    "metalearn_activation": "Figure 7",
    "simclr": "Figure 8",
    "pooling": "Figure 9",
    "random_subspaces": "random subspaces [S]",
    "spatial_priors": "beyond the paper",
}

SYMBOLS = {"reproduced": "✓", "partly": "◐", "not reproduced": "✗"}


def read_repository(root):
    """The one public address, owner/name, as pyproject.toml has it."""
    return re.search(
        r'Repository = "https://github.com/([^"]+)"', (root / "pyproject.toml").read_text(encoding="utf-8")
    )[1]


def read_all(root):
    """The results files, in the order of `FIGURES`."""
    paths = {slug: root / "figures" / f"{slug}.json" for slug in FIGURES}
    return {slug: json.loads(path.read_text(encoding="utf-8")) for slug, path in paths.items() if path.is_file()}


def count_verdicts(results):
    """One sentence on all claims."""
    verdicts = [claim["verdict"] for r in results.values() for claim in r["claims"]]
    missing = len(CLAIMS) - len(verdicts)
    parts = [f"{verdicts.count(verdict)} {verdict}" for verdict in SYMBOLS]
    return f"{len(CLAIMS)} published claims: {', '.join(parts)}" + (f", {missing} not measured." if missing else ".")


def get_core_minutes(r):
    """The time of a run, in minutes of one core."""
    return r["seconds"] * r["jobs"] / 60


def format_figures(results, repository):
    """The README's table: one row a notebook."""
    rows = [
        "| figure | notebook | published → measured, first claims | all claims | core-minutes | |",
        "|---|---|---|---|---:|---|",
    ]
    for slug, r in results.items():
        badge = f"[Colab](https://colab.research.google.com/github/{repository}/blob/main/notebooks/{slug}.ipynb)"
        shown = []
        for claim in r["claims"][:3]:
            part = next((m for m in claim["measured"] if not m["holds"]), claim["measured"][0])
            symbol = SYMBOLS[claim["verdict"]]
            shown.append(f"{claim['statement']}: {claim['published']} → {format_measured(part)} {symbol}")
        held = "".join(SYMBOLS[c["verdict"]] for c in r["claims"])
        thumbnail = f'<img src="figures/{slug}.png" width="160">'
        rows.append(
            f"| {FIGURES[slug]} | [{slug}](notebooks/{slug}.ipynb)<br>{badge} | {'<br>'.join(shown)} | {held} "
            f"| {get_core_minutes(r):.1f} | [{thumbnail}](figures/{slug}.png) |"
        )
    return "\n".join(rows)


def format_times(results):
    """The README's table of running times."""
    rows = [
        "| notebook | published | public code, two cores | ours, core-minutes | peak memory |",
        "|---|---:|---:|---:|---:|",
    ]
    for slug, r in results.items():
        published, timed = PUBLISHED_MINUTES.get(slug, ("-", "-"))
        rows.append(f"| {slug} | {published} | {timed} | {get_core_minutes(r):.1f} | {r['peak_memory_mib']} MiB |")
    total = sum(map(get_core_minutes, results.values()))
    rows.append(f"| all | | 3.9 hours | {total:.0f}, **{total / 2:.0f} minutes on two cores** | |")
    return "\n".join(rows)


def format_claims(results):
    """REPRODUCTION.md's table: one row a claim."""
    rows = ["| claim | published | measured, mean ± sd | criterion | verdict | notebook |", "|---|---|---|---|---|---|"]
    judged = {claim["id"]: (slug, claim) for slug, r in results.items() for claim in r["claims"]}
    reasons = {claim_id: reason for r in results.values() for claim_id, reason in r["missing"].items()}
    for claim_id, claim in CLAIMS.items():
        link = f"[{claim.slug}](notebooks/{claim.slug}.ipynb)"
        if claim_id in judged:
            measured = "<br>".join(
                format_measured(m) + ("" if m["holds"] else " ✗") for m in judged[claim_id][1]["measured"]
            )
            verdict = f"**{judged[claim_id][1]['verdict']}**"
        else:
            measured, verdict = reasons.get(claim_id, "-"), "not measured"
        rows.append(
            f"| `{claim_id}` {claim.statement} [{claim.source}] | {claim.published} | {measured} "
            f"| {claim.criterion} | {verdict} | {link} |"
        )
    return "\n".join(rows)


def replace_block(text, name, content):
    """The text with the lines between two marker comments replaced."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"the marker {begin} or {end} is missing")
    return text[: text.index(begin) + len(begin)] + f"\n{content}\n" + text[text.index(end) :]


def render(root):
    """The two documents as they should stand, by name."""
    results = read_all(root)
    readme, reproduction = (
        (root / "README.md").read_text(encoding="utf-8"),
        (root / "REPRODUCTION.md").read_text(encoding="utf-8"),
    )
    readme = replace_block(readme, "verdicts", count_verdicts(results))
    readme = replace_block(readme, "figures", format_figures(results, read_repository(root)))
    readme = replace_block(readme, "times", format_times(results))
    reproduction = replace_block(reproduction, "verdicts", count_verdicts(results))
    reproduction = replace_block(reproduction, "claims", format_claims(results))
    return {"README.md": readme, "REPRODUCTION.md": reproduction}


def main():
    for name, text in render(ROOT).items():
        with open_for_rename(ROOT / name, "w") as file:
            file.write(text)
        print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
