"""A weight folder's tensors, each read when it is asked for: safetensors, or pickles where the user allows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava.errors import ConfigError, WeightsError


@dataclass(frozen=True)
class Stored:
    """One tensor on disk."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    """Gives the tensor, on the CPU; no copy is kept. In its own number format, or wider where it was changed."""
    dtype: torch.dtype
    """The number format it is kept in."""

    def then(self, change: Callable[[Tensor], Tensor], shape: tuple[int, ...] | None = None) -> Stored:
        """What a function makes of the tensor.

        Args:
            shape: of the result; None: as before.
        """
        return replace(self, read=lambda: change(self.read()), shape=self.shape if shape is None else shape)


FORMATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Number formats: safetensors' names and torch's."""


def stored(folder: str | Path, stem: str = "model", allow_pickle: bool = False) -> dict[str, Stored]:
    """Every tensor of a folder by its name in the files.

    Args:
        stem: ``model`` (also ``pytorch_model`` for pickles) or ``adapter_model``.
        allow_pickle: read ``.bin`` files where there is no safetensors file; even then only tensors are let in.

    Raises:
        ConfigError: no weights, or only pickles that are not allowed.
        WeightsError: a file is missing or torn, or does not hold what the index says.
    """
    folder = Path(folder)
    if files := _files(folder, f"{stem}.safetensors"):
        return _gather(folder, files, _safetensors)
    pickles = f"{'pytorch_model' if stem == 'model' else stem}.bin"
    if not (files := _files(folder, pickles)):
        raise ConfigError(f"no weights in {folder}: neither {stem}.safetensors nor an index of several files")
    if not allow_pickle:
        raise ConfigError(*pickle_refused(folder))
    return _gather(folder, files, _pickled)


def pickle_refused(folder: str | Path) -> tuple[str, str]:
    """Message and hint for weights that come as pickles alone."""
    return (
        f"the weights in {folder} are pickles (.bin), which can hold code",
        "Where you trust their source, set allow_pickle: true beside the path (llava convert: --allow-pickle); or turn "
        "them into safetensors once.",
    )


def _files(folder: Path, name: str) -> dict[str, list[str]] | None:
    """Names of the files, each with the tensors that the index promises; None: nothing of that name."""
    if (folder / name).is_file():
        return {name: []}
    index = folder / f"{name}.index.json"
    if not index.is_file():
        return None
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files: dict[str, list[str]] = {}
        for tensor, file in places.items():
            files.setdefault(file, []).append(tensor)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise WeightsError(f"cannot read {index}: {error!r}") from None
    if outside := [file for file in files if Path(file).name != file]:
        raise WeightsError(f"{index} points outside its folder: {outside[0]}")
    return files


def _gather(
    folder: Path, files: dict[str, list[str]], reader: Callable[[Path], dict[str, Stored]]
) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    for name, promised in files.items():
        here = reader(folder / name)
        if lacking := sorted(set(promised) - here.keys()):
            raise WeightsError(f"{folder / name} lacks {lacking[0]}, which the index promises")
        if twice := sorted(here.keys() & found.keys()):
            raise WeightsError(f"{twice[0]} is in two files of {folder}")
        found |= here
    return found


def _safetensors(path: Path) -> dict[str, Stored]:
    from safetensors import SafetensorError, safe_open

    def reader(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
            return tensor

        return read

    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: Stored(tuple(part.get_shape()), reader(name), FORMATS[part.get_dtype()])
                for name, part in parts.items()
            }
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read {path}: {error}") from None
    except KeyError as error:
        raise WeightsError(f"{path} holds numbers of the format {error}, which plain weights do not have") from None


def _pickled(path: Path) -> dict[str, Stored]:
    def reader(tensor: Tensor) -> Callable[[], Tensor]:
        return lambda: tensor

    # Mapped, not read: pages come in when a tensor is used, and leave under pressure.
    values = _load_pickle(path, mmap=True)
    return {name: Stored(tuple(tensor.shape), reader(tensor), tensor.dtype) for name, tensor in values.items()}


def _load_pickle(path: Path, mmap: bool) -> dict[str, Tensor]:
    from pickle import UnpicklingError

    try:
        values: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except RuntimeError as error:
        if mmap and "mmap" in str(error):  # files of torch before 1.6
            return _load_pickle(path, mmap=False)
        raise WeightsError(f"cannot read {path}: {error}") from None
    except (OSError, EOFError, UnpicklingError) as error:
        raise WeightsError(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise WeightsError(f"{path} holds more than tensors by name")
    return values
