"""Fixtures shared by all tests."""

import ast
import json
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parent.parent

matplotlib.use("agg")


def read_notebook(slug):
    """The notebook's cells: a list of (type, source, tags)."""
    cells = json.loads((ROOT / "notebooks" / f"{slug}.ipynb").read_text())["cells"]
    return [(c["cell_type"], "".join(c["source"]), c["metadata"].get("tags", [])) for c in cells]


@pytest.fixture
def notebook():
    """``notebook(slug, **knobs)``: what a notebook imports and defines, without running its experiments.

    Executes the imports, the parameters cell (then `knobs` override it), and every function and class
    definition, in order. Data and results are not computed: pass what a definition needs as a knob.
    """

    def load(slug, **knobs):
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

    return load
