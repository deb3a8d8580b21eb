"""Merge a LoRA adapter into its base model, because other programs read only whole models."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from schoolhouse.runs.adapter_folder import is_adapter


@contextmanager
def whole_model(folder: Path, name: str) -> Generator[Path]:
    """Yield the folder of a whole model for a `with` block: `folder` itself, or a temporary folder called `name`.

    The temporary folder holds the base model of an adapter folder with the adapter added, in float32.
    """
    if not is_adapter(folder):
        yield folder
        return
    from schoolhouse.model.lora_folder import save_merged

    with tempfile.TemporaryDirectory(prefix="school-merge-") as place:
        save_merged(folder, Path(place) / name)
        yield Path(place) / name
