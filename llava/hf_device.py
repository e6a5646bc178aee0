"""On which device does this process run, in which number format?"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from llava.errors import ConfigError

if TYPE_CHECKING:
    import torch


def local_device(wanted: str) -> torch.device:
    """This process's device: the GPU of its rank on this node, never of its rank in the job.

    Raises:
        ConfigError: cuda is asked for and there is none, or fewer than ranks on this node.
    """
    import torch

    count = torch.cuda.device_count()
    if wanted == "cpu" or (wanted == "auto" and not count):
        return torch.device("cpu")
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    if not count:
        raise ConfigError("device: cuda, but this process sees no GPU", "device: auto takes the CPU then.")
    if rank >= count and count > 1:
        raise ConfigError(f"local rank {rank} has no GPU of its own: this process sees {count}")
    # A launcher that shows each process one GPU leaves it with number 0.
    return torch.device("cuda", rank if count > 1 else 0)


def dtype_name(wanted: str, place: torch.device) -> str:
    """fp32, bf16 or fp16; auto: bf16 on GPUs that have it, fp16 on other GPUs, fp32 on CPU."""
    import torch

    if wanted != "auto":
        return wanted
    if place.type != "cuda":
        return "fp32"
    # Capability 8.0 (Ampere) is the first with bf16 in hardware; torch also says yes where it is emulated.
    return "bf16" if torch.cuda.get_device_capability(place) >= (8, 0) else "fp16"


def torch_dtype(name: str) -> torch.dtype:
    """torch's name for ours."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
