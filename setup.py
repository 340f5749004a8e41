"""The README as PyPI shows it, with absolute addresses; all else stands in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
ADDRESS = re.search(r'Repository = "(.+)"', (HERE / "pyproject.toml").read_text(encoding="utf-8"))[1]
README = (HERE / "README.md").read_text(encoding="utf-8")
README = re.sub(r'(<img src=")(?!https?:)', rf"\g<1>{ADDRESS}/raw/main/", README)
README = re.sub(r"(\]\()(?!https?:|#)", rf"\g<1>{ADDRESS}/blob/main/", README)

setup(long_description=README, long_description_content_type="text/markdown")
