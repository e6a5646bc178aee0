"""Which answers belong together? Those to the same file, by the same weights, asked the same way.

The number of shards and the batch size are no part of it, so that either may change between two starts.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

from llava.errors import WeightsError

_SAMPLE = 4096
"""Bytes read at the start, in the middle and at the end of a tensor: another training run differs in all of them."""


def settings(
    data_md5: str, model: str | Path, template: str, max_new_tokens: int, precision: str, prompt_version: int
) -> dict[str, Any]:
    """Everything that an answer depends on, as asked for (``auto`` stays ``auto``: merging may run without a GPU)."""
    return {
        "data_md5": data_md5,
        "model": weights_id(Path(model)),
        "template": template,
        "max_new_tokens": max_new_tokens,
        "precision": precision,
        "prompt_version": prompt_version,
    }


def fingerprint(values: dict[str, Any]) -> str:
    """Sixteen hexadecimal digits for the settings."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def weights_id(folder: Path) -> str:
    """Identify a model folder by content, so that a copy is the same model and a model converted anew is not.

    Raises:
        WeightsError: the folder holds no weights.
    """
    digest = hashlib.sha256()
    names = sorted(p for p in folder.glob("*") if p.suffix in {".json", ".jinja", ".model", ".safetensors", ".bin"})
    if not any(p.suffix in {".safetensors", ".bin"} for p in names):
        raise WeightsError(
            f"{folder} holds no weights", "It has to be a Hugging Face folder, as `llava convert` writes."
        )
    for path in names:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            if path.suffix == ".safetensors":
                _add_safetensors(digest, file, path)
            else:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:16]


def _add_safetensors(digest: Any, file: BinaryIO, path: Path) -> None:
    """Add the header and samples of every tensor (layout: 8 bytes of length, a JSON header, the data)."""
    try:
        (length,) = struct.unpack("<Q", file.read(8))
        header = file.read(length)
        tensors = json.loads(header)
        spans = [t["data_offsets"] for name, t in tensors.items() if name != "__metadata__"]
    except (struct.error, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise WeightsError(f"{path} is not a safetensors file: {error}") from None
    digest.update(header)
    for start, end in spans:
        for place in sorted({start, max(start, (start + end - _SAMPLE) // 2), max(start, end - _SAMPLE)}):
            file.seek(8 + length + place)
            digest.update(file.read(min(_SAMPLE, end - place)))
