"""Choose default training settings for the size of the model.

The defaults of the recipes fit models of about one million parameters. With these defaults, a large pretrained model
would lose its knowledge in a few steps. For a larger model, the command line therefore chooses other values for keys
that the user does not give, and prints the chosen values.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schoolhouse.config import BaseConfig, leaf_fields, lookup
from schoolhouse.runs.adapter_folder import CONFIG, base_folder, is_adapter
from schoolhouse.runs.atomic_io import read_json, resolve_model
from schoolhouse.runs.manifest import weight_files
from schoolhouse.types import SchoolError

SMALL = 1_000_000
"""The number of parameters of the models with which the learning rates of the recipes were measured."""

LEARNING_RATE_POWER = 0.75
"""The exponent with which the learning rate falls as the number of parameters grows. For example, GRPO's default of
2e-4 becomes 5e-6 for 135M parameters and 1e-6 for 1B parameters, which are usual rates for full fine-tuning."""

LORA_RATE_FACTOR = 10.0
"""The best learning rate of LoRA is about ten times the best rate of full fine-tuning (Schulman et al. 2025, "LoRA
Without Regret")."""

LARGE, LORA_RANK = 100_000_000, 16
"""For models with at least LARGE parameters, LoRA of rank LORA_RANK is the default."""

LARGE_BATCH: Mapping[str, int] = {
    "prompts_per_step": 8,
    "group_size": 8,
    "batch_size": 16,
    "sampling.max_new_tokens": 256,
}
"""The sizes of a training step for a model with at least LARGE parameters. A step of this size is possible on a CPU."""


def size_defaults(recipe: type[BaseConfig], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return values for the keys of a recipe that depend on the size of the model. The keys of the result are dotted,
    such as `lora.rank`.

    given  the values of the user, as nested mappings. The result contains no key that the user gives.
    The result is empty for a small model, for a recipe without the key `model`, and if the model's folder does not
    exist.
    """
    keys, model = dict(leaf_fields(recipe)), given.get("model")
    if "model" not in keys or not isinstance(model, str):
        return {}
    try:
        folder = resolve_model(model)
        parameters = num_parameters(folder)
    except SchoolError:
        return {}  # the recipe opens the model later, and reports the error
    if not parameters:
        return {}
    chosen: dict[str, Any] = {}
    if parameters >= LARGE:
        chosen |= {"lora.rank": LORA_RANK, **LARGE_BATCH}
    chosen |= adapter_settings(folder)
    given_rank = lookup(given, "lora.rank")
    asked = chosen.get("lora.rank", 0) if given_rank is None else given_rank
    try:
        rank = int(float(asked)) if "lora.rank" in keys else 0
    except (TypeError, ValueError, OverflowError):
        return {}  # the check of the values says what is wrong
    if parameters > SMALL or rank:
        default = recipe.model_construct().model_dump()
        factor = min(1.0, (SMALL / parameters) ** LEARNING_RATE_POWER) * (LORA_RATE_FACTOR if rank else 1.0)
        chosen["optimizer.learning_rate"] = float(f"{lookup(default, 'optimizer.learning_rate') * factor:.2g}")
    return {key: value for key, value in chosen.items() if key in keys and lookup(given, key) is None}


def num_parameters(folder: Path) -> int:
    """Count the parameters of a model from the headers of its weight files. No weights are read.

    For an adapter, the parameters of its base model are counted.
    """
    return sum(map(_num_parameters_of_file, weight_files(base_folder(folder))))


def _num_parameters_of_file(path: Path) -> int:
    """Count the parameters of one weight file. Raises SchoolError if the file is not a whole safetensors file."""
    size = path.stat().st_size
    if path.suffix != ".safetensors":
        config = path.parent / "config.json"
        stored = read_json(config) if config.is_file() else {}
        is_half = str(stored.get("dtype", stored.get("torch_dtype"))) in ("float16", "bfloat16")
        return size // (2 if is_half else 4)
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError("its header is cut off")
            header = json.loads(file.read(length))
        return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SchoolError(f"{path} cannot be read ({error}); it is truncated or damaged: copy it again") from error


def adapter_settings(folder: Path) -> dict[str, float]:
    """Return `lora.rank` and `lora.alpha` of an adapter folder in PEFT format, or {} for another folder.

    A value that is not a number is left out, because loading the adapter then says what is wrong.
    """
    config = read_json(folder / CONFIG) if is_adapter(folder) else {}
    values = {"lora.rank": config.get("r"), "lora.alpha": config.get("lora_alpha")}
    return {key: value for key, value in values.items() if isinstance(value, int | float)}
