"""Which figures the report shows, from a run's records; each with one sentence on how to read it.

A figure whose numbers were not measured is left out, so that the page never shows an empty frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from customized_grpo.pages.plots import charts
from customized_grpo.pages.plots.charts import Level, Line, XAxis
from customized_grpo.pages.run_data import RunData
from customized_grpo.reporting.metrics import Record

MAX_POINTS = 240
"""Points of a curve; longer runs are averaged in bins, or the page would grow with the run."""

SMALL = (480, 190)


@dataclass(frozen=True)
class Figure:
    """A titled picture with a sentence that says how to read it."""

    title: str
    picture: Markup
    caption: str


@dataclass(frozen=True)
class Section:
    """Figures under one heading."""

    title: str
    lead: str
    figures: Sequence[Figure]
    wide: bool = False


def sections(run: RunData) -> list[Section]:
    """All sections that have at least one figure, in reading order."""
    found = [
        Section(
            "Learning curves",
            "Above, what training maximised. Below, the same qualities measured by judges that "
            "training never saw, on subjects it never saw: a reward that rises while its judge does not "
            "is being gamed. Axes show the range that occurs; most do not start at 0.",
            _present(
                *(_training(run, kind, WORDS[kind]) for kind in WORDS),
                *(_judge(run, kind, WORDS[kind]) for kind in WORDS),
            ),
        ),
        Section(
            "What the model draws",
            "Averages hide how a model fails. These figures sort the samples.",
            _present(_modes(run), _attributes(run)),
        ),
        Section(
            "The learning signal",
            "What the two rewards tell apart within the samples of one prompt, and how the two are weighed.",
            _present(_quadrants(run), _schedule(run), _group_std(run), _diversity(run)),
        ),
        Section(
            "Reward-hacking monitors",
            "Not trained on, only watched: ways to earn reward without drawing a better picture.",
            [*_monitors(run), *_present(_image_statistics(run), _gap(run))],
        ),
        Section("Policy health", "Whether the optimisation itself is sound. " + _counts(run), _health(run)),
        Section("Where the time went", "", _present(_time(run)), wide=True),
    ]
    return [section for section in found if section.figures]


WORDS = {"prompt": "prompt following", "identity": "identity"}


def _present(*figures: Figure | None) -> list[Figure]:
    return [figure for figure in figures if figure is not None]


def _series(records: Sequence[Record], key: str) -> tuple[list[float], list[float | None]] | None:
    """(rollouts, values) of a metric, or None when it was never measured."""
    rows = [(record.get("rollouts"), record[key]) for record in records if key in record]
    known = [(float(a), b) for a, b in rows if isinstance(a, int | float)]
    x = [a for a, _ in known]
    y = [float(b) if isinstance(b, int | float) else None for _, b in known]
    return (x, y) if any(value is not None for value in y) else None


def bin_means(
    x: Sequence[float], y: Sequence[float | None], limit: int = MAX_POINTS
) -> tuple[list[float], list[float | None]]:
    """At most `limit` points, each the mean of equally many neighbours; None where a bin holds no value."""
    size = -(-len(x) // limit)
    means_x, means_y = [], []
    for start in range(0, len(x), max(size, 1)):
        known = [value for value in y[start : start + size] if value is not None]
        means_x.append(sum(x[start : start + size]) / len(x[start : start + size]))
        means_y.append(sum(known) / len(known) if known else None)
    return means_x, means_y


def rolling_mean(y: Sequence[float | None], window: int) -> list[float | None]:
    """Centred mean over `window` neighbours (fewer at the ends); None stays None."""
    half = window // 2
    smooth: list[float | None] = []
    for index, value in enumerate(y):
        known = [v for v in y[max(0, index - half) : index + half + 1] if v is not None]
        smooth.append(None if value is None else sum(known) / len(known))
    return smooth


def _smooth_line(run: RunData, key: str, name: str, colour: str, **options: Any) -> Line | None:
    """A training metric: the smoothed line over the faint raw one."""
    found = _series(run.train, key)
    if found is None:
        return None
    x, y = bin_means(*found)
    window = len(y) // 16 * 2 + 1
    if window == 1:
        return Line(name, x, y, colour, **options)
    return Line(name, x, rolling_mean(y, window), colour, raw=y, **options)


def _eval_line(run: RunData, key: str, name: str, colour: str, **options: Any) -> Line | None:
    """A held-out metric: its measured points, with a band where intervals were computed."""
    found = _series(run.evals, key)
    if found is None:
        return None
    low, high = _series(run.evals, f"{key}_low"), _series(run.evals, f"{key}_high")
    same = low is not None and high is not None and low[0] == high[0] == found[0]
    line = Line(name, found[0], found[1], colour, dots=len(found[0]) <= 40, **options)
    return replace(line, low=low[1], high=high[1]) if low and high and same else line


def _axis(run: RunData) -> XAxis:
    """Rollouts, with iterations as the second row (both counted by the last record)."""
    rollouts, iteration = run.last.get("rollouts"), run.last.get("iteration")
    if isinstance(rollouts, int) and isinstance(iteration, int) and rollouts > 0:
        return XAxis("rollouts", rollouts, "iteration", iteration / rollouts)
    return XAxis("rollouts", 1.0)


def _alarms(run: RunData) -> list[tuple[float, str]]:
    scale = _axis(run).second_scale
    return [
        (int(event["iteration"] or 0) / scale, str(event.get("message", "")))
        for event in run.events
        if event.get("event") == "alarm" and scale > 0
    ]


def _lines(
    run: RunData, title: str, caption: str, lines: Sequence[Line | None], **options: Any
) -> Figure | None:
    found = [line for line in lines if line is not None]
    if not found:
        return None
    return Figure(title, charts.line_chart(found, _axis(run), title=title, **options), caption)


def _training(run: RunData, kind: str, words: str) -> Figure | None:
    caption = (
        "Mean over the samples of an iteration; faint: each iteration, bold: rolling mean. "
        "Prompts change from iteration to iteration, so single points jump."
    )
    line = _smooth_line(run, f"reward/{kind}", kind, kind)
    return _lines(run, f"Training reward: {words}", caption, [line])


def _judge(run: RunData, kind: str, words: str) -> Figure | None:
    found = _eval_line(run, f"judge/{kind}", "tuned", kind)
    if found is None:
        return None
    key = f"judge/{kind}"
    caption = "Higher is better. 95 % interval, resampled by subject."
    if len(found.x) == 1:
        caption += " So far only one evaluation."
        name = "base" if run.evals[0]["iteration"] == 0 else "tuned"
        return _lines(run, f"Held-out judge: {words}", caption, [replace(found, name=name)], least=0.05)
    first = run.evals[0]
    value, low, high = first.get(key), first.get(f"{key}_low"), first.get(f"{key}_high")
    levels = []
    if first["iteration"] == 0 and isinstance(value, int | float):
        band = (low, high) if isinstance(low, int | float) and isinstance(high, int | float) else (None, None)
        levels = [Level("base", value, *band)]
    alarms = _alarms(run)
    caption = (
        "Higher is better. Bands are 95 % intervals, resampled by subject; the dashed line is the base. "
        "Bands can overlap even where the paired difference of the two models is clear."
        + (" Flags mark alarms." if alarms else "")
    )
    return _lines(run, f"Held-out judge: {words}", caption, [found], levels=levels, marks=alarms, least=0.05)


MODES = (("good", "good"), ("copied", "copied"), ("drift", "drift"), ("other", "other"))


def _modes(run: RunData) -> Figure | None:
    found = [(name, colour, _series(run.evals, f"mode/{name}")) for name, colour in MODES]
    shares = [(name, colour, series) for name, colour, series in found if series is not None]
    if not shares or len(shares[0][2][0]) < 2:
        return None
    x = shares[0][2][0]
    picture = charts.stacked_area(
        x,
        [(name, colour, series[1]) for name, colour, series in shares if series[0] == x],
        _axis(run),
        title="Share of each kind of sample",
    )
    caption = (
        "Each held-out sample is counted as what it is nearest to. Good: the prompted scene with this "
        "subject. Copied: the reference picture again. Drift: the prompted scene with another subject. "
        "Other: none of these."
    )
    return Figure("What samples are", picture, caption)


ATTRIBUTES = (("hat", "good"), ("prop", "prompt"), ("floor", "plain"), ("sky", "drift"))


def _attributes(run: RunData) -> Figure | None:
    if len(run.evals) < 2:
        return None
    lines = [_eval_line(run, f"judge/{name}", name, colour) for name, colour in ATTRIBUTES]
    caption = "Share of held-out samples in which a classifier finds what the prompt asked for, part by part."
    return _lines(run, "Prompt accuracy by part", caption, lines, percent=True)


def _quadrants(run: RunData) -> Figure | None:
    lines = [
        _smooth_line(run, "advantage/conflict", "conflict", "conflict"),
        _smooth_line(run, "advantage/conflict_null", "null", "base", style="dotted"),
        _smooth_line(run, "advantage/both_positive", "both good", "positive"),
        _smooth_line(run, "advantage/both_negative", "both bad", "negative"),
    ]
    caption = (
        "Where a sample stands within its group: better or worse than the group's mean on each reward. "
        "About half of samples conflict even for two unrelated rewards, so compare with the dotted null, "
        "arccos(\u03c1)/\u03c0 at the measured correlation \u03c1 of the two rewards."
    )
    return _lines(run, "Do the two rewards agree?", caption, lines, percent=True)


def _group_std(run: RunData) -> Figure | None:
    lines = [_smooth_line(run, f"reward/{kind}_group_std", kind, kind) for kind in WORDS]
    caption = (
        "Standard deviation of each reward among the samples of one prompt. Near 0 the samples no longer "
        "differ, and normalising by it only amplifies noise."
    )
    return _lines(run, "Spread of the rewards within a group", caption, lines)


def _diversity(run: RunData) -> Figure | None:
    line = _smooth_line(run, "diversity/in_group", "now", "positive")
    caption = "How much the pictures of one group differ. Towards 0 there is nothing left to choose from."
    return _lines(run, "Spread of the pictures within a group", caption, [line])


def _schedule(run: RunData) -> Figure | None:
    """The schedule's weights, as the run wrote them down when it started."""
    name, weights = run.setting("schedule.name"), run.prompt_weights
    if not isinstance(name, str) or weights is None:
        return None
    steps = len(weights)
    window = run.setting("rollout.sde_window") or {}
    fixed = window.get("shift_every") == 0
    first, size = (window.get("start", 0), window.get("size", steps)) if fixed else (0, steps)
    trained = [first <= step < first + size and step < steps - 1 for step in range(steps)]
    caption = (
        f'Schedule "{name}" over the {steps} denoising steps, from noise to picture: the share of each '
        "step's learning signal that comes from the prompt advantage; identity has the rest. "
        "Pale steps are never trained; the last one never is."
    )
    if name == "shuffled_tdw":
        caption += " This control draws a new order in every iteration; one is shown."
    picture = charts.step_weights(weights, title="Weights of the two rewards by step", trained=trained)
    return Figure("Prompt and identity weight by step", picture, caption)


