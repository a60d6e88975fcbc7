"""Results of earlier comparisons of the same recipe, joined to the runs of this one.

`cgrpo compare RECIPE --also results.json` takes runs of another machine, or runs whose folders are gone, as
they are: they are not trained again, and the page shows them beside the new ones. A copy stays in
FOLDER/also, so later calls in the folder show them too.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from customized_grpo.comparison.arms import Arm
from customized_grpo.comparison.plan import Plan, different_settings
from customized_grpo.config import Config
from customized_grpo.errors import UserError
from customized_grpo.evaluation.scores import MIN_CLUSTERS
from customized_grpo.files import write_bytes

FOLDER = "also"
MAX_BYTES = 256 * 1024**2
"""Limit of a file of results, unpacked. A run of 30 iterations and 48 subjects takes some 15 kB."""

LARGEST = 1e30
"""Limit of a number: far above any score, and its fourth power is still finite, as statistics need."""

Number = Annotated[
    float, Field(ge=-LARGEST, le=LARGEST)
]  # NaN, which JSON as Python reads it may hold, is none
Record = dict[str, Number | None]
BySubject = dict[str, list[Number | None]]


class JoinedRun(BaseModel):
    """A run as results.json keeps it, see `results.collect`."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    arm: str
    seed: int
    state: Literal["finished", "unfinished", "missing"]
    rollouts: int | None
    wall_s: Number | None
    evals: list[Record]
    train: list[Record]
    alarms: list[str]
    degraded: bool | None
    subjects: list[str] | None = None
    before: BySubject | None = None
    after: BySubject | None = None
    left_out: str | None = None

    @model_validator(mode="after")
    def _records_are_placed(self) -> Self:
        """Check that every record of a curve says where it belongs.

        Raises:
            ValueError: One does not.
        """
        for record in (*self.evals, *self.train):
            if record.get("iteration") is None or record.get("rollouts") is None:
                raise ValueError(f"{self.arm} (seed {self.seed}) has a record without iteration or rollouts")
        return self

    @model_validator(mode="after")
    def _scores_are_complete(self) -> Self:
        """Check that a judged run has a score of every subject, before and after, for each metric.

        A score is None where nothing could be measured; at least two subjects have one.

        Raises:
            ValueError: Which metric lacks scores.
        """
        # All three or none.
        if self.subjects is None and self.before is None and self.after is None:
            return self  # a recipe without evaluation
        if self.subjects is None or self.before is None or self.after is None:
            raise ValueError(f"{self.arm} (seed {self.seed}) lacks one of subjects, before and after")
        for metric in {**self.before, **self.after}:
            before = self.before.get(metric, [])
            after = self.after.get(metric, [])
            if not len(before) == len(after) == len(self.subjects):
                raise ValueError(f"{self.arm} (seed {self.seed}) lacks scores of {metric}")
            pairs = zip(before, after, strict=True)
            # A pair with a missing half cannot be subtracted.
            if sum(old is not None and new is not None for old, new in pairs) < MIN_CLUSTERS:
                raise ValueError(f"{self.arm} (seed {self.seed}) has too few scores of {metric}")
        return self


class Results(BaseModel):
    """What is read of a results.json."""

    model_config = ConfigDict(strict=True, frozen=True)

    format: Literal[1]
    config: Config
    arms: list[Arm]
    threads_per_run: int
    versions: dict[str, str | None | dict[str, str | bool | None]]
    runs: list[JoinedRun]


