"""One decoder for Llama, Qwen2, Qwen3 and Mistral, with Hugging Face parameter names.

The input is packed tokens and positions, [N]. The decoder itself has no masks, caches or modes: an object called
attention context decides which keys a query attends to (kv_cache.py has the attention contexts for training and for
sampling). Hugging Face checkpoints need no conversion, because the parameter names are the same.
N tokens of a batch, C width, H query heads, K key heads, D head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from schoolhouse.model import fused_ops
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.lora import Adapter
from schoolhouse.model.output_head import float32_logits
from schoolhouse.model.rope import rope_frequencies, rotation


class AttentionContext(Protocol):
    """Attention in one forward pass: gets the new queries, keys and values of a layer, and returns the output."""

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor: ...


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
    """Maps tokens [N] at positions [N] to hidden states [N, C]; `project` maps hidden states to float32 logits
    [., V].

    activation_checkpointing  keep only the input of each block, and compute the block again in the backward pass
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.hf_config: Mapping[str, object] = {}  # the config.json that this decoder was loaded from
        self.lora: Adapter | None = None  # the adapter that was added to the linear layers
        self.activation_checkpointing = False
        self.model = Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.tie_weights()

    def tie_weights(self) -> None:
        """Use the weights of the embedding as the weights of the head too."""
        self.config = replace(self.config, tie_word_embeddings=True)
        self.lm_head.weight = self.model.embed_tokens.weight

    def rotation(self, positions_N: Tensor) -> tuple[Tensor, Tensor]:
        """The cosines and the sines of the rotary embedding at positions [N], each of shape [N, 1, D / 2]."""
        return rotation(positions_N, *self.rope_frequencies(positions_N.device))

    def rope_frequencies(self, device: torch.device) -> tuple[Tensor, float]:
        """The angle per position of the rotary embedding [D / 2], and the factor of cosine and sine."""
        config = self.config
        scaling = (config.rope_theta, config.rope_scaling, config.max_position_embeddings)
        return rope_frequencies(config.head_dim, *scaling, device)

    def forward(self, tokens_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Tensor:
        rotation = self.rotation(positions_N)
        x_NC = self.model.embed_tokens(tokens_N)
        for layer, block in enumerate(self.model.layers):
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_NC = checkpoint(block, x_NC, rotation, context, layer, use_reentrant=False, preserve_rng_state=False)
            else:
                x_NC = block(x_NC, rotation, context, layer)
        return self.model.norm(x_NC)

    def project(self, hidden_NC: Tensor) -> Tensor:
        return float32_logits(hidden_NC, self.lm_head)


def init_weights(decoder: Decoder, generator: torch.Generator) -> None:
    """Set random weights with standard deviation 1/sqrt(C).

    For projections into the residual stream, the standard deviation is divided by sqrt(2L), as in GPT-2 (Radford et al.
    2019). For the embedding and the head, the standard deviation is 0.02, so that the first predictions are nearly
    uniform.
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
