from __future__ import annotations

import io
import logging
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import LoggerType
from PIL import Image

from commands import run_here
from customized_grpo.config import load_config
from customized_grpo.config.trackers import REFUSED
from customized_grpo.errors import UserError
from customized_grpo.reporting import services, trackers
from customized_grpo.reporting.metrics import MetricsWriter, read_metrics
from customized_grpo.reporting.trackers import TRACKERS, Trackers
from serving import wait_until

ROOT = Path(__file__).parents[2]
RECORD = {"kind": "train", "iteration": 1, "rollouts": 8, "reward/prompt": 0.5, "policy/kl": None}


@pytest.fixture(autouse=True)
def state() -> None:
    """Make what the engine of a run makes first: accelerate's trackers do not log without it."""
    PartialState()


class Recorder:
    """A tracker that works until `broken_at`."""

    seen: list[tuple[dict[str, float], int]]

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        self.seen = []
        self.broken_at = 10**9
        self.closed = False

    def log(self, metrics: Mapping[str, float], iteration: int) -> None:
        if iteration >= self.broken_at:
            raise ConnectionError("secret-token-in-url")
        self.seen.append((dict(metrics), iteration))

    def log_images(self, images: Mapping[str, Path], iteration: int) -> None:
        if iteration >= self.broken_at:
            raise ConnectionError("secret-token-in-url")
        self.images = {name: (path.name, iteration) for name, path in images.items()}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder(Path(), {})
    monkeypatch.setitem(TRACKERS, "recorder", lambda run_dir, config: made)
    return made


@pytest.mark.parametrize("name", list(TRACKERS))
def test_a_tracker_that_cannot_be_imported_gives_one_warning_and_never_stops(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def absent(module: str) -> None:
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(services.importlib, "import_module", absent)
    with MetricsWriter(tmp_path / "metrics.jsonl", Trackers([name], tmp_path, {})) as writer:
        writer.write(RECORD)
        writer.write({**RECORD, "iteration": 2})
    warnings = [entry for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert len(warnings) == 1 and name in warnings[0].getMessage()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


def test_what_is_not_installed_is_said_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda package: package == "wandb" or None)
    trackers.check_trackers(["wandb"])
    arguments = [f"run.dir={tmp_path / 'run'}", "trackers=[wandb, mlflow, tensorboard]"]
    started = run_here("train", "two-scale", *arguments)
    assert started.returncode == 2 and "device:" not in started.stderr
    assert started.stderr.startswith("error: trackers: mlflow, tensorboard: not installed\n")
    assert "pip install 'customized-grpo[mlflow,tensorboard]'" in started.stderr
    assert not (tmp_path / "run").exists()


def test_every_tracker_has_an_extra_that_installs_it() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, tracker in TRACKERS.items():
        (requirement,) = extras[tracker.extra]  # type: ignore[attr-defined]
        assert requirement.startswith(tracker.package), name  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [member.value for member in LoggerType])
def test_every_name_that_accelerate_knows_is_offered_or_refused_with_its_reason(name: str) -> None:
    if name in TRACKERS:
        assert load_config("toybox", [f"trackers=[{name}]"]).trackers == (name,)
        return
    with pytest.raises(UserError) as refused:
        load_config("toybox", [f"trackers=[{name}]"])
    assert f"trackers: {name} is not offered: {REFUSED[name]}\n" in refused.value.message
    assert f"There are {', '.join(TRACKERS)}; metrics.jsonl has" in refused.value.message


def test_a_tracker_is_said_to_take_no_images_where_accelerate_has_none_for_it() -> None:
    for name, reason in REFUSED.items():
        if name != "all":
            takes_images = "log_images" in vars(LOGGER_TYPE_TO_CLASS[name])
            assert takes_images != ("takes no images" in reason), name


