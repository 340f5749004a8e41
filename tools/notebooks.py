"""Read notebooks as source, and take their definitions without running their experiments."""

import ast
import json
import re
from pathlib import Path

from mnist1d import settings

ROOT = Path(__file__).resolve().parent.parent


def read_notebook(slug, root=ROOT):
    """The cells of a notebook of a checkout.

    Returns
    -------
    list of (type, source, tags)
    """
    cells = json.loads((root / "notebooks" / f"{slug}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [(c["cell_type"], "".join(c["source"]), c["metadata"].get("tags", [])) for c in cells]


def load_definitions(slug, **knobs):
    """What a notebook imports and defines.

    Executes the imports, the parameters cell (then `knobs` override it), and every function and class
    definition, in order. Data and results are not computed: pass what a definition needs as a knob.

    Returns
    -------
    dict
        The namespace.
    """
    namespace = {"__name__": slug}
    for kind, source, tags in read_notebook(slug):
        if kind != "code" or "%pip" in source:
            continue
        tree = ast.parse(source)
        if "parameters" not in tags:
            wanted = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
            tree.body = [node for node in tree.body if isinstance(node, wanted)]
        exec(compile(tree, f"{slug}.ipynb", "exec"), namespace)
        namespace.update(knobs)
    return namespace


def list_suggestions(slug):
    """What each item of "Try it" changes: a list of statements, such as `SEEDS = range(2)`, for every item with any."""
    (section,) = [
        source for kind, source, _ in read_notebook(slug) if kind == "markdown" and source.startswith("## Try it")
    ] or [""]
    items = [re.findall(r"`([^`]+)`", item) for item in section.split("\n- ")[1:]]
    return [found for item in items if (found := [code for code in item if get_target(code)])]


def get_target(code):
    """The name that a statement binds or changes: `SEEDS` of `SEEDS = 3`, `MODELS` of `MODELS["wide"] = Wide`."""
    try:
        (statement,) = ast.parse(code).body
    except (SyntaxError, ValueError):
        return None
    if not isinstance(statement, ast.Assign):
        return None
    target = statement.targets[0]
    while isinstance(target, ast.Subscript):
        target = target.value
    return target.id if isinstance(target, ast.Name) else None


def run_cells(slug, changes=()):
    """Run a notebook in this process, each change in place of the statement that binds its name, or right after it.

    Parameters
    ----------
    slug : str
    changes : sequence of str
        Statements, as :func:`list_suggestions` returns them.

    Returns
    -------
    dict
        The namespace.
    """
    namespace, left = {"__name__": slug}, {change: ast.parse(change).body[0] for change in changes}
    for kind, source, _ in read_notebook(slug):
        if kind != "code":
            continue
        tree = ast.parse(source)
        for change, statement in list(left.items()):
            for i, node in enumerate(tree.body):
                if isinstance(node, ast.Assign) and ast.dump(node.targets[0]) == ast.dump(statement.targets[0]):
                    tree.body[i] = left.pop(change)
                    break
        exec(compile(ast.fix_missing_locations(tree), f"{slug}.ipynb", "exec"), namespace)
        for change in [change for change in left if get_target(change) in namespace]:
            exec(compile(change, f"{slug}.ipynb", "exec"), namespace)
            del left[change]
    if left:
        raise ValueError(f"changes={list(left)}: must change a name of the notebook {slug}")
    return namespace


def run_parameters(slug, **knobs):
    """Run the parameters cell alone, `knobs` in place of its own assignments; what it defines."""
    (source,) = [source for _, source, tags in read_notebook(slug) if tags == ["parameters"]]
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if get_target(ast.unparse(node)) not in knobs]
    namespace = {"pick": settings.pick, **knobs}
    exec(compile(tree, f"{slug}.ipynb", "exec"), namespace)
    return namespace
