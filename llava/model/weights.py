"""Reading pretrained folders strictly: a missing or unexpected weight is an error, never a warning."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llava.errors import ConfigError, WeightsError
from llava.model.shards import Stored, pickle_refused

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
    allow_pickle: bool = False,
) -> Any:
    """``from_pretrained`` that stops where transformers would warn.

    Args:
        quantization: a ``BitsAndBytesConfig``, or None.
        device: where quantised weights go; others are moved later.
        key: the config key that holds ``path``, for messages.
        others: beginnings of weight names that belong to another model in the same folder.
        allow_pickle: read ``.bin`` files where there is no safetensors file.

    Raises:
        ConfigError: no such folder, or nothing in it that can be loaded.
        WeightsError: a weight is missing, left over or of another shape.
    """
    check_folder(path, key)
    if not allow_pickle and pickles_alone(path):
        raise ConfigError(*pickle_refused(path))
    options = {**_placed(dtype, quantization, device), "use_safetensors": None if allow_pickle else True}
    return _checked(lambda: model_class.from_pretrained(path, **options), path, key, others)


def load_tensors(
    model_class: Any,
    config: Any,
    tensors: dict[str, Stored],
    path: str,
    dtype: torch.dtype,
    quantization: Any,
    device: str,
    key: str,
) -> Any:
    """As ``load_pretrained``, from tensors that were given other names or cut since they were on disk.

    Args:
        config: of the model to make.
        tensors: by the model's own names.
        path: where they come from, for messages and the model's name.
    """
    state = {name: tensor.read() for name, tensor in tensors.items() if not COMPUTED.search(name)}
    options = {**_placed(dtype, quantization, device), "config": config, "state_dict": state}
    model = _checked(lambda: model_class.from_pretrained(None, **options), path, key, ())
    model.config.name_or_path = path
    return model


def _placed(dtype: torch.dtype, quantization: Any, device: str) -> dict[str, Any]:
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, "weights_only": True}
    if quantization is not None:
        options |= {"quantization_config": quantization, "device_map": {"": device}}
    return options


def _checked(load: Callable[[], tuple[Any, dict[str, Any]]], path: str, key: str, others: tuple[str, ...]) -> Any:
    try:
        model, info = load()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: cannot load {path}: {error}") from None
    except RuntimeError as error:
        if "mismatch" not in str(error):
            raise
        raise WeightsError(f"the weights in {path} do not fit its config.json: {error}") from None
    _check_info(path, info, others)
    return model


def read_config(path: str, key: str) -> dict[str, Any]:
    """What the folder's ``config.json`` says, without running code that may come with it.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    from transformers import PretrainedConfig

    check_folder(path, key)
    try:
        values: dict[str, Any] = PretrainedConfig.get_config_dict(path)[0]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: cannot read the config of {path}: {error}") from None
    if not values:
        raise ConfigError(f"{key}: no config.json in {path}")
    return values


def local_folder(path: str, key: str, *patterns: str) -> Path:
    """The folder itself, or where the hub's cache keeps the one of that name.

    Args:
        patterns: the files that are needed of it ("*.json").

    Raises:
        ConfigError: it is not there and cannot be fetched.
    """
    check_folder(path, key)
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: cannot fetch {path}: {error}") from None


def pickles_alone(path: str | Path) -> bool:
    """Whether a local folder's weights are ``.bin`` files without a safetensors file beside them."""
    names = {file.name for file in Path(path).iterdir()} if Path(path).is_dir() else set()
    safe = any(name.startswith("model.safetensors") for name in names)
    return not safe and any(name.startswith("pytorch_model.bin") for name in names)


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
