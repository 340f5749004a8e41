"""Restamp the public address everywhere, and write the first code cell of every notebook."""

import argparse
import json
import re
import sys
from pathlib import Path

from mnist1d.utils import open_for_rename

ROOT = Path(__file__).resolve().parent.parent

# The first code cell of every notebook. It leaves an environment that has the package alone.
GUARD = """\
# @title Set-up: on Colab it installs the package
import importlib
import os
import subprocess
import sys

PROFILE = "quick"  # @param ["quick", "paper", "smoke"]
if "google.colab" in sys.modules:  # elsewhere the environment decides
    os.environ["MNIST1D_PROFILE"] = PROFILE

try:
    import mnist1d.figures
    import mnist1d.results
    import mnist1d.training

    folder = mnist1d.__path__[0]
    print(f"mnist1d {mnist1d.__version__} is here: {folder if os.name == 'nt' else os.path.relpath(folder)}")
except ImportError:  # Colab, or any environment without the package, with a part of it or with mnist1d 0.0.2
    source = os.environ.get("MNIST1D_SOURCE", "git+https://github.com/@REPOSITORY@")
    wanted = f"mnist1d[all] @ {source}" if "://" in source else f"{source}[all]"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", wanted], check=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mnist1d"]:
        del sys.modules[name]  # the old one's modules
    importlib.invalidate_caches()
    try:
        import mnist1d.figures
        import mnist1d.results
        import mnist1d.training
    except ImportError as error:
        message = f"mnist1d cannot be installed from {source}; set MNIST1D_SOURCE to its address, a folder or a wheel"
        raise ImportError(f"{message} ({error})") from None
    print(f"mnist1d {mnist1d.__version__} was installed from {source}")
"""


def write_guard(notebook, repository):
    """The text of a notebook with the set-up cell as it should be."""
    content = json.loads(notebook)
    cell = next(cell for cell in content["cells"] if cell["cell_type"] == "code")
    cell["source"] = GUARD.replace("@REPOSITORY@", repository).rstrip("\n").splitlines(keepends=True)
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def restamp(root, new):
    """Replace the old owner/name by the new one wherever it stands as a GitHub or Colab address.

    Returns
    -------
    list of str
        The files that changed.
    """
    pyproject = (root / "pyproject.toml").read_text(encoding="utf-8")
    old = re.search(r'Repository = "https://github.com/([^"]+)"', pyproject)[1]
    pattern = re.compile(rf"(github(?:usercontent)?(?:\.com)?/){re.escape(old)}(?![\w-])")
    names = ["pyproject.toml", "README.md", "CITATION.cff", "CHANGELOG.md", "REPRODUCTION.md"]
    changed = []
    for path in [*(root / name for name in names), *sorted((root / "notebooks").glob("*.ipynb"))]:
        text = path.read_text(encoding="utf-8")
        stamped = pattern.sub(rf"\g<1>{new}", text)
        if path.suffix == ".ipynb":
            stamped = write_guard(stamped, new)
        if stamped != text:
            with open_for_rename(path) as file:
                file.write(stamped.encode())
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
