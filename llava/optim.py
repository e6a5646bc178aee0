"""What each part learns at: parameter groups, and the learning rate of each update."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from llava.config import ModelConfig, TrainingConfig
from llava.errors import ConfigError
from llava.model.join import LlavaModel


@dataclass(frozen=True)
class Group:
    """The trained weights of one part."""

    part: str
    """language, vision or projector."""
    parameters: dict[str, nn.Parameter]
    """By their names in the whole model."""
    learning_rate: float
    """Peak."""

    @property
    def size(self) -> int:
        """Number of trained values."""
        return sum(parameter.numel() for parameter in self.parameters.values())


def groups(model: LlavaModel, parts: ModelConfig, train: TrainingConfig) -> list[Group]:
    """One group per part that trains.

    Raises:
        ConfigError: nothing trains.
    """
    found = []
    for part, module in model.parts().items():
        rate = getattr(parts, part).learning_rate or train.learning_rate
        named = {f"{part}.{name}": p for name, p in module.named_parameters() if p.requires_grad}
        if named:
            found.append(Group(part, named, rate))
    if not found:
        raise ConfigError("nothing trains: every part's tuning is frozen", "set model.projector.tuning: full")
    return found


def factor(step: int, total: int, warmup_ratio: float) -> float:
    """Share of the peak learning rate at an update: a line up, then a cosine towards zero.

    The peak is used once, right after the int(warmup_ratio x total) updates of warm-up, and no update has rate zero.

    Args:
        step: the update, from 0.
        total: updates of the whole run.
    """
    warmup = int(warmup_ratio * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
