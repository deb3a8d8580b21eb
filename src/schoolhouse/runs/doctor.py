"""What this machine offers to a run, and what it lacks, in words: `school doctor`."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from schoolhouse.runs.manifest import environment

_LITTLE_DISK, _LITTLE_MEMORY = 2 << 30, 2 << 30  # a quickstart needs less than one and about one


class Finding(NamedTuple):
    """A line of the report: what was looked at, what was found, and where something should be done, what."""

    topic: str
    result: str
    advice: str = ""


def check_machine(folder: Path = Path()) -> Iterator[Finding]:
    """Look at this machine and at the disk that `folder` is on. Takes seconds: torch is loaded, kernels built."""
    import torch

    from schoolhouse.model.kernel_build import ANY_HEAD_DIM, load_kernels
    from schoolhouse.policy.policy import pick_device, pick_dtype

    machine = environment()
    yield Finding("versions", ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number))
    yield Finding("processor", f"{machine['cores']} cores; {' '.join(machine['processor']) or 'features not known'}")
    device = pick_device()
    precision = str(pick_dtype("auto", device)).removeprefix("torch.")
    yield Finding("matrix products", f"in {precision}" + ("" if precision == "float32" else ", twice float32 or more"))
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        yield Finding("GPU", f"{torch.cuda.get_device_name(device)}, {_size(memory)}")
    else:
        yield Finding("GPU", "none; everything runs on the processor")
    built = load_kernels(ANY_HEAD_DIM, torch.float32) is not None
    yield Finding(
        "compiled kernels",
        "built: sampling and learning take one pass over memory where torch takes many" if built else "none",
        "" if built else "install a C compiler (gcc or clang), or unset SCHOOLHOUSE_NATIVE=0; torch is used until then",
    )
    yield from _memory()
    free = shutil.disk_usage(_existing(folder)).free
    yield Finding(
        "disk",
        f"{_size(free)} free where {folder.absolute()} is",
        "a run of the quickstart's size writes a few hundred MB: free some space" if free < _LITTLE_DISK else "",
    )
    yield Finding(
        "verifiers",
        "run in processes of their own, each verdict under a clock"
        + (" and a limit on memory" if sys.platform == "linux" else "; this system keeps no limit on memory"),
        "" if sys.platform == "linux" else "do not run verifiers that you do not trust here",
    )


def _memory() -> Iterator[Finding]:
    try:
        told = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free, whole = (int(told[name].split()[0]) << 10 for name in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError, ValueError):
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield Finding("memory", f"{_size(whole)}")
        return
    scarce = (
        "the quickstart takes about 1.1 GB: close something, or set recompute to true" if free < _LITTLE_MEMORY else ""
    )
    yield Finding("memory", f"{_size(free)} free of {_size(whole)}", scarce)


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return folder if folder.exists() else _existing(folder.parent)


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB"
