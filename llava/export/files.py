"""What stands beside the weights: config, tokenizer, processor, generation settings, our own manifest."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from llava.export.chat_template import chat_template
from llava.model.load import Loaded
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


def model_config(loaded: Loaded, tokenizer: Any, rows: int, dtype: str) -> Any:
    """A ``LlavaConfig`` for the weights.

    Args:
        loaded: the model.
        tokenizer: with its special tokens.
        rows: vocabulary after growing.
        dtype: torch's name of the written number format.
    """
    from transformers import LlavaConfig

    vision, text = loaded.model.vision, _unquantised(loaded.model.language.config)
    text.vocab_size, text.pad_token_id, text.use_cache = rows, tokenizer.pad_token_id, True
    config = LlavaConfig(
        vision_config=_unquantised(vision.clip.config),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TAG),
        vision_feature_layer=loaded.config.vision.layer,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        image_seq_length=vision.patches,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=bool(text.tie_word_embeddings),
        architectures=["LlavaForConditionalGeneration"],
    )
    config.dtype = config.text_config.dtype = config.vision_config.dtype = dtype
    return config


def _unquantised(config: Any) -> Any:
    plain = copy.deepcopy(config)
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    plain._name_or_path = ""
    return plain


def write_processor(folder: Path, loaded: Loaded, tokenizer: Any) -> None:
    """Tokenizer, image processor and chat template, as one ``LlavaProcessor``."""
    from transformers import LlavaProcessor

    template = get(loaded.config.template)
    text = chat_template(template, tokenizer.bos_token is not None)
    tokenizer.chat_template = text
    processor = LlavaProcessor(
        image_processor=loaded.processor,
        tokenizer=tokenizer,
        patch_size=loaded.model.vision.clip.config.patch_size,
        vision_feature_select_strategy="default",
        image_token=IMAGE_TAG,
        num_additional_image_tokens=1,  # CLIP's class token, which "default" drops again
        chat_template=text,
    )
    processor.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    _name_image_processor(folder, loaded.square)


def _name_image_processor(folder: Path, square: str) -> None:
    """Name a class that every transformers has, and make it pad where training did."""
    changes: dict[str, Any] = {"image_processor_type": "CLIPImageProcessor"}
    if square == "pad":
        changes = {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    alone, joint = folder / "preprocessor_config.json", folder / "processor_config.json"
    values = json.loads(alone.read_text(encoding="utf-8")) | changes | {"processor_class": "LlavaProcessor"}
    alone.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    values = json.loads(joint.read_text(encoding="utf-8"))
    # Only version 5 reads it here, and version 4 fails on it; both read preprocessor_config.json.
    values.pop("image_processor", None)
    joint.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def write_for_older_readers(folder: Path) -> None:
    """Say in transformers 4's words what transformers 5 writes in its own; both read the result.

    Without this, version 4 would quietly take rope's default base of 10,000, and not know the tokenizer's class.
    """
    config = folder / "config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    rope = dict(values["text_config"].get("rope_parameters") or {})
    if "rope_theta" in rope:
        values["text_config"]["rope_theta"] = rope.pop("rope_theta")
        if rope.get("rope_type", "default") != "default":
            values["text_config"]["rope_scaling"] = rope
        config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    tokenizer = folder / "tokenizer_config.json"
    if (folder / "tokenizer.json").exists():
        # This class takes tokenizer.json as it is; Llama's own would be built anew and split some texts differently.
        values = json.loads(tokenizer.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        tokenizer.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_generation(folder: Path, loaded: Loaded, tokenizer: Any) -> None:
    """Greedy generation that ends where the template's answers end."""
    from transformers import GenerationConfig

    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for word in get(loaded.config.template).stop_words:
        ids = tokenizer.encode(word, add_special_tokens=False)
        if len(ids) == 1 and ids[0] not in (*ends, tokenizer.unk_token_id):
            ends.append(ids[0])
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, do_sample=False
    ).save_pretrained(folder)
