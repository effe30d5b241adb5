"""The audit of a run: what its updates and adapters tell about its rows, by attacks on the user's own run."""

from fedsa.runs.audit.auditing import ATTACKS, audit
from fedsa.runs.audit.finding import Finding
from fedsa.runs.audit.subject import Subject

__all__ = ["ATTACKS", "Finding", "Subject", "audit"]
