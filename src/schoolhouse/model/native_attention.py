"""Attention contexts with C kernels. The file kernel_choice.py decides where these classes replace those of
kv_cache.py.

A decode step multiplies each key with one query, or with a few queries that share a prompt. In training, the matrix
products are over sequences of unequal length. The batched matrix products of torch are made for larger matrices of
equal size. For small matrix products of unequal size, torch reaches only a fraction of the machine's speed
(measurements are in docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schoolhouse.model.kernel_build import call_kernel, count_lanes, has_kernels
from schoolhouse.model.kv_cache import PackedAttention, SlotKVCache

_BLOCK_SIZE = 16  # slots of one prompt that attend to it together


class NativePackedAttention(PackedAttention):
    """A `PackedAttention` with C kernels. The kernels use no padding and always compute in float32.

    Several sequences can share a prefix that is stored once. The entry prefixes[s] is the start index and the length of
    the prefix of sequence s; (0, 0) means no prefix. The prefix of sequence s must be the beginning of the last
    sequence before s that has no prefix. A sequence without a prefix and the sequences that share its beginning form a
    group. The argument `lengths` does not include prefixes.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        device: torch.device | str = "cpu",
        keep_kv: bool = False,
        prefixes: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        super().__init__(lengths, device, keep_kv)
        prefix_S2 = torch.tensor(prefixes or [(0, 0)] * len(lengths))
        self.spans = torch.cat((prefix_S2, self.starts[:-1, None], self.lengths[:, None]), 1)  # [S, 4]
        without_prefix = (prefix_S2[:, 1] == 0).nonzero()[:, 0]
        self.group_starts = torch.cat((without_prefix, torch.tensor([len(lengths)])))  # [groups + 1]
        self.positions = self.positions + torch.repeat_interleave(prefix_S2[:, 1], self.lengths)

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        q, k, v = (x.float().contiguous() for x in (q_NHD, k_NKD, v_NKD))
        if self.kept_kv is not None:
            self.kept_kv.append((self.pad(k), self.pad(v)))
        return _Attention.apply(q, k, v, self.spans, self.group_starts)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, spans_S4: Tensor, group_starts: Tensor
    ) -> Tensor:
        out_NHD, logsumexp_NH = torch.empty_like(q_NHD), q_NHD.new_empty(q_NHD.shape[:2])
        inputs = (len(spans_S4), spans_S4, q_NHD.shape[1], k_NKD.shape[1], q_NHD, k_NKD, v_NKD)
        call_kernel("attention_forward", q_NHD.shape[2], torch.float32, *inputs, out_NHD, logsumexp_NH)
        ctx.save_for_backward(q_NHD, k_NKD, v_NKD, spans_S4, group_starts, out_NHD, logsumexp_NH)
        return out_NHD

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, spans, group_starts, out, logsumexp = ctx.saved_tensors
        grad_qkv = [torch.empty_like(x) for x in (q, k, v)]
        inputs = (len(group_starts) - 1, group_starts, spans, q.shape[1], k.shape[1], q, k, v, out, logsumexp)
        grad_out = grad_outputs[0].contiguous()
        call_kernel("attention_backward", q.shape[2], torch.float32, *inputs, grad_out, *grad_qkv)
        return *grad_qkv, None, None


class NativeSlotKVCache(SlotKVCache):
    """A `SlotKVCache` with a C kernel. The result of a slot has the same bits, whatever the other slots contain."""

    def _allocate_slots(
        self, allocate: Callable[..., list[Tensor]], num_slots: int, num_kv_heads: int, capacity: int, head_dim: int
    ) -> None:
        if not has_kernels(head_dim, self.dtype):
            raise ValueError(
                f"there is no C kernel for heads of width {head_dim}; use the class of kernel_choice.best_attention()"
            )
        self._lanes = count_lanes()
        self.kv_tiles = allocate(num_slots, -(-capacity // self._lanes), num_kv_heads, 2, self._lanes * head_dim)
        stores = zip(self.prompt_keys, self.prompt_values, self.kv_tiles, strict=True)
        self.addresses = torch.tensor([[store.data_ptr() for store in layer] for layer in stores])
        """The addresses of the stores of each layer, as decoder_step.c reads them."""

    def _used_slot_stores(self) -> list[Tensor]:
        used = -(-int(self.lengths[: self.busy].max()) // self._lanes)
        return [tiles[:, :used] for tiles in self.kv_tiles]

    def _group_by_prompt(self) -> None:
        """Sort the busy slots by prompt and divide them into blocks. All slots of a block have the same prompt."""
        prompt_S = self.prompt_of[: self.busy].numpy()
        self._slot_order = np.argsort(prompt_S, kind="stable")
        ends = np.flatnonzero(np.diff(prompt_S[self._slot_order], append=-1)) + 1
        starts = [np.arange(start, end, _BLOCK_SIZE) for start, end in zip((0, *ends[:-1]), ends, strict=True)]
        self._block_start = np.concatenate((*starts, ends[-1:]))
        self._block_prompt = prompt_S[self._slot_order[self._block_start[:-1]]]

    def begin_step(self) -> Tensor:
        return self.prompt_length[self.prompt_of[: self.busy]] + self.lengths[: self.busy]

    def slot_arguments(self, heads: int) -> tuple[Tensor | int, ...]:
        """The arguments that describe the busy slots to a kernel: blocks, lengths and sizes."""
        blocks = [torch.from_numpy(table) for table in (self._block_start, self._block_prompt, self._slot_order)]
        _, kv_heads, _, prompt_capacity = self.prompt_keys[0].shape
        sizes = (heads, kv_heads, prompt_capacity, self.kv_tiles[0].shape[1] * self._lanes)
        return len(self._block_prompt), _BLOCK_SIZE, *blocks, self.prompt_length, self.lengths, *sizes

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        q, k, v = (x.float().contiguous() for x in (q_NHD, k_NKD, v_NKD))
        out = torch.empty_like(q)
        stores = (self.prompt_keys[layer], self.prompt_values[layer], self.kv_tiles[layer])
        call_kernel("decode_attention", q.shape[2], self.dtype, *self.slot_arguments(q.shape[1]), q, k, v, *stores, out)
        return out


class NativeBfloat16SlotKVCache(NativeSlotKVCache):
    """A `NativeSlotKVCache` that stores keys and values in bfloat16, for a decoder that computes in bfloat16."""

    dtype = torch.bfloat16
