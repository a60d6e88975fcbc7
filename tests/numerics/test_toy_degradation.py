from __future__ import annotations

import pytest
import torch

import toy_degradation as toy
from customized_grpo.algorithms.rules import Linear, Sars

pytestmark = pytest.mark.slow


def test_naive_weights_collapse_where_sars_does_not():
    naive = toy.train(Linear(), 0.40)
    shaped = toy.train(Sars(gamma=0.4), 0.40)
    strong = toy.train(Sars(gamma=1.0), 0.40)
    collapsed = [float((end.prompt < 0).float().mean()) for end in (naive, shaped, strong)]
    assert collapsed[0] > 0.75
    assert collapsed[1] < 0.4
    assert collapsed[2] == 0
    assert (shaped.prompt > naive.prompt).all()


def test_the_collapse_is_copying_and_not_identity():
    naive, safe = toy.train(Linear(), 0.36), toy.train(Linear(), 0.50)
    assert (naive.prompt < 0).all() and (safe.prompt > 0).all()
    assert (naive.measured_identity > safe.measured_identity + 0.3).all()
    torch.testing.assert_close(naive.identity, safe.identity, atol=0.05, rtol=0)
