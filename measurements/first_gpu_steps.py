"""The steps of first_gpu.py, each in a process of its own; the last line of the output is the result as JSON.

python measurements/first_gpu_steps.py exact
python measurements/first_gpu_steps.py exact --tiny --device cpu
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from customized_grpo.engine.environment import prepare_cuda
from gpu_case import MATMUL, SHORTENED, TINY, WITHOUT_ENCODERS, matmul_rate

REPEATS = 4
"""Times that a gradient is computed to see whether it repeats."""
COPY_BYTES = {False: 2**30, True: 2**20}
"""Size of a copy, by whether it is tiny."""
DEPTH = 2
"""Blocks of each kind in a model that stands for a deep one: its width is the published one."""
KERNELS = {
    "products": ("gemm", "cutlass", "nvjet", "xmma"),
    "attention": ("flash", "fmha", "attention", "cudnn_generated"),
    "copies and casts": ("copy", "cast", "cat"),
    "norms": ("norm",),
    "element-wise": ("elementwise", "vectorized"),
}
"""Kinds of CUDA kernels by parts of their names; the first kind that fits counts."""


@dataclass(frozen=True)
class Place:
    """Where and at what size steps run.

    Attributes:
        device: The device.
        is_tiny: Whether models are small.
    """

    device: torch.device
    is_tiny: bool

    @property
    def is_cuda(self) -> bool:
        """Return whether memory and kernels can be looked at."""
        return self.device.type == "cuda"

    def synchronise(self) -> None:
        """Wait until the device has done all its work."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], repeats: int = 3) -> float:
        """Return the shortest time of a call that was made once before."""
        call()
        best = float("inf")
        for _ in range(repeats):
            self.synchronise()
            start = time.perf_counter()
            call()
            self.synchronise()
            best = min(best, time.perf_counter() - start)
        return best

    def peak(self, call: Callable[[], object]) -> int | None:
        """Return the most bytes that a call has alive beside what was there; None where nothing counts."""
        if not self.is_cuda:
            call()
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        self.synchronise()
        return torch.cuda.max_memory_allocated() - before


# A shallow model of full width


@dataclass(frozen=True)
class Work:
    """A FLUX.1-Kontext of few blocks with random weights, and one batch.

    Attributes:
        config: The recipe.
        policy: The policy; its adapter changes what the base does.
        x: Noisy tokens [B, N, C].
        conditioning: Of the batch.
    """

    config: Any
    policy: Any
    x: Tensor
    conditioning: Any

    @classmethod
    def build(cls, place: Place, batch: int, *settings: str) -> Work:
        """Build it as the preset flux1-kontext has it, but for its depth."""
        from customized_grpo.config import load_config
        from random_models import build_policy

        size = TINY if place.is_tiny else ()
        # the reference below is as large as the image, so the plan must count it so
        crop = "model.reference_fit=crop"
        batches = (f"rollout.batch_size={batch}", f"train.micro_batch_size={batch}", crop)
        config = load_config(
            "flux1-kontext",
            [*SHORTENED, WITHOUT_ENCODERS, *size, *batches, f"model.device={place.device.type}", *settings],
        )
        policy = build_policy(config, place.device)
        with torch.no_grad():
            for parameter in policy.trainable_parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        shape = (config.model.height, config.model.width)
        reference = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1))
        conditioning = policy.encode(["a fox"], [[reference]], *shape).repeat_interleave(batch)
        x = policy.noise([torch.Generator().manual_seed(number) for number in range(batch)], *shape)
        return cls(config, policy, x, conditioning)

    def rollout(self) -> Tensor:
        """Return a velocity without gradients."""
        with torch.no_grad():
            return self.policy.velocity(self.x, 0.6, self.conditioning)

    def update(self) -> None:
        """Add a gradient to the adapter's."""
        self.policy.velocity(self.x, 0.6, self.conditioning).square().mean().backward()

    def gradient(self) -> Tensor:
        """Return a fresh gradient in one row."""
        parameters = self.policy.trainable_parameters()
        for parameter in parameters:
            parameter.grad = None
        self.update()
        return torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])


