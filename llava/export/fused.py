"""How do adapters on InternLM2's own layers read on Llama's, and back?

InternLM2 has one layer, ``wqkv``, where Llama has three. Its second factor's rows are dealt out as the layer's own are,
and each of the three gets the first factor; on the way back the three first factors have to be one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llava.errors import WeightsError
from llava.export.lora import A, Adapter, B
from llava.export.tensors import Weight, Weights
from llava.model import internlm

_RENAMED = ("attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
_QUERY = ".self_attn.q_proj"


def on_fused_layers(adapter: Adapter) -> bool:
    """Whether an adapter has InternLM2's own names."""
    return any(internlm.is_wqkv(layer) for layer in adapter.layers)


def was_fused(adapter: Adapter) -> bool:
    """Whether an adapter on Llama's layers shares first factors, as one that was trained on ``wqkv`` does."""
    query = next((layer for layer in adapter.layers if layer.endswith(_QUERY)), None)
    keys = None if query is None else adapter.weights.get(_thirds(query)["k"] + A)
    return keys is not None and torch.equal(adapter.weights[str(query) + A].read(), keys.read())


def to_llama(adapter: Adapter, base: dict[str, Any]) -> Adapter:
    """The adapter on Llama's layers.

    Args:
        base: what the config.json of its InternLM2 says.

    Raises:
        WeightsError: a second factor has other rows than the config asks for.
    """
    weights: Weights = {}
    for layer in adapter.layers:
        parts = internlm.llama_tensors({f"{layer}.weight": adapter.weights[layer + B]}, base)
        for name, second in parts.items():
            weights[name.removesuffix(".weight") + A] = adapter.weights[layer + A]
            weights[name.removesuffix(".weight") + B] = second
    return _with(adapter, weights)


def to_internlm2(adapter: Adapter, base: dict[str, Any]) -> Adapter:
    """The adapter on InternLM2's own layers.

    Raises:
        WeightsError: q, k and v of a layer do not share their first factor.
    """
    names = {internlm.llama_module("output"): "output"}
    for layer in (layer for layer in adapter.layers if layer.endswith(_QUERY)):
        at = layer.removesuffix(_QUERY)
        names |= {internlm.llama_module(f"{at}.{module}"): f"{at}.{module}" for module in _RENAMED}
    weights: Weights = {}
    for layer in adapter.layers:
        if layer.endswith(_QUERY):
            first, second = _joined(adapter, _thirds(layer), base)
            at = layer.removesuffix(_QUERY) + ".attention.wqkv"
            weights |= {at + A: first, at + B: second}
        elif layer in names:
            weights |= {names[layer] + kind: adapter.weights[layer + kind] for kind in (A, B)}
        elif not layer.endswith((".k_proj", ".v_proj")):
            raise WeightsError(f"InternLM2 has no layer for the adapter on {layer}")
    return _with(adapter, weights)


def _thirds(query: str) -> dict[str, str]:
    return internlm.llama_qkv(query.removesuffix(_QUERY) + ".attention.wqkv")


def _joined(adapter: Adapter, thirds: dict[str, str], base: dict[str, Any]) -> tuple[Weight, Weight]:
    first = [adapter.weights[layer + A] for layer in thirds.values()]
    tensors = [weight.read() for weight in first]
    if not all(torch.equal(tensors[0], tensor) for tensor in tensors[1:]):
        raise WeightsError(f"the adapters beside {thirds['q']} are no one layer's: their first factors differ")
    second = [adapter.weights[layer + B] for layer in thirds.values()]
    rows = sum(weight.shape[0] for weight in second)
    return first[0], second[0].then(_fuser(base, second[1], second[2]), (rows, *second[0].shape[1:]))


def _fuser(base: dict[str, Any], key: Weight, value: Weight) -> Callable[[Tensor], Tensor]:
    return lambda query: internlm.fuse(base, query, key.read(), value.read())


def _with(adapter: Adapter, weights: Weights) -> Adapter:
    changed = replace(adapter, weights=weights)
    targets = sorted({layer.rsplit(".", 1)[-1] for layer in changed.layers})
    return replace(changed, config={**adapter.config, "target_modules": targets})
