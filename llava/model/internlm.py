"""InternLM and InternLM2 as Llama: the same network under other names, so that none of their own code has to run.

InternLM 1 is Llama with biases on q, k, v and o. InternLM2 fuses q, k and v in ``wqkv``, whose rows are grouped by key
head: the query heads that share it, then the key head, then the value head (InternLM2 Technical Report, arXiv
2403.17297, section 2.2).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from llava.errors import ConfigError, WeightsError
from llava.model.shards import Stored

FUSED = "fused_qkv"
"""Set in the Llama config of a model whose q, k and v were one layer: its adapters share their first factor."""
_TYPES = ("internlm", "internlm2")
_KEPT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_NAMES = {
    "model.tok_embeddings": "model.embed_tokens",
    "output": "lm_head",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
}
"""Modules that InternLM2 only names differently; those in a layer without its prefix."""
_LAYER = re.compile(r"(model\.layers\.\d+)\.(.+)")
_WQKV = "attention.wqkv"


def is_internlm(config: dict[str, Any]) -> bool:
    """Whether a folder's ``config.json`` is of InternLM 1 or 2 in its own layout."""
    return config.get("model_type") in _TYPES


def llama_config(config: dict[str, Any]) -> dict[str, Any]:
    """Values of the ``LlamaConfig`` that computes the same.

    Raises:
        ConfigError: positions are encoded in a way that Llama does not know.
    """
    values = {key: config[key] for key in _KEPT if config.get(key) is not None}
    values.setdefault("rms_norm_eps", 1e-6)
    return {
        **values,
        "attention_bias": bool(config.get("bias", True)),
        "mlp_bias": False,
        "rope_parameters": _rope(config),
        **({FUSED: True} if config["model_type"] == "internlm2" else {}),
    }


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """InternLM says ``rotary: {type, base}``, InternLM2 ``rope_theta`` and ``rope_scaling: {type, factor}``."""
    if config["model_type"] == "internlm":
        scaling = dict(config.get("rotary") or {"type": "dynamic", "base": 10000})
        theta, factor = scaling.get("base", 10000), scaling.get("scaling_factor", 1.0)
    else:
        scaling = dict(config.get("rope_scaling") or {"type": "origin"})
        theta, factor = config.get("rope_theta", 10000), scaling.get("factor", 1.0)
    kind = scaling.get("type", scaling.get("rope_type"))
    if kind in ("origin", "default"):
        return {"rope_type": "default", "rope_theta": float(theta)}
    if kind not in ("dynamic", "linear"):
        raise ConfigError(f"InternLM's positions of type {kind!r} are unknown", "known: origin, linear, dynamic")
    return {"rope_type": kind, "rope_theta": float(theta), "factor": float(factor)}


def llama_tensors(tensors: dict[str, Stored], config: dict[str, Any]) -> dict[str, Stored]:
    """The tensors under Llama's names, ``wqkv`` split in three; a name that finds no place stays as it is.

    Args:
        config: what the folder's ``config.json`` says.

    Raises:
        WeightsError: a ``wqkv`` has other rows than the config asks for, or two tensors go to one place.
    """
    if config["model_type"] == "internlm":
        return tensors
    found: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if is_wqkv(module):
            placed = {f"{llama_qkv(module)[part]}.{kind}": _third(name, tensor, part, config) for part in "qkv"}
        else:
            placed = {f"{llama_module(module)}.{kind}": tensor}
        if twice := placed.keys() & found.keys():
            raise WeightsError(f"{name} and another tensor both are {min(twice)}")
        found |= placed
    return found


def llama_module(name: str) -> str:
    """Llama's name of an InternLM2 module other than ``wqkv``; the name itself where there is none."""
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return _NAMES.get(name, name)
    return f"{layer[1]}.{_NAMES.get(layer[2], layer[2])}"


def llama_qkv(name: str) -> dict[str, str]:
    """Llama's three modules for a ``wqkv``, by q, k and v."""
    return {part: name.replace(_WQKV, f"self_attn.{part}_proj") for part in "qkv"}


def is_wqkv(name: str) -> bool:
    """Whether a module is InternLM2's fused attention input."""
    return name.endswith(_WQKV)


def rows(config: dict[str, Any], part: str) -> Tensor:
    """Which rows of ``wqkv`` are q's, k's or v's, in Llama's order: (heads x head width,), int64."""
    heads = int(config["num_attention_heads"])
    key_heads = int(config.get("num_key_value_heads") or heads)
    width, queries = int(config["hidden_size"]) // heads, heads // key_heads
    all_rows = torch.arange((heads + 2 * key_heads) * width).view(key_heads, queries + 2, width)
    chosen = {"q": slice(0, queries), "k": slice(queries, queries + 1), "v": slice(queries + 1, queries + 2)}[part]
    return all_rows[:, chosen].reshape(-1)


def fuse(config: dict[str, Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``wqkv`` from Llama's three tensors, the way back of ``rows``: (rows of all three, ...)."""
    fused = q.new_empty(len(q) + len(k) + len(v), *q.shape[1:])
    for part, tensor in (("q", q), ("k", k), ("v", v)):
        fused[rows(config, part)] = tensor
    return fused


def _third(name: str, fused: Stored, part: str, config: dict[str, Any]) -> Stored:
    chosen = rows(config, part)
    if fused.shape[0] != (wanted := sum(len(rows(config, one)) for one in "qkv")):
        raise WeightsError(f"{name} has {fused.shape[0]} rows, but the config's heads make {wanted}")
    return fused.then(lambda tensor: tensor[chosen], (len(chosen), *fused.shape[1:]))
