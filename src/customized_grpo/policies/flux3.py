"""The FLUX.3 family: FLUX.3 Image Klein Base (Flux3ModularPipeline), text to image and several references.

Legend: B samples, N image tokens, R reference tokens, T text tokens, D channels of the text embeddings, C
channels of a token.

Tokens of images are those of FLUX.2. The transformer takes image, references and text apart: each goes
through blocks of its own, then all through joint ones. References and text are modulated by noise level 0.

* Guidance: classifier-free above 1, v = v_empty + scale (v_prompt - v_empty), with the empty prompt but the
  same references; 1 means none.
* Shift: fixed, in the checkpoint's scheduler; there is no mu.
* Ids (t, y, x, l). Image: l = 0; i-th reference: l = -1 - i, its own origin; y and x in halves. Text: l = 0,
  1, 2, ...
* Text: a window of whole multiples of 80 tokens, which the transformer attends to with its padding. So the
  transformer is called once for each window in a batch. `max_text_tokens` is the longest window; beyond it a
  prompt is cut.

Two departures: each sample has references of its own, where the pipeline has one set for all, and they are
taken at the size they come in, where the pipeline shrinks large ones. The step-distilled Klein is refused: it
must be told the next noise level, which a step of training does not have.

Its card says that the model wants full captions of a scene. The pipeline writes them with an upsampler of
prompts; here prompts are taken as they are, so the rows of a recipe should have such captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from customized_grpo.errors import UserError
from customized_grpo.policies.batch_norm_tokens import BatchNormTokens
from customized_grpo.policies.flux2 import text_ids
from customized_grpo.policies.options import Flux3Options
from customized_grpo.policies.qwen import processor_class
from customized_grpo.policies.settings import PolicySettings
from customized_grpo.policies.text_lengths import HostValues, by_length
from customized_grpo.policies.tokens import Grid
from customized_grpo.text_limits import TextLimit, token_counter

if TYPE_CHECKING:
    from customized_grpo.policies.architecture import Architecture, CallShape
    from customized_grpo.policies.conditioning import Conditioning

WINDOW = 80
"""The text is padded to a multiple of so many tokens."""
ID_SCALE = 0.5
"""Distance of the position ids of neighbouring tokens of an image."""
LAYERS = (4, 8, 12, 16, 20, 24, 28, 32)
"""Hidden states of the text encoder that are joined."""


class Flux3Policy(BatchNormTokens):
    """A policy around a Flux3ModularPipeline.

    `guidance` is the scale of classifier-free guidance; 1 means none, at half the cost.

    Raises:
        UserError: The checkpoint is step-distilled, or the guidance is below 1.
    """

    TEXT_TO_IMAGE = True
    CALLS_BY_TEXT = True
    LEAST_BLOCKS = MappingProxyType({"num_single_layers": 1})  # where image, references and text meet
    LORA_TARGET = (
        r"(single_transformer_blocks|txt_mode_blocks|mode_blocks\.(image|image_cond))\.\d+\."
        r"attn\.(to_[qkv]|to_out\.0)"
    )

    def __init__(self, pipe: Any, settings: PolicySettings, options: Flux3Options) -> None:
        if pipe.transformer.config.flow_map:
            raise UserError(
                "this checkpoint is step-distilled: each of its steps must know the next one's noise level",
                hint="Train FLUX.3 Image Klein Base; its adapter can be tried on the distilled one.",
            )
        _check_guidance(settings.guidance)
        super().__init__(pipe, settings, options)
        self.text_layers = options.text_layers or LAYERS

    # Conditioning

    def _encode(
        self,
        prompts: Sequence[str],
        references: Sequence[Sequence[Tensor]],
        image_grid: Grid,
        reference_grids: Sequence[Grid],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        shared = {"image_ids": grid_ids(image_grid, slot=0).to(self.device)}
        # Slot 0 is the image; references count from 1.
        ids = [grid_ids(grid, slot=slot) for slot, grid in enumerate(reference_grids, start=1)]
        shared["reference_ids"] = torch.cat([torch.zeros(0, 4), *ids]).to(self.device)
        with self.placement.text_encoders():
            windows = [self._window(prompt) for prompt in prompts]
            if self._is_guided:
                shared["empty_embeds"] = self._empty_embeds
        # Padded to one length to be stacked; `prompt_length` takes the padding off again.
        embeds = [pad(window, (0, 0, 0, self.max_text_tokens - len(window))) for window in windows]
        lengths = [len(window) for window in windows]
        per_sample = {
            "prompt_embeds": torch.stack(embeds),
            "prompt_length": torch.tensor(lengths, device=self.device),
            "reference_tokens": self._all_reference_tokens(references),
        }
        return per_sample, shared

    def text_limits(self) -> list[TextLimit]:
        """Return the limit of the text encoder, whose chat template counts."""
        tokenizer = self.pipe.tokenizer.tokenizer
        count = token_counter(tokenizer, template=len(tokenizer(self._formatted(""))["input_ids"]))
        return [TextLimit("the generator's text encoder", self.max_text_tokens, count)]

    @property
    def _is_guided(self) -> bool:
        _check_guidance(self.guidance)  # that of evaluations may be another than the one of the beginning
        return self.guidance > 1

    def _formatted(self, prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        text: str = self.pipe.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return text

    def _window(self, prompt: str) -> Tensor:
        """Return the embeddings [T, D] of one prompt and its padding."""
        from diffusers.modular_pipelines.flux3.encoders import Flux3TextEncoderStep

        embeds: Tensor = Flux3TextEncoderStep._get_qwen3_vl_prompt_embeds(
            self.pipe.text_encoder,
            self.pipe.tokenizer,
            prompt,
            device=self.device,
            max_sequence_length=self.max_text_tokens,
            pad_multiple=WINDOW,
            hidden_states_layers=self.text_layers,
        )
        return embeds[0]

    @cached_property
    def _empty_embeds(self) -> Tensor:
        """Return the embeddings [T, D] of the empty prompt, computed once for all conditionings."""
        with torch.no_grad(), self._autocast_off():
            return self._window("")

    # Sampling

    def _shift(self, steps: int, n_tokens: int) -> float:
        return 0.0  # unused: the scheduler's shift is fixed

    def _velocity(self, x: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
        lengths = self._on_host(conditioning.per_sample["prompt_length"])
        v = by_length(self._with_prompt, x, level, conditioning, lengths)
        if not self._is_guided:
            return v
        # [T, D] -> [B, T, D], a view: one text for all samples
        empty = conditioning.shared["empty_embeds"].expand(len(x), -1, -1)
        v_empty = self._transform(x, level, conditioning, empty)
        return v_empty + self.guidance * (v - v_empty)

    @cached_property
    def _on_host(self) -> HostValues:
        return HostValues()

    def _with_prompt(self, x: Tensor, level: Tensor, conditioning: Conditioning, length: int) -> Tensor:
        # The padding behind the window is cut off: it would change the result.
        return self._transform(x, level, conditioning, conditioning.per_sample["prompt_embeds"][:, :length])

    def _transform(self, x: Tensor, level: Tensor, conditioning: Conditioning, embeds: Tensor) -> Tensor:
        """Call the transformer on x [B, N, C] at level [B] with text [B, T, D]; return [B, N, C], fp32."""
        references = conditioning.per_sample["reference_tokens"]
        has_references = references.shape[1] > 0
        v = self._call_transformer(
            hidden_states=x,
            encoder_hidden_states=embeds,
            timestep=level,
            img_ids=conditioning.shared["image_ids"],
            txt_ids=text_ids(embeds.shape[1]).to(x.device),
            image_cond_hidden_states=references if has_references else None,
            image_cond_ids=conditioning.shared["reference_ids"] if has_references else None,
        )
        return v.float()

    def _check_positions(self, conditioning: Conditioning, n_image: int, n_references: int) -> None:
        for name, expected in (("image_ids", n_image), ("reference_ids", n_references)):
            ids = conditioning.shared[name]
            assert len(ids) == expected, f"{len(ids)} {name} for {expected} tokens"
            assert ids.dtype == torch.float32, "bf16 ids are wrong beyond 256"

    # Loading

    @classmethod
    def extra_parts(cls, path: str) -> dict[str, Any]:
        """Return the processor, which diffusers could load with torchvision only."""
        return {"tokenizer": processor_class("Qwen3VLProcessor").from_pretrained(path, subfolder="tokenizer")}

    @classmethod
    def assemble(cls, pipeline_class: Any, folder: Path, dtype: Any, parts: dict[str, Any]) -> Any:
        """Return a pipeline of blocks with the parts of a checkpoint."""
        import diffusers

        pipe = empty_pipeline()
        if (folder / "scheduler").is_dir():  # else the published shift, which the blocks bring
            scheduler = diffusers.FlowMatchEulerDiscreteScheduler
            pipe.update_components(scheduler=scheduler.from_pretrained(folder, subfolder="scheduler"))
        pipe.update_components(**parts)
        return pipe

    # Sizes

    @classmethod
    def calls_per_velocity(cls, architecture: Architecture, guidance: float) -> int:
        """Return 2 above a guidance of 1, else 1."""
        return 2 if guidance > 1 else 1

    @classmethod
    def texts_per_sample(cls, architecture: Architecture, guidance: float) -> int:
        """Return 1: the empty prompt is one for all samples."""
        return 1

    @classmethod
    def transformer_inputs(cls, shape: CallShape) -> dict[str, Any]:
        """Return the arguments that `_transform` gives, of any content, for the longest window."""
        n_image = shape.grid[0] * shape.grid[1]
        n_references = shape.n_tokens - n_image
        tokens = shape.hidden_states()
        return {
            "hidden_states": tokens[:, :n_image],
            "encoder_hidden_states": shape.text(),
            "timestep": torch.empty(shape.batch),
            "img_ids": torch.empty(n_image, 4),
            "txt_ids": torch.empty(shape.text_tokens, 4),
            "image_cond_hidden_states": tokens[:, n_image:] if n_references else None,
            "image_cond_ids": torch.empty(n_references, 4) if n_references else None,
        }


def _check_guidance(guidance: float) -> None:
    """Refuse a scale that would count as none without a word."""
    if guidance < 1:
        raise UserError(
            f"guidance {guidance:g}: classifier-free guidance starts at 1",
            hint="Set model.guidance, or evaluation.guidance, to 1 for none, or above.",
        )


def empty_pipeline() -> Any:
    """Return a pipeline without parts, which reads prompts as they are, without the upsampler of prompts."""
    from diffusers.modular_pipelines.flux3 import Flux3AutoBlocks

    # The upsampler would rewrite prompts by a model of its own, and rewards judge the prompt as written.
    blocks = Flux3AutoBlocks()
    blocks.sub_blocks.pop("prompt_upsampler")
    return blocks.init_pipeline()


def grid_ids(grid: Grid, *, slot: int) -> Tensor:
    """Return the position ids (t, y, x, l) of the tokens of an image, fp32 [rows * columns, 4].

    Args:
        grid: Its rows and columns.
        slot: 0 for the image that is drawn, 1, 2, ... for references.
    """
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    zeros = torch.zeros_like(rows)
    ids = torch.stack([zeros, rows, columns, zeros - slot], dim=-1).flatten(0, 1).float()
    # y and x only: t and the slot are counts.
    ids[:, 1:3] *= ID_SCALE
    return ids
