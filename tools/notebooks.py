"""Read notebooks as source, and take their definitions without running their experiments."""

import ast
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def read_notebook(slug):
    """The notebook's cells.

    Returns
    -------
    list of (type, source, tags)
    """
    cells = json.loads((ROOT / "notebooks" / f"{slug}.ipynb").read_text(encoding="utf-8"))["cells"]
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
