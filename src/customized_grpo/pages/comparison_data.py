"""What the page of a comparison reads from results.json, as plain data; what was not measured is absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from customized_grpo.errors import UserError
from customized_grpo.pages.plots.numbers import Interval

FORMAT = 1

OWN_COLOURS = ("arm1", "arm2", "arm3", "arm4", "arm5")
"""Of the highlighted arms but the naive one, which has that of the front."""

HIGHLIGHTED = len(OWN_COLOURS) + 1
"""Arms in the main charts; more lines in one chart cannot be told apart."""

RANKS = {"method": 0, "control": 1, "rival": 2, "front": 3}
"""Who gets a colour first."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """The metrics of identity and of prompt following that the page compares by, and what they are called."""

    identity: str
    prompt: str
    identity_name: str
    prompt_name: str
    judged: bool


PAIRS = (
    Pair("judge/identity", "judge/prompt", "Held-out identity", "Held-out prompt accuracy", judged=True),
    Pair("reward/identity", "reward/prompt", "Identity reward", "Prompt reward", judged=False),
)
"""Best first. Without judges the rewards have to do, though they are what training maximised."""


@dataclass(frozen=True)
class Arm:
    """One arm of the comparison.

    Attributes:
        number: From 1, in the order of the comparison; its key in every figure.
        name: In overrides and folders.
        label: For people.
        role: "front", "method", "control" or "rival".
        note: What it changes, in a sentence.
        overrides: Settings that differ from the base recipe.
        weight: Constant weight of the prompt reward, for arms of the front.
        runs: All planned runs.
        result: Its entry of the analysis; empty before a run has finished.
        colour: Name of a colour variable in charts.css.
        highlighted: Whether it is drawn in the main charts.
    """

    number: int
    name: str
    label: str
    role: str
    note: str
    overrides: Mapping[str, Any]
    weight: float | None
    runs: Sequence[Record]
    result: Record
    colour: str = "soft"
    highlighted: bool = False

    @property
    def title(self) -> str:
        """Number and label."""
        return f"{self.number} {self.label}"

    @property
    def finished(self) -> list[Record]:
        """The runs that finished."""
        return [run for run in self.runs if run["state"] == "finished"]

    def interval(self, part: str, metric: str) -> Interval | None:
        """A metric's interval in "final", "change" or "against_control"; None when there is none."""
        return interval((self.result.get(part) or {}).get(metric))


@dataclass(frozen=True)
class ComparisonData:
    """A whole comparison; what is not explained here is as in results.json.

    Attributes:
        command: What runs the comparison again, but for the choice of its arms.
        arms: Without the base.
        base: The base model's value of every metric.
        pair: What the arms are compared by; None before an arm has it.
        front: Arms of constant weights with finished runs, by weight.
        base_counts: Whether the base, too, is one of the points that others have to leave behind.
        hypervolume: Of the front.
        reference: The corner from which it is measured.
        gains: (arm, what it adds to the hypervolume).
        steps: The step gains; empty when they were not measured.
    """

    name: str
    command: Sequence[str]
    config: Mapping[str, Any]
    seeds: Sequence[int]
    threads: int | None
    versions: Mapping[str, Any]
    definitions: Sequence[Mapping[str, str]]
    verdicts: Sequence[str]
    arms: Sequence[Arm]
    base: Mapping[str, Interval]
    pair: Pair | None
    front: Sequence[Arm] = ()
    base_counts: bool = False
    hypervolume: Interval | None = None
    reference: Sequence[float] = (0, 0)
    gains: Sequence[tuple[Arm, Interval]] = ()
    steps: Record = field(default_factory=dict)

    @property
    def runs(self) -> list[Record]:
        """All planned runs."""
        return [run for arm in self.arms for run in arm.runs]

    def arm(self, name: str | None) -> Arm | None:
        """The arm of a name."""
        return next((arm for arm in self.arms if arm.name == name), None)


