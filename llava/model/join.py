"""The join: picture features take the places of the image tokens, and the loss is taken where labels are."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from llava.data.collate import Batch
from llava.model.projector import Projector
from llava.model.vision import VisionTower

Idle = Literal["skip", "projector", "tower"]


class LlavaModel(nn.Module):
    """Vision tower, projector and language model.

    Letters: B samples, T positions, N pictures, P features a picture, D and H the tower's and the language model's
    width, L text tokens, K supervised tokens, V vocabulary.
    """

    idle: Idle = "skip"
    """What a micro-batch without pictures does: nothing, or a pass over one blank picture with weight zero through the
    projector or the whole tower. ZeRO counts on every rank touching the same parameters."""

    def __init__(self, vision: VisionTower, projector: Projector, language: Any) -> None:
        super().__init__()
        self.vision = vision
        self.projector = projector
        self.language = language

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        """Loss summed over the batch's supervised tokens (scalar, float32), and how many there are (K)."""
        hidden = self.read(batch, self.see(batch))  # (B x T, H)
        head = self.language.get_output_embeddings()
        logits = head(hidden.index_select(0, batch.target_at))  # (K, V): the head runs at label positions only
        loss = nn.functional.cross_entropy(logits.float(), batch.targets, reduction="sum")
        return loss, batch.supervised

    def see(self, batch: Batch) -> Tensor | None:
        """Projected features (N, P, H); of one blank picture where there is none and ``idle`` asks; else None."""
        if len(batch.pixels):
            return self.projector(self.vision(batch.pixels))  # type: ignore[no-any-return]
        if self.idle == "skip":
            return None
        if self.idle == "tower":
            return self.projector(self.vision(batch.pixels.new_zeros(1, *batch.pixels.shape[1:])))  # type: ignore[no-any-return]
        weight = self.projector.linear_1.weight
        return self.projector(weight.new_zeros(1, 1, self.vision.width))  # type: ignore[no-any-return]

    def read(self, batch: Batch, features: Tensor | None) -> Tensor:
        """The language model's last hidden states, (B x T, H)."""
        rows = self.splice(batch, features)
        # No mask: causal attention never looks at the padding on the right, and outputs there are not used.
        states = self.language.base_model(
            inputs_embeds=rows.view(batch.samples, batch.length, -1), use_cache=False
        ).last_hidden_state  # (B, T, H)
        return states.flatten(0, 1)  # type: ignore[no-any-return]

    def splice(self, batch: Batch, features: Tensor | None) -> Tensor:
        """Text embeddings and picture features in their places, zeros in the padding: (B x T, H)."""
        text = self.language.get_input_embeddings()(batch.text_ids)  # (L, H)
        rows: Tensor = text.new_zeros(batch.samples * batch.length, text.shape[-1])
        rows = rows.index_copy(0, batch.text_at, text)
        if features is None:
            return rows
        if not len(batch.pixels):
            # Not added to the loss but to every embedding, so that the backward pass takes the same way as others do.
            return rows + 0.0 * features.sum().to(text.dtype)
        return rows.index_copy(0, batch.image_at, features.flatten(0, 1).to(text.dtype))

    def parts(self) -> dict[str, nn.Module]:
        """The three parts by name."""
        return {"vision": self.vision, "projector": self.projector, "language": self.language}
