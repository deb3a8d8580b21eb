"""Memories whose attention is in C, compiled once where there is a compiler; elsewhere memory.py's torch attends.

A decode step multiplies each key with a single query, or with a few that share a prompt, and training multiplies
sequences of unequal length: torch's batched products are made for more and more even work, and get a fraction of what
the machine gives (docs/performance.md has the figures).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schoolhouse.policy.memory import Packed, Slots

_FOLDER = Path(__file__).with_name("kernels")
_SOURCES = tuple(str(_FOLDER / name) for name in ("decode.c", "packed.c", "readout.c"))
_OPTIONS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-lm")
_TARGETS = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-march=native",), ("-mcpu=native",))
_FUNCTIONS = {
    "attend": "nnnppppp" + "nnnn" + "ppppppp",
    "see": "nnpnnppppp",
    "unsee": "nnppnnppppppppp",
    "read_out": "nnnfppppp",
    "unread": "nnnfppppp",
}
"""Arguments of each: n a whole number, f a float, p a pointer."""
_TYPES = {"n": ctypes.c_int64, "f": ctypes.c_float, "p": ctypes.c_void_p}
_BLOCK = 16  # slots of one prompt that meet it together
_LANES = 16
_ANY_WIDTH = 64  # for what does not depend on it


def best_memories(head_width: int, dtype: torch.dtype, device: torch.device) -> tuple[type[Packed], type[Slots]]:
    """The quickest of this machine for a decoder that computes in `dtype`."""
    if device.type != "cpu" or head_width % (2 * _LANES) or not _kernel(head_width, dtype):
        return Packed, Slots
    return NativePacked, NativeHalfSlots if dtype == torch.bfloat16 else NativeSlots


@cache
def _kernel(width: int, dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernel for heads of this width; None where it cannot be compiled. SCHOOLHOUSE_NATIVE=0 does without it."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if os.environ.get("SCHOOLHOUSE_NATIVE") == "0" or not compiler:
        return None
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
        sources = [path.read_text() for path in sorted(_FOLDER.iterdir()) if path.suffix in (".c", ".h")]
        made_of = "\n".join((*sources, version, _processor(), *_OPTIONS))
        stored = "uint16_t" if dtype == torch.bfloat16 else "float"
        name = f"attention-{width}-{stored}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "schoolhouse"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / name).exists():
            _compile(compiler, (f"-DWIDTH={width}", f"-DSTORED={stored}"), folder / name)
        kernel = ctypes.CDLL(str(folder / name))  # torch is loaded already: both use its OpenMP, and so its threads
    except (OSError, subprocess.CalledProcessError):
        return None
    for function, types in _FUNCTIONS.items():
        declared = getattr(kernel, function)
        declared.restype = None
        declared.argtypes = [_TYPES[kind] for kind in types]
    return kernel


def _processor() -> str:
    """What code for this very processor depends on: a home folder may be shared with another."""
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return "\n".join(sorted(set(re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*$", about, re.MULTILINE))))


def _compile(compiler: str, given: Sequence[str], library: Path) -> None:
    """Write the library whole or not at all. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        for target in _TARGETS:
            command = [compiler, *target, *given, *_SOURCES, "-o", str(made), *_OPTIONS]
            tried = subprocess.run(command, capture_output=True, check=False)
            if tried.returncode == 0:
                break
        tried.check_returncode()
        made.replace(library)


