"""Tiny models of every kind in the zoo, in the layouts that their makers publish: random weights, written here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

INTERNLM2: dict[str, Any] = {
    "architectures": ["InternLM2ForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"},
    "model_type": "internlm2",
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "bias": False,
    "rope_theta": 1000000,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "torch_dtype": "float32",
}
INTERNLM: dict[str, Any] = {
    **{key: value for key, value in INTERNLM2.items() if key not in ("num_key_value_heads", "rope_theta")},
    "architectures": ["InternLMForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_internlm.InternLMForCausalLM"},
    "model_type": "internlm",
    "rms_norm_eps": 1e-6,
    "bias": True,
    "rotary": {"type": "dynamic", "base": 10000},
}
del INTERNLM["rope_scaling"]


def internlm2_state(config: dict[str, Any], seed: int = 3) -> dict[str, Tensor]:
    """Random weights under InternLM2's names."""
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    head = hidden // config["num_attention_heads"]
    fused = (config["num_attention_heads"] + 2 * config["num_key_value_heads"]) * head
    shapes: dict[str, tuple[int, ...]] = {"model.tok_embeddings.weight": (config["vocab_size"], hidden)}
    for n in range(layers):
        at = f"model.layers.{n}."
        shapes |= {f"{at}attention.wqkv.weight": (fused, hidden), f"{at}attention.wo.weight": (hidden, hidden)}
        if config["bias"]:
            shapes |= {f"{at}attention.wqkv.bias": (fused,), f"{at}attention.wo.bias": (hidden,)}
        shapes |= {f"{at}feed_forward.{w}.weight": (inner, hidden) for w in ("w1", "w3")}
        shapes[f"{at}feed_forward.w2.weight"] = (hidden, inner)
        shapes |= {f"{at}{norm}.weight": (hidden,) for norm in ("attention_norm", "ffn_norm")}
    shapes |= {"model.norm.weight": (hidden,), "output.weight": (config["vocab_size"], hidden)}
    return random_state(shapes, seed)


