"""Too little memory, by torch's own messages."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from customized_grpo.cli import main
from customized_grpo.config.schema import ModelConfig
from customized_grpo.errors import UserError
from customized_grpo.generation import drawing
from customized_grpo.policies import loading
from customized_grpo.policies.loading import load_policy
from customized_grpo.policies.out_of_memory import explained

# as torch 2.13 writes it on a 24 GB card
CUDA_MESSAGE = (
    "CUDA out of memory. Tried to allocate 1.69 GiB. GPU 0 has a total capacity of 23.64 GiB of which 312.81 "
    "MiB is free. Including non-PyTorch memory, this process has 23.31 GiB memory in use. Of the allocated "
    "memory 22.60 GiB is allocated by PyTorch, and 265.13 MiB is reserved by PyTorch but unallocated."
)
BATCHES = {"train.micro_batch_size": 12, "rollout.batch_size": 4}


def model(**settings: Any) -> ModelConfig:
    return ModelConfig(path="toybox", **settings)


def test_numbers_and_settings_are_named_in_the_order_of_their_effect() -> None:
    with pytest.raises(UserError) as caught, explained(model(), BATCHES):
        raise torch.OutOfMemoryError(CUDA_MESSAGE)
    assert caught.value.message == (
        "out of memory: 1.69 GiB more were needed, 312.81 MiB of the device's 23.64 GiB are free"
    )
    assert caught.value.hint == (
        "In the order of their effect: model.quantisation=nf4, model.gradient_checkpointing=true, "
        "train.micro_batch_size=6, rollout.batch_size=2, model.text_encoders=offload, model.offload_vae=true."
    )


def test_what_is_already_set_is_not_advised() -> None:
    settings = model(
        quantisation="nf4", gradient_checkpointing=True, text_encoders="offload", offload_vae=True
    )
    with pytest.raises(UserError) as caught, explained(settings, {"train.micro_batch_size": 1}):
        raise torch.OutOfMemoryError(CUDA_MESSAGE)
    assert caught.value.hint == "It needs a device with more memory."


def test_what_the_run_itself_could_give_up_comes_first() -> None:
    with pytest.raises(UserError) as caught, explained(model(), BATCHES, first=lambda: ["train.a=b"]):
        raise torch.OutOfMemoryError(CUDA_MESSAGE)
    assert str(caught.value.hint).startswith(
        "In the order of their effect: train.a=b, model.quantisation=nf4"
    )


def test_while_loading_only_what_is_loaded_can_be_made_smaller() -> None:
    with pytest.raises(UserError) as caught, explained(model(quantisation="int8")):
        raise torch.OutOfMemoryError(CUDA_MESSAGE)
    hint = str(caught.value.hint)
    assert "model.quantisation=nf4" in hint and "checkpointing" not in hint and "batch" not in hint


def test_a_real_allocation_that_fails_is_told_in_gib() -> None:
    with (
        pytest.raises(UserError, match=r"out of memory: 1048576\.00 GiB more were needed"),
        explained(model()),
    ):
        torch.empty(2**50, dtype=torch.uint8)


def test_a_message_without_numbers_is_passed_on() -> None:
    with pytest.raises(UserError, match="out of memory: MPS backend out of memory"), explained(model()):
        raise torch.OutOfMemoryError("MPS backend out of memory")


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(RuntimeError, match="shapes"), explained(model()):
        raise RuntimeError("shapes do not fit")


def test_loading_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_the_memory(*_: object, **__: object) -> None:
        torch.empty(2**50, dtype=torch.uint8)

    monkeypatch.setattr(loading, "quantise_layers", fill_the_memory)
    with pytest.raises(UserError, match="out of memory.*GiB") as caught:
        load_policy(model(height=64, width=64, quantisation="int8", device="cpu"), seed=0)
    assert "model.quantisation=nf4" in str(caught.value.hint)


def test_without_gradients_checkpointing_is_not_advised() -> None:
    with pytest.raises(UserError) as caught, explained(model(), {"batch_size": 4}, training=False):
        raise torch.OutOfMemoryError(CUDA_MESSAGE)
    assert "model.quantisation=nf4, batch_size=2" in str(caught.value)
    assert "checkpointing" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.OutOfMemoryError(CUDA_MESSAGE),
    ],
)
def test_every_verb_says_it_in_one_message(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(main, "command_tree", lambda: fail)
    assert main.main(["export", "runs/a"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory") and "model.quantisation=nf4" in said
    monkeypatch.setattr(main, "command_tree", lambda: lambda **_: [][1])
    with pytest.raises(IndexError):
        main.main(["export", "runs/a"])


def test_drawing_names_its_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Iterator[None]:
        raise torch.OutOfMemoryError(CUDA_MESSAGE)
        yield

    monkeypatch.setattr(drawing, "sample_examples", fail)
    monkeypatch.setattr(drawing, "PromptEncoder", lambda *_: None)
    generator: Any = SimpleNamespace(
        policy=None, size=(64, 64), model=model(), batch_size=8, sigmas=lambda: None
    )
    with pytest.raises(UserError, match="out of memory") as caught:
        next(drawing.draw(generator, [], seed=0))
    assert "batch_size=4" in str(caught.value)