class NativePacked(Packed):
    """`Packed`, attended without any padding, in float32.

    Sequences may go on from a prefix that is there once: prefixes[s] is where it begins and how long it is, (0, 0) for
    none. It must be a beginning of the last sequence before s that has none; `lengths` are then those behind it.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        device: torch.device | str = "cpu",
        keep: bool = False,
        prefixes: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        super().__init__(lengths, device, keep)
        prefix_S2 = torch.tensor(prefixes or [(0, 0)] * len(lengths))
        self.places = torch.cat((prefix_S2, self.starts[:-1, None], self.lengths[:, None]), 1)  # [S, 4]
        firsts = (prefix_S2[:, 1] == 0).nonzero()[:, 0]
        self.families = torch.cat((firsts, torch.tensor([len(lengths)])))  # [F + 1]
        self.positions = self.positions + torch.repeat_interleave(prefix_S2[:, 1], self.lengths)

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        q, k, v = (x.float().contiguous() for x in (q_NHD, k_NKD, v_NKD))
        if self.kept is not None:
            self.kept.append((self.side_by_side(k), self.side_by_side(v)))
        return _Attention.apply(q, k, v, self.places, self.families)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, places_S4: Tensor, families_F: Tensor) -> Tensor:
        seen_NHD, spread_NH = torch.empty_like(q_NHD), q_NHD.new_empty(q_NHD.shape[:2])
        _call("see", (len(places_S4), places_S4.data_ptr()), q_NHD, k_NKD, v_NKD, seen_NHD, spread_NH)
        ctx.save_for_backward(q_NHD, k_NKD, v_NKD, places_S4, families_F, seen_NHD, spread_NH)
        return seen_NHD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, places, families, seen, spread = ctx.saved_tensors
        towards = [torch.empty_like(x) for x in (q, k, v)]
        tables = (len(families) - 1, families.data_ptr(), places.data_ptr())
        _call("unsee", tables, q, k, v, seen, spread, gradients[0].contiguous(), *towards)
        return *towards, None, None


def _call(function: str, tables: tuple[int, ...], q: Tensor, k: Tensor, *others: Tensor) -> None:
    kernel = _kernel(q.shape[2], torch.float32)
    assert kernel
    pointers = (x.data_ptr() for x in (q, k, *others))
    getattr(kernel, function)(torch.get_num_threads(), *tables, q.shape[1], k.shape[1], *pointers)


def log_probabilities(logits_NV: Tensor, token_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of one token of each row of logits, and the entropy of the row (which has no gradient)."""
    return _ReadOut.apply(logits_NV.contiguous(), token_N.contiguous(), temperature)


class _ReadOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, token_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        results = [torch.empty(len(token_N)) for _ in range(3)]
        ctx.temperature = temperature
        ctx.save_for_backward(logits_NV, token_N, results[2])
        _read("read_out", logits_NV, temperature, token_N, *results)
        ctx.mark_non_differentiable(results[1])
        return results[0], results[1]

    @staticmethod
    def backward(ctx: Any, *towards: Tensor) -> tuple[Tensor | None, ...]:
        logits, token, spread = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        _read("unread", logits, ctx.temperature, token, spread, towards[0].contiguous(), gradient)
        return gradient, None, None


def _read(function: str, logits_NV: Tensor, temperature: float, *others: Tensor) -> None:
    kernel = _kernel(_ANY_WIDTH, logits_NV.dtype)
    assert kernel
    pointers = (x.data_ptr() for x in (logits_NV, *others))
    getattr(kernel, function)(torch.get_num_threads(), *logits_NV.shape, 1.0 / temperature, *pointers)


class NativeSlots(Slots):
    """`Slots`, attended by decode.c. What a slot reads does not depend on its neighbours, to the bit."""

    def _prepare(self, store: Callable[..., list[Tensor]], slots: int, heads: int, room: int, width: int) -> None:
        tiles = -(-room // _LANES)
        self.own = self.words = store(slots, tiles, heads, 2, _LANES * width)
        self._row = tiles * _LANES
        kernel = _kernel(width, self.dtype)
        if kernel is None:
            raise ValueError(f"there is no kernel for heads of {width} here: ask `best_memories`")
        self._attend = kernel.attend

    def _seat(self) -> None:
        prompt_S = self.prompt_of[: self.busy].numpy()
        self._slot = np.argsort(prompt_S, kind="stable")
        ends = np.flatnonzero(np.diff(prompt_S[self._slot], append=-1)) + 1
        cuts = [np.arange(start, end, _BLOCK) for start, end in zip((0, *ends[:-1]), ends, strict=True)]
        self._start = np.concatenate((*cuts, ends[-1:]))
        self._prompt = prompt_S[self._slot[self._start[:-1]]]

    def begin_step(self) -> Tensor:
        return self.prompt_length[self.prompt_of[: self.busy]] + self.said[: self.busy]

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        q, k, v = (x.float().contiguous() for x in (q_NHD, k_NKD, v_NKD))
        seen = torch.empty_like(q)
        prompt_keys, prompt_values, words = self.prompt_keys[layer], self.prompt_values[layer], self.words[layer]
        self._attend(
            torch.get_num_threads(),
            len(self._prompt),
            _BLOCK,
            *(table.ctypes.data for table in (self._start, self._prompt, self._slot)),
            *(lengths.data_ptr() for lengths in (self.prompt_length, self.said)),
            q.shape[1],
            k.shape[1],
            prompt_keys.shape[-1],
            self._row,
            *(x.data_ptr() for x in (q, k, v, prompt_keys, prompt_values, words, seen)),
        )
        return seen


class NativeHalfSlots(NativeSlots):
    """Keys and values kept in bfloat16, which is what a decoder that computes in bfloat16 makes."""

    dtype = torch.bfloat16
