"""What does a 4-bit run see of its base's weights?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llava.export.tensors import Weights


def as_trained(weights: Weights, quantised: set[str], dtype: torch.dtype) -> Weights:
    """Weights as a 4-bit run sees them: in its number format, linear layers quantised and de-quantised."""
    return {name: weight.then(_through_nf4(dtype, name in quantised)) for name, weight in weights.items()}


def _through_nf4(dtype: torch.dtype, quantised: bool) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        if not quantised:
            return tensor.to(dtype)
        from bitsandbytes.functional import dequantize_4bit
        from bitsandbytes.nn import Params4bit

        # The numbers depend on the format that they were quantised from, and a little on the device.
        device = "cuda" if torch.cuda.is_available() else "cpu"
        packed = Params4bit(
            tensor.to(dtype), requires_grad=False, quant_type="nf4", compress_statistics=True, quant_storage=dtype
        ).to(device)
        opened: Tensor = dequantize_4bit(packed.data, packed.quant_state)
        return opened.cpu()

    return change
