"""Which recipes can go back through the graphs of their rollout."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from customized_grpo.config import Config
from customized_grpo.rollout.graphs import reuse_obstacle

SAMPLES = 6


@pytest.mark.parametrize(
    "setting",
    [
        "train.reuse_rollout_graph=never",
        "train.updates_per_iteration=2",
        "train.inner_epochs=2",
        "train.dynamic_sampling={budget: 1}",
        "model.shard=true",
    ],
)
def test_what_stands_in_the_way_is_named(recipe: Callable[..., Config], setting: str) -> None:
    obstacle = reuse_obstacle(recipe(setting), SAMPLES)
    assert obstacle is not None and obstacle.startswith(setting.partition("={")[0])


def test_compiled_blocks_keep_their_graphs_unless_cuda_graphs_reuse_the_memory(
    recipe: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe("model.compile=true")
    assert reuse_obstacle(config, SAMPLES) is None
    monkeypatch.setenv("TORCHINDUCTOR_CUDAGRAPHS", "1")
    assert "reuse the memory of a pass" in (reuse_obstacle(config, SAMPLES) or "")
    assert reuse_obstacle(recipe(), SAMPLES) is None


@pytest.mark.parametrize(("rollout", "update", "same"), [(6, 6, True), (12, 6, True), (6, 3, False)])
def test_both_phases_must_batch_the_samples_in_the_same_way(
    recipe: Callable[..., Config], rollout: int, update: int, same: bool
) -> None:
    config = recipe(f"rollout.batch_size={rollout}", f"train.micro_batch_size={update}")
    assert (reuse_obstacle(config, SAMPLES) is None) == same
