"""How many weights train in each row of the zoo, counted on models of the real sizes that hold no memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel

from llava.config import LoraConfig
from llava.model.adapters import add_lora
from llava.model.internlm import is_internlm, llama_config
from llava.model.load import trainable
from llava.model.projector import Projector
from llava.model.vision import VisionTower

LLAMA = {"model_type": "llama", "tie_word_embeddings": False}
INTERNLM2 = {"model_type": "internlm2", "bias": False, "vocab_size": 92544, "num_key_value_heads": 8}
LANGUAGE: dict[str, dict[str, Any]] = {
    "vicuna-7b-v1.5": {
        **LLAMA,
        **dict(vocab_size=32000, hidden_size=4096, intermediate_size=11008, layers=32, heads=32),
    },
    "vicuna-13b-v1.5": {
        **LLAMA,
        **dict(vocab_size=32000, hidden_size=5120, intermediate_size=13824, layers=40, heads=40),
    },
    "internlm-chat-7b": dict(
        model_type="internlm", vocab_size=103168, hidden_size=4096, intermediate_size=11008, layers=32, heads=32
    ),
    "internlm2-chat-7b": {**INTERNLM2, **dict(hidden_size=4096, intermediate_size=14336, layers=32, heads=32)},
    "internlm2-chat-20b": {**INTERNLM2, **dict(hidden_size=6144, intermediate_size=16384, layers=48, heads=48)},
    "Meta-Llama-3-8B-Instruct": {
        **LLAMA,
        **dict(
            vocab_size=128256, hidden_size=4096, intermediate_size=14336, layers=32, heads=32, num_key_value_heads=8
        ),
    },
    "Phi-3-mini-4k-instruct": dict(
        model_type="phi3", vocab_size=32064, hidden_size=3072, intermediate_size=8192, layers=32, heads=32
    ),
}
"""Sizes from their config.json."""


def language(name: str) -> Any:
    values = {**LANGUAGE[name]}
    values["num_hidden_layers"], values["num_attention_heads"] = values.pop("layers"), values.pop("heads")
    if is_internlm(values):
        values = {"model_type": "llama", **llama_config(values)}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))


def clip() -> VisionTower:
    """openai/clip-vit-large-patch14-336."""
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    with torch.device("meta"):
        model = CLIPVisionModel(CLIPVisionConfig(**shape, image_size=336, patch_size=14))
    return VisionTower(model, -2, [0.5] * 3, [0.5] * 3)


def trains(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in trainable(model).values())


def with_lora(name: str, rank: int, head: bool = False) -> int:
    model = language(name)
    with torch.device("meta"):
        add_lora(model, LoraConfig(rank=rank, alpha=256, head=head))
    return trains(model)


def billions(count: int) -> str:
    return f"{count / 1e9:.3f}"


@pytest.mark.parametrize(("hidden", "millions"), [(4096, "20.98"), (5120, "31.47"), (6144, "44.05")])
def test_the_projector(hidden: int, millions: str) -> None:
    with torch.device("meta"):
        assert f"{trains(Projector(1024, hidden)) / 1e6:.2f}" == millions


def test_the_tower_and_its_adapters() -> None:
    tower = clip()
    assert (tower.patches, tower.width, tower.side, 2048 - tower.patches) == (576, 1024, 336, 1472)
    assert sum(p.numel() for p in tower.parameters()) + sum(
        p.numel() for u in tower._unused for p in u.parameters()
    ) == (303_507_456)
    with torch.device("meta"):
        add_lora(tower.clip, LoraConfig(rank=64, alpha=16), layers=23)
    # XTuner's 28.3 M count the last of 24 layers, which layer -2 never uses: 12 weights that get no gradient.
    a_layer = 64 * (4 * (1024 + 1024) + 2 * (1024 + 4096))
    assert f"{24 * a_layer / 1e6:.1f}" == "28.3"
    assert trains(tower) == 23 * a_layer == 27_131_904
    assert len(trainable(tower)) == 23 * 12


COUNTS: list[tuple[str, Callable[[], int], str]] = [
    ("vicuna 7B, r512", lambda: with_lora("vicuna-7b-v1.5", 512), "1.279"),
    ("vicuna 13B, r512", lambda: with_lora("vicuna-13b-v1.5", 512), "2.003"),
    ("vicuna 7B, r128", lambda: with_lora("vicuna-7b-v1.5", 128), "0.320"),
    ("InternLM 7B, r512", lambda: with_lora("internlm-chat-7b", 512), "1.279"),
    ("InternLM2 7B, r512", lambda: with_lora("internlm2-chat-7b", 512), "1.208"),
    ("InternLM2 7B, r512 and head", lambda: with_lora("internlm2-chat-7b", 512, head=True), "1.257"),
    ("InternLM2 20B, r512", lambda: with_lora("internlm2-chat-20b", 512), "2.315"),
    ("InternLM2 20B, r512 and head", lambda: with_lora("internlm2-chat-20b", 512, head=True), "2.366"),
    ("vicuna 7B in full", lambda: trains(language("vicuna-7b-v1.5")), "6.738"),
    ("Llama 3 8B in full", lambda: trains(language("Meta-Llama-3-8B-Instruct")), "8.030"),
    ("Phi 3 mini in full", lambda: trains(language("Phi-3-mini-4k-instruct")), "3.821"),
]


@pytest.mark.parametrize(("count", "expected"), [row[1:] for row in COUNTS], ids=[row[0] for row in COUNTS])
def test_the_language_model(count: Callable[[], int], expected: str) -> None:
    assert billions(count()) == expected


@pytest.mark.parametrize("name", ["internlm2-chat-7b", "internlm2-chat-20b"])
def test_internlm2_has_as_many_adapters_as_on_its_own_layers(name: str) -> None:
    """Adapters on wqkv, wo, w1, w2, w3 (and output), from their shapes."""
    values = LANGUAGE[name]
    hidden, inner, width = values["hidden_size"], values["intermediate_size"], values["hidden_size"] // values["heads"]
    fused = (values["heads"] + 2 * values["num_key_value_heads"]) * width
    layer = (hidden + fused) + (hidden + hidden) + 3 * (hidden + inner)
    assert with_lora(name, 512) == 512 * layer * values["layers"]
    assert with_lora(name, 512, head=True) == 512 * (layer * values["layers"] + hidden + values["vocab_size"])
