"""How ranks share the work: one small protocol, and the plain way (every rank holds everything).

DeepSpeed ZeRO stands behind the same protocol in ``zero.py``.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llava.config import TrainingConfig
from llava.data.collate import Batch
from llava.distributed import World
from llava.errors import TrainingError
from llava.model.join import LlavaModel
from llava.optim import Group
from llava.peers import COLLECTIVES

State = dict[str, dict[str, Tensor]]
"""``weights``, ``exp_avg`` and ``exp_avg_sq``: whole float32 tensors by parameter name, for any number of ranks."""
MOMENTS = ("exp_avg", "exp_avg_sq")
_ALIGNMENT = 64
"""Each parameter begins at a multiple of 64 values (256 bytes), as matrix kernels want it."""


class Strategy(Protocol):
    """One update is: ``loss`` and ``backward`` for each micro-batch, then ``step``."""

    settled: bool
    """Weights and optimizer are those of a finished update, whole on this rank (for saving when a peer has died)."""

    def loss(self, batch: Batch) -> Tensor:
        """Loss summed over the micro-batch's supervised tokens."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add a loss's gradient. Losses are already divided, so that all ranks' gradients are summed."""

    def step(self, share: float, clip_norm: float) -> float:
        """Sum gradients over ranks, clip, update.

        Args:
            share: of every group's peak learning rate.
            clip_norm: largest norm; 0: no clipping.

        Returns:
            The gradient's norm before clipping.

        Raises:
            TrainingError: the norm is not finite.
        """

    def shapes(self) -> dict[str, Tensor]:
        """What trains, by name, as tensors without values (device meta)."""

    def state(self, moments: bool = True) -> State:
        """Weights, and the optimizer's moments where they are wanted. All ranks must call it; it is for rank 0."""

    def extra(self) -> dict[str, float]:
        """Numbers that go with the state: ``updates`` that the optimizer has done, and the strategy's own."""

    def restore(self, state: State, extra: dict[str, float]) -> None:
        """Take what ``state`` and ``extra`` gave."""

    def whole_model(self) -> AbstractContextManager[None]:
        """Inside, the model's frozen weights can be read on every rank. All ranks must enter it."""


@dataclass
class LossScale:
    """Dynamic loss scaling for fp16: halved when gradients overflow, doubled after 2,000 good updates."""

    value: float = 1.0
    good: int = 0

    def overflowed(self) -> None:
        """Gradients were not finite; the update is left out.

        Raises:
            TrainingError: even without scaling.
        """
        if self.value <= 1:
            raise TrainingError("gradients are not finite in fp16, even unscaled", "lower the learning rate")
        self.value, self.good = self.value / 2, 0

    def went_well(self) -> None:
        """Gradients were finite."""
        self.good += 1
        if self.good % 2000 == 0:
            self.value *= 2


