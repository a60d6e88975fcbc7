"""From a run to files that other programs read."""

from __future__ import annotations

from customized_grpo.export.formats import FORMAT_NAMES, FormatName
from customized_grpo.export.run import export_run

__all__ = ["FORMAT_NAMES", "FormatName", "export_run"]
