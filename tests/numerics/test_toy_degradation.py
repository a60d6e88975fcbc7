from __future__ import annotations

import torch

import toy_degradation as toy


def test_naive_weights_collapse_where_sars_does_not():
    naive = toy.train("linear", 0.40)
    shaped = toy.train("sars", 0.40, gamma=0.4)
    strong = toy.train("sars", 0.40, gamma=1.0)
    collapsed = [float((end.prompt < 0).float().mean()) for end in (naive, shaped, strong)]
    assert collapsed[0] > 0.75
    assert collapsed[1] < 0.4
    assert collapsed[2] == 0
    assert (shaped.prompt > naive.prompt).all()


def test_the_collapse_is_copying_and_not_identity():
    naive, safe = toy.train("linear", 0.36), toy.train("linear", 0.50)
    assert (naive.prompt < 0).all() and (safe.prompt > 0).all()
    assert (naive.measured_identity > safe.measured_identity + 0.3).all()
    torch.testing.assert_close(naive.identity, safe.identity, atol=0.05, rtol=0)
