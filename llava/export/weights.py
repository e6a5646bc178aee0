"""How are weights written: into which files, in which number format, one tensor in memory at a time?"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import torch
from torch import Tensor

from llava.errors import ConfigError
from llava.export.tensors import Weight, Weights, as_bytes
from llava.model.shards import FORMATS

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_NAMES = {dtype: name for name, dtype in FORMATS.items()}


def write(folder: Path, weights: Weights, dtype: torch.dtype | None, max_size: str, stem: str = "model") -> None:
    """Write safetensors files, each no larger than wanted unless one weight alone is, and the index of several.

    Args:
        folder: where to.
        weights: what to write.
        dtype: number format of the files; None: each weight's own.
        max_size: "5GB", for example.
        stem: first part of the files' names.

    Raises:
        ConfigError: a weight is not finite in that format.
    """
    files = _fill(weights, dtype, byte_count(max_size))
    names = [f"{stem}-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    names = names if len(files) > 1 else [f"{stem}.safetensors"]
    for name, group in zip(names, files, strict=True):
        _write_file(folder / name, group, dtype)
    if len(files) > 1:
        places = {weight: name for name, group in zip(names, files, strict=True) for weight in group}
        total = sum(_size(weight, dtype) for weight in weights.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_file(path: Path, weights: Weights, dtype: torch.dtype | None) -> None:
    """One file in the safetensors format: length of the header, header, tensors one behind the other.

    The library's own writer takes a file's tensors all at once, and twice while it writes. The widest numbers come
    first, as there, so that every tensor starts at a multiple of its numbers' size.
    """
    ordered = sorted(weights.items(), key=lambda item: -(dtype or item[1].dtype).itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, weight in ordered:
        start, end = end, end + _size(weight, dtype)
        header[name] = {
            "dtype": _NAMES[dtype or weight.dtype],
            "shape": list(weight.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, weight in ordered:
            file.write(as_bytes(_made(name, weight, dtype)))


def _made(name: str, weight: Weight, dtype: torch.dtype | None) -> Tensor:
    tensor = weight.read().to("cpu", dtype or weight.dtype)
    if tuple(tensor.shape) != weight.shape:
        raise ValueError(f"{name} is {tuple(tensor.shape)}, {weight.shape} was told")
    # Smallest and largest at once: NaN comes through, and nothing as large as the tensor is made.
    if tensor.numel() and not all(math.isfinite(end.item()) for end in torch.aminmax(tensor)):
        raise ConfigError(f"{name} does not fit into {tensor.dtype}", "--dtype (convert.dtype): bf16 or fp32 holds it.")
    return tensor


def _size(weight: Weight, dtype: torch.dtype | None) -> int:
    return math.prod(weight.shape) * (dtype or weight.dtype).itemsize


def _fill(weights: Weights, dtype: torch.dtype | None, most: int) -> list[Weights]:
    files: list[Weights] = [{}]
    size = 0
    for name, weight in weights.items():
        more = _size(weight, dtype)
        if files[-1] and size + more > most:
            files.append({})
            size = 0
        files[-1][name] = weight
        size += more
    return files


def byte_count(text: str) -> int:
    """Bytes in "5GB" or "200MiB".

    Raises:
        ConfigError: it is neither a number nor a known unit.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?i?B)\s*", text, re.IGNORECASE)
    if not found or not float(found[1]):
        raise ConfigError(f"convert.max_shard_size: {text!r} is not a size", 'Sizes look like "5GB" or "500MB".')
    return int(float(found[1]) * _UNITS[found[2].upper()])