def read_comparison(results: Mapping[str, Any]) -> ComparisonData:
    """Read the results of a comparison, finished or not.

    Raises:
        UserError: They have another format.
    """
    if results.get("format") != FORMAT:
        raise UserError(
            f"these results have format {results.get('format')}, this version reads format {FORMAT}",
            "Write the page with the version that made the comparison.",
        )
    analysis: Record = results.get("analysis") or {}
    front: Record = analysis.get("front") or {}
    arms = _coloured(_arms(results, analysis, front.get("arms") or ()))
    base = {name: span for name, entry in (analysis.get("base") or {}).items() if (span := interval(entry))}
    known = {arm.name: arm for arm in arms}
    gains = [(known[row["arm"]], interval(row)) for row in analysis.get("hypervolume_gain") or ()]
    return ComparisonData(
        name=results["name"],
        command=_command(results),
        config=results["config"],
        seeds=results["seeds"],
        threads=results.get("threads_per_run"),
        versions=results.get("versions") or {},
        definitions=results.get("definitions") or (),
        verdicts=analysis.get("verdicts") or (),
        arms=arms,
        base=base,
        pair=_pair(arms),
        front=sorted((a for a in arms if a.weight is not None and a.finished), key=lambda a: a.weight or 0),
        base_counts="base" in (front.get("arms") or ()),
        hypervolume=interval(front.get("hypervolume")),
        reference=front.get("reference") or (0, 0),
        gains=[(arm, span) for arm, span in gains if span is not None],
        steps=results.get("step_gains") or {},
    )


def _command(results: Mapping[str, Any]) -> list[str]:
    """The words of the command; seeds and threads are said even where they are the default of today."""
    seeds, threads = results["seeds"], results.get("threads_per_run")
    return [
        *("cgrpo", "compare", results.get("recipe") or results["name"], *(results.get("overrides") or ())),
        *("--first-seed", str(seeds[0]), "--seeds", str(len(seeds))),
        *(("--threads", str(threads)) if threads is not None else ()),
    ]


def interval(entry: Record | None) -> Interval | None:
    """An entry with mean, low and high; None without a mean."""
    if not entry or entry.get("mean") is None:
        return None
    return Interval(entry["mean"], entry.get("low"), entry.get("high"))


def _arms(results: Mapping[str, Any], analysis: Record, front: Sequence[str]) -> list[Arm]:
    found = {entry["name"]: entry for entry in analysis.get("arms") or ()}
    shown = [arm for arm in results["arms"] if arm["role"] != "base"]
    return [
        Arm(
            number=index,
            name=arm["name"],
            label=arm["label"],
            role=arm["role"],
            note=arm.get("note") or "",
            overrides=arm.get("overrides") or {},
            weight=_weight(arm, results["config"])
            if arm["name"] in front or arm["role"] == "front"
            else None,
            runs=[run for run in results["runs"] if run["arm"] == arm["name"]],
            result=found.get(arm["name"], {}),
        )
        for index, arm in enumerate(shown, start=1)
    ]


def _weight(arm: Mapping[str, Any], config: Mapping[str, Any]) -> float:
    """The constant prompt weight of an arm of the front: its own, the recipe's, or the default."""
    overrides = arm.get("overrides") or {}
    schedule = config.get("schedule") or {}
    places = (
        overrides.get("schedule.prompt_weight"),
        overrides.get("schedule.options.prompt_weight"),
        (schedule.get("options") or {}).get("prompt_weight"),
        schedule.get("prompt_weight"),  # results written before options had a section of their own
    )
    for value in places:
        if value is not None:
            return float(value)
    return 0.5  # the default of the schedule "constant"


def _pair(arms: Sequence[Arm]) -> Pair | None:
    """The best pair of metrics that some arm has."""
    for pair in PAIRS:
        if any(arm.interval("final", pair.identity) and arm.interval("final", pair.prompt) for arm in arms):
            return pair
    return None


def _coloured(arms: Sequence[Arm]) -> list[Arm]:
    """Highlight the naive arm nearest to 1:1 and up to five others, methods and controls first."""
    weighted = [arm for arm in arms if arm.weight is not None]
    naive = min(weighted, key=lambda arm: abs((arm.weight or 0.0) - 0.5), default=None)
    others = [arm for arm in arms if naive is None or arm.name != naive.name]
    first = sorted(others, key=lambda arm: RANKS[arm.role])
    own = {arm.name: colour for arm, colour in zip(first, OWN_COLOURS, strict=False)}
    if naive is not None:
        own[naive.name] = "plain"
    return [
        replace(
            arm,
            colour=own.get(arm.name, "soft" if arm.weight is None else "plain"),
            highlighted=arm.name in own,
        )
        for arm in arms
    ]
