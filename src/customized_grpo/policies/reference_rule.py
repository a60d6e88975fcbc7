"""The size at which a recipe's model sees references: what the recipe says, or the rule of its checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from customized_grpo.config.data_sources import ManifestData
from customized_grpo.policies.checkpoints import CHECKPOINTS
from customized_grpo.policies.families import get_family
from customized_grpo.reference_sizes import ReferenceSize

if TYPE_CHECKING:
    from customized_grpo.config import Config


def reference_size_of(config: Config) -> ReferenceSize:
    """Return the size of a recipe's references.

    Without `data.reference_size` it is the rule of a published checkpoint that is named by its hub id, else
    that of the family: as many pixels as the drawn image, unless a family from outside says otherwise.
    """
    data = config.data
    if isinstance(data, ManifestData) and data.reference_size is not None:
        return data.reference_size
    # Recipe, then checkpoint, then family: the more special says more.
    checkpoint = CHECKPOINTS.get(config.model.path)
    sampling = get_family(config.model.family).sampling if checkpoint is None else checkpoint.sampling
    return sampling.reference_size
