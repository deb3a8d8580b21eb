"""Read the configuration of `Decoder` from a Hugging Face config.json, and write it to a config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from schoolhouse.model.rope import ROPE_TYPES, SCALING_KEYS
from schoolhouse.types import SchoolError


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of a decoder. The fields have the names of the keys in a Hugging Face config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    tie_word_embeddings: bool = True
    model_type: str = "qwen3"
    qkv_bias: bool = False
    qk_norm: bool = True
    sliding_window: int | None = None  # limits the sequence length; within the window, attention is full
    rope_scaling: Mapping[str, Any] = field(default_factory=dict)  # rope_type and its keys; empty: the default type
    plain_attention: bool = True  # False if a layer has a window, a soft cap or sinks, which the fast kernels lack

    @property
    def max_seq_len(self) -> int:
        """The longest sequence [T] that this decoder computes exactly."""
        return min(self.max_position_embeddings, self.sliding_window or self.max_position_embeddings)


ARCHITECTURES = {  # model_type: (qkv_bias, qk_norm)
    "llama": (False, False),
    "mistral": (False, False),
    "qwen2": (True, False),
    "qwen3": (False, True),
}
_SIZES = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "max_position_embeddings rms_norm_eps tie_word_embeddings"
).split()
_REQUIRED = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
_SUPPORTED_VALUES = {  # keys for which our decoder implements only one value
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "use_sliding_window": False,
    "partial_rotary_factor": 1.0,
    "use_mrope": False,
    "rope_interleaved": False,
    "quantization_config": None,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "pruned_heads": {},
}
_INERT = set(  # keys that do not change what a forward pass computes
    "architectures attention_dropout bos_token_id eos_token_id pad_token_id sep_token_id initializer_range use_cache "
    "dtype torch_dtype transformers_version _name_or_path max_window_layers model_type id2label label2id is_decoder "
    "is_llama_config transformers.js_config auto_map tokenizer_class unsloth_version unsloth_fixed model_name "
    "finetuning_task problem_type output_attentions output_hidden_states return_dict torchscript use_bfloat16 "
    "chunk_size_feed_forward tf_legacy_loss prefix task_specific_params _attn_implementation _commit_hash "
    "_attn_implementation_autoset attn_implementation use_flash_attn bad_words_ids begin_suppress_tokens "
    "decoder_start_token_id forced_bos_token_id forced_eos_token_id suppress_tokens max_length min_length do_sample "
    "early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty "
    "length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size num_return_sequences output_scores "
    "return_dict_in_generate remove_invalid_values exponential_decay_length_penalty hidden_dropout resid_pdrop "
    "embd_pdrop is_composition base_model_name_or_path keys_to_ignore_at_inference".split()
)
_ROPE = {"rope_parameters", "rope_scaling", "rope_theta"}


def unsupported_keys(config: Mapping[str, object]) -> list[str]:
    """List the keys of a config.json whose values `Decoder` does not implement. Each entry of the list has the form
    `key: value`."""
    model_type = str(config.get("model_type"))
    if model_type not in ARCHITECTURES:
        return [f"model_type: {model_type}"]
    found = [
        f"{key}: {config[key]}"
        for key, value in _SUPPORTED_VALUES.items()
        if config.get(key) is not None and config[key] != value
    ]
    scaling = _rope_scaling(config)
    rope_type = scaling.get("rope_type", "default")
    if rope_type not in ROPE_TYPES:
        found.append(f"rope_type: {rope_type}")
    else:
        found += [
            f"rope_scaling.{key}: {scaling[key]}" for key in scaling.keys() - {"rope_type"} - SCALING_KEYS[rope_type]
        ]
    layer_types = config.get("layer_types") or []
    if isinstance(layer_types, list) and any(layer_type != "full_attention" for layer_type in layer_types):
        found.append(f"layer_types: {', '.join(sorted({str(kind) for kind in layer_types}))}")
    return found


def unknown_keys(config: Mapping[str, object]) -> list[str]:
    """List the keys of a config.json that may change the forward pass in an unknown way."""
    known = {*_SIZES, *_INERT, *_SUPPORTED_VALUES, *_ROPE, "sliding_window", "layer_types"}
    return [key for key, value in config.items() if key not in known and value is not None]


def parse_model_config(config: Mapping[str, object], source: str = "config.json") -> ModelConfig:
    """Parse a config.json. Raises SchoolError if a value is impossible or not implemented.

    `source`: the name of the file, for error messages.
    """
    if unsupported := unsupported_keys(config):
        raise SchoolError(f"{source}: the decoder of this package does not implement `{unsupported[0]}`")
    for key in _SIZES:
        value = config.get(key)
        if value is None and key in _REQUIRED:
            raise SchoolError(f"{source}: key `{key}` is missing")
        smallest = 1 if key in _REQUIRED else 0
        if value is not None and (not isinstance(value, (int, float)) or value < smallest):
            raise SchoolError(f"{source}: `{key}: {value!r}` should be a number of at least {smallest}")
    scaling = _rope_scaling(config)
    for key in sorted(SCALING_KEYS[str(scaling.get("rope_type", "default"))]):
        required = key in ("low_freq_factor", "high_freq_factor") or (
            key == "factor" and scaling["rope_type"] != "yarn"
        )
        value = scaling.get(key)
        number = isinstance(value, (int, float)) and value > 0
        if (required and value is None) or (value is not None and not number and key != "truncate"):
            raise SchoolError(f"{source}: `rope_scaling.{key}: {value!r}` should be a positive number")
    model_type = str(config["model_type"])
    qkv_bias, qk_norm = ARCHITECTURES[model_type]
    hidden_size, num_heads = int(str(config["hidden_size"])), int(str(config["num_attention_heads"]))
    sizes = {key: config[key] for key in _SIZES if config.get(key) is not None}
    defaults = {"num_key_value_heads": num_heads, "head_dim": hidden_size // num_heads, "tie_word_embeddings": False}
    ropes = [config.get("rope_parameters") or {}, config.get("rope_scaling") or {}, config]  # transformers' order
    theta = next((rope["rope_theta"] for rope in ropes if isinstance(rope, Mapping) and "rope_theta" in rope), 10_000.0)
    sliding_window = config.get("sliding_window") if model_type == "mistral" else None
    return ModelConfig(
        **{**defaults, **sizes},  # ty: ignore[invalid-argument-type]
        rope_theta=float(str(theta)),
        model_type=model_type,
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        sliding_window=int(str(sliding_window)) if sliding_window else None,
        rope_scaling=scaling,
    )


def _rope_scaling(config: Mapping[str, object]) -> dict[str, Any]:
    """Return `rope_type` and the keys that change rotary frequencies, or an empty mapping for the default type.

    transformers 5 writes the key `rope_parameters`. transformers 4 writes the key `rope_scaling`. Old files contain
    `type` instead of `rope_type`.
    """
    for key in ("rope_parameters", "rope_scaling"):
        rope = config.get(key) or {}
        if not isinstance(rope, Mapping):
            return {"rope_type": str(rope)}
        scaling = {
            str(name): value for name, value in rope.items() if name not in ("rope_theta", "type") and value is not None
        }
        scaling["rope_type"] = scaling.get("rope_type") or rope.get("type") or "default"
        if scaling["rope_type"] != "default" or len(scaling) > 1:
            return scaling
    return {}


def model_config_to_json(config: ModelConfig) -> dict[str, object]:
    """Return the contents of a config.json that transformers 4 and transformers 5 can read."""
    sizes = {key: value for key, value in asdict(config).items() if key in _SIZES}
    architecture = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[config.model_type]
    window = {"sliding_window": config.sliding_window} if config.model_type == "mistral" else {}
    scaling = dict(config.rope_scaling)
    return {
        "architectures": [f"{architecture}ForCausalLM"],
        "model_type": config.model_type,
        **sizes,
        **window,
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", **scaling, "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling or None,
        "dtype": "float32",
        "torch_dtype": "float32",
    }
