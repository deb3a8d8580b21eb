"""The command `school export` writes a model folder for other programs, with a model card about the training.

The format `hf` is the Hugging Face format, which transformers, vLLM and this package read. The format `gguf` is one
float32 file for llama.cpp. The format `int8` is also one file for llama.cpp, but the matrices consist of 8-bit numbers
in blocks of 32 numbers (Q8_0). The `int8` file has a quarter of the size of the `gguf` file.

The adapter of a LoRA run is merged into its base model first, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from schoolhouse.cli.options import parse_options
from schoolhouse.config import BaseConfig
from schoolhouse.export.gguf import write_gguf
from schoolhouse.export.hf_folder import DType, copy_model_folder
from schoolhouse.export.merge import whole_model
from schoolhouse.export.model_card import model_name, render_model_card
from schoolhouse.runs.atomic_io import atomic_write, resolve_model
from schoolhouse.types import SchoolError


class Export(BaseConfig):
    model: Path
    """Folder of a model, or of a run: its newest checkpoint."""
    to: Path
    """Folder to write. It must be new or empty."""
    format: Literal["hf", "gguf", "int8"] = "hf"
    """hf: Hugging Face; gguf: llama.cpp in float32; int8: llama.cpp in 8 bits."""
    dtype: DType | None = None
    """Number type of the weights in the format hf; none: the model's own type, or float32 for a merged LoRA adapter."""
    licence: str = "apache-2.0"
    """Licence of the weights, for the model card."""


def export(args: Sequence[str]) -> None:
    """Run the command `school export MODEL --to DIR`."""
    c = parse_options(Export, args, "school export MODEL --to DIR [--format hf|gguf|int8] [--dtype D]", ("model",))
    if c is None:
        return
    source = resolve_model(c.model)
    if not source.is_dir():
        raise SchoolError(f"{c.model} is not a folder; give a run folder, or a model folder in Hugging Face format")
    if c.to.exists() and any(c.to.iterdir() if c.to.is_dir() else [c.to]):
        raise SchoolError(f"the folder {c.to} is not empty: give a new folder with --to")
    if c.format != "hf" and c.dtype is not None:
        raise SchoolError(f"--dtype {c.dtype} is only for --format hf; use --format int8 for a smaller GGUF file")
    c.to.mkdir(parents=True, exist_ok=True)
    name = model_name(c.model)
    with whole_model(source, name) as folder:
        if c.format == "hf":
            copy_model_folder(folder, c.to, c.dtype)
        else:
            write_gguf(folder, c.to / f"{name}.gguf", int8=c.format == "int8")
    atomic_write(c.to / "README.md", render_model_card(c.model, c.format, c.licence))
    for path in sorted(c.to.iterdir()):
        print(f"{path.stat().st_size:>12,}  {path}")
