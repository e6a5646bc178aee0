"""What each part learns at: parameter groups, and the learning rate of each update."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from llava.config import ModelConfig, Rules, TrainingConfig
from llava.errors import ConfigError
from llava.model.join import LlavaModel

_WARMUP_START = 1e-5
"""Share of the peak at XTuner's first update."""


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


def factor(step: int, total: int, warmup_ratio: float, rules: Rules = "xtuner") -> float:
    """Share of the peak learning rate at an update: a line up, then half a cosine towards zero.

    With ``xtuner`` (``LinearLR`` and ``CosineAnnealingLR`` of mmengine 0.10, as XTuner 0.1.23's configs set them up),
    the first int(warmup_ratio x total) updates go from 1e-5 to the peak, both included, and the cosine begins with the
    peak again: it is used twice, and no update has rate zero. Not copied: a step of the schedule for every micro-batch
    instead of every update (the same where nothing is accumulated), an error where warm-up is shorter than one update,
    and a whole run at 1e-5 where it is just one.

    With ``llava`` (``get_cosine_schedule_with_warmup`` of transformers), warm-up takes ceil(warmup_ratio x total)
    updates, the first of which has rate zero, and the peak is used once.

    Args:
        step: the update, from 0.
        total: updates of the whole run.
    """
    warmup = warmup_steps(total, warmup_ratio, rules)
    if step >= warmup:
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
    if rules == "llava":
        return step / warmup
    done = step / max(1, warmup - 1)
    return _WARMUP_START * (1 - done) + done


def warmup_steps(total: int, warmup_ratio: float, rules: Rules) -> int:
    """Updates before the cosine."""
    return math.ceil(warmup_ratio * total) if rules == "llava" else int(warmup_ratio * total)
