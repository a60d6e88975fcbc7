from __future__ import annotations

import sys
from pathlib import Path

# for same_run.py beside this file; pytest's importlib mode leaves folders of tests off the path
sys.path.insert(0, str(Path(__file__).parent))
