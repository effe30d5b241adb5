"""What tests are made of: tiny models, rows, runs and folders, and the judges of what comes of them."""

from pathlib import Path

import pytest

for path in Path(__file__).parent.glob("[!_]*.py"):
    pytest.register_assert_rewrite(f"{__name__}.{path.stem}")  # a failed assert tells its values here too
