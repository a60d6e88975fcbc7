"""A comparison as Markdown: verdicts and tables, for a README, an issue or a paper's notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

IDENTITY, PROMPT, COPY = "judge/identity", "judge/prompt", "monitor/copy_score"
NONE = "–"


def comparison_markdown(results: Mapping[str, Any]) -> str:
    """Return verdicts, definitions, all arms, differences from controls and quadrants.

    Args:
        results: What `cgrpo compare` writes to results.json.
    """
    analysis = results["analysis"]
    sections = {
        "Arms": arms_table(results),
        "Against controls": controls_table(results),
        "Quadrants of the training samples": quadrants_table(results),
        "Words": "\n".join(f"* **{one['term']}**: {one['text']}" for one in results["definitions"]),
    }
    parts = [f"# {_escape(results['name'])}: comparison", _facts(results)]
    parts += ["\n".join(f"* {_escape(sentence)}" for sentence in analysis["verdicts"])]
    parts += [f"## {title}\n\n{body}" for title, body in sections.items() if body]
    return "\n\n".join(part for part in parts if part) + "\n"


def arms_table(results: Mapping[str, Any]) -> str:
    """Return one row per arm with final scores, degraded runs, margin and copy score."""
    analysis = results["analysis"]
    labels = {arm["name"]: arm["label"] for arm in results["arms"]}
    rows = [["arm", "runs", "identity", "prompt", "degraded", "margin outside the front", "copy score"]]
    base = analysis["base"]
    rows.append(["*base*", "", *(_value(base.get(metric)) for metric in (IDENTITY, PROMPT)), "", "", ""])
    rows[-1][-1] = _value(base.get(COPY))
    for entry in analysis["arms"]:
        final = entry["final"] or {}
        margin = (entry["outside_front"] or {}).get("margin")
        rows.append(
            [
                _escape(labels[entry["name"]]),
                str(entry["runs"]),
                *(_value(final.get(metric)) for metric in (IDENTITY, PROMPT)),
                f"{entry['degraded']} of {entry['runs']}" if entry["runs"] else NONE,
                _value(margin, sign=True),
                _value(final.get(COPY)),
            ]
        )
    return _table(rows)


def controls_table(results: Mapping[str, Any]) -> str:
    """Return the paired difference of every arm from its control; empty if there is none."""
    labels = {arm["name"]: arm["label"] for arm in results["arms"]}
    rows = [["arm", "against", "identity", "p", "prompt", "p"]]
    for entry in results["analysis"]["arms"]:
        test = entry["against_control"]
        if test is not None:
            cells = [
                c for m in (IDENTITY, PROMPT) for c in (_value(test[m], sign=True), _p(test[m]["p_holm"]))
            ]
            rows.append([_escape(labels[entry["name"]]), _escape(labels[test["control"]]), *cells])
    return _table(rows) if len(rows) > 1 else ""


def quadrants_table(results: Mapping[str, Any]) -> str:
    """Return conflict with its null, both other quadrants and the spread of both rewards; empty if none."""
    labels = {arm["name"]: arm["label"] for arm in results["arms"]}
    rows = [["arm", "conflict (null)", "both positive", "both negative", "prompt spread", "identity spread"]]
    for entry in results["analysis"]["arms"]:
        shares, spread = entry["quadrants"], entry["group_std"]
        if shares is not None and spread is not None:
            conflict = f"{shares['conflict']:.1%} ({shares['null']:.1%})"
            others = [f"{shares[name]:.1%}" for name in ("both_positive", "both_negative")]
            numbers = [f"{spread[kind]:.3f}" for kind in ("prompt", "identity")]
            rows.append([_escape(labels[entry["name"]]), conflict, *others, *numbers])
    return _table(rows) if len(rows) > 1 else ""


def _facts(results: Mapping[str, Any]) -> str:
    finished = [run for run in results["runs"] if run["state"] == "finished"]
    hours = sum(run["wall_s"] for run in finished) / 3600
    rollouts = max((run["rollouts"] for run in finished), default=0)
    return (
        f"{len(results['arms'])} arms, seeds {', '.join(map(str, results['seeds']))}; {len(finished)} of "
        f"{len(results['runs'])} runs finished, {rollouts:,} rollouts each, {hours:.1f} hours of "
        f"{results['threads_per_run']}-thread runs. 95 % intervals in brackets."
    )


def _value(value: Mapping[str, float] | None, sign: bool = False) -> str:
    if value is None:
        return NONE
    form = "+.3f" if sign else ".3f"
    return f"{value['mean']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}".lstrip("0")


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def _escape(text: str) -> str:
    """Keep what is written in names from becoming markup."""
    for character in "\\|*_<>`":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())
