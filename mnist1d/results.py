"""The results file of a run, and the digest of the code that made it."""

import ast
import hashlib
import io
import json
import os
import platform
import re
import threading
import tokenize
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mnist1d import __version__, settings
from mnist1d.claims import CLAIMS, Verdicts, no_verdict, to_json
from mnist1d.parts import read_package
from mnist1d.transform import list_seeds, require
from mnist1d.utils import open_for_rename, show_written

__all__ = [
    "code_digest", "digest_source", "load_results", "read_processor", "read_versions", "save_results", "write_json",
]  # fmt: skip

F_START, F_END = (getattr(tokenize, f"FSTRING_{name}", None) for name in ("START", "END"))  # from Python 3.12 on
LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "matplotlib", "openTSNE")  # the last only where installed


def _normalize(source):
    """Python source without comments, docstrings, layout and blanks: what is left decides the numbers.

    Blanks within f-strings go too, for Python 3.11 and 3.12 read these differently.
    """
    kept, new_line, docstring, depth = [], True, False, 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL) or (docstring and token.type == tokenize.NEWLINE):
            continue
        docstring = token.type == tokenize.STRING and new_line
        new_line = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        depth += (token.type == F_START) - (token.type == F_END)
        prefix = token.string[: re.search("['\"]|$", token.string).start()].lower()
        if token.type == tokenize.STRING and "f" not in prefix and not depth and not docstring:
            kept.append(token.string)
        elif not docstring:
            names = {tokenize.NEWLINE: ";", tokenize.INDENT: "{", tokenize.DEDENT: "}"}
            kept.append(names.get(token.type) or "".join(token.string.split()))
    return "".join(kept)


def _list_words(tree):
    """Every word of a tree that may name a definition: names, attributes, imports, texts."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "name", "module", "value"):
            if isinstance(word := getattr(node, field, None), str):
                yield from word.split(".")


_PARSING = threading.Lock()


def _parse(source):
    """`ast.parse`, one thread at a time: side by side it fails in Python 3.11."""
    with _PARSING:
        return ast.parse(source)


@lru_cache(maxsize=4)
def _list_statements(package):
    """(text, words) of the package's top-level statements, by the words at which a statement counts.

    A function, class or constant counts at its name; a statement that may do more than bind names, at its module's.
    `claims`, `parts` and `results`, which judge and store numbers, do not count.
    """
    modules, statements = {module for module, _ in package}, defaultdict(list)
    for module, source in package:
        if module in ("claims", "parts", "results"):
            continue
        lines = source.splitlines()
        for node in _parse("\n".join(lines)).body:
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
            statement = _normalize("\n".join(lines[first - 1 : node.end_lineno]) + "\n"), set(_list_words(node))
            if isinstance(node, ast.Import | ast.ImportFrom):
                statements[module].append(("", set(_list_words(node)) & modules))  # modules run on import
                for a in node.names:
                    statements[a.asname or a.name.split(".")[0]].append(("", set(a.name.split("."))))
                continue
            is_definition = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            stored = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
            bound = {node.name} if is_definition else set(stored)
            calls = not is_definition and any(isinstance(n, ast.Call) for n in ast.walk(node))
            for word in bound | ({module} if calls or not bound or first < node.lineno else set()):
                statements[word].append(statement)
    return statements


def code_digest(slug: str, root: str | os.PathLike) -> str:
    """A digest of the code that decides a notebook's numbers and figures: its cells, and what they reach.

    From the words of the cells it goes through the package, one top-level statement at a time, to whatever a word
    may name. So a definition that no cell reaches makes no results stale, and in doubt one counts as reached.

    Parameters
    ----------
    slug : str
    root : path-like
        The checkout.

    Returns
    -------
    str
    """
    cells = json.loads((Path(root) / "notebooks" / f"{slug}.ipynb").read_text(encoding="utf-8"))["cells"]
    source = "\n".join("".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code")
    return digest_source(source, read_package(root))


def digest_source(source: str, package: tuple[tuple[str, str], ...]) -> str:
    """A digest of the source of cells, and of what they reach in the package.

    Parameters
    ----------
    source : str
    package : tuple of (str, str)
        As :func:`mnist1d.parts.read_package` returns it.

    Returns
    -------
    str
    """
    try:
        tree = _parse(source)
    except SyntaxError:  # magics are no Python; an operator that begins a line is
        source = re.sub(r"^(\s*)([%!].*)$", lambda m: f"{m[1]}magic({m[2]!r})", source, flags=re.M)
        tree = _parse(source)
    statements = _list_statements(package)
    reached, seen, todo = set(), set(), set(_list_words(tree))
    while todo:
        seen.add(word := todo.pop())
        for text, words in statements.get(word, ()):
            reached.add(text)
            todo |= words - seen
    return hashlib.sha256("\n".join([_normalize(source), *sorted(reached)]).encode()).hexdigest()[:16]


def read_versions() -> dict[str, str]:
    """Of Python and of the libraries that decide numbers, those that are installed."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def read_processor() -> str:
    """The processor's name as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")  # of Linux
    found = re.search(r"model name\s*: (.+)", cpuinfo.read_text(encoding="utf-8")) if cpuinfo.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write JSON in one step."""
    with open_for_rename(path, "w") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.write("\n")


