"""Load and save models with a LoRA adapter, in the folder format of the package peft.

An adapter folder has the files adapter_config.json and adapter_model.safetensors, and no weights of the base model.
This package also writes base_model.json with a checksum of the base model, so that an adapter is never used with
another base model.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from schoolhouse.algorithms.settings import Lora
from schoolhouse.data.chat import Conversation
from schoolhouse.data.chat_settings import ChatConfig
from schoolhouse.data.generation_config import FILE_NAME, read_generation_config
from schoolhouse.data.tokenizer import Tokenizer
from schoolhouse.model.checkpoint import load_decoder, save_decoder
from schoolhouse.model.decoder import Decoder
from schoolhouse.model.folder import read_json, read_tensors
from schoolhouse.model.lora import (
    Adapter,
    adapter_tensors,
    add_adapter,
    check_trainable,
    init_adapter,
    linear_layers,
    merge_adapter,
    set_adapter_tensors,
    target_layers,
    weights_sha256,
)
from schoolhouse.runs.adapter_folder import BASE, CONFIG, WEIGHTS, base_folder, base_name, is_adapter, read_base
from schoolhouse.runs.atomic_io import resolve_model
from schoolhouse.runs.hub_cache import is_on_disk
from schoolhouse.types import SchoolError

if TYPE_CHECKING:
    from schoolhouse.model.hf_adapter import HFAdapter

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SELECTION = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""The keys that choose the layers with an adapter. A loaded adapter is saved with the values that it had."""

