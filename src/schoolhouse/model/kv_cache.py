"""Attention contexts for the decoder. `PackedAttention` is for packed sequences, and `SlotKVCache` is for sampling.

In the shapes of tensors, N is the number of tokens of a batch, S the number of sequences or slots, T the length of the
longest sequence, and P the number of prompts. H is the number of query heads, K the number of key heads, and D the head
width.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_ALIGN = 32  # the capacity for prompts is a multiple of this
_HIDDEN = -1e30  # an additive mask for rows whose keys may all be hidden: with -inf such a row would become NaN


@dataclass(frozen=True)
class AttentionRule:
    """A rule describes how the attention of a layer differs from plain causal attention.

    `window` is the number of positions that a query attends to; the last of these positions is the query's own
    position.
    `softcap` is the limit c of the scores: each score becomes c tanh(score / c), as in Gemma 2.
    `sinks` has one more score for the softmax of each head, [H]; the value vector of this score is zero, as in gpt-oss.
    """

    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    def cap(self, score: Tensor) -> Tensor:
        return score if self.softcap is None else (score / self.softcap).tanh() * self.softcap


def repeat_heads(x_SKTD: Tensor, heads: int) -> Tensor:
    """Repeat the key heads for grouped-query attention, in which heads / K query heads share one key head."""
    times = heads // x_SKTD.shape[1]
    return x_SKTD if times == 1 else x_SKTD.repeat_interleave(times, dim=1)


class PackedAttention:
    """Causal attention within each sequence of a packed batch. The sequences are stored end to end, without padding.

    Attention is computed on padded sequences, [S, T]. The padding comes after the real tokens, so a causal mask hides
    the padding. With `keep_kv=True`, the keys and values of each layer are kept, so that slots can be prefilled.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu", keep_kv: bool = False) -> None:
        self.lengths = torch.as_tensor(lengths, device=device)
        self.num_sequences, self.max_len = len(lengths), max(lengths)
        self.equal_lengths = min(lengths) == self.max_len
        sequence_N = torch.repeat_interleave(torch.arange(self.num_sequences, device=device), self.lengths)
        self.starts = F.pad(torch.cumsum(self.lengths, 0), (1, 0))  # [S + 1]
        self.positions = torch.arange(len(sequence_N), device=device) - self.starts[sequence_N]  # [N]
        self.padded_place = sequence_N * self.max_len + self.positions  # [N] index of each token in [S * T]
        self.kept_kv: list[tuple[Tensor, Tensor]] | None = [] if keep_kv else None

    def pad(self, x_NKD: Tensor) -> Tensor:
        """Convert a packed tensor [N, K, D] into a padded tensor [S, K, T, D]."""
        if not self.equal_lengths:
            padded = x_NKD.new_zeros(self.num_sequences * self.max_len, *x_NKD.shape[1:])
            x_NKD = padded.index_copy(0, self.padded_place, x_NKD)
        return x_NKD.view(self.num_sequences, self.max_len, *x_NKD.shape[1:]).transpose(1, 2)

    def unpad(self, x_SHTD: Tensor) -> Tensor:
        """Convert a padded tensor [S, H, T, D] into a packed tensor [N, H, D]."""
        x_NHD = x_SHTD.transpose(1, 2).reshape(-1, x_SHTD.shape[1], x_SHTD.shape[3])
        return x_NHD if self.equal_lengths else x_NHD[self.padded_place]

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        return self.attend_by_rule(layer, q_NHD, k_NKD, v_NKD, None)

    def attend_by_rule(
        self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, rule: AttentionRule | None
    ) -> Tensor:
        # float32 on CPUs, even with autocast: without AMX, bfloat16 attention is 2 to 4 times slower; not so on GPUs
        dtype = v_NKD.dtype if v_NKD.is_cuda else torch.float32
        q_NHD, k_NKD, v_NKD = q_NHD.to(dtype), k_NKD.to(dtype), v_NKD.to(dtype)
        k_SKTD, v_SKTD = self.pad(k_NKD), self.pad(v_NKD)
        if self.kept_kv is not None:
            self.kept_kv.append((k_SKTD, v_SKTD))
        heads = q_NHD.shape[1]
        if rule is not None:
            out_SHTD = ruled_attention(self.pad(q_NHD), repeat_heads(k_SKTD, heads), repeat_heads(v_SKTD, heads), rule)
            return self.unpad(out_SHTD)
        with torch.autocast(q_NHD.device.type, enabled=False):
            out_SHTD = F.scaled_dot_product_attention(
                self.pad(q_NHD), repeat_heads(k_SKTD, heads), repeat_heads(v_SKTD, heads), is_causal=True
            )
        return self.unpad(out_SHTD)


