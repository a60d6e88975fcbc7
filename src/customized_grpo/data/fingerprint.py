"""A fingerprint of the rows of a manifest and of the files that they name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from customized_grpo.data.manifest import load_manifest
from customized_grpo.errors import UserError
from customized_grpo.files import sampled_sha256

N_BLOCKS = 3
BLOCK_BYTES = 4096
SHOWN = 16  # hex digits of a digest, which is only ever compared


def fingerprint_manifest(path: Path) -> dict[str, str]:
    """Return the number of rows with a digest of their texts, and a digest of their images.

    An image counts by its size in bytes and by its beginning, middle and end: another image, or the same one
    saved again, differs in them, and a million images take minutes instead of the hour that decoding takes.
    File names do not count: a data set may be moved.

    Raises:
        UserError: The manifest is bad, or a file cannot be read.
    """
    rows = load_manifest(path, require_masks=False, check_images=False)
    texts = hashlib.sha256()
    images = hashlib.sha256()
    digests: dict[Path, str] = {}
    for row in rows:
        counts = [len(row.references), len(row.masks), row.target is not None]
        texts.update(json.dumps([row.id, row.prompt, row.subject, dict(row.meta), counts]).encode())
        targets = () if row.target is None else (row.target,)
        for file in (*row.references, *row.masks, *targets):
            if file not in digests:
                digests[file] = _digest(file)
            images.update(digests[file].encode())
    return {
        "rows": f"{len(rows)} rows, {texts.hexdigest()[:SHOWN]}",
        "images": f"{len(digests)} files, {images.hexdigest()[:SHOWN]}",
    }


def _digest(file: Path) -> str:
    try:
        return sampled_sha256(file, n_blocks=N_BLOCKS, block_bytes=BLOCK_BYTES)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
