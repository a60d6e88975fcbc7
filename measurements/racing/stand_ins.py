"""Modules that do nothing, in the place of libraries that a race does not need."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


def stand_in(name: str, **values: Any) -> None:
    """Put a module into `sys.modules` whose names are functions that return the given values."""
    module = ModuleType(name)
    for attribute, value in values.items():
        setattr(module, attribute, lambda *_, _value=value, **__: _value)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
