"""The end of a process that `os.fork` made: it must not return into the tests of its parent."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn


def leave_with(work: Callable[[], Any]) -> NoReturn:
    """End this process with the status that `work` returns or exits with; 1 with an exception, printed."""
    status = 1
    try:
        status = int(work() or 0)
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
