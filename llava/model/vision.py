"""The vision tower: a CLIP vision transformer, cut off after the layer whose output is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llava.config import VisionConfig
from llava.errors import ConfigError
from llava.model.weights import load_pretrained


class VisionTower(nn.Module):
    """Pictures to patch features.

    Layers after the used one never run, carry no adapters and take no memory on the device: they are kept outside the
    module tree and come back only when the whole tower is written (``whole``).

    Args:
        clip: a ``CLIPVisionModel``.
        layer: index into its hidden states (LLaVA: -2, the second to last).
        mean, std: the processor's channel statistics, for values from 0 to 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, clip: Any, layer: int, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.clip = clip
        self.layer = layer
        used = layers_used(layer, clip.config.num_hidden_layers)
        layers = list(clip.encoder.layers)
        clip.encoder.layers = nn.ModuleList(layers[:used])
        # A tuple hides the rest from parameters(), to() and state_dict().
        self._unused: tuple[nn.Module, ...] = tuple(layers[used:])
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def width(self) -> int:
        """Width of a patch's features (D)."""
        return int(self.clip.config.hidden_size)

    @property
    def side(self) -> int:
        """Side of the square picture in pixels (S)."""
        return int(self.clip.config.image_size)

    @property
    def patches(self) -> int:
        """Features a picture becomes (P)."""
        return int(self.clip.config.image_size // self.clip.config.patch_size) ** 2

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, S, S), uint8, to features (N, P, D) without the CLS token.

        There is no graph when nothing in the tower trains.
        """
        trains = any(p.requires_grad for p in self.clip.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            values = self.normalise(pixels).to(self.clip.dtype)
            # The encoder's last output; post_layernorm belongs to the pooled CLS token, which is not used.
            features: Tensor = self.clip(values).last_hidden_state[:, 1:]
        return features

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 pixels to what CLIP was trained on, in the processor's order: scale to 0..1, subtract, divide."""
        return (pixels.float() * (1 / 255) - self.mean.float()) / self.std.float()

    @contextmanager
    def whole(self) -> Iterator[Any]:
        """The CLIP model with all its layers, for writing it to disk."""
        used = self.clip.encoder.layers
        self.clip.encoder.layers = nn.ModuleList([*used, *self._unused])
        try:
            yield self.clip
        finally:
            self.clip.encoder.layers = used


def load_vision(config: VisionConfig, path: str, dtype: torch.dtype, quantization: Any, device: str) -> Any:
    """A ``CLIPVisionModel`` with its weights, and its image processor.

    Args:
        path: folder with the weights; the base, or a trained run's own tower.

    Raises:
        ConfigError: no such folder or no CLIP model in it.
        WeightsError: a weight is missing, left over or of another shape.
    """
    from transformers import CLIPVisionModel

    # A folder of the whole CLIP holds the text half too.
    others = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
    return load_pretrained(CLIPVisionModel, path, dtype, quantization, device, "model.vision.path", others)


def load_processor(path: str) -> Any:
    """The folder's image processor on PIL: bit-equal to the one XTuner and LLaVA trained with.

    Raises:
        ConfigError: the folder has none.
    """
    try:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as Processor
    except ImportError:  # transformers before the PIL and torchvision backends were split
        from transformers import CLIPImageProcessor as Processor
    try:
        return Processor.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no image processor in {path}: {error}") from None


def layers_used(layer: int, layers: int) -> int:
    # hidden_states has one entry for the embeddings and one behind each layer.
    used = layer if layer >= 0 else layers + 1 + layer
    if not 0 < used <= layers:
        raise ConfigError(
            f"model.vision.layer is {layer}, but the tower has {layers} layers",
            f"give 1 to {layers}, or {-layers} to -1",
        )
    return used
