"""Compile the C kernels once on each machine. If there is no C compiler, torch is used instead of the kernels."""

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

import torch
from torch import Tensor

_FOLDER = Path(__file__).with_name("kernels")
_SOURCES = tuple(
    str(_FOLDER / name)
    for name in (
        "decode_attention.c",
        "packed_attention.c",
        "logprobs.c",
        "fused_ops.c",
        "packed_linear.c",
        "decoder_step.c",
    )
)
_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-lm")
_TARGET_FLAGS = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-march=native",), ("-mcpu=native",))
"""These flags are tried in this order until the compiler accepts them."""
_SIGNATURES = {
    "decode_attention": "nnnppppp" + "nnnn" + "ppppppp",
    "attention_forward": "nnpnnppppp",
    "attention_backward": "nnppnnppppppppp",
    "logprobs_forward": "nnnfppppp",
    "logprobs_backward": "nnnfppppp",
    "sample_tokens": "nnnfpppp",
    "rms_norm_forward": "nnnfppp",
    "rms_norm_backward": "nnnfnppppp",
    "rotary_forward": "nnnnfnppppp",
    "rotary_backward": "nnnnfnppppppp",
    "swiglu_forward": "nnppp",
    "swiglu_backward": "nnppppp",
    "pack_weight": "nnnnpp",
    "packed_linear": "nnnnnnnfppppp",
    "decoder_step": "nnnfpppp" + "nnppppp" + "nnnn" + "p",
}
"""Argument types of each kernel: n integer, f float, p pointer. The first argument is the number of threads."""
_PLAIN = (int, float, type(None))
_CTYPES = {"n": ctypes.c_int64, "f": ctypes.c_float, "p": ctypes.c_void_p}

ANY_HEAD_DIM = 64
"""The head width to pass for kernels that do not use the head width."""


@cache
def load_kernels(head_dim: int, dtype: torch.dtype) -> ctypes.CDLL | None:
    """Load the C kernels for heads of width `head_dim`.

    Returns None if the kernels cannot be compiled, or if SCHOOLHOUSE_NATIVE=0 is set.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if os.environ.get("SCHOOLHOUSE_NATIVE") == "0" or not compiler:
        return None
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
        sources = [path.read_text() for path in sorted(_FOLDER.iterdir()) if path.suffix in (".c", ".h")]
        fingerprint = "\n".join((*sources, compiler, version, _processor_features(), *_FLAGS))
        c_type = "uint16_t" if dtype == torch.bfloat16 else "float"
        name = f"kernels-{head_dim}-{c_type}-{hashlib.sha256(fingerprint.encode()).hexdigest()[:16]}.so"
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "schoolhouse"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / name).exists():
            _compile(compiler, (f"-DHEAD_DIM={head_dim}", f"-DDTYPE={c_type}"), folder / name)
        library = ctypes.CDLL(str(folder / name))  # torch is loaded already: the kernels share its OpenMP threads
    except (OSError, subprocess.CalledProcessError):
        return None
    for function_name, signature in _SIGNATURES.items():
        function = getattr(library, function_name)
        function.restype = None
        function.argtypes = [_CTYPES[letter] for letter in signature]
    return library


def count_lanes() -> int:
    """Return the number of values in a vector of the compiled kernels; 0 if there are no kernels.

    The number depends on the processor: 16 with AVX-512, 8 with AVX2, 4 with NEON.
    """
    library = load_kernels(ANY_HEAD_DIM, torch.float32)
    return library.lanes() if library else 0


def has_kernels(head_dim: int, dtype: torch.dtype) -> bool:
    """Return whether the C kernels support heads of width `head_dim`, which must be a multiple of two vectors."""
    lanes = count_lanes()
    return lanes > 0 and head_dim % (2 * lanes) == 0 and load_kernels(head_dim, dtype) is not None


def _processor_features() -> str:
    """Return the processor features that the compiler flag -march=native depends on.

    The name of a compiled file depends on these features, because several machines can share one cache folder.
    """
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return "\n".join(sorted(set(re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*$", cpuinfo, re.MULTILINE))))


def _compile(compiler: str, defines: Sequence[str], library: Path) -> None:
    """Compile the kernels and write the library file in one step, so that no other process reads half a file. Raises
    CalledProcessError if the compiler fails."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        compiled = Path(folder) / library.name
        for target_flags in _TARGET_FLAGS:
            command = [compiler, *target_flags, *defines, *_SOURCES, "-o", str(compiled), *_FLAGS]
            result = subprocess.run(command, capture_output=True, check=False)
            if result.returncode == 0:
                break
        result.check_returncode()
        compiled.replace(library)


def call_kernel(function_name: str, head_dim: int, dtype: torch.dtype, *arguments: Tensor | float | None) -> None:
    """Run a C kernel. A tensor is passed to the kernel as a pointer to its data, and None is passed as NULL."""
    plain = [x if isinstance(x, _PLAIN) else x.data_ptr() for x in arguments]
    _function(function_name, head_dim, dtype)(torch.get_num_threads(), *plain)


@cache
def _function(name: str, head_dim: int, dtype: torch.dtype) -> Callable[..., None]:
    library = load_kernels(head_dim, dtype)
    assert library
    return getattr(library, name)