@dataclass(frozen=True)
class Joined:
    """The finished runs of earlier comparisons.

    Attributes:
        results: Their results, by file.
        content: The same as JSON, to be kept in the folder.
    """

    results: Mapping[Path, Results]
    content: Mapping[Path, bytes]

    @property
    def arms(self) -> list[Arm]:
        """Return the arms with finished runs, each once."""
        arms: dict[str, Arm] = {}
        for results in self.results.values():
            finished = {run.arm for run in results.runs if run.state == "finished"}
            for arm in results.arms:
                # An arm that names its control says more than one that does not.
                if arm.name in finished and (arm.name not in arms or arms[arm.name].control is None):
                    arms[arm.name] = arm
        return list(arms.values())

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Return the finished runs as `results.collect` describes them."""
        runs = []
        for results in self.results.values():
            runs += [run.model_dump(exclude_unset=True) for run in results.runs if run.state == "finished"]
        return runs

    @property
    def done(self) -> frozenset[tuple[str, int]]:
        """Return the arm and seed of every run."""
        return frozenset((run["arm"], run["seed"]) for run in self.runs)

    @property
    def sources(self) -> list[dict[str, Any]]:
        """Return, for each file, how many runs it has and the versions that trained them."""
        sources = []
        for results in self.results.values():
            finished = [run for run in results.runs if run.state == "finished"]
            sources.append({"runs": len(finished), "versions": results.versions})
        return sources

    def check(self, plan: Plan) -> None:
        """Check that these runs and those of a plan can be compared.

        Raises:
            UserError: Recipe, threads or the overrides of an arm differ.
        """
        planned = {arm.name for arm in plan.arms}
        seen: dict[str, Arm] = {}
        for file, results in self.results.items():
            changed = different_settings(results.config, results.arms, results.threads_per_run, plan)
            for arm in results.arms:
                # those of the plan are compared with it, the others with each other
                other = seen.setdefault(arm.name, arm)
                if other.overrides != arm.overrides and arm.name not in planned:
                    changed.append(f"arm {arm.name!r}: {arm.overrides} there, {other.overrides} elsewhere")
            if changed:
                raise UserError(
                    f"{file} holds results of other settings:\n  " + "\n  ".join(changed),
                    hint="Its runs and those of this comparison could not be compared; leave out --also.",
                )

    def keep(self, folder: Path) -> None:
        """Copy the results into the folder of a comparison; a copy that is there already stays."""
        for content in self.content.values():
            path = folder / FOLDER / f"{sha256(content).hexdigest()[:16]}.json"
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                write_bytes(path, content)


def read_joined(folder: Path, files: Sequence[Path] = ()) -> Joined:
    """Read the results that a folder keeps, and more.

    Args:
        folder: Of the comparison; it need not exist.
        files: results.json of other comparisons, plain or compressed (.gz).

    Raises:
        UserError: A file is missing, damaged, of another format, or has no finished run.
    """
    results: dict[Path, Results] = {}
    contents: dict[Path, bytes] = {}
    for file in [*sorted((folder / FOLDER).glob("*.json")), *files]:
        content = _read(file)
        # By content: the copy in the folder and the file it came from are one.
        if content in contents.values():
            continue  # given again
        results[file] = _parse(file, content)
        contents[file] = content
    return Joined(results, contents)


def unique_runs(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs, each arm and seed once: a finished one, if there is one.

    Raises:
        UserError: A finished run is there twice with different scores.
    """
    unique: dict[tuple[str, int], dict[str, Any]] = {}
    for run in runs:
        key = (run["arm"], run["seed"])
        other = unique.setdefault(key, run)
        if other["state"] != "finished":
            unique[key] = run  # begun here, and finished elsewhere
        elif run["state"] == "finished" and other.get("after") != run.get("after"):
            raise UserError(
                f"{run['arm']} (seed {run['seed']}) is there twice, with different scores",
                hint="Machines differ in the last bits, which training amplifies; take one file of the two.",
            )
    return list(unique.values())


def _read(file: Path) -> bytes:
    """Return the content of a file of results, unpacked.

    Raises:
        UserError: It cannot be read, or is too large.
    """
    opener = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rb") as stream:
            # A small compressed file may unpack to any size; reading stops one byte above the limit.
            content: bytes = stream.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{file}: more than {MAX_BYTES:,} bytes, the limit of such a file")
    return content


def _parse(file: Path, content: bytes) -> Results:
    """Return the results of a file.

    Raises:
        UserError: They are damaged, of another version, or have no finished run.
    """
    try:
        results = Results.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{file}: not results of this version of `cgrpo compare`: {place}: {first['msg']}",
            hint="Give the results.json of a comparison, or a copy compressed by gzip.",
        ) from error
    if not any(run.state == "finished" for run in results.runs):
        raise UserError(
            f"{file}: none of its runs has finished",
            hint="Call its `cgrpo compare` command again to finish them, or leave out --also.",
        )
    return results
