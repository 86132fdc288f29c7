"""The results table: one row per configuration, with intervals over seeds and paired differences from a baseline."""

from mlmx.report.results import report

__all__ = ["report"]