def ruled_attention(q_SHTD: Tensor, k_SHTD: Tensor, v_SHTD: Tensor, rule: AttentionRule) -> Tensor:
    """Compute causal attention by the rule of a model, such as a sliding window. Keys and values have the shape [S, H,
    T, D]. If there are fewer queries than keys, the queries belong to the last positions."""
    with torch.autocast(q_SHTD.device.type, enabled=False):
        score = rule.cap(q_SHTD @ k_SHTD.transpose(-1, -2) * q_SHTD.shape[-1] ** -0.5)  # [S, H, T, T]
        place = torch.arange(score.shape[-1], device=score.device)
        distance = place[-q_SHTD.shape[2] :, None] - place
        hidden = (distance < 0) | (distance >= (rule.window or len(place)))
        score = score.masked_fill(hidden, float("-inf"))
        if rule.sinks is not None:
            sinks = rule.sinks.to(score.dtype)[:, None, None].expand(*score.shape[:3], 1)
            score = torch.cat([score, sinks], -1)
        return score.softmax(-1)[..., : len(place)] @ v_SHTD


class SlotKVCache:
    """A preallocated KV cache for up to S growing sequences. The busy slots are always the first `busy` slots.

    Each layer has two stores: one for the distinct prompts, and one for the tokens of each slot after its prompt. All
    slots with the same prompt attend to the prompt together, in one matrix product. Each slot attends separately to its
    own tokens. The attention to the prompt and the attention to the slot's own tokens are merged by their log-sum-exp.
    When a slot is released, the last busy slot moves to its index, so that every step works on a dense batch.
    """

    dtype = torch.float32
    """The dtype of stored keys and values."""

    def __init__(
        self,
        num_layers: int,
        num_slots: int,
        num_kv_heads: int,
        head_dim: int,
        prompt_capacity: int,
        capacity: int,
        max_prompts: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Allocate all stores.

        `prompt_capacity` is the maximum number of tokens of a prompt.
        `capacity` is the maximum number of tokens that a slot can add after its prompt.
        `max_prompts` is the maximum number of distinct prompts at the same time; by default one for each slot.
        """
        max_prompts = num_slots if max_prompts is None else min(max_prompts, num_slots)
        prompt_capacity += -prompt_capacity % _ALIGN

        def allocate(*sizes: int) -> list[Tensor]:
            return [lazy_zeros(sizes, self.dtype, device) for _ in range(num_layers)]

        # [P, K, D, T], transposed as the products read them, and [P, K, T, D]
        self.prompt_keys = allocate(max_prompts, num_kv_heads, head_dim, prompt_capacity)
        self.prompt_values = allocate(max_prompts, num_kv_heads, prompt_capacity, head_dim)
        self._allocate_slots(allocate, num_slots, num_kv_heads, capacity, head_dim)
        self.prompt_length = torch.zeros(max_prompts, dtype=torch.long, device=device)  # [P]
        self.prompt_of = torch.zeros(num_slots, dtype=torch.long, device=device)  # [S] index of each slot's prompt
        self.lengths = torch.zeros(num_slots, dtype=torch.long, device=device)  # [S] tokens after the prompt
        self.prompt_names: list[Hashable] = []  # [P] names of the prompts in use
        self.num_slots, self.capacity, self.busy = num_slots, capacity, 0
        self._slot_range = torch.arange(num_slots, device=device)

    def _allocate_slots(
        self, allocate: Callable[..., list[Tensor]], num_slots: int, num_kv_heads: int, capacity: int, head_dim: int
    ) -> None:
        """Allocate the stores for the tokens that each slot adds after its prompt."""
        self.keys = allocate(num_slots, num_kv_heads, capacity, head_dim)  # [S, K, T, D]
        self.values = allocate(num_slots, num_kv_heads, capacity, head_dim)  # [S, K, T, D]

    def _used_slot_stores(self) -> list[Tensor]:
        """Return the part of each slot store that the busy slots have filled. A store has one row for each slot."""
        used = int(self.lengths[: self.busy].max())
        return [store[:, :, :used] for store in (*self.keys, *self.values)]

    @property
    def free(self) -> int:
        return self.num_slots - self.busy

    def store_prompts(self, packed: PackedAttention, names: Sequence[Hashable]) -> None:
        """Store the keys and values of prompts after their prefill.

        Call `admit` immediately after this method, because `release` drops prompts that no slot uses.
        """
        if packed.kept_kv is None:
            raise ValueError("the keys and values of the prompts were not kept; use PackedAttention(..., keep_kv=True)")
        places = slice(len(self.prompt_names), len(self.prompt_names) + packed.num_sequences)
        for layer, (k, v) in enumerate(packed.kept_kv):
            self.prompt_keys[layer][places, :, :, : packed.max_len] = k.transpose(-1, -2)
            self.prompt_values[layer][places, :, : packed.max_len] = v
        self.prompt_length[places] = packed.lengths
        self.prompt_names += names

    def admit(self, names: Sequence[Hashable]) -> None:
        """Fill the next free slots. The slot with index busy + i continues the prompt names[i]."""
        place = {name: at for at, name in enumerate(self.prompt_names)}
        admitted = slice(self.busy, self.busy + len(names))
        self.prompt_of[admitted] = torch.tensor([place[name] for name in names], device=self.lengths.device)
        self.lengths[admitted] = 0
        self.busy += len(names)
        self._group_by_prompt()

    def release(self, finished: Tensor) -> Tensor:
        """Release the slots that are marked in `finished` [busy].

        Returns the old indices of the remaining slots, in their new order.
        """
        order = _compact(~finished, [*self._used_slot_stores(), self.prompt_of, self.lengths])
        self.busy = len(order)
        used = torch.bincount(self.prompt_of[: self.busy], minlength=len(self.prompt_names)) > 0
        if not bool(used.all()):
            kept = _compact(used, [*self.prompt_keys, *self.prompt_values, self.prompt_length])
            new_place = torch.zeros_like(used, dtype=torch.long)
            new_place[kept] = torch.arange(len(kept), device=new_place.device)
            self.prompt_of[: self.busy] = new_place[self.prompt_of[: self.busy]]
            self.prompt_names = [self.prompt_names[old] for old in kept.tolist()]
        if self.busy:
            self._group_by_prompt()
        return order

    def _group_by_prompt(self) -> None:
        """Create a table [P, M] that lists the slots of each prompt; unused entries of the table have slot 0.

        The column of each slot in the table is stored too. M is the maximum number of slots of one prompt.
        """
        prompt_S = self.prompt_of[: self.busy]
        count_P = torch.bincount(prompt_S, minlength=len(self.prompt_names))
        order, start_P = torch.argsort(prompt_S, stable=True), torch.cumsum(count_P, 0) - count_P
        self._column = torch.empty_like(prompt_S)  # [S]
        self._column[order] = self._slot_range[: self.busy] - start_P[prompt_S[order]]
        self._num_columns = int(count_P.max())
        table_size = len(self.prompt_names) * self._num_columns
        self._table = torch.zeros(table_size, dtype=torch.long, device=prompt_S.device)  # [P * M]
        self._table[prompt_S * self._num_columns + self._column] = self._slot_range[: self.busy]
        self._prompt_reach, self._prompt_mask = _length_mask(self.prompt_length[: len(self.prompt_names)])

    def begin_step(self) -> Tensor:
        """Prepare a decode step. Call this method once per step, before the decoder.

        Returns the positions [busy] of the tokens that the step will add.
        """
        lengths = self.lengths[: self.busy]
        self._reach, self._mask = _length_mask(lengths + 1)
        self._masks_of_window: dict[int, tuple[Tensor, Tensor]] = {}  # the layers of a step share them
        return self.prompt_length[self.prompt_of[: self.busy]] + lengths

    def end_step(self) -> None:
        self.lengths[: self.busy] += 1

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        """Compute attention for one new token in each busy slot, so N = busy."""
        return self.attend_by_rule(layer, q_NHD, k_NKD, v_NKD, None)

    def attend_by_rule(
        self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, rule: AttentionRule | None
    ) -> Tensor:
        n, heads, head_dim = q_NHD.shape
        slots, place = self._slot_range[:n], self.lengths[:n]
        self.keys[layer][slots, :, place] = k_NKD.to(self.dtype)
        self.values[layer][slots, :, place] = v_NKD.to(self.dtype)
        own_mask, prompt_mask = self._mask, self._prompt_mask
        if rule is not None and rule.window is not None:
            if rule.window not in self._masks_of_window:
                self._masks_of_window[rule.window] = self._window_masks(rule.window, heads // k_NKD.shape[1])
            own_mask, prompt_mask = self._masks_of_window[rule.window]
        with torch.autocast(q_NHD.device.type, enabled=False):
            # the H / K query heads of one key head are side by side, as rows of one matrix product
            q_SKgD = (q_NHD.float() * head_dim**-0.5).view(n, k_NKD.shape[1], -1, head_dim)
            own_keys, own_values = self.keys[layer][:n, :, : self._reach], self.values[layer][:n, :, : self._reach]
            own = partial_attention(q_SKgD, own_keys.transpose(-1, -2), own_values, own_mask, rule)
            if rule is not None and rule.sinks is not None:
                sinks_KgD = rule.sinks.float().view(1, k_NKD.shape[1], -1, 1)
                own = add_sinks(own, sinks_KgD)
            prompts = len(self.prompt_names)
            table_shape = (prompts, self._num_columns, *q_SKgD.shape[1:])
            q_PKMD = q_SKgD[self._table].view(table_shape).transpose(1, 2).flatten(2, 3)  # [P, K, M * H/K, D]
            by_prompt = partial_attention(
                q_PKMD,
                self.prompt_keys[layer][:prompts, :, :, : self._prompt_reach],
                self.prompt_values[layer][:prompts, :, : self._prompt_reach],
                prompt_mask,
                rule,
            )
            cell = (self.prompt_of[:n], slice(None), self._column)
            prompt = [x.unflatten(2, (self._num_columns, -1))[cell] for x in by_prompt]  # [S, K, H/K, .]
            return merge_partial(own, prompt).reshape(n, heads, head_dim)

    def _window_masks(self, window: int, group_size: int) -> tuple[Tensor, Tensor]:
        """Build the attention masks for a sliding window.

        The mask for the tokens of the slots has the shape [S, 1, 1, T]. The mask for the prompts has the shape
        [P, 1, M * H/K, T]. Both masks are added to attention scores.
        """
        lengths_S, device = self.lengths[: self.busy], self.lengths.device
        own_T = torch.arange(self._reach, device=device)
        own_ST = (own_T > lengths_S[:, None]) | (own_T <= lengths_S[:, None] - window)
        prompts = len(self.prompt_names)
        lengths_P = self.prompt_length[:prompts]
        position_S = self.prompt_length[self.prompt_of[: self.busy]] + lengths_S
        position_PM = position_S[self._table].view(prompts, self._num_columns)
        prompt_T = torch.arange(self._prompt_reach, device=device)
        prompt_PMT = (prompt_T >= lengths_P[:, None, None]) | (prompt_T <= position_PM[:, :, None] - window)
        prompt_PMT = prompt_PMT.repeat_interleave(group_size, 1)
        return (
            torch.zeros(own_ST.shape, device=device).masked_fill_(own_ST, _HIDDEN)[:, None, None],
            torch.zeros(prompt_PMT.shape, device=device).masked_fill_(prompt_PMT, _HIDDEN)[:, None],
        )


class Bfloat16SlotKVCache(SlotKVCache):
    """A `SlotKVCache` that stores keys and values in bfloat16. A decoder in bfloat16 already rounds keys and values, so
    the results are the same as with `SlotKVCache`."""

    dtype = torch.bfloat16


def lazy_zeros(sizes: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Create a tensor of zeros. On a CPU, a memory page is allocated only when something is first written to it."""
    if torch.device(device).type != "cpu":
        return torch.zeros(sizes, dtype=dtype, device=device)
    array = np.zeros(sizes, {2: np.uint16, 4: np.float32}[dtype.itemsize])
    return torch.from_numpy(array).view(dtype)


def trim_memory() -> None:
    """Return freed memory to the operating system. By default, the C library (glibc) keeps freed memory.

    Sampling and learning alternate, and both free much memory. Without `trim_memory`, the memory of sampling would stay
    allocated during learning, and the memory of learning would stay allocated during sampling.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _length_mask(lengths: Tensor) -> tuple[int, Tensor | None]:
    """Return the longest length, and a mask [., 1, 1, T] that is -inf after the end of each shorter row.

    The mask is None if all lengths are equal.
    """
    longest = int(lengths.max())
    if int(lengths.min()) == longest:
        return longest, None
    behind = torch.arange(longest, device=lengths.device) >= lengths[:, None]
    return longest, additive_mask(behind)


def additive_mask(hidden: Tensor) -> Tensor:
    """Create a mask to add to attention scores. The mask is -inf where `hidden` is True, otherwise 0.

    The shape of `hidden` is [., T], and the shape of the mask is [., 1, 1, T].
    """
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, float("-inf"))[:, None, None]


def partial_attention(
    q: Tensor, k_DT: Tensor, v: Tensor, mask: Tensor | None, rule: AttentionRule | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute attention over one store, without the division of softmax.

    Returns three tensors: the sum of e^(score - max) v, the sum of e^(score - max), and the maximum score.
    """
    score = q @ k_DT.to(q.dtype)  # a copy of one layer, if the store has another dtype
    if rule is not None:
        score = rule.cap(score)
    if mask is not None:
        score += mask
    max_score = score.amax(-1, keepdim=True)
    weight = score.sub_(max_score).exp_()
    return weight @ v.to(q.dtype), weight.sum(-1, keepdim=True), max_score


def add_sinks(partial: Sequence[Tensor], sinks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Add one score per head (`sinks`) to the softmax of a partial attention. The value vector of a sink is zero."""
    weighted, total, max_score = partial
    new_max = torch.maximum(max_score, sinks)
    scale = (max_score - new_max).exp_()
    return weighted * scale, total * scale + (sinks - new_max).exp_(), new_max


def merge_partial(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Merge the attention over two stores into the result of one softmax over both stores."""
    max_score = torch.maximum(one[2], other[2])
    a, b = (one[2] - max_score).exp_(), (other[2] - max_score).exp_()
    return (one[0] * a + other[0] * b) / (one[1] * a + other[1] * b)


def _compact(keep: Tensor, stores: Sequence[Tensor]) -> Tensor:
    """Remove rows from each store, and fill the gaps with the last rows that are kept.

    Returns the old indices of the kept rows, in their new order.
    """
    n = int(keep.sum())
    old_place = torch.arange(len(keep), device=keep.device)
    gaps, movers = old_place[:n][~keep[:n]], old_place[n:][keep[n:]]
    order = old_place[:n].clone()
    order[gaps] = movers
    if len(gaps):
        for store in stores:
            store[gaps] = store[movers]
    return order
