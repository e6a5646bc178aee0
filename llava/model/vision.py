"""The vision tower: a CLIP, SigLIP or SigLIP2 vision transformer, cut off after the layer whose output is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llava.config import VisionConfig
from llava.errors import ConfigError
from llava.model.weights import load_pretrained, read_config

KEY = "model.vision.path"
TEXT_HALF = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")
"""Beginnings of the weights that a folder of the whole CLIP or SigLIP holds beyond the tower's."""
_CLIP = ("clip", "clip_vision_model")
_SIGLIP = ("siglip", "siglip_vision_model")
"""SigLIP2 folders of one resolution call themselves siglip too; those of any shape (NaFlex) siglip2."""


class VisionTower(nn.Module):
    """Pictures to patch features.

    Layers after the used one never run, carry no adapters and take no memory on the device: they are kept outside the
    module tree and come back only when the whole tower is written (``whole``). So is SigLIP's pooling head.

    Args:
        clip: a ``CLIPVisionModel`` or a ``SiglipVisionModel``.
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
        self._head: tuple[nn.Module, ...] = ()
        if getattr(clip, "head", None) is not None:
            self._head, clip.head = (clip.head,), None
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def class_token(self) -> bool:
        """Whether a CLS token stands before the patches (CLIP); it is not used."""
        return has_class_token(self.clip.config)

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

        Hidden state ``layer`` as transformers counts them, before the norm that follows the last one. There is no graph
        when nothing in the tower trains.
        """
        trains = any(p.requires_grad for p in self.clip.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            values = self.normalise(pixels).to(self.clip.dtype)
            features: Tensor
            if self.class_token:  # post_layernorm belongs to the pooled CLS token alone
                features = self.clip(values).last_hidden_state[:, 1:]
            else:  # SigLIP's own output has been through post_layernorm, which belongs to its last layer
                features = self.clip.encoder(inputs_embeds=self.clip.embeddings(values)).last_hidden_state
        return features

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 pixels to what the tower was trained on, in the processor's order: scale to 0..1, subtract, divide."""
        return (pixels.float() * (1 / 255) - self.mean.float()) / self.std.float()

    @contextmanager
    def whole(self) -> Iterator[Any]:
        """The tower with all its layers and its head, for writing it to disk."""
        used = self.clip.encoder.layers
        self.clip.encoder.layers = nn.ModuleList([*used, *self._unused])
        if self._head:
            self.clip.head = self._head[0]
        try:
            yield self.clip
        finally:
            self.clip.encoder.layers = used
            if self._head:
                self.clip.head = None


def has_class_token(config: Any) -> bool:
    """Whether a tower's patches have a CLS token before them: CLIP's do, SigLIP's do not."""
    return config.model_type in _CLIP


def load_vision(
    config: VisionConfig, path: str, dtype: torch.dtype, quantization: Any, device: str, allow_pickle: bool = False
) -> Any:
    """A ``CLIPVisionModel`` or ``SiglipVisionModel`` with its weights.

    Args:
        path: folder with the weights; the base, or a trained run's own tower.
        allow_pickle: read ``.bin`` files where there is no safetensors file.

    Raises:
        ConfigError: no such folder, or none of these models in it.
        WeightsError: a weight is missing, left over or of another shape.
    """
    _, model_class = tower_classes(read_config(path, KEY), path)
    return load_pretrained(model_class, path, dtype, quantization, device, KEY, TEXT_HALF, allow_pickle)


def tower_classes(config: dict[str, Any], path: str) -> tuple[Any, Any]:
    """Transformers' classes of a tower's config and model.

    Args:
        config: what the folder's ``config.json`` says.
        path: the folder, for the message.

    Raises:
        ConfigError: it is of no kind that is known.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

    kind = config.get("model_type")
    if kind not in (*_CLIP, *_SIGLIP):
        known = "CLIP and SigLIP are known, SigLIP2 in the folders of one resolution (siglip2-so400m-patch14-384)"
        raise ConfigError(f"{KEY}: {path} holds a model of type {kind!r}, no tower that is known", known)
    return (CLIPVisionConfig, CLIPVisionModel) if kind in _CLIP else (SiglipVisionConfig, SiglipVisionModel)


def load_processor(path: str) -> Any:
    """The folder's image processor on PIL: bit-equal to the one XTuner and LLaVA trained with.

    Raises:
        ConfigError: the folder has none.
    """
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        values, _ = BaseImageProcessor.get_image_processor_dict(path)
        # Old CLIP folders name no class, or one that is gone.
        name = str(values.get("image_processor_type"))
        return _processor_class(siglip=name.startswith("Siglip")).from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no image processor in {path}: {error}") from None


def _processor_class(siglip: bool) -> Any:
    import transformers

    name = "SiglipImageProcessor" if siglip else "CLIPImageProcessor"
    # transformers before the PIL and torchvision backends were split has PIL's under the plain name.
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


def output_size(processor: Any) -> tuple[int, int]:
    """Height and width of what a processor gives, in pixels; (0, 0) where they hang on the picture."""
    size, crop = dict(processor.size or {}), dict(getattr(processor, "crop_size", None) or {})
    if not getattr(processor, "do_center_crop", False):
        return size.get("height", 0), size.get("width", 0)
    if size.get("shortest_edge", size.get("height")) != crop.get("height"):
        return 0, 0
    return crop["height"], crop["width"]


def layers_used(layer: int, layers: int) -> int:
    # hidden_states has one entry for the embeddings and one behind each layer.
    used = layer if layer >= 0 else layers + 1 + layer
    if not 0 < used <= layers:
        raise ConfigError(
            f"model.vision.layer is {layer}, but the tower has {layers} layers",
            f"give 1 to {layers}, or {-layers} to -1",
        )
    return used
