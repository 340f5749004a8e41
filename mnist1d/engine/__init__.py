"""What makes many small models fast. Nobody needs to read it to read the rest; README.md says what it is."""

from mnist1d.engine.stack import ReplayError, Stack

__all__ = ["ReplayError", "Stack"]
