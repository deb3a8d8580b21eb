"""Decode steps with fixed shapes. If a step has fixed shapes, a GPU can replay the step as a CUDA graph.

One launch of a CUDA graph replaces the launches of hundreds of kernels.

`StaticSlotKVCache` gives the same results as `SlotKVCache`, but always computes over its whole capacity, with masks
instead of slices. `GraphedStep` runs the step with a few fixed widths. On a CPU the step runs without a graph, so tests
on a CPU cover all code except the graph capture. CUDA graphs are off by default; SCHOOLHOUSE_GRAPHS=1 switches them on.
With CUDA graphs, short completions are sampled 1.6 times as fast; long completions are hardly faster (docs/gpu.md).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from schoolhouse.model.kv_cache import SlotKVCache, additive_mask, merge_partial, partial_attention

_MIN_WIDTH = 8  # slots; the other widths are this times 2, 4, 8, ...
_WARMUP_STEPS = 4  # steps of a width that are launched kernel by kernel: CUDA needs some before a capture


def use_cuda_graphs(device: torch.device) -> bool:
    """Return True if decoding on this device uses CUDA graphs."""
    return device.type == "cuda" and os.environ.get("SCHOOLHOUSE_GRAPHS") == "1"


class StaticSlotKVCache(SlotKVCache):
    """A KV cache whose decode step has fixed shapes. The shapes change only if `width` or `num_columns` changes.

    `width` is the number of slots that a step computes. The step computes the busy slots and some unused slots.
    `num_columns` is the maximum number of slots that one prompt has used at the same time.

    In the shapes of tensors, P is the number of prompts, W the value of `width`, and M the value of `num_columns`.
    """

    num_columns = 0
    table: Tensor | None = None  # [P * M] slots of each prompt

    def _group_by_prompt(self) -> None:
        super()._group_by_prompt()
        num_prompts, device = len(self.prompt_length), self.lengths.device
        if not self.num_columns:
            self.column = torch.zeros(self.num_slots, dtype=torch.long, device=device)  # [S]
        self.num_columns = max(self.num_columns, self._num_columns)
        if self.table is None or len(self.table) != num_prompts * self.num_columns:
            self.table = torch.zeros(num_prompts * self.num_columns, dtype=torch.long, device=device)
        self.column[: self.busy] = self._column
        self.table[self.prompt_of[: self.busy] * self.num_columns + self._column] = self._slot_range[: self.busy]

    def set_width(self, width: int) -> None:
        """Set the number of slots that the next steps compute."""
        self.width = width
        self.column[self.busy : width] = 0
        self.prompt_of[self.busy : width] = 0  # unused slots attend to the first prompt
        self.lengths[self.busy : width] = 0

    def begin_step(self) -> Tensor:
        length_W = self.lengths[: self.width]
        capacity, prompt_capacity = self.keys[0].shape[2], self.prompt_values[0].shape[2]
        self._full_mask = additive_mask(torch.arange(capacity, device=length_W.device) > length_W[:, None])
        # a prompt of length 0 is not in use; its first position stays visible, which avoids a division by 0
        prompt_length_P = self.prompt_length.clamp_min(1)
        behind_PT = torch.arange(prompt_capacity, device=length_W.device) >= prompt_length_P[:, None]
        self._full_prompt_mask = additive_mask(behind_PT)
        return self.prompt_length[self.prompt_of[: self.width]] + length_W

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        n, heads, head_dim = q_NHD.shape
        slots, place = self._slot_range[:n], self.lengths[:n]
        keys, values = self.keys[layer], self.values[layer]
        keys[slots, :, place] = k_NKD.to(keys.dtype)
        values[slots, :, place] = v_NKD.to(values.dtype)
        assert self.table is not None
        with torch.autocast(q_NHD.device.type, enabled=False):
            q_SKgD = (q_NHD.float() * head_dim**-0.5).view(n, k_NKD.shape[1], -1, head_dim)
            own = partial_attention(q_SKgD, keys[:n].transpose(-1, -2).float(), values[:n].float(), self._full_mask)
            table_shape = (len(self.prompt_length), self.num_columns, *q_SKgD.shape[1:])
            q_in_table = q_SKgD[self.table.clamp_max(n - 1)].view(table_shape)
            q_PKMD = q_in_table.transpose(1, 2).flatten(2, 3)  # [P, K, M * H/K, D]
            prompt_keys, prompt_values = self.prompt_keys[layer].float(), self.prompt_values[layer].float()
            by_prompt = partial_attention(q_PKMD, prompt_keys, prompt_values, self._full_prompt_mask)
            cell = (self.prompt_of[:n], slice(None), self.column[:n])
            prompt = [x.unflatten(2, (self.num_columns, -1))[cell] for x in by_prompt]  # [S, K, H/K, .]
            return merge_partial(own, prompt).reshape(n, heads, head_dim)


class StaticBfloat16SlotKVCache(StaticSlotKVCache):
    """A cache with fixed shapes that stores keys and values in bfloat16, for a decoder that computes in bfloat16."""

    dtype = torch.bfloat16


class GraphedStep:
    """A decode step with a `StaticSlotKVCache`. The step maps token ids [busy] to logits [busy, V].

    On a CUDA device, the step runs as a CUDA graph. Create a new `GraphedStep` for each call of `extend`, because a
    graph keeps pointers to the weights that autocast has converted.
    """

    def __init__(self, step: Callable[[Tensor], Tensor], cache: StaticSlotKVCache) -> None:
        self._step, self._cache = step, cache
        self._num_columns = 0
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}  # by width
        self._steps_taken: Counter[int] = Counter()  # by width
        self._tokens = torch.zeros(cache.num_slots, dtype=torch.long, device=cache.lengths.device)  # [S]

    def __call__(self, token_S: Tensor) -> Tensor:
        busy = len(token_S)
        width = self.padded_width(busy)
        self._cache.set_width(width)
        self._tokens[:busy] = token_S
        self._tokens[busy:width] = 0
        if self._cache.num_columns != self._num_columns:  # it only grows: graphs for fewer columns are of no more use
            self._num_columns = self._cache.num_columns
            self._graphs.clear()
            self._steps_taken.clear()
        self._steps_taken[width] += 1
        if not self._tokens.is_cuda or self._steps_taken[width] <= _WARMUP_STEPS:
            return self._step(self._tokens[:width])[:busy]
        if width not in self._graphs:
            self._graphs[width] = self._capture(width)
        graph, logits_WV = self._graphs[width]
        graph.replay()
        return logits_WV[:busy].clone()

    def padded_width(self, busy: int) -> int:
        """Return the smallest of the fixed widths that is at least `busy`."""
        width = _MIN_WIDTH
        while width < busy:
            width *= 2
        return min(width, self._cache.num_slots)

    def _capture(self, width: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits_WV = self._step(self._tokens[:width])
        return graph, logits_WV
