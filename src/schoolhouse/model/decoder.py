"""One decoder for Llama, Qwen2, Qwen3 and Mistral, with Hugging Face parameter names.

The input is packed tokens and positions, [N]. The decoder has no masks, caches or modes: an attention context decides
which keys a query attends to (kv_cache.py has the attention contexts for training and for sampling). Checkpoints need
no conversion, because the parameter names are the same.
N tokens of a batch, C width, H query heads, K key heads, D head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from schoolhouse.model import fused_ops
from schoolhouse.types import SchoolError


class AttentionContext(Protocol):
    """Attention in one forward pass: gets the new queries, keys and values of a layer, and returns the output."""

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of a decoder, under the names of a Hugging Face config.json."""

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
_IGNORED = set(  # keys that do not change what a forward pass computes
    "architectures attention_dropout bos_token_id eos_token_id pad_token_id initializer_range use_cache dtype "
    "torch_dtype transformers_version _name_or_path max_window_layers model_type id2label label2id is_decoder".split()
)


def parse_model_config(config: Mapping[str, object], source: str = "config.json") -> ModelConfig:
    """Parse a Hugging Face config of the file `source`. A key that this decoder does not implement is an error."""
    model_type = str(config.get("model_type"))
    if model_type not in ARCHITECTURES:
        raise SchoolError(f"{source}: model_type `{model_type}` is not one of {', '.join(ARCHITECTURES)}")
    qkv_bias, qk_norm = ARCHITECTURES[model_type]
    for key in ("rope_parameters", "rope_scaling"):  # the second is how transformers 4 wrote it
        rope = config.get(key) or {}
        if not isinstance(rope, Mapping) or rope.get("rope_type", rope.get("type", "default")) != "default":
            raise SchoolError(f"{source}: `{key}: {rope}` is not implemented; only rope_type `default` is")
        if unknown := rope.keys() - {"rope_type", "type", "rope_theta"}:
            raise SchoolError(
                f"{source}: `{key}` sets {', '.join(sorted(map(str, unknown)))}, which is not implemented"
            )
    supported_values = {  # keys for which this decoder implements only one value
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "use_sliding_window": False,
        "partial_rotary_factor": 1.0,
    }
    other_keys = {"rope_parameters", "rope_scaling", "rope_theta", "sliding_window", "layer_types"}
    known_keys = {*_SIZES, *_IGNORED, *supported_values, *other_keys}
    for key, value in config.items():
        if key not in known_keys:
            raise SchoolError(f"{source}: key `{key}` (value {value!r}) is not implemented by our {model_type} decoder")
        if key in supported_values and value != supported_values[key]:
            raise SchoolError(f"{source}: `{key}: {value}` is not implemented; only {supported_values[key]!r} is")
    layer_types = config.get("layer_types") or []
    if isinstance(layer_types, list) and any(layer_type != "full_attention" for layer_type in layer_types):
        raise SchoolError(
            f"{source}: layer_types {sorted(set(layer_types))} is not implemented; only full_attention is"
        )
    for key in _SIZES:
        value = config.get(key)
        if value is None and key in _REQUIRED:
            raise SchoolError(f"{source}: key `{key}` is missing")
        smallest = 1 if key in _REQUIRED else 0
        if value is not None and (not isinstance(value, (int, float)) or value < smallest):
            raise SchoolError(f"{source}: `{key}: {value!r}` should be a number of at least {smallest}")
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
    )


def model_config_to_json(config: ModelConfig) -> dict[str, object]:
    """The contents of a config.json that transformers reads."""
    sizes = {key: value for key, value in asdict(config).items() if key in _SIZES}
    architecture = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[config.model_type]
    window = {"sliding_window": config.sliding_window} if config.model_type == "mistral" else {}
    return {
        "architectures": [f"{architecture}ForCausalLM"],
        "model_type": config.model_type,
        **sizes,
        **window,
        "hidden_act": "silu",
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "dtype": "float32",
    }


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x_NC: Tensor) -> Tensor:
        return fused_ops.rms_norm(x_NC, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * config.head_dim, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)
        if config.qk_norm:
            self.q_norm, self.k_norm = (
                RMSNorm(config.head_dim, config.rms_norm_eps),
                RMSNorm(config.head_dim, config.rms_norm_eps),
            )
        self.qk_norm, self.eps = config.qk_norm, config.rms_norm_eps

    def forward(self, x_NC: Tensor, rotation: tuple[Tensor, Tensor], context: AttentionContext, layer: int) -> Tensor:
        by_head = (x_NC.shape[0], -1, self.head_dim)
        q, k, v = self.q_proj(x_NC).view(by_head), self.k_proj(x_NC).view(by_head), self.v_proj(x_NC).view(by_head)
        q_weight, k_weight = (self.q_norm.weight, self.k_norm.weight) if self.qk_norm else (None, None)
        q = fused_ops.apply_rotary(q, rotation, q_weight, self.eps)
        k = fused_ops.apply_rotary(k, rotation, k_weight, self.eps, round_output=True)
        return self.o_proj(context.attend(layer, q, k, v).flatten(1))


class MLP(nn.Module):
    swiglu: Callable[[Tensor, Tensor], Tensor] = staticmethod(fused_ops.swiglu)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_NC: Tensor) -> Tensor:
        return self.down_proj(self.swiglu(self.gate_proj(x_NC), self.up_proj(x_NC)))


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_NC: Tensor, rotation: tuple[Tensor, Tensor], context: AttentionContext, layer: int) -> Tensor:
        x_NC = x_NC + self.self_attn(self.input_layernorm(x_NC), rotation, context, layer)
        return x_NC + self.mlp(self.post_attention_layernorm(x_NC))


class Backbone(nn.Module):
    """Embedding, blocks and final norm. Hugging Face calls this part `model`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Decoder(nn.Module):
    """Maps tokens [N] at positions [N] to hidden states [N, C]; `project` maps hidden states to logits [., V].

    activation_checkpointing  keep only the input of each block, and compute the block again in the backward pass
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.model = Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Tensor:
        dims = torch.arange(0, self.config.head_dim, 2, device=tokens_N.device, dtype=torch.float32)
        frequency = 1.0 / self.config.rope_theta ** (dims / self.config.head_dim)
        angle = (positions_N[:, None].float() * frequency)[:, None]  # [N, 1, D / 2]
        rotation = (angle.cos(), angle.sin())
        x_NC = self.model.embed_tokens(tokens_N)
        for layer, block in enumerate(self.model.layers):
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_NC = checkpoint(block, x_NC, rotation, context, layer, use_reentrant=False, preserve_rng_state=False)
            else:
                x_NC = block(x_NC, rotation, context, layer)
        return self.model.norm(x_NC)

    def project(self, hidden_NC: Tensor) -> Tensor:
        return self.lm_head(hidden_NC)


def init_weights(decoder: Decoder, generator: torch.Generator) -> None:
    """Set random weights with standard deviation 1/sqrt(C).

    For projections into the residual stream, the standard deviation is divided by sqrt(2L), as in GPT-2 (Radford et al.
    2019). For embedding and head it is 0.02, so that the first predictions are near the uniform distribution.
    """
    config = decoder.config
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if weight.dim() == 1:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            std = 0.02 if "embed" in name or "lm_head" in name else config.hidden_size**-0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= (2 * config.num_hidden_layers) ** 0.5
            weight.normal_(0.0, std, generator=generator)
