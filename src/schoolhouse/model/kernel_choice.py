"""Decide for each computation whether its C kernel or torch is used. The decision is made once per machine, and stored.

At the first use of a kernel, its results are compared with those of torch on small inputs. A kernel with wrong results
is never used. Then the speeds of the kernel and of torch are compared. If torch is clearly faster, torch is used. The
results of both comparisons are stored in the cache folder beside the compiled library, so all processes and all later
runs make the same choice. Different choices would change the last bits of results.

SCHOOLHOUSE_NATIVE=0 uses torch everywhere. SCHOOLHOUSE_NATIVE=1 uses every kernel with correct results, even if torch
is faster.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from schoolhouse.model import kernel_cases
from schoolhouse.model.cuda_graph import StaticBfloat16SlotKVCache, StaticSlotKVCache, use_cuda_graphs
from schoolhouse.model.kernel_build import ANY_HEAD_DIM, has_kernels, load_kernels
from schoolhouse.model.kernel_cases import Run
from schoolhouse.model.kv_cache import Bfloat16SlotKVCache, PackedAttention, SlotKVCache
from schoolhouse.model.native_attention import NativeBfloat16SlotKVCache, NativePackedAttention, NativeSlotKVCache

KERNELS = (
    "packed attention",
    "decode attention",
    "rotary embedding",
    "RMSNorm",
    "SwiGLU",
    "log-probabilities",
    "packed product",
)
"""The names of the kernels. For each kernel, there is a separate choice between the kernel and torch. Without packed
products, the sampler multiplies with torch. The kernel for sampling tokens follows the choice for the
log-probabilities, because sampler and learner must compute the same log-probability."""

FASTER_TO_REPLACE = 1.3
"""Torch replaces a kernel only if torch is at least this many times as fast, so that noise does not change a choice."""

_MAX_DIFFERENCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
_REPEATS = 7


class Choice(NamedTuple):
    """The measurements that decide whether a kernel is used.

    difference  the largest difference from torch, relative to the largest value of torch; NaN counts as infinity.
    speed       the speed of the kernel divided by the speed of torch; None if the speeds were not measured.
    """

    kernel: str
    difference: float
    allowed: float
    speed: float | None

    @property
    def right(self) -> bool:
        return self.difference <= self.allowed

    @property
    def used(self) -> bool:
        return self.right and (self.speed is None or not _torch_replaces(self.speed))


def best_attention(
    head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[type[PackedAttention], type[SlotKVCache]]:
    """Return the fastest attention contexts on this device for a decoder that computes in `dtype`."""
    if use_cuda_graphs(device):
        return PackedAttention, StaticBfloat16SlotKVCache if dtype == torch.bfloat16 else StaticSlotKVCache
    if device.type != "cpu":
        return plain_attention(dtype, device)
    native_cache = NativeBfloat16SlotKVCache if dtype == torch.bfloat16 else NativeSlotKVCache
    packed = NativePackedAttention if uses_kernel("packed attention", head_dim, torch.float32) else PackedAttention
    return packed, native_cache if uses_kernel("decode attention", head_dim, dtype) else SlotKVCache


def plain_attention(dtype: torch.dtype, device: torch.device) -> tuple[type[PackedAttention], type[SlotKVCache]]:
    """Return the attention contexts that need no C kernels and that support attention rules, such as a sliding window.

    On a GPU, the KV cache has the number type of the decoder. On a CPU, attention computes in float32.
    """
    half = device.type == "cuda" and dtype == torch.bfloat16
    return PackedAttention, Bfloat16SlotKVCache if half else SlotKVCache


@cache
def uses_kernel(kernel: str, head_dim: int, dtype: torch.dtype) -> bool:
    """Return whether a kernel is used for heads of width `head_dim`. For kernels without heads, pass ANY_HEAD_DIM.

    Warns if the kernel exists but gives results that differ from those of torch.
    """
    choice = choose(kernel, head_dim, dtype)
    if choice and not choice.right:
        warnings.warn(f"{describe_fault(choice)}; torch is used instead", RuntimeWarning, stacklevel=2)
    return choice is not None and choice.used


def describe_fault(choice: Choice) -> str:
    return (
        f"the C kernel for {choice.kernel} gives other numbers than torch on this machine (the difference is "
        f"{choice.difference:.2g} of the largest value, {choice.allowed:.2g} is allowed)"
    )


def choose(kernel: str, head_dim: int, dtype: torch.dtype) -> Choice | None:
    """Read the stored choice for a kernel. If no choice is stored yet, check and measure the kernel, and store the
    choice.

    Returns None if there are no C kernels.
    """
    if not has_kernels(head_dim, dtype):
        return None
    measured = os.environ.get("SCHOOLHOUSE_NATIVE") != "1"
    difference = _stored(kernel, "difference", head_dim, dtype, _max_difference)
    allowed = _MAX_DIFFERENCE[dtype]
    speed = _stored(kernel, "speed", head_dim, dtype, _speed) if measured and difference <= allowed else None
    return Choice(kernel, difference, allowed, speed)


def all_choices(dtype: torch.dtype) -> list[Choice]:
    """Return the choices for a decoder that computes in `dtype`, with heads of width ANY_HEAD_DIM."""
    dtypes = {"packed attention": torch.float32, "packed product": torch.float32}
    choices = (choose(kernel, ANY_HEAD_DIM, dtypes.get(kernel, dtype)) for kernel in KERNELS)
    return [choice for choice in choices if choice]


def _stored(
    kernel: str, what: str, head_dim: int, dtype: torch.dtype, measure: Callable[[str, int, torch.dtype], float]
) -> float:
    """Return a stored measurement. If its file is missing or damaged, measure again and store the result.

    If several processes measure at the same time, all of them use the number that was stored first.
    """
    path = _path(kernel, what, head_dim, dtype)
    stored = _read(path, what)
    if stored is None:
        measured = measure(kernel, head_dim, dtype)
        try:
            _store(path, {"kernel": kernel, what: measured})
        except OSError:
            return measured
        stored = _read(path, what)
    return measured if stored is None else stored


def _path(kernel: str, what: str, head_dim: int, dtype: torch.dtype) -> Path:
    """Return the file for a measured number. A speed also depends on the torch version and on the instructions that
    torch uses."""
    library = load_kernels(head_dim, dtype)
    assert library
    opponent = f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()}"
    digest = hashlib.sha256(opponent.encode()).hexdigest()[:8]
    return Path(library._name).with_suffix("") / f"{kernel.replace(' ', '-')}-{what}-{digest}.json"


def _read(path: Path, what: str) -> float | None:
    try:
        return float(json.loads(path.read_text())[what])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _store(path: Path, content: dict[str, Any]) -> None:
    """Write a file in one step. If another process has already written the file, that file stays, unless it is
    damaged."""
    path.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder) / path.name
        written.write_text(json.dumps(content) + "\n")
        if path.exists() and _read(path, list(content)[1]) is None:
            path.unlink(missing_ok=True)
        with suppress(FileExistsError):
            path.hardlink_to(written)


@contextmanager
def _plain_torch() -> Generator[None]:
    """Turn gradients on and autocast off, because a kernel may be measured in the middle of a forward pass."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        yield


