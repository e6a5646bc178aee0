"""Tiny bases and records that every test of the runtime shares: made once a session, never downloaded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

# Two cores are shared with others; and nothing here may reach for a hub.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What DeepSpeed compiles (a minute) is kept where the user keeps it, though every test has a home of its own.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", os.path.expanduser("~/.cache/torch_extensions/llavajob-tests"))

import pytest

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "white": (240, 240, 240)}
SPECIALS = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<eoa>", "<eoh>"]
CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: ASSISTANT: user assistant system",
    "What colour is it? It is red. It is green. It is blue. It is white. How many are there? one two three",
    "Tell me a word. a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9",
] * 4


def build_tokenizer(folder: Path) -> Any:
    """A byte-level BPE with Llama's special tokens, trained here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_language(folder: Path, **changes: Any) -> Path:
    """A Llama of two layers, 64 wide."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer(folder)
    torch.manual_seed(1)
    values = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.1,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **changes,
    }
    LlamaForCausalLM(LlamaConfig(**values)).save_pretrained(folder)
    return folder


def build_vision(folder: Path) -> Path:
    """A CLIP tower of three layers, 64 wide, on pictures of 32 x 32 in patches of 8: 16 features a picture."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(2)
    config = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        projection_dim=32,
    )
    CLIPVisionModel(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


def build_records(folder: Path, count: int = 24, text_only_every: int = 4) -> Path:
    """``records.json`` and ``images/``: squares of one colour, of several sizes; every fourth record is text alone."""
    from PIL import Image

    (folder / "images").mkdir(parents=True)
    records: list[dict[str, Any]] = []
    for number in range(count):
        colour = list(COLOURS)[number % len(COLOURS)]
        asked = {"from": "human", "value": "Tell me a word."}
        told = {"from": "gpt", "value": "word " * (number % 5 + 1) + colour}
        record: dict[str, Any] = {"id": f"r{number}", "conversations": [asked, told]}
        if number % text_only_every != text_only_every - 1:
            name = f"{number:03d}.png"
            Image.new("RGB", (30 + number, 40), COLOURS[colour]).save(folder / "images" / name)
            record["image"] = name
            asked["value"] = "<image>\nWhat colour is it?" if number % 2 else "What colour is it?\n<image>"
            told["value"] = f"It is {colour}."
            if number % 3 == 0:
                record["conversations"] += [
                    {"from": "human", "value": "How many are there?"},
                    {"from": "gpt", "value": "one"},
                ]
        records.append(record)
    (folder / "records.json").write_text(json.dumps(records))
    return folder


@pytest.fixture(scope="session")
def tiny_language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Llama with its tokenizer."""
    return build_language(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="session")
def tiny_vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny CLIP tower with its image processor."""
    return build_vision(tmp_path_factory.mktemp("vision"))


@pytest.fixture(scope="session")
def tiny_records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``records.json`` (24 records, 6 of them text alone) and ``images/``."""
    return build_records(tmp_path_factory.mktemp("data") / "tiny")
