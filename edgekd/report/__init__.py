"""What a person reads: the HTML page of a run, and an artifact in a terminal; from manifests alone."""

from edgekd.report.page import report

__all__ = ["report"]