def test_a_raising_tracker_is_dropped_with_one_warning_that_hides_its_message(
    recorder: Recorder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.broken_at = 2
    tracked = Trackers(["recorder"], tmp_path, {})
    for iteration in range(1, 6):
        tracked.log({**RECORD, "iteration": iteration})
    tracked.close()
    warnings = [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert len(warnings) == 1 and "ConnectionError" in warnings[0]
    assert "secret-token-in-url" not in warnings[0]
    assert len(recorder.seen) == 1 and tracked.active == ()


def test_only_numbers_are_sent(recorder: Recorder, tmp_path: Path) -> None:
    tracked = Trackers(["recorder"], tmp_path, {})
    tracked.log(RECORD)
    tracked.log({"kind": "event", "iteration": 1, "event": "stop", "message": "x"})
    assert recorder.seen == [({"train/rollouts": 8.0, "train/reward/prompt": 0.5}, 1)]


def test_no_tag_is_shared_by_training_and_held_out_values(recorder: Recorder, tmp_path: Path) -> None:
    trackers = Trackers(["recorder"], tmp_path, {})
    trackers.log(RECORD)
    trackers.log({**RECORD, "kind": "eval"})
    (trained, _), (held_out, _) = recorder.seen
    assert not trained.keys() & held_out.keys()
    assert trained["train/reward/prompt"] == held_out["held_out/reward/prompt"]


def test_closing_the_writer_closes_the_trackers(recorder: Recorder, tmp_path: Path) -> None:
    MetricsWriter(tmp_path / "metrics.jsonl", Trackers(["recorder"], tmp_path, {})).close()
    assert recorder.closed


def test_an_unknown_tracker_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wandbb.*tensorboard"):
        Trackers(["wandbb"], tmp_path, {})


def test_the_tensorboard_adapter_writes_an_event_file(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tracked = Trackers(["tensorboard"], tmp_path, {})
    tracked.log(RECORD)
    assert tracked.active == ("tensorboard",)
    tracked.close()
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.fixture
def samples(tmp_path: Path) -> list[Path]:
    """Two images as an evaluation draws them: a red one and a green one."""
    paths = [tmp_path / "00.png", tmp_path / "01.png"]
    for path, colour in zip(paths, ["red", "lime"], strict=True):
        Image.new("RGB", (6, 4), colour).save(path)
    return paths


def test_sample_images_have_a_tag_for_each_prompt(
    recorder: Recorder, samples: list[Path], tmp_path: Path
) -> None:
    Trackers(["recorder"], tmp_path, {}).log_images(samples, 10)
    assert recorder.images == {"samples/00": ("00.png", 10), "samples/01": ("01.png", 10)}


def test_a_tracker_that_refuses_images_is_dropped(
    recorder: Recorder, samples: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.broken_at = 10
    tracked = Trackers(["recorder"], tmp_path, {})
    tracked.log_images(samples, 10)
    assert tracked.active == () and "ConnectionError" in caplog.text


def test_tensorboard_shows_the_images_pixel_by_pixel(samples: list[Path], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracked = Trackers(["tensorboard"], tmp_path, {})
    tracked.log_images(samples, 10)
    tracked.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0}).Reload()
    (event,) = events.Images("samples/01")
    shown = Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB")
    assert event.step == 10 and shown.size == (6, 4) and shown.getcolors() == [(24, (0, 255, 0))]


class FakeService(ModuleType):
    """The part of wandb's and trackio's interface that is used; what arrives is kept."""

    def __init__(self) -> None:
        super().__init__("service")
        self.starts: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.Image = lambda path: ("image", Path(path).name)

    def init(self, **options: Any) -> FakeService:
        self.starts.append(options)
        return self

    def define_metric(self, *_: object, **__: object) -> None: ...

    def log(self, row: dict[str, Any], step: int | None = None) -> None:
        self.rows.append({**row, "step": step})

    def finish(self) -> None: ...


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_services_get_images_as_their_own_class(
    name: str, samples: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = FakeService()
    monkeypatch.setitem(sys.modules, name, service)
    Trackers([name], tmp_path, {}).log_images(samples, 10)
    (row,) = service.rows
    assert row["samples/00"] == ("image", "00.png") and 10 in (row.get("iteration"), row["step"])


def test_a_resumed_run_goes_on_in_the_same_run_of_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = FakeService()
    monkeypatch.setitem(sys.modules, "wandb", service)
    for folder in ("one", "one", "other"):
        (tmp_path / folder).mkdir(exist_ok=True)
        Trackers(["wandb"], tmp_path / folder, {}).close()
    first, again, other = [start["id"] for start in service.starts]
    assert first == again != other and {start["resume"] for start in service.starts} == {"allow"}


def test_the_real_wandb_takes_numbers_and_images_offline(
    samples: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    for variable in ("WANDB_API_KEY", "WANDB_MODE"):  # without a key it is offline by itself
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    tracked = Trackers(["wandb"], tmp_path, {})
    tracked.log(RECORD)
    tracked.log_images(samples, 1)
    assert tracked.active == ("wandb",)
    tracked.close()
    (written,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    # its own process writes on after `finish`
    wait_until(lambda: written.stat().st_size > 500)
    assert len(list((tmp_path / "wandb").glob("offline-run-*/files/media/images/samples/*.png"))) == 2


def test_a_tracker_that_asks_for_a_key_gets_no_keyboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights & Biases asks at a terminal, and a run on a machine that nobody watches would wait for ever."""

    class Keyboard(io.StringIO):
        def isatty(self) -> bool:
            return True

    def ask(run_dir: Path, config: Mapping[str, Any]) -> Recorder:
        assert not sys.stdin.isatty()
        input("key: ")
        raise AssertionError("somebody typed a key")

    keyboard = Keyboard("a key\n")
    monkeypatch.setattr(sys, "stdin", keyboard)
    monkeypatch.setitem(TRACKERS, "wandb", ask)
    assert Trackers(["wandb"], tmp_path, {}).active == ()
    assert sys.stdin is keyboard
    assert "tracker wandb is off for this run (EOFError)" in caplog.text
    assert "WANDB_API_KEY" in caplog.text


def test_wandb_without_a_key_is_kept_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class UsageError(Exception):
        """The name that wandb gives it."""

    class Keyless(FakeService):
        def init(self, **options: Any) -> FakeService:
            super().init(**options)
            if options.get("mode") != "offline":
                raise UsageError("No API key configured. Use `wandb login` to log in.")
            return self

    service = Keyless()
    monkeypatch.setitem(sys.modules, "wandb", service)
    for variable in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    tracked = Trackers(["wandb"], tmp_path, {})
    assert tracked.active == ("wandb",) and service.starts[-1]["mode"] == "offline"
    (warning,) = [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert "kept offline" in warning and "wandb sync" in warning
    # a key that the service refuses is no reason to hide the run from it
    monkeypatch.setenv("WANDB_API_KEY", "wrong")
    assert Trackers(["wandb"], tmp_path, {}).active == ()


def test_the_real_mlflow_keeps_numbers_images_and_settings_in_one_run_after_a_resume(
    samples: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tmp_path / "run"
    run.mkdir()
    for iteration, seed in ((1, 0), (2, 7)):
        tracked = Trackers(["mlflow"], run, {"run": {"seed": seed}})
        tracked.log({**RECORD, "iteration": iteration, "score/my reward: 50 %": 0.25})
        tracked.log({**RECORD, "kind": "eval", "iteration": iteration, "reward/prompt": 0.75})
        tracked.log_images(samples, iteration)
        assert tracked.active == ("mlflow",)
        tracked.close()
    client = mlflow.MlflowClient((run / "mlruns").as_uri())
    (experiment,) = client.search_experiments(filter_string="name = 'customized-grpo'")
    (kept,) = client.search_runs([experiment.experiment_id])
    assert kept.info.run_name == "run" and kept.data.params == {"run.seed": "0"}
    assert [point.step for point in client.get_metric_history(kept.info.run_id, "train/reward/prompt")] == [
        1,
        2,
    ]
    assert kept.data.metrics["held_out/reward/prompt"] == 0.75
    assert kept.data.metrics["train/score/my reward: 50 _"] == 0.25
    images = [file.path for file in client.list_artifacts(kept.info.run_id, "samples/iteration_000002")]
    assert images == ["samples/iteration_000002/00.png", "samples/iteration_000002/01.png"]
