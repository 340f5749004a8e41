"""Print requirements that pin every dependency of pyproject.toml to its lower bound."""

import re
import sys
import tomllib
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def list_dependencies(pyproject, leave_out=()):
    """All dependencies, those of the extras included, as `name>=lower bound`."""
    project = tomllib.loads(pyproject)["project"]
    extras = [names for extra, names in project["optional-dependencies"].items() if extra not in leave_out]
    names = chain(project["dependencies"], *extras)
    return list(dict.fromkeys(name for name in names if not name.startswith("mnist1d[")))


def list_lower_bounds(pyproject):
    """The same as `name==lower bound`."""
    return [re.sub(">=", "==", dependency) for dependency in list_dependencies(pyproject)]


if __name__ == "__main__":
    print("\n".join(list_lower_bounds((ROOT / "pyproject.toml").read_text(encoding="utf-8"))))
    sys.exit(0)
