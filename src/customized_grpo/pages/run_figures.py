"""The figures of a run's report, drawn from its records, each with a sentence on how to read it.

A figure whose numbers were not measured is left out, so that the page never shows an empty frame.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from customized_grpo.pages.curves import (
    alarm_marks,
    bin_means,
    held_out_line,
    lines_figure,
    read_series,
    rollouts_axis,
    total,
    training_line,
)
from customized_grpo.pages.figures import Figure, Section, existing
from customized_grpo.pages.findings import trained_kinds
from customized_grpo.pages.plots import charts
from customized_grpo.pages.plots.charts import Area, Part
from customized_grpo.pages.plots.frame import Level
from customized_grpo.pages.reward_table import reward_figure, reward_names
from customized_grpo.pages.run_data import RunData

PAIR = {"prompt": "prompt following", "identity": "identity"}
"""Name in a title of each of the two qualities that a rule combines."""

WORDS = {**PAIR, "quality": "image quality"}
"""Name in a title of what each kind of reward is about."""


def sections(run: RunData) -> list[Section]:
    """Return all sections that have at least one figure, in reading order."""
    candidates = [
        Section(
            "Learning curves",
            "Above, what training maximised. Below, the same qualities measured by judges that "
            f"training never saw, on {run.held_out_rows}: a reward that rises while its judge does not "
            "is being gamed. Axes show the range that occurs; most do not start at 0.",
            existing(
                *(_training(run, kind, WORDS[kind]) for kind in WORDS),
                *(_judge(run, kind, WORDS[kind]) for kind in WORDS),
                *_each_reward(run),
            ),
        ),
        Section(
            "What the model draws",
            "Averages hide how a model fails. These figures sort the samples.",
            existing(_modes(run), _attributes(run)),
        ),
        Section(
            "The learning signal",
            "What the two rewards tell apart within the samples of one prompt, and how the two are weighed.",
            existing(_quadrants(run), _schedule(run), _group_std(run), _diversity(run)),
        ),
        Section(
            "Reward-hacking monitors",
            "Not trained on, only watched: ways to earn reward without drawing a better image.",
            [*_monitors(run), *existing(_image_statistics(run), _gap(run))],
        ),
        Section("Policy health", "Whether the optimisation itself is sound. " + _counts(run), _health(run)),
        Section("Where the time went", "", existing(_time(run)), wide=True),
    ]
    return [section for section in candidates if section.figures]


def _training(run: RunData, kind: str, words: str) -> Figure | None:
    caption = (
        "Mean over the samples of an iteration; faint: single iterations, bold: rolling mean. "
        "Prompts change from iteration to iteration, so single points jump."
    )
    line = training_line(run, f"reward/{kind}", kind, kind)
    return lines_figure(run, f"Training reward: {words}", caption, [line])


def _each_reward(run: RunData) -> list[Figure | None]:
    """Return a curve of every reward by name, where one kind has several and the curves above are means."""
    names = reward_names(run)
    kinds = [kind for kind in WORDS if read_series(run.train, f"reward/{kind}") is not None]
    return [reward_figure(run, name) for name in names] if len(names) > len(kinds) else []


def _judge(run: RunData, kind: str, words: str) -> Figure | None:
    line = held_out_line(run, f"judge/{kind}", "tuned", kind)
    if line is None:
        return None
    title = f"Held-out judge: {words}"
    starts_at_base = run.evals[0]["iteration"] == 0
    if len(line.x) == 1:
        caption = "Higher is better. 95 % interval, resampled by subject. So far only one evaluation."
        # the only evaluation may be that of the base, before any training
        only = replace(line, name="base" if starts_at_base else "tuned")
        return lines_figure(run, title, caption, [only], least=0.05)
    caption = (
        "Higher is better. Bands are 95 % intervals, resampled by subject; the dashed line is the base. "
        "Bands can overlap even where the paired difference of the two models is clear."
    )
    alarms = alarm_marks(run)
    if alarms:
        caption += " Flags mark alarms."
    levels = _base_level(run, f"judge/{kind}")
    return lines_figure(run, title, caption, [line], levels=levels, marks=alarms, least=0.05)


def _base_level(run: RunData, key: str) -> list[Level]:
    """Return the base's value of a held-out metric, with its interval if it has one."""
    if not run.evals or run.evals[0]["iteration"] != 0:
        return []
    base = run.evals[0]
    value = base.get(key)
    low = base.get(f"{key}_low")
    high = base.get(f"{key}_high")
    if not isinstance(value, int | float):
        return []
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return [Level("base", value)]
    return [Level("base", value, low, high)]


