"""Finds models that `school pull` has fetched, in the cache of Hugging Face. This module makes no network requests."""

from __future__ import annotations

import re
from pathlib import Path

_HUB_NAME = re.compile(r"(\w[\w.-]{,95}\b/\w[\w.-]{,95}\b)(?:@([\w./-]+))?", re.ASCII)


def parse_hub_name(name: str) -> tuple[str, str] | None:
    """Split `ORG/NAME` or `ORG/NAME@REVISION` into (ORG/NAME, revision). Returns None for any other text."""
    found = _HUB_NAME.fullmatch(name)
    if not found or ".." in name or "--" in name or found[1].endswith(".git"):
        return None  # as the hub does
    return found[1], found[2] or "main"


def find_cached_model(name: str) -> Path | None:
    """Return the folder of a complete model in the cache (HF_HOME), or None if the cache has no such model.

    `school pull` fetches config.json last, so a cached model with config.json is complete. For a LoRA adapter, the last
    file is adapter_config.json.
    """
    parsed = parse_hub_name(name)
    if parsed is None:
        return None
    from huggingface_hub import try_to_load_from_cache  # only names of the hub need this import

    for file in ("config.json", "adapter_config.json"):
        config = try_to_load_from_cache(parsed[0], file, revision=parsed[1])
        if isinstance(config, str):
            return Path(config).parent
    return None


def is_on_disk(model: Path | str) -> bool:
    """Return True if a model is on this machine, either as a local folder or as a complete model in the cache."""
    return Path(model).is_dir() or find_cached_model(str(model)) is not None
