"""Write a model as a GGUF file, which llama.cpp can read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from schoolhouse.export.model_card import model_name
from schoolhouse.runs.atomic_io import read_json
from schoolhouse.types import SchoolError

if TYPE_CHECKING:
    from schoolhouse.data.chat import Conversation

BLOCK_SIZE = 32
"""The number of values that share one scale in the format Q8_0."""


def write_gguf(source: Path, path: Path, int8: bool = False) -> None:
    """Write a model folder as one file for llama.cpp. Raises SchoolError if the architecture is not qwen2 or qwen3.

    Before tokenization, llama.cpp splits text by the rules of Qwen2. The tokenizers of this package split text in the
    same way, except for rare pieces of text after an apostrophe.

    `int8`: if true, matrices are written in blocks of 8-bit numbers (the format Q8_0).
    """
    try:
        import gguf
    except ImportError as error:
        raise SchoolError("to write GGUF, install the extra `release`: pip install 'schoolhouse[release]'") from error
    from schoolhouse.data.chat import Conversation
    from schoolhouse.model.checkpoint import read_weights

    config = read_json(source / "config.json")
    architecture = str(config.get("model_type"))
    if architecture not in ("qwen2", "qwen3"):
        raise SchoolError(
            f"{source} is a {architecture} model, but only qwen2 and qwen3 models can be written as GGUF: export the "
            "model with --format hf"
        )
    conversation = Conversation.load(source)
    writer = gguf.GGUFWriter(path, architecture)
    num_heads, hidden_size = config["num_attention_heads"], config["hidden_size"]
    writer.add_name(model_name(source))
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden_size)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(num_heads)
    writer.add_head_count_kv(config.get("num_key_value_heads", num_heads))
    writer.add_key_length(config.get("head_dim") or hidden_size // num_heads)
    writer.add_value_length(config.get("head_dim") or hidden_size // num_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or {}
    writer.add_rope_freq_base(float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if int8 else gguf.LlamaFileType.ALL_F32)
    _write_vocabulary(gguf, writer, source, conversation)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3 if architecture == "qwen3" else gguf.MODEL_ARCH.QWEN2, 999)
    weights = read_weights(source)
    if config.get("tie_word_embeddings"):
        weights.pop("lm_head.weight", None)
    for name, tensor in weights.items():
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise SchoolError(f"cannot write {source} as GGUF: the format has no name for the tensor `{name}`")
        array: np.ndarray = tensor.float().numpy()
        if int8 and array.ndim == 2 and array.shape[1] % BLOCK_SIZE == 0:
            packed = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(gguf_name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(gguf_name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_vocabulary(gguf: Any, writer: Any, source: Path, conversation: Conversation) -> None:
    """Write the tokens, the token types, the merges and the chat template."""
    tokenizer = read_json(source / "tokenizer.json")
    vocab_size = int(read_json(source / "config.json")["vocab_size"])
    words = {token_id: word for word, token_id in tokenizer["model"]["vocab"].items()}
    special = {entry["id"]: entry["content"] for entry in tokenizer["added_tokens"]}
    tokens = [special.get(i, words.get(i, f"<|unused_{i}|>")) for i in range(vocab_size)]
    types = [
        gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL if i in words else gguf.TokenType.UNUSED
        for i in range(vocab_size)
    ]
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(conversation.stop_ids[0])
    writer.add_eot_token_id(conversation.stop_ids[0])
    writer.add_pad_token_id(conversation.tokenizer.pad_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(conversation.template)
