"""Restamp the repository's public address in pyproject.toml, every notebook and the documents."""

import argparse
import json
import re
import sys
from pathlib import Path

from mnist1d.utils import open_for_rename

ROOT = Path(__file__).resolve().parent.parent


def restamp(root, new):
    """Replace the old owner/name by the new one wherever it stands as a GitHub or Colab address.

    Returns
    -------
    list of str
        The files that changed.
    """
    pyproject = (root / "pyproject.toml").read_text()
    old = re.search(r'Repository = "https://github.com/([^"]+)"', pyproject)[1]
    pattern = re.compile(rf"(github(?:\.com)?/){re.escape(old)}(?![\w-])")
    names = ["pyproject.toml", "README.md", "CITATION.cff", "CHANGELOG.md", "REPRODUCTION.md"]
    changed = []
    for path in [*(root / name for name in names), *sorted((root / "notebooks").glob("*.ipynb"))]:
        text = path.read_text()
        stamped = pattern.sub(rf"\g<1>{new}", text)
        if path.suffix == ".ipynb":
            json.loads(stamped)
        if stamped != text:
            with open_for_rename(path, "w") as file:
                file.write(stamped)
            changed.append(path.name)
    return changed


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", help="owner/name")
    new = parser.parse_args().repository
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", new):
        parser.error(f"REPO={new!r}: must be owner/name")
    print("\n".join(restamp(ROOT, new)) or "nothing to change")
    return 0


if __name__ == "__main__":
    sys.exit(main())
