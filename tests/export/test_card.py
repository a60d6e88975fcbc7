"""The model card: valid for the hub, its snippet runs, its results are this adapter's, text stays text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tiny_qwen_image21
from customized_grpo.config.schema import FusedLora
from customized_grpo.config.yaml_text import read_yaml
from customized_grpo.export import export_run
from customized_grpo.export.adapter import read_adapter
from customized_grpo.export.card import code, escape_markdown, front_matter, render_card
from customized_grpo.pages.run_data import read_run
from customized_grpo.policies.loading import load_pipeline
from customized_grpo.policies.policy import Policy
from customized_grpo.rollout.ode import sample_images

EVIL = "<script>alert(1)</script> | [x](javascript:y) `*_\n# title\n```"
SCORES = {"judge/identity": {"mean": 0.5, "low": 0.4, "high": 0.6}}
GAIN = {"judge/identity": {"mean": 0.123, "low": 0.1, "high": 0.15}}


@pytest.fixture
def trained(make_trained: Any) -> Any:
    trained = make_trained("flux1")
    summary = {
        "base": SCORES,
        "tuned": SCORES,
        "difference": GAIN,
        "iterations": 2,
        "rollouts": 12,
        "finished": True,
    }
    (trained.path / "summary.json").write_text(json.dumps(summary))
    alarm = {"kind": "event", "iteration": 2, "event": "alarm", "message": f"copying {EVIL}"}
    (trained.path / "metrics.jsonl").write_text(json.dumps(alarm) + "\n")
    return trained


def on_base(trained: Any, path: str) -> Any:
    """The run's adapter, had it been trained on another base."""
    adapter = read_adapter(trained.path)
    model = adapter.config.model.model_copy(update={"path": path})
    return replace(adapter, config=adapter.config.model_copy(update={"model": model}))


def parts(card: str) -> tuple[Any, str]:
    _, head, body = card.split("---\n", 2)
    values, mistakes = read_yaml(head)
    assert not mistakes
    return values, body


@pytest.mark.parametrize(
    ("base", "licence"),
    [
        ("black-forest-labs/FLUX.1-Kontext-dev", ("other", "flux-1-dev-non-commercial-license")),
        ("black-forest-labs/FLUX.2-klein-4B", ("apache-2.0", None)),
        ("black-forest-labs/FLUX.2-klein-base-9B", ("other", "flux-non-commercial-license")),
        ("Qwen/Qwen-Image-Edit-2509", ("apache-2.0", None)),
        ("somebody/something", (None, None)),
    ],
)
def test_the_front_matter_names_base_and_licence(base: str, licence: Any, trained: Any) -> None:
    head, body = parts(
        render_card(read_run(trained.path), on_base(trained, base), "diffusers", "x.safetensors")
    )
    assert head["base_model"] == base and head["library_name"] == "diffusers" and "lora" in head["tags"]
    assert (head.get("license"), head.get("license_name")) == licence
    assert ("license_link" in head) == (licence[0] == "other")
    assert f"https://huggingface.co/{base}" in body
    if licence[0] is None:
        assert "is not known here" in body


def test_a_folder_of_this_machine_is_no_base_model_of_the_hub(trained: Any) -> None:
    head = front_matter(read_adapter(trained.path), "diffusers")
    assert "base_model" not in head and "license" not in head
    card = render_card(read_run(trained.path), read_adapter(trained.path), "diffusers", "x.safetensors")
    assert str(trained.base.parent) not in card and str(trained.path.parent) not in card


def test_results_are_told_with_intervals_and_alarms(trained: Any) -> None:
    card = render_card(read_run(trained.path), read_adapter(trained.path), "kohya", "x.safetensors")
    assert (
        "| Held-out identity | 0.500 (0.400 to 0.600) | 0.500 (0.400 to 0.600) | +0.123 (+0.100 to +0.150) |"
        in card
    )
    assert "after iteration 2: copying" in card and "raised no alarm" not in card
    assert card.index("copying") < card.index("Held-out identity rose")


def test_results_of_another_checkpoint_are_not_told(trained: Any) -> None:
    adapter = replace(read_adapter(trained.path), iteration=1)
    card = render_card(read_run(trained.path), adapter, "kohya", "x.safetensors")
    assert "+0.123" not in card and "not of this checkpoint" in card
    averaged = replace(read_adapter(trained.path), is_average=True)
    assert "+0.123" not in render_card(read_run(trained.path), averaged, "kohya", "x.safetensors")


def test_text_from_outside_stays_text(trained: Any) -> None:
    run = replace(read_run(trained.path), name=EVIL)
    card = render_card(run, read_adapter(trained.path), "diffusers", "x.safetensors")
    outside_code = re.sub(r"```python.*?^```$|```yaml.*?^```$", "", card, flags=re.S | re.M)
    assert "<script" not in outside_code and not re.search(r"(?<!\\)\]\(javascript", outside_code)
    assert "\n# title" not in card
    assert "```" not in outside_code


