"""The commands `school pull` and `school import` make model folders, which all other commands can read."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from schoolhouse.cli.options import parse_options
from schoolhouse.config import BaseConfig
from schoolhouse.types import SchoolError


class Pull(BaseConfig):
    name: str
    """Name of the model on the Hugging Face Hub: ORG/NAME."""
    to: Path | None = None
    """Folder for the model; default: Hugging Face's cache, and other commands then find the model by its name."""
    revision: str = "main"
    """Branch, tag or commit of the model's repository."""


def pull(args: Sequence[str]) -> None:
    """Run the command `school pull ORG/NAME [--to DIR] [--revision R]`."""
    c = parse_options(Pull, args, "school pull ORG/NAME [--to DIR] [--revision R]", ("name",))
    if c is None:
        return
    from schoolhouse.hub.pull import pull as fetch
    from schoolhouse.runs.adapter_folder import base_name, is_adapter
    from schoolhouse.runs.hub_cache import is_on_disk

    try:
        pulled = fetch(c.name, c.to, c.revision)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the download was stopped; run the same command again to continue it") from None
    for file, size in pulled.sizes.items():
        print(f"{size:>14,}  {file}" + ("" if file in pulled.fetched else "  (was there already)"))
    total, fetched = (sum(pulled.sizes[file] for file in files) for files in (pulled.sizes, pulled.fetched))
    print(f"{total:>14,}  bytes in {len(pulled.sizes)} files, {fetched:,} of them fetched now")
    print(f"commit {pulled.commit}, licence {pulled.licence or 'not named'}, folder {pulled.folder}")
    name = c.name if c.revision == "main" else f"{c.name}@{c.revision}"
    if is_adapter(pulled.folder) and not is_on_disk(base := base_name(pulled.folder)):
        print(f"this is a LoRA adapter; fetch its base model too: school pull {shlex.quote(base)}")
    print(f"next: school chat {shlex.quote(str(c.to or name))}")


class Import(BaseConfig):
    file: Path
    """File in GGUF format."""
    to: Path
    """Folder to write. It must be new or empty."""
    tokenizer: Path | None = None
    """Folder of the original model's tokenizer. Needed if the tokenizer in the file cannot be read."""


def import_model(args: Sequence[str]) -> None:
    """Run the command `school import FILE.gguf --to DIR`."""
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
