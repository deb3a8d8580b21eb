"""Measure the free memory of this process, for the sampler, the server, the hub and `school doctor`.

Four limits can apply: the memory of the machine, the memory limit of a container (cgroup version 2 or 1), the limit of
the address space (`ulimit -v`), and the environment variable SCHOOLHOUSE_MEMORY_GB. The result is the smallest free
memory under these limits.
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from schoolhouse.types import SchoolError

VARIABLE = "SCHOOLHOUSE_MEMORY_GB"
"""The environment variable with the memory that this process may use, in GB (10^9 bytes)."""

_LEAST = 1 << 20
"""The free memory in bytes that is reported if no memory is free, because callers divide by the free memory."""


class Bound(NamedTuple):
    """One memory limit: the free memory under this limit, and the limit itself, both in bytes."""

    free: int
    total: int


class _CgroupFiles(NamedTuple):
    """The names of the memory files of one cgroup version."""

    root: str
    limit: str
    used: str
    reclaimable: str  # a line of memory.stat


_VERSION_2 = _CgroupFiles("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
_VERSION_1 = _CgroupFiles(
    "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
)


def machine_memory(root: Path = Path("/")) -> tuple[int, int]:
    """Return the free memory of this process and the maximum memory of this process, in bytes.

    If the free memory is unknown, both returned numbers are the same.

    `root`: the folder that has the folders `proc` and `sys`.
    Raises SchoolError if SCHOOLHOUSE_MEMORY_GB is not a number above 0.
    """
    bounds = list(memory_bounds(root))
    return max(_LEAST, min(bound.free for bound in bounds)), min(bound.total for bound in bounds)


def memory_bounds(root: Path = Path("/")) -> Iterator[Bound]:
    """Yield each memory limit that applies to this process. The first limit is the memory of the machine."""
    try:
        lines = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
        yield Bound(*(int(lines[name].split()[0]) << 10 for name in ("MemAvailable", "MemTotal")))
    except (OSError, KeyError, ValueError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield Bound(total, total)
    yield from _cgroup_bounds(root)
    pages = _own_pages(root)
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY and pages:
        yield Bound(address_space - pages[0], address_space)
    if (limit := _limit_of_user()) is not None:
        yield Bound(limit - (pages[1] if pages else 0), limit)


def _cgroup_bounds(root: Path) -> Iterator[Bound]:
    """Yield the limits of the control groups of this process, from the innermost group to the outermost.

    In a container, the process's own group is often the root of the file system, so the root is also read.
    """
    try:
        lines = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for number, controllers, group in (line for line in lines if len(line) == 3):
        version_2 = number == "0" and not controllers
        if not version_2 and "memory" not in controllers.split(","):
            continue
        files = _VERSION_2 if version_2 else _VERSION_1
        inner = PurePosixPath(group.lstrip("/"))
        for folder in dict.fromkeys((inner, *inner.parents, PurePosixPath())):
            bound = _read_group(root / files.root / folder, files)
            if bound is not None:
                yield bound


def _read_group(folder: Path, files: _CgroupFiles) -> Bound | None:
    """Return the limit of one control group, or None if the group has no limit. Cached file pages count as free."""
    try:
        limit, used = (int((folder / name).read_text()) for name in (files.limit, files.used))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        reclaimable = int(stat.get(files.reclaimable, 0))
    except (OSError, ValueError):  # not in a container, or no limit (version 2 writes `max`)
        return None
    unlimited = limit >= 1 << 60  # version 1 writes the largest number of pages
    return None if unlimited else Bound(limit - used + reclaimable, limit)


def _own_pages(root: Path) -> tuple[int, int] | None:
    """Return the address space and the resident memory of this process in bytes, or None if they are unknown."""
    try:
        size, resident = (root / "proc/self/statm").read_text().split()[:2]
    except (OSError, ValueError):
        return None
    page = os.sysconf("SC_PAGE_SIZE")
    return int(size) * page, int(resident) * page


def _limit_of_user() -> int | None:
    text = os.environ.get(VARIABLE, "")
    if not text:
        return None
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0 < gigabytes < math.inf:
        raise SchoolError(f"the environment variable {VARIABLE} is `{text}`: give a number of GB above 0, such as 8")
    return int(gigabytes * 1e9)


def size_text(num_bytes: float) -> str:
    """Format a number of bytes, for example as 12.3 GB, 340 MB or 1.2 MB."""
    if num_bytes >= 1e9:
        return f"{num_bytes / 1e9:,.1f} GB"
    return f"{num_bytes / 1e6:,.0f} MB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:,.1f} MB"
