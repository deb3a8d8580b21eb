"""Write a model as GGUF, for llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from schoolhouse.export.model_card import name_of
from schoolhouse.runs.atomic_io import read_json
from schoolhouse.types import SchoolError

Json = dict[str, Any]


BLOCK = 32  # numbers that share a scale in Q8_0


def write_gguf(source: Path, path: Path, eight_bits: bool = False) -> None:
    """A model folder as one file for llama.cpp. Raises SchoolError for a family that it cannot write.

    Texts are cut as Qwen2's are, which is how our tokenizers cut them but for rare pieces behind an apostrophe.
    """
    try:
        import gguf
    except ImportError as error:
        raise SchoolError("GGUF needs the extra `release`: pip install 'schoolhouse[release]'") from error
    from schoolhouse.data.chat import Conversation
    from schoolhouse.model.checkpoint import read_json, read_weights

    config: Json = read_json(source / "config.json")
    family = str(config.get("model_type"))
    if family not in ("qwen2", "qwen3"):
        raise SchoolError(
            f"{source}: GGUF is written for qwen2 and qwen3 models, this one is {family}: export it as hf"
        )
    say = Conversation.load(source)
    writer = gguf.GGUFWriter(path, family)
    heads, width = config["num_attention_heads"], config["hidden_size"]
    writer.add_name(name_of(source))
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads", heads))
    writer.add_key_length(config.get("head_dim") or width // heads)
    writer.add_value_length(config.get("head_dim") or width // heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or {}
    writer.add_rope_freq_base(float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if eight_bits else gguf.LlamaFileType.ALL_F32)
    _write_vocabulary(gguf, writer, source, say)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3 if family == "qwen3" else gguf.MODEL_ARCH.QWEN2, 999)
    weights = read_weights(source)
    if config.get("tie_word_embeddings"):
        weights.pop("lm_head.weight", None)
    for name, tensor in weights.items():
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise SchoolError(f"{source}: GGUF has no name for `{name}`")
        array: np.ndarray = tensor.float().numpy()
        if eight_bits and array.ndim == 2 and array.shape[1] % BLOCK == 0:
            packed = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(known, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(known, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_vocabulary(gguf: Any, writer: Any, source: Path, say: Any) -> None:
    """Ids, merges, markup and the chat template."""
    model = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    size = int(read_json(source / "config.json")["vocab_size"])
    words = {i: word for word, i in model["model"]["vocab"].items()}
    markup = {entry["id"]: entry["content"] for entry in model["added_tokens"]}
    tokens = [markup.get(i, words.get(i, f"<|unused_{i}|>")) for i in range(size)]
    kinds = [
        gguf.TokenType.CONTROL if i in markup else gguf.TokenType.NORMAL if i in words else gguf.TokenType.UNUSED
        for i in range(size)
    ]
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(say.stop_ids[0])
    writer.add_eot_token_id(say.stop_ids[0])
    writer.add_pad_token_id(say.tokenizer.pad_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(say.template)
