"""The results file of a run, and the digest of the code that made it."""

import ast
import hashlib
import io
import json
import os
import platform
import re
import tokenize
from importlib.metadata import version
from importlib.util import resolve_name
from pathlib import Path

from mnist1d import settings
from mnist1d.claims import CLAIMS, Verdicts, no_verdict, to_json
from mnist1d.figures import show_written
from mnist1d.utils import open_for_rename

__all__ = ["code_digest", "save_results"]

LIBRARIES = ("mnist1d", "torch", "numpy", "scipy", "scikit-learn", "matplotlib")


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


class _ReachedCode(dict):
    """The package's statements that some code reaches, normalized, by (module, line).

    A function, class or constant counts when reached code names it; a statement that may do more than bind a
    name counts when its module is imported; a whole module counts when it is used as a value, or when a name
    is not found in it. `claims` and `results`, which judge and store numbers, do not count.
    """

    def __init__(self, root):
        self.root, self.modules = Path(root), {"mnist1d.claims": ({}, {}), "mnist1d.results": ({}, {})}

    def find(self, module):
        path = self.root.joinpath(*(module or "-").split("."))
        return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)

    def read_imports(self, tree, module=""):
        """Local name to (module, name in it or "") of all that a tree imports from the package."""
        found, path = {}, self.find(module)
        package = module if path and path.stem == "__init__" else module.rpartition(".")[0]
        for node in ast.walk(tree):
            for a in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
                if isinstance(node, ast.Import):
                    self.open(a.name)
                    found[a.asname or a.name.split(".")[0]] = (a.name if a.asname else a.name.split(".")[0], "")
                else:
                    source = resolve_name("." * node.level + (node.module or ""), package)
                    self.open(f"{source}.{a.name}" if self.find(f"{source}.{a.name}") else source)
                    found[a.asname or a.name] = (source, a.name)
        return {name: target for name, target in found.items() if target[0].split(".")[0] == "mnist1d"}

    def open(self, module):
        """A module's statements by the names they bind, and its imports."""
        if module not in self.modules and module.split(".")[0] == "mnist1d" and self.find(module):
            text, names = self.find(module).read_text(), {}
            definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
            body, effects = ast.parse(text).body, []
            self.modules[module] = names, {}
            for node in body:
                decorators = getattr(node, "decorator_list", [])
                first = min([node.lineno, *(d.lineno for d in decorators)])
                node.text = "\n".join(text.splitlines()[first - 1 : node.end_lineno]) + "\n"
                targets = getattr(node, "targets", [getattr(node, "target", None)])
                leaves = [leaf for t in targets if t for leaf in getattr(t, "elts", [t])]
                bound = [node.name] if isinstance(node, definitions) else [n.id for n in leaves if hasattr(n, "id")]
                plain = isinstance(node, definitions) or (
                    type(node) in (ast.Assign, ast.AnnAssign) and len(bound) == len(leaves)
                )
                calls = not isinstance(node, definitions) and any(isinstance(n, ast.Call) for n in ast.walk(node))
                for name in bound:
                    names.setdefault(name, []).append(node)
                if not isinstance(node, ast.Import | ast.ImportFrom) and (decorators or calls or not plain):
                    effects.append(node)
            top = ast.Module([node for node in body if not isinstance(node, definitions)], [])
            self.modules[module][1].update(self.read_imports(top, module))
            for node in effects:
                self.take(module, node)
        return self.modules.get(module, ({}, {}))

    def take(self, module, node):
        if (module, node.lineno) not in self:
            self[module, node.lineno] = _normalize(node.text)
            self.follow(node, module)

    def reach(self, module, name=""):
        """Take what a module binds to a name; all of the module where it binds nothing to it."""
        names, imports = self.open(module)
        if name in imports:
            return self.resolve(*imports[name])
        for node in names.get(name) or [node for nodes in names.values() for node in nodes]:
            self.take(module, node)

    def resolve(self, module, *path):
        """Reach module.a.b: the first of the path that is no module is a name."""
        path = [part for part in path if part]
        while path and self.find(f"{module}.{path[0]}"):
            module = f"{module}.{path.pop(0)}"
        self.reach(module, *path[:1])

    def follow(self, tree, module=""):
        """Reach everything that a tree names, by imports of its own or of its module."""
        names, imports = self.open(module)
        imports = imports | self.read_imports(tree, module)
        todo = [tree]
        while todo:
            node, attributes = todo.pop(), []
            while isinstance(node, ast.Attribute):
                attributes.insert(0, node.attr)
                node = node.value
            name = getattr(node, "id", None)
            if name in imports:
                self.resolve(*imports[name], *attributes)
            elif name in names or name == "globals":
                self.reach(module, name)
            todo.extend(ast.iter_child_nodes(node))


def code_digest(slug, root):
    """A digest of the code that decides a notebook's numbers and figures: its cells, and what they reach.

    It follows the imports from the cells through the package, one top-level definition at a time. So a
    definition that no cell reaches makes no results stale.

    Parameters
    ----------
    slug : str
    root : path-like
        The checkout.

    Returns
    -------
    str
    """
    cells = json.loads((Path(root) / "notebooks" / f"{slug}.ipynb").read_text())["cells"]
    source = "\n".join("".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code")
    source = re.sub(r"^(\s*)([%!].*)$", lambda m: f"{m[1]}magic({m[2]!r})", source, flags=re.M)  # no Python
    reached = _ReachedCode(root)
    reached.follow(ast.parse(source))
    parts = [_normalize(source), *sorted(f"{module} {text}" for (module, _), text in reached.items())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _read_processor():
    """The processor's name as the system tells it."""
    try:
        names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:  # not Linux
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def save_results(slug, *, seeds, numbers, verdicts, missing=None, images=()):
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
    images : sequence of str, optional
        Names of the image datasets that were used, such as "MNIST" or the substitute's.

    Returns
    -------
    Verdicts
        For display. The file records them only where :func:`no_verdict` has nothing to object.

    Raises
    ------
    ValueError
        If a claim of this notebook is neither judged nor missing.
    """
    expected = {claim_id: claim for claim_id, claim in CLAIMS.items() if claim.slug == slug}
    missing = {claim_id: claim.why for claim_id, claim in expected.items() if not claim.bound} | (missing or {})
    if expected.keys() != {v["id"] for v in verdicts} | missing.keys():
        raise ValueError(f"verdicts: {slug} must judge or miss each of {sorted(expected)}")
    root, reason = settings.find_root(), no_verdict(slug)
    results = {
        "slug": slug,
        "profile": settings.profile(),
        "no_verdict": reason,
        "code": code_digest(slug, root) if root else None,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "processor": _read_processor(),
        "device": str(settings.get_device()),
        "jobs": settings.get_jobs(),
        "threads": int(os.environ.get("OMP_NUM_THREADS") or 1),
        "images": list(images),
        "seconds": round(settings.seconds(), 1),
        "peak_memory_mib": round(settings.note_peak_memory() / 2**20),
        "seeds": list(seeds),
        "seed_offset": int(os.environ.get("MNIST1D_SEED_OFFSET") or 0),
        "numbers": to_json(numbers),
        "claims": [] if reason else to_json(verdicts),
        "missing": missing,
    }
    path = settings.output_folder() / f"{slug}.json"
    with open_for_rename(path, "w") as file:
        json.dump(results, file, indent=1, allow_nan=False)
        file.write("\n")
    show_written(path)
    return Verdicts(verdicts)
