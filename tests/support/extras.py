"""Marks of tests that need an extra: it is looked for, not imported, so that leaving such tests out costs nothing."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

__all__ = ["NEEDS_FLOWER", "NEEDS_NVFLARE", "NEEDS_PRIVACY", "NEEDS_SECURE"]

NEEDS_NVFLARE = pytest.mark.skipif(find_spec("nvflare") is None, reason="needs the extra: pip install 'fedsa[nvflare]'")
NEEDS_FLOWER = pytest.mark.skipif(find_spec("flwr") is None, reason="needs the extra: pip install 'fedsa[flower]'")
NEEDS_SECURE = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("Crypto", "cryptography")),
    reason="needs the extra: pip install 'fedsa[secure]'",
)
NEEDS_PRIVACY = pytest.mark.skipif(
    find_spec("dp_accounting") is None, reason="needs the extra: pip install 'fedsa[privacy]'"
)
