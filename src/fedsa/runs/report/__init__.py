"""The report of a run: one page, written when it is finished, or served while it goes on."""

from fedsa.runs.report.page import report_html, write_report

__all__ = ["report_html", "write_report"]
