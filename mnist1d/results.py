"""The results file of a run, and the digest of the code that made it."""

import hashlib
import io
import json
import tokenize
from importlib.metadata import version
from pathlib import Path

import numpy as np

from mnist1d import settings
from mnist1d.claims import CLAIMS, Verdicts
from mnist1d.utils import open_for_rename

__all__ = ["code_digest", "save_results"]


def _normalize(source):
    """Python source without comments, docstrings and layout: what is left decides the numbers."""
    kept, new_line, docstring = [], True, False
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL) or (docstring and token.type == tokenize.NEWLINE):
            continue
        docstring = token.type == tokenize.STRING and new_line
        new_line = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        if not docstring:
            names = {tokenize.NEWLINE: ";", tokenize.INDENT: "{", tokenize.DEDENT: "}"}
            kept.append(names.get(token.type) or "".join(token.string.split()))
    return "".join(kept)


def code_digest(slug, root):
    """A digest of the code that decides a notebook's numbers: its cells and the package below the figures.

    Parameters
    ----------
    slug : str
    root : path-like
        The checkout.

    Returns
    -------
    str
    """
    root = Path(root)
    cells = json.loads((root / "notebooks" / f"{slug}.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    modules = ["transform", "data", "models", "recording", "training"]
    if any("mnist1d.images" in source for source in sources):
        modules.append("images")
    sources += [(root / "mnist1d" / f"{module}.py").read_text(encoding="utf-8") for module in modules]
    digest = hashlib.sha256()
    for source in sources:
        digest.update(_normalize(source).encode())
    return digest.hexdigest()[:16]


def _to_json(value):
    """Arrays and numpy numbers as lists and floats of six significant digits."""
    if isinstance(value, dict):
        return {str(k): _to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_to_json(v) for v in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value


def save_results(slug, *, seeds, numbers, verdicts, missing=None):
    """Write the results file of a complete run, in one step. Call it last: its presence proves the run.

    Parameters
    ----------
    slug : str
    seeds : sequence of int
    numbers : dict
        What the figure shows, as nested dicts of arrays.
    verdicts : list of dict
        From :func:`judge`, one for every claim of this notebook.
    missing : dict of str to str, optional
        Claims that could not be measured here, with the reason.

    Returns
    -------
    Verdicts
        For display. The smoke profile records none.

    Raises
    ------
    ValueError
        If a claim of this notebook is neither judged nor missing.
    """
    missing = missing or {}
    expected = {claim_id for claim_id, claim in CLAIMS.items() if claim.slug == slug}
    if expected != {v["id"] for v in verdicts} | set(missing):
        raise ValueError(f"verdicts: {slug} must judge or miss each of {sorted(expected)}")
    root, is_paper = settings.find_root(), settings.profile() == "paper"
    results = {
        "slug": slug,
        "profile": settings.profile(),
        "code": code_digest(slug, root) if root else None,
        "versions": {
            name: version(name) for name in ("mnist1d", "torch", "numpy", "scipy", "scikit-learn", "matplotlib")
        },
        "device": str(settings.get_device()),
        "jobs": settings.get_jobs(),
        "seconds": round(settings.seconds(), 1),
        "peak_memory_mib": round(settings.note_peak_memory() / 2**20),
        "seeds": list(seeds),
        "numbers": _to_json(numbers),
        "claims": _to_json(verdicts) if is_paper else [],
        "missing": missing,
    }
    with open_for_rename(settings.output_folder() / f"{slug}.json", "w") as file:
        json.dump(results, file, indent=1, allow_nan=False)
        file.write("\n")
    return Verdicts(verdicts)
