"""The layout of Hugging Face's ``LlavaForConditionalGeneration``.

Names are written as in the LLaVA folders on the hub (``language_model.model...``, ``vision_tower.vision_model...``),
which transformers 4 and 5, vLLM and VLMEvalKit all read; transformers' newer ones (``model.language_model...``) are
read as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava.errors import ConfigError
from llava.export import files
from llava.export.architecture import HEAD, ROLES, TOWER, Role, checked
from llava.export.bodies import How, dtype_name, projector_weights, say_in_older_words
from llava.export.parts import Body, Grown, Model, Part, read_said
from llava.export.request import Request
from llava.export.tensors import Weight, Weights, below, read_weights
from llava.export.weights import write

_EMBEDDINGS = "model.embed_tokens.weight"
_NEWER = (
    (re.compile(r"^model\.language_model\."), "language_model.model."),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
    (re.compile(r"^model\.(vision_tower|multi_modal_projector)\."), r"\1."),
)
_AT: dict[Role, str] = {"language": "language_model.", "vision": "vision_tower."}


def holds(folder: Path) -> bool:
    """Whether a folder is of this layout."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return values.get("model_type") == "llava" and "vision_config" in values


def read(folder: Path, request: Request) -> Model:
    """What the folder holds, none of its weights read yet.

    Raises:
        ConfigError: the config asks for what LLaVA-1.5 has not, or weights are pickled and that is not allowed.
        WeightsError: a weight is missing, left over or of another shape.
    """
    from transformers import LlavaConfig

    config = LlavaConfig.from_pretrained(folder)
    _check_kind(folder, config)
    said = read_said(folder)
    weights = {_hub_name(name): weight for name, weight in read_weights(folder, request.allow_pickle).items()}
    language, vision = (_part(folder, role, config, weights, said, request) for role in ROLES)
    projector = below(weights, "multi_modal_projector.")
    return Model(
        language,
        vision,
        projector_weights(str(folder), projector, {}),
        request.template or said.get("template"),
        said.get("square", "pad"),
        config.vision_feature_layer,
        said.get("step", 0),
        said.get("trained", True),
        said.get("trained_dtype", "fp16"),
        said=said,
    )


def _check_kind(folder: Path, config: Any) -> None:
    select = files.select_strategy(config.vision_config)
    for key, known in {"projector_hidden_act": "gelu", "vision_feature_select_strategy": select}.items():
        if getattr(config, key) != known:
            raise ConfigError(f"{folder}/config.json: {key} is {getattr(config, key)!r}, this reads {known!r}")
    if not isinstance(config.vision_feature_layer, int):
        raise ConfigError(f"{folder}/config.json: vision_feature_layer is not one layer")


def _hub_name(name: str) -> str:
    for newer, older in _NEWER:
        name, changed = newer.subn(older, name)
        if changed:
            break
    return name


def _part(
    folder: Path, role: Role, config: Any, weights: Weights, said: dict[str, Any], request: Request
) -> Part:  # fmt: skip
    marks = tuple(said.get("merged", {}).get(role, ()))

    def get() -> Body:
        described = config.text_config if role == "language" else config.vision_config
        mine = {name.removeprefix(TOWER): weight for name, weight in below(weights, _AT[role]).items()}
        grown = Grown(**said["grown"]) if role == "language" and said.get("grown") else None
        if grown is not None:
            mine = {name: _cut(name, weight, grown.rows) for name, weight in mine.items()}
            described.vocab_size = grown.rows
        return Body(checked(f"{role} in {folder}", role, mine, described), described, folder, marks, grown)

    return Part(role, "full", request.base(role) or said.get("bases", {}).get(role), get)


def _cut(name: str, weight: Weight, rows: int) -> Weight:
    if name not in (HEAD, _EMBEDDINGS):
        return weight
    return weight.then(lambda tensor: tensor[:rows], (rows, *weight.shape[1:]))


def write_hf(model: Model, folder: Path, how: How) -> dict[str, Any]:
    """Write the layout: adapters merged, frozen parts included.

    Returns:
        what llavajob.json has to say beyond what it says of every layout.

    Raises:
        ConfigError: a base is missing, or nobody names the conversation template.
    """
    bodies = {role: model.part(role).whole(how.base, model.dtype) for role in ROLES}
    language, vision = bodies["language"], bodies["vision"]
    before = files.tokenizer_of(language)
    tokenizer = files.with_specials(before)
    old = language.config.vocab_size
    rows = files.vocabulary(old, tokenizer)
    described = files.model_config(language, vision, model.layer, tokenizer, rows, dtype_name(language.weights, how))
    described.save_pretrained(folder)
    template = None if _keeps_its_own(model, before) else model.named_template()
    files.write_processor(folder, vision, tokenizer, template, model.square)
    files.write_generation(folder, tokenizer, template)
    say_in_older_words(folder / "config.json", "text_config")
    write(folder, _named(model, language, vision, rows, how), how.dtype, how.max_shard_size)
    added = [token for token in tokenizer.get_added_vocab() if token not in before.get_vocab()]
    return {
        "grown": {"rows": old, "tokens": added, "pad_token": before.pad_token} if rows > old or added else None,
        "merged": {role: list(body.marks) for role, body in bodies.items() if body.marks},
    }


def _keeps_its_own(model: Model, tokenizer: Any) -> bool:
    return model.template is None and bool(tokenizer.chat_template)


def _named(model: Model, language: Body, vision: Body, rows: int, how: How) -> Weights:
    named: Weights = {}
    for name, weight in language.weights.items():
        grows = name in (HEAD, _EMBEDDINGS) and weight.shape[0] < rows
        named[_AT["language"] + name] = _grow(weight, rows, how.dtype or weight.dtype) if grows else weight
    named |= {_AT["vision"] + TOWER + name: weight for name, weight in vision.weights.items()}
    return named | {f"multi_modal_projector.{name}": weight for name, weight in model.projector.items()}


def _grow(weight: Weight, rows: int, dtype: torch.dtype) -> Weight:
    return weight.then(_grower(rows, dtype), (rows, *weight.shape[1:]))


def _grower(rows: int, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Append rows that are the mean of those there are, as they are written.

    As head rows, their logit is the mean of all logits: never above the highest, so that no new token is ever picked.
    """

    def grown(tensor: Tensor) -> Tensor:
        old = tensor.to(dtype)
        mean = old.mean(0, keepdim=True, dtype=torch.float32).to(dtype)
        return torch.cat([old, mean.expand(rows - len(old), -1)])

    return grown