MONITORS = (
    (
        "monitor/copy_score",
        "Copy score",
        "copied",
        "0: as far from the reference as another honest picture of the subject; 1: the reference itself.",
    ),
    (
        "monitor/background_similarity",
        "Background similarity",
        "copied",
        "Likeness to the reference outside the subject. A rise means that more of the scene is copied.",
    ),
    (
        "monitor/diversity",
        "Diversity",
        "plain",
        "How much samples of one prompt differ. A fall means that the model repeats one picture.",
    ),
)

IMAGE_STATISTICS = (
    ("saturation", "saturation", "prompt"),
    ("dark_share", "dark", "plain"),
    ("bright_share", "bright", "identity"),
    ("edge_density", "edges", "positive"),
    ("colour_entropy", "colours", "conflict"),
    ("high_frequency", "fine detail", "negative"),
)


def _monitors(run: RunData) -> list[Figure]:
    if len(run.evals) < 2:
        return []
    figures = []
    for key, title, colour, caption in MONITORS:
        line = _eval_line(run, key, "tuned", colour)
        first = run.evals[0].get(key) if run.evals and run.evals[0]["iteration"] == 0 else None
        levels = [Level("base", first)] if isinstance(first, int | float) else []
        figures.append(_lines(run, title, caption, [line], levels=levels, size=SMALL, least=0.1))
    return _present(*figures)


