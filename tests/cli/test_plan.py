from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from customized_grpo.cli.main import main
from customized_grpo.config.schema import ModelConfig
from customized_grpo.planning import estimate
from customized_grpo.planning.dry_run import DryRun
from customized_grpo.planning.memory import GIB
from customized_grpo.policies.architecture import Architecture
from customized_grpo.reference_sizes import Size

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def shared_dry_runs() -> Iterator[None]:
    """Plans of one model share its dry run, which takes seconds."""
    made: dict[tuple[str, str], DryRun] = {}

    def dry_run(architecture: Architecture, model: ModelConfig, references: Sequence[Size]) -> DryRun:
        key = (model.model_dump_json(), repr(references))
        if key not in made:
            made[key] = DryRun(architecture, model, references)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "DryRun", dry_run)
        yield


def run(*arguments: str) -> None:
    """Run a command that succeeds, which typer leaves by SystemExit."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0


def test_a_plan_says_batches_work_parameters_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    run("plan", "toybox", "--device-memory", "8", "--tflops", "0.1")
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["iteration"].endswith("4 prompts, 48 samples")
    assert "4 are trained" in lines["steps"]
    assert "264 forward-equivalents" in lines["work"]
    assert "s an iteration for the transformer" in lines["time"]
    assert "fits 8 GiB; graphs are kept from the rollout" in lines
    assert lines["graphs"].endswith("the update is then spared 48 forward-equivalents a prompt")
    assert any(line.startswith("not counted: the models of the rewards dino, clip_i") for line in lines)


def test_a_plan_of_nft_trains_levels_and_keeps_an_old_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.json"
    run("plan", "toybox", "train.algorithm=nft", "train.forward.levels=6", "--json", str(file))
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["algorithm"].split() == ["algorithm", "nft"]
    assert lines["steps"].endswith("none is trained; 6 noise levels are")
    assert "none is kept from the rollout: train.algorithm=nft" in lines["graphs"]
    parts = json.loads(file.read_text())["memory"]["parts"]
    assert parts["old policy"] == parts["adapter"] > 0


def test_without_a_speed_no_time_is_claimed(capsys: pytest.CaptureFixture[str]) -> None:
    run("plan", "toybox")
    out = capsys.readouterr().out
    assert "\ntime " not in out and "fits" not in out
    assert "\ndevice of this machine: " in out


@pytest.mark.parametrize(("tokens", "said"), [("image", True), ("whole", False)])
def test_a_plan_says_that_a_last_block_for_the_image_alone_is_not_counted(
    capsys: pytest.CaptureFixture[str], tokens: str, said: bool
) -> None:
    run("plan", "toybox-smoke", f"model.last_block={tokens}")
    assert ("model.last_block=image saves a little, not counted" in capsys.readouterr().out) is said


def test_a_plan_is_written_for_machines(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    run("plan", "toybox-smoke", "--references", "2", "--json", str(file))
    plan = json.loads(file.read_text())
    assert plan["tokens"] == {"image": 16, "references": 32, "text": 18}
    assert plan["memory"]["peak"] == max(plan["memory"]["phases"].values())
    assert plan["memory"]["needed"] > plan["memory"]["peak"]


def test_a_plan_of_prompts_alone_encodes_no_references(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    run("plan", "toybox-smoke", "--references", "0", "--json", str(file))
    plan = json.loads(file.read_text())
    assert plan["tokens"] == {"image": 16, "references": 0, "text": 18}
    assert plan["memory"]["parts"]["encoding"] == 0


def test_a_recipe_that_does_not_fit_ends_with_status_2_and_advice(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["plan", "flux1-kontext-24gb", "model.quantisation=null", "--device-memory", "24"])
    assert status == 2
    error = capsys.readouterr().err
    assert "the device has 24" in error
    assert "It would fit" in error and "model.quantisation=int8" in error


def test_presets_are_listed_with_their_first_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    run("config", "presets")
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("flux1-uno ") and "one 80 GB GPU" in line for line in lines)


def test_a_card_gives_hours_their_assumptions_and_whether_it_fits(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    run("plan", "toybox", "--device", "4090", "--processes", "2", "--json", str(file))
    out = capsys.readouterr().out
    assert "time on GeForce RTX 4090: " in out and " hours for 100 iterations" in out
    assert "assumed, not measured: 70% of 165.2 TFLOP/s, 80% of 1008 GB/s" in out
    assert "fits 23.6 GiB" in out
    assert "memory of the machine: a process takes about" in out and "2 processes on one machine: " in out
    plan = json.loads(file.read_text())
    assert plan["host"]["peak"] >= plan["host"]["loading"]


def test_on_a_cpu_the_program_is_counted_and_no_gpu_is_spoken_of(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    run("plan", "toybox-smoke", "--json", str(file))
    out = capsys.readouterr().out
    assert "memory of one process, in GiB" in out and "Python, torch and the other libraries about" in out
    assert "CUDA" not in out and "GPU" not in out
    plan = json.loads(file.read_text())
    assert plan["memory"]["needed"] == int(1.05 * plan["memory"]["peak"]) + 2 * GIB
    assert plan["host"]["training"] == plan["memory"]["needed"]


def test_a_recipe_for_a_cpu_is_planned_for_the_card_that_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    run("plan", "toybox-smoke", "--device", "4090", "--json", str(file))
    out = capsys.readouterr().out
    assert "memory of one device, in GiB" in out and "the GPU's context about" in out
    assert "\ndevice of this machine: cpu" in out
    plan = json.loads(file.read_text())
    assert plan["memory"]["needed"] == int(1.05 * plan["memory"]["peak"]) + GIB


def test_hours_are_passes_by_the_cards_rate_and_its_bandwidth(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    run("plan", "toybox", "--device", "4090", "--processes", "2", "--json", str(file))
    plan = json.loads(file.read_text())
    # a process has 2 of 4 prompts, and for each 12 samples: 10 steps drawn, 4 trained at 3 passes each
    passes = 2 * 12 * (10 + 4 * 3)
    products = passes * plan["flops_per_pass"] / (0.7 * 165.2e12)
    between = passes * plan["bytes_per_pass"] / (0.8 * 1008e9)
    assert plan["duration"]["products"] == pytest.approx(products)
    assert plan["duration"]["between"] == pytest.approx(between)
    assert plan["duration"]["dequantisation"] == 0
    hours = 100 * (products + between) / 3600
    assert f"time on GeForce RTX 4090: {hours:.3g} hours for 100 iterations" in capsys.readouterr().out


def test_an_unknown_card_is_told_before_anything_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "toybox", "--device", "h101"]) == 2
    assert "no card of that name" in capsys.readouterr().err
