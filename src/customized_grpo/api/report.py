"""What a run has written, for a notebook or a script."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from customized_grpo.errors import UserError
from customized_grpo.reporting.metrics import Record, read_metrics
from customized_grpo.runs.folder import RunFolder, is_run_folder


class Report:
    """A run's folder, read anew at each access, so that it may still be training.

    A notebook shows it as a table of the held-out measures before and after.

    Args:
        folder: Folder of a run.

    Attributes:
        folder: The same as an absolute path, which another working directory does not change.

    Raises:
        UserError: It is not the folder of a run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        if not is_run_folder(self.folder):
            raise UserError(
                f"{folder} is not the folder of a run",
                hint="Give the folder that `cgrpo train` wrote: it has a config.yaml.",
            )

    @property
    def is_finished(self) -> bool:
        """Whether the run has trained all its iterations."""
        return bool(self.summary.get("finished"))

    @property
    def summary(self) -> dict[str, Any]:
        """Base, tuned and difference of every held-out measure with 95 % intervals; empty until the end."""
        summary: dict[str, Any] | None = RunFolder(self.folder).read_json("summary.json")
        return summary or {}

    @property
    def training(self) -> list[Record]:
        """One record for each iteration: rewards, spread, ratio, times."""
        return self._records("train")

    @property
    def evaluations(self) -> list[Record]:
        """One record for each evaluation on held-out prompts."""
        return self._records("eval")

    @property
    def alarms(self) -> list[str]:
        """Names of the alarms that stand at the latest evaluation."""
        # an alarm that the latest evaluation did not raise again has passed
        latest = max((int(record["iteration"] or 0) for record in self.evaluations), default=0)
        names = []
        for record in self._records("event"):
            if record.get("event") == "alarm" and record["iteration"] == latest:
                names.append(str(record["alarm"]))
        return names

    @property
    def images(self) -> list[Path]:
        """The images of the sample prompts that evaluations drew, in the order of their iterations."""
        return sorted((self.folder / "samples").glob("iteration_*/*.png"))

    @property
    def adapter(self) -> Path:
        """The trained LoRA in diffusers' format; a file once the run has finished."""
        return self.folder / "lora" / "pytorch_lora_weights.safetensors"

    def write(self) -> Path:
        """Write report.html anew, and return its path."""
        from customized_grpo.pages.run_page import write_report

        return write_report(self.folder)

    def _records(self, kind: str) -> list[Record]:
        path = self.folder / "metrics.jsonl"
        # a run that was started a moment ago has no records yet
        if not path.is_file():
            return []
        return [record for record in read_metrics(path) if record["kind"] == kind]

    def __repr__(self) -> str:
        """Return the folder, and how far the run is."""
        done = self.training[-1]["iteration"] if self.training else 0
        state = "finished" if self.is_finished else f"{done} iterations so far"
        return f"Report({str(self.folder)!r}, {state})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        rows = []
        columns = [self.summary.get(name) or {} for name in ("base", "tuned", "difference")]
        for measure in columns[0]:
            cells = "".join(f"<td>{_interval(column.get(measure))}</td>" for column in columns)
            rows.append(f"<tr><th>{escape(measure)}</th>{cells}</tr>")
        head = "<tr><th></th><th>base</th><th>tuned</th><th>difference</th></tr>"
        alarms = f"<p>Alarms: {escape(', '.join(self.alarms))}</p>" if self.alarms else ""
        return f"<p>{escape(repr(self))}</p>{alarms}<table>{head}{''.join(rows)}</table>"


def _interval(value: dict[str, float] | None) -> str:
    if value is None:
        return ""
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
