"""Convert a GGUF file to a model folder in Hugging Face format. llama.cpp, LM Studio and Ollama use GGUF files.

This module reads the architectures that `school export` can write. transformers reads the other architectures. The key
`tokenizer.ggml.pre` of the file says how text is split before tokenization. transformers ignores this key.
In the shapes of tensors, D is the width of a head, and H is the number of heads.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from schoolhouse.export.gguf_split import DIGITS, GPT2, SPLITS
from schoolhouse.model.checkpoint import save_decoder
from schoolhouse.model.config import ModelConfig, parse_model_config
from schoolhouse.model.decoder import Decoder
from schoolhouse.model.folder import write_config
from schoolhouse.model.rope import rope_frequencies
from schoolhouse.runs.progress import phased
from schoolhouse.types import SchoolError

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedTokenizerBase


@phased("reading the GGUF file")
def import_gguf(path: Path, folder: Path, tokenizer: Path | None = None) -> None:
    """Write the model of a GGUF file to a folder: config, float32 weights, tokenizer, chat template, stop ids.

    `tokenizer`: a folder with the tokenizer of the original model. The function uses this folder's tokenizer instead of
        the tokenizer in the file.

    Raises SchoolError if the file is damaged, or if transformers cannot read its architecture.
    """
    reader = _open(path)
    folder.mkdir(parents=True, exist_ok=True)
    if (decoder := _read_decoder(path, reader)) is not None:
        save_decoder(decoder, folder, _field(reader, "tokenizer.ggml.eos_token_id"), None)
    else:
        _convert_by_transformers(path, folder, _field(reader, "general.architecture"))
    if tokenizer is not None:
        from transformers import AutoTokenizer

        load: Any = AutoTokenizer.from_pretrained  # its annotation says that it may return None
        _write_tokenizer(load(tokenizer, local_files_only=True), folder)
    else:
        _save_tokenizer(path, folder, reader)
    _save_generation_config(folder, reader)


def _open(path: Path) -> GGUFReader:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise SchoolError("to read GGUF, install the extra `release`: pip install 'schoolhouse[release]'") from error
    if not path.is_file():
        raise SchoolError(f"{path} is not a file; give a .gguf file")
    try:
        return GGUFReader(path)
    except Exception as error:  # the library raises what a damaged number leads to
        raise SchoolError(f"{path} is not a complete GGUF file ({error}); download the file again") from error


def _field(reader: GGUFReader, name: str) -> Any:
    """Return the value of a key, or None if the file does not have the key."""
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _read_decoder(path: Path, reader: GGUFReader) -> Decoder | None:
    """Return the model of the file, or None if `Decoder` does not have the same architecture and weights."""
    import gguf

    architecture = _field(reader, "general.architecture")
    if architecture not in ("llama", "qwen2", "qwen3"):
        return None
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    factors = tensors.pop("rope_freqs.weight", None)
    config = _model_config(path, reader, architecture, tied="output.weight" not in tensors)
    if factors is not None:
        config = replace(config, rope_scaling=_llama3_scaling(path, config, torch.from_numpy(factors.data.copy())))
    decoder = Decoder(config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    parameters = {
        str(names.get_name(name, try_suffixes=(".weight", ".bias"))): (name, parameter)
        for name, parameter in decoder.named_parameters()
    }
    if parameters.keys() != tensors.keys():
        return None
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for gguf_name, (name, parameter) in parameters.items():
        array = gguf.quants.dequantize(tensors[gguf_name].data, tensors[gguf_name].tensor_type)
        if array.shape != tuple(parameter.shape):
            raise SchoolError(
                f"{path} is damaged: the tensor `{gguf_name}` has the shape {list(array.shape)}, but the keys of the "
                f"file require {list(parameter.shape)}; download the file again"
            )
        if architecture == "llama" and (projection := name.split(".")[-2]) in heads:
            array = _pair_halves(array, heads[projection])
        parameter.data.copy_(torch.from_numpy(np.array(array)))
    return decoder


def _model_config(path: Path, reader: GGUFReader, model_type: str, tied: bool) -> ModelConfig:
    """Read the sizes and the rotary embedding of the model from the keys of the file.

    `model_type`: the architecture of the file. Its name is the same in GGUF and in Hugging Face configs.
    """

    def key(name: str, default: Any = None) -> Any:
        value = _field(reader, f"{model_type}.{name}")
        if value is None and default is None:
            raise SchoolError(f"{path} is damaged: the key `{model_type}.{name}` is missing; download the file again")
        return default if value is None else value

    scaling: dict[str, Any] = {}
    if (kind := key("rope.scaling.type", "none")) != "none":
        scaling = {"rope_type": kind, "factor": key("rope.scaling.factor")}
        if kind == "yarn":
            scaling["original_max_position_embeddings"] = key("rope.scaling.original_context_length")
    hidden_size, num_heads = key("embedding_length"), key("attention.head_count")
    return parse_model_config(
        {
            "model_type": model_type,
            "vocab_size": len(_field(reader, "tokenizer.ggml.tokens")),
            "hidden_size": hidden_size,
            "intermediate_size": key("feed_forward_length"),
            "num_hidden_layers": key("block_count"),
            "num_attention_heads": num_heads,
            "num_key_value_heads": key("attention.head_count_kv", num_heads),
            "head_dim": key("attention.key_length", hidden_size // num_heads),
            "max_position_embeddings": key("context_length"),
            "rms_norm_eps": key("attention.layer_norm_rms_epsilon"),
            "rope_theta": key("rope.freq_base", 10_000.0),
            "rope_scaling": scaling or None,
            "tie_word_embeddings": tied,
        },
        str(path),
    )


def _llama3_scaling(path: Path, config: ModelConfig, factors: Tensor) -> dict[str, Any]:
    """Return the Llama 3.1 scaling that divides the rotary frequencies by `factors` [D / 2].

    The scaling has `low_freq_factor` 1 and `high_freq_factor` 4, as in all Llama models. Raises SchoolError if no Llama
    3.1 scaling gives the factors.
    """
    plain, _ = rope_frequencies(config.head_dim, config.rope_theta, {}, config.max_position_embeddings)
    factor = float(factors.max())
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    between = (factors > 1.001) & (factors < factor * 0.999)
    if bool(between.any()):
        keep = (1 / factors[between] - 1 / factor) / (1 - 1 / factor)
        lengths = (1 + 3 * keep) * 2 * math.pi / plain[between]
        scaling["original_max_position_embeddings"] = round(float(lengths.median()))
        found, _ = rope_frequencies(config.head_dim, config.rope_theta, scaling, config.max_position_embeddings)
        if torch.allclose(plain / found, factors, rtol=1e-3):
            return scaling
    raise SchoolError(
        f"{path}: the factors of rotary frequencies (rope_freqs.weight) are not those of a Llama 3.1 scaling; use the "
        "Hugging Face folder of this model"
    )


def _pair_halves(array: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of a projection [H * D, ...], because transformers pairs the two halves of a head for the
    rotation."""
    by_pair = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:])
    return by_pair.swapaxes(1, 2).reshape(array.shape)


