"""Read the JSON files and the weights of a model folder in Hugging Face format, and write its config.json."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from schoolhouse.types import SchoolError


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file. Raises SchoolError; the message names the file and the line."""
    if not path.is_file():
        raise SchoolError(f"{path} is missing: is {path.parent} a model folder in Hugging Face format?")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SchoolError(f"{path} is not valid JSON ({error}); it may be truncated: copy it again") from error
    if not isinstance(value, dict):
        raise SchoolError(f"{path} should hold a JSON object, not {type(value).__name__}")
    return value


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of a model folder. If a file is missing or damaged, SchoolError names the file."""
    weights: dict[str, Tensor] = {}
    for path in weight_paths(folder):
        weights.update(read_tensors(path))
    return weights


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of one file, which is a safetensors file or a file of torch.save."""
    return (_read_safetensors if path.suffix == ".safetensors" else _read_pickled)(path)


def weight_paths(folder: Path) -> list[Path]:
    """Find the files with the weights: safetensors files, or pytorch_model.bin if the folder has no safetensors."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if not index.exists() and not (folder / name).exists():
            continue
        names = [name]
        if index.exists():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise SchoolError(f"{index} has no `weight_map`: the index is damaged, copy it again")
            names = sorted({str(shard) for shard in weight_map.values()})
        for shard in names:
            if not (folder / shard).is_file():
                raise SchoolError(
                    f"{folder / shard} is missing, but the index lists this file; copy the file to the folder"
                )
        return [folder / shard for shard in names]
    raise SchoolError(
        f"{folder / 'model.safetensors'} is missing; a model folder holds its weights in model.safetensors or "
        "pytorch_model.bin"
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as shard:
            return {key: shard.get_tensor(key) for key in shard.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise SchoolError(f"{path} cannot be read ({error}); it is truncated or damaged: copy it again") from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    """Read a file of torch.save. The option `weights_only` makes sure that no code in the file is run."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise SchoolError(f"{path} cannot be read ({error}); it is truncated or damaged: copy it again") from error
    return {str(name): tensor for name, tensor in weights.items()}


_ROPE_TYPES_OF_TRANSFORMERS_4 = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


def write_config(folder: Path, config: Mapping[str, Any], eos_id: int | None, pad_id: int | None) -> None:
    """Write a config.json from which transformers 4 and transformers 5 load the same model, with float32 weights.

    All keys of the original config.json are kept, also keys that only other programs read.
    """
    tokens = {"eos_token_id": eos_id, "pad_token_id": pad_id, "bos_token_id": None}
    kept = {key: value for key, value in config.items() if key in tokens and value is not None}
    merged = {**config, **tokens, **kept, "dtype": "float32", "torch_dtype": "float32"}
    text = json.dumps({**merged, **_rope_of_transformers_4(config)}, indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def _rope_of_transformers_4(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys with which transformers 4 reads the values of `rope_parameters`, a key of transformers 5.

    Without these keys, transformers 4 uses `rope_theta: 10000`, and the model generates wrong text.
    """
    rope = config.get("rope_parameters")
    if not isinstance(rope, Mapping):
        return {}
    keys: dict[str, Any] = {}
    if isinstance(rope.get("full_attention"), Mapping):  # one entry for each type of layer, as in Gemma 3
        if isinstance(local := rope.get("sliding_attention"), Mapping):
            keys["rope_local_base_freq"] = local.get("rope_theta")
        rope = rope["full_attention"]
    if rope.get("rope_type", "default") not in _ROPE_TYPES_OF_TRANSFORMERS_4:
        return {}
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    keys["rope_theta"] = rope.get("rope_theta", 10_000.0)
    keys["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    if "partial_rotary_factor" in rope:
        keys["partial_rotary_factor"] = rope["partial_rotary_factor"]
        if config.get("model_type") == "gpt_neox":
            keys["rotary_pct"], keys["rotary_emb_base"] = rope["partial_rotary_factor"], keys["rope_theta"]
    return {key: value if config.get(key) is None else config[key] for key, value in keys.items()}