def internlm_state(config: dict[str, Any], seed: int = 4) -> dict[str, Tensor]:
    """Random weights under InternLM 1's names, with the buffer that its folders carry."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for n in range(config["num_hidden_layers"]):
        at = f"model.layers.{n}."
        for p in "qkvo":
            shapes |= {f"{at}self_attn.{p}_proj.weight": (hidden, hidden), f"{at}self_attn.{p}_proj.bias": (hidden,)}
        shapes |= {f"{at}mlp.{w}_proj.weight": (inner, hidden) for w in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{at}{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes[f"{at}self_attn.rotary_emb.inv_freq"] = (hidden // config["num_attention_heads"] // 2,)
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (config["vocab_size"], hidden)}
    return random_state(shapes, seed)


def random_state(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Weights large enough that every one of them shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    scale = {1: 0.3, 2: 0.15}
    return {
        name: torch.randn(shape, generator=generator) * scale[len(shape)] + ("norm" in name)
        for name, shape in shapes.items()
    }


def write_folder(folder: Path, config: dict[str, Any], state: dict[str, Tensor], files: int = 1) -> Path:
    """A Hugging Face folder of one safetensors file, or of several with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if files == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    places = {name: f"model-{n % files + 1:05d}-of-{files:05d}.safetensors" for n, name in enumerate(state)}
    for file in set(places.values()):
        save_file({n: t for n, t in state.items() if places[n] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def internlm2_logits(config: dict[str, Any], state: dict[str, Tensor], ids: Tensor) -> Tensor:
    """InternLM2's forward pass from its definition, one head at a time: (T,) to (T, V)."""
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    width, per_group = config["hidden_size"] // heads, heads // shared
    rotation = rotations(config, len(ids), config["rope_theta"], config["rope_scaling"], width)
    x = state["model.tok_embeddings.weight"][ids]
    for n in range(config["num_hidden_layers"]):
        layer = {name.split(".", 3)[3]: t for name, t in state.items() if name.startswith(f"model.layers.{n}.")}
        y = rms(x, layer["attention_norm.weight"], config)
        fused = functional.linear(y, layer["attention.wqkv.weight"], layer.get("attention.wqkv.bias"))
        seen = []
        for group in range(shared):  # [q, q, ..., k, v] of one key head after the other
            start = group * (per_group + 2) * width
            pieces = [fused[:, start + i * width : start + (i + 1) * width] for i in range(per_group + 2)]
            *queries, key, value = pieces
            seen += [attend(q, key, value, rotation) for q in queries]
        x = x + functional.linear(torch.cat(seen, -1), layer["attention.wo.weight"], layer.get("attention.wo.bias"))
        x = x + swiglu(rms(x, layer["ffn_norm.weight"], config), *(layer[f"feed_forward.{w}.weight"] for w in W123))
    return rms(x, state["model.norm.weight"], config) @ state["output.weight"].T


W123 = ("w1", "w3", "w2")


def internlm_logits(config: dict[str, Any], state: dict[str, Tensor], ids: Tensor) -> Tensor:
    """InternLM 1's forward pass from its definition: (T,) to (T, V)."""
    heads, width = config["num_attention_heads"], config["hidden_size"] // config["num_attention_heads"]
    scaling = {"type": config["rotary"]["type"], "factor": config["rotary"].get("scaling_factor", 1.0)}
    rotation = rotations(config, len(ids), config["rotary"]["base"], scaling, width)
    x = state["model.embed_tokens.weight"][ids]
    for n in range(config["num_hidden_layers"]):
        layer = {name.split(".", 3)[3]: t for name, t in state.items() if name.startswith(f"model.layers.{n}.")}

        def project(values: Tensor, name: str, layer: dict[str, Tensor] = layer) -> Tensor:
            return functional.linear(values, layer[f"self_attn.{name}.weight"], layer[f"self_attn.{name}.bias"])

        y = rms(x, layer["input_layernorm.weight"], config)
        q, k, v = (project(y, f"{p}_proj").split(width, -1) for p in "qkv")
        x = x + project(torch.cat([attend(q[h], k[h], v[h], rotation) for h in range(heads)], -1), "o_proj")
        gate, up, down = (layer[f"mlp.{w}_proj.weight"] for w in ("gate", "up", "down"))
        x = x + swiglu(rms(x, layer["post_attention_layernorm.weight"], config), gate, up, down)
    return rms(x, state["model.norm.weight"], config) @ state["lm_head.weight"].T


def rms(x: Tensor, weight: Tensor, config: dict[str, Any]) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + config["rms_norm_eps"]) * weight


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


def rotations(
    config: dict[str, Any], length: int, base: float, scaling: dict[str, Any] | None, width: int
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, width / 2); dynamic NTK raises the base past the trained length."""
    longest, steps = config["max_position_embeddings"], torch.arange(length, dtype=torch.float32)
    if scaling is not None and scaling["type"] == "dynamic" and length > longest:
        factor = scaling["factor"]
        base = base * (factor * length / longest - (factor - 1)) ** (width / (width - 2))
    if scaling is not None and scaling["type"] == "linear":
        steps = steps / scaling["factor"]
    angles = steps[:, None] * base ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
    return angles.cos(), angles.sin()


def attend(query: Tensor, key: Tensor, value: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """One causal head, (T, width) each, positions turned in pairs (i, i + width / 2)."""
    query, key = turn(query, rotation), turn(key, rotation)
    scores = query @ key.T / query.shape[-1] ** 0.5
    future = torch.ones_like(scores).triu(1).bool()
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ value


def turn(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    left, right = x.chunk(2, -1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


CHAT_TOKENS = ["<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>"]
"""InternLM2's, in the order of their ids at the end of the vocabulary."""


def build_sentencepiece(
    folder: Path,
    settings: dict[str, Any],
    wholes: list[str] | None = None,
    replaced: list[str] | None = None,
    **changes: Any,
) -> Path:
    """``tokenizer.model``, trained here as Llama's was, and ``tokenizer_config.json``.

    Args:
        wholes: symbols that the model never cuts (InternLM's <eoh>).
        replaced: tokens that stand in place of the model's last pieces (InternLM2's <|im_start|>).
    """
    import io

    import sentencepiece

    from tests.llava.conftest import CORPUS

    unused = [f"[UNUSED_TOKEN_{n}]" for n in range(len(replaced or []))]
    written = io.BytesIO()
    values: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 360 + len(wholes or []) + len(unused),
        "byte_fallback": True,
        "character_coverage": 1.0,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "minloglevel": 2,
        "hard_vocab_limit": False,
        "user_defined_symbols": [*(wholes or []), *unused],
        **changes,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=written, **values)
    folder.mkdir(parents=True, exist_ok=True)
    model = written.getvalue()
    if replaced:
        model, numbers = _move_to_the_end(model, unused)
        decoder = {str(n): {"content": name, "special": True} for n, name in zip(numbers, replaced, strict=True)}
        settings = {**settings, "added_tokens_decoder": decoder}
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def _move_to_the_end(model: bytes, names: list[str]) -> tuple[bytes, range]:
    """The trainer puts its user's symbols in front; InternLM2 has them last, as ordinary pieces of low score."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    kept = [piece for piece in proto.pieces if piece.piece not in names]
    del proto.pieces[:]
    proto.pieces.extend(kept)
    for name in names:
        proto.pieces.add(piece=name, score=-1e6, type=1)
    return proto.SerializeToString(), range(len(kept), len(kept) + len(names))


def build_siglip(folder: Path, whole: bool = True, side: int = 32, patch: int = 8) -> Path:
    """A SigLIP of three layers, 64 wide, with its text half as on the hub, or the tower alone."""
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    torch.manual_seed(7)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = {**shape, "vocab_size": 50, "num_hidden_layers": 1, "projection_size": 64}
    model = SiglipModel(
        SiglipConfig(text_config=text, vision_config={**shape, "image_size": side, "patch_size": patch})
    )
    for parameter in model.vision_model.post_layernorm.parameters():
        torch.nn.init.normal_(parameter)  # so that it shows where it is applied
    (model if whole else model.vision_model).save_pretrained(folder)
    # SigLIP2's resampling; SigLIP's is bicubic.
    SiglipImageProcessorPil(size={"height": side, "width": side}, resample=2).save_pretrained(folder)
    return folder


def build_kind(folder: Path, kind: str) -> Path:
    """A tiny language model of one kind of the zoo, with a tokenizer: two layers, 64 wide, 400 tokens."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.llava.conftest import build_tokenizer

    if kind == "internlm2":
        build_sentencepiece(folder, {"pad_token": "</s>"}, replaced=CHAT_TOKENS)
        return write_folder(folder, INTERNLM2, internlm2_state(INTERNLM2))
    if kind == "internlm":
        build_sentencepiece(folder, {"pad_token": "</s>"}, wholes=["<eoh>", "<eoa>"])
        return write_folder(folder, INTERNLM, internlm_state(INTERNLM))
    build_tokenizer(folder)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**KINDS[kind]))
    model.save_pretrained(folder)
    return folder


_SHAPE: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
KINDS: dict[str, dict[str, Any]] = {
    "vicuna": {**_SHAPE, "model_type": "llama", "num_key_value_heads": 4},
    "llama3": {
        **_SHAPE,
        "model_type": "llama",
        "rope_parameters": {**_LLAMA3, "high_freq_factor": 4.0, "original_max_position_embeddings": 256},
    },
    "phi3": {**_SHAPE, "model_type": "phi3", "num_key_value_heads": 4, "sliding_window": 20},
    "qwen2": {**_SHAPE, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {**_SHAPE, "model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
}
"""Their configs, small: Llama 3 with its scaled positions, Qwen's tied heads, Phi 3 with a window."""
