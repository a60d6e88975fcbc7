"""The model card of an exported adapter: what it is, how to use it, how it was trained, its results.

Text from outside (names, prompts, messages, settings) is escaped for Markdown, unless a filter of the
template says otherwise. Folders of this machine are named by their last part alone.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from typing import Any, Final, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from customized_grpo.config import Config
from customized_grpo.config.schema import FusedLora
from customized_grpo.config.yaml_text import write_yaml
from customized_grpo.embedded import EMBEDDED
from customized_grpo.export.adapter import RunAdapter
from customized_grpo.export.formats import FormatName
from customized_grpo.hub import is_hub_id, public_name
from customized_grpo.pages.findings import alarms, findings
from customized_grpo.pages.page import TEMPLATES
from customized_grpo.pages.plots.numbers import interval_text, number
from customized_grpo.pages.run_data import RunData
from customized_grpo.pages.run_page import HEADLINES
from customized_grpo.plain_text import one_line
from customized_grpo.policies.checkpoint_files import read_architecture
from customized_grpo.policies.checkpoints import licence_of
from customized_grpo.policies.families import get_family
from customized_grpo.policies.provenance import public_lora
from customized_grpo.policies.reference_rule import reference_size_of
from customized_grpo.reference_sizes import ReferenceRule, reference_size

TRANSFORMER: Final = "transformer"
"""Name of a merged transformer's folder, and what takes the place of a format for it."""

FALLBACK_PROMPT = "the subject on a beach at sunset"
KEPT = 0.1
"""Share of its pixels by which a pipeline may change a reference that counts as kept: it rounds to tokens."""
TRAINING_SECTIONS = ("rollout", "advantage", "schedule", "train")


def render_card(
    run: RunData, adapter: RunAdapter, name: FormatName | Literal["transformer"], file_name: str
) -> str:
    """Return the card's text.

    Args:
        run: The run, for its results and alarms.
        adapter: The adapter that was exported.
        name: The format, or "transformer" if the adapter is part of the exported weights.
        file_name: Name of the exported file or folder, in the folder of the card.
    """
    config = adapter.config
    other_programs = get_family(config.model.family).other_programs
    references = _has_references(run)
    return (
        _environment()
        .get_template("model_card.md.j2")
        .render(
            front_matter=Markup(write_yaml(front_matter(adapter, name, references=references))),
            references=references,
            title=run.name,
            file=file_name,
            format=name,
            model=config.model,
            base=public_name(config.model.path),
            is_hub_id=is_hub_id(config.model.path),
            embedded=EMBEDDED.get(config.model.path),
            licence=licence_of(config.model.path),
            pipeline=other_programs.pipeline,
            unconfirmed=other_programs.unconfirmed.get(name),
            caution=other_programs.caution,
            call=_call(config, references=references),
            reference_area=_reference_area(config),
            multiple=get_family(config.model.family).size_multiple,
            transformer=_class_of_transformer(adapter, name),
            fused=[public_lora(lora) for lora in config.model.fuse_lora],
            merged=[public_lora(lora) for lora in adapter.merged],
            start=config.model.start_lora and public_name(config.model.start_lora),
            adapter=adapter,
            steps=config.evaluation_steps,
            judged=config.evaluation_model,
            prompt=_example_prompt(run),
            rewards=[(reward, reward.path and public_name(reward.path)) for reward in config.rewards],
            recipe=_recipe(adapter),
            findings=findings(run),
            results=_results(run),
            has_results=_describes(run, adapter),
            alarms=alarms(run),
            rollouts=run.summary.get("rollouts"),
            versions=run.versions,
        )
    )


def _has_references(run: RunData) -> bool:
    """Return whether the run drew with references; without a single sample it counts as one that did."""
    rows = run.samples.rows if run.samples is not None else []
    return not rows or any(row.get("reference") is not None for row in rows)


def _call(config: Config, *, references: bool) -> list[str] | None:
    """Return the arguments of the family's pipeline; None if it cannot draw as the policy does."""
    names = get_family(config.model.family).other_programs
    call = names.call(config.evaluation_model)
    if call is None:
        return None
    if names.even_levels is not None:
        call = [*call, names.even_levels.format(steps=config.evaluation_steps)]
    if not references or _pipeline_resizes(config):
        return call
    pixels = _trained_pixels(config)
    if pixels is None:
        return None  # a rule of another family
    argument = names.keep_size or names.set_size
    if argument is not None:
        return [*call, argument.format(pixels=pixels)]
    return call if _is_kept(pixels, names.reference_rule) else None


def _pipeline_resizes(config: Config) -> bool:
    """Return whether the pipeline brings references to the size of the training by itself."""
    rule = get_family(config.model.family).other_programs.reference_rule
    return config.model.reference_fit == "whole" and reference_size_of(config) == rule


def _trained_pixels(config: Config) -> int | None:
    """Return how many pixels a reference had in training; None where that depends on the photo."""
    size = reference_size_of(config)
    if config.model.reference_fit != "whole" or size == "image":
        return config.evaluation_model.width * config.evaluation_model.height
    return size * size if isinstance(size, int) else None


