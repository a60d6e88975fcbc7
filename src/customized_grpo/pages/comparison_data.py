"""The content of results.json as the page of a comparison needs it; what was not measured is None."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from customized_grpo.errors import UserError
from customized_grpo.pages.plots.numbers import Measurement

FORMAT = 1
"""Format of results.json that this version reads."""

OWN_COLOURS = ("arm1", "arm2", "arm3", "arm4", "arm5")
"""Colours of the highlighted arms; the naive one among them has the colour of the front.

More than six lines in one chart cannot be told apart.
"""

RANKS = {"method": 0, "control": 1, "rival": 2, "front": 3}
"""Order of the roles in which arms get a colour."""

DEFAULT_WEIGHT = 0.5
"""Prompt weight of the schedule "constant" where neither arm nor recipe sets it."""

Record = Mapping[str, Any]
"""A JSON object of results.json."""


@dataclass(frozen=True)
class Pair:
    """The metrics of identity and of prompt following that the page compares by.

    Attributes:
        identity: Metric of identity.
        prompt: Metric of prompt following.
        identity_name: Its name on the page.
        prompt_name: Its name on the page.
        judged: Whether held-out judges measure them.
    """

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
class ArmView:
    """One arm of the comparison, as the page shows it.

    Attributes:
        number: From 1, in the order of the comparison; its key in every figure.
        name: Name in folders and results.
        label: Name on the page.
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
        """Return the number and the label."""
        return f"{self.number} {self.label}"

    @property
    def finished(self) -> list[Record]:
        """Return the runs that finished."""
        return [run for run in self.runs if run["state"] == "finished"]

    def measurement(self, part: str, metric: str) -> Measurement | None:
        """Return a metric in "final", "change" or "against_control"; None when it was not measured."""
        return read_measurement((self.result.get(part) or {}).get(metric))

    @property
    def margin(self) -> Measurement | None:
        """Return how far the arm lies outside the region that the front dominates; None if not measured."""
        return read_measurement((self.result.get("outside_front") or {}).get("margin"))

    @property
    def seeds_with_front(self) -> int:
        """Return by how many seeds the arm was compared with the front; 0 if it was not."""
        entry = self.result.get("outside_front")
        # results of earlier versions do not say it; their arms had all seeds
        return int(entry.get("seeds", len(self.finished))) if entry else 0


@dataclass(frozen=True)
class ComparisonData:
    """A whole comparison.

    Attributes:
        name: Its name.
        config: The base recipe.
        seeds: Seeds of every arm.
        threads: Threads of a run; None in results that do not say.
        versions: Versions of the package and its libraries, and the commit.
        definitions: {"term", "text"} of the terms of the verdicts.
        verdicts: The verdicts in sentences.
        arms: All arms without the base.
        base: The base model's value of every metric.
        pair: The metrics that arms are compared by; None before an arm has them.
        front: Arms of constant weights with finished runs, by weight.
        base_counts: Whether the base is also one of the points that others have to leave behind.
        hypervolume: Hypervolume of the front.
        reference: The corner from which it is measured.
        gains: (arm, hypervolume that it adds to the front).
        decisions: When each quality is decided; empty when it was not measured.
        votes: Results of blind votes between two runs, see `pages/votes.py`.
        joined: Results of other comparisons that gave runs, each with `runs` and `versions`.
    """

    name: str
    config: Mapping[str, Any]
    seeds: Sequence[int]
    threads: int | None
    versions: Mapping[str, Any]
    definitions: Sequence[Mapping[str, str]]
    verdicts: Sequence[str]
    arms: Sequence[ArmView]
    base: Mapping[str, Measurement]
    pair: Pair | None
    front: Sequence[ArmView] = ()
    base_counts: bool = False
    hypervolume: Measurement | None = None
    reference: Sequence[float] = (0, 0)
    gains: Sequence[tuple[ArmView, Measurement]] = ()
    decisions: Record = field(default_factory=dict)
    votes: Sequence[Record] = ()
    joined: Sequence[Record] = ()

    @property
    def runs(self) -> list[Record]:
        """Return all planned runs."""
        runs: list[Record] = []
        for arm in self.arms:
            runs += arm.runs
        return runs

    def arm(self, name: str | None) -> ArmView | None:
        """Return the arm of a name."""
        return next((arm for arm in self.arms if arm.name == name), None)


