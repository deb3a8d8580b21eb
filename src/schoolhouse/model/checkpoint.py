"""Read and write model folders in Hugging Face format: config.json and safetensors. Errors name the damaged file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from schoolhouse.model.decoder import ARCHITECTURES, Decoder, model_config_to_json, parse_model_config
from schoolhouse.types import SchoolError

if TYPE_CHECKING:
    from schoolhouse.model.hf_adapter import HFAdapter


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
    """All tensors of model.safetensors, or of the shards in model.safetensors.index.json."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise SchoolError(f"{index} has no `weight_map`: the index is damaged, copy it again")
        names = sorted({str(name) for name in weight_map.values()})
    weights: dict[str, Tensor] = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise SchoolError(f"{path} is missing; a model folder holds its weights in safetensors")
        try:
            with safe_open(path, framework="pt") as shard:
                for key in shard.keys():  # noqa: SIM118 (not a dict)
                    weights[key] = shard.get_tensor(key)
        except SafetensorError as error:
            raise SchoolError(f"{path} cannot be read ({error}); it is truncated or damaged: copy it again") from error
    return weights


def load_decoder(folder: Path) -> Decoder | HFAdapter:
    """The decoder of a model folder, in float32. If `Decoder` does not have the architecture, use `HFAdapter`."""
    config = read_json(folder / "config.json")
    if config.get("model_type") not in ARCHITECTURES:
        from schoolhouse.model.hf_adapter import load_adapter  # transformers takes seconds to import

        return load_adapter(folder)
    try:
        decoder = Decoder(parse_model_config(config, str(folder / "config.json")))
    except (ValueError, TypeError, RuntimeError, MemoryError, OverflowError, ZeroDivisionError) as error:
        raise SchoolError(f"{folder / 'config.json'} describes a model that cannot be built: {error}") from error
    weights = read_weights(folder)
    if decoder.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    parameters = dict(decoder.named_parameters())
    missing, unexpected = sorted(parameters.keys() - weights.keys()), sorted(weights.keys() - parameters.keys())
    if missing or unexpected:
        raise SchoolError(
            f"{folder}: weights do not fit config.json; missing {missing[:4]}, unexpected {unexpected[:4]}: "
            "copy the folder again"
        )
    for name, parameter in parameters.items():
        if parameter.shape != weights[name].shape:
            raise SchoolError(
                f"{folder}: `{name}` is {list(weights[name].shape)} in the file, {list(parameter.shape)} by "
                "config.json: copy the folder again"
            )
        parameter.data.copy_(weights[name])
    return decoder


def save_decoder(decoder: Decoder | HFAdapter, folder: Path, eos_id: int | None, pad_id: int | None) -> None:
    """Write config.json and model.safetensors. transformers can load the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(decoder, Decoder):
        decoder.save(folder)
        return
    config = {
        **model_config_to_json(decoder.config),
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "bos_token_id": None,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: parameter.detach().cpu().contiguous() for name, parameter in decoder.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
