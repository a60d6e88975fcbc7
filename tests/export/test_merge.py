"""LoRAs in the base and the trained adapter as one adapter, exact or cut, and as weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from customized_grpo.config import load_config
from customized_grpo.errors import UserError
from customized_grpo.export.adapter import Layer, RunAdapter
from customized_grpo.export.merge import merge_into, merged_adapter, truncated_adapter


def adapter(layers: dict[str, Layer], rank: int, alpha: float) -> RunAdapter:
    return RunAdapter(load_config("toybox-smoke"), 1, False, rank, alpha, layers, {})


def layer(seed: int, rank: int, rows: int = 7, columns: int = 9) -> Layer:
    noise = torch.Generator().manual_seed(seed)
    return Layer(torch.randn(rank, columns, generator=noise), torch.randn(rows, rank, generator=noise))


def product(one: RunAdapter, name: str = "x") -> Tensor:
    return one.alpha / one.rank * one.layers[name].up @ one.layers[name].down


def test_without_loras_in_the_base_only_the_scale_is_folded_in() -> None:
    one = adapter({"x": layer(0, 4)}, 4, 6.0)
    merged = merged_adapter(one)
    assert (merged.rank, merged.alpha, merged.merged) == (4, 4.0, ())
    torch.testing.assert_close(product(merged), product(one))


@pytest.mark.parametrize("rank", [1, 3])
def test_a_cut_is_the_nearest_of_its_rank(rank: int) -> None:
    """Against a decomposition of the whole matrix; the best has the first singular values (Eckart, Young)."""
    one = adapter({"x": layer(1, 5)}, 5, 5.0)
    cut, lost = truncated_adapter(one, rank)
    u, s, v = torch.linalg.svd(product(one).double())
    best = (u[:, :rank] * s[:rank]) @ v[:rank]
    torch.testing.assert_close(product(cut), best.float(), atol=1e-5, rtol=0)
    assert lost == pytest.approx(float(s[rank:].square().sum() / s.square().sum()), rel=1e-5)
    assert (cut.rank, cut.alpha, cut.layers["x"].down.shape) == (rank, float(rank), (rank, 9))


@pytest.mark.parametrize(("n_out", "n_in"), [(7, 30), (30, 7), (7, 6)])
def test_a_layer_with_fewer_inputs_or_outputs_than_the_rank_is_filled_up(n_out: int, n_in: int) -> None:
    """The cut loses nothing there: no product of that layer has a larger rank."""
    random = torch.Generator().manual_seed(4)
    small = Layer(torch.randn(12, n_in, generator=random), torch.randn(n_out, 12, generator=random))
    cut, lost = truncated_adapter(adapter({"x": small}, 12, 12.0), 10)
    assert (cut.layers["x"].down.shape, cut.layers["x"].up.shape) == ((10, n_in), (n_out, 10))
    torch.testing.assert_close(product(cut), small.up @ small.down, atol=1e-4, rtol=0)
    assert lost < 1e-12


def test_a_cut_that_needs_no_more_lacks_nothing_and_the_worst_layer_counts() -> None:
    thin = layer(2, 2)
    padded = Layer(nn.functional.pad(thin.down, (0, 0, 0, 3)), nn.functional.pad(thin.up, (0, 3)))
    cut, lost = truncated_adapter(adapter({"x": padded}, 5, 5.0), 2)
    assert lost < 1e-12
    torch.testing.assert_close(product(cut), thin.up @ thin.down)
    _, worst = truncated_adapter(adapter({"x": padded, "y": layer(3, 5)}, 5, 5.0), 2)
    assert worst == truncated_adapter(adapter({"x": layer(3, 5)}, 5, 5.0), 2)[1] > 0.01
    with pytest.raises(UserError, match="has rank 5, so there is nothing to cut"):
        truncated_adapter(adapter({"x": padded}, 5, 5.0), 5)


def test_weights_are_summed_in_fp32_and_rounded_once() -> None:
    one = adapter({"x": layer(4, 2)}, 2, 2.0)
    model: Any = nn.Module()
    model.x = nn.Linear(9, 7, bias=False, dtype=torch.bfloat16)
    before = model.x.weight.detach().clone()
    merge_into(model, one)
    assert torch.equal(model.x.weight, (before.float() + product(one)).bfloat16())


def test_a_sum_that_its_type_cannot_hold_is_refused() -> None:
    large = layer(5, 2)
    model: Any = nn.Module()
    model.x = nn.Linear(9, 7, bias=False, dtype=torch.float16)
    with pytest.raises(UserError, match=r"x has numbers that torch\.float16 cannot hold"):
        merge_into(model, adapter({"x": Layer(large.down, 1e6 * large.up)}, 2, 2.0))