def read_comparison(results: Mapping[str, Any]) -> ComparisonData:
    """Read the results of a comparison, finished or not.

    Raises:
        UserError: They have another format.
    """
    if results.get("format") != FORMAT:
        raise UserError(
            f"these results have format {results.get('format')}, this version reads format {FORMAT}",
            hint="Write the page with the version that made the comparison.",
        )
    analysis: Record = results.get("analysis") or {}
    front: Record = analysis.get("front") or {}
    front_names: Sequence[str] = front.get("arms") or ()
    arms = _with_colours(_arms(results, analysis, front_names))
    # an arm without a finished run has no point to draw
    weighted = [arm for arm in arms if arm.weight is not None and arm.finished]
    return ComparisonData(
        name=results["name"],
        config=results["config"],
        seeds=results["seeds"],
        threads=results.get("threads_per_run"),
        versions=results.get("versions") or {},
        definitions=results.get("definitions") or (),
        verdicts=analysis.get("verdicts") or (),
        arms=arms,
        base=_base(analysis),
        pair=_pair(arms),
        front=sorted(weighted, key=lambda arm: arm.weight or 0),
        base_counts="base" in front_names,
        hypervolume=read_measurement(front.get("hypervolume")),
        reference=front.get("reference") or (0, 0),
        gains=_gains(analysis, arms),
        decisions=results.get("decisions") or {},
        votes=results.get("votes") or (),
        joined=results.get("joined") or (),
    )


def read_measurement(entry: Record | None) -> Measurement | None:
    """Return an entry with mean, low and high; None without a mean."""
    if not entry or entry.get("mean") is None:
        return None
    return Measurement(entry["mean"], entry.get("low"), entry.get("high"))


def _base(analysis: Record) -> dict[str, Measurement]:
    base = {}
    for metric, entry in (analysis.get("base") or {}).items():
        measurement = read_measurement(entry)
        if measurement is not None:
            base[metric] = measurement
    return base


def _gains(analysis: Record, arms: Sequence[ArmView]) -> list[tuple[ArmView, Measurement]]:
    by_name = {arm.name: arm for arm in arms}
    gains = []
    for entry in analysis.get("hypervolume_gain") or ():
        gain = read_measurement(entry)
        if gain is not None:
            gains.append((by_name[entry["arm"]], gain))
    return gains


def _arms(results: Mapping[str, Any], analysis: Record, front: Sequence[str]) -> list[ArmView]:
    """Return the arms without colours; `front` names those on the front."""
    analysed = {entry["name"]: entry for entry in analysis.get("arms") or ()}
    entries = [entry for entry in results["arms"] if entry["role"] != "base"]
    arms = []
    # numbered in the order of the results: the base, which has no number, is left out first
    for number, entry in enumerate(entries, start=1):
        on_front = entry["name"] in front or entry["role"] == "front"
        arms.append(
            ArmView(
                number=number,
                name=entry["name"],
                label=entry["label"],
                role=entry["role"],
                note=entry.get("note") or "",
                overrides=entry.get("overrides") or {},
                # None keeps an arm out of the front: all figures tell the two apart by it
                weight=_weight(entry, results["config"]) if on_front else None,
                runs=[run for run in results["runs"] if run["arm"] == entry["name"]],
                result=analysed.get(entry["name"], {}),
            )
        )
    return arms


def _weight(arm: Mapping[str, Any], config: Mapping[str, Any]) -> float:
    """Return the constant prompt weight of an arm of the front: its own, the recipe's, or the default."""
    overrides = arm.get("overrides") or {}
    schedule = config.get("schedule") or {}
    places = (
        # the arm's own setting wins, as it did when the run was made
        overrides.get("schedule.prompt_weight"),
        overrides.get("schedule.options.prompt_weight"),
        (schedule.get("options") or {}).get("prompt_weight"),
        schedule.get("prompt_weight"),  # results written before options had a section of their own
    )
    for value in places:
        if value is not None:
            return float(value)
    return DEFAULT_WEIGHT


def _pair(arms: Sequence[ArmView]) -> Pair | None:
    """Return the best pair of metrics that some arm has."""
    for pair in PAIRS:
        for arm in arms:
            if arm.measurement("final", pair.identity) and arm.measurement("final", pair.prompt):
                return pair
    return None


def _with_colours(arms: Sequence[ArmView]) -> list[ArmView]:
    """Return the arms with the naive one nearest to 1:1 highlighted and up to five others, methods first."""
    weighted = [arm for arm in arms if arm.weight is not None]
    # 0.5 is 1:1, because identity has the rest of 1
    naive = min(weighted, key=lambda arm: abs((arm.weight or 0.0) - 0.5), default=None)
    others = [arm for arm in arms if naive is None or arm.name != naive.name]
    # sorted is stable, so that arms of one role keep the order of the comparison
    by_rank = sorted(others, key=lambda arm: RANKS[arm.role])
    # not strict: the arms after the last colour are drawn in the small charts
    own = {arm.name: colour for arm, colour in zip(by_rank, OWN_COLOURS, strict=False)}
    if naive is not None:
        own[naive.name] = "plain"
    coloured = []
    for arm in arms:
        default = "soft" if arm.weight is None else "plain"
        coloured.append(replace(arm, colour=own.get(arm.name, default), highlighted=arm.name in own))
    return coloured