_READ = set("peft_type r lora_alpha use_rslora base_model_name_or_path revision".split()) | set(_SELECTION)
_INERT = set(  # keys that do not change what a model with this adapter computes
    "auto_mapping inference_mode lora_dropout task_type peft_version init_lora_weights ephemeral_gpu_offload "
    "loftq_config eva_config corda_config lora_ga_config megatron_config megatron_core ensure_weight_tying".split()
)
_NEUTRAL = {"bias": "none", "qalora_group_size": 16}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Methods of peft that initialise an adapter and also change the weights of the base model."""


def load_model(folder: Path | str, lora: Lora | None = None, seed: int = 0) -> Decoder | HFAdapter:
    """Load the decoder of a model folder or of an adapter folder, in float32.

    `lora`: with None, the model or the adapter of the folder is loaded. With a rank, the decoder gets a new adapter
    that
        depends only on `seed`; a folder that already holds an adapter of this rank keeps its adapter. With rank 0, the
        whole model is trained.

    Raises SchoolError if a file is missing or damaged, if the base model is not the base model of the adapter, or if
    the folder holds an adapter that does not fit `lora`.
    """
    name, folder = str(folder), resolve_model(folder)
    if is_adapter(folder):
        decoder = _load_adapter(folder, lora.base_dtype if lora and lora.rank else read_base(folder).get("dtype"))
        if lora:
            _check_request(folder, decoder, lora)
    else:
        decoder = load_decoder(folder)
        if lora and lora.rank:
            adapter = Adapter(
                lora.rank,
                lora.alpha,
                target_layers(decoder, lora.targets),
                name if not Path(name).exists() else str(folder.resolve()),
                weights_sha256(decoder),
                _DTYPES[lora.base_dtype],
            )
            add_adapter(decoder, adapter)
            init_adapter(decoder, seed)
    if lora:
        check_trainable(decoder, lora)
    return decoder


def load_conversation(folder: Path | str, chat: ChatConfig | None = None) -> Conversation:
    """Load tokenizer, chat template and generation settings of a model folder or of an adapter folder.

    Files that an adapter folder does not have are read from its base model.
    """
    folder = resolve_model(folder)
    base = base_folder(folder)
    words = folder if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")) else base
    ends = folder if (folder / FILE_NAME).is_file() else base
    return Conversation(Tokenizer.load(words), None, chat, read_generation_config(ends))


def save_model(decoder: Decoder | HFAdapter, folder: Path, eos_id: int | None, pad_id: int | None) -> None:
    """Write a decoder to a folder: only the adapter if the decoder has one, otherwise the whole model."""
    if decoder.lora is None:
        return save_decoder(decoder, folder, eos_id, pad_id)
    folder.mkdir(parents=True, exist_ok=True)
    adapter = decoder.lora
    tensors = {_peft_name(name): tensor.cpu().contiguous() for name, tensor in adapter_tensors(decoder).items()}
    save_file(tensors, folder / WEIGHTS[0], metadata={"format": "pt"})
    name, _, revision = adapter.base.partition("@") if not Path(adapter.base).exists() else (adapter.base, "", "")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": revision or None,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "use_rslora": adapter.use_rslora,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        **(adapter.selection or {"target_modules": _short_names(decoder, adapter.modules)}),
        "modules_to_save": None,
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    base = {
        "sha256": adapter.base_sha256,
        "dtype": str(adapter.base_dtype).removeprefix("torch."),
        "folder": os.path.relpath(adapter.base, folder.resolve()) if Path(adapter.base).exists() else None,
    }
    (folder / BASE).write_text(json.dumps(base, indent=2) + "\n", encoding="utf-8")
    return None


def save_merged(folder: Path, target: Path) -> None:
    """Write the base model of an adapter folder with the adapter added to its weights, as a whole model in float32."""
    if not is_adapter(folder):
        raise SchoolError(f"{folder} is a whole model, not an adapter; an adapter can be merged only once")
    decoder = _load_adapter(folder, "float32")
    merge_adapter(decoder)
    conversation = load_conversation(folder)
    save_model(decoder, target, conversation.tokenizer.eos_id, conversation.tokenizer.pad_id)
    conversation.save(target)


def read_adapter_tensors(folder: Path | str) -> dict[str, Tensor] | None:
    """Return the matrices A and B of an adapter folder by name, or None for the folder of a whole model."""
    folder = resolve_model(folder)
    return _read_tensors(folder) if is_adapter(folder) else None


# --- reading


def _load_adapter(folder: Path, dtype: str | None) -> Decoder | HFAdapter:
    """Load the base model and the adapter of an adapter folder. `dtype`: the number type of the frozen matrices."""
    config, noted, base = _read_config(folder), read_base(folder), base_folder(folder)
    decoder = load_decoder(base)
    sha256, name = weights_sha256(decoder), base_name(folder)
    if noted.get("sha256", sha256) != sha256:
        raise SchoolError(
            f"the adapter {folder} belongs to another base model than {base}: the weights there have the checksum "
            f"{sha256[:12]}, and the adapter needs {str(noted['sha256'])[:12]}. Restore the base model, or write the "
            f"folder of the right base model into the key `base_model_name_or_path` of {folder / CONFIG}"
        )
    tensors, modules = _read_tensors(folder), _named_layers(folder, decoder, config)
    adapter = Adapter(
        config["r"],
        float(config["lora_alpha"]),
        modules,
        name if not Path(name).exists() and is_on_disk(name) else str(base.resolve()),
        sha256,
        _DTYPES[dtype or "float32"],
        bool(config.get("use_rslora")),
        {key: config[key] for key in _SELECTION if key == "target_modules" or config.get(key) not in (None, [], "")},
    )
    add_adapter(decoder, adapter)
    wanted = adapter_tensors(decoder)
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise SchoolError(
            f"the adapter {folder} is not complete: {len(missing)} of its {len(wanted)} matrices are missing, such as "
            f"`{missing[0]}`: copy the folder again"
        )
    if unexpected := sorted(tensors.keys() - wanted.keys()):
        raise SchoolError(
            f"the adapter {folder} does not fit its base model {base}: {len(unexpected)} of its tensors have no layer "
            f"in the base model, such as `{unexpected[0]}`: use the base model of the adapter"
        )
    for key, tensor in wanted.items():
        if tensor.shape != tensors[key].shape:
            raise SchoolError(
                f"{folder}: `{key}` has the shape {list(tensors[key].shape)} in the file, but the shape should be "
                f"{list(tensor.shape)} for this base model and the rank {config['r']} in {CONFIG}: copy the folder "
                "again, or use the base model of the adapter"
            )
    set_adapter_tensors(decoder, tensors)
    return decoder


def _read_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json. Raises SchoolError for every setting that this package does not support."""
    path = folder / CONFIG
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise SchoolError(
            f"{path}: `peft_type` is {config.get('peft_type')}, but only LORA is supported: merge the adapter into its "
            "base model with the package peft, and use the merged folder"
        )
    for key, value in config.items():
        changes = value not in (None, False, "", [], {}) and value != _NEUTRAL.get(key)
        from_other_base = key == "init_lora_weights" and str(value).lower().startswith(_CHANGES_BASE)
        if (changes and key not in _READ | _INERT) or from_other_base:
            raise SchoolError(
                f"{path}: `{key}: {json.dumps(value)}` is not supported: merge the adapter into its base model with "
                "the package peft, and use the merged folder"
            )
    rank, alpha, targets = (config.get(key) for key in ("r", "lora_alpha", "target_modules"))
    if not isinstance(rank, int) or rank < 1:
        raise SchoolError(f"{path}: `r: {rank!r}` should be a whole number of at least 1: copy the folder again")
    if not isinstance(alpha, int | float) or alpha <= 0:
        raise SchoolError(f"{path}: `lora_alpha: {alpha!r}` should be a positive number: copy the folder again")
    if not targets or not (isinstance(targets, str) or all(isinstance(name, str) for name in _list(targets))):
        raise SchoolError(f"{path}: `target_modules: {targets!r}` should name layers: copy the folder again")
    for key, kind in (("exclude_modules", str), ("layers_pattern", str), ("layers_to_transform", int)):
        value = config.get(key)
        if value is not None and not all(isinstance(one, kind) for one in _list(value)):
            raise SchoolError(f"{path}: `{key}: {value!r}` is not a value that peft writes: copy the folder again")
    return config


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else [value]


