"""One case of measurements/gpu.py, measured in this process; the last output line is the result as JSON.

    python measurements/gpu_case.py flux1              # on the first CUDA device, full size
    python measurements/gpu_case.py flux1 --tiny --device cpu

Transformer and autoencoder are of the published classes and sizes, with random weights made on the device:
their speed does not depend on training. Text embeddings are random, and rewards are left out. On a limited
card both take their memory all the same: the encoders are there, of any content, and swap with the
transformer as the preset says; the rewards' bytes are set aside. All the rest is the code of `cgrpo train`:
the preset's adapter, sampler, rollout and update.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol
from unittest.mock import patch

import torch

from customized_grpo.algorithms import samplers, schedules
from customized_grpo.config import Config, load_config
from customized_grpo.data.examples import Example
from customized_grpo.engine.engine import Engine
from customized_grpo.engine.environment import prepare_cuda
from customized_grpo.errors import UserError
from customized_grpo.kinds import PAIR
from customized_grpo.planning.estimate import Estimate, Planner
from customized_grpo.planning.memory import CONTEXT_BYTES, GIB
from customized_grpo.planning.replay import LiveBytes
from customized_grpo.policies.out_of_memory import explained
from customized_grpo.rollout.batches import sample_batches, sample_conditioning
from customized_grpo.rollout.collect import NoiseKey, collect
from customized_grpo.rollout.encoding import PromptEncoder
from customized_grpo.rollout.sampler import build_sampler, plan_steps
from customized_grpo.rollout.trajectory import Trajectory
from customized_grpo.seeding import generator
from customized_grpo.training.losses import UpdateLoss
from customized_grpo.training.signal import LearningSignal
from customized_grpo.training.updater import Updater
from overhead import Stopwatches
from random_models import all_shrunk, build_policy

CARD_GIB = 23.6
"""Memory that torch can use of a 24 GB card (GeForce RTX 4090)."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        preset: The recipe of adapter, precision, batches and measures that save memory.
        compiled: Whether the transformer's blocks are compiled.
        card_gib: The process gets no more memory than a card of this size has; None: no limit.
        expected_s: Seconds it should take on an H100, start and compilation included; an estimate.
    """

    preset: str
    compiled: bool = False
    card_gib: float | None = None
    expected_s: int = 60


CASES = {
    "flux1": Case("flux1-kontext", expected_s=75),
    "flux1-compiled": Case("flux1-kontext", compiled=True, expected_s=150),
    "flux1-24gb": Case("flux1-kontext-24gb", card_gib=CARD_GIB, expected_s=85),
    "klein": Case("flux2-klein", expected_s=60),
    "klein-compiled": Case("flux2-klein", compiled=True, expected_s=100),
    "klein-24gb": Case("flux2-klein-24gb", card_gib=CARD_GIB, expected_s=60),
}

SHORTENED = (
    "train.prompts_per_iteration=1",  # one group
    "rollout.steps=4",
    "rollout.sde_window.size=1",  # one trained step: rollout and update then take comparable time
)
WITHOUT_ENCODERS = "model.text_encoders=keep"  # there are none to move between devices
TINY = ("model.height=64", "model.width=64", "model.max_text_tokens=16", "model.lora.rank=4")
MATMUL = {False: 8192, True: 64}
"""Side of the square matrices whose product gives the card's rate, by whether it is tiny."""


# Measuring


class Meter(Protocol):
    """Counter of the bytes of tensors that are alive."""

    def take(self) -> int:
        """Return the peak since the last call, in bytes, and start again."""
        ...


class CudaMeter:
    """Counter of a CUDA device, by torch's allocator."""

    def take(self) -> int:
        """Return the peak since the last call, in bytes."""
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak


class CpuMeter(LiveBytes):
    """Counter of the CPU: watches every operation, slowly, as torch's allocator for CPUs keeps no count."""

    def take(self) -> int:
        """Return the peak since the last call, in bytes."""
        peak = self.peak
        self.peak = self.now
        return peak


@contextmanager
def metered(device: torch.device) -> Iterator[Meter]:
    """Count the memory of a device inside the block."""
    if device.type == "cuda":
        yield CudaMeter()
        return
    with CpuMeter() as meter:
        yield meter


class Phases(Stopwatches):
    """Stopwatches that also record the peaks of memory.

    Args:
        meter: Counts the memory.

    Attributes:
        peaks: Most bytes that were alive at once, by label.
    """

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter
        self.peaks: defaultdict[str, int] = defaultdict(int)

    def lap(self) -> None:
        """Book time and memory since the last change under the label that runs."""
        super().lap()
        peak = self.meter.take()
        if self.labels:
            self.peaks[self.labels[-1]] = max(self.peaks[self.labels[-1]], peak)


