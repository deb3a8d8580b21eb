"""The command `school doctor` checks which hardware and software this machine has for a run, and what is missing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from schoolhouse.runs.manifest import environment

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

    from schoolhouse.model.kernel_build import ANY_HEAD_DIM, load_kernels
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
    built = load_kernels(ANY_HEAD_DIM, torch.float32) is not None
    yield Finding(
        "compiled kernels",
        "built; they make sampling and learning faster" if built else "none",
        ""
        if built
        else "install a C compiler (gcc or clang), or unset SCHOOLHOUSE_NATIVE=0; until then torch computes the same",
    )
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


def _memory() -> Iterator[Finding]:
    free, total = machine_memory()
    advice = "the quickstart takes about 1.1 GB: close other programs, or set activation_checkpointing to true"
    yield Finding("memory", f"{_size(free)} free of {_size(total)}", advice if free < _MIN_MEMORY else "")


def machine_memory() -> tuple[int, int]:
    """Return the free and the total memory, in bytes.

    If the free memory is unknown, both returned numbers are the total memory.
    """
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free, total = (int(lines[name].split()[0]) << 10 for name in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError, ValueError):
        free = total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return free, total


def _existing(folder: Path) -> Path:
    """Return the folder if it exists, else the nearest parent folder that exists."""
    folder = folder.absolute()
    return folder if folder.exists() else _existing(folder.parent)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
