"""Reading pretrained folders strictly: a missing or unexpected weight is an error, never a warning."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from llava.errors import ConfigError, WeightsError

# Buffers that old checkpoints carry and today's modules compute themselves.
COMPUTED = re.compile(r"(position_ids|rotary_emb\.inv_freq|masked_bias)$")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def load_pretrained(
    model_class: Any,
    path: str,
    dtype: torch.dtype,
    quantization: Any,
    device: str,
    key: str,
    others: tuple[str, ...] = (),
) -> Any:
    """``from_pretrained`` that stops where transformers would warn.

    Args:
        quantization: a ``BitsAndBytesConfig``, or None.
        device: where quantised weights go; others are moved later.
        key: the config key that holds ``path``, for messages.
        others: beginnings of weight names that belong to another model in the same folder.

    Raises:
        ConfigError: no such folder, or nothing in it that can be loaded.
        WeightsError: a weight is missing, left over or of another shape.
    """
    check_folder(path, key)
    extra: dict[str, Any] = {}
    if quantization is not None:
        extra = {"quantization_config": quantization, "device_map": {"": device}}
    try:
        model, info = model_class.from_pretrained(path, dtype=dtype, output_loading_info=True, **extra)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: cannot load {path}: {error}") from None
    _check_info(path, info, others)
    return model


def check_folder(path: str, key: str) -> None:
    """Stop early where a local folder is meant and is not there.

    Raises:
        ConfigError: it is missing.
    """
    if Path(path).is_dir():
        return
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    if _HUB_NAME.fullmatch(path) and not offline:  # transformers looks in its cache and on the hub
        return
    raise ConfigError(f"{key}: folder not found: {path}")


def _check_info(path: str, info: dict[str, Any], others: tuple[str, ...]) -> None:
    missing = [name for name in _names(info, "missing_keys") if not COMPUTED.search(name)]
    left_over = [
        name for name in _names(info, "unexpected_keys") if not COMPUTED.search(name) and not name.startswith(others)
    ]
    shapes = _names(info, "mismatched_keys")
    problems = [
        f"{what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
        for what, names in (("missing", missing), ("left over", left_over), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise WeightsError(f"the weights in {path} do not fit its config.json: " + "; ".join(problems))


def _names(info: dict[str, Any], key: str) -> list[str]:
    return sorted(str(name[0] if isinstance(name, tuple) else name) for name in info.get(key) or ())