class Bench:
    """A recipe's iteration on one random prompt with one random reference.

    Args:
        config: The recipe.
        device: Where it runs.
        meter: Counts the device's memory.
        is_whole: Whether text encoders are there to be moved.
    """

    def __init__(self, config: Config, device: torch.device, meter: Meter, *, is_whole: bool = False) -> None:
        self.config = config
        self.meter = meter
        self.policy = build_policy(config, device, with_text_encoders=is_whole)
        size = (config.model.height, config.model.width)
        self.encoder = PromptEncoder(self.policy, size)
        self.sampler = build_sampler(self.policy, config.rollout, *size)
        engine = Engine(device)
        partition = engine.partition(config.train.updates_per_iteration)
        self.updater = Updater(config, UpdateLoss(config, self.policy, self.sampler, partition), engine)
        reference = torch.rand(3, *size, generator=generator(0, "reference"))
        self.example = Example("drawn", "a drawn prompt", (reference,), None, None, "drawn")

    def collect(self, batch_size: int, group_size: int) -> Trajectory:
        """Draw a group in batches of `batch_size` samples."""
        config = self.config
        settings = config.rollout.model_copy(update={"batch_size": batch_size})
        return collect(
            self.policy,
            self.sampler,
            [self.example],
            settings,
            encoder=self.encoder,
            group_size=group_size,
            plan=plan_steps(settings, config.train.trained_fraction, 0, config.run.seed),
            noise_key=NoiseKey(config.run.seed, iteration=0),
        )

    def signal(self) -> LearningSignal:
        """Return random advantages: the cost of an update does not depend on them."""
        config = self.config
        drawn = torch.randn(config.train.group_size, 2, generator=generator(0, "advantages"))
        weights = schedules.prompt_weights(config.schedule.build(), config.rollout.steps)
        return LearningSignal(
            names=PAIR,
            scores=drawn,
            asked=torch.ones_like(drawn, dtype=torch.bool),
            kinds=PAIR,
            advantages=drawn,
            rewards=drawn,
            present=torch.ones_like(drawn, dtype=torch.bool),
            valid=torch.ones(len(drawn), dtype=torch.bool),
            weights=weights,
            quality_weight=config.advantage.quality_weight,
        )

    def deviation(self, trajectory: Trajectory) -> float:
        """Return the largest |ratio - 1| of training's batches against the rollout's log-probabilities."""
        largest = 0.0
        for k, step in enumerate(trajectory.steps):
            for rows in sample_batches(
                trajectory.buckets,
                trajectory.group_size,
                slice(0, len(trajectory)),
                self.config.train.micro_batch_size,
            ):
                conditioning = sample_conditioning(trajectory.conditionings, trajectory.group_size, rows)
                x = trajectory.x[k, rows]
                x_next = trajectory.x_next[k, rows]
                mean, std = self.sampler.transition(self.policy, x, step, conditioning)  # with gradients
                log_prob = samplers.log_prob(x_next, mean, std).detach()
                off_by = (log_prob - trajectory.log_prob[k, rows]).exp() - 1
                largest = max(largest, float(off_by.abs().max()))
        return largest

    def iteration(self) -> tuple[Phases, float]:
        """Draw a group and update on it; return the stopwatches and the largest deviation from ratio 1."""
        policy = self.policy
        optimizer = self.updater.optimizer
        watches = Phases(self.meter)
        with (
            patch.object(policy, "encode", watches.timed("encode", policy.encode)),
            patch.object(policy, "decode", watches.timed("decode", policy.decode)),
            patch.object(optimizer, "step", watches.timed("optimizer step", optimizer.step)),
        ):
            with watches.run("rollout"):
                trajectory = self.collect(self.config.rollout.batch_size, self.config.train.group_size)
            with watches.run("update"):
                report = self.updater.update(trajectory, self.signal(), 0)
        assert len(report.grad_norms) == 1, report
        return watches, report.first.deviation

    def one_by_one(self) -> tuple[float, float]:
        """Draw the group one sample at a time; return (seconds without decoding, deviation from ratio 1)."""
        self.collect(1, 1)  # a compiled block is another one for a single sample
        watches = Phases(self.meter)
        policy = self.policy
        with (
            patch.object(policy, "encode", watches.timed("encode", policy.encode)),
            patch.object(policy, "decode", watches.timed("decode", policy.decode)),
            watches.run("rollout"),
        ):
            trajectory = self.collect(1, self.config.train.group_size)
        return watches.seconds["rollout"], self.deviation(trajectory)


