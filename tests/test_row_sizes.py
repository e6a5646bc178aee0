"""How many weights each row of the zoo trains: its recipe, resolved, on models of the real shapes without values."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.runs import prepare
from llava.config import ModelConfig, TrainingConfig
from llava.model.adapters import add_lora
from llava.model.join import LlavaModel
from llava.model.projector import Projector
from llava.model.vision import VisionTower
from llava.optim import groups

# The models' own config.json. InternLM and InternLM2 in Llama's layout: the same weights under other names.
LLAMA = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
LANGUAGES: dict[str, dict[str, Any]] = {
    "vicuna-7b-v1.5": {**LLAMA, "num_attention_heads": 32},
    "vicuna-13b-v1.5": {
        **LLAMA,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
    "internlm-chat-7b": {**LLAMA, "vocab_size": 103168, "num_attention_heads": 32, "attention_bias": True},
    "internlm2-chat-7b": {
        **LLAMA,
        "vocab_size": 92544,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "internlm2-chat-20b": {
        "vocab_size": 92544,
        "hidden_size": 6144,
        "intermediate_size": 16384,
        "num_hidden_layers": 48,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
    },
    "Meta-Llama-3-8B-Instruct": {
        **LLAMA,
        "vocab_size": 128256,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "Phi-3-mini-4k-instruct": {
        **LLAMA,
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "pad_token_id": None,
    },
    "Qwen3-1.7B": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
}
TOWERS = {
    "clip-vit-large-patch14-336": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24},
    # Frozen, so only its width counts here.
    "siglip2-so400m-patch16-384": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27},
}

# Projectors: 20.98, 31.47, 44.05 M for widths 4096, 5120, 6144; adapters: 1.279, 2.003, 0.320 B and 28.3 M for a tower
# of 24 layers. Here the tower's last layer has none (layer -2 is used, so they would never get a gradient): 23/24.
P4096, P5120, P6144, P3072, P2048 = 20_979_712, 31_467_520, 44_052_480, 12_589_056, 6_557_696
TOWER_LORA = 28_311_552 * 23 // 24
# XTuner's InternLM2 has query, key and value in one matrix, with 1.208 B (7B) and 2.315 B (20B) in adapters of rank
# 512, and 0.05 B more on the head by an accident of naming. In Llama's layout each of the three has its own.
INTERNLM2_7B, INTERNLM2_20B = 1_342_177_280, 2_617_245_696
TRAINED: dict[str, dict[str, int]] = {
    "pretrain": {"projector": P4096},
    "finetune": {"vision": TOWER_LORA, "projector": P4096, "language": 1_279_262_720},
    "llava-v1.5-13b/pretrain": {"projector": P5120},
    "llava-v1.5-13b/finetune": {"vision": TOWER_LORA, "projector": P5120, "language": 2_002_780_160},
    "internlm-7b/pretrain": {"projector": P4096},
    "internlm-7b/finetune": {"vision": TOWER_LORA, "projector": P4096, "language": 1_279_262_720},
    "internlm2-7b/pretrain": {"projector": P4096},
    "internlm2-7b/finetune": {"vision": TOWER_LORA, "projector": P4096, "language": INTERNLM2_7B},
    "internlm2-20b/pretrain": {"projector": P6144},
    "internlm2-20b/finetune": {"vision": TOWER_LORA, "projector": P6144, "language": INTERNLM2_20B},
    "aligned-7b/pretrain": {"projector": P4096},
    "aligned-7b/finetune": {"projector": P4096, "language": 6_738_415_616},
    "official-7b/pretrain": {"projector": P4096},
    "official-7b/finetune": {"projector": P4096, "language": 6_738_415_616},
    "official-7b-lora/pretrain": {"projector": P4096},
    "official-7b-lora/finetune": {"projector": P4096, "language": 319_815_680},
    "llama-3-8b/pretrain": {"projector": P4096},
    "llama-3-8b/finetune": {"vision": TOWER_LORA, "projector": P4096, "language": 8_030_261_248},
    "phi-3-mini/pretrain": {"projector": P3072},
    "phi-3-mini/finetune": {"vision": 290_909_184, "projector": P3072, "language": 3_821_079_552},
    "phi-3-mini-665k/pretrain": {"projector": P3072},
    "phi-3-mini-665k/finetune": {"projector": P3072, "language": 3_821_079_552},
    "qwen3-1.7b/pretrain": {"projector": P2048},
    "qwen3-1.7b/finetune": {"projector": P2048, "language": 1_720_574_976},
}


def language(name: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    kinds = {"Phi-3": (Phi3ForCausalLM, Phi3Config), "Qwen3": (Qwen3ForCausalLM, Qwen3Config)}
    model, config = kinds.get(name[:5], (LlamaForCausalLM, LlamaConfig))
    return model(config(**LANGUAGES[name]))


def tower(name: str) -> VisionTower:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(**TOWERS[name], num_attention_heads=16, image_size=336, patch_size=14)
    return VisionTower(CLIPVisionModel(config), -2, [0.5] * 3, [0.5] * 3)


@cache
def resolved(name: str) -> dict[str, Any]:
    return next(iter(prepare(name, None, "x", []).plan.configs.values()))


def shaped(model: ModelConfig) -> LlavaModel:
    """The model of a recipe as ``llava.model.load.build`` prepares it, but with shapes alone."""
    vision, llm = tower(Path(model.vision.path).name), language(Path(model.language.path).name)
    for part, config, layers in (
        (vision.clip, model.vision, len(vision.clip.encoder.layers)),
        (llm, model.language, None),
    ):
        if config.tuning == "lora":
            add_lora(part, config.lora, layers)
        else:
            part.requires_grad_(config.tuning == "full")
    vision.clip.post_layernorm.requires_grad_(False)
    return LlavaModel(vision, Projector(vision.width, llm.config.hidden_size), llm)


@pytest.mark.parametrize("name", TRAINED)
def test_a_row_trains_what_its_source_trains(name: str) -> None:
    config = resolved(name)
    model, train = ModelConfig(**config["model"]), TrainingConfig(**config["train"])
    with torch.device("meta"):
        found = groups(shaped(model), model, train)
    assert {group.part: group.size for group in found} == TRAINED[name]
    rates = {group.part: group.learning_rate for group in found}
    own = {"projector": 2e-5} if name == "official-7b-lora/finetune" else {}
    assert rates == {part: own.get(part, config["train"]["learning_rate"]) for part in rates}


def test_the_table_names_every_row() -> None:
    from launcher.recipe import load
    from launcher.shipped import recipe_names

    assert set(TRAINED) == {name for name in recipe_names() if load(name).kind == "train"}


def test_the_sources_rounded_numbers() -> None:
    """XTuner's adapters and projectors as they were reckoned from its configs."""
    assert [round(p / 1e6, 2) for p in (P4096, P5120, P6144)] == [20.98, 31.47, 44.05]
    adapters = [TRAINED[name]["language"] for name in ("finetune", "llava-v1.5-13b/finetune")]
    assert [round(size / 1e9, 3) for size in adapters] == [1.279, 2.003]
    assert round(TRAINED["official-7b-lora/finetune"]["language"] / 1e9, 3) == 0.320
    assert round(TOWER_LORA * 24 / 23 / 1e6, 1) == 28.3


@pytest.mark.parametrize(("name", "published"), [("internlm2-chat-7b", 1.26e9), ("internlm2-chat-20b", 2.37e9)])
def test_internlm2_differs_by_the_fused_matrix_and_the_head_alone(name: str, published: float) -> None:
    """XTuner: wqkv, wo, w1, w2, w3 and output. Here: query, key and value apart, and no adapter on the head."""
    shape, rank = LANGUAGES[name], 512
    width, inner, layers, vocabulary = (
        shape[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    )
    keys = shape["num_key_value_heads"] * (width // shape["num_attention_heads"])
    rest = 2 * width + 3 * (width + inner)
    fused = rank * (layers * (width + (width + 2 * keys) + rest) + width + vocabulary)
    apart = rank * layers * (2 * width + 2 * (width + keys) + rest)
    assert fused == pytest.approx(published, rel=0.003)
    assert apart == {"internlm2-chat-7b": INTERNLM2_7B, "internlm2-chat-20b": INTERNLM2_20B}[name]
