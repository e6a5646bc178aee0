"""Config of a LLaVA projector, as XTuner's ``AutoModel`` with remote code looks for it."""

from transformers import PretrainedConfig


class ProjectorConfig(PretrainedConfig):  # type: ignore[misc]
    """Widths and depth of the projector.

    Args:
        visual_hidden_size: width of a picture's features.
        llm_hidden_size: width of the language model.
        depth: linear layers.
        hidden_act: activation between them.
        bias: whether they have one.
    """

    model_type = "projector"

    def __init__(
        self,
        visual_hidden_size: int = 1024,
        llm_hidden_size: int = 4096,
        depth: int = 2,
        hidden_act: str = "gelu",
        bias: bool = True,
        **more: object,
    ) -> None:
        self.visual_hidden_size = visual_hidden_size
        self.llm_hidden_size = llm_hidden_size
        self.depth = depth
        self.hidden_act = hidden_act
        self.bias = bias
        super().__init__(**more)
