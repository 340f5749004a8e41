"""Print requirements that pin every dependency of pyproject.toml to its lower bound."""

import re
import sys
import tomllib
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def list_lower_bounds(pyproject):
    """All dependencies, extras included, as `name==lower bound`."""
    project = tomllib.loads(pyproject)["project"]
    dependencies = chain(project["dependencies"], *project["optional-dependencies"].values())
    return [re.sub(">=", "==", dependency) for dependency in dependencies]


if __name__ == "__main__":
    print("\n".join(list_lower_bounds((ROOT / "pyproject.toml").read_text())))
    sys.exit(0)
