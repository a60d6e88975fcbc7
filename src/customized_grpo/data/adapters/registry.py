"""Every layout by name."""

from __future__ import annotations

from customized_grpo.data.adapters import (
    captions,
    dreambench,
    folder,
    hub,
    subjects200k,
    syncd,
    syncd_pairs,
    uno,
    uno_1m,
)

LAYOUTS = {
    module.LAYOUT.name: module.LAYOUT
    for module in (syncd, syncd_pairs, subjects200k, uno_1m, uno, folder, captions, hub, dreambench)
}
