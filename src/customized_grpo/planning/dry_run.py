"""A recipe's transformer and autoencoder at full size without data: what their passes allocate and compute.

Legend: B samples, N image tokens, R reference tokens, T text tokens, D channels of the text embeddings,
C channels of a token.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from customized_grpo.planning import replay
from customized_grpo.planning.layout import RealLayout
from customized_grpo.policies import lora
from customized_grpo.policies.architecture import Architecture, CallShape, n_parameters
from customized_grpo.policies.families import get_family
from customized_grpo.policies.quantisation import block_lists
from customized_grpo.policies.tokens import Grid
from customized_grpo.reference_sizes import Size

if TYPE_CHECKING:
    from customized_grpo.config.schema import ModelConfig

Inputs = Mapping[str, Any]
T = TypeVar("T")

STACKS = ("num_layers", "num_single_layers")
"""Keys of a transformer's config that say how many blocks of a kind it stacks."""


class DryRun:
    """A recipe's models without data.

    All blocks of a stack have the same shape, so passes are replayed with two and with three blocks of each
    kind and extrapolated to the real depth, see `_deepen`. One block would not do: nothing before the first
    one is trained, so its backward pass stops early.

    Args:
        architecture: What the checkpoint consists of.
        model: The recipe's `model` section.
        references: Width and height, in pixels, at which the model sees each reference of a sample.
    """

    def __init__(self, architecture: Architecture, model: ModelConfig, references: Sequence[Size]) -> None:
        self.architecture = architecture
        self.model = model
        self.policy_class = get_family(model.family).policy_class()
        self.dtype = torch.bfloat16 if model.precision == "bf16" else torch.float32
        # Classifier-free guidance asks the transformer twice for one velocity.
        self.calls = self.policy_class.calls_per_velocity(architecture, model.guidance)
        self.vae = architecture.vae.build()
        self.references = tuple(references)
        self.grid = self._grid(model.height, model.width)
        self.reference_grids = tuple(self._grid(height, width) for width, height in references)
        self.n_image = math.prod(self.grid)
        self.n_references = sum(math.prod(grid) for grid in self.reference_grids)
        self._graphs: dict[tuple[int, bool], int] = {}  # bytes by batch and checkpointing
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)  # rotary tables of qwen_edit are no buffers

        transformer = architecture.transformer.build(dtype=self.dtype)
        self.config = transformer.config
        self.base_parameters = n_parameters(transformer)
        self.block_linears = _block_linears(transformer)
        self._add_adapter(transformer)
        adapter = lora.adapter_parameters(transformer).values()
        self.adapter_parameters = sum(parameter.numel() for parameter in adapter)
        self.encoder_parameters = sum(n_parameters(part.build()) for part in architecture.text_encoders)
        self.vae_parameters = n_parameters(self.vae)

    def _add_adapter(self, transformer: nn.Module) -> None:
        settings = self.model.lora
        target = settings.target or self.policy_class.default_target(transformer)
        # peft would draw the adapter's numbers on the CPU, only to move the adapter to "meta"
        with torch.device("meta"):
            lora.add_adapter(transformer, rank=settings.rank, alpha=settings.alpha, target=target, seed=0)

    # Sizes

    @property
    def scale_factor(self) -> int:
        """Return how many pixels of an image, along a side, are one latent pixel."""
        return self.policy_class.pixels_per_latent(self.vae.config)

    def _grid(self, height: int, width: int) -> Grid:
        return self.policy_class.grid_of(height, width, self.scale_factor)

    @property
    def token_channels(self) -> int:
        """Return C."""
        channels: int = self.config.in_channels
        return channels

    @property
    def conditioning_bytes(self) -> int:
        """Return the bytes of one sample's conditioning: text, pooled text, references."""
        texts = self.policy_class.texts_per_sample(self.architecture, self.model.guidance)
        width: int = texts * self.model.max_text_tokens * self.policy_class.text_channels(self.config)
        width += self.config.get("pooled_projection_dim", 0)
        # Text in the model's precision, references as fp32 latents of 4 bytes a number.
        return width * self.dtype.itemsize + self.n_references * self.token_channels * 4

    def call_shape(self, batch: int) -> CallShape:
        """Return the sizes of a call of the transformer for a batch of samples."""
        return CallShape(
            config=self.config,
            batch=batch,
            grid=self.grid,
            references=self.reference_grids,
            text_tokens=self.model.max_text_tokens,
            text_channels=self.policy_class.text_channels(self.config),
            dtype=self.dtype,
        )

    # Passes of the transformer

    @property
    def flops(self) -> int:
        """Return the floating-point operations of one forward pass of one sample."""
        return self._work[0]

    @property
    def moved_bytes(self) -> int:
        """Return the bytes that one forward pass of one sample reads and writes between its products."""
        return self._work[1]

    @cached_property
    def _work(self) -> tuple[int, int]:
        """Return operations and moved bytes, counted in one pass."""
        two, three = self._both(lambda part: part.work)
        flops = self._whole([work[0] for work in two], [work[0] for work in three])
        moved = self._whole([work[1] for work in two], [work[1] for work in three])
        return flops, moved

    def _whole(self, two: Sequence[int], three: Sequence[int]) -> int:
        """Return a sum over all blocks, given those over two and over three of each stack."""
        return _extended(two, three, self._depths, self._least)

    @cache  # noqa: B019 one short-lived object per plan
    def rollout_bytes(self, batch: int) -> int:
        """Return the peak bytes of one forward pass without gradients; it does not depend on depth."""
        return max(self._stub(stack, 2).forward_bytes(batch) for stack in self._stacks)

    @cache  # noqa: B019
    def update_bytes(self, batch: int, *, checkpointing: bool, kl: bool) -> int:
        """Return the peak bytes of a backward pass: velocity, the base's for the KL term, loss, gradients."""
        two, three = self._both(lambda part: part.update_bytes(batch, checkpointing, kl))
        graphs_of_two = [graph for _, graph in two]
        graphs_of_three = [graph for _, graph in three]
        self._graphs[batch, checkpointing] = self._whole(graphs_of_two, graphs_of_three)
        return _deepen([peak for peak, _ in two], [peak for peak, _ in three], self._depths)

    def graph_bytes(self, batch: int, *, checkpointing: bool) -> int:
        """Return the bytes that a forward pass with gradients leaves behind for its backward pass."""
        key = (batch, checkpointing)
        # an update of as many samples has counted them on its way
        if key not in self._graphs:
            two, three = self._both(lambda part: part.graph_bytes(batch, checkpointing))
            self._graphs[key] = self._whole(two, three)
        return self._graphs[key]

    @cached_property
    def _depths(self) -> list[int]:
        return [self.config[stack] for stack in self._stacks]

    @cached_property
    def _least(self) -> list[int]:
        return [self.policy_class.LEAST_BLOCKS.get(stack, 0) for stack in self._stacks]

    @cached_property
    def _stacks(self) -> list[str]:
        return [stack for stack in STACKS if stack in self.config]

    def _both(self, measure: Callable[[_Stub], T]) -> tuple[list[T], list[T]]:
        """Return a measure of each stack alone, with two of its blocks and with three."""
        # The difference of the two is the cost of one block.
        return (
            [measure(self._stub(stack, 2)) for stack in self._stacks],
            [measure(self._stub(stack, 3)) for stack in self._stacks],
        )

    @cache  # noqa: B019
    def _stub(self, stack: str, depth: int) -> _Stub:
        """Return the transformer with `depth` blocks of one stack, and as few as work of the others."""
        depths = dict(zip(self._stacks, self._least, strict=True)) | {stack: depth}
        part = dataclasses.replace(
            self.architecture.transformer, config={**self.architecture.transformer.config, **depths}
        )
        transformer = part.build(dtype=self.dtype)
        self._add_adapter(transformer)
        if self.model.device != "cpu":
            replay.round_norms_as_accelerators(transformer)
        return _Stub(self, replay.without_data(transformer, self.mode))

    # Passes of the autoencoder

    @cache  # noqa: B019
    def decode_bytes(self, batch: int) -> int:
        """Return the peak bytes of decoding a batch of images."""
        rows = self.model.height // self.scale_factor
        columns = self.model.width // self.scale_factor
        channels = self.policy_class.latent_channels(self.vae.config)
        latents = self._images(batch, channels, rows, columns)
        with replay.bf16_products(self.model.precision == "bf16"):
            return self._vae_peak(lambda vae: vae.decode(latents, return_dict=False), latents)

    @cache  # noqa: B019
    def encode_bytes(self, batch: int) -> int:
        """Return the peak bytes of encoding a batch of the largest references, in fp32; 0 without any."""
        if not self.references:
            return 0
        width, height = max(self.references, key=math.prod)
        pixels = self._images(batch, self.policy_class.VAE_CHANNELS, height, width)
        return self._vae_peak(lambda vae: vae.encode(pixels, return_dict=False), pixels)

    @cached_property
    def _faked_vae(self) -> nn.Module:
        if self.model.device != "cpu":
            replay.round_norms_as_accelerators(self.vae)
        return replay.without_data(self.vae.requires_grad_(False), self.mode)

    def _vae_peak(self, call: Callable[[Any], Any], given: Tensor) -> int:
        vae = self._faked_vae
        with self.mode, torch.no_grad():
            return replay.peak_bytes(lambda: call(vae), [given, *replay.known_tensors(vae)])

    def _images(self, batch: int, channels: int, height: int, width: int) -> Tensor:
        """Return images without data, as the autoencoder takes them."""
        with self.mode:
            return torch.empty(batch, channels, *self.policy_class.VAE_FRAMES, height, width)


