"""How does one part stand in a folder of its own: config, weights, tokenizer or image processor?"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llava.export.architecture import TOWER, Role, architecture, check_weights
from llava.export.parts import Body, Grown
from llava.export.tensors import Weights
from llava.export.weights import write
from llava.hf_model import MANIFEST
from llava.model.projector import Projector

FORMAT = 1
_COPIED = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class How:
    """What a person chooses about the written files."""

    dtype: torch.dtype | None
    """Number format; None: each weight's own."""
    max_shard_size: str = "5GB"
    base: str = "as_trained"
    """What adapters of a 4-bit run are merged onto."""


def write_body(folder: Path, role: Role, body: Body, how: How) -> None:
    """Write a causal language model with its tokenizer, or a tower with its image processor."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, role, body, how)
    if role == "language":
        write(folder, body.weights, how.dtype, how.max_shard_size)
        copy_tokenizer(body, folder)
    else:
        named = {TOWER + name: weight for name, weight in body.weights.items()}
        write(folder, named, how.dtype, how.max_shard_size)
        write_image_processor(body.files, folder)
    if body.marks:
        said = {"format": FORMAT, "merged": {role: list(body.marks)}}
        (folder / MANIFEST).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def write_config(folder: Path, role: Role, body: Body, how: How) -> None:
    """Write a part's config.json."""
    config = unquantised(body.config)
    config.architectures = [architecture(role, body.config)]
    if role == "language":
        config.use_cache = True  # training switches it off
    config.dtype = dtype_name(body.weights, how)
    config.save_pretrained(folder)
    say_in_older_words(folder / "config.json")


def unquantised(config: Any) -> Any:
    """A copy that says neither how its weights were packed nor where they lay."""
    import copy

    plain = copy.deepcopy(config)
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    plain._name_or_path = ""
    return plain


def dtype_name(weights: Weights, how: How) -> str:
    """torch's name of the format that most numbers are written in."""
    if how.dtype is not None:
        return str(how.dtype).removeprefix("torch.")
    sizes: dict[torch.dtype, int] = {}
    for weight in weights.values():
        sizes[weight.dtype] = sizes.get(weight.dtype, 0) + torch.Size(weight.shape).numel()
    return str(max(sizes, key=lambda dtype: sizes[dtype])).removeprefix("torch.")


def say_in_older_words(path: Path, part: str | None = None) -> None:
    """Say in transformers 4's words what transformers 5 writes in its own; both read the result.

    Without this, version 4 would quietly take rope's default base of 10,000.

    Args:
        path: a config.json.
        part: key of the language model's config in it; None: the config itself.
    """
    whole = json.loads(path.read_text(encoding="utf-8"))
    values = whole if part is None else whole[part]
    rope = dict(values.get("rope_parameters") or {})
    if "rope_theta" in rope:
        values["rope_theta"] = rope.pop("rope_theta")
        if rope.get("rope_type", "default") != "default":
            values["rope_scaling"] = rope
        path.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def copy_tokenizer(body: Body, folder: Path) -> None:
    """Copy the files of tokenizer and generation as they are, without what an export added to them."""
    for name in _COPIED:
        if (body.files / name).is_file():
            shutil.copyfile(body.files / name, folder / name)
    if body.grown is not None:
        _shrink(folder, body.grown)
    elif (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
        # Others would read it by rules of their own, InternLM's by code that comes with its folders.
        from llava.model.language import load_tokenizer

        load_tokenizer(str(body.files)).save_pretrained(folder)
        name_tokenizer(folder)


def name_tokenizer(folder: Path) -> None:
    """Name a class that transformers 4 knows too, and that takes tokenizer.json as it is.

    Llama's own would be built anew and split some texts differently.
    """
    path = folder / "tokenizer_config.json"
    if (folder / "tokenizer.json").exists():
        values = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _shrink(folder: Path, grown: Grown) -> None:
    _change(folder / "tokenizer.json", lambda v: _keep_tokens(v, grown.tokens))
    _change(folder / "tokenizer_config.json", lambda v: _keep_settings(v, grown))
    _change(folder / "special_tokens_map.json", lambda v: v.update(pad_token=grown.pad_token))


def _change(path: Path, change: Any) -> None:
    if path.is_file():
        values = json.loads(path.read_text(encoding="utf-8"))
        change(values)
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _keep_tokens(values: dict[str, Any], gone: tuple[str, ...]) -> None:
    values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] not in gone]


def _keep_settings(values: dict[str, Any], grown: Grown) -> None:
    known = values.get("added_tokens_decoder", {})
    for number in [n for n, token in known.items() if token["content"] in grown.tokens]:
        del known[number]
    for key in ("extra_special_tokens", "additional_special_tokens"):
        if isinstance(values.get(key), list):
            values[key] = [token for token in values[key] if token not in grown.tokens]
    for key in ("image_token", "processor_class"):
        values.pop(key, None)
    values["pad_token"] = grown.pad_token


def write_image_processor(files: Path, folder: Path) -> None:
    """Write preprocessor_config.json alone, naming the class that every transformers has."""
    from llava.model.vision import load_processor

    processor = load_processor(str(files))
    values = dict(json.loads(processor.to_json_string()))
    for key in ("do_pad", "processor_class"):
        values.pop(key, None)
    values["image_processor_type"] = plain_name(processor)
    text = json.dumps(values, indent=2, sort_keys=True) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")


def plain_name(processor: Any) -> str:
    """Name of an image processor's class in every transformers."""
    return type(processor).__name__.removesuffix("Pil")


def projector_weights(what: str, weights: Weights, names: dict[str, str]) -> Weights:
    """A projector's weights under our names.

    Args:
        names: theirs to ours.

    Raises:
        WeightsError: one is missing, left over or of another shape than a two-layer projector has.
    """
    renamed = {names.get(name, name): weight for name, weight in weights.items()}
    first = renamed.get("linear_1.weight")
    language, vision = first.shape if first is not None and len(first.shape) == 2 else (1, 1)
    with torch.device("meta"):
        wanted = Projector(vision, language).state_dict()
    check_weights(f"projector {what}", wanted, renamed)
    return {name: renamed[name] for name in wanted}