@contextmanager
def shallow() -> Iterator[None]:
    """Give every checkpoint few blocks inside the block, and its full width."""
    from customized_grpo.policies.checkpoints import CHECKPOINTS

    few = {}
    for name, checkpoint in CHECKPOINTS.items():
        part = checkpoint.architecture.transformer
        depth = {key: DEPTH for key in ("num_layers", "num_single_layers") if key in part.config}
        part = dataclasses.replace(part, config={**part.config, **depth})
        architecture = dataclasses.replace(checkpoint.architecture, transformer=part)
        few[name] = dataclasses.replace(checkpoint, architecture=architecture)
    with patch.dict(CHECKPOINTS, few):
        yield


# Steps


def machine(place: Place) -> dict[str, Any]:
    """Card, versions, and the rates that everything else is measured against."""
    facts: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("diffusers", "transformers", "peft", "accelerate", "bitsandbytes", "torchao", "triton"):
        try:
            facts[name] = importlib.import_module(name).__version__
        except Exception as error:  # whatever a library raises when it is imported is the fact
            facts[name] = f"{type(error).__name__}: {error}"[:120]
    facts["bf16 TFLOP/s"] = matmul_rate(place.device, MATMUL[place.is_tiny])
    n_bytes = COPY_BYTES[place.is_tiny]
    host = torch.empty(n_bytes, dtype=torch.uint8)
    there = host.to(place.device, copy=True)
    copies = {"to the device": lambda: there.copy_(host), "to the CPU": lambda: host.copy_(there)}
    if place.is_cuda:
        pinned = host.pin_memory()
        copies["to the device, pinned"] = lambda: there.copy_(pinned, non_blocking=True)
        facts["card"] = torch.cuda.get_device_name()
        facts["capability"] = torch.cuda.get_device_capability()
        facts["free and total bytes"] = torch.cuda.mem_get_info()
        facts["attention kernels"] = kernels(place, attention)
    facts["GB/s"] = {name: n_bytes / 1e9 / place.seconds(copy) for name, copy in copies.items()}
    return facts


