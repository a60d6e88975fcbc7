"""The memory of the machine itself that one process takes. If its device is the CPU, it has no other.

Weights are read on the CPU before they go to a device, whole and unquantised; parts that wait stay there.
Each process reads its own copy. Mapped files may need less, as their pages can be dropped; it is not
counted on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from customized_grpo.planning.dry_run import DryRun
from customized_grpo.planning.memory import PROGRAM_BYTES, Memory

if TYPE_CHECKING:
    from customized_grpo.config import Config


@dataclass(frozen=True)
class HostMemory:
    """Predicted bytes of one process on its machine, data not counted.

    Attributes:
        loading: While the generator is read.
        training: From then on.
    """

    loading: int
    training: int

    @property
    def peak(self) -> int:
        """Return the larger of the two."""
        return max(self.loading, self.training)


def predict_host(config: Config, run: DryRun, memory: Memory) -> HostMemory:
    """Predict what a process takes of its machine.

    Args:
        config: The recipe.
        run: Its models without data.
        memory: Of the device, as `memory.predict` has it.
    """
    model = config.model
    parts = memory.parts
    encoders = parts["text encoders"]
    unquantised = run.dtype.itemsize * run.base_parameters
    waiting = parts["autoencoder"] if model.offload_vae else 0
    if model.text_encoders == "offload":
        waiting += encoders + parts["base"]  # each has a place there for while the other is on the device
    # Weights are read on the host in the precision of the products; only the device quantises them.
    loading = unquantised + encoders + parts["autoencoder"]
    training = memory.needed if memory.on_cpu else waiting + PROGRAM_BYTES
    return HostMemory(loading=loading + PROGRAM_BYTES, training=training)
