"""Which weights does a language model or a tower have, by its config, and do those on disk fit?"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llava.errors import ConfigError
from llava.export.tensors import Weights
from llava.model.language import language_config
from llava.model.projector import check_state
from llava.model.vision import tower_classes
from llava.model.weights import read_config

Role = Literal["language", "vision"]
ROLES: tuple[Role, Role] = ("language", "vision")
TOWER = "vision_model."
"""Level that transformers 4 has, and the hub's folders with it, in the names of a tower's weights."""
HEAD = "lm_head.weight"


def checked(what: str, role: Role, weights: Weights, config: Any) -> Weights:
    """The weights without a tied head, held against the architecture.

    Raises:
        WeightsError: a weight is missing, left over or of another shape.
    """
    wanted = {name.removeprefix(TOWER): tensor for name, tensor in _skeleton(role, config).state_dict().items()}
    if role == "language" and getattr(config, "tie_word_embeddings", False):
        wanted.pop(HEAD, None)
        weights = {name: weight for name, weight in weights.items() if name != HEAD}
    check_weights(what, wanted, weights)
    return weights


def check_weights(what: str, wanted: dict[str, Tensor], weights: Weights) -> None:
    """Hold weights on disk against a model's.

    Raises:
        WeightsError: a weight is missing, left over or of another shape.
    """
    check_state(what, wanted, {name: torch.empty(w.shape, device="meta") for name, w in weights.items()})


def key_of(role: Role) -> str:
    """The config key of a part's base, for messages."""
    return f"convert.{role}"


def read_part_config(role: Role, folder: Path) -> Any:
    """Transformers' config of a folder's language model or tower.

    Raises:
        ConfigError: there is none, or it is of another kind.
    """
    if role == "language":
        return language_config(str(folder))
    config_class, _ = tower_classes(read_config(str(folder), key_of(role)), str(folder))
    try:
        return config_class.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no vision tower in {folder}: {error}") from None


def _skeleton(role: Role, config: Any) -> nn.Module:
    """The architecture without numbers."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        try:
            if role == "vision":
                model = tower_classes(config.to_dict(), "the source")[1](config)
            else:
                model = AutoModelForCausalLM.from_config(config)
        except ValueError as error:
            raise ConfigError(f"no {role} model of type {config.model_type}: {str(error).splitlines()[0]}") from None
    assert isinstance(model, nn.Module)
    return model


def architecture(role: Role, config: Any) -> str:
    """Name of transformers' class, as a config.json tells it."""
    return type(_skeleton(role, config)).__name__


def linear_weights(role: Role, config: Any) -> set[str]:
    """The weights that 4-bit loading quantises: of every linear layer but the head."""
    names = {name for name, module in _skeleton(role, config).named_modules() if isinstance(module, nn.Linear)}
    return {f"{name.removeprefix(TOWER)}.weight" for name in names} - {HEAD}