def attention() -> None:
    """Run attention of FLUX.1's shape at 512 px with its backward pass."""
    q = torch.randn(2, 24, 2560, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()


def kernels(place: Place, call: Callable[[], object]) -> list[tuple[str, float]]:
    """Return the kernels of a call with their shares of its time, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        place.synchronise()
    rows = sorted(profiler.key_averages(), key=lambda row: -row.device_time_total)
    total = sum(row.device_time_total for row in rows) or 1
    return [(row.key[:100], row.device_time_total / total) for row in rows]


def exact(place: Place) -> dict[str, Any]:
    """First-pass ratios in batches of other sizes; gradients that repeat, and what that costs."""
    from customized_grpo.engine.deterministic import repeatable

    batch = 4 if place.is_tiny else 12
    work = Work.build(place, batch)
    facts: dict[str, Any] = {"largest |log ratio|": log_ratios(work, batch)}
    for name, enabled in (("usual kernels", False), ("run.deterministic", True)):
        with repeatable(place.device, enabled):
            gradients = [work.gradient() for _ in range(REPEATS)]
            first, *others = gradients
            off_by = max(float((other - first).abs().max()) for other in others)
            facts[name] = {
                "gradients repeat": all(torch.equal(first, other) for other in others),
                "largest difference, relative": off_by / float(first.abs().max()),
                "seconds": place.seconds(work.gradient),
            }
    return facts


def log_ratios(work: Work, batch: int) -> dict[str, float]:
    """Return the largest first-pass log ratio by step and size of the micro-batches."""
    from customized_grpo.algorithms import samplers
    from customized_grpo.rollout.sampler import build_sampler

    model = work.config.model
    steps = 10
    rollout = work.config.rollout.model_copy(update={"steps": steps})
    sampler = build_sampler(work.policy, rollout, model.height, model.width)
    chances = [torch.Generator().manual_seed(100 + number) for number in range(batch)]
    noise = work.policy.noise(chances, model.height, model.width)
    largest = {}
    for step in (0, steps // 2, steps - 2):
        with torch.no_grad():
            mean, std = sampler.transition(work.policy, work.x, step, work.conditioning)
            x_next = mean + std * noise
            old = samplers.log_prob(x_next, mean, std)
        for size in sorted({batch, batch // 2, batch // 3, 1}, reverse=True):
            off_by = 0.0
            for start in range(0, batch, size):
                rows = slice(start, start + size)
                part = work.conditioning.index(rows)
                mean, std = sampler.transition(work.policy, work.x[rows], step, part)  # with gradients
                new = samplers.log_prob(x_next[rows], mean, std).detach()
                off_by = max(off_by, float((new - old[rows]).abs().max()))
            largest[f"step {step}, micro-batches of {size}"] = off_by
    return largest


def memory(place: Place) -> dict[str, Any]:
    """Peaks beside the plan's: rollout, update with and without checkpointing, decoding by layout."""
    from customized_grpo.planning.estimate import Planner

    facts: dict[str, Any] = {}
    batch = 2 if place.is_tiny else 4
    for checkpointing in ("true", "false"):
        work = Work.build(place, batch, f"model.gradient_checkpointing={checkpointing}")
        parts = Planner(work.config).estimate().memory.parts
        work.update()  # gradients stay from one update to the next
        name = f"update, checkpointing={checkpointing}"
        facts[name] = {"measured": place.peak(work.update), "planned": parts["update pass"]}
        facts["rollout"] = {"measured": place.peak(work.rollout), "planned": parts["rollout pass"]}
    size = (work.config.model.height, work.config.model.width)
    for layout in (torch.channels_last, torch.contiguous_format):
        work.policy.pipe.vae.to(memory_format=layout)

        def decode() -> Tensor:
            return work.policy.decode(work.x, *size)

        facts[f"decoding, {layout}"] = {
            "seconds": place.seconds(decode),
            "measured": place.peak(decode),
            "planned": parts["decoding"],
        }
    return facts


def swap(place: Place) -> dict[str, Any]:
    """Text encoders and transformer taking turns, as model.text_encoders=offload has them."""
    from customized_grpo.policies.offload import Offload, Placement
    from random_models import build_pipeline, text_encoder_shells

    path = "black-forest-labs/FLUX.1-Kontext-dev"
    pipe = build_pipeline(path, place.device, torch.bfloat16)
    for name, shell in text_encoder_shells(path, torch.bfloat16).items():
        pipe.register_modules(**{name: shell})
    placement = Placement(pipe, place.device, Offload(text_encoders="offload"))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        with placement.text_encoders():
            place.synchronise()
            middle = time.perf_counter()
        place.synchronise()
        seconds.append((middle - start, time.perf_counter() - middle))
    facts: dict[str, Any] = {"seconds there and back": seconds}
    if place.is_cuda:
        facts["bytes allocated"] = torch.cuda.memory_allocated()
        facts["bytes reserved"] = torch.cuda.memory_reserved()
        facts["most bytes reserved"] = torch.cuda.max_memory_reserved()
    return facts


def speed(place: Place) -> dict[str, Any]:
    """Seconds of an update of a shallow model, and the share of each kind of kernel."""
    work = Work.build(place, 2 if place.is_tiny else 4)
    facts: dict[str, Any] = {"seconds": place.seconds(work.update)}
    if place.is_cuda:
        rows = kernels(place, work.update)
        shares: Counter[str] = Counter()
        for name, share in rows:
            shares[kind_of(name)] += share
        facts["shares"] = dict(shares)
        facts["longest"] = rows[:12]
    return facts


def kind_of(kernel: str) -> str:
    """Return the kind of a CUDA kernel by its name."""
    for kind, words in KERNELS.items():
        if any(word in kernel.lower() for word in words):
            return kind
    return "others"


def quantised(place: Place) -> dict[str, Any]:
    """A layer of FLUX.1's width in each form: seconds, error, memory of its product."""
    from customized_grpo.policies.quantisation import QuantisedLinear

    width = 256 if place.is_tiny else 3072
    rows = 16 if place.is_tiny else 10240
    layer = torch.nn.Linear(width, 4 * width, dtype=torch.bfloat16, device=place.device)
    x = torch.randn(rows, width, device=place.device, dtype=torch.bfloat16, requires_grad=True)
    exact_y = layer(x).detach()
    facts: dict[str, Any] = {"bf16": {"seconds": place.seconds(lambda: layer(x).sum().backward())}}
    for kind in ("nf4", "int8", "fp8"):
        try:
            packed = QuantisedLinear(layer, kind, place.device)
        except ImportError as error:
            facts[kind] = f"not here: {error}"
            continue

        def step(packed: torch.nn.Module = packed) -> None:
            packed(x).sum().backward()

        error = (packed(x).detach() - exact_y).norm() / exact_y.norm()
        facts[kind] = {"seconds": place.seconds(step), "error": float(error), "peak": place.peak(step)}
    return facts


def rewards(place: Place) -> dict[str, Any]:
    """Bodies of reward models at full size with random weights: seconds for 96 images."""
    from transformers import Dinov2Config, Dinov2Model, Qwen2VLConfig, Qwen2VLModel

    side, batch = (28, 2) if place.is_tiny else (224, 12)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2} if place.is_tiny else {}
    with place.device:
        dino = Dinov2Model(Dinov2Config(image_size=518, **sizes)).eval()
        images = torch.randn(batch, 3, side, side)
    with torch.inference_mode():
        facts: dict[str, Any] = {"dino": 96 / batch * place.seconds(lambda: dino(images))}
    if place.is_tiny:
        return facts
    text = {
        "vocab_size": 151658,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    }
    torch.set_default_dtype(torch.bfloat16)
    with place.device:
        config = Qwen2VLConfig(text_config=text, vision_config={"depth": 32, "hidden_size": 3584})
        body = Qwen2VLModel(config).eval()
        ids = torch.randint(0, 1000, (8, 800))
        ids[:, 15:271] = config.image_token_id  # 32 x 32 patches, four to a token
        inputs = {
            "input_ids": ids,
            "pixel_values": torch.randn(8 * 1024, 1176),
            "image_grid_thw": torch.tensor([[1, 32, 32]] * 8),
            "position_ids": torch.arange(800).expand(3, 8, 800),
        }
    with torch.inference_mode():

        def score() -> object:
            return body(**inputs, use_cache=False)

        facts["hpsv3"] = 96 / 8 * place.seconds(score, repeats=2)
        facts["hpsv3, peak"] = place.peak(score)
    return facts


STEPS = (machine, exact, memory, swap, speed, quantised, rewards)


def main(arguments: list[str] | None = None) -> int:
    """Run one step and print its result."""
    names = {step.__name__: step for step in STEPS}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", choices=names)
    parser.add_argument("--device", default="cuda", help="torch device (default cuda)")
    parser.add_argument("--tiny", action="store_true", help="small models")
    options = parser.parse_args(arguments)
    prepare_cuda(torch.__version__)
    is_deep = options.step == "swap"
    with _checkpoints(options.tiny, is_deep):
        result = names[options.step](Place(torch.device(options.device), options.tiny))
    print(json.dumps(result))
    return 0


def _checkpoints(is_tiny: bool, is_deep: bool) -> Any:
    if is_tiny:
        from random_models import all_shrunk

        return all_shrunk()
    return nullcontext() if is_deep else shallow()


if __name__ == "__main__":
    sys.exit(main())
