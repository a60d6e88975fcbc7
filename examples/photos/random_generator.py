"""Write a small FLUX.1-Kontext with random weights in diffusers' layout, to try a recipe without a download.

    python examples/photos/random_generator.py photos/generator

It has the classes of the published checkpoint: a recipe that trains it also trains FLUX.1-Kontext-dev after a
change of `model.path` and the sizes. Its images are noise.
"""

from __future__ import annotations

import sys
from pathlib import Path

from customized_grpo.libraries import quiet

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    with quiet():
        from customized_grpo.toybox.models import build_pipeline

        build_pipeline(seed=0).save_pretrained(folder)
    print(folder)
