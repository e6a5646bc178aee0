"""DeepSpeed ZeRO stages 2 and 3 behind the small protocol of ``strategy.py``.

Checkpoints are the same whole float32 tensors as without ZeRO, so any strategy and number of ranks can go on from them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from llava.config import TrainJob
from llava.data.collate import Batch
from llava.distributed import World
from llava.errors import ConfigError, TrainingError
from llava.model.join import LlavaModel
from llava.optim import Group
from llava.strategy import MOMENTS, State


class Sharded:
    """Gradients and moments, and in stage 3 the weights too, are split over ranks."""

    def __init__(self, model: LlavaModel, groups: list[Group], job: TrainJob, world: World, dtype: torch.dtype) -> None:
        self.settled = False  # a survivor never holds the whole state
        self._groups = groups
        self._world = world
        self._stage = 3 if job.train.strategy == "zero3" else 2
        self._named = dict(chain.from_iterable(group.parameters.items() for group in groups))
        self._model = model
        model.idle = "tower" if self._stage == 3 or job.model.vision.tuning != "frozen" else "projector"
        self._shapes = {name: torch.empty_like(p, device="meta") for name, p in self._named.items()}
        self._engine, self._optimizer = _start(model, groups, job, world, dtype)
        _make_moments(self._engine.optimizer, self._optimizer)
        self._updates = 0

    def loss(self, batch: Batch) -> Tensor:
        loss: Tensor = self._engine(batch)[0]
        return loss

    def backward(self, loss: Tensor, last: bool) -> None:
        # The engine averages over ranks; the loss is a share of the global batch's, to be summed.
        self._engine.backward(loss * self._world.size, scale_wrt_gas=False)
        if not last:
            self._engine.step()

    def step(self, share: float, clip_norm: float) -> float:
        for settings, group in zip(self._optimizer.param_groups, self._groups, strict=True):
            settings["lr"] = group.learning_rate * share
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        overflowed = getattr(self._engine.optimizer, "overflow", False)
        if not math.isfinite(norm) and not overflowed:
            raise TrainingError(f"the gradient's norm is {norm}", "lower the learning rate, or look at the data")
        if not overflowed:
            self._updates += 1
        return norm

    def shapes(self) -> dict[str, Tensor]:
        return self._shapes

    def state(self, moments: bool = True) -> State:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        kinds = MOMENTS if moments else ()
        state: State = {kind: {} for kind in ("weights", *kinds)}
        for name, parameter in self._named.items():
            whole = {"weights": safe_get_full_fp32_param(parameter)}
            whole.update((kind, safe_get_full_optimizer_state(parameter, kind)) for kind in kinds)
            if self._world.rank == 0:  # the others only help to gather: a node has no room for a copy per rank
                for kind, tensor in whole.items():
                    state[kind][name] = tensor.detach().reshape(self._shapes[name].shape).float().cpu()
        return state

    def extra(self) -> dict[str, float]:
        extra: dict[str, float] = {"updates": self._updates}
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        if scaler is not None and getattr(self._engine, "fp16_enabled", bool)():
            extra.update(loss_scale=float(scaler.cur_scale), good_updates=float(self._updates))
        return extra

    def restore(self, state: State, extra: dict[str, float]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for name, parameter in self._named.items():
            device = self._world.device
            safe_set_full_fp32_param(parameter, state["weights"][name].to(device))
            for kind in MOMENTS:
                safe_set_full_optimizer_state(parameter, state[kind][name].to(device), kind)
        self._refresh(state["weights"])
        self._count(int(extra["updates"]))
        if "loss_scale" in extra and self._engine.fp16_enabled():
            self._engine.optimizer.loss_scaler.cur_scale = extra["loss_scale"]

    @contextmanager
    def whole_model(self) -> Iterator[None]:
        if self._stage != 3:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self._model.parameters())):
            yield

    def _count(self, updates: int) -> None:
        self._updates = updates
        for moments in self._optimizer.state.values():
            if "step" in moments:
                step = moments["step"]
                moments["step"] = torch.full_like(step, float(updates)) if isinstance(step, Tensor) else updates

    def _refresh(self, weights: dict[str, Tensor]) -> None:
        """Bring the forward pass's weights, in their own number format, up to the float32 ones."""
        if self._stage == 3:
            import deepspeed

            for name, parameter in self._named.items():
                with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                    parameter.data.copy_(weights[name])
            return
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(weights[name])


def settings(job: TrainJob, world: World, dtype: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's own config for a job."""
    train = job.train
    micro_batches = train.global_batch // train.device_batch
    zero: dict[str, Any] = {
        "stage": 3 if train.strategy == "zero3" else 2,
        "overlap_comm": world.device.type == "cuda",
        "contiguous_gradients": True,
    }
    return {
        "train_micro_batch_size_per_gpu": train.device_batch,
        "gradient_accumulation_steps": micro_batches // world.size,
        "gradient_clipping": train.clip_norm,
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16, "initial_scale_power": 16},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def _start(model: LlavaModel, groups: list[Group], job: TrainJob, world: World, dtype: torch.dtype) -> tuple[Any, Any]:
    # Named, so that DeepSpeed need not guess (and warn).
    os.environ.setdefault("DS_ACCELERATOR", world.device.type)
    import deepspeed

    optimizer = torch.optim.AdamW(
        [{"params": list(group.parameters.values()), "lr": group.learning_rate} for group in groups],
        betas=job.train.betas,
        weight_decay=job.train.weight_decay,
    )
    try:
        engine, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings(job, world, dtype))
    except (ImportError, FileNotFoundError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "building extension" not in str(error):
            raise
        raise ConfigError(
            f"DeepSpeed cannot start: {error}",
            "it compiles a part of itself at first use: install a C++ compiler and ninja, or use strategy: ddp",
        ) from error
    return engine, optimizer


def _make_moments(sharded: Any, optimizer: Any) -> None:
    """Make AdamW's moments before the first update, so that they can be read and restored at any time.

    DeepSpeed links them to the parameters after the first group's first update, when other groups have none yet.
    """
    flats = getattr(sharded, "fp32_partitioned_groups_flat", None) or sharded.single_partition_of_fp32_groups
    for flat in flats:
        optimizer.state[flat] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(flat),
            "exp_avg_sq": torch.zeros_like(flat),
        }
    if link := getattr(sharded, "_lazy_init_hp_params_optimizer_state", None):
        link()
