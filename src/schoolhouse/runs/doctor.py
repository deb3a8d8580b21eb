"""The command `school doctor` checks which hardware and software this machine has for a run, and what is missing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from schoolhouse.runs.manifest import environment
from schoolhouse.runs.memory import machine_memory

if TYPE_CHECKING:
    import torch

_MIN_DISK = _MIN_MEMORY = 2 << 30
"""Limits in bytes: about twice the memory that the quickstart needs, and more than the disk space that it needs."""


class Finding(NamedTuple):
    """One line of the report of `school doctor`: a topic, the result of its check, and advice if it is needed."""

    topic: str
    result: str
    advice: str = ""


def check_machine(folder: Path = Path()) -> Iterator[Finding]:
    """Check this machine and the disk of `folder`.

    The check takes several seconds, because it loads torch and builds kernels.
    """
    import torch

    from schoolhouse.policy.policy import pick_device, pick_dtype

    machine = environment()
    yield Finding("versions", ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number))
    yield Finding("processor", f"{machine['cores']} cores; {' '.join(machine['processor']) or 'unknown features'}")
    device = pick_device()
    precision = str(pick_dtype("auto", device)).removeprefix("torch.")
    reason = "does not multiply" if precision == "float32" else "multiplies"
    yield Finding("matrix products", f"in {precision}, because this machine {reason} bfloat16 natively")
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        yield Finding("GPU", f"{torch.cuda.get_device_name(device)}, {_size(memory)}")
    else:
        yield Finding("GPU", "none; everything runs on the CPU")
    yield from _kernels(pick_dtype("auto", torch.device("cpu")))
    yield from _memory()
    free = shutil.disk_usage(_existing(folder)).free
    yield Finding(
        "disk",
        f"{_size(free)} free where {folder.absolute()} is",
        "the quickstart writes a few hundred MB: free some space" if free < _MIN_DISK else "",
    )
    yield Finding(
        "verifiers",
        "run in worker processes, with a time limit"
        + (" and a memory limit" if sys.platform == "linux" else "; this system has no memory limit"),
        "" if sys.platform == "linux" else "do not run untrusted verifiers here",
    )


def _kernels(dtype: torch.dtype) -> Iterator[Finding]:
    """Report which C kernels are used, and which kernels are not used because they are wrong or slower than torch."""
    from schoolhouse.model.kernel_build import count_lanes
    from schoolhouse.model.kernel_choice import all_choices, describe_fault

    choices = all_choices(dtype)
    if not choices:
        advice = "install a C compiler (gcc or clang), or unset SCHOOLHOUSE_NATIVE=0; until then, torch is used"
        yield Finding("compiled kernels", "none", advice)
        return
    yield Finding(
        "compiled kernels", f"built with vectors of {count_lanes()} floats; kernels make sampling and learning faster"
    )
    speeds = [f"{c.kernel} {c.speed:.1f}{'' if c.used else ' (torch is used)'}" for c in choices if c.speed is not None]
    if speeds:
        yield Finding("kernels and torch", f"speed of the kernel divided by that of torch: {', '.join(speeds)}")
    for choice in choices:
        if not choice.right:
            advice = "torch is used instead; try another C compiler (CC=clang), and report the compiler and the machine"
            yield Finding("wrong kernel", describe_fault(choice), advice)


def _memory() -> Iterator[Finding]:
    free, total = machine_memory()
    advice = "the quickstart takes about 1.1 GB: close other programs, or set activation_checkpointing to true"
    yield Finding("memory", f"{_size(free)} free of {_size(total)}", advice if free < _MIN_MEMORY else "")


def _existing(folder: Path) -> Path:
    """Return the folder if it exists, else the nearest parent folder that exists."""
    folder = folder.absolute()
    return folder if folder.exists() else _existing(folder.parent)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
