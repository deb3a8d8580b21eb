"""The device of a model, and the dtype of its matrix products."""

from __future__ import annotations

import torch

from schoolhouse.runs.memory import machine_memory
from schoolhouse.types import Precision


def pick_device() -> torch.device:
    """Return the first CUDA GPU if torch finds a GPU, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype of matrix products.

    With precision `auto`, the dtype is bfloat16 if the processor can multiply bfloat16 natively, otherwise float32.
    """
    if precision == "auto":
        names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        probes = (
            [torch.cuda.is_bf16_supported] if device.type == "cuda" else [getattr(torch.cpu, n, bool) for n in names]
        )
        return torch.bfloat16 if any(probe() for probe in probes) else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def free_memory(device: torch.device) -> int:
    """Return the memory of a device that this process can still use, in bytes.

    For a CPU, the limits of a container and of the user count too. If a system does not say how much memory is free,
    the result is half of the memory.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    free, total = machine_memory()
    return free if free < total else total // 2
