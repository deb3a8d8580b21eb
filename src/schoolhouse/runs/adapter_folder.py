"""Adapter folders: a LoRA adapter without its base model, in the format of the package peft.

This file reads only the JSON files of an adapter folder. The file model/lora_folder.py reads and writes the tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from schoolhouse.runs.atomic_io import read_json, resolve_model
from schoolhouse.runs.hub_cache import is_on_disk, parse_hub_name
from schoolhouse.types import SchoolError

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
BASE = "base_model.json"
"""A file that this package adds to an adapter folder. The file has the checksum of the base model's weights, and the
path of the base model relative to the adapter."""

_FULL_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def is_adapter(folder: Path) -> bool:
    """Return whether a model folder holds an adapter instead of a whole model.

    Raises SchoolError if the folder holds an adapter and a whole model, because the user could mean either of the two.
    """
    if not (folder / CONFIG).is_file():
        return False
    if found := [name for name in _FULL_WEIGHTS if (folder / name).exists()]:
        raise SchoolError(
            f"{folder} holds the weights of a whole model ({found[0]}) and an adapter ({CONFIG}): move one of them to "
            "another folder"
        )
    return True


def base_name(folder: Path) -> str:
    """Return the name of an adapter's base model: a path, or `ORG/NAME` or `ORG/NAME@REVISION`."""
    config = read_json(folder / CONFIG)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(name, str) or not name:
        raise SchoolError(
            f"{folder / CONFIG} does not name the base model: write its folder into the key `base_model_name_or_path`"
        )
    return (
        f"{name}@{revision}" if isinstance(revision, str) and parse_hub_name(name) and not Path(name).exists() else name
    )


def base_folder(folder: Path) -> Path:
    """Return the model folder with config.json: the base model of an adapter, or else the folder itself.

    The base model is found by its name, or by its path relative to the adapter if the user moved both folders together.
    Raises SchoolError if the base model is not on this machine, or if the base model is itself an adapter.
    """
    if not is_adapter(folder):
        return folder
    name, beside = base_name(folder), read_base(folder).get("folder")
    places = [name, *([folder / beside] if isinstance(beside, str) else [])]
    if not (found := [place for place in places if is_on_disk(place)]):
        fetch = f"fetch it with `school pull {name}`, or " if parse_hub_name(name) else ""
        raise SchoolError(
            f"the adapter {folder} changes the base model {name}, which is not on this machine: {fetch}write the "
            f"folder of the base model into the key `base_model_name_or_path` of {folder / CONFIG}"
        )
    base = resolve_model(found[0])
    if is_adapter(base):
        raise SchoolError(
            f"the base model of the adapter {folder} is another adapter ({base}): write the folder of a whole model "
            f"into the key `base_model_name_or_path` of {folder / CONFIG}"
        )
    return base


def read_base(folder: Path) -> dict[str, Any]:
    """Return the content of base_model.json, which describes the base model of an adapter. The result is empty for
    folders of other programs."""
    return read_json(folder / BASE) if (folder / BASE).is_file() else {}
