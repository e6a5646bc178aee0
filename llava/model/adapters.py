"""What of a part trains: LoRA adapters (with peft), everything, or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llava.config import LoraConfig
from llava.errors import ConfigError, WeightsError
from llava.model.internlm import FUSED
from llava.model.projector import check_state

ADAPTER = "default"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def add_lora(model: Any, lora: LoraConfig, layers: int | None = None) -> None:
    """Put adapters on every linear layer of a model, on its head only where ``lora`` says so, in place.

    The adapters are float32 whatever the base is; everything else is frozen. Where q, k and v were one layer in the
    model's own layout (InternLM2), they share their first factor, as the one layer's adapter did.

    Args:
        model: a transformers model, in 4 bits or not.
        layers: the tower's used layers, for the adapters' config; None: all there are.

    Raises:
        ConfigError: the head is asked for, but it shares its weight with the embeddings.
    """
    import peft

    head = model.get_output_embeddings()
    if lora.head and head is not None and head.weight is model.get_input_embeddings().weight:
        raise ConfigError("lora.head: this model's head is its embeddings, which take no adapters")
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias="none",
        target_modules=linear_names(model, None if lora.head else head),
        layers_to_transform=None if layers is None else list(range(layers)),
        task_type=None if head is None else "CAUSAL_LM",
        base_model_name_or_path=model.config.name_or_path,
    )
    peft.inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    if getattr(model.config, FUSED, False):
        _share_first_factor(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _share_first_factor(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if name.endswith(".self_attn"):
            q, k, v = (getattr(module, f"{part}_proj") for part in "qkv")
            k.lora_A[ADAPTER] = v.lora_A[ADAPTER] = q.lora_A[ADAPTER]


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


def adapter_state(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A part's adapter weights under their names in a PEFT folder; a shared one stands there under each of its names.

    Args:
        state: weights by the names that ``model.named_parameters`` gives them.
    """
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {name: first[id(parameter)] for name, parameter in _adapters(model).items()}
    # Copies, since a safetensors file holds no tensor twice.
    return {adapter_key(name): state[own].clone() if name != own else state[own] for name, own in found.items()}


def _adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters(remove_duplicate=False) if ".lora_" in name}


def save_adapter(model: Any, state: dict[str, Tensor], folder: Path) -> None:
    """Write a folder that ``peft.PeftModel.from_pretrained`` reads.

    Args:
        state: the part's trained weights by their names in the model.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    config = dict(model.peft_config[ADAPTER].to_dict(), inference_mode=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, default=_plain) + "\n", encoding="utf-8")
    save_file(adapter_state(model, state), folder / WEIGHTS, metadata={"format": "pt"})


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
    fill_adapters(model, seen, str(folder))


def fill_adapters(model: nn.Module, seen: dict[str, Tensor], source: str) -> None:
    """Copy adapter weights, by their names in a PEFT folder, into a model that ``add_lora`` has prepared.

    Raises:
        WeightsError: a key is missing, left over or of another shape, or what the model shares differs.
    """
    own = _adapters(model)
    check_state(f"adapter {source}", {adapter_key(name): p.data for name, p in own.items()}, seen)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(seen[adapter_key(name)])
    for name, parameter in own.items():
        if not torch.equal(parameter, seen[adapter_key(name)].to(parameter)):
            raise WeightsError(f"adapter {source}: {adapter_key(name)} differs from its twin for the same layer")


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, set | frozenset) else str(getattr(value, "value", value))
