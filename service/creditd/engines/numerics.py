"""What decides the last bits of a model's numbers on this machine, beside the model itself."""

from __future__ import annotations

import platform

import torch
import transformers
from transformers import PreTrainedModel


def numerics_of(model: PreTrainedModel, *ways: str | int) -> str:
    """Two processes that say the same here round alike, as far as can be told from outside of a kernel.

    Args:
        model: On its device.
        ways: How it is asked: attention, reading, sizes of its passes.

    Returns:
        One line; compared as a whole, and read by nobody.
    """
    device = model.device
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return repr(
        (
            device.type,
            place,
            str(model.dtype),
            *ways,
            torch.__version__,
            torch.version.cuda,
            transformers.__version__,
            torch.backends.cpu.get_cpu_capability(),
            torch.get_num_threads(),
            torch.get_float32_matmul_precision(),
        )
    )
