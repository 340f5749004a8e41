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
    """The numbers of a results file as text, without durations, whose names say `seconds` or begin with `ms`."""

    def drop_durations(value):
        if isinstance(value, dict):
            kept = (key for key in value if "seconds" not in key and not key.startswith("ms_"))
            return {key: drop_durations(value[key]) for key in kept}
        return value

    return json.dumps(drop_durations(results["numbers"]), indent=1)


def read_reference(slug, root):
    """The results of a notebook that the checkout came with, or None.

    They are asked of git; without it they are what stood in `figures` before this machine's first run, of which the
    runner keeps a copy in `build/reference`.
    """
    command = ["git", "-C", str(root), "show", f"HEAD:./figures/{slug}.json"]
    try:
        text = subprocess.run(command, check=True, capture_output=True).stdout
        return json.loads(text)
    except (OSError, subprocess.CalledProcessError, ValueError, RecursionError):
        return read_results(root / "build" / "reference" / f"{slug}.json")


def get_spread(part):
    """The standard deviation of a measured part; of a share, that which its interval stands for."""
    if part.get("sd") is not None:
        return part["sd"]
    low, high = part.get("interval") or (0, 0)
    return (high - low) / 2 / 1.96 * math.sqrt(part.get("n") or 1)


def measure_shift(part, reference):
    """How far two measured means lie apart, in standard deviations of the two samples together.

    Equal means are no shift, and different ones without any spread, two facts, are infinitely far apart.
    """
    difference = abs(part["mean"] - reference["mean"])
    if difference == 0:
        return 0.0
    spread = math.sqrt(sum(get_spread(p) ** 2 for p in (part, reference)) / 2)
    return difference / spread if spread else math.inf


def compare(results, reference):
    """Compare the claims of two results files of one notebook.

    Returns
    -------
    equal, n : int
        Verdicts that are equal, and claims that both have.
    shift : float or None
        The largest shift of a measured part, in standard deviations; infinite where a part has come or gone.
    where : str
        The claim it belongs to.
    """
    before = {claim["id"]: claim for claim in reference["claims"]}
    pairs = [(claim, before[claim["id"]]) for claim in results["claims"] if claim["id"] in before]
    shifts = []
    for claim, other in pairs:
        ours, theirs = ({part["part"]: part for part in c["measured"]} for c in (claim, other))
        for name in ours | theirs:
            in_both = name in ours and name in theirs
            shift = measure_shift(ours[name], theirs[name]) if in_both else math.inf
            shifts.append((shift, f"{claim['id']} {name}".strip()))
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
