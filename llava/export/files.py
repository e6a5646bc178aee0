"""What stands beside the weights of a Hugging Face LLaVA: config, tokenizer, processor, generation settings."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

from llava.export.architecture import architecture
from llava.export.bodies import copy_tokenizer, name_tokenizer, plain_name, unquantised
from llava.export.chat_template import chat_template
from llava.export.parts import Body
from llava.model.language import load_tokenizer
from llava.model.load import Square
from llava.model.vision import has_class_token, load_processor
from llava.templates import IMAGE_TAG, get

PAD_TAG = "<pad>"
_ROWS_MULTIPLE = 64
"""A grown vocabulary is a multiple of this, as in the hub's LLaVA folders (32,000 becomes 32,064)."""


def with_specials(tokenizer: Any) -> Any:
    """A copy with ``<image>`` and, where padding has no token of its own, ``<pad>``."""
    from tokenizers import AddedToken

    grown = copy.deepcopy(tokenizer)
    grown.add_tokens([AddedToken(IMAGE_TAG, special=True, normalized=False)], special_tokens=True)
    if grown.pad_token is None or grown.pad_token in (grown.eos_token, grown.unk_token):
        grown.add_special_tokens({"pad_token": PAD_TAG})
    return grown


def vocabulary(rows: int, tokenizer: Any) -> int:
    """Embedding rows after growing; as many as before where the tokens fit."""
    return rows if len(tokenizer) <= rows else -(-len(tokenizer) // _ROWS_MULTIPLE) * _ROWS_MULTIPLE


def tokenizer_of(body: Body) -> Any:
    """A language model's tokenizer, without what an earlier export added to it.

    It is read from a copy, since the whole model's config beside it would mislead transformers.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy_tokenizer(body, Path(folder))
        (Path(folder) / "config.json").write_text(json.dumps({"model_type": body.config.model_type}), encoding="utf-8")
        return load_tokenizer(folder)


def model_config(language: Body, vision: Body, layer: int, tokenizer: Any, rows: int, dtype: str) -> Any:
    """A ``LlavaConfig`` for the weights.

    Args:
        layer: index of the tower's hidden state that is used.
        tokenizer: with its special tokens.
        rows: vocabulary after growing.
        dtype: torch's name of the written number format.
    """
    from transformers import LlavaConfig

    text, tower = unquantised(language.config), unquantised(vision.config)
    text.architectures, tower.architectures = [architecture("language", text)], [architecture("vision", tower)]
    text.vocab_size, text.pad_token_id, text.use_cache = rows, tokenizer.pad_token_id, True
    config = LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TAG),
        vision_feature_layer=layer,
        vision_feature_select_strategy=select_strategy(tower),
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        image_seq_length=(tower.image_size // tower.patch_size) ** 2,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=bool(text.tie_word_embeddings),
        architectures=["LlavaForConditionalGeneration"],
    )
    config.dtype = config.text_config.dtype = config.vision_config.dtype = dtype
    return config


def select_strategy(tower: Any) -> str:
    """What of a tower's hidden state is used: all of it, or (default) all but CLIP's class token."""
    return "default" if has_class_token(tower) else "full"


def write_processor(folder: Path, vision: Body, tokenizer: Any, template: str | None, square: Square) -> None:
    """Tokenizer, image processor and chat template, as one ``LlavaProcessor``.

    Args:
        template: the conversation template's name; None: the tokenizer's own chat template stays.
    """
    from transformers import LlavaProcessor

    if template is not None:
        tokenizer.chat_template = chat_template(get(template), tokenizer.bos_token is not None)
    pictures = load_processor(str(vision.files))
    processor = LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=vision.config.patch_size,
        vision_feature_select_strategy=select_strategy(vision.config),
        image_token=IMAGE_TAG,
        num_additional_image_tokens=int(has_class_token(vision.config)),
        chat_template=tokenizer.chat_template,
    )
    processor.save_pretrained(folder)
    pictures.save_pretrained(folder)
    _name_image_processor(folder, plain_name(pictures), square)
    name_tokenizer(folder)


def _name_image_processor(folder: Path, name: str, square: str) -> None:
    """Name a class that every transformers has, and make it pad where training did."""
    changes: dict[str, Any] = {"image_processor_type": name}
    if square == "pad":
        changes = {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    alone, joint = folder / "preprocessor_config.json", folder / "processor_config.json"
    values = json.loads(alone.read_text(encoding="utf-8"))
    # SigLIP's have no crop and do not say so; LLaVA's crops unless it is told.
    changes |= {"do_center_crop": values.get("do_center_crop") or False, "processor_class": "LlavaProcessor"}
    values |= changes
    alone.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    values = json.loads(joint.read_text(encoding="utf-8"))
    # Only version 5 reads it here, and version 4 fails on it; both read preprocessor_config.json.
    values.pop("image_processor", None)
    joint.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def write_generation(folder: Path, tokenizer: Any, template: str | None) -> None:
    """Greedy generation that ends where the template's answers end."""
    from transformers import GenerationConfig

    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for word in get(template).stop_words if template else ():
        ids = tokenizer.encode(word, add_special_tokens=False)
        if len(ids) == 1 and ids[0] not in (*ends, tokenizer.unk_token_id):
            ends.append(ids[0])
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, do_sample=False
    ).save_pretrained(folder)