class _Stub:
    """A transformer of a few blocks without data.

    Args:
        run: The dry run that it is a part of.
        module: The transformer, of fake tensors, with an adapter.

    Attributes:
        work: Operations and moved bytes of one forward pass of one sample.
        calls: Calls for a velocity that are replayed; the others, if there are any, are copies of them.
    """

    def __init__(self, run: DryRun, module: Any) -> None:
        self.run = run
        self.module = module
        with run.mode:  # gradients stay from one update to the next, so they are not part of a pass
            for parameter in lora.adapter_parameters(module).values():
                parameter.grad = torch.empty_like(parameter)
        self.calls = 1
        self.work = self._count_work()

    @property
    def _copies(self) -> int:
        """Return how many further times the calls that are replayed are made for one velocity."""
        return self.run.calls // self.calls - 1

    def _count_work(self) -> tuple[int, int]:
        """Return operations and moved bytes of one forward pass of one sample."""
        with self.run.mode, RealLayout():
            inputs, known = self._inputs(1)
            work: list[tuple[int, int]] = []
            left = replay.bytes_left(lambda: work.append(self._work_of_pass(inputs)), known)
            if left:
                # Qwen-Image-Edit keeps rotary tables from its first call, which must count in no measure.
                # All calls share them, so that two are not twice one.
                self.calls = self.run.calls
                return self._work_of_pass(inputs)
            return work[0]

    def _work_of_pass(self, inputs: Inputs) -> tuple[int, int]:
        moved: list[int] = []
        flops = replay.flops(lambda: moved.append(replay.moved_bytes(lambda: self._velocity(inputs))))
        return flops, moved[0]

    def forward_bytes(self, batch: int) -> int:
        with self.run.mode, RealLayout(), torch.no_grad():
            inputs, known = self._inputs(batch)
            with replay.LiveBytes(known) as live:
                velocities = self._velocities(inputs)
            results: int = live.now
            del velocities  # they were alive until here
            # with guidance the results of the earlier calls are alive in the last one
            peak: int = live.peak
            return peak + self._copies * results

    def graph_bytes(self, batch: int, checkpointing: bool) -> int:
        self._set_checkpointing(checkpointing)
        with self.run.mode, RealLayout():
            inputs, known = self._inputs(batch)
            return (1 + self._copies) * replay.bytes_left(lambda: self._velocities(inputs), known)

    def _set_checkpointing(self, enabled: bool) -> None:
        if enabled:
            self.module.enable_gradient_checkpointing()
        else:
            self.module.disable_gradient_checkpointing()

    def update_bytes(self, batch: int, checkpointing: bool, kl: bool) -> tuple[int, int]:
        """Return the peak bytes, and those that the forward pass leaves behind for the backward pass."""
        self._set_checkpointing(checkpointing)
        with self.run.mode, RealLayout():
            inputs, known = self._inputs(batch)
            with replay.LiveBytes(known) as live:
                velocities = self._velocities(inputs)
                graph: int = live.now
                if kl:
                    with torch.no_grad(), lora.adapter_off(self.module):
                        # While the graph of the trained velocity is held.
                        for _ in range(self.calls):
                            self._velocity(inputs)
                torch.stack([v.square().mean() for v in velocities]).sum().backward()  # type: ignore[no-untyped-call]
            # with guidance the graphs of the earlier calls stay until the last one's backward pass is over
            return live.peak + self._copies * graph, (1 + self._copies) * graph

    def _inputs(self, batch: int) -> tuple[Inputs, list[Tensor]]:
        """Return the inputs of a call, and all tensors that are there before it."""
        inputs = self.run.policy_class.transformer_inputs(self.run.call_shape(batch))
        return inputs, [*replay.known_tensors(self.module), *_tensors(inputs)]

    def _velocities(self, inputs: Inputs) -> list[Tensor]:
        return [self._velocity(inputs) for _ in range(self.calls)]

    def _velocity(self, inputs: Inputs) -> Tensor:
        """Call the transformer once, as the family's `velocity` does."""
        with replay.bf16_products(self.run.model.precision == "bf16"):
            v: Tensor = self.module(**inputs, return_dict=False)[0]
        # The references' tokens follow those of the image, and have no velocity.
        return v[:, : self.run.n_image].float()


