"""Output of a run while it runs: metrics, trackers, progress and sample images.

The submodules are imported directly (``reporting.metrics``, ``reporting.progress``, ...), so that a command
that only prints a line never pays for torch or Pillow.
"""
