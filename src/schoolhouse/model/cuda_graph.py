"""Decode steps of fixed shape, so that a GPU can replay one as a CUDA graph instead of launching hundreds of kernels.

`StaticSlots` does what `Slots` does, over all of its room and with masks instead of cuts; `Replay` runs the step of a
few fixed widths. On a CPU a step is simply computed, so that all but the capture is tested there. Off unless
SCHOOLHOUSE_GRAPHS=1: short answers are sampled 1.6 times as quickly so, long ones hardly (docs/gpu.md).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from schoolhouse.model.kv_cache import SlotKVCache, _look, _merge

_NARROWEST = 8  # slots; the widths are this and its doubles
_REHEARSALS = 4  # steps of a width that are launched as they are: CUDA wants some before a capture


def use_cuda_graphs(device: torch.device) -> bool:
    """Whether decoding on this device should replay graphs."""
    return device.type == "cuda" and os.environ.get("SCHOOLHOUSE_GRAPHS") == "1"


class StaticSlotKVCache(SlotKVCache):
    """`Slots` whose step has the same shapes and reads the same tensors while its `width` and `table` are the same.

    width  slots that a step computes: the busy ones and some behind them, whose results nobody reads
    table  seats of one prompt: as many as its most wanted prompt has had at once. P prompts, W width, M table.
    """

    def _seat(self) -> None:
        super()._seat()
        if not hasattr(self, "table"):
            self.table, slots, prompts = 0, self.num_slots, len(self.prompt_length)
            self.rank = torch.zeros(slots, dtype=torch.long, device=self.lengths.device)  # [S]
            self.prompts = prompts
        self.table = max(self.table, self._most)
        if getattr(self, "sitter", None) is None or len(self.sitter) != self.prompts * self.table:
            self.sitter = torch.zeros(
                self.prompts * self.table, dtype=torch.long, device=self.lengths.device
            )  # [P * M]
        prompt_S = self.prompt_of[: self.busy]
        self.rank[: self.busy] = self._rank
        self.sitter[prompt_S * self.table + self._rank] = self._rows[: self.busy]

    def set_width(self, width: int) -> None:
        """Compute so many slots in the steps to come."""
        self.width = width
        self.rank[self.busy : width] = 0
        self.prompt_of[self.busy : width] = 0  # slots that nobody reads look at the first prompt
        self.lengths[self.busy : width] = 0

    def begin_step(self) -> Tensor:
        said_W = self.lengths[: self.width]
        room = self.keys[0].shape[2]
        beyond = torch.arange(room, device=said_W.device) > said_W[:, None]
        self._own_hidden = _minus_infinity(beyond)
        prompt_room = self.prompt_values[0].shape[2]
        # a prompt of no length is one that nobody has; its first place stays open, so that nothing is divided by 0
        behind = torch.arange(prompt_room, device=said_W.device) >= self.prompt_length.clamp_min(1)[:, None]
        self._all_prompts_hidden = _minus_infinity(behind)
        return self.prompt_length[self.prompt_of[: self.width]] + said_W

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        n, heads, width = q_NHD.shape
        rows, place = self._rows[:n], self.lengths[:n]
        keys, values = self.keys[layer], self.values[layer]
        keys[rows, :, place] = k_NKD.to(keys.dtype)
        values[rows, :, place] = v_NKD.to(values.dtype)
        with torch.autocast(q_NHD.device.type, enabled=False):
            q_SKgD = (q_NHD.float() * width**-0.5).view(n, k_NKD.shape[1], -1, width)
            own = _look(q_SKgD, keys[:n].transpose(-1, -2).float(), values[:n].float(), self._own_hidden)
            table = (self.prompts, self.table, *q_SKgD.shape[1:])
            q_PKMD = (
                q_SKgD[self.sitter.clamp_max(n - 1)].view(table).transpose(1, 2).flatten(2, 3)
            )  # [P, K, M * H/K, D]
            prompt_keys, prompt_values = self.prompt_keys[layer].float(), self.prompt_values[layer].float()
            shared = _look(q_PKMD, prompt_keys, prompt_values, self._all_prompts_hidden)
            seat = (self.prompt_of[:n], slice(None), self.rank[:n])
            about_prompt = [x.unflatten(2, (self.table, -1))[seat] for x in shared]  # [S, K, H/K, .]
            return _merge(own, about_prompt).reshape(n, heads, width)


class StaticBfloat16SlotKVCache(StaticSlotKVCache):
    """Keys and values kept in bfloat16, which is what a decoder that computes in bfloat16 makes."""

    dtype = torch.bfloat16


def _minus_infinity(hidden: Tensor) -> Tensor:
    """[., T] -> [., 1, 1, T]: what is added to scores."""
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill(hidden, float("-inf"))[:, None, None]


class GraphedStep:
    """The step of a decoder over `StaticSlots`: token ids [busy] -> logits [busy, V], by graphs where there is CUDA.

    Make one for each call of `extend`: a graph holds on to the weights as autocast has cast them.
    """

    def __init__(self, step: Callable[[Tensor], Tensor], cache: StaticSlotKVCache) -> None:
        self._step, self._memory = step, cache
        self._table = 0
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}  # by width
        self._taken: Counter[int] = Counter()
        self._tokens = torch.zeros(cache.num_slots, dtype=torch.long, device=cache.lengths.device)  # [S]

    def __call__(self, token_S: Tensor) -> Tensor:
        busy = len(token_S)
        width = self.padded_width(busy)
        self._memory.set_width(width)
        self._tokens[:busy] = token_S
        self._tokens[busy:width] = 0
        if self._memory.table != self._table:  # it only grows: graphs of the smaller one are of no use any more
            self._table = self._memory.table
            self._graphs.clear()
            self._taken.clear()
        self._taken[width] += 1
        if not self._tokens.is_cuda or self._taken[width] <= _REHEARSALS:
            return self._step(self._tokens[:width])[:busy]
        if width not in self._graphs:
            self._graphs[width] = self._capture(width)
        graph, logits_WV = self._graphs[width]
        graph.replay()
        return logits_WV[:busy].clone()

    def padded_width(self, busy: int) -> int:
        """The least of the fixed widths that has room."""
        width = _NARROWEST
        while width < busy:
            width *= 2
        return min(width, self._memory.num_slots)

    def _capture(self, width: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits_WV = self._step(self._tokens[:width])
        return graph, logits_WV
