"""Which weights does the exported folder hold, under which names, in which files?

Names are those of the LLaVA folders on the hub (``language_model.model...``, ``vision_tower.vision_model...``), which
transformers 4 and 5, vLLM and VLMEvalKit all read; transformers 5 by itself would leave ``vision_model.`` out.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llava.errors import ConfigError
from llava.model.adapters import ADAPTER

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Weight:
    """One tensor that is computed when its file is written, so that no second model stands in memory."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]


def weights(language: nn.Module, tower: nn.Module, projector: nn.Module, rows: int, tied: bool) -> Iterator[Weight]:
    """Every weight of the exported model.

    Args:
        language: the causal language model, adapters and 4-bit weights still in place.
        tower: the whole CLIP vision model, likewise.
        projector: ours.
        rows: vocabulary after growing.
        tied: the head shares the embeddings' weight, so that it is not written.
    """
    for name, shape, make in plain(language):
        if name == "lm_head.weight" and tied:
            continue
        if name in ("lm_head.weight", "model.embed_tokens.weight") and shape[0] < rows:
            yield Weight(f"language_model.{name}", (rows, *shape[1:]), _grower(make, rows))
        else:
            yield Weight(f"language_model.{name}", shape, make)
    for name, shape, make in plain(tower):
        yield Weight(f"vision_tower.vision_model.{name.removeprefix('vision_model.')}", shape, make)
    for name, shape, make in plain(projector):
        yield Weight(f"multi_modal_projector.{name}", shape, make)


def plain(model: nn.Module) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Tensor]]]:
    """A model's tensors with adapters merged and 4-bit weights de-quantised, one by one.

    Yields:
        name without PEFT's levels, shape, and a function that computes the tensor (fp32 where adapters are merged).
    """
    parts: dict[str, nn.Module] = dict(model.named_modules())
    for path, part in parts.items():
        for key, tensor in [*part.named_parameters(recurse=False), *_saved_buffers(part)]:
            name = f"{path}.{key}".lstrip(".")
            if ".lora_" in name:
                continue
            adapted = parts[path.removesuffix(".base_layer")] if path.endswith(".base_layer") else None
            update = adapted if key == "weight" else None
            yield name.replace(".base_layer.", "."), _shape(tensor), _merger(tensor, update)


def _saved_buffers(part: nn.Module) -> list[tuple[str, Tensor]]:
    unsaved = part._non_persistent_buffers_set
    return [(key, tensor) for key, tensor in part.named_buffers(recurse=False) if key not in unsaved]


def _shape(tensor: Any) -> tuple[int, ...]:
    state = getattr(tensor, "quant_state", None)
    return tuple(tensor.shape if state is None else state.shape)


def _merger(tensor: Any, adapted: Any) -> Callable[[], Tensor]:
    def make() -> Tensor:
        weight: Tensor = tensor.data
        if getattr(tensor, "quant_state", None) is not None:
            from bitsandbytes.functional import dequantize_4bit

            weight = dequantize_4bit(tensor.data, tensor.quant_state)
        if adapted is not None:
            # In fp32, so that a small update is rounded once, together with its base.
            weight = weight.float() + adapted.get_delta_weight(ADAPTER).float()
        return weight

    return make


def _grower(make: Callable[[], Tensor], rows: int) -> Callable[[], Tensor]:
    """Append rows that are the mean of those there are.

    As head rows, their logit is the mean of all logits: never above the highest, so that no new token is ever picked.
    """

    def grown() -> Tensor:
        old = make()
        mean = old.float().mean(0, keepdim=True).to(old.dtype)
        return torch.cat([old, mean.expand(rows - len(old), -1)])

    return grown


def write(folder: Path, all_weights: list[Weight], dtype: torch.dtype, max_size: str) -> None:
    """Write safetensors files, each no larger than wanted unless one weight alone is, and the index of several.

    Args:
        folder: where to; its config.json is there already.
        all_weights: what to write.
        dtype: number format of the files.
        max_size: "5GB", for example.
    """
    from safetensors.torch import save_file

    files = _fill(all_weights, dtype.itemsize, byte_count(max_size))
    names = [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    names = names if len(files) > 1 else ["model.safetensors"]
    for name, group in zip(names, files, strict=True):
        tensors = {weight.name: weight.make().to("cpu", dtype).contiguous() for weight in group}
        _check_finite(tensors)
        save_file(tensors, folder / name, metadata={"format": "pt"})
        shutil.copymode(folder / "config.json", folder / name)  # safetensors would let nobody else read it
    if len(files) > 1:
        total = sum(math.prod(weight.shape) for weight in all_weights) * dtype.itemsize
        places = {weight.name: name for name, group in zip(names, files, strict=True) for weight in group}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _check_finite(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"{name} does not fit into {tensor.dtype}", "convert.dtype: bf16 or fp32 holds it.")


def _fill(all_weights: list[Weight], itemsize: int, most: int) -> list[list[Weight]]:
    files: list[list[Weight]] = [[]]
    size = 0
    for weight in all_weights:
        more = math.prod(weight.shape) * itemsize
        if files[-1] and size + more > most:
            files.append([])
            size = 0
        files[-1].append(weight)
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