def save_results(
    slug: str,
    *,
    seeds: Sequence[int],
    numbers: dict,
    verdicts: list[dict],
    missing: dict[str, str] | None = None,
    images: Sequence[str] = (),
) -> Verdicts:
    """Write the results file of a complete run, in one step. Call it last: its presence proves the run.

    Parameters
    ----------
    slug : str
    seeds : int or sequence of int
    numbers : dict
        What the figure shows, as nested dicts of arrays.
    verdicts : list of dict
        From :func:`judge`, one for every claim of this notebook.
    missing : dict of str to str, optional
        Claims that could not be measured here, with the reason.
    images : sequence of str, optional
        Names of the image datasets that were used, such as "MNIST" or the substitute's.

    Returns
    -------
    Verdicts
        For display. The file records them only where :func:`no_verdict` has nothing to object.

    Raises
    ------
    ValueError
        If a claim of this notebook is neither judged nor missing, or is judged without the parts that it has.
    """
    expected = {claim_id: claim for claim_id, claim in CLAIMS.items() if claim.slug == slug}
    verdicts = list(verdicts)
    require(not isinstance(images, str), "images", images, "a sequence of names")
    missing = {claim_id: claim.why for claim_id, claim in expected.items() if not claim.bound} | (missing or {})
    if expected.keys() != {v["id"] for v in verdicts} | missing.keys():
        raise ValueError(f"verdicts: {slug} must judge or miss each of {sorted(expected)}")
    root, reason = settings.find_root(), no_verdict(slug)
    threads = (os.environ.get("OMP_NUM_THREADS") or "1").split(",")[0].strip()  # of the outermost level
    differ = [v["id"] for v in verdicts if v.get("parts_differ")]
    if differ and not reason:
        raise ValueError(f"verdicts: {differ} must have the parts of their claims")
    results = {
        "slug": slug,
        "profile": settings.profile(),
        "no_verdict": reason,
        "code": code_digest(slug, root) if root and (root / "notebooks" / f"{slug}.ipynb").is_file() else None,
        "versions": {"mnist1d": __version__, **read_versions()},
        "processor": read_processor(),
        "device": str(settings.get_device()),
        "jobs": settings.get_jobs(),
        "threads": int(threads) if threads.isdecimal() else 1,
        "images": list(images),
        "seconds": round(settings.seconds(), 1),
        "earlier_seconds": round(settings.earlier_seconds(), 1),  # of these, in runs that were stopped or repeated
        "peak_memory_mib": round(settings.note_peak_memory() / 2**20),
        "seeds": list_seeds(seeds),
        "seed_offset": settings.seed_offset(),
        "numbers": to_json(numbers),
        "claims": [] if reason else [to_json({k: v[k] for k in v if k != "parts_differ"}) for v in verdicts],
        "parts_differ": differ,
        "missing": missing,
    }
    path = settings.output_folder() / f"{slug}.json"
    write_json(path, results)
    show_written(path)
    return Verdicts(verdicts)


def load_results(slug: str) -> dict | None:
    """The committed results of another notebook, or None where there are none.

    Parameters
    ----------
    slug : str

    Returns
    -------
    dict or None
    """
    root = settings.find_root()
    path = root / "figures" / f"{slug}.json" if root else None
    return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else None