def matmul_rate(device: torch.device, side: int, repeats: int = 20) -> float:
    """Return 10^12 operations per second of bf16 products of square matrices, the best of five series."""
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    b = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    best = 0.0
    for _ in range(6):  # the first one warms up
        _synchronise(device)
        start = time.perf_counter()
        for _ in range(repeats):
            a @ b
        _synchronise(device)
        best = max(best, repeats * 2 * side**3 / (time.perf_counter() - start) / 1e12)
    return best


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def limit_memory(card_gib: float) -> None:
    """Limit torch's allocator to the memory of a smaller card, without the share of CUDA itself."""
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (card_gib * GIB - CONTEXT_BYTES) / total))


def planned(plan: Estimate, phase: str, config: Config, device: torch.device, *, is_whole: bool) -> int:
    """Return the planned peak of a phase without the models that this benchmark leaves out."""
    parts = plan.memory.parts
    left_out = 0 if is_whole else parts["rewards"] + parts["text encoders"]
    # an autoencoder that waits on the CPU takes the memory that is measured there
    waits = config.model.offload_vae and device.type == "cpu" and phase not in ("encode", "decode")
    return plan.memory.phases[phase] - left_out + (parts["autoencoder"] if waits else 0)


def measure(config: Config, device: torch.device, card_gib: float | None = None) -> dict[str, Any]:
    """Measure a recipe on one drawn prompt.

    Args:
        config: The recipe.
        device: Where it runs.
        card_gib: Size of the card that it must fit, in GiB; None: no limit.

    Returns:
        Seconds, work and memory by phase, and the deviations from ratio 1.
    """
    # a reference as large as the image, in the bench as in the plan, so that the two can be compared
    config = config.model_copy(update={"model": config.model.model_copy(update={"reference_fit": "crop"})})
    plan = Planner(config).estimate()
    batches = {
        "train.micro_batch_size": config.train.micro_batch_size,
        "rollout.batch_size": config.rollout.batch_size,
    }
    is_whole = card_gib is not None and device.type == "cuda"
    with metered(device) as meter, explained(config.model, batches):
        bench = Bench(config, device, meter, is_whole=is_whole)
        if card_gib is not None and is_whole:
            limit_memory(card_gib)
            rewards = torch.empty(plan.memory.parts["rewards"], dtype=torch.uint8, device=device)
        bench.iteration()  # compiles, chooses kernels, fills the caches
        watches, deviation = bench.iteration()
        alone_s, alone_deviation = bench.one_by_one()
        if is_whole:
            del rewards  # until here it took what the rewards take
    seconds = watches.seconds
    prompts = plan.batches.prompts
    operations = {"rollout": plan.passes.rollout, "update": plan.passes.update}
    return {
        "parameters": plan.parameters.base,
        "batch": config.rollout.batch_size,
        "samples": plan.batches.samples,
        "seconds": dict(seconds),
        "iteration_s": sum(seconds.values()),
        "images_per_s": plan.batches.samples / sum(seconds.values()),
        "tflops": {
            phase: n * prompts * plan.flops_per_pass / 1e12 / seconds[phase]
            for phase, n in operations.items()
        },
        "peaks": {
            phase: {"measured": n, "planned": planned(plan, phase, config, device, is_whole=is_whole)}
            for phase, n in watches.peaks.items()
        },
        "ratio_deviation": {"same batches": deviation, "one by one": alone_deviation},
        "one_by_one_s": alone_s,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure one case and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--device", default="cuda", help="torch device (default cuda)")
    parser.add_argument("--tiny", action="store_true", help="small models, to try the benchmark itself")
    options = parser.parse_args(arguments)
    prepare_cuda(torch.__version__)
    case = CASES[options.case]
    device = torch.device(options.device)
    is_whole = case.card_gib is not None and device.type == "cuda"
    settings = [
        *SHORTENED,
        *(() if is_whole else (WITHOUT_ENCODERS,)),
        *(TINY if options.tiny else ()),
        f"model.device={device}",
        f"model.compile={str(case.compiled).lower()}",
    ]
    config = load_config(case.preset, settings)
    rate = matmul_rate(device, MATMUL[options.tiny])
    try:
        with all_shrunk() if options.tiny else nullcontext():
            result = measure(config, device, case.card_gib)
    except UserError as error:
        print(error.message, file=sys.stderr)
        return 1
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    facts = {"case": options.case, "device": name, "torch": torch.__version__, "matmul_tflops": rate}
    print(json.dumps({**facts, **result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
