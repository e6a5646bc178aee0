"""LoRA adapters on disk (PEFT's folders): reading, writing, and adding them to the weights they belong to.

Inside, an adapter's weight is named by the layer it changes (``model.layers.0.mlp.up_proj.lora_A.weight``), without
PEFT's own levels and, in a vision tower, without transformers 4's ``vision_model.``.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava.errors import ConfigError, WeightsError
from llava.export.tensors import Weight, Weights, as_bytes, read_weights
from llava.export.weights import write
from llava.model.adapters import CONFIG, adapter_key

A, B = ".lora_A.weight", ".lora_B.weight"
"""What an adapter's weights are called after the layer that they change."""
_MUST_BE_UNSET = (
    "use_dora", "fan_in_fan_out", "lora_bias", "rank_pattern", "alpha_pattern", "modules_to_save",
    "trainable_token_indices",
)  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """Low-rank updates of a part's linear layers (Hu et al., arXiv 2106.09685)."""

    config: dict[str, Any]
    """PEFT's ``adapter_config.json``."""
    weights: Weights
    """``<layer>.lora_A.weight`` [rank, in] and ``<layer>.lora_B.weight`` [out, rank]."""

    @property
    def layers(self) -> list[str]:
        """The layers that are changed, by name."""
        return [name.removesuffix(A) for name in self.weights if name.endswith(A)]

    @property
    def scale(self) -> float:
        """What the product of the two factors is multiplied by."""
        rank = self.config["r"]
        return float(self.config["lora_alpha"] / (math.sqrt(rank) if self.config.get("use_rslora") else rank))

    def digest(self) -> str:
        """SHA-256 of names and numbers: a merged folder names what it holds by it."""
        sha = hashlib.sha256()
        for name in sorted(self.weights):
            tensor = self.weights[name].read()
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            sha.update(as_bytes(tensor))
        return sha.hexdigest()


def is_adapter(folder: Path) -> bool:
    """Whether a folder is one that PEFT wrote."""
    return (folder / CONFIG).is_file()


def read_adapter(folder: Path, allow_pickle: bool) -> Adapter:
    """An adapter folder, none of its weights read yet.

    Raises:
        ConfigError: there is none, or it is of a kind that changes more than linear layers.
        WeightsError: unreadable, or a factor stands alone.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {folder / CONFIG}: {error}") from None
    strange = [key for key in _MUST_BE_UNSET if config.get(key)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or strange:
        kind = ", ".join([str(config.get("peft_type")), f"bias {config.get('bias')}", *strange])
        raise ConfigError(f"{folder} holds adapters of another kind than plain LoRA: {kind}")
    weights = {inside(name): weight for name, weight in read_weights(folder, allow_pickle, "adapter_model").items()}
    _check_pairs(folder, weights)
    return Adapter(config, weights)


def write_adapter(
    folder: Path, adapter: Adapter, dtype: torch.dtype | None, max_size: str, prefix: str = "", **changes: Any
) -> None:
    """Write a folder that ``peft.PeftModel.from_pretrained`` reads.

    Args:
        prefix: stands before each layer's name in the model that reads it (``vision_model.``).
        changes: keys of its config to set.
    """
    folder.mkdir(parents=True)
    config = {**adapter.config, **changes, "inference_mode": True}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    named = {adapter_key(prefix + name): weight for name, weight in adapter.weights.items()}
    write(folder, named, dtype, max_size, stem="adapter_model")


def merged(what: str, weights: Weights, adapter: Adapter) -> Weights:
    """A part's weights with the adapters' updates added, each when it is asked for.

    The sum is taken in float32, so that a small update is rounded once, together with its base.

    Raises:
        WeightsError: a layer that the adapters change is not there, or has another shape.
    """
    changed = dict(weights)
    for layer in adapter.layers:
        name = f"{layer}.weight"
        down, up = adapter.weights[layer + A], adapter.weights[layer + B]
        if name not in weights or weights[name].shape != (up.shape[0], down.shape[1]):
            seen = weights[name].shape if name in weights else "not there"
            raise WeightsError(f"{what}: the adapters change {name} [{up.shape[0]}, {down.shape[1]}], which is {seen}")
        changed[name] = weights[name].then(_adder(down, up, adapter.scale))
    return changed


def _adder(down: Weight, up: Weight, scale: float) -> Any:
    def add(base: Tensor) -> Tensor:
        return torch.addmm(base.float(), up.read().float(), down.read().float(), alpha=scale)

    return add


def inside(name: str) -> str:
    return name.removeprefix("base_model.model.").removeprefix("vision_model.").replace(".default.", ".")


def _check_pairs(folder: Path, weights: Weights) -> None:
    wrong = [name for name in weights if not name.endswith((A, B))]
    wrong += [name for name in weights if name.endswith(A) and name.removesuffix(A) + B not in weights]
    wrong += [name for name in weights if name.endswith(B) and name.removesuffix(B) + A not in weights]
    if wrong or not weights:
        raise WeightsError(f"adapters in {folder} that find no home: {', '.join(wrong[:5]) or 'there are none at all'}")