def test_escapes() -> None:
    assert escape_markdown("a|b <c> *d* _e_\nf") == r"a\|b &lt;c&gt; \*d\* \_e\_ f"
    assert code("a`b") == "``a`b``" and code("`") == "`` ` ``" and code("a\nb") == "`a b`"


def test_a_prompt_cannot_leave_its_string_in_the_snippet(trained: Any) -> None:
    samples = trained.path / "samples"
    samples.mkdir()
    prompt = 'x", print("gone"), "' + EVIL
    rows = [{"prompt": prompt, "subject": None, "reference": "r.png", "target": None}]
    (samples / "index.json").write_text(json.dumps({"rows": rows, "iterations": [0]}))
    card = render_card(read_run(trained.path), read_adapter(trained.path), "diffusers", "x.safetensors")
    found = re.search(r"^    prompt=(.*),$", card, re.M)
    assert found is not None
    assert eval(found[1]) == prompt  # noqa: S307 the test is that it is one string


@pytest.mark.parametrize("family", ["flux1", "flux2", "flux3", "qwen_image21"])
def test_a_run_on_prompts_alone_needs_no_reference(family: str, make_trained: Any) -> None:
    trained = make_trained(family)
    samples = trained.path / "samples"
    samples.mkdir()
    rows = [{"prompt": "a red cone", "subject": None, "reference": None, "target": None}]
    (samples / "index.json").write_text(json.dumps({"rows": rows, "iterations": [0]}))
    card = render_card(read_run(trained.path), read_adapter(trained.path), "diffusers", "x.safetensors")
    head, body = parts(card)
    assert head["pipeline_tag"] == "text-to-image" and "image-to-image" not in head["tags"]
    assert "subject" not in json.dumps(head) and "on prompts alone" in body
    assert not re.search(r"given an image|reference\.png|load_image|image=|Use images of", body)
    if family == "flux3":
        assert "cgrpo generate" in body
    else:
        snippet = re.search(r"```python\n(.*?)^```$", body, re.S | re.M)
        assert snippet is not None
        compile(snippet[1], "snippet", "exec")


def assert_snippet_draws(policy: Policy, prompt: str, references: list[Tensor]) -> None:
    """Run the snippet of the card in this folder; it draws the policy's image, up to a level of a byte."""
    snippet = re.search(r"```python\n(.*?)^```$", Path("README.md").read_text(), re.S | re.M)
    assert snippet is not None
    exec(snippet[1], {})
    found = torch.frombuffer(bytearray(Image.open("image.png").tobytes()), dtype=torch.uint8)
    conditioning = policy.encode([prompt], [references], 64, 64)
    noise = [torch.Generator().manual_seed(0)]
    ours = sample_images(policy, conditioning, noise, policy.sigmas(4, policy.n_tokens(64, 64)), 1)[0]
    expected = (ours * 255).round().byte().permute(1, 2, 0).flatten()
    assert (found.int() - expected.int()).abs().max() <= 1


