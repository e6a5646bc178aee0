"""Which weights does a folder hold, and how is one of them read while the others stay on disk?"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from llava.errors import ConfigError, WeightsError
from llava.model.weights import COMPUTED

NUMBER_FORMATS = {
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
"""Of safetensors files: their names and torch's."""
_SAFE = ("model", "adapter_model")
_PICKLED = ("pytorch_model", "adapter_model")


@dataclass(frozen=True)
class Weight:
    """One tensor that is read or computed when its turn to be written has come."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    """The number format it is kept in where none is asked for."""
    make: Callable[[], Tensor]
    """Reads or computes it; the result may be wider than ``dtype``, so that it is rounded once, at the end."""

    def then(self, change: Callable[[Tensor], Tensor], shape: tuple[int, ...] | None = None) -> Weight:
        """The weight that a function makes of this one."""
        return replace(self, shape=self.shape if shape is None else shape, make=lambda: change(self.make()))


Weights = dict[str, Weight]


def read_weights(folder: Path, allow_pickle: bool) -> Weights:
    """Every weight in a folder by its name there; buffers that models compute themselves are left out.

    Args:
        folder: holds ``model.safetensors``, several files with an index, or an adapter's file.
        allow_pickle: also read ``pytorch_model.bin`` and its like, by torch's reader of weights alone.

    Raises:
        ConfigError: there is no weight file, or only a pickled one and that is not allowed.
        WeightsError: a file is missing or unreadable.
    """
    found: Weights = {}
    for file in weight_files(folder, allow_pickle):
        found |= read_file(file)
    return found


def read_file(file: Path) -> Weights:
    """The weights of one file.

    Raises:
        WeightsError: it cannot be read.
    """
    read = _of_safetensors if file.suffix == ".safetensors" else _of_pickle
    return {name: weight for name, weight in read(file) if not COMPUTED.search(name)}


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a weight file of any kind."""
    return any(file.is_file() for file in (*_candidates(folder, _SAFE, "safetensors"), *_bins(folder)))


def weight_files(folder: Path, allow_pickle: bool) -> list[Path]:
    """The files that make up a folder's weights.

    Raises:
        ConfigError: there is none, or only pickled ones and those are not allowed.
        WeightsError: the index names a file that is not there.
    """
    for start in _candidates(folder, _SAFE, "safetensors"):
        if start.is_file():
            return _with_shards(start)
    for start in _bins(folder):
        if start.is_file():
            return _with_shards(checked_pickle(start, allow_pickle))
    raise ConfigError(f"no weights in {folder}", "It needs model.safetensors, or several files and their index.")


def checked_pickle(file: Path, allow_pickle: bool) -> Path:
    """A pickled file, where the person has said that it may be read.

    Raises:
        ConfigError: it was not said.
    """
    if not allow_pickle:
        hint = "If you trust where it comes from, say so: --allow-pickle (convert.allow_pickle: true)."
        raise ConfigError(f"{file} is pickled, and pickles are not read unasked", hint)
    return file


def as_bytes(tensor: Tensor) -> memoryview:
    """A tensor's numbers as they lie in memory, not copied where they lie in one piece."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _candidates(folder: Path, stems: Iterable[str], ending: str) -> list[Path]:
    return [folder / f"{stem}.{ending}{index}" for stem in stems for index in ("", ".index.json")]


def _bins(folder: Path) -> list[Path]:
    return _candidates(folder, _PICKLED, "bin")


def _with_shards(start: Path) -> list[Path]:
    if start.suffix != ".json":
        return [start]
    try:
        names = dict.fromkeys(json.loads(start.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise WeightsError(f"cannot read {start}: {error}") from None
    files = [start.with_name(name) for name in names]
    if missing := [file.name for file in files if not file.is_file()]:
        raise WeightsError(f"{start} names files that are not there: {', '.join(missing[:5])}")
    return files


def _of_safetensors(file: Path) -> list[tuple[str, Weight]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            parts = [(name, opened.get_slice(name)) for name in opened.keys()]  # noqa: SIM118
            return [
                (name, Weight(tuple(part.get_shape()), NUMBER_FORMATS[part.get_dtype()], _reader(file, name)))
                for name, part in parts
            ]
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read {file}: {error}") from None
    except KeyError as error:
        raise WeightsError(f"{file} holds numbers of the format {error}, which is no format of plain weights") from None


def _reader(file: Path, name: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        from safetensors import safe_open

        # Opened anew for each tensor: closing it gives back the pages that were read.
        with safe_open(file, "pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor

    return read


def _of_pickle(file: Path) -> list[tuple[str, Weight]]:
    state = _unpickled(file, file.stat().st_mtime_ns)
    if wrong := [name for name, tensor in state.items() if not isinstance(tensor, Tensor)]:
        raise WeightsError(f"{file} holds more than weights: {', '.join(map(str, wrong[:5]))}")
    return [(name, Weight(tuple(t.shape), t.dtype, _taker(file, name))) for name, t in state.items()]


def _taker(file: Path, name: str) -> Callable[[], Tensor]:
    return lambda: _unpickled(file, file.stat().st_mtime_ns)[name]


@functools.lru_cache(maxsize=1)  # one file at a time, as they are read one behind the other
def _unpickled(file: Path, changed_ns: int) -> dict[str, Tensor]:
    try:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written before torch 1.6, which cannot be mapped
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each have errors of their own
        raise WeightsError(f"cannot read {file} as weights alone: {_first_line(error)}") from None
    return dict(state)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
