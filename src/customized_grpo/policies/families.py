"""The families of generators: which checkpoints belong to one, its policy, and what other programs call it.

Nothing heavy is imported here; a family names its policy's class by import path. A family of your own is one
`Family`, in a module of yours.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from customized_grpo import extensions
from customized_grpo.errors import UserError
from customized_grpo.fields import Section, read_section
from customized_grpo.policies.options import Flux1Options, Flux2Options, Flux3Options, NoOptions
from customized_grpo.policies.other_programs import (
    OtherPrograms,
    embedded_guidance_call,
    flux1_place,
    flux2_place,
    flux3_place,
    qwen_image_place,
)
from customized_grpo.policies.sampling import Sampling
from customized_grpo.reference_sizes import MULTIPLE, QWEN_MULTIPLE

if TYPE_CHECKING:
    from customized_grpo.config.schema import ModelConfig
    from customized_grpo.policies.policy import Policy


@dataclass(frozen=True)
class Family:
    """What the package must know of a family of generators.

    Attributes:
        policy: Import path of its subclass of `Policy`, "package.module:Class".
        pipelines: Values of `_class_name` in a checkpoint's model_index.json, each with the pipeline of
            diffusers that loads it.
        options: The family's own options, a section of a recipe.
        sampling: How images are drawn with a checkpoint that is like none in `policies/checkpoints.py`.
        size_multiple: Sides of references are multiples of so many pixels.
        other_programs: What exports need to know.
    """

    policy: str
    pipelines: Mapping[str, str]
    options: type[Section] = NoOptions
    sampling: Sampling = Sampling(guidance=1.0, steps=28)
    size_multiple: int = MULTIPLE
    other_programs: OtherPrograms = OtherPrograms()

    def policy_class(self) -> type[Policy]:
        """Return the class of the policy; its module, torch and diffusers are imported now.

        Raises:
            UserError: There is no such class, or it lacks methods that every policy must have.
        """
        try:
            # By name, so that a recipe can be read without torch and diffusers.
            module, _, name = self.policy.partition(":")
            policy: type[Policy] = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(
                f"the policy {self.policy!r} of a family could not be loaded: {error}",
                hint="Family.policy is the import path of a subclass of Policy, written module:Class.",
            ) from error
        missing = sorted(getattr(policy, "__abstractmethods__", ()))
        if missing:
            raise UserError(
                f"the policy {self.policy!r} of a family lacks {', '.join(missing)}",
                hint="Define what is missing; docs/extending.md says what each method returns.",
            )
        return policy


def _flux1_call(model: ModelConfig) -> list[str] | None:
    if model.options.get("reference_ids") == "uno":
        return None  # no pipeline of diffusers places references on the diagonal
    return [
        *embedded_guidance_call(model),
        "max_area=width * height,  # without it the pipeline draws one megapixel",
    ]


def _flux2_call(model: ModelConfig) -> list[str]:
    call = embedded_guidance_call(model)
    text_layers = model.options.get("text_layers")
    if text_layers is not None:
        call.append(f"text_encoder_out_layers={text_layers},")
    return call


def _qwen_edit_call(model: ModelConfig) -> list[str]:
    return [f"true_cfg_scale={model.guidance},", 'negative_prompt=" ",']


def _qwen_image21_call(model: ModelConfig) -> list[str]:
    return _qwen_edit_call(model) if model.guidance > 1 else []


TOKEN_TYPES = (
    "With transformers 5, this pipeline of diffusers (0.42.1 and earlier) does not tell the text encoder "
    "which tokens are those of the reference (huggingface/diffusers issue 14194), and draws other images "
    "without a word. This adapter was trained and judged with the right ones: use a diffusers in which that "
    "is mended, or draw with `cgrpo generate`."
)
FLUX1 = Family(
    policy="customized_grpo.policies.flux1:Flux1Policy",
    # FLUX.1-dev has the same parts as FLUX.1-Kontext-dev, and is the base of UNO
    pipelines={"FluxKontextPipeline": "FluxKontextPipeline", "FluxPipeline": "FluxKontextPipeline"},
    options=Flux1Options,
    other_programs=OtherPrograms(
        place=flux1_place,
        modelspec="flux-1-dev",
        network_module="networks.lora_flux",
        base_version="flux1",
        pipeline="FluxKontextPipeline",
        call=_flux1_call,
        reference_rule="kontext",
        keep_size="_auto_resize=False,",
    ),
)
FLUX2 = Family(
    policy="customized_grpo.policies.flux2:Flux2Policy",
    pipelines={"Flux2KleinPipeline": "Flux2KleinPipeline", "Flux2Pipeline": "Flux2Pipeline"},
    options=Flux2Options,
    other_programs=OtherPrograms(
        place=flux2_place,
        modelspec="flux-2",
        network_module="networks.lora_flux_2",
        base_version="flux2",
        call=_flux2_call,
        reference_rule="flux2",
    ),
)
QWEN_EDIT = Family(
    policy="customized_grpo.policies.qwen_edit:QwenEditPolicy",
    pipelines={"QwenImageEditPlusPipeline": "QwenImageEditPlusPipeline"},
    other_programs=OtherPrograms(
        place=qwen_image_place,
        modelspec="Qwen-Image-Edit-Plus",
        network_module="networks.lora_qwen_image",
        base_version="qwen_image_edit",
        call=_qwen_edit_call,
        caution=TOKEN_TYPES,
        reference_rule="qwen_edit",
    ),
)
QWEN_IMAGE21 = Family(
    policy="customized_grpo.policies.qwen_image21:QwenImage21Policy",
    pipelines={"QwenImage21Pipeline": "QwenImage21Pipeline"},
    sampling=Sampling(guidance=1.0, steps=40),
    size_multiple=QWEN_MULTIPLE,
    other_programs=OtherPrograms(
        place=qwen_image_place,
        modelspec="Qwen-Image-2.1",
        network_module="networks.lora_qwen_image_21",
        base_version="qwen_image_21",
        pipeline="QwenImage21Pipeline",
        call=_qwen_image21_call,
        reference_rule="qwen_edit",
        unconfirmed={
            "kohya": "ComfyUI joins two layers of Qwen-Image-2.1's MLP, gate_layer and proj, and finds "
            "neither by the names of this format; for ComfyUI use --format comfyui",
        },
        set_size="output_resolution={pixels} ** 0.5,",
        # levels of the checkpoint's own are taken where they are as many, as the policy takes them
        even_levels="sigmas=None if len(pipe.config.sample_sigmas or ()) == {steps} else "
        "[1 - i / {steps} for i in range({steps})],",
    ),
)
FLUX3 = Family(
    policy="customized_grpo.policies.flux3:Flux3Policy",
    pipelines={"Flux3ModularPipeline": "Flux3ModularPipeline"},
    options=Flux3Options,
    sampling=Sampling(guidance=4.0, steps=50),
    other_programs=OtherPrograms(
        place=flux3_place,
        comfyui_originals=True,
        # no name of it for the header of a file: no public program was found that gives it one
        unconfirmed={
            "comfyui": "no public version of ComfyUI was found that loads FLUX.3; the names in the file are "
            "those of its original code, which diffusers reads",
            "kohya": "no program was found that reads LoRA of FLUX.3 in kohya's format, not even diffusers; "
            "the names follow the format's rule",
        },
        pipeline="Flux3ModularPipeline",
        call=lambda model: None,  # its pipeline takes guidance as a part, not as an argument
    ),
)
TWO_SCALE = Family(
    policy="customized_grpo.policies.two_scale:TwoScalePolicy",
    pipelines={"TwoScalePipeline": "TwoScalePipeline"},  # no class of diffusers: its base is embedded
    other_programs=OtherPrograms(call=lambda model: None),
)
FAMILIES: Mapping[str, Family] = {
    "flux1": FLUX1,
    "flux2": FLUX2,
    "qwen_edit": QWEN_EDIT,
    "qwen_image21": QWEN_IMAGE21,
    "flux3": FLUX3,
    "two_scale": TWO_SCALE,
}
"""The package's own families by their names in recipes."""


def get_family(name: str) -> Family:
    """Return a family by its name in a recipe, or by the dotted path of one from outside.

    Raises:
        UserError: See `extensions.load`.
    """
    family: Family = extensions.load("family", name)
    return family


def read_options(model: ModelConfig) -> Section:
    """Return the family's own options of a recipe's `model` section."""
    return read_section(get_family(model.family).options, model.options)