def _named_layers(folder: Path, decoder: Decoder | HFAdapter, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the layers that get an adapter by the rules of peft.

    `target_modules` has the ends of names, one pattern, or all-linear. `exclude_modules` has ends of names or a pattern
    of layers to leave out. `layers_to_transform` has the numbers of the blocks.
    """
    targets, excluded = config["target_modules"], config.get("exclude_modules") or []
    if targets == "all-linear":
        names = target_layers(decoder, "all")
    else:
        root = getattr(decoder, "hf_model", decoder)
        names = tuple(name for name, _ in root.named_modules() if _matches(name, targets))
    if not isinstance(targets, str):
        names = tuple(name for name in names if _in_blocks(name, config))
    found = tuple(name for name in names if not _matches(name, excluded))
    outside = [name for name in found if name not in linear_layers(decoder)]
    if outside or not found:
        where = f"the layer `{outside[0]}`, which is not a linear layer of a block" if outside else "no layer"
        given = ", ".join(f"`{key}: {json.dumps(config[key])}`" for key in _SELECTION if config.get(key))
        raise SchoolError(
            f"{folder / CONFIG}: {given} names {where} of the base model: merge the adapter into its base model with "
            "the package peft, and use the merged folder"
        )
    return found


def _matches(name: str, wanted: str | list[str]) -> bool:
    """Return whether a pattern is the whole name of a layer, or whether one of several names is the end of the name."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == end or name.endswith(f".{end}") for end in wanted)


def _in_blocks(name: str, config: Mapping[str, Any]) -> bool:
    """Return whether a layer is in one of the blocks `layers_to_transform`; without this key, every layer is."""
    blocks = config.get("layers_to_transform")
    if blocks is None or blocks == []:
        return True
    lists = _list(config.get("layers_pattern") or r"[^.]*")
    matches = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name) for pattern in lists)
    match = next(filter(None, matches), None)
    return match is not None and int(match[1]) in _list(blocks)


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the matrices A and B of an adapter folder, in float32."""
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise SchoolError(
            f"{folder / WEIGHTS[0]} is missing, so the adapter has no weights (the base model is never used in place "
            "of an adapter): copy the folder again"
        )
    tensors = {}
    for name, tensor in read_tensors(path).items():
        match = re.fullmatch(r"base_model\.model\.(.+\.lora_[AB])(\.default)?\.weight", name)
        tensors[match[1] if match else name] = tensor.float()
    return tensors


def _check_request(folder: Path, decoder: Decoder | HFAdapter, lora: Lora) -> None:
    """Raise SchoolError if the settings `lora` do not describe the adapter that was loaded from a folder."""
    adapter = decoder.lora
    assert adapter is not None
    if not lora.rank:
        raise SchoolError(
            f"{folder} is a LoRA adapter of rank {adapter.rank}, but lora.rank 0 asks to train a whole model: give "
            f"--lora.rank {adapter.rank} to train the adapter further, or write a whole model with `school export "
            f"{folder} --to DIR` and train DIR"
        )
    settings = {"rank": (lora.rank, adapter.rank), "alpha": (lora.alpha, adapter.alpha)}
    for key, (asked, found) in settings.items():
        if asked != found:
            raise SchoolError(
                f"{folder} is a LoRA adapter with {key} {found:g}, but lora.{key} is {asked:g}: give --lora.{key} "
                f"{found:g} to train the adapter further, or write a whole model with `school export {folder} --to "
                "DIR` and train DIR"
            )
    if lora.targets != "all" and set(target_layers(decoder, lora.targets)) != set(adapter.modules):
        raise SchoolError(
            f"{folder} is a LoRA adapter of the layers {', '.join(_short_names(decoder, adapter.modules))}, but "
            f"lora.targets {lora.targets} means other layers: leave out lora.targets to train the layers of the "
            f"adapter, or write a whole model with `school export {folder} --to DIR` and train DIR"
        )


# --- names


def _peft_name(name: str) -> str:
    """`model.layers.0.mlp.up_proj.lora_A` -> `base_model.model.model.layers.0.mlp.up_proj.lora_A.weight`."""
    return f"base_model.model.{name}.weight"


def _short_names(decoder: Decoder | HFAdapter, modules: tuple[str, ...]) -> list[str]:
    """Return the last part of each layer name, or the whole names if a last part also fits another layer."""
    short = sorted({name.rpartition(".")[2] for name in modules})
    root = getattr(decoder, "hf_model", decoder)
    meant = {name for name, _ in root.named_modules() if name.rpartition(".")[2] in short}
    return short if meant == set(modules) else sorted(modules)