def _image_statistics(run: RunData) -> Figure | None:
    """Every image statistic minus that of the base, so that six of them share one axis."""
    if len(run.evals) < 2 or run.evals[0]["iteration"] != 0:
        return None
    lines = []
    for key, name, colour in IMAGE_STATISTICS:
        line = _eval_line(run, f"monitor/{key}", name, colour)
        first = run.evals[0].get(f"monitor/{key}")
        if line is not None and isinstance(first, int | float):
            drift = [None if value is None else value - first for value in line.y]
            lines.append(replace(line, y=drift, low=None, high=None))
    caption = (
        "Difference from the base's pictures; all lie in [0, 1]. A drift may mean that a reward likes gaudy, "
        "dark or noisy pictures. Look at the samples."
    )
    return _lines(run, "Image statistics against the base", caption, lines, size=SMALL, least=0.1)


def _gap(run: RunData) -> Figure | None:
    lines = [_eval_line(run, f"gap/{kind}", kind, kind) for kind in WORDS]
    caption = (
        "Mean reward in training minus the same reward on held-out prompts. Training draws noise, so the "
        "level says nothing; a rise means that the training rows are learnt by heart."
    )
    return _lines(run, "Training ahead of held-out prompts", caption, lines, size=SMALL)


HEALTH = (
    (
        "policy/ratio_max_deviation",
        "Largest ratio deviation",
        "How far the new policy's probability ratio strays from 1. On the first pass it is 0.",
    ),
    (
        "policy/clip_fraction",
        "Clipped share",
        "Share of samples whose ratio left the clip range, so that they stop pushing.",
    ),
    (
        "policy/grad_norm",
        "Gradient norm",
        "Before clipping. Spikes or steady growth call for a smaller learning rate.",
    ),
    (
        "policy/kl",
        "KL to the base",
        "Distance from the base model, mean over latent dimensions. It grows as the model learns.",
    ),
)


