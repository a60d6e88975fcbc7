"""The session script on small models on the CPU: same code; its times prove nothing."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

import first_gpu
import forked
from processes import PATIENCE_S, run_python


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "first_gpu.json").read_text())


@pytest.mark.slow
def test_steps_give_what_they_ask_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = ("machine", "exact", "memory", "swap", "speed", "quantised", "rewards")
    monkeypatch.setattr(first_gpu, "subprocess", forked.SUBPROCESS)
    status = first_gpu.main(["--out", str(tmp_path), "--tiny", "--budget", str(PATIENCE_S), "--only", *steps])
    results = read(tmp_path)
    assert {name: one.get("error") for name, one in results.items()} == dict.fromkeys(steps)
    assert status == 0
    found = {name: one["result"] for name, one in results.items()}
    assert found["machine"]["bf16 TFLOP/s"] > 0 and found["machine"]["GB/s"]["to the device"] > 0
    ratios = found["exact"]["largest |log ratio|"]
    assert all(value < 1e-3 for value in ratios.values())
    assert [value for name, value in ratios.items() if name.endswith("of 4")] == [0.0] * 3
    assert found["exact"]["usual kernels"]["gradients repeat"]
    assert all(one["planned"] > 0 for one in found["memory"].values())
    assert len(found["swap"]["seconds there and back"]) == 3
    assert 0 < found["quantised"]["int8"]["error"] < 0.02 < found["quantised"]["nf4"]["error"] < 0.2
    page = (tmp_path / "first_gpu.md").read_text()
    assert [line.split(" (")[0] for line in page.splitlines() if line.startswith("## ")] == [
        f"## {name}" for name in first_gpu.STEPS if name in steps
    ]


def test_a_second_call_goes_on_with_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_gpu, "LEAST_S", 0)
    asked = []

    def run_step(name: str, **_: object) -> dict[str, Any]:
        asked.append(name)
        broken = name == "exact" and asked.count(name) == 1
        return {"seconds": 1.0, **({"error": "broken"} if broken else {"result": {"n": len(asked)}})}

    monkeypatch.setattr(first_gpu, "run_step", run_step)
    out = ["--out", str(tmp_path)]
    assert first_gpu.main([*out, "--only", "machine", "exact"]) == 1
    assert "No result: broken" in (tmp_path / "first_gpu.md").read_text()
    assert first_gpu.main([*out, "--only", "exact", "machine", "speed"]) == 0
    assert asked == ["machine", "exact", "exact", "speed"]
    assert read(tmp_path)["machine"]["result"] == {"n": 1}


def test_without_time_nothing_is_started_and_the_page_says_so(tmp_path: Path) -> None:
    assert first_gpu.main(["--out", str(tmp_path), "--budget", "0"]) == 1
    assert {one["error"] for one in read(tmp_path).values()} == {"not run: no time was left"}
    assert list(read(tmp_path)) == list(first_gpu.STEPS)


def test_a_step_that_fails_or_hangs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_gpu, "STEPS_SCRIPT", tmp_path / "step.py")
    (tmp_path / "step.py").write_text(
        "import sys, time\nif sys.argv[1] == 'slow': time.sleep(60)\nsys.exit('no card')\n"
    )
    monkeypatch.setitem(first_gpu.STEPS, "wrong", first_gpu.Step("?", 1))
    monkeypatch.setitem(first_gpu.STEPS, "slow", first_gpu.Step("?", 1))
    failed = first_gpu.run_step("wrong", is_tiny=False, limit_s=60, packages=tmp_path)
    assert failed["error"] == "no card"
    late = first_gpu.run_step("slow", is_tiny=False, limit_s=0.5, packages=tmp_path)
    assert late["error"] == "took longer than 0 s"


def test_wheels_are_unpacked_offline_for_the_steps(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "VALUE = 7\n")
        wheel.writestr(
            "carried-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n"
        )
        wheel.writestr(
            "carried-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("carried-1.0.dist-info/RECORD", "")
    first_gpu.install(wheels, tmp_path / "packages")
    environment = first_gpu.environment(tmp_path / "packages", {})
    done = run_python("-c", "import carried; print(carried.VALUE)", PYTHONPATH=environment["PYTHONPATH"])
    assert done.stdout == "7\n"
    with pytest.raises(SystemExit, match="no wheels there"):
        first_gpu.install(tmp_path, tmp_path / "packages")
