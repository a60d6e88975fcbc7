"""The device is named, and a CPU that nobody asked for is explained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from customized_grpo.cli.plan import device_here
from customized_grpo.engine import device as devices
from customized_grpo.engine.device import announce, describe, has_bf16_instructions, why_no_accelerator

CPU = torch.device("cpu")


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing says that there is a GPU, and the file that would."""
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(devices, "AMD_DRIVER", tmp_path / "kfd")
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "version"


def said(capsys: pytest.CaptureFixture[str], **changes: object) -> str:
    arguments = {"requested": "auto", "precision": "fp32", "is_embedded": True, **changes}
    announce(CPU, **arguments)  # type: ignore[arg-type]
    return capsys.readouterr().err


def test_the_device_is_named(driver: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys) == f"device: {describe(CPU)}\n"
    assert describe(CPU).startswith("cpu (") and torch.__version__ in describe(CPU)


def test_a_real_model_on_a_cpu_nobody_asked_for_is_a_warning(
    driver: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "warning: no accelerator was found" in said(capsys, is_embedded=False)
    assert "warning" not in said(capsys, is_embedded=False, requested="cpu")


def test_a_gpu_that_torch_cannot_use_is_a_warning_with_the_reason(
    driver: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert why_no_accelerator() is None
    driver.touch()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is a build for CPUs" in said(capsys)

    def old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nUpdate it")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", old)
    assert "warning: this runs on the CPU" in said(capsys)
    assert "driver on your system is too old (found version 11040)" in said(capsys)
    assert "warning" not in said(capsys, requested="cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES hides it" in said(capsys)


def test_a_plan_says_where_this_machine_would_run_the_recipe(
    driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device_here("cpu") == describe(CPU)
    assert device_here("auto") == f"{describe(CPU)}; no accelerator: none was found"
    assert device_here("cuda:0") == "none; model.device 'cuda:0': torch sees no such device"
    driver.touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_here("auto").endswith("; no accelerator: CUDA_VISIBLE_DEVICES hides it")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : sse avx2 fma", False),
        ("flags : avx512f avx512_bf16", True),
        ("flags : amx_bf16 amx_tile", True),
        ("Features : asimd i8mm bf16 sve", True),
    ],
)
def test_emulated_bf16_is_said(
    driver: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    expected: bool,
) -> None:
    monkeypatch.setattr(devices, "CPU_INFO", tmp_path / "cpuinfo")
    assert has_bf16_instructions() is None
    (tmp_path / "cpuinfo").write_text(flags)
    assert has_bf16_instructions() is expected
    assert ("no bf16 instructions" in said(capsys, precision="bf16")) is not expected
    assert "bf16" not in said(capsys, precision="fp32")


def test_a_variable_that_changes_numbers_is_said(
    driver: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert "NVIDIA_TF32_OVERRIDE=1 in the environment changes numbers" in said(capsys)
