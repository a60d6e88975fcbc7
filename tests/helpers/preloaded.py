"""What trainings import, compile and read first, done once: for processes that then fork trainings.

Nothing here starts a thread, which a fork would lose.
"""

from __future__ import annotations

import gc

# The search for garbage would walk over all modules again and again, here and in each child.
gc.disable()

import customized_grpo.benchmarks.run  # noqa: E402
import customized_grpo.cli.main  # noqa: E402
import customized_grpo.comparison.run  # noqa: E402
import customized_grpo.generation.generate  # noqa: E402
import customized_grpo.pages.run_page  # noqa: E402
import customized_grpo.training.evaluate  # noqa: E402
import customized_grpo.training.trainer  # noqa: E402, F401
from customized_grpo.config import load_config  # noqa: E402
from customized_grpo.pages.page import environment  # noqa: E402
from customized_grpo.rewards import build_reward  # noqa: E402
from customized_grpo.runs.folder import versions  # noqa: E402
from customized_grpo.training.parts import build_data, build_policy  # noqa: E402


def _touch_all_parts() -> None:
    """Make every part of the smallest training once; the libraries import much of themselves only then."""
    config = load_config("toybox-smoke")
    build_data(config).train[0]
    build_policy(config)
    for reward in config.rewards:
        build_reward(reward)


def _keep_what_processes_keep() -> None:
    """Fill the caches that live as long as a process: versions ask git, and templates are compiled."""
    versions()
    customized_grpo.cli.main.command_tree()
    pages = environment()
    for name in pages.list_templates(extensions=["j2"]):
        if not name.endswith(".md.j2"):  # the model card's engine has filters of its own
            pages.get_template(name)


_touch_all_parts()
_keep_what_processes_keep()
gc.freeze()
gc.enable()
