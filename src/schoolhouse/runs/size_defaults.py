"""Defaults of training settings for the size of the model.

The defaults of the recipes fit models of about one million parameters. With these defaults, a large pretrained model
would lose in a few steps what it knows. So for a larger model, the command line chooses other values for the keys that
the user does not give, and says which values it chose.
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
"""The learning rates of the recipes were measured with models of about this number of parameters."""

LEARNING_RATE_POWER = 0.75
"""The learning rate falls with this power of the number of parameters. From the default 2e-4 of GRPO follow 5e-6 for
135M parameters and 1e-6 for 1B parameters, which are usual rates for full fine-tuning."""

LORA_RATE_FACTOR = 10.0
"""The best learning rate of LoRA is about ten times the best rate of full fine-tuning (Schulman et al. 2025, "LoRA
Without Regret")."""

LARGE, LORA_RANK = 100_000_000, 16
"""From LARGE parameters on, LoRA of rank LORA_RANK is the default."""

LARGE_BATCH: Mapping[str, int] = {
    "prompts_per_step": 8,
    "group_size": 8,
    "batch_size": 16,
    "sampling.max_new_tokens": 256,
}
"""The sizes of a step for a model with at least LARGE parameters. With such a step, training is possible on a CPU."""


def size_defaults(recipe: type[BaseConfig], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return values for the keys of a recipe that depend on the size of the model. The keys of the result are dotted.

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
        return {}  # the recipe opens the model, and says what is wrong
    if not parameters:
        return {}
    chosen: dict[str, Any] = {}
    if parameters >= LARGE:
        chosen |= {"lora.rank": LORA_RANK, **LARGE_BATCH}
    chosen |= adapter_settings(folder)
    given_rank = lookup(given, "lora.rank")
    rank = int(given_rank if given_rank is not None else chosen.get("lora.rank", 0)) if "lora.rank" in keys else 0
    if parameters > SMALL or rank:
        default = recipe.model_construct().model_dump()
        factor = min(1.0, (SMALL / parameters) ** LEARNING_RATE_POWER) * (LORA_RATE_FACTOR if rank else 1.0)
        chosen["optimizer.learning_rate"] = float(f"{lookup(default, 'optimizer.learning_rate') * factor:.2g}")
    return {key: value for key, value in chosen.items() if key in keys and lookup(given, key) is None}


def num_parameters(folder: Path) -> int:
    """Count the parameters of a model from the headers of its weight files. No weights are read.

    For an adapter, the parameters of its base model are counted.
    """
    total = 0
    for path in weight_files(base_folder(folder)):
        if path.suffix != ".safetensors":
            total += path.stat().st_size // 4
            continue
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                total += math.prod(tensor["shape"])
    return total


def adapter_settings(folder: Path) -> dict[str, float]:
    """Return `lora.rank` and `lora.alpha` of an adapter folder in PEFT format. Empty for a folder without an adapter.

    A value that is not a number is left out, because loading the adapter then says what is wrong.
    """
    config = read_json(folder / CONFIG) if is_adapter(folder) else {}
    values = {"lora.rank": config.get("r"), "lora.alpha": config.get("lora_alpha")}
    return {key: value for key, value in values.items() if isinstance(value, int | float)}
