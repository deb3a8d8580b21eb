"""The device of a model, and the dtype of its matrix products."""

from __future__ import annotations

import os
import platform
import re

import torch

from schoolhouse.runs.manifest import processor_flags
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
        return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def free_memory(device: torch.device) -> int:
    """Return the memory of a device that this process can still use, in bytes.

    For a CPU, the memory limits of the container and of the user are also respected. If a system does not say how much
    memory is free, the result is half of the machine's memory.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    free, total = machine_memory()
    return free if free < total else total // 2


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether the processor has instructions that multiply bfloat16 numbers.

    The bfloat16 instructions are AVX512-BF16 and AMX on x86, the bf16 extension on Arm, and those of NVIDIA GPUs since
    Ampere. Processors without bfloat16 instructions convert each number, which is slower than float32. If the
    environment variable ONEDNN_MAX_CPU_ISA forbids the bfloat16 instructions of x86, the library oneDNN also converts
    each number.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine().lower() in ("aarch64", "arm64"):
        return "bf16" in processor_flags()
    limit = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "").upper()
    if re.fullmatch(r"SSE41|AVX|AVX2.*|AVX512_CORE|AVX512_CORE_VNNI", limit):
        return False
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
