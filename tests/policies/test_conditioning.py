from __future__ import annotations

import pytest
import torch

from customized_grpo.policies.conditioning import Conditioning


def conditioning(n: int = 3, ids: int = 4, height: int = 64) -> Conditioning:
    rows = {"a": torch.arange(n)[:, None].float(), "b": torch.arange(n)}
    return Conditioning(rows, {"ids": torch.arange(ids)}, height, 64)


def test_index_takes_lists_tensors_and_slices() -> None:
    whole = conditioning()
    for rows in ([2, 0], torch.tensor([2, 0])):
        assert whole.index(rows).per_sample["b"].tolist() == [2, 0]
    assert whole.index(slice(1, 3)).per_sample["a"].tolist() == [[1], [2]]
    assert len(whole.index([1])) == 1


def test_repeat_interleave_keeps_the_samples_of_a_prompt_together() -> None:
    assert conditioning(2).repeat_interleave(3).per_sample["b"].tolist() == [0, 0, 0, 1, 1, 1]


def test_cat_undoes_slicing() -> None:
    whole = conditioning(4)
    joined = Conditioning.cat([whole.index(slice(0, 1)), whole.index(slice(1, 4))])
    assert torch.equal(joined.per_sample["a"], whole.per_sample["a"])
    assert joined.shared.keys() == whole.shared.keys()


@pytest.mark.parametrize("other", [conditioning(ids=5), conditioning(height=96)])
def test_cat_refuses_samples_of_another_bucket(other: Conditioning) -> None:
    with pytest.raises(ValueError, match="one size|not the same bucket"):
        Conditioning.cat([conditioning(), other])


def test_per_sample_tensors_must_agree_about_the_number_of_samples() -> None:
    with pytest.raises(ValueError, match="disagree"):
        Conditioning({"a": torch.zeros(2), "b": torch.zeros(3)}, {}, 64, 64)


def test_to_moves_everything_and_keeps_dtypes() -> None:
    moved = conditioning().to("meta")
    assert {t.device.type for t in (*moved.per_sample.values(), *moved.shared.values())} == {"meta"}
    assert moved.per_sample["b"].dtype == torch.int64


def test_conditionings_of_a_bucket_share_tensors_that_are_equal_and_no_others() -> None:
    first, same, other = conditioning(), conditioning(), conditioning(ids=5)
    assert same.share(first).shared["ids"] is first.shared["ids"]
    assert other.share(first).shared["ids"] is other.shared["ids"]
    joined = Conditioning.cat([first, same.share(first).to("cpu")])
    assert len(joined) == 6


def test_joining_conditionings_that_share_asks_nothing_of_the_device() -> None:
    first = conditioning().to("meta")  # a comparison there raises an error
    assert len(Conditioning.cat([first, first.repeat_interleave(2)])) == 9
