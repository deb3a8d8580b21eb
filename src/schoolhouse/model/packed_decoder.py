"""A decoder with packed weights for sampling, which computes the same function as `Decoder`, without gradients.

One matrix product gives queries, keys and values, and one matrix product gives gates and ups. A layer has four
products. The products include the norms, the SwiGLU and the additions to the residual stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from schoolhouse.model import rope
from schoolhouse.model.decoder import AttentionContext, Block, Decoder
from schoolhouse.model.fused_ops import apply_rotary
from schoolhouse.model.kernel_build import ANY_HEAD_DIM, call_kernel
from schoolhouse.model.kernel_choice import uses_kernel
from schoolhouse.model.native_attention import NativeSlotKVCache
from schoolhouse.model.packed_linear import (
    BYTES_PER_WEIGHT,
    PackedLinear,
    WeightType,
    can_pack,
    has_packed_kernel,
    pack,
    weight_versions,
)
from schoolhouse.types import SchoolError

SamplingWeights = Literal["auto", "float32", "bfloat16", "int8"]
"""The number type of the weights from which a policy samples. `auto`: the number type of the learner's matrix
products."""

_MANY_ROWS = 128
"""With more rows than this, torch multiplies in bfloat16 faster than the packed kernel, on processors without
AVX512-BF16."""

_SMALLEST = 1 << 23
"""With `auto`, a model with fewer weights than this is not packed, because its weights fit into the processor's
cache."""


def choose_weights(decoder: nn.Module, wanted: SamplingWeights, dtype: torch.dtype) -> WeightType | None:
    """Return the number type for packed weights, or None if torch computes with the unpacked weights.

    `dtype`: the number type of the learner's matrix products.

    On a processor with AMX, torch multiplies many rows in bfloat16 several times as fast as the packed kernel, so
    `auto` uses torch.
    """
    if wanted != "auto":
        return wanted
    if sum(p.numel() for p in decoder.parameters()) < _SMALLEST:
        return None
    if dtype == torch.bfloat16:
        return None if torch.cpu._is_amx_tile_supported() else "bfloat16"
    return "float32"


def can_pack_decoder(decoder: nn.Module) -> bool:
    """Return whether a decoder can be packed. The decoder must be a `Decoder` on a CPU with kernels, with unchanged
    layers."""
    if not isinstance(decoder, Decoder) or not has_packed_kernel(next(decoder.parameters()).device):
        return False
    if not uses_kernel("packed product", ANY_HEAD_DIM, torch.float32):
        return False
    return all(can_pack(module) for module in decoder.modules() if isinstance(module, nn.Linear))


def pack_decoder(
    decoder: nn.Module, wanted: SamplingWeights, dtype: torch.dtype, exact: bool, old: PackedDecoder | None
) -> PackedDecoder | None:
    """Return a packed decoder with the current weights, or None if torch computes with the unpacked decoder.

    `dtype`: the number type of the learner's matrix products.
    `exact`: whether sampler and learner must compute the same bits.
    `old`: an earlier result for the same decoder. Its packed matrices are reused if the weights have not changed.

    Raises SchoolError if the wanted number type cannot be used with this decoder on this device.
    """
    packable = not exact and can_pack_decoder(decoder)
    if not packable and wanted != "auto":
        raise SchoolError(
            f"sampling from {wanted} weights works only on a CPU with a C compiler, for Llama, Qwen2, Qwen3 and "
            "Mistral decoders, and not with precision exact: set `sampling.weights` (or `weights`) to auto"
        )
    type = choose_weights(decoder, wanted, dtype) if packable else None
    if type is None or not isinstance(decoder, Decoder):
        return None
    if old is None or old.type != type:
        return PackedDecoder(decoder, type)
    old.refresh()
    return old


def packed_bytes(decoder: nn.Module, wanted: SamplingWeights, dtype: torch.dtype, exact: bool) -> float:
    """Return the memory in bytes of the packed weights that `pack_decoder` makes, or 0 if nothing is packed."""
    type = None if exact or not can_pack_decoder(decoder) else choose_weights(decoder, wanted, dtype)
    if type is None:
        return 0.0
    packed = sum(module.weight.numel() for module in decoder.modules() if isinstance(module, nn.Linear))
    return packed * BYTES_PER_WEIGHT[type]


class _PackedBlock:
    """Return the packed matrices of a block. Matrices that have not changed are taken from `old`."""

    def __init__(self, block: Block, type: WeightType, old: _PackedBlock | None) -> None:
        attention, mlp = block.self_attn, block.mlp
        self.norms = (block.input_layernorm, block.post_attention_layernorm)
        self.attention = attention
        old_qkv, old_o, old_gate_up, old_down = (old.qkv, old.o, old.gate_up, old.down) if old else (None,) * 4
        self.qkv = pack([attention.q_proj, attention.k_proj, attention.v_proj], type, old_qkv)
        self.o = pack([attention.o_proj], type, old_o)
        self.gate_up = pack([mlp.gate_proj, mlp.up_proj], type, old_gate_up)
        self.down = pack([mlp.down_proj], type, old_down)

    def fields(self) -> list[int]:
        """The fields of the struct `Layer` of the kernels (decoder_step.c), without those of the KV cache."""
        heads = (self.attention.q_norm, self.attention.k_norm) if self.attention.qk_norm else ()
        norms = [norm.weight.data_ptr() for norm in (*self.norms, *heads)]
        linears = [field for linear in (self.qkv, self.o, self.gate_up, self.down) for field in linear.fields()]
        return [*linears, *norms, *[0] * (4 - len(norms))]


class PackedDecoder:
    """The weights of `decoder`, packed in the number type `type`. Call `refresh` after the weights have changed."""

    def __init__(self, decoder: Decoder, type: WeightType) -> None:
        self.decoder, self.type, self.config = decoder, type, decoder.config
        self._versions: object = None
        self._blocks: list[_PackedBlock] = []
        self._head: PackedLinear | None = None
        self._in_one_call = uses_kernel("rotary embedding", decoder.config.head_dim, torch.float32)
        self._rope_frequencies = decoder.rope_frequencies(torch.device("cpu"))
        self.refresh()

    def refresh(self) -> None:
        """Pack the matrices that have changed since they were packed."""
        versions = weight_versions([self.decoder])
        if versions == self._versions:
            return
        blocks = [block for block in self.decoder.model.layers if isinstance(block, Block)]
        old = self._blocks or [None] * len(blocks)
        self._blocks = [_PackedBlock(block, self.type, o) for block, o in zip(blocks, old, strict=True)]
        self._head = pack([self.decoder.lm_head], self.type, self._head)
        self._layers = torch.tensor([block.fields() for block in self._blocks])
        self._versions = versions

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that are not packed."""
        return self.decoder.parameters()

    @torch.no_grad()
    def __call__(self, tokens_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Tensor:
        """Map tokens [N] at positions [N] to hidden states [N, C], like `Decoder.forward`."""
        if self._torch_is_faster(len(tokens_N)):
            return self.decoder(tokens_N, positions_N, context)
        config, decoder = self.config, self.decoder
        rotation = rope.rotation(positions_N, *self._rope_frequencies)
        x_NC = decoder.model.embed_tokens(tokens_N).float()
        if isinstance(context, NativeSlotKVCache) and self._in_one_call:
            return self._decode_step(x_NC, rotation, context)
        heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        with torch.autocast("cpu", enabled=False):
            for layer, block in enumerate(self._blocks):
                attention, (before, after) = block.attention, block.norms
                q_weight, k_weight = (
                    (attention.q_norm.weight, attention.k_norm.weight) if config.qk_norm else (None, None)
                )
                qkv = block.qkv(x_NC, input="norm", norm_C=before.weight, eps=before.eps)
                q, k, v = qkv.view(len(x_NC), -1, config.head_dim).split(heads, 1)
                q = apply_rotary(q, rotation, q_weight, attention.eps)
                k = apply_rotary(k, rotation, k_weight, attention.eps)
                block.o(context.attend(layer, q, k, v).flatten(1), add_to=x_NC)
                gate_up = block.gate_up(x_NC, input="norm", norm_C=after.weight, eps=after.eps)
                block.down(gate_up, input="swiglu", add_to=x_NC)
            return decoder.model.norm(x_NC)

    def _decode_step(self, x_NC: Tensor, rotation: tuple[Tensor, Tensor], cache: NativeSlotKVCache) -> Tensor:
        """Compute the same as `__call__` for one new token in each busy slot, in one call of a kernel."""
        config = self.config
        tables = (self._layers, cache.addresses)
        inputs = (len(self._blocks), len(x_NC), config.rms_norm_eps, *tables, *rotation)
        slots = cache.slot_arguments(config.num_attention_heads)
        call_kernel("decoder_step", config.head_dim, cache.dtype, *inputs, *slots, x_NC)
        with torch.autocast("cpu", enabled=False):
            return self.decoder.model.norm(x_NC)

    @torch.no_grad()
    def project(self, hidden_NC: Tensor) -> Tensor:
        """Map hidden states [N, C] to logits [N, V], like `Decoder.project`."""
        if self._torch_is_faster(len(hidden_NC)):
            return self.decoder.project(hidden_NC)
        assert self._head is not None
        return self._head(hidden_NC.float().contiguous())

    def _torch_is_faster(self, rows: int) -> bool:
        """Return whether torch multiplies this number of rows faster, with weights that are rounded in the same way."""
        if self.type != "bfloat16" or torch.cpu._is_avx512_bf16_supported():
            return False
        return rows > _MANY_ROWS and torch.is_autocast_enabled("cpu")
