"""A contestant's process: python -m racing NAME WORK FILES OUT [CHECKOUT]."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from racing.gate import Gate
from racing.work import Work


def main(name: str, work: str, files: str, out: str, checkout: str = "") -> None:
    """Run a contestant until its input ends."""
    gate = Gate()
    folder = Path(checkout).resolve() if checkout else None
    importlib.import_module(f"racing.{name}").run(gate, Work.from_json(work), Path(files), Path(out), folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
