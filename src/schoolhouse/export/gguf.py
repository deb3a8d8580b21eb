"""Write a model as a GGUF file, which llama.cpp can read.

In the shapes of tensors, H is the number of heads, D is the width of a head, and C is the width of the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from schoolhouse.export.gguf_split import split_of
from schoolhouse.export.model_card import model_name
from schoolhouse.runs.atomic_io import read_json
from schoolhouse.runs.progress import phased
from schoolhouse.types import SchoolError

if TYPE_CHECKING:
    from schoolhouse.data.chat import Conversation
    from schoolhouse.model.config import ModelConfig

BLOCK_SIZE = 32
"""The number of values that share one scale in the format Q8_0."""

_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""This table gives the name of the architecture in GGUF for a model_type."""

Json = Mapping[str, Any]


@phased("writing the GGUF file")
def write_gguf(source: Path, path: Path, int8: bool = False) -> None:
    """Write a model folder as one file for llama.cpp.

    `int8`: if true, matrices are written in blocks of 8-bit numbers (the format Q8_0).

    Raises SchoolError if GGUF files cannot be written for this architecture or for this tokenizer.
    """
    try:
        import gguf
    except ImportError as error:
        raise SchoolError("to write GGUF, install the extra `release`: pip install 'schoolhouse[release]'") from error
    from schoolhouse.data.chat import Conversation
    from schoolhouse.model.config import parse_model_config
    from schoolhouse.model.folder import read_weights

    hf_config = read_json(source / "config.json")
    architecture = _ARCHITECTURES.get(str(hf_config.get("model_type")))
    if architecture is None:
        raise SchoolError(
            f"{source} is a {hf_config.get('model_type')} model, but only {', '.join(_ARCHITECTURES)} models can be "
            "written as GGUF: export the model with --format hf, and convert it with llama.cpp's own script"
        )
    config = parse_model_config(hf_config, str(source / "config.json"))
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(model_name(source))
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    if config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if int8 else gguf.LlamaFileType.ALL_F32)
    _write_rope_scaling(gguf, writer, config)
    _write_vocabulary(gguf, writer, source, hf_config, Conversation.load(source))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    weights = read_weights(source)
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in weights.items():
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise SchoolError(f"cannot write {source} as GGUF: the format has no name for the tensor `{name}`")
        array: np.ndarray = tensor.float().numpy()
        projection = name.split(".")[-2]
        if architecture == "llama" and projection in heads:
            array = _pair_neighbours(array, heads[projection])
        if int8 and array.ndim == 2 and array.shape[1] % BLOCK_SIZE == 0:
            packed = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(gguf_name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(gguf_name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _pair_neighbours(array: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of a projection [H * D, ...], because llama.cpp rotates pairs of neighbouring rows."""
    by_half = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(by_half.swapaxes(1, 2)).reshape(array.shape)


def _write_rope_scaling(gguf: Any, writer: Any, config: ModelConfig) -> None:
    """Write the scaling of rotary frequencies. GGUF stores the type `llama3` as a table of factors [D / 2]."""
    from schoolhouse.model.rope import rope_frequencies

    scaling = config.rope_scaling
    kind = scaling.get("rope_type", "default")
    if kind == "llama3":
        plain, _ = rope_frequencies(config.head_dim, config.rope_theta, {}, config.max_position_embeddings)
        scaled, _ = rope_frequencies(config.head_dim, config.rope_theta, scaling, config.max_position_embeddings)
        writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy())
    elif kind in ("linear", "yarn"):
        original = scaling.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_type(gguf.RopeScalingType[kind.upper()])
        writer.add_rope_scaling_factor(float(scaling.get("factor") or config.max_position_embeddings / original))
        if kind == "yarn":
            if scaling.keys() - {"rope_type", "factor", "original_max_position_embeddings"}:
                raise SchoolError(
                    f"YaRN can be written as GGUF only with its default settings, and this model has {dict(scaling)}"
                )
            writer.add_rope_scaling_orig_ctx_len(original)


def _write_vocabulary(gguf: Any, writer: Any, source: Path, config: Json, conversation: Conversation) -> None:
    """Write tokens, token types, merges or scores, special ids and the chat template."""
    tokenizer = read_json(source / "tokenizer.json")
    vocab_size = int(config["vocab_size"])
    added = {entry["id"]: entry for entry in tokenizer["added_tokens"]}
    words = {token_id: word for word, token_id in tokenizer["model"]["vocab"].items()}
    ids = {entry["content"]: token_id for token_id, entry in added.items()}
    sentencepiece = bool(tokenizer["model"].get("byte_fallback"))
    if sentencepiece:
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-float(i) for i in range(vocab_size)])  # the order of ids is the order of merges
        writer.add_add_space_prefix(_adds_space(tokenizer))
    else:
        split = split_of(tokenizer)
        if split is None:
            raise SchoolError(
                f"{source / 'tokenizer.json'} splits text in a way that has no known name in GGUF: "
                "export the model with --format hf, and convert it with llama.cpp's own script"
            )
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(split)
        merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in tokenizer["model"]["merges"]]
        writer.add_token_merges(merges)
    unused = [f"<|unused_{i}|>" for i in range(vocab_size)]
    writer.add_token_list([added[i]["content"] if i in added else words.get(i, unused[i]) for i in range(vocab_size)])
    writer.add_token_types([_token_type(gguf, i, words, added, sentencepiece) for i in range(vocab_size)])
    writer.add_eos_token_id(conversation.tokenizer.eos_id)
    writer.add_eot_token_id(conversation.stop_ids[0])
    writer.add_pad_token_id(conversation.tokenizer.pad_id)
    bos = read_json(source / "tokenizer_config.json").get("bos_token")
    bos = bos.get("content") if isinstance(bos, dict) else bos
    if bos in ids:
        writer.add_bos_token_id(ids[bos])
    writer.add_add_bos_token(False)  # the chat template writes it
    writer.add_chat_template(conversation.template)


def _token_type(gguf: Any, token_id: int, words: Mapping[int, str], added: Mapping[int, Json], bytes_: bool) -> Any:
    if token_id in added:
        return gguf.TokenType.CONTROL if added[token_id].get("special", True) else gguf.TokenType.USER_DEFINED
    if token_id not in words:
        return gguf.TokenType.UNUSED
    is_byte = bytes_ and re.fullmatch("<0x[0-9A-F]{2}>", words[token_id])
    return gguf.TokenType.BYTE if is_byte else gguf.TokenType.NORMAL


def _adds_space(tokenizer: Json) -> bool:
    """Return whether a SentencePiece tokenizer puts a blank before a text."""
    normalizer, pre_tokenizer = str(tokenizer.get("normalizer")), str(tokenizer.get("pre_tokenizer"))
    return "Prepend" in normalizer or "'prepend_scheme': 'first'" in pre_tokenizer or "'always'" in pre_tokenizer
