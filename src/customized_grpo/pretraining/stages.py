"""The stages of ToyBox's pretraining by name, for the command line."""

from __future__ import annotations

from pathlib import Path

from customized_grpo.errors import UserError
from customized_grpo.files import follow_umask

# the files and folders in `out` that a stage reads
NEEDS = {
    "vae": (),
    "encoders": ("vae",),
    "clean": ("vae",),
    "mixture": ("base-clean",),
    "pack": (
        "vae",
        "base-clean",
        "base-mixture",
        "dino",
        "clip",
        "pickscore",
        "subject_encoder.safetensors",
        "attribute_classifier.safetensors",
    ),
}


def main(stage: str, out: Path, *, samples: int | None, batch_size: int | None = None) -> None:
    """Run one stage into `out`.

    Args:
        stage: A key of NEEDS.
        out: Folder for the weights of all stages.
        samples: Training samples; None means what the shipped weights saw.
        batch_size: Samples of an optimizer step; None means as for the shipped weights.

    Raises:
        UserError: An earlier stage is missing.
    """
    missing = [part for part in NEEDS[stage] if not (out / part).exists()]
    if missing:
        raise UserError(
            f"stage {stage} needs {', '.join(missing)} in {out}", hint="Run the earlier stages first."
        )
    options = {}
    if samples is not None:
        options["samples"] = samples
    if batch_size is not None:
        options["batch_size"] = batch_size
    if stage == "vae":
        from customized_grpo.pretraining.vae import train_vae

        train_vae(out, **options)
    elif stage == "encoders":
        from customized_grpo.pretraining.encoders import train_encoders

        train_encoders(out, **options)
    elif stage == "pack":
        from customized_grpo.pretraining.pack import pack

        pack(out)
    else:
        from customized_grpo.pretraining.generator import train_generator

        train_generator(out, stage, **options)
    follow_umask(out)
