"""What tests are made of: tiny models, rows, runs and folders, and the judges of what comes of them."""

import pytest

pytest.register_assert_rewrite(__name__)  # a failed assert tells its values here too
