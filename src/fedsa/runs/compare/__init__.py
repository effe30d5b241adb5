"""Finished runs beside each other: curves, differences of the same clients, and what cannot be compared."""

from fedsa.runs.compare.comparison import Beside, ClientPair, Comparison, compare
from fedsa.runs.compare.results import as_csv, as_json, table_of

__all__ = ["Beside", "ClientPair", "Comparison", "as_csv", "as_json", "compare", "table_of"]
