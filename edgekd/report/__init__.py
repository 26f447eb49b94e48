"""What a person reads: the page of a run, an artifact in a terminal; from finished artifacts."""

from edgekd.report.page import report

__all__ = ["report"]
