from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from customized_grpo.algorithms.rules import Linear, Sars

EXAMPLE = Path(__file__).parents[2] / "examples" / "toy_degradation.py"


@pytest.fixture(scope="module")
def toy() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("toy_degradation", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)
    del sys.modules[spec.name]


def test_naive_weights_collapse_where_sars_does_not(toy: ModuleType):
    naive = toy.train(Linear(), 0.40)
    shaped = toy.train(Sars(gamma=0.4), 0.40)
    strong = toy.train(Sars(gamma=1.0), 0.40)
    collapsed = [float((end.prompt < 0).float().mean()) for end in (naive, shaped, strong)]
    assert collapsed[0] > 0.75
    assert collapsed[1] < 0.4
    assert collapsed[2] == 0
    assert (shaped.prompt > naive.prompt).all()


def test_the_collapse_is_copying_and_not_identity(toy: ModuleType):
    naive, safe = toy.train(Linear(), 0.36), toy.train(Linear(), 0.50)
    assert (naive.prompt < 0).all() and (safe.prompt > 0).all()
    assert (naive.measured_identity > safe.measured_identity + 0.3).all()
    torch.testing.assert_close(naive.identity, safe.identity, atol=0.05, rtol=0)