def _tensors(inputs: Inputs) -> list[Tensor]:
    return [value for value in inputs.values() if isinstance(value, Tensor)]


def _extended(two: Sequence[int], three: Sequence[int], depths: Sequence[int], least: Sequence[int]) -> int:
    """Return a sum over whole stacks, given that of two and of three blocks of each stack alone.

    Args:
        two: With two blocks of each stack, in any order.
        three: With three.
        depths: Numbers of blocks.
        least: Blocks that a stack has in the measures of the others.
    """
    per_block = [longer - shorter for shorter, longer in zip(two, three, strict=True)]
    around = two[0] - 2 * per_block[0]  # embeddings and the last layer, which every measure has
    # The stub of the first stack also has the fewest possible blocks of the others.
    around -= sum(n * blocks for n, blocks in zip(least[1:], per_block[1:], strict=True))
    return around + sum(depth * n for depth, n in zip(depths, per_block, strict=True))


def _deepen(two: Sequence[int], three: Sequence[int], depths: Sequence[int]) -> int:
    """Return the peak of a backward pass through whole stacks, given those of two and three of their blocks.

    The backward pass peaks when it enters a stack: then everything that the stack and those before it have
    kept is there, and the working memory of the stack's last block. Each further block of a stack keeps as
    much as its third one did.

    Args:
        two: Peak with two blocks of each stack alone, in the order in which the forward pass meets them.
        three: Peak with three blocks.
        depths: Numbers of blocks.
    """
    per_block = [longer - shorter for shorter, longer in zip(two, three, strict=True)]
    peaks = []
    before = 0  # bytes that the stacks before this one keep for the backward pass
    for peak, more, depth in zip(two, per_block, depths, strict=True):
        # `peak` has two of the blocks in it.
        peaks.append(before + peak + (depth - 2) * more)
        before += depth * more
    return max(peaks)


def _block_linears(transformer: nn.Module) -> list[tuple[int, int]]:
    """Return the shapes [out, in] of the linear layers in the repeated blocks, which are quantised."""
    shapes = []
    for _, blocks in block_lists(transformer):
        for module in blocks.modules():
            if isinstance(module, nn.Linear):
                shapes.append((module.out_features, module.in_features))
    return shapes