def _health(run: RunData) -> list[Figure]:
    figures = []
    for key, title, caption in HEALTH:
        line = _smooth_line(run, key, "now", "plain")
        options: dict[str, Any] = {"percent": True} if key.endswith("fraction") else {}
        if line is not None and not any(line.y):
            options = {"y_range": (0.0, 1.0), **options}
        figures.append(_lines(run, title, caption, [line], size=SMALL, **options))
    return _present(*figures)


COUNTS = (
    ("health/zero_std_groups", "groups without any spread"),
    ("health/nan_samples", "samples without a score"),
    ("health/skipped_updates", "skipped updates"),
)


def _counts(run: RunData) -> str:
    """What went wrong in the whole run, counted; empty when it was not measured."""
    known = [(key, words) for key, words in COUNTS if _series(run.train, key) is not None]
    parts = [f"{_total(run.train, key):,.0f} {words}" for key, words in known]
    return "In the whole run: " + ", ".join(parts) + "." if parts else ""


TIMES = (("rollout", "prompt"), ("reward", "identity"), ("update", "positive"))


def _time(run: RunData) -> Figure | None:
    totals = {name: _total(run.train, f"time/{name}_s") for name, _ in TIMES}
    whole = _total(run.train, "time/iteration_s")
    if whole <= 0:
        return None
    parts = [(name, colour, totals[name]) for name, colour in TIMES]
    parts.append(("other", "other", max(whole - sum(totals.values()), 0.0)))
    caption = (
        "Seconds of all training iterations together. Rollout: drawing samples; reward: scoring them; "
        "update: gradients. Evaluation is not in it."
    )
    return Figure("Training time", charts.split_bar(parts, title="Training time by part"), caption)


def _total(records: Sequence[Record], key: str) -> float:
    return sum(value for record in records if isinstance(value := record.get(key), int | float))
