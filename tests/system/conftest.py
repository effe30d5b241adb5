"""Every test here has an end."""

from support.ends import ends

__all__ = ["ends"]
