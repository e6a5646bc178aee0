"""A LLaVA projector, as XTuner's ``AutoModel`` with remote code looks for it: weights ``model.0.*``, ``model.2.*``."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from .configuration_projector import ProjectorConfig


class ProjectorModel(PreTrainedModel):  # type: ignore[misc]
    """Linear layers with an activation between."""

    config_class = ProjectorConfig
    _auto_class = "AutoModel"
    base_model_prefix = "model"
    supports_gradient_checkpointing = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        layers: list[nn.Module] = [nn.Linear(config.visual_hidden_size, config.llm_hidden_size, bias=config.bias)]
        for _ in range(1, config.depth):
            layers += [
                ACT2FN[config.hidden_act],
                nn.Linear(config.llm_hidden_size, config.llm_hidden_size, bias=config.bias),
            ]
        self.model = nn.Sequential(*layers)
        self.post_init()

    def forward(self, x: Tensor) -> Tensor:
        """(..., visual_hidden_size) to (..., llm_hidden_size)."""
        projected: Tensor = self.model(x)
        return projected