class Replicated:
    """Every rank holds everything (strategy ``ddp``).

    Trained weights, gradients and moments live in flat buffers: an update is one all-reduce, one norm and one fused
    AdamW call per group, however many tensors there are. Parts that a rank did not use contribute zeros.
    """

    def __init__(self, model: LlavaModel, groups: list[Group], train: TrainingConfig, world: World, dtype: torch.dtype):
        self.settled = True
        self._model = model
        self._world = world
        self._dtype = dtype
        self._groups = groups
        self._named = dict(chain.from_iterable(group.parameters.items() for group in groups))
        self._updates = 0
        self._scale = LossScale(2.0**16) if dtype == torch.float16 else None
        self._weights, self._grads, self._spans = _flatten(groups, world.device)
        if world.size > 1:  # ranks read the same files; one that did not would train another model
            dist.broadcast(self._weights, src=0)
        self._flat = [nn.Parameter(self._weights[span]) for span in self._spans]
        for flat, span in zip(self._flat, self._spans, strict=True):
            flat.grad = self._grads[span]
        self._optimizer = torch.optim.AdamW(
            [{"params": [flat]} for flat in self._flat],
            betas=train.betas,
            weight_decay=train.weight_decay,
            fused=True,
        )

    def loss(self, batch: Batch) -> Tensor:
        with torch.autocast(self._world.device.type, self._dtype, enabled=self._dtype != torch.float32):
            loss: Tensor = self._model(batch)[0]
        return loss

    def backward(self, loss: Tensor, last: bool) -> None:
        if not loss.requires_grad:  # text alone, and nothing in the language model trains
            return
        (loss if self._scale is None else loss * self._scale.value).backward()  # type: ignore[no-untyped-call]

    def step(self, share: float, clip_norm: float) -> float:
        if self._world.size > 1:
            with COLLECTIVES.one():
                dist.all_reduce(self._grads)
        if self._scale is not None:
            self._grads.mul_(1 / self._scale.value)
        # Summed in float64: a float32 sum over a long buffer is off in the fifth digit on a CPU (measured).
        norm = float(torch.linalg.vector_norm(self._grads, dtype=torch.float64))
        if math.isfinite(norm):
            self._update(share, norm, clip_norm)
        elif self._scale is not None:
            self._scale.overflowed()
        else:
            raise TrainingError(f"the gradient's norm is {norm}", "lower the learning rate, or look at the data")
        self._grads.zero_()
        return norm

    def _update(self, share: float, norm: float, clip_norm: float) -> None:
        if clip_norm and norm > clip_norm:
            self._grads.mul_(clip_norm / norm)
        for settings, group in zip(self._optimizer.param_groups, self._groups, strict=True):
            settings["lr"] = group.learning_rate * share
        self.settled = False
        self._optimizer.step()
        self.settled = True
        self._updates += 1
        if self._scale is not None:
            self._scale.went_well()

    def shapes(self) -> dict[str, Tensor]:
        return {name: torch.empty_like(parameter, device="meta") for name, parameter in self._named.items()}

    def state(self, moments: bool = True) -> State:
        state: State = {"weights": {n: p.detach() for n, p in self._named.items()}}
        for kind in MOMENTS if moments else ():
            state[kind] = {}
            for group, flat in zip(self._groups, self._flat, strict=True):
                known = self._optimizer.state.get(flat)  # None before the first update
                moment = torch.zeros_like(flat) if known is None else known[kind]
                # Slices, so that saving takes no memory on the device.
                state[kind].update((n, _place(moment, flat, p)) for n, p in group.parameters.items())
        return state

    def restore(self, state: State, extra: dict[str, float]) -> None:
        self._updates = int(extra["updates"])
        with torch.no_grad():
            for group, flat in zip(self._groups, self._flat, strict=True):
                moments = {kind: torch.zeros_like(flat) for kind in MOMENTS}
                for name, parameter in group.parameters.items():
                    parameter.copy_(state["weights"][name])
                    for kind, moment in moments.items():
                        _place(moment, flat, parameter).copy_(state[kind][name])
                step = torch.tensor(float(self._updates), device=flat.device)
                self._optimizer.state[flat] = {"step": step, **moments}
        if self._scale is not None and "loss_scale" in extra:
            self._scale = LossScale(extra["loss_scale"], int(extra["good_updates"]))

    def extra(self) -> dict[str, float]:
        extra: dict[str, float] = {"updates": self._updates}
        if self._scale is not None:
            extra.update(loss_scale=self._scale.value, good_updates=self._scale.good)
        return extra

    def whole_model(self) -> AbstractContextManager[None]:
        return nullcontext()


def _flatten(groups: list[Group], device: torch.device) -> tuple[Tensor, Tensor, list[slice]]:
    """Move all trained weights into one buffer and their gradients into another; the group's spans in both."""

    def room(parameter: Tensor) -> int:
        return -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT

    size = sum(room(p) for group in groups for p in group.parameters.values())
    weights, grads = torch.zeros(size, device=device), torch.zeros(size, device=device)
    spans, start = [], 0
    for group in groups:
        first = start
        for parameter in group.parameters.values():
            end = start + parameter.numel()
            weights[start:end] = parameter.detach().flatten()
            parameter.data = weights[start:end].view(parameter.shape)
            # Autograd adds into a gradient that is there, so it stays in the buffer.
            parameter.grad = grads[start:end].view(parameter.shape)
            start += room(parameter)
        spans.append(slice(first, start))
    return weights, grads, spans


def _place(moment: Tensor, flat: Tensor, parameter: Tensor) -> Tensor:
    """Where a parameter's values stand in a buffer that is laid out like its group's weights."""
    start = (parameter.data_ptr() - flat.data_ptr()) // flat.element_size()
    return moment[start : start + parameter.numel()].view(parameter.shape)
