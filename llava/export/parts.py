"""What is a LLaVA model on disk made of, whatever the layout it stands in?

Each layout's file turns a folder into these nouns and back. Nothing here holds tensors: weights are read one by one
when they are written. Inside, weights are named as transformers names a causal language model (``model.layers...``,
``lm_head.weight``), a vision tower without ``vision_model.``, and the projector as in ``llava/model/projector.py``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from llava.errors import ConfigError
from llava.export.architecture import TOWER, Role, checked, key_of, linear_weights, read_part_config
from llava.export.lora import Adapter, merged
from llava.export.nf4 import as_trained
from llava.export.tensors import Weights, read_weights, without_computed
from llava.hf_device import torch_dtype
from llava.hf_model import MANIFEST
from llava.model.language import llama_tensors
from llava.model.load import Square
from llava.model.vision import TEXT_HALF
from llava.model.weights import local_folder


@dataclass(frozen=True)
class Grown:
    """What an export added to a tokenizer and its embeddings; taken away again on the way back."""

    rows: int
    """Embedding rows before."""
    tokens: tuple[str, ...]
    """Added tokens."""
    pad_token: str | None
    """The padding token before."""


@dataclass(frozen=True)
class Body:
    """A whole language model or tower."""

    weights: Weights
    config: Any
    """Of transformers."""
    files: Path
    """Folder of its tokenizer or image processor."""
    marks: tuple[str, ...] = ()
    """Digests of the adapters that are merged into it."""
    grown: Grown | None = None


@dataclass(frozen=True)
class Part:
    """A language model or a vision tower: frozen (its base alone), trained in full, or a base with adapters."""

    role: Role
    tuning: Literal["frozen", "full", "lora"]
    base: str | None
    """Folder or name of the pretrained weights; None: the source does not say."""
    get: Callable[[], Body]
    """Reads the whole weights' names; raises ConfigError where nobody says where they are."""
    adapter: Adapter | None = None
    quantize: Literal["none", "nf4"] = "none"
    """How the base was held in training."""
    allow_pickle: bool = False
    """Training was allowed to read the base from pickles."""

    @functools.cached_property
    def body(self) -> Body:
        """The base, or the fully trained weights."""
        return self.get()

    def whole(self, base: str, dtype: str) -> Body:
        """The part as one: adapters merged, 4-bit weights as they were trained with.

        Args:
            base: as_trained or original.
            dtype: number format that 4-bit weights were quantised from.

        Raises:
            ConfigError: the base holds these adapters already.
            WeightsError: an adapter changes a layer that is not there.
        """
        body = self.body
        weights = body.weights
        if self.quantize == "nf4" and base == "as_trained":
            weights = as_trained(weights, linear_weights(self.role, body.config), torch_dtype(dtype))
        if self.adapter is None:
            return replace(body, weights=weights)
        mark = self.adapter.digest()
        if mark in body.marks:
            raise ConfigError(
                f"{self.base} already holds these {self.role} adapters; merging again would apply them twice",
                f"Name the base that they were trained on: --{self.role} FOLDER.",
            )
        return replace(body, weights=merged(str(self.base), weights, self.adapter), marks=(*body.marks, mark))


@dataclass(frozen=True)
class Model:
    """A LLaVA model on disk."""

    language: Part
    vision: Part
    projector: Weights
    """linear_1 and linear_2, weight and bias."""
    template: str | None
    """Conversation template; None: the source does not say."""
    square: Square = "pad"
    layer: int = -2
    step: int = 0
    trained: bool = True
    dtype: str = "fp16"
    """Number format that frozen weights were held in."""
    said: dict[str, Any] = field(default_factory=dict)
    """What the source's llavajob.json says."""

    def named_template(self) -> str:
        """The conversation template, where one has to be known.

        Raises:
            ConfigError: the source does not say.
        """
        if self.template is None:
            raise ConfigError(
                "the source names no conversation template",
                "LLaVA-1.5 as published: --template llava_v1; as XTuner trains and exports it: --template vicuna.",
            )
        return self.template

    def part(self, role: Role) -> Part:
        """One of the two pretrained parts."""
        return self.language if role == "language" else self.vision


def base_part(role: Role, path: str | None, missing: str, allow_pickle: bool) -> Callable[[], Body]:
    """Reads a base when it is asked for.

    Args:
        path: folder or hub name; None: nobody said.
        missing: what to say then.
    """

    def get() -> Body:
        if path is None:
            raise ConfigError(missing, f"Name it: --{role} FOLDER (convert.{role}).")
        patterns = ("*.json", "*.safetensors", "*.model", "*.txt", *(("*.bin",) if allow_pickle else ()))
        return read_body(role, local_folder(path, key_of(role), *patterns), allow_pickle)

    return get


def read_body(role: Role, folder: Path, allow_pickle: bool) -> Body:
    """A Hugging Face folder of a causal language model, or of a tower; InternLM and InternLM2 become Llama.

    Raises:
        ConfigError: no such model there.
        WeightsError: a weight is missing, left over or of another shape.
    """
    config = read_part_config(role, folder)
    if role == "vision":
        all_weights = read_weights(folder, allow_pickle)
        weights = {n.removeprefix(TOWER): w for n, w in all_weights.items() if not n.startswith(TEXT_HALF)}
    else:
        weights = without_computed(llama_tensors(str(folder), allow_pickle))
    marks = tuple(read_said(folder).get("merged", {}).get(role, ()))
    return Body(checked(str(folder), role, weights, config), config, folder, marks)


def read_said(folder: Path) -> dict[str, Any]:
    """What a folder's llavajob.json says; nothing where there is none."""
    try:
        said: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {folder / MANIFEST}: {error}") from None
    return said
