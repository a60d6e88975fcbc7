"""Run by test_stopped_twice.py: `cgrpo ARGUMENTS`, which gets SIGTERM twice in the first rollout.

usage: stopped_twice.py SECONDS ARGUMENTS..., SECONDS between the two
"""

from __future__ import annotations

import os
import signal
import sys
import time

from customized_grpo.cli.main import main
from customized_grpo.training.trainer import Trainer

collect = Trainer.collect


def signalled(self: Trainer, *args: object) -> object:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(float(sys.argv[1]))
    os.kill(os.getpid(), signal.SIGTERM)
    return collect(self, *args)


Trainer.collect = signalled
sys.exit(main(sys.argv[2:]))