MODES = (("good", "good"), ("copied", "copied"), ("drift", "drift"), ("other", "other"))
"""(mode, colour) in the order they are stacked."""


def _modes(run: RunData) -> Figure | None:
    areas: list[Area] = []
    x: list[float] = []
    for name, colour in MODES:
        series = read_series(run.evals, f"mode/{name}")
        if series is None:
            continue
        x = x or series.x
        if series.x == x:  # only shares of the same evaluations add up to a whole
            areas.append(Area(name, colour, bin_means(series.x, series.y)[1]))
    if len(x) < 2:
        return None
    title = "Share of each kind of sample"
    drawn_x, _ = bin_means(x, x)
    chart = charts.stacked_area(drawn_x, areas, rollouts_axis(run), title=title)
    caption = (
        "Each held-out sample is counted as what it is nearest to. Good: the prompted scene with this "
        "subject. Copied: the reference image again. Drift: the prompted scene with another subject. "
        "Other: none of these."
    )
    if len(drawn_x) < len(x):
        caption += f" Of {len(x):,} evaluations the means of every few are drawn."
    return Figure("What samples are", chart, caption)


ATTRIBUTES = (("prop", "prompt"), ("floor", "plain"), ("sky", "drift"), ("emblem", "good"))


def _attributes(run: RunData) -> Figure | None:
    if len(run.evals) < 2:
        return None
    lines = [held_out_line(run, f"judge/{name}", name, colour) for name, colour in ATTRIBUTES]
    caption = (
        "Share of held-out samples in which a classifier finds each part: what the prompt asked for, and the "
        "emblem of the subject."
    )
    return lines_figure(run, "Accuracy by part", caption, lines, percent=True)


def _quadrants(run: RunData) -> Figure | None:
    lines = [
        training_line(run, "advantage/conflict", "conflict", "conflict"),
        training_line(run, "advantage/conflict_null", "null", "base", style="dotted"),
        training_line(run, "advantage/both_positive", "both good", "positive"),
        training_line(run, "advantage/both_negative", "both bad", "negative"),
    ]
    caption = (
        "Where a sample stands within its group: better or worse than the group's mean on each reward. "
        "About half of samples conflict even for two unrelated rewards, so compare with the dotted null, "
        "arccos(\u03c1)/\u03c0 at the measured correlation \u03c1 of the two rewards."
    )
    return lines_figure(run, "Do the two rewards agree?", caption, lines, percent=True)


def _group_std(run: RunData) -> Figure | None:
    lines = [training_line(run, f"reward/{kind}_group_std", kind, kind) for kind in WORDS]
    caption = (
        "Standard deviation of each reward among the samples of one prompt. Near 0 the samples no longer "
        "differ, and normalising by it only amplifies noise."
    )
    return lines_figure(run, "Spread of the rewards within a group", caption, lines)


def _diversity(run: RunData) -> Figure | None:
    line = training_line(run, "diversity/in_group", "now", "positive")
    caption = "How much the images of one group differ. Towards 0 there is nothing left to choose from."
    return lines_figure(run, "Spread of the images within a group", caption, [line])


def _schedule(run: RunData) -> Figure | None:
    """Return the schedule's weights, as the run wrote them down when it started."""
    name = run.setting("schedule.name")
    weights = run.prompt_weights
    if not isinstance(name, str) or weights is None:
        return None
    if run.train and not set(PAIR) <= set(trained_kinds(run)):
        return None  # there was nothing to weigh
    steps = len(weights)
    window = run.setting("rollout.sde_window") or {}
    first = 0
    last = steps
    if window.get("shift_every") == 0:  # a window that moves trains every step at some time
        first = window.get("start", 0)
        last = first + window.get("size", steps)
    # The last step draws no noise, so it has no probability to learn from.
    trained = [first <= step < min(last, steps - 1) for step in range(steps)]
    caption = (
        f'Schedule "{name}" over the {steps} denoising steps, from noise to image: the share of each '
        "step's learning signal that comes from the prompt advantage; identity has the rest. "
        "Pale steps are never trained; the last one never is."
    )
    if name == "shuffled_tdw":
        caption += " This control draws a new order in every iteration; one is shown."
    chart = charts.step_weights(weights, title="Weights of the two rewards by step", trained=trained)
    return Figure("Prompt and identity weight by step", chart, caption)


