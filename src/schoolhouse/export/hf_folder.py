"""Copy a model folder in Hugging Face format, and convert its weights to another number type."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

from schoolhouse.runs.atomic_io import read_json
from schoolhouse.runs.progress import phased

DType = Literal["float32", "bfloat16", "float16"]

FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
)
TEMPLATES = "additional_chat_templates"


@phased("writing the model folder")
def copy_model_folder(source: Path, folder: Path, dtype: DType | None) -> None:
    """Copy those files of a model folder that other programs read.

    `dtype`: the number type of the copied weights. None keeps the type of each tensor.
    """
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (source / TEMPLATES).is_dir():
        shutil.copytree(source / TEMPLATES, folder / TEMPLATES)
    shards = sorted(source.glob("*.safetensors"))
    if not shards:
        _convert_pickled(source, folder, dtype)
    elif dtype is None:
        for path in (*shards, *source.glob("*.safetensors.index.json")):
            shutil.copyfile(path, folder / path.name)
    else:
        _convert(shards, folder, dtype)
    if dtype is None:
        return
    config = {**read_json(source / "config.json"), "dtype": dtype, "torch_dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _convert(shards: list[Path], folder: Path, dtype: DType) -> None:
    """Write the shards with floating-point tensors of the type `dtype`. Several shards also get an index."""
    import torch
    from safetensors.torch import load_file, save_file

    weight_map, total_size = {}, 0
    for path in shards:
        weights = {
            name: tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor
            for name, tensor in load_file(path).items()
        }
        save_file(weights, folder / path.name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(weights, path.name))
        total_size += sum(tensor.nbytes for tensor in weights.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _convert_pickled(source: Path, folder: Path, dtype: DType | None) -> None:
    """Convert pytorch_model.bin to a safetensors file. Tensors that share memory in pytorch_model.bin are copied."""
    import torch
    from safetensors.torch import save_file

    from schoolhouse.model.folder import read_weights

    weights = read_weights(source)
    if dtype is not None:
        to = getattr(torch, dtype)
        weights = {name: tensor.to(to) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    weights = {name: tensor.clone().contiguous() for name, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
