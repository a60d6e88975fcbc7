"""Images, the store of references and the queue before a reward, each by itself."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_rewards as tiny
from customized_grpo.errors import UserError
from customized_grpo.pixels import encode_png
from customized_grpo.rewards import FunctionReward, ScoringBatch
from customized_grpo.rewards.service.png import PngError, decode_png, pixel_count
from customized_grpo.rewards.service.queue import RequestQueue
from customized_grpo.rewards.service.references import ReferenceStore


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (64, 48)])
def test_an_image_survives_the_wire_bit_for_bit(channels: int, height: int, width: int) -> None:
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (channels, height, width), generator=noise, dtype=torch.uint8)
    data = encode_png(pixels)
    assert pixel_count(data, channels) == height * width
    assert torch.equal(decode_png(data, channels), pixels)
    with pytest.raises(PngError, match="not a plain"):
        pixel_count(data, 4 - channels)


@settings(max_examples=200)
@given(st.binary(max_size=200), st.integers(0, 180))
def test_damaged_bytes_are_an_image_error_or_an_image(junk: bytes, place: int) -> None:
    data = bytearray(encode_png(torch.zeros(3, 4, 4, dtype=torch.uint8)))
    data[place : place + len(junk)] = junk
    try:
        pixel_count(bytes(data), 3)
        image = decode_png(bytes(data), 3)
    except PngError:
        return
    assert image.dtype == torch.uint8 and image.shape[0] == 3


def test_the_store_keeps_what_was_used_last_within_its_bytes() -> None:
    store = ReferenceStore(10)
    assert store.put("a", b"1234") and store.put("b", b"1234") and store.put("b", b"1234")
    assert store.size == 8 and store.missing(["a"]) == []  # which counts as use
    assert store.put("c", b"1234")
    assert store.missing(["a", "b", "c", "b"]) == ["b"] and store.size == 8
    assert store.get("a") == b"1234"
    assert not store.put("d", b"12345678901") and store.missing(["a", "c"]) == []


def mean(batch: ScoringBatch) -> torch.Tensor:
    if any(row.get("bad") for row in batch.meta):
        raise UserError("bad row")
    return batch.images.mean(dim=(1, 2, 3))


def test_a_bad_request_in_a_merged_batch_fails_alone() -> None:
    begun, go_on, sizes = threading.Event(), threading.Event(), []

    def score(batch: ScoringBatch) -> torch.Tensor:
        begun.set()
        assert go_on.wait(60)
        sizes.append(len(batch))
        return mean(batch)

    queue = RequestQueue([FunctionReward("f", "quality", score)], merge=6)
    good, bad, tall = tiny.make_batch(2), tiny.make_batch(2), tiny.make_batch(2, 96, 64)
    bad.meta[0]["bad"] = True
    first = queue.submit(good)
    assert begun.wait(60)
    rest: list[Future[torch.Tensor]] = [queue.submit(batch) for batch in (good, bad, good, tall)]
    go_on.set()
    queue.close()
    with pytest.raises(UserError, match="bad row"):
        rest.pop(1).result()
    for future, batch in zip([first, *rest], (good, good, good, tall), strict=True):
        assert torch.allclose(future.result(), mean(batch))
    assert sizes == [2, 6, 2, 2, 2, 2]  # alone, merged in vain, one by one; the tall one is no company


def test_closing_a_line_finishes_what_is_queued_and_takes_no_more() -> None:
    queue = RequestQueue([FunctionReward("f", "quality", mean)] * 2, merge=0)
    futures = [queue.submit(tiny.make_batch(1)) for _ in range(20)]
    futures[-1].cancel()
    queue.close()
    assert all(future.done() for future in futures) and all(
        future.result().shape == (1,) for future in futures[:-1]
    )
    with pytest.raises(ValueError, match="closed"):
        queue.submit(tiny.make_batch(1))