def _max_difference(kernel: str, head_dim: int, dtype: torch.dtype) -> float:
    with _plain_torch():
        cases = kernel_cases.check_cases(kernel, head_dim, dtype)
        return max(_difference(case.native(), case.torch()) for case in cases)


def _difference(native: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference between two results, relative to the largest value of the expected result.

    For results that are whole numbers, the difference is the share of rows that differ. Rows with different whole
    numbers are ignored in all other results.
    """
    largest, same = 0.0, torch.tensor(True)
    for one, other in zip(native, expected, strict=True):
        if not other.is_floating_point():
            same = one == other
            largest = max(largest, 1.0 - float(same.float().mean()))
            continue
        one, other = one.detach().float(), other.detach().float()
        gap = float(((one - other).abs() * same).max() / other.abs().max())
        largest = max(largest, gap) if gap == gap else float("inf")
    return largest


def _speed(kernel: str, head_dim: int, dtype: torch.dtype) -> float:
    """Measure how many times as fast as torch a kernel is. The kernel and torch use one thread, because other programs
    disturb one thread least.

    Torch must be faster three times in a row, so that a busy moment of the machine does not decide against a kernel.
    """
    speed, threads = 0.0, torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with _plain_torch():
            cases = kernel_cases.timing_cases(kernel, head_dim, dtype)
            for _ in range(3):
                native, plain = (sum(seconds) for seconds in zip(*map(shortest_seconds, cases), strict=True))
                speed = max(speed, plain / native)
                if not _torch_replaces(speed):
                    break
    finally:
        torch.set_num_threads(threads)
    return speed


def _torch_replaces(speed: float) -> bool:
    return speed * FASTER_TO_REPLACE <= 1.0


def shortest_seconds(case: kernel_cases.Case, repeats: int = _REPEATS) -> tuple[float, float]:
    """Return the shortest time in seconds of the kernel and of torch. The kernel and torch alternate, so that a busy
    machine slows down both."""
    seconds: dict[Run, list[float]] = {case.native: [], case.torch: []}
    for run in seconds:
        run()
    for _ in range(repeats):
        for run, times in seconds.items():
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    native, plain = (min(times) for times in seconds.values())
    return native, plain
