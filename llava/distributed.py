"""The processes of a run: who this one is, and the few words they exchange.

Talk between ranks goes over gloo on the CPU, so that a peer's death is an error in Python at once; only gradients go
over NCCL where there are GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from llava.config import Device, Precision
from llava.errors import ConfigError, LlavaError
from llava.peers import COLLECTIVES

TIMEOUT = timedelta(minutes=30)
"""Longest wait in one collective: rank 0 may be building the token index, which takes minutes."""
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """All ranks, seen from one of them."""

    rank: int
    size: int
    local_rank: int
    nodes: int
    device: torch.device
    """Where this rank computes."""
    grouped: bool
    """A process group exists; False only for one process by hand."""

    def sum(self, values: list[float]) -> list[float]:
        """Each value summed over all ranks, in float64."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        with COLLECTIVES.one():
            dist.all_reduce(tensor)
        return tensor.tolist()

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in rank order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: T) -> T:
        """Rank 0's value."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def first_does(self, work: Callable[[], T]) -> T:
        """Let rank 0 do something; all ranks get its result.

        Raises:
            LlavaError: what the work raised, on every rank.
        """
        result: T | LlavaError | None = None
        if self.rank == 0:
            try:
                result = work()
            except LlavaError as error:
                result = error
        result = self.from_first(result)
        if isinstance(result, LlavaError):
            raise result
        return result  # type: ignore[return-value]

    def close(self) -> None:
        """Leave the process group, when all ranks are done."""
        if self.grouped:
            self.sum([0.0])
            dist.destroy_process_group()


def join(device: Device, needs_group: bool) -> World:
    """Meet the other ranks (torchrun's environment says where); alone without torchrun.

    Args:
        needs_group: a process group even for one process (DeepSpeed wants one).

    Raises:
        ConfigError: a GPU is asked for and there is none for this rank.
    """
    rank = int(os.environ.get("RANK", "0"))
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    where = _pick_device(device, local_rank)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    grouped = size > 1 or needs_group
    if grouped:
        _meet(rank, size, where)
    return World(rank, size, local_rank, int(os.environ.get("GROUP_WORLD_SIZE", "1")), where, grouped)


def _meet(rank: int, size: int, where: torch.device) -> None:
    backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
    if size == 1 and "MASTER_ADDR" not in os.environ:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=TIMEOUT)
        return
    if os.environ.get("MASTER_ADDR") in ("localhost", "127.0.0.1"):
        # All on one machine: its name need not resolve to an address that works.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(backend, timeout=TIMEOUT)


def _pick_device(device: Device, local_rank: int) -> torch.device:
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    there = torch.cuda.device_count()
    if local_rank >= there:
        raise ConfigError(
            f"train.device is {device}, but local rank {local_rank} has no GPU: {there} can be seen here",
            "start no more processes per node than GPUs, or set train.device: cpu",
        )
    return torch.device("cuda", local_rank)


def number_format(precision: Precision, device: torch.device) -> torch.dtype:
    """The forward pass's number format.

    Raises:
        ConfigError: fp16 on a CPU, which cannot train in it.
    """
    if precision == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("train.precision is fp16, which needs a GPU", "use fp32 or bf16 on a CPU")
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
