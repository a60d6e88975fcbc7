from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _load(name: str) -> ModuleType:
    """Import a helper beside this file by its path; test folders are no packages."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The helpers of tiny.py."""
    return _load("tiny")


@pytest.fixture(scope="session")
def serving() -> ModuleType:
    """The helpers of serving.py."""
    return _load("serving")


@pytest.fixture(scope="session", autouse=True)
def own_rewards() -> ModuleType:
    """The module that recipes of these tests name as `own_rewards:...`."""
    return _load("own_rewards")
