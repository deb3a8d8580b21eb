"""The command `school import` converts a GGUF file to a model folder, which all other commands can read."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from schoolhouse.cli.options import parse_options
from schoolhouse.config import BaseConfig
from schoolhouse.types import SchoolError


class Import(BaseConfig):
    file: Path
    """File in GGUF format."""
    to: Path
    """Folder to write. It must be new or empty."""
    tokenizer: Path | None = None
    """Folder of the original model's tokenizer. Needed if the tokenizer in the file cannot be read."""


def import_model(args: Sequence[str]) -> None:
    """school import FILE.gguf --to DIR"""
    c = parse_options(Import, args, "school import FILE.gguf --to DIR", ("file",))
    if c is None:
        return
    if c.to.exists() and any(c.to.iterdir() if c.to.is_dir() else [c.to]):
        raise SchoolError(f"the folder {c.to} is not empty; give a new folder with --to")
    from schoolhouse.hub.gguf_import import import_gguf

    existed = c.to.exists()
    try:
        import_gguf(c.file, c.to, c.tokenizer)
    except BaseException:
        if not existed:
            shutil.rmtree(c.to, ignore_errors=True)  # half a model is no model
        raise
    for path in sorted(c.to.iterdir()):
        print(f"{path.stat().st_size:>12,}  {path}")
