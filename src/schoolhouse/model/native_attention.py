"""Memories whose attention is in C, compiled once where there is a compiler; elsewhere memory.py's torch attends.

A decode step multiplies each key with a single query, or with a few that share a prompt, and training multiplies
sequences of unequal length: torch's batched products are made for more and more even work, and get a fraction of what
the machine gives (docs/performance.md has the figures).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schoolhouse.model.cuda_graph import StaticBfloat16SlotKVCache, StaticSlotKVCache, use_cuda_graphs
from schoolhouse.model.kernel_build import LANES, call_kernel, load_kernels
from schoolhouse.model.kv_cache import PackedAttention, SlotKVCache

_BLOCK = 16  # slots of one prompt that meet it together


def best_attention(
    head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[type[PackedAttention], type[SlotKVCache]]:
    """The quickest of this machine for a decoder that computes in `dtype`."""
    if use_cuda_graphs(device):
        return PackedAttention, StaticBfloat16SlotKVCache if dtype == torch.bfloat16 else StaticSlotKVCache
    if device.type != "cpu" or head_dim % (2 * LANES) or not load_kernels(head_dim, dtype):
        return PackedAttention, SlotKVCache
    return NativePackedAttention, NativeBfloat16SlotKVCache if dtype == torch.bfloat16 else NativeSlotKVCache


class NativePackedAttention(PackedAttention):
    """`Packed`, attended without any padding, in float32.

    Sequences may go on from a prefix that is there once: prefixes[s] is where it begins and how long it is, (0, 0) for
    none. It must be a beginning of the last sequence before s that has none; `lengths` are then those behind it.
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
        firsts = (prefix_S2[:, 1] == 0).nonzero()[:, 0]
        self.group_starts = torch.cat((firsts, torch.tensor([len(lengths)])))  # [F + 1]
        self.positions = self.positions + torch.repeat_interleave(prefix_S2[:, 1], self.lengths)

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        q, k, v = (x.float().contiguous() for x in (q_NHD, k_NKD, v_NKD))
        if self.kept_kv is not None:
            self.kept_kv.append((self.pad(k), self.pad(v)))
        return _Attention.apply(q, k, v, self.spans, self.group_starts)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, places_S4: Tensor, families_F: Tensor) -> Tensor:
        seen_NHD, spread_NH = torch.empty_like(q_NHD), q_NHD.new_empty(q_NHD.shape[:2])
        heads = (q_NHD.shape[1], k_NKD.shape[1])
        given = (len(places_S4), places_S4, *heads, q_NHD, k_NKD, v_NKD)
        call_kernel("see", q_NHD.shape[2], torch.float32, *given, seen_NHD, spread_NH)
        ctx.save_for_backward(q_NHD, k_NKD, v_NKD, places_S4, families_F, seen_NHD, spread_NH)
        return seen_NHD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, places, families, seen, spread = ctx.saved_tensors
        towards = [torch.empty_like(x) for x in (q, k, v)]
        given = (len(families) - 1, families, places, q.shape[1], k.shape[1], q, k, v, seen, spread)
        call_kernel("unsee", q.shape[2], torch.float32, *given, gradients[0].contiguous(), *towards)
        return *towards, None, None


class NativeSlotKVCache(SlotKVCache):
    """`Slots`, attended by decode.c. What a slot reads does not depend on its neighbours, to the bit."""

    def _allocate_slots(self, allocate: Callable[..., list[Tensor]], num_slots: int, num_kv_heads: int, capacity: int, head_dim: int) -> None:
        self.kv_tiles = allocate(num_slots, -(-capacity // LANES), num_kv_heads, 2, LANES * head_dim)
        if load_kernels(head_dim, self.dtype) is None:
            raise ValueError(f"there is no kernel for heads of {head_dim} here: ask `best_memories`")

    def _own(self) -> list[Tensor]:
        tiles = -(-int(self.lengths[: self.busy].max()) // LANES)
        return [words[:, :tiles] for words in self.kv_tiles]

    def _seat(self) -> None:
        prompt_S = self.prompt_of[: self.busy].numpy()
        self._slot = np.argsort(prompt_S, kind="stable")
        ends = np.flatnonzero(np.diff(prompt_S[self._slot], append=-1)) + 1
        cuts = [np.arange(start, end, _BLOCK) for start, end in zip((0, *ends[:-1]), ends, strict=True)]
        self._start = np.concatenate((*cuts, ends[-1:]))
        self._prompt = prompt_S[self._slot[self._start[:-1]]]

    def begin_step(self) -> Tensor:
        return self.prompt_length[self.prompt_of[: self.busy]] + self.lengths[: self.busy]

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        q, k, v = (x.float().contiguous() for x in (q_NHD, k_NKD, v_NKD))
        seen = torch.empty_like(q)
        prompt_keys, prompt_values, words = self.prompt_keys[layer], self.prompt_values[layer], self.kv_tiles[layer]
        tables = (torch.from_numpy(table) for table in (self._start, self._prompt, self._slot))
        sizes = (q.shape[1], k.shape[1], prompt_keys.shape[-1], words.shape[1] * LANES)
        stores = (prompt_keys, prompt_values, words)
        lengths = (self.prompt_length, self.lengths)
        given = (len(self._prompt), _BLOCK, *tables, *lengths, *sizes, q, k, v, *stores, seen)
        call_kernel("attend", q.shape[2], self.dtype, *given)
        return seen


class NativeBfloat16SlotKVCache(NativeSlotKVCache):
    """Keys and values kept in bfloat16, which is what a decoder that computes in bfloat16 makes."""

    dtype = torch.bfloat16
