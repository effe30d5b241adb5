"""Where the repository is, for tests of its documents, its wheel and its programs."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
