"""Weights that stay on disk, as exports handle them: by name, in a number format, changed while they are read."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from llava.model.shards import Stored, stored
from llava.model.weights import COMPUTED

Weight = Stored
"""One tensor that is read or computed when its turn to be written has come."""
Weights = dict[str, Weight]


def read_weights(folder: Path, allow_pickle: bool, stem: str = "model") -> Weights:
    """Every weight in a folder by its name there; buffers that models compute themselves are left out.

    Raises:
        ConfigError: there is no weight file, or only a pickled one and that is not allowed.
        WeightsError: a file is missing or unreadable.
    """
    return without_computed(stored(folder, stem, allow_pickle))


def without_computed(weights: Weights) -> Weights:
    """The weights without buffers that models compute themselves."""
    return {name: weight for name, weight in weights.items() if not COMPUTED.search(name)}


def below(weights: Weights, prefix: str) -> Weights:
    """Those whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def of_tensor(tensor: Tensor) -> Weight:
    """A weight that is in memory already."""
    return Weight(tuple(tensor.shape), lambda: tensor, tensor.dtype)


def as_bytes(tensor: Tensor) -> memoryview:
    """A tensor's numbers as they lie in memory, not copied where they lie in one piece."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
