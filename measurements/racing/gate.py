"""Turns of a contestant: it waits until it is told to go, and reports what the turn has cost."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NoReturn

import torch


class Gate:
    """The start and the end of an iteration, on which the contestant's own loop runs into at each one.

    Lines on standard input start a turn, the end of the input ends the process. Reports are lines of JSON on
    the standard output that the process was born with; what the contestant itself prints goes to stderr.
    """

    def __init__(self) -> None:
        self.reports = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.passes: Counter[str] = Counter()
        self.shape = ""
        self.is_running = False
        self.begin = (0.0, 0.0)

    def wait(self, *_: object, **__: object) -> None:
        """End the turn that runs, if one does, and wait for the next."""
        if self.is_running:
            self._report(
                {
                    "cpu_s": time.process_time() - self.begin[0],
                    "wall_s": time.perf_counter() - self.begin[1],
                    "sampled": self.passes["sampled"],
                    "trained": self.passes["trained"],
                    "shape": self.shape,
                }
            )
        else:
            self._report({"ready": True})
        if not sys.stdin.readline():
            leave()
        self.is_running = True
        self.passes.clear()
        self.begin = (time.process_time(), time.perf_counter())

    def _report(self, report: dict[str, object]) -> None:
        print(json.dumps(report), file=self.reports, flush=True)

    def count(self, model_class: Any, image: str, text: str) -> None:
        """Let every call of a class of transformers be counted, in samples.

        Args:
            model_class: The class, whose `forward` is replaced.
            image: Name of the argument with the image tokens [B, N, C].
            text: Name of the argument with the text tokens [B, T, D].
        """
        forward: Callable[..., Any] = model_class.forward

        def counted(model: Any, *args: Any, **kwargs: Any) -> Any:
            samples, tokens = kwargs[image].shape[:2]
            self.passes["trained" if torch.is_grad_enabled() else "sampled"] += samples
            self.shape = f"{tokens} + {kwargs[text].shape[1]} tokens"
            return forward(model, *args, **kwargs)

        model_class.forward = counted


def leave() -> NoReturn:
    """End the process at once: the loops of others have no end that could be asked for."""
    sys.stderr.flush()
    os._exit(0)
