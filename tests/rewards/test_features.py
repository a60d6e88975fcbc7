from __future__ import annotations

import copy

import torch
from torch import Tensor

from customized_grpo.rewards.features import FeatureCache, content_key, weights_hash


class Counting:
    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __call__(self, wanted: list[int]) -> Tensor:
        self.calls.append(wanted)
        return torch.tensor([[float(position)] for position in wanted])


def test_each_distinct_content_is_computed_once() -> None:
    cache, compute = FeatureCache(8), Counting()
    first = cache.get([b"a", b"b", b"a"], compute)
    second = cache.get([b"b", b"a"], compute)
    assert sorted(compute.calls) == [[0], [1]]  # each by itself
    assert torch.equal(first[0], first[2]) and torch.equal(second, first[[1, 0]])


def test_what_was_not_used_for_longest_goes_first() -> None:
    cache, compute = FeatureCache(2), Counting()
    for key in (b"a", b"b", b"a", b"c"):
        cache.get([key], compute)
    assert len(cache) == 2 and len(compute.calls) == 3
    cache.get([b"a"], compute)
    assert len(compute.calls) == 3
    cache.get([b"b"], compute)
    assert len(compute.calls) == 4


def test_more_contents_than_the_capacity_are_still_answered() -> None:
    cache, compute = FeatureCache(1), Counting()
    assert cache.get([b"a", b"b", b"c"], compute)[:, 0].tolist() == [0, 1, 2]
    assert len(cache) == 1


def test_content_keys_tell_values_shapes_and_dtypes_apart() -> None:
    base = torch.zeros(2, 3, dtype=torch.uint8)
    changed = base.clone()
    changed[1, 2] = 1
    others = [changed, base.T, base.to(torch.int8), base[:1]]
    assert content_key(base) == content_key(base.clone())
    assert len({content_key(tensor) for tensor in [base, *others]}) == 5


def test_a_weights_hash_is_of_the_weights_alone() -> None:
    model = torch.nn.Linear(3, 2)
    twin = copy.deepcopy(model)
    assert weights_hash(model) == weights_hash(twin)
    with torch.no_grad():
        twin.bias[0] += 1e-6
    assert weights_hash(model) != weights_hash(twin)
