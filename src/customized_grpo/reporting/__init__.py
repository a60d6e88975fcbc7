"""What a run leaves for people: metrics, progress, sample pictures and one self-contained report page.

The submodules are imported directly (``reporting.metrics``, ``reporting.report``, ...), so that a command
that only prints a line never pays for torch or Pillow.
"""
