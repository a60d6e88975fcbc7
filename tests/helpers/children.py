"""Processes that `os.fork` makes: they have their parent's imports, and must not return into its tests."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn


def in_child(work: Callable[[], Any]) -> int:
    """Do the work in a fork of this process; return its wait status."""
    child = os.fork()
    if child == 0:
        leave_with(work)
    return os.waitpid(child, 0)[1]


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
