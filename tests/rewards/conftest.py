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


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The helpers of tiny.py; test folders are no packages, so that it cannot be imported by name."""
    return _load("tiny")


@pytest.fixture(scope="session")
def judge_server() -> ModuleType:
    """The helpers of judge_server.py."""
    return _load("judge_server")


@pytest.fixture(scope="session")
def tiny_onnx() -> ModuleType:
    """The helpers of tiny_onnx.py."""
    return _load("tiny_onnx")


@pytest.fixture(scope="session")
def serving() -> ModuleType:
    """The helpers of serving.py."""
    return _load("serving")


@pytest.fixture(scope="session", autouse=True)
def own_rewards() -> ModuleType:
    """The module that recipes of these tests name as `own_rewards:...`."""
    return _load("own_rewards", "own_rewards")


def _load(name: str, module_name: str | None = None) -> ModuleType:
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(module_name or f"rewards_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up the names in their annotations
    spec.loader.exec_module(module)
    return module
