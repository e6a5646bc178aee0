"""What of a part trains: LoRA adapters (with peft), everything, or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llava.config import LoraConfig
from llava.errors import WeightsError
from llava.model.projector import check_state

ADAPTER = "default"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def add_lora(model: Any, lora: LoraConfig, layers: int | None = None) -> None:
    """Put adapters on every linear layer of a model except its head, in place.

    The adapters are float32 whatever the base is; everything else is frozen.

    Args:
        model: a transformers model, in 4 bits or not.
        layers: the tower's used layers, for the adapters' config; None: all there are.
    """
    import peft

    head = model.get_output_embeddings()
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias="none",
        target_modules=linear_names(model, head),
        layers_to_transform=None if layers is None else list(range(layers)),
        task_type=None if head is None else "CAUSAL_LM",
        base_model_name_or_path=model.config.name_or_path,
    )
    peft.inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def linear_names(model: nn.Module, head: nn.Module | None) -> list[str]:
    """Last names of the linear layers, without the head's (q_proj, k_proj, ...)."""
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    heads = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if module is head}
    return sorted(names - heads)


def adapter_key(name: str) -> str:
    """Name of an adapter's weight in a PEFT folder, from its name in the model."""
    return "base_model.model." + name.replace(f".{ADAPTER}.", ".")


def adapter_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A part's adapter weights under their names in a PEFT folder."""
    return {adapter_key(name): tensor for name, tensor in state.items() if ".lora_" in name}


def save_adapter(model: Any, state: dict[str, Tensor], folder: Path) -> None:
    """Write a folder that ``peft.PeftModel.from_pretrained`` reads.

    Args:
        state: the part's trained weights by their names in the model.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    config = dict(model.peft_config[ADAPTER].to_dict(), inference_mode=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, default=_plain) + "\n", encoding="utf-8")
    save_file(adapter_state(state), folder / WEIGHTS, metadata={"format": "pt"})


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Copy a folder's adapter weights into a model that ``add_lora`` has prepared.

    Raises:
        WeightsError: the folder is unreadable, or a key is missing, left over or of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        seen = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read the adapters in {folder}: {error}") from None
    own = {name: parameter.data for name, parameter in model.named_parameters() if ".lora_" in name}
    check_state(f"adapter {folder}", adapter_state(own), seen)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(seen[adapter_key(name)])


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, set | frozenset) else str(getattr(value, "value", value))