@torch.no_grad()
def _convert_by_transformers(path: Path, folder: Path, architecture: str) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES
    from transformers.utils import logging

    logging.disable_progress_bar()
    load: Any = AutoModelForCausalLM.from_pretrained
    try:
        model, info = load(
            path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # the readers of the architectures raise what they meet
        names = ", ".join(sorted(GGUF_SUPPORTED_ARCHITECTURES))
        reason = f"its architecture is `{architecture}`, and transformers reads {names}"
        if architecture in GGUF_SUPPORTED_ARCHITECTURES:
            reason = f"{type(error).__name__}: {error}"
        raise SchoolError(
            f"{path} cannot be read as a model ({reason}); use the Hugging Face folder of this model"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise SchoolError(f"{path} does not contain these weights: {', '.join(missing[:4])}; download the file again")
    del model.config.quantization_config  # the numbers are float32 now
    model.hf_quantizer = None
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_config(folder, {key: value for key, value in config.items() if not key.startswith("_")}, None, None)


def _save_tokenizer(path: Path, folder: Path, reader: GGUFReader) -> None:
    from transformers import AutoTokenizer

    kind, split = _field(reader, "tokenizer.ggml.model"), _field(reader, "tokenizer.ggml.pre")
    if kind == "gpt2" and split not in SPLITS:
        raise SchoolError(
            f"{path} has the unknown value `{split}` in `tokenizer.ggml.pre`, so it is unclear how text is split; "
            "download the tokenizer of the original model, and give its folder with --tokenizer"
        )
    load: Any = AutoTokenizer.from_pretrained  # its annotation says that it may return None
    try:
        tokenizer = load(path.parent, gguf_file=path.name, local_files_only=True)
    except Exception as error:  # as above
        raise SchoolError(
            f"{path} has a tokenizer that cannot be read ({error}); download the tokenizer of the original model, and "
            "give its folder with --tokenizer"
        ) from error
    if kind == "gpt2":
        _set_split(tokenizer, SPLITS[split])
    tokenizer.chat_template = _field(reader, "tokenizer.chat_template")
    _write_tokenizer(tokenizer, folder)


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the files of a tokenizer for transformers 4 and 5."""
    tokenizer.save_pretrained(folder)
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    own = {key: value for key, value in config.items() if key not in ("backend", "is_local", "local_files_only")}
    own["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name in transformers 5 is not known to transformers 4
    config_path.write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")


def _set_split(tokenizer: PreTrainedTokenizerBase, split: str) -> None:
    """Set how a byte-level BPE tokenizer splits text before it merges bytes."""
    from tokenizers import Regex, decoders, pre_tokenizers

    as_gpt2 = split in (DIGITS, GPT2)
    parts: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=as_gpt2)]
    if split == DIGITS:
        parts.insert(0, pre_tokenizers.Digits(individual_digits=True))
    elif not as_gpt2:
        parts.insert(0, pre_tokenizers.Split(Regex(split), "isolated"))
    inner: Any = tokenizer.backend_tokenizer
    inner.pre_tokenizer = pre_tokenizers.Sequence(parts) if len(parts) > 1 else parts[0]
    inner.decoder, inner.normalizer = decoders.ByteLevel(), None


def _save_generation_config(folder: Path, reader: GGUFReader) -> None:
    """Write the ids of all tokens that end a reply: the end of a text, of a turn and of a message."""
    ids = [_field(reader, f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    stops = list(dict.fromkeys(int(token) for token in ids if token is not None))
    content = {"eos_token_id": stops, "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id")}
    content["pad_token_id"] = _field(reader, "tokenizer.ggml.padding_token_id")
    text = json.dumps({key: value for key, value in content.items() if value not in (None, [])}, indent=2)
    (folder / "generation_config.json").write_text(text + "\n", encoding="utf-8")