def test_the_snippet_of_a_run_on_prompts_alone_draws_the_trainers_image(
    make_trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = make_trained("flux1", alpha=6.0)
    samples = trained.path / "samples"
    samples.mkdir()
    rows = [{"prompt": "a red cone", "subject": None, "reference": None, "target": None}]
    (samples / "index.json").write_text(json.dumps({"rows": rows, "iterations": [0]}))
    folder = export_run(trained.path, "diffusers").parent
    (folder / "flux1").symlink_to(trained.base)
    monkeypatch.chdir(folder)
    assert_snippet_draws(trained.policy, "a red cone", [])


def test_the_card_of_qwen_edit_says_what_its_pipeline_forgets(trained: Any) -> None:
    # that the installed diffusers still forgets it, tests/policies/test_qwen_edit.py measures
    card = at_size(trained, options={}, family="qwen_edit", path="Qwen/Qwen-Image-Edit-2511")
    assert "huggingface/diffusers issue 14194" in card and "`cgrpo generate`" in card
    other = at_size(trained, options={}, family="flux2", path="black-forest-labs/FLUX.2-klein-4B")
    assert "14194" not in other


@pytest.mark.parametrize("family", ["flux1", "flux2"])
def test_the_snippet_runs_and_draws_the_trainers_image(
    family: str, make_trained: Any, reference: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = make_trained(family, alpha=6.0)
    folder = export_run(trained.path, "diffusers").parent
    image = Image.fromarray((reference * 255).round().byte().permute(1, 2, 0).numpy())
    image.save(folder / "reference.png")
    (folder / family).symlink_to(trained.base)  # the card names the base by its folder's name
    monkeypatch.chdir(folder)
    assert_snippet_draws(trained.policy, "the subject on a beach at sunset", [reference])


def test_uno_gets_a_command_instead_of_a_pipeline_that_places_references_otherwise(trained: Any) -> None:
    adapter = on_base(trained, "black-forest-labs/FLUX.1-dev")
    model = adapter.config.model.model_copy(
        update={
            "options": {"reference_ids": "uno"},
            "fuse_lora": (FusedLora(path="bytedance-research/UNO:dit_lora.safetensors"),),
        }
    )
    adapter = replace(adapter, config=adapter.config.model_copy(update={"model": model}))
    card = render_card(read_run(trained.path), adapter, "diffusers", "x.safetensors")
    assert "```python" not in card and "cgrpo generate black-forest-labs/FLUX.1-dev --lora ." in card
    assert "--set model.fuse_lora=bytedance-research/UNO:dit_lora.safetensors" in card
    assert "merged into the base" in card


def test_the_snippet_leaves_the_size_of_the_reference_to_a_pipeline_that_has_the_rule_of_training(
    trained: Any,
) -> None:
    adapter = on_base(trained, "black-forest-labs/FLUX.1-Kontext-dev")
    card = render_card(read_run(trained.path), adapter, "diffusers", "x.safetensors")
    assert 'reference = load_image("reference.png")  # the pipeline brings it' in card
    assert "_auto_resize" not in card and "ImageOps" not in card and "resize(" not in card
    for fit, words in (("crop", "ImageOps.fit("), ("pad", "ImageOps.pad(")):
        model = adapter.config.model.model_copy(update={"reference_fit": fit})
        other = replace(adapter, config=adapter.config.model_copy(update={"model": model}))
        card = render_card(read_run(trained.path), other, "diffusers", "x.safetensors")
        assert words in card and "_auto_resize=False," in card


def at_size(trained: Any, **model: Any) -> str:
    """The card of the run, had it another family, path, size or shape of references."""
    adapter = read_adapter(trained.path)
    config = adapter.config.model_copy(update={"model": adapter.config.model.model_copy(update=model)})
    return render_card(read_run(trained.path), replace(adapter, config=config), "diffusers", "x.safetensors")


@pytest.mark.parametrize(
    ("model", "is_drawn"),
    [
        # Qwen-Image-Edit's pipeline shows the model a megapixel, whatever it is given
        ({"family": "qwen_edit", "path": "mine/edit"}, False),
        ({"family": "qwen_edit", "path": "mine/edit", "height": 1024, "width": 1024}, True),
        ({"family": "qwen_edit", "path": "Qwen/Qwen-Image-Edit-2511"}, True),
        ({"family": "qwen_edit", "path": "Qwen/Qwen-Image-Edit-2511", "reference_fit": "crop"}, False),
        # FLUX.2's one at most
        ({"family": "flux2", "path": "mine/klein"}, True),
        ({"family": "flux2", "path": "mine/klein", "height": 2048, "width": 1024}, False),
    ],
)
def test_a_pipeline_that_shows_references_at_another_size_than_training_is_not_named(
    trained: Any, model: dict[str, Any], is_drawn: bool
) -> None:
    card = at_size(trained, options={}, **{"height": 512, "width": 512, **model})
    # the command; a caution may name it too
    assert ("```python" in card, "--lora ." in card) == (is_drawn, not is_drawn)


def test_qwen_image21_brings_references_to_the_size_of_training_in_its_own_multiples(trained: Any) -> None:
    card = at_size(trained, family="qwen_image21", path="mine/qwen", options={}, height=512, width=768)
    assert "output_resolution=393216 ** 0.5," in card and "resize(" not in card
    published = at_size(trained, family="qwen_image21", path="Qwen/Qwen-Image-2.1", options={})
    assert "output_resolution" not in published and "the pipeline brings it" in published


@pytest.mark.slow
@pytest.mark.parametrize("levels", [[1.0, 0.9, 0.5, 0.3], [1.0, 0.02]])
def test_the_snippet_of_qwen_image21_draws_the_trainers_image(
    levels: list[float], make_trained: Any, reference: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 4 steps, of a checkpoint that has so many noise levels of its own, or others."""
    from diffusers import QwenImage21Pipeline

    trained = make_trained("qwen_image21", alpha=6.0)
    folder = export_run(trained.path, "diffusers", out=trained.path / f"of-{len(levels)}").parent
    image = Image.fromarray((reference * 255).round().byte().permute(1, 2, 0).numpy())
    image.save(folder / "reference.png")
    snippet = re.search(r"```python\n(.*?)^```$", (folder / "README.md").read_text(), re.S | re.M)
    assert snippet is not None
    # as the published processor's part for videos needs torchvision
    pipe = load_pipeline(str(trained.base), family="qwen_image21", precision="fp32")
    for each in (pipe, trained.policy.pipe):
        each.register_to_config(sample_sigmas=levels)
    monkeypatch.setattr(QwenImage21Pipeline, "from_pretrained", lambda path, torch_dtype: pipe)
    monkeypatch.chdir(folder)
    exec(snippet[1], {})
    drawn = to_tensor(Image.open("image.png"))
    policy = trained.policy
    conditioning = policy.encode(["the subject on a beach at sunset"], [[reference]], 64, 64)
    noise = [torch.Generator().manual_seed(0)]
    ours = sample_images(policy, conditioning, noise, policy.sigmas(4, policy.n_tokens(64, 64)), 1)[0]
    assert (tiny_qwen_image21.over_white(drawn[None])[0] - ours).abs().max() < 0.01


def to_tensor(image: Image.Image) -> Tensor:
    """[C, H, W] in [0, 1]."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255
