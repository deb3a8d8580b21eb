"""C kernels, compiled once on the machine that runs them; where there is no compiler there are none."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_FOLDER = Path(__file__).with_name("kernels")
_SOURCES = tuple(str(_FOLDER / name) for name in ("decode.c", "packed.c", "readout.c", "rows.c"))
_OPTIONS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-lm")
_TARGETS = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-march=native",), ("-mcpu=native",))
_FUNCTIONS = {
    "attend": "nnnppppp" + "nnnn" + "ppppppp",
    "see": "nnpnnppppp",
    "unsee": "nnppnnppppppppp",
    "read_out": "nnnfppppp",
    "unread": "nnnfppppp",
    "draw": "nnnfpppp",
    "norm": "nnnfppp",
    "unnorm": "nnnfnppppp",
    "turn_heads": "nnnnfnppppp",
    "unturn_heads": "nnnnfnppppppp",
    "open_gate": "nnppp",
    "unopen_gate": "nnppppp",
}
"""Arguments of each, the number of threads first: n a whole number, f a float, p a pointer."""
_TYPES = {"n": ctypes.c_int64, "f": ctypes.c_float, "p": ctypes.c_void_p}
LANES = 16
ANY_HEAD_DIM = 64  # for what does not depend on it


@cache
def load_kernels(width: int, dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernels for heads of this width; None where they cannot be compiled. SCHOOLHOUSE_NATIVE=0 does without it."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if os.environ.get("SCHOOLHOUSE_NATIVE") == "0" or not compiler:
        return None
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
        sources = [path.read_text() for path in sorted(_FOLDER.iterdir()) if path.suffix in (".c", ".h")]
        made_of = "\n".join((*sources, version, _processor(), *_OPTIONS))
        stored = "uint16_t" if dtype == torch.bfloat16 else "float"
        name = f"kernels-{width}-{stored}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "schoolhouse"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / name).exists():
            _compile(compiler, (f"-DWIDTH={width}", f"-DSTORED={stored}"), folder / name)
        library = ctypes.CDLL(str(folder / name))  # torch is loaded already: both use its OpenMP, and so its threads
    except (OSError, subprocess.CalledProcessError):
        return None
    for function, types in _FUNCTIONS.items():
        declared = getattr(library, function)
        declared.restype = None
        declared.argtypes = [_TYPES[kind] for kind in types]
    return library


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


def call_kernel(function: str, width: int, dtype: torch.dtype, *arguments: Tensor | float | None) -> None:
    """Run one of the `kernel`s that must be there. Tensors are passed as where their numbers begin, None as nowhere."""
    library = load_kernels(width, dtype)
    assert library
    plain = (x.data_ptr() if isinstance(x, Tensor) else x for x in arguments)
    getattr(library, function)(torch.get_num_threads(), *plain)