def _is_kept(pixels: int, rule: ReferenceRule | None) -> bool:
    """Return whether a pipeline of that rule leaves a reference of so many pixels about as it is."""
    if rule is None:
        return True
    side = round(pixels**0.5)
    width, height = reference_size((side, side), rule, 1, (side, side))
    return abs(width * height / pixels - 1) < KEPT


def _reference_area(config: Config) -> int | None:
    """Return the pixels to which a whole reference is brought before the call; None: the pipeline does it."""
    names = get_family(config.model.family).other_programs
    if config.model.reference_fit != "whole" or _pipeline_resizes(config) or names.set_size is not None:
        return None
    return _trained_pixels(config)


def front_matter(adapter: RunAdapter, name: str, *, references: bool = True) -> dict[str, Any]:
    """Return the metadata that the hub reads; facts of the base that are not known are left out.

    Args:
        adapter: The adapter.
        name: As of `render_card`.
        references: Whether the run drew with references.
    """
    path = adapter.config.model.path
    task = "image-to-image" if references else "text-to-image"
    facts: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": task}
    if is_hub_id(path):
        relation = "finetune" if name == TRANSFORMER else "adapter"
        facts |= {"base_model": path, "base_model_relation": relation}
    licence = licence_of(path)
    if licence is not None:
        facts["license"] = licence.identifier
        if licence.name is not None:
            facts |= {"license_name": licence.name, "license_link": licence.link}
    subject = ["subject-driven-generation"] if references else []
    tags = ["diffusers", task, *subject, "customized-grpo"]
    # A merged transformer is no LoRA any more.
    facts["tags"] = tags if name == TRANSFORMER else ["lora", *tags]
    return facts


def _class_of_transformer(adapter: RunAdapter, name: str) -> str | None:
    return read_architecture(adapter.config.model).transformer.name if name == TRANSFORMER else None


def _describes(run: RunData, adapter: RunAdapter) -> bool:
    """Return whether the run's results are those of this adapter."""
    judged_by_average = adapter.config.evaluation.use_ema
    # The results are those of the end of training; another checkpoint's card must not show them.
    return run.summary.get("iterations") == adapter.iteration and adapter.is_average == judged_by_average


def _results(run: RunData) -> list[tuple[str, str, list[str]]]:
    """Return (name, meaning, base, tuned and difference with their intervals) of the headline metrics."""
    rows = []
    for head in HEADLINES:
        comparison = run.comparisons.get(head.metric)
        if comparison is None:
            continue
        columns = [(comparison.base, False), (comparison.tuned, False), (comparison.difference, True)]
        cells = [f"{number(part.mean, plus)} ({interval_text(part, plus)})" for part, plus in columns]
        rows.append((head.name, head.meaning, cells))
    return rows


def _example_prompt(run: RunData) -> str:
    rows = run.samples.rows if run.samples is not None else []
    return str(rows[0]["prompt"]) if rows else FALLBACK_PROMPT


def _recipe(adapter: RunAdapter) -> Markup:
    """Return the settings of the training as YAML; rows and folders of this machine stay here."""
    values = adapter.config.model_dump(mode="json", exclude_none=True)
    chosen = {"model": {"lora": values["model"]["lora"]}} | {key: values[key] for key in TRAINING_SECTIONS}
    return Markup(write_yaml(chosen).rstrip())


def _environment() -> Environment:
    """Return the template engine, which escapes for Markdown and refuses unknown names."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        # Escapes for HTML would show in Markdown; `finalize` escapes what is filled in.
        autoescape=False,
        finalize=lambda value: value if isinstance(value, Markup) else escape_markdown(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["source"] = Markup
    environment.filters["python"] = lambda value: Markup(json.dumps(value))
    environment.filters["loras"] = _setting_of_loras
    environment.filters["shell"] = lambda value: Markup(shlex.quote(" ".join(str(value).split())))
    environment.filters["code"] = lambda value: Markup(code(str(value)))
    return environment


def _setting_of_loras(loras: Sequence[FusedLora]) -> str:
    """Return `model.fuse_lora` as an override has it: one path, or a list."""
    if len(loras) == 1 and loras[0].scale == 1:
        return loras[0].path
    return json.dumps([lora.model_dump() for lora in loras])


def escape_markdown(text: str) -> str:
    """Return text in one line that Markdown shows as it is: no markup, no HTML, no table cell of its own."""
    # The ampersand first: the other two escapes bring new ones.
    line = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$!])", r"\\\1", line)


def code(text: str) -> str:
    """Return any text as inline code, also with backticks and line breaks in it."""
    line = one_line(text).replace("|", "\\|")
    # the fence must be a run of backticks that the text has not
    lengths = [len(backticks) for backticks in re.findall("`+", line)]
    # n runs of backticks cannot use up n + 1 lengths.
    fence = "`" * next(n for n in range(1, len(lengths) + 2) if n not in lengths)
    # A backtick at the edge would lengthen the fence.
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"
