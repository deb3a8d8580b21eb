"""Reads the generation settings of a model folder: the ids that end a reply, and the rest of generation_config.json.

A model can have several ids that end a reply (Llama 3: `<|end_of_text|>`, `<|eom_id|>`, `<|eot_id|>`). Each of these
ids stops sampling. All of these ids are written again when the model is saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schoolhouse.runs.atomic_io import read_json

FILE_NAME = "generation_config.json"


def read_generation_config(folder: Path) -> dict[str, Any]:
    """Return the content of generation_config.json. The `eos_token_id` of the result also gets the ids of config.json.

    A missing file counts as an empty file. Raises SchoolError if a file is damaged; the message names the file.
    """
    config = _read_optional(folder / FILE_NAME)
    ids = eos_token_ids(config)
    model_config = _read_optional(folder / "config.json")
    text_config = model_config.get("text_config")
    for source in (model_config, text_config if isinstance(text_config, dict) else {}):
        ids = (*ids, *eos_token_ids(source))
    return {**config, "eos_token_id": list(dict.fromkeys(ids))} if ids else config


def eos_token_ids(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the `eos_token_id` of a config as a tuple of ids. The config holds one id, a list of ids, or null."""
    value = config.get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    return tuple(token for token in values if isinstance(token, int) and not isinstance(token, bool) and token >= 0)


def merged_generation_config(kept: Mapping[str, Any], stop_ids: Sequence[int], pad_id: int) -> dict[str, Any]:
    """Return the settings to save with a model: its original settings, and all ids that end a reply."""
    return {**kept, "eos_token_id": list(stop_ids), "pad_token_id": pad_id}


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
