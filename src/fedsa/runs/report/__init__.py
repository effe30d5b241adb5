"""The report of a run."""

from fedsa.runs.report.page import write_report

__all__ = ["write_report"]
