"""What files and folders in a site's folder are called: whoever needs the names only loads no libraries for them."""

from __future__ import annotations

__all__ = ["ADAPTERS", "FINISHED_RUN", "ROWS", "SETTINGS"]

SETTINGS, ROWS = "settings.json", "rows"
FINISHED_RUN, ADAPTERS = "run", "adapters"
