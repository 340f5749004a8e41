"""Compare the results of this machine with the committed ones: verdicts, shifts, seconds."""

import json
import math
import subprocess

HEADER = ("notebook", "seconds", "reference", "claims reproduced", "verdicts equal", "largest shift, sd")


def read_results(path):
    """A JSON object from a file, or None if the file is missing or damaged."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return results if isinstance(results, dict) else None


def read_numbers(results):
    """The numbers of a results file as text, without durations."""

    def drop_durations(value):
        if isinstance(value, dict):
            return {key: drop_durations(v) for key, v in value.items() if "seconds" not in key}
        return value

    return json.dumps(drop_durations(results["numbers"]), indent=1)


def read_reference(slug, root):
    """The results of a notebook that the checkout came with, or None.

    They are asked of git; without it they are what stood in `figures` before this machine's first run, kept
    in `build/reference`.
    """
    command = ["git", "-C", str(root), "show", f"HEAD:./figures/{slug}.json"]
    try:
        text = subprocess.run(command, check=True, capture_output=True).stdout
        return json.loads(text)
    except (OSError, subprocess.CalledProcessError, ValueError, RecursionError):
        kept = read_results(root / "build" / "reference" / f"{slug}.json")
        return kept or read_results(root / "figures" / f"{slug}.json")


def measure_shift(part, reference):
    """How far two measured means lie apart, in standard deviations; None where neither has any.

    The standard deviation is that of the two samples together. Equal means are no shift, and different ones
    without any spread are infinitely far apart.
    """
    spreads = [p["sd"] for p in (part, reference) if p.get("sd") is not None]
    difference = abs(part["mean"] - reference["mean"])
    if difference == 0:
        return 0.0
    if not spreads:
        return None
    spread = math.sqrt(sum(sd**2 for sd in spreads) / len(spreads))
    return difference / spread if spread else math.inf


def compare(results, reference):
    """Compare the claims of two results files of one notebook.

    Returns
    -------
    equal, n : int
        Verdicts that are equal, and claims that both have.
    shift : float or None
        The largest shift of a measured part, in standard deviations.
    where : str
        The claim it belongs to.
    """
    before = {claim["id"]: claim for claim in reference["claims"]}
    pairs = [(claim, before[claim["id"]]) for claim in results["claims"] if claim["id"] in before]
    shifts = []
    for claim, other in pairs:
        parts = {part["part"]: part for part in other["measured"]}
        for part in claim["measured"]:
            shift = measure_shift(part, parts[part["part"]]) if part["part"] in parts else None
            if shift is not None:
                shifts.append((shift, f"{claim['id']} {part['part']}".strip()))
    equal = sum(claim["verdict"] == other["verdict"] for claim, other in pairs)
    shift, where = max(shifts, default=(None, ""))
    return equal, len(pairs), shift, where


def make_row(slug, outcome, reference):
    """One row of the table: of a results file, or of the text that says what became of the notebook."""
    if isinstance(outcome, str):
        return (slug, "", "", outcome, "", "")
    verdicts = [claim["verdict"] for claim in outcome["claims"]]
    held = f"{verdicts.count('reproduced')} of {len(verdicts)}" if verdicts else "-"
    seconds, before, equal, shift = f"{outcome['seconds']:.1f}", "-", "-", "-"
    if reference:
        before = f"{reference['seconds']:.1f}"
        n_equal, n, largest, where = compare(outcome, reference)
        equal = f"{n_equal} of {n}" if n else "-"
        shift = "-" if largest is None else f"{largest:.1f} ({where})" if largest else "0"
    return (slug, seconds, before, held, equal, shift)


def summarize(rows):
    """One sentence on all notebooks of a table."""
    counts = [row[4].split(" of ") for row in rows if " of " in row[4]]
    equal, n = sum(int(a) for a, _ in counts), sum(int(b) for _, b in counts)
    return f"{equal} of {n} verdicts are those of the committed results"


def format_text(rows):
    """Rows as a table for a terminal; columns that say nothing are left out."""
    columns = [i for i in range(len(HEADER)) if i in (0, 1, 3) or any(row[i] not in ("", "-") for row in rows)]
    table = [tuple(row[i] for i in columns) for row in (HEADER, *rows)]
    # What became of a notebook that has no results may be long: it takes the rest of its line.
    ended = [row for row in table if row[1]]
    widths = [max(len(row[i]) for row in (ended if i > 1 else table)) for i in range(len(columns))]
    lines = []
    for row in table:
        cells = [
            cell.rjust(width) if i == 1 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def format_markdown(rows, about):
    """Rows as a document."""
    escaped = [
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in (HEADER, *rows)
    ]
    lines = [
        "# This machine and the committed results",
        "",
        f"{summarize(rows)}. A shift is the distance of two means over their spread between seeds. {about}",
        "",
        escaped[0],
        "|---|---:|---:|---|---|---|",
        *escaped[1:],
    ]
    return "\n".join(lines) + "\n"