MONITORS = (
    (
        "monitor/copy_score",
        "Copy score",
        "copied",
        "0: as far from the reference as another honest image of the subject; 1: the reference itself.",
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
        "How much samples of one prompt differ. A fall means that the model repeats one image.",
    ),
)

STATISTICS_LABELS = 144
"""Room for the names of the image statistics, the longest of a report."""

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
        line = held_out_line(run, key, "tuned", colour)
        levels = _base_level(run, key)
        figures.append(lines_figure(run, title, caption, [line], levels=levels, size=charts.SMALL, least=0.1))
    return existing(*figures)


def _image_statistics(run: RunData) -> Figure | None:
    """Return every image statistic minus that of the base, so that six of them share one axis."""
    if len(run.evals) < 2 or run.evals[0]["iteration"] != 0:
        return None
    lines = []
    for key, name, colour in IMAGE_STATISTICS:
        line = held_out_line(run, f"monitor/{key}", name, colour)
        first = run.evals[0].get(f"monitor/{key}")
        if line is not None and isinstance(first, int | float):
            drift = [None if value is None else value - first for value in line.y]
            # the interval is that of the level, not of its difference from the base
            lines.append(replace(line, y=drift, low=None, high=None))
    caption = (
        "Difference from the base's images; all lie in [0, 1]. A drift may mean that a reward likes gaudy, "
        "dark or noisy images. Look at the samples."
    )
    return lines_figure(
        run,
        "Image statistics against the base",
        caption,
        lines,
        size=charts.SMALL,
        least=0.1,
        labels=STATISTICS_LABELS,
    )


def _gap(run: RunData) -> Figure | None:
    lines = [held_out_line(run, f"gap/{kind}", kind, kind) for kind in WORDS]
    caption = (
        "Mean reward in training minus the same reward on held-out prompts. Training draws noise, so the "
        "level says nothing; a rise means that the training rows are learnt by heart."
    )
    return lines_figure(run, "Training ahead of held-out prompts", caption, lines, size=charts.SMALL)


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
        line = training_line(run, key, "now", "plain")
        options: dict[str, Any] = {"percent": True} if key.endswith("fraction") else {}
        # zeros alone have no range of their own: the axis would end at an arbitrary 0.5
        if line is not None and not any(line.y):
            options = {"y_range": (0.0, 1.0), **options}
        figures.append(lines_figure(run, title, caption, [line], size=charts.SMALL, **options))
    return existing(*figures)


SHARES = (
    ("health/zero_std_groups", "of the groups without any spread"),
    ("health/nan_samples", "of the samples without a score"),
)


def _counts(run: RunData) -> str:
    """Return how often something failed in the whole run, in words; empty when that was not measured."""
    parts = []
    for key, words in SHARES:
        series = read_series(run.train, key)
        if series is not None:
            shares = [share for share in series.y if share is not None]
            parts.append(f"{sum(shares) / len(shares):.1%} {words}")
    if read_series(run.train, "health/skipped_updates") is not None:
        parts.append(f"{total(run.train, 'health/skipped_updates'):,.0f} skipped updates")
    return "In the whole run: " + ", ".join(parts) + "." if parts else ""


TIMES = (("rollout", "prompt"), ("reward", "identity"), ("update", "positive"))
"""(part of an iteration, colour)."""


def _time(run: RunData) -> Figure | None:
    whole = total(run.train, "time/iteration_s")
    if whole <= 0:
        return None
    parts = [Part(name, colour, total(run.train, f"time/{name}_s")) for name, colour in TIMES]
    rest = whole - sum(part.amount for part in parts)
    # a difference of long sums of floats, which may come out a little below 0
    parts.append(Part("other", "other", max(rest, 0.0)))
    caption = (
        "Seconds of all training iterations together. Rollout: drawing samples; reward: scoring them; "
        "update: gradients. Evaluation is not in it."
    )
    return Figure("Training time", charts.split_bar(parts, title="Training time by part"), caption)
