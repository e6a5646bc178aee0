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

import torch
from torch import Tensor, nn

from llava.errors import ConfigError
from llava.export.lora import Adapter, merged
from llava.export.tensors import Weights, read_weights, without_computed
from llava.hf_device import torch_dtype
from llava.hf_model import MANIFEST
from llava.model import internlm
from llava.model.language import llama_tensors
from llava.model.load import Square
from llava.model.projector import check_state
from llava.model.vision import TEXT_HALF, tower_classes
from llava.model.weights import local_folder, read_config

Role = Literal["language", "vision"]
ROLES: tuple[Role, Role] = ("language", "vision")
TOWER = "vision_model."
"""Level that transformers 4 has, and the hub's folders with it, in the names of a tower's weights."""
HEAD = "lm_head.weight"


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
            weights = _as_trained(weights, linear_weights(self.role, body.config), torch_dtype(dtype))
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
    from transformers import AutoConfig, LlamaConfig

    values = read_config(str(folder), key_of(role))
    try:
        if role == "vision":
            return tower_classes(values, str(folder))[0].from_pretrained(folder)
        if internlm.is_internlm(values):
            return LlamaConfig(**internlm.llama_config(values))
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"no {role} model in {folder}: {error}") from None


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


def _as_trained(weights: Weights, quantised: set[str], dtype: torch.dtype) -> Weights:
    """Weights as a 4-bit run sees them: in its number format, linear layers quantised and de-quantised."""
    return {name: weight.then(_through_nf4(dtype, name in quantised)) for name, weight in weights.items()}


def _through_nf4(dtype: torch.dtype, quantised: bool) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        if not quantised:
            return tensor.to(dtype)
        from bitsandbytes.functional import dequantize_4bit
        from bitsandbytes.nn import Params4bit

        # The numbers depend on the format that they were quantised from, and a little on the device.
        device = "cuda" if torch.cuda.is_available() else "cpu"
        packed = Params4bit(
            tensor.to(dtype), requires_grad=False, quant_type="nf4", compress_statistics=True, quant_storage=dtype
        ).to(device)
        opened: Tensor = dequantize_4bit(packed.data, packed.quant_state)
        return opened.cpu()

    return change
