"""Parts of the smallest run, for the tests of the core; every room's own fixtures are in its own folder."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

# The search for garbage would walk over all modules again and again while they are imported.
gc.disable()

# Containers often forbid bytecode. Then every worker, and every process that a test starts, would compile
# the tests and the package again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The same examples in every run, with all the time they need: a red test must come from a change, not from
# other work on the machine. New inputs are the task of `make fuzz`.
settings.register_profile("same-examples", derandomize=True, database=None, deadline=None)
settings.load_profile("same-examples")

# Set before torch is imported: on one thread sums have one order, so that equal means equal, and no test
# takes a core from another worker. Child processes inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

if TYPE_CHECKING:
    from customized_grpo.config import Config
    from customized_grpo.data.examples import Example
    from customized_grpo.policies.flux1 import Flux1Policy

# Modules that recipes of tests name by dotted path; children of the tests inherit it.
TEST_MODULES = (
    "own_rewards",
    "my_rewards",
    "my_own_rewards",
    "no_such",
    "no_such_module_at_all",
    "constant_reward",
    "mine",
)
os.environ["CGRPO_TRUST"] = ",".join(TEST_MODULES)
os.environ["CGRPO_KEYS"] = "PYTHONPATH,OWN_NUMBER"  # what actors of Ray get

Recipe = Callable[..., "Config"]
MakeAdapted = Callable[["Config"], "Flux1Policy"]


LONG_FILES = {
    "test_updater.py",
    "test_collect.py",
    "test_images.py",
    "test_shared_start.py",
    "test_flux2.py",
    "test_main.py",
    "test_doctor.py",
    "test_card.py",
}
"""Files whose fast tests take more than four seconds of a core."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long tests first: started last, a file of them would keep one worker while the other waits.

    The slow ones, each file of which has one worker, then the long files of fast ones. The sort is stable.
    """
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, item.path.name not in LONG_FILES))


@pytest.hookimpl(tryfirst=True)  # the first that answers ends this hook, in a worker that of xdist
def pytest_runtestloop() -> None:
    """Search for garbage again, but rarely, and no more among what the collection imported."""
    gc.freeze()
    # by default after 700 new objects, of which a test of a page makes a hundred times as many
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


@pytest.fixture(scope="session")
def dreambooth_photos() -> Path:
    """The real photos of DreamBooth; the environment variable CGRPO_DREAMBENCH names their folder."""
    folder = os.environ.get("CGRPO_DREAMBENCH")
    if folder is None:
        pytest.skip("CGRPO_DREAMBENCH does not name the folder of DreamBooth's photos")
    return Path(folder)


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """Load the preset toybox-smoke with overrides."""
    from customized_grpo.config import load_config

    return lambda *overrides: load_config("toybox-smoke", list(overrides))


@pytest.fixture(scope="session")
def make_adapted() -> MakeAdapted:
    """Build a recipe's policy with an adapter that changes what it does; a fresh one does nothing."""
    import torch

    from customized_grpo.training.parts import build_policy

    def make(config: Config) -> Flux1Policy:
        policy = build_policy(config)
        noise = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in policy.trainable_parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
        return policy

    return make


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    """Two training rows of ToyBox about different subjects."""
    from customized_grpo.toybox.source import ToyBoxSource

    source = ToyBoxSource(2, 1, 0, "train")
    return [source[0], source[1]]


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """Leave what a training leaves behind: the recipe, and a checkpoint with the policy's adapter."""
    from customized_grpo.config import config_hash
    from customized_grpo.policies.lora import name_average
    from customized_grpo.runs.checkpoints import CheckpointStore
    from customized_grpo.runs.folder import RunFolder, versions

    def make(config: Config, policy: Any, *, step: int = 2, average: Any = None) -> Path:
        folder = RunFolder.create(config)
        (folder.path / "metrics.jsonl").touch()
        tensors = {"adapter": policy.adapter_tensors()}
        if average is not None:
            tensors["average"] = name_average(average)
        state = {"iteration": step, "config_hash": config_hash(config), "versions": versions()}
        CheckpointStore(folder.path / "checkpoints", 0).save(step, tensors, state)
        return folder.path

    return make
