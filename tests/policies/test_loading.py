from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor

from customized_grpo.config.schema import LoraConfig, ModelConfig
from customized_grpo.errors import UserError
from customized_grpo.libraries import quiet
from customized_grpo.policies.flux1 import Flux1Policy
from customized_grpo.policies.loading import load_pipeline, load_policy, pick_device

MakePolicy = Callable[..., Flux1Policy]


def section(path: Path | str, **options: Any) -> ModelConfig:
    defaults = {"height": 64, "width": 64, "max_text_tokens": 24, "precision": "fp32", "device": "cpu"}
    return ModelConfig(path=str(path), lora=LoraConfig(rank=2), **{**defaults, **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with quiet():
        from customized_grpo.toybox.models import build_pipeline

        path = tmp_path_factory.mktemp("pipeline")
        build_pipeline(0).save_pretrained(path)
    return path


def test_a_folder_loads_as_the_pipeline_that_was_saved_and_without_a_word(
    folder: Path, make_policy: MakePolicy, make_image: Callable[..., Tensor]
) -> None:
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output), warnings.catch_warnings(action="error"):
        loaded = load_policy(section(folder, gradient_checkpointing=True), seed=7)
    assert output.getvalue() == ""
    built = make_policy(rank=2)
    assert loaded.transformer.gradient_checkpointing
    x = built.noise([torch.Generator().manual_seed(0)], 64, 64)
    with torch.no_grad():
        results = [
            p.velocity(x, 0.5, p.encode(["a fox"], [[make_image(0)]], 64, 64)) for p in (loaded, built)
        ]
    # weights of a file lie at other addresses in memory, which may round a product differently
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)
    assert all(torch.equal(t, built.adapter_tensors()[name]) for name, t in loaded.adapter_tensors().items())


def test_bf16_holds_the_base_in_half_and_trains_an_fp32_adapter(
    folder: Path, make_image: Callable[..., Tensor]
) -> None:
    policy = load_policy(section(folder, precision="bf16"), seed=0)
    frozen = {p.dtype for p in policy.transformer.parameters() if not p.requires_grad}
    assert frozen == {policy.pipe.text_encoder_2.dtype} == {torch.bfloat16}
    assert policy.pipe.vae.dtype == torch.float32
    assert {p.dtype for p in policy.trainable_parameters()} == {torch.float32}
    x = policy.noise([torch.Generator().manual_seed(0)], 64, 64)
    encoded = policy.encode(["a fox"], [[make_image(0)]], 64, 64)
    training = policy.velocity(x, 0.5, encoded)
    training.square().mean().backward()
    with torch.no_grad():
        assert torch.equal(policy.velocity(x, 0.5, encoded), training)
        with policy.reference():
            assert torch.equal(policy.velocity(x, 0.5, encoded), training)  # a fresh adapter is the base


def test_loading_a_policy_leaves_no_filter_of_warnings_behind(folder: Path) -> None:
    before = list(warnings.filters)
    load_policy(ModelConfig(path=str(folder), lora=LoraConfig(rank=2)), seed=0, device="cpu")
    assert warnings.filters == before
    # torch warns of such a norm once in a process, and has done so unheard
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.nn.functional.rms_norm(torch.zeros(1, 2, dtype=torch.bfloat16), (2,), torch.ones(2))
    assert not heard


@pytest.mark.parametrize("name", ["flux1-dev.safetensors", "./flux1-dev.safetensors", "models/flux.gguf"])
def test_a_single_file_is_told_how_to_convert_it(name: str) -> None:
    with pytest.raises(
        UserError, match="a single file, where a folder in diffusers' .* layout is needed"
    ) as caught:
        load_pipeline(name)
    assert caught.value.hint is not None and "from_single_file" in caught.value.hint


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder") as caught:
        load_policy(section(tmp_path / "nowhere"), seed=0)
    assert str(tmp_path / "nowhere") in caught.value.message


def test_a_folder_that_is_no_pipeline_is_told_by_its_missing_index(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model_index\.json: no such file"):
        load_pipeline(str(tmp_path))


def test_another_family_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "QwenImageEditPlusPipeline"}))
    with pytest.raises(
        UserError, match="says QwenImageEditPlusPipeline, model.family flux1 needs FluxKontext"
    ):
        load_pipeline(str(tmp_path))


def test_a_pipeline_without_its_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text((folder / "model_index.json").read_text())
    with pytest.raises(UserError, match=r"no such folder, but model_index\.json names it"):
        load_pipeline(str(tmp_path))


def test_a_hub_that_cannot_be_reached_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="cannot be reached") as caught:
        load_pipeline("nobody-here/no-such-model")
    assert "hf download nobody-here/no-such-model" in str(caught.value)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A hub on this machine that answers every request with the same status and error code."""
    answer: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:  # noqa: N802 the base class calls it so
            self.send_response(answer["status"])
            self.send_header("X-Error-Code", answer["code"])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # the interval is what `shutdown` waits for; half a second by default
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield answer
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "text"),
    [
        (403, "GatedRepo", "hf auth login"),
        (404, "RepoNotFound", "no public checkpoint of this name on the hub\nCheck the spelling"),
        (404, "EntryNotFound", "has no model_index.json"),
    ],
)
def test_what_the_hub_refuses_is_told_with_the_way_out(
    hub: dict[str, Any], status: int, code: str, text: str
) -> None:
    hub.update(status=status, code=code)
    with pytest.raises(UserError, match=text) as caught:
        load_pipeline("owner/name")
    assert "owner/name" in caught.value.message


def test_a_size_that_the_model_cannot_make_is_refused(folder: Path) -> None:
    assert load_policy(section(folder, height=80), seed=0).n_tokens(80, 64) == 20
    with pytest.raises(UserError, match=r"multiples of 16 pixels\nTake 64x64 \(height x width\)"):
        load_policy(section(folder).model_copy(update={"height": 72}), seed=0)


def test_devices_by_name() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(UserError, match="no such device"):
        pick_device("cuda:99")


def test_quiet_puts_everything_back() -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    def state() -> list[object]:
        return [
            f() for lib in (diffusers_logging, transformers_logging) for f in (lib.get_verbosity, bars(lib))
        ]

    def bars(library: Any) -> Callable[[], bool]:
        return library.is_progress_bar_enabled

    def talks(name: str) -> bool:
        return logging.getLogger(name).isEnabledFor(logging.WARNING)

    before = state()
    with pytest.raises(KeyError), quiet():
        assert not talks("torchao") and not talks("bitsandbytes.backends.cpu.ops")
        assert state() != before
        raise KeyError
    assert state() == before
    assert talks("torchao") and talks("bitsandbytes.backends.cpu.ops")


@pytest.mark.parametrize(
    ("module", "heavy"),
    [("families", "torch"), pytest.param("loading", "diffusers", marks=pytest.mark.slow)],
)
def test_importing_a_part_of_the_room_does_not_import_what_is_heavy(module: str, heavy: str) -> None:
    code = f"import sys, customized_grpo.policies.{module}; sys.exit('{heavy}' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
